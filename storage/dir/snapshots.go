package dir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// snapMeta is .drover/snapshot.
type snapMeta struct {
	Volume  string    `json:"volume"`
	ID      string    `json:"id"`
	Order   uint64    `json:"order"`
	Created time.Time `json:"created"`
	Note    []byte    `json:"note,omitempty"`
}

// Snapshot implements storage.Backend. It is not of one instant: the caller
// has paused the head's users.
func (b *Backend) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "make snapshot"
	s, err := b.snapshotHead(ctx, op, key, id, note, false)
	return s, b.fail(op, key.String(), err)
}

// Seal implements storage.Sealer.
func (b *Backend) Seal(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "seal head"
	s, err := b.snapshotHead(ctx, op, key, id, note, true)
	return s, b.fail(op, key.String(), err)
}

func (b *Backend) snapshotHead(ctx context.Context, op string, key storage.HeadKey, id string, note []byte, seal bool) (storage.Snapshot, error) {
	var none storage.Snapshot
	if err := errors.Join(hostfs.CheckKey(key), hostfs.CheckID("snapshot", id), hostfs.CheckNote(note)); err != nil {
		return none, err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	if s, err := b.snapshot(p, op, key.Volume, id); err == nil {
		return s, p.settle("snapshots", key.Volume)
	} else if !api.Is(err, api.NotFound) {
		return s, err
	}
	h, err := b.head(p, op, key, false)
	if err != nil {
		return none, err
	}
	if err := hostfs.WouldLeaveOut(op, key, h.Nested, "unmount these file systems"); err != nil {
		return none, err
	}
	path := hostfs.HeadPath(key)
	if seal {
		if err := hostfs.UnusedHead(op, b.cfg.Dir, key); err != nil {
			return none, err
		}
	} else {
		path = tmpName("snapshot " + key.Volume + "@" + id)
		if err := b.makeTree(ctx, p, op, key.String(), path, hostfs.HeadPath(key)); err != nil {
			_ = hostfs.RemoveTree(p.root, path, nil)
			return none, err
		}
	}
	err = b.publishSnapshot(p, path, snapMeta{Volume: key.Volume, ID: id, Created: time.Now().UTC(), Note: note})
	if err != nil {
		if !seal {
			_ = hostfs.RemoveTree(p.root, path, nil)
		}
		return none, err
	}
	return b.snapshot(p, op, key.Volume, id)
}

// publishSnapshot makes the tree at path the snapshot m, durably.
func (b *Backend) publishSnapshot(p *pool, path string, m snapMeta) error {
	others, _, err := b.scanSnapshots(context.Background(), p, m.Volume)
	if err != nil {
		return err
	}
	m.Order = 1
	for _, s := range others {
		m.Order = max(m.Order, s.Order+1)
	}
	if err := hostfs.WriteJSON(p.root, path+"/"+hostfs.SnapFile, m, true); err != nil {
		return err
	}
	return p.publish(path, "snapshots", m.Volume, m.ID)
}

// Unseal implements storage.Sealer.
func (b *Backend) Unseal(ctx context.Context, volume, id string, key storage.HeadKey) (storage.Head, error) {
	const op = "unseal head"
	h, err := b.unseal(ctx, op, volume, id, key)
	return h, b.fail(op, key.String(), err)
}

func (b *Backend) unseal(ctx context.Context, op, volume, id string, key storage.HeadKey) (storage.Head, error) {
	var none storage.Head
	if err := errors.Join(hostfs.CheckKey(key), hostfs.CheckID("volume", volume), hostfs.CheckID("snapshot", id)); err != nil {
		return none, err
	}
	if volume != key.Volume {
		return none, &api.Error{Kind: api.Invalid, Op: op, Object: key.String(), Reason: "the snapshot is of another volume"}
	}
	p, unlock, err := b.enter(ctx, volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	if _, err := b.snapshot(p, op, volume, id); err != nil {
		if api.Is(err, api.NotFound) { // done before?
			if h, e := b.head(p, op, key, false); e == nil {
				return h, errors.Join(p.settle("heads", volume), p.settle("snapshots", volume))
			}
		}
		return none, err
	}
	var meta hostfs.HeadNote
	if err := hostfs.ReadJSON(p.root, hostfs.SnapshotPath(volume, id)+"/"+hostfs.HeadFile, &meta); err != nil || meta.Branch != key.Branch {
		return none, &api.Error{Kind: api.Conflict, Op: op, Object: key.String(), Reason: "the snapshot " + id + " was not sealed from this head", Next: "make a head from it"}
	}
	if err := p.above("heads", volume); err != nil {
		return none, err
	}
	switch err := p.move(hostfs.SnapshotPath(volume, id), hostfs.HeadPath(key)); {
	case err == unix.EEXIST:
		return none, &api.Error{Kind: api.Exists, Op: op, Object: key.String(), Reason: "the head is there already"}
	case err != nil:
		return none, err
	}
	if err := unix.Unlinkat(p.root, hostfs.HeadPath(key)+"/"+hostfs.SnapFile, 0); err != nil && err != unix.ENOENT {
		return none, err
	}
	return b.head(p, op, key, false)
}

// snapshot reads one.
func (b *Backend) snapshot(p *pool, op, volume, id string) (storage.Snapshot, error) {
	path := hostfs.SnapshotPath(volume, id)
	if err := hostfs.Access(p.root, path); err == unix.ENOENT {
		return storage.Snapshot{}, hostfs.NoSnapshot(op, volume, id, b.cfg.Source)
	} else if err != nil {
		return storage.Snapshot{}, err
	}
	var m snapMeta
	if err := hostfs.ReadJSON(p.root, path+"/"+hostfs.SnapFile, &m); err != nil {
		return storage.Snapshot{}, fmt.Errorf("read the snapshot's note: %w", err)
	}
	if m.Volume != volume || m.ID != id {
		return storage.Snapshot{}, hostfs.ErrNotOurs
	}
	return storage.Snapshot{
		ID: id, Volume: volume, Order: m.Order, Dir: b.dirPath(path, hostfs.DataDir), Beside: b.dirPath(path, hostfs.BesideDir),
		Created: m.Created, Used: -1, Note: m.Note,
	}, nil
}

// Snapshots implements storage.Backend.
func (b *Backend) Snapshots(ctx context.Context, volume string) ([]storage.Snapshot, error) {
	const op = "list snapshots"
	if volume != "" {
		if err := hostfs.CheckID("volume", volume); err != nil {
			return nil, err
		}
	}
	p, err := b.pool()
	if err != nil {
		return nil, b.fail(op, b.cfg.Source, err)
	}
	list, _, err := b.scanSnapshots(ctx, p, volume)
	return list, b.fail(op, b.cfg.Source, err)
}

func (b *Backend) scanSnapshots(ctx context.Context, p *pool, volume string) (list []storage.Snapshot, strange []string, err error) {
	list, strange, err = hostfs.ScanSnapshots(ctx, p.root, volume, func(v, id string) (storage.Snapshot, error) {
		return b.snapshot(p, "list snapshots", v, id)
	})
	for i, path := range strange {
		strange[i] = b.dirPath(path)
	}
	slices.SortFunc(list, func(x, y storage.Snapshot) int {
		if x.Volume != y.Volume {
			return strings.Compare(x.Volume, y.Volume)
		}
		return int(min(max(int64(x.Order)-int64(y.Order), -1), 1))
	})
	return list, strange, err
}

// DestroySnapshot implements storage.Backend.
func (b *Backend) DestroySnapshot(ctx context.Context, volume, id string) error {
	const op = "destroy snapshot"
	if err := errors.Join(hostfs.CheckID("volume", volume), hostfs.CheckID("snapshot", id)); err != nil {
		return err
	}
	object := volume + "@" + id
	p, unlock, err := b.enter(ctx, volume)
	if err != nil {
		return b.fail(op, object, err)
	}
	defer unlock()
	if b.busy.Take(volume, id) {
		err := p.drop("incoming", volume, id)
		b.busy.Release(volume, id)
		if err != nil {
			return b.fail(op, object, err)
		}
	}
	return b.fail(op, object, p.drop("snapshots", volume, id))
}
