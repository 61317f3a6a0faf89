package btrfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// snapMeta is .drover/snapshot. Sends carry it.
type snapMeta struct {
	Volume  string    `json:"volume"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Note    []byte    `json:"note,omitempty"`
}

// Snapshot implements storage.Backend.
func (b *Backend) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "make snapshot"
	s, err := b.snapshotHead(ctx, op, key, id, note)
	return s, b.fail(op, key.String(), err)
}

func (b *Backend) snapshotHead(ctx context.Context, op string, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
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
		return s, commitTransaction(p.root) // whoever made it may have been killed before that
	} else if !api.Is(err, api.NotFound) {
		return s, err
	}
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return none, err
	}
	defer unix.Close(fd)
	nested, err := b.nested(fd, key)
	if err != nil {
		return none, err
	}
	if len(nested) > 0 {
		return none, &api.Error{Kind: api.Unsupported, Op: op, Object: key.String(), Reason: "a snapshot would leave out what is nested inside: " + strings.Join(nested, ", "), Next: "delete these subvolumes or unmount these file systems, or make them directories"}
	}
	if err := b.admit(p, op, key.String(), forSnapshot, 0); err != nil {
		return none, err
	}
	meta, info, err := readHead(fd)
	if err != nil {
		return none, err
	}
	// The memory is written into the head, so that the one call that makes the
	// snapshot makes it whole. A crash in between leaves a file nobody reads.
	m := snapMeta{key.Volume, id, time.Now().UTC(), note}
	if err := p.withRoom(info.TreeID, func() error { return hostfs.WriteJSON(fd, hostfs.SnapFile, m, false) }); err != nil {
		return none, err
	}
	if err := p.withRoom(info.TreeID, func() error { return publish(p, key.Volume, id, fd) }); err != nil {
		return none, err
	}
	if err := p.raiseLimit(info.TreeID, meta.Size); err != nil {
		return none, err
	}
	return b.snapshot(p, op, key.Volume, id)
}

// publish makes the read-only snapshot of src under its final name, durably.
func publish(p *pool, volume, id string, src int) error {
	if err := hostfs.MakeDirs(p.root, "snapshots", volume); err != nil {
		return err
	}
	dir, err := hostfs.OpenDir(p.root, "snapshots/"+volume)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return snapCreate(dir, id, src, true)
}

// snapshot reads one.
func (b *Backend) snapshot(p *pool, op, volume, id string) (storage.Snapshot, error) {
	path := hostfs.SnapshotPath(volume, id)
	fd, err := openSubvol(p.root, path)
	if err == unix.ENOENT {
		return storage.Snapshot{}, hostfs.NoSnapshot(op, volume, id, b.cfg.Source)
	}
	if err != nil {
		return storage.Snapshot{}, err
	}
	defer unix.Close(fd)
	var meta snapMeta
	if err := hostfs.ReadJSON(fd, hostfs.SnapFile, &meta); err != nil {
		return storage.Snapshot{}, fmt.Errorf("read the snapshot's note: %w", err)
	}
	info, err := getSubvolInfo(fd)
	if err != nil {
		return storage.Snapshot{}, err
	}
	if meta.Volume != volume || meta.ID != id || info.Flags&rootReadOnly == 0 {
		return storage.Snapshot{}, errNotSubvol
	}
	return storage.Snapshot{
		ID: id, Volume: volume, Lineage: info.lineage().String(), Order: info.TreeID,
		Dir: b.dirPath(path, hostfs.DataDir), Beside: b.dirPath(path, hostfs.BesideDir),
		Created: meta.Created, Used: p.owned(info.TreeID), Note: meta.Note,
	}, nil
}

// lineage is the identity that native streams carry on.
func (i *subvolInfo) lineage() UUID {
	if i.ReceivedUUID != (UUID{}) {
		return i.ReceivedUUID
	}
	return i.UUID
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
		if x.Order < y.Order {
			return -1
		}
		return 1
	})
	sort.Strings(strange)
	return list, strange, err
}

// keptBySnapshots reports whether snapshots made of the subvolume exist.
func (b *Backend) keptBySnapshots(p *pool, volume string, head UUID) (bool, error) {
	ids, err := hostfs.Names(p.root, "snapshots/"+volume)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return false, err
	}
	for _, id := range ids {
		fd, err := openSubvol(p.root, hostfs.SnapshotPath(volume, id))
		if err != nil {
			continue
		}
		info, err := getSubvolInfo(fd)
		unix.Close(fd)
		if err == nil && info.ParentUUID == head {
			return true, nil
		}
	}
	return false, nil
}

// DestroySnapshot implements storage.Backend. It also drops what had arrived
// of a snapshot that is not complete, unless it is just arriving.
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
		err = b.dropIncoming(p, volume, id)
		b.busy.Release(volume, id)
		if err != nil {
			return b.fail(op, object, err)
		}
	}
	err = destroyIn(p, "snapshots", volume, id)
	if errors.Is(err, unix.EPERM) {
		return &api.Error{Kind: api.InUse, Op: op, Object: object, Reason: "it is just being sent", Next: "try again when that has ended", Err: err}
	}
	return b.fail(op, object, err)
}

// settleVolume lowers the limits of a volume's heads as far as they may be. That
// is done when somebody looks, not when a snapshot goes: its space is given
// back by the kernel's cleaner some time after.
func (b *Backend) settleVolume(p *pool, volume string) error {
	if !p.counts() {
		return nil
	}
	names, err := hostfs.Names(p.root, "heads/"+volume)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for _, n := range names {
		fd, err := openSubvol(p.root, "heads/"+volume+"/"+n)
		if err != nil {
			continue // not ours: Recover reports it
		}
		meta, info, err := readHead(fd)
		unix.Close(fd)
		if err != nil {
			continue
		}
		kept, err := b.keptBySnapshots(p, volume, info.UUID)
		if err != nil {
			return err
		}
		if err := b.settleLimit(p, info.TreeID, meta.Size, kept); err != nil {
			return err
		}
	}
	return err
}
