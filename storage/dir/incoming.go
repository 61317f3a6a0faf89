package dir

import (
	"bytes"
	"context"
	"errors"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// A tree that is arriving goes on in place: what was written after the last
// mark may be there, which the portable stream allows for.

type incomingMeta struct {
	Volume string `json:"volume"`
	ID     string `json:"id"`
	Base   string `json:"base,omitempty"`
	Stream string `json:"stream,omitempty"`
	Note   []byte `json:"note,omitempty"`
}

const (
	specFile = "spec.json"
	markFile = "mark"
)

type stage struct {
	b      *Backend
	p      *pool
	meta   incomingMeta
	note   []byte
	closed bool
}

// Stage implements storage.Backend.
func (b *Backend) Stage(ctx context.Context, spec storage.ReceiveSpec) (storage.Stage, error) {
	const op = "stage snapshot"
	s, err := b.stage(ctx, op, spec)
	if err != nil {
		return nil, b.fail(op, spec.Volume+"@"+spec.ID, err)
	}
	return s, nil
}

func (b *Backend) stage(ctx context.Context, op string, spec storage.ReceiveSpec) (*stage, error) {
	if err := hostfs.CheckArrival(spec, hostfs.CheckID); err != nil {
		return nil, err
	}
	p, unlock, err := b.enter(ctx, spec.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := hostfs.Access(p.root, hostfs.SnapshotPath(spec.Volume, spec.ID)); err == nil {
		if err := p.settle("snapshots", spec.Volume); err != nil {
			return nil, err
		}
		return nil, hostfs.IsThere(op, spec.Volume, spec.ID)
	} else if err != unix.ENOENT {
		return nil, err
	}
	base := ""
	if spec.Base != "" {
		if _, err := b.snapshot(p, op, spec.Volume, spec.Base); err != nil {
			return nil, err
		}
		base = hostfs.SnapshotPath(spec.Volume, spec.Base)
	}
	if !b.busy.Take(spec.Volume, spec.ID) {
		return nil, hostfs.Arriving(op, spec.Volume, spec.ID)
	}
	s := &stage{b: b, p: p, meta: incomingMeta{spec.Volume, spec.ID, spec.Base, spec.Stream, spec.Note}}
	if err := s.begin(ctx, op, base, spec.Size); err != nil {
		b.busy.Release(spec.Volume, spec.ID)
		return nil, err
	}
	return s, nil
}

// begin goes on with what is there, or begins anew.
func (s *stage) begin(ctx context.Context, op, base string, size int64) error {
	path := hostfs.IncomingPath(s.meta.Volume, s.meta.ID)
	var have incomingMeta
	err := hostfs.ReadJSON(s.p.root, path+"/"+specFile, &have)
	if err == nil && have.Base == s.meta.Base && have.Stream == s.meta.Stream {
		if err = hostfs.ReadJSON(s.p.root, path+"/"+markFile, &s.note); err == nil {
			return s.b.admit(ctx, op, s.object(), 0)
		}
	}
	if hostfs.DeviceGone(err) {
		return err
	}
	if err := s.p.drop("incoming", s.meta.Volume, s.meta.ID); err != nil {
		return err
	}
	if err := s.b.admit(ctx, op, s.object(), size); err != nil {
		return err
	}
	if err := hostfs.MakeDirs(s.p.root, "incoming", s.meta.Volume, s.meta.ID); err != nil {
		return err
	}
	if err := s.b.makeTree(ctx, s.p, op, s.object(), path+"/tree", base); err != nil {
		return err
	}
	return hostfs.WriteJSON(s.p.root, path+"/"+specFile, s.meta, true)
}

func (s *stage) object() string { return s.meta.Volume + "@" + s.meta.ID }

func (s *stage) path() string { return hostfs.IncomingPath(s.meta.Volume, s.meta.ID) + "/tree" }

func (s *stage) Dir() string    { return s.b.dirPath(s.path(), hostfs.DataDir) }
func (s *stage) Beside() string { return s.b.dirPath(s.path(), hostfs.BesideDir) }
func (s *stage) Marked() []byte { return s.note }

func (s *stage) Mark(ctx context.Context, note []byte) error {
	const op = "mark stage"
	if s.closed {
		return hostfs.Closed(op, s.object())
	}
	err := errors.Join(ctx.Err(), hostfs.CheckNote(note))
	if err == nil {
		err = s.p.writeOut()
	}
	if err == nil {
		err = hostfs.WriteJSON(s.p.root, hostfs.IncomingPath(s.meta.Volume, s.meta.ID)+"/"+markFile, note, true)
	}
	if err == nil {
		err = errors.Join(s.p.flush("incoming/"+s.meta.Volume), s.p.flush("incoming"))
	}
	if err == nil {
		s.note = bytes.Clone(note)
	}
	return s.b.fail(op, s.object(), err)
}

func (s *stage) Commit(ctx context.Context) (storage.Snapshot, error) {
	const op = "commit stage"
	if s.closed {
		return storage.Snapshot{}, hostfs.Closed(op, s.object())
	}
	unlock, err := s.b.locks.Lock(ctx, s.meta.Volume)
	if err != nil {
		return storage.Snapshot{}, s.b.fail(op, s.object(), err)
	}
	defer unlock()
	m := snapMeta{Volume: s.meta.Volume, ID: s.meta.ID, Created: time.Now().UTC(), Note: s.meta.Note}
	if err := s.b.publishSnapshot(s.p, s.path(), m); err != nil {
		return storage.Snapshot{}, s.b.fail(op, s.object(), err)
	}
	// What is left is removed now or by Recover; the snapshot is there.
	_ = s.p.drop("incoming", s.meta.Volume, s.meta.ID)
	s.letGo()
	snap, err := s.b.snapshot(s.p, op, s.meta.Volume, s.meta.ID)
	return snap, s.b.fail(op, s.object(), err)
}

func (s *stage) letGo() {
	if !s.closed {
		s.closed = true
		s.b.busy.Release(s.meta.Volume, s.meta.ID)
	}
}

func (s *stage) Abort(ctx context.Context) error {
	if s.closed {
		return nil
	}
	unlock, err := s.b.locks.Lock(ctx, s.meta.Volume)
	if err != nil {
		return s.b.fail("abort stage", s.object(), err)
	}
	defer unlock()
	err = s.p.drop("incoming", s.meta.Volume, s.meta.ID)
	s.letGo()
	return s.b.fail("abort stage", s.object(), err)
}

func (s *stage) Close() error {
	s.letGo()
	return nil
}

// Recover implements storage.Backend.
func (b *Backend) Recover(ctx context.Context) (storage.Content, error) {
	c, err := b.recoverAll(ctx)
	return c, b.fail("recover pool", b.cfg.Source, err)
}

func (b *Backend) recoverAll(ctx context.Context) (storage.Content, error) {
	var c storage.Content
	p, err := b.pool()
	if err != nil {
		return c, err
	}
	names, err := hostfs.Names(p.root, ".")
	if err != nil {
		return c, err
	}
	for _, n := range names {
		if !own(n) && n != "lost+found" {
			c.Strange = append(c.Strange, b.dirPath(n))
		}
	}
	made, err := hostfs.Names(p.root, "tmp")
	if err != nil {
		return c, err
	}
	for _, n := range made {
		if err := hostfs.RemoveTree(p.root, "tmp/"+n, nil); err != nil && !errors.Is(err, unix.EROFS) {
			return c, err
		}
	}
	var strange []string
	if c.Snapshots, strange, err = b.scanSnapshots(ctx, p, ""); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	if c.Heads, strange, err = b.scanHeads(ctx, p); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	c.Partial, strange, err = b.scanIncoming(p)
	c.Strange = append(c.Strange, strange...)
	sort.Strings(c.Strange)
	return c, err
}

// scanIncoming keeps what can go on and removes the rest.
func (b *Backend) scanIncoming(p *pool) (partial []storage.ReceiveSpec, strange []string, err error) {
	err = hostfs.EachTwo(p.root, "incoming", func(volume, id string) error {
		if !b.busy.Take(volume, id) {
			return nil
		}
		defer b.busy.Release(volume, id)
		path := hostfs.IncomingPath(volume, id)
		var meta incomingMeta
		var note []byte
		err := errors.Join(hostfs.ReadJSON(p.root, path+"/"+specFile, &meta), hostfs.ReadJSON(p.root, path+"/"+markFile, &note))
		if hostfs.DeviceGone(err) {
			return err
		}
		if err == nil && meta.Volume == volume && meta.ID == id && hostfs.Access(p.root, path+"/tree") == nil && hostfs.Access(p.root, hostfs.SnapshotPath(volume, id)) == unix.ENOENT {
			partial = append(partial, storage.ReceiveSpec{Volume: volume, ID: id, Base: meta.Base, Note: meta.Note, Stream: meta.Stream})
			return nil
		}
		if err := p.drop("incoming", volume, id); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
		return nil
	}, func(path string) { strange = append(strange, b.dirPath(path)) })
	return partial, strange, err
}
