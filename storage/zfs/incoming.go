package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// incomingFile is DIR/incoming/VOLUME/ID/spec.json.
type incomingFile struct {
	Volume string `json:"volume"`
	ID     string `json:"id"`
	Base   string `json:"base,omitempty"`
	Note   []byte `json:"note,omitempty"`
	Format string `json:"format,omitempty"` // of the stream; empty for a stage
	Stream string `json:"stream,omitempty"` // storage.ReceiveSpec.Stream
	// Of a stage: its tree, the number of its youngest mark and that mark's note.
	Tree   string `json:"tree,omitempty"`
	Mark   int64  `json:"mark,omitempty"`
	Marked []byte `json:"marked,omitempty"`
	// Of a stream: how much of the spool is durable.
	Kept int64 `json:"kept,omitempty"`
}

// canGoOn: something was durably kept of it.
func (f incomingFile) canGoOn() bool { return f.Mark > 0 || f.Kept > 0 }

// incoming is what is arriving.
type incoming struct {
	b      *Backend
	file   incomingFile
	spool  *os.File // of a stream
	free   func()   // lets sweep have the tree that no file names
	closed bool
}

func markName(n int64) string { return fmt.Sprintf("m-%d", n) }

func (b *Backend) incomingDir(volume, id string) string { return b.path("incoming", volume, id) }

func (in *incoming) specPath() string {
	return filepath.Join(in.b.incomingDir(in.file.Volume, in.file.ID), "spec.json")
}

func (in *incoming) spoolPath() string {
	return filepath.Join(in.b.incomingDir(in.file.Volume, in.file.ID), "stream")
}

func (in *incoming) object() string { return in.file.Volume + "@" + in.file.ID }

// beginIncoming opens what is arriving, as far as it had come. The caller makes
// or brings back its content.
func (b *Backend) beginIncoming(ctx context.Context, op string, spec storage.ReceiveSpec, format string, open func(*incoming) error) error {
	if err := hostfs.CheckArrival(spec, checkID); err != nil {
		return err
	}
	unlock, err := b.enter(ctx, spec.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := b.readSnapshot(op, spec.Volume, spec.ID); err == nil {
		return hostfs.IsThere(op, spec.Volume, spec.ID)
	} else if !api.Is(err, api.NotFound) {
		return err
	}
	if spec.Base != "" {
		if _, err := b.readSnapshot(op, spec.Volume, spec.Base); err != nil {
			return err
		}
	}
	if !b.busy.Take(spec.Volume, spec.ID) {
		return hostfs.Arriving(op, spec.Volume, spec.ID)
	}
	in, err := b.openIncoming(ctx, op, spec, format)
	if err == nil {
		if err = open(in); err != nil {
			in.letGo()
			return err
		}
		b.busy.Set(spec.Volume, spec.ID, in)
		return nil
	}
	b.busy.Release(spec.Volume, spec.ID)
	return err
}

func (b *Backend) openIncoming(ctx context.Context, op string, spec storage.ReceiveSpec, format string) (*incoming, error) {
	want := incomingFile{Volume: spec.Volume, ID: spec.ID, Base: spec.Base, Note: spec.Note, Format: format, Stream: spec.Stream}
	in := &incoming{b: b}
	err := hostfs.ReadJSONAt(filepath.Join(b.incomingDir(spec.Volume, spec.ID), "spec.json"), &in.file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	have := in.file
	if err != nil || !have.canGoOn() || have.Base != want.Base || have.Format != want.Format || have.Stream != want.Stream {
		if err := b.dropIncoming(spec.Volume, spec.ID); err != nil {
			return nil, err
		}
		if have.Tree != "" {
			if err := b.sweep(ctx); err != nil {
				return nil, err
			}
		}
		in.file = want
	}
	in.file.Note = want.Note
	if err := b.admit(ctx, op, spec.Volume+"@"+spec.ID, forNew, max(0, spec.Size-in.file.Kept)); err != nil {
		return nil, err
	}
	return in, b.makeDirs("incoming", spec.Volume, spec.ID)
}

// dropIncoming removes all that arrived; its tree, if any, is sweep's then.
func (b *Backend) dropIncoming(volume, id string) error {
	dir := b.incomingDir(volume, id)
	if err := removeFile(filepath.Join(dir, "spec.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(dir)) // only when it is empty
	return nil
}

// incomingSpecs reads all.
func (b *Backend) incomingSpecs() ([]incomingFile, error) {
	var specs []incomingFile
	var strange []string
	err := b.eachTwo("incoming", func(volume, id, path string) {
		var f incomingFile
		if hostfs.ReadJSONAt(filepath.Join(path, "spec.json"), &f) == nil && f.Volume == volume && f.ID == id {
			specs = append(specs, f)
		}
	}, &strange)
	return specs, err
}

// keepPartial lists what can go on and drops the rest.
func (b *Backend) keepPartial(c *storage.Content) (partial []storage.ReceiveSpec, err error) {
	var drop [][2]string
	err = b.eachTwo("incoming", func(volume, id, path string) {
		var f incomingFile
		bad := hostfs.ReadJSONAt(filepath.Join(path, "spec.json"), &f) != nil || f.Volume != volume || f.ID != id || !f.canGoOn()
		if _, err := os.Lstat(b.snapPath(volume, id)); bad || err == nil {
			drop = append(drop, [2]string{volume, id})
			return
		}
		partial = append(partial, storage.ReceiveSpec{Volume: volume, ID: id, Base: f.Base, Note: f.Note, Stream: f.Stream})
	}, &c.Strange)
	if err != nil {
		return nil, err
	}
	for _, d := range drop {
		if checkID("snapshot", d[1]) != nil {
			c.Strange = append(c.Strange, b.incomingDir(d[0], d[1]))
			continue
		}
		if !b.busy.Take(d[0], d[1]) { // in use: Recover was called late
			continue
		}
		err := b.dropIncoming(d[0], d[1])
		b.busy.Release(d[0], d[1])
		if err != nil {
			return nil, err
		}
	}
	return partial, nil
}

// letGo closes what is open and gives up the claim; safe to repeat.
func (in *incoming) letGo() {
	if in.closed {
		return
	}
	in.closed = true
	if in.spool != nil {
		in.spool.Close()
	}
	if in.free != nil {
		in.free()
	}
	in.b.busy.Release(in.file.Volume, in.file.ID)
}

func (in *incoming) abort(ctx context.Context) error {
	if in.closed {
		return nil
	}
	unlock, err := in.b.locks.Lock(ctx, in.file.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	err = in.b.dropIncoming(in.file.Volume, in.file.ID)
	in.letGo()
	if err == nil && in.file.Tree != "" {
		err = in.b.sweep(ctx)
	}
	return err
}

// checkTree refuses a tree that is not shaped like ours: a stream may hold
// anything, and what is published is trusted from then on.
func (b *Backend) checkTree(tree string) error {
	for _, d := range []string{hostfs.DataDir, ".drover", hostfs.BesideDir} {
		st, err := os.Lstat(filepath.Join(b.treeDir(tree), d))
		if err != nil || !st.IsDir() {
			return damaged(fmt.Sprintf("it has no directory %s", d))
		}
	}
	return nil
}

func damaged(reason string) error {
	return &api.Error{Kind: api.Damaged, Op: "receive snapshot", Reason: reason, Next: "send it again from its beginning"}
}

// stage implements storage.Stage.
type stage struct{ in *incoming }

// Stage implements storage.Backend.
func (b *Backend) Stage(ctx context.Context, spec storage.ReceiveSpec) (storage.Stage, error) {
	const op = "stage snapshot"
	s := &stage{}
	err := b.beginIncoming(ctx, op, spec, "", func(in *incoming) error {
		s.in = in
		if in.file.Mark > 0 {
			if err := b.mountTree(ctx, in.file.Tree); err != nil {
				return err
			}
			_, err := b.zfs(ctx, nil, "rollback", "-r", b.treeName(in.file.Tree)+"@"+markName(in.file.Mark))
			if err != nil {
				return err
			}
			return b.mountTree(ctx, in.file.Tree)
		}
		var err error
		in.file.Tree, in.free, err = b.beginTree(ctx, op, spec.Volume, spec.Base, 0)
		if err != nil {
			return err
		}
		return hostfs.WriteJSONAt(in.specPath(), in.file)
	})
	if err != nil {
		return nil, b.fail(op, spec.Volume+"@"+spec.ID, err)
	}
	return s, nil
}

func (s *stage) Dir() string { return filepath.Join(s.in.b.treeDir(s.in.file.Tree), hostfs.DataDir) }

func (s *stage) Beside() string {
	return filepath.Join(s.in.b.treeDir(s.in.file.Tree), hostfs.BesideDir)
}

func (s *stage) Marked() []byte { return s.in.file.Marked }

// Mark implements storage.Stage: a snapshot, and then the file that names it.
func (s *stage) Mark(ctx context.Context, note []byte) error {
	const op = "mark stage"
	if s.in.closed {
		return hostfs.Closed(op, s.in.object())
	}
	return s.in.b.fail(op, s.in.object(), s.mark(ctx, note))
}

func (s *stage) mark(ctx context.Context, note []byte) error {
	b, next := s.in.b, s.in.file
	if err := errors.Join(ctx.Err(), hostfs.CheckNote(note)); err != nil {
		return err
	}
	if err := b.flush(next.Tree); err != nil {
		return err
	}
	next.Mark, next.Marked = next.Mark+1, bytes.Clone(note)
	name := b.treeName(next.Tree) + "@" + markName(next.Mark)
	release := b.hold(name)
	defer release()
	if _, err := b.zfs(ctx, nil, "snapshot", name); errors.Is(err, errIsThere) {
		// A call that failed made it, and no file names it.
		if err := b.destroy(ctx, name); err != nil {
			return err
		}
		if _, err := b.zfs(ctx, nil, "snapshot", name); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := hostfs.WriteJSONAt(s.in.specPath(), next); err != nil {
		return err
	}
	old := s.in.file.Mark
	s.in.file = next
	if old > 0 {
		_ = b.destroy(ctx, b.treeName(next.Tree)+"@"+markName(old)) // or sweep does it
	}
	return nil
}

// Commit implements storage.Stage.
func (s *stage) Commit(ctx context.Context) (storage.Snapshot, error) {
	const op = "commit stage"
	if s.in.closed {
		return storage.Snapshot{}, hostfs.Closed(op, s.in.object())
	}
	snap, err := s.commit(ctx)
	return snap, s.in.b.fail(op, s.in.object(), err)
}

func (s *stage) commit(ctx context.Context) (storage.Snapshot, error) {
	var none storage.Snapshot
	b, file := s.in.b, s.in.file
	unlock, err := b.locks.Lock(ctx, file.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if err := b.flush(file.Tree); err != nil {
		return none, err
	}
	f, release, err := b.takeSnapshot(ctx, file.Volume, file.ID, file.Tree, file.Note)
	if err != nil {
		return none, err
	}
	defer release()
	if err := b.publish(f); err != nil {
		return none, err
	}
	return s.in.published(ctx, f)
}

// published ends an arrival whose snapshot is there.
func (in *incoming) published(ctx context.Context, f snapFile) (storage.Snapshot, error) {
	snap, err := in.b.snapshot(ctx, f)
	if err != nil {
		return snap, err
	}
	in.letGo()
	// What is left is removed now or by Recover; the snapshot is there.
	if in.b.dropIncoming(f.Volume, f.ID) == nil && in.file.Tree != "" {
		_ = in.b.sweep(ctx) // its marks
	}
	return snap, nil
}

// Abort implements storage.Stage.
func (s *stage) Abort(ctx context.Context) error {
	return s.in.b.fail("abort stage", s.in.object(), s.in.abort(ctx))
}

// Close implements storage.Stage.
func (s *stage) Close() error {
	s.in.letGo()
	return nil
}
