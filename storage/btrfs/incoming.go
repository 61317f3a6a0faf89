package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// A tree that is arriving, by a native stream or as a stage, is a writable
// subvolume. At each mark a read-only snapshot of it is taken, which is at once
// the barrier that makes it durable and the point to which an interrupted
// arrival goes back. Only the youngest is kept.

// incomingMeta is spec.json. It is written before the tree is begun, and again
// before the first mark once the stream has said who it is.
type incomingMeta struct {
	Volume string `json:"volume"`
	ID     string `json:"id"`
	Base   string `json:"base,omitempty"`
	Note   []byte `json:"note,omitempty"`
	Format string `json:"format,omitempty"` // of the stream; empty for a stage
	Stream string `json:"stream,omitempty"` // storage.ReceiveSpec.Stream
	// What the stream said of itself.
	Version uint32 `json:"version,omitempty"`
	UUID    UUID   `json:"uuid,omitzero"`
	Transid uint64 `json:"transid,omitempty"`
}

type incoming struct {
	b      *Backend
	p      *pool
	dir    int // descriptor of POOL/incoming/VOLUME/ID
	tree   int // descriptor of tree, -1 before it is begun
	meta   incomingMeta
	mark   int64 // number in the name of the youngest mark, 0 for none
	closed bool
	also   func() // what else to let go of, nil for nothing
}

func markName(n int64) string { return fmt.Sprintf("at-%d", n) }

// parseMark is the inverse of markName.
func parseMark(name string) (int64, bool) {
	s, ok := strings.CutPrefix(name, "at-")
	n, err := strconv.ParseInt(s, 10, 64)
	return n, ok && err == nil && n > 0 && markName(n) == name
}

// beginIncoming opens what is arriving, as far as it had come.
func (b *Backend) beginIncoming(ctx context.Context, op string, spec storage.ReceiveSpec, format string) (*incoming, error) {
	if err := hostfs.CheckArrival(spec, hostfs.CheckID); err != nil {
		return nil, err
	}
	p, unlock, err := b.enter(ctx, spec.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := hostfs.Access(p.root, hostfs.SnapshotPath(spec.Volume, spec.ID)); err == nil {
		if err := commitTransaction(p.root); err != nil {
			return nil, err
		}
		return nil, hostfs.IsThere(op, spec.Volume, spec.ID)
	} else if err != unix.ENOENT {
		return nil, err
	}
	if spec.Base != "" {
		if _, err := b.snapshot(p, op, spec.Volume, spec.Base); err != nil {
			return nil, err
		}
	}
	if !b.busy.Take(spec.Volume, spec.ID) {
		return nil, hostfs.Arriving(op, spec.Volume, spec.ID)
	}
	in, err := b.openIncoming(p, op, spec, format)
	if err != nil {
		b.busy.Release(spec.Volume, spec.ID)
		return nil, err
	}
	b.busy.Set(spec.Volume, spec.ID, in)
	return in, nil
}

func (b *Backend) openIncoming(p *pool, op string, spec storage.ReceiveSpec, format string) (*incoming, error) {
	want := incomingMeta{Volume: spec.Volume, ID: spec.ID, Base: spec.Base, Note: spec.Note, Format: format, Stream: spec.Stream}
	path := hostfs.IncomingPath(spec.Volume, spec.ID)
	var have incomingMeta
	mark := int64(0)
	fd, err := hostfs.OpenDir(p.root, path)
	if err == nil {
		if e := hostfs.ReadJSON(fd, "spec.json", &have); e == nil && have.Base == want.Base && have.Format == want.Format && have.Stream == want.Stream {
			mark, err = youngestMark(fd)
		}
		unix.Close(fd)
	}
	if err != nil && err != unix.ENOENT {
		return nil, err
	}
	if mark == 0 {
		if err := b.dropIncoming(p, spec.Volume, spec.ID); err != nil {
			return nil, err
		}
		have = want
	}
	have.Note = want.Note
	if err := b.admit(p, op, spec.Volume+"@"+spec.ID, forNew, spec.Size); err != nil {
		return nil, err
	}
	if err := hostfs.MakeDirs(p.root, "incoming", spec.Volume, spec.ID); err != nil {
		return nil, err
	}
	in := &incoming{b: b, p: p, tree: -1, meta: have, mark: mark}
	if in.dir, err = hostfs.OpenDir(p.root, path); err != nil {
		return nil, err
	}
	if err := in.resume(); err != nil {
		unix.Close(in.dir)
		return nil, err
	}
	return in, nil
}

// resume brings the tree back to its youngest mark.
func (in *incoming) resume() error {
	if err := destroySubvol(in.dir, "tree"); err != nil {
		return err
	}
	if in.mark == 0 {
		return hostfs.WriteJSON(in.dir, "spec.json", in.meta, true)
	}
	src, err := openSubvol(in.dir, markName(in.mark))
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := snapCreate(in.dir, "tree", src, false); err != nil {
		return err
	}
	in.tree, err = openSubvol(in.dir, "tree")
	return err
}

func youngestMark(dir int) (int64, error) {
	names, err := hostfs.Names(dir, ".")
	var top int64
	for _, n := range names {
		if at, ok := parseMark(n); ok {
			top = max(top, at)
		}
	}
	return top, err
}

// dropIncoming removes all that arrived.
func (b *Backend) dropIncoming(p *pool, volume, id string) error {
	dir, err := hostfs.OpenDir(p.root, "incoming/"+volume)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := removeTree(dir, id); err != nil {
		return err
	}
	if err := unix.Unlinkat(p.root, "incoming/"+volume, unix.AT_REMOVEDIR); err != nil && err != unix.ENOTEMPTY && err != unix.ENOENT {
		return err
	}
	return nil
}

// keep makes the tree durable as mark n and forgets older marks.
func (in *incoming) keep(n int64) error {
	if n == in.mark {
		return nil
	}
	if err := snapCreate(in.dir, markName(n), in.tree, true); err != nil {
		return err
	}
	in.mark = n
	names, err := hostfs.Names(in.dir, ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if at, ok := parseMark(name); ok && at != n {
			if err := destroySubvol(in.dir, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish publishes the tree as the snapshot.
func (in *incoming) finish(ctx context.Context, op string, seal func() error) (storage.Snapshot, error) {
	if err := in.checkTree(); err != nil {
		return storage.Snapshot{}, err
	}
	var have snapMeta
	err := hostfs.ReadJSON(in.tree, hostfs.SnapFile, &have)
	if err != nil || have.Volume != in.meta.Volume || have.ID != in.meta.ID || in.meta.Note != nil && !bytes.Equal(have.Note, in.meta.Note) {
		m := snapMeta{in.meta.Volume, in.meta.ID, have.Created, in.meta.Note}
		if m.Created.IsZero() {
			m.Created = time.Now().UTC()
		}
		if err := hostfs.WriteJSON(in.tree, hostfs.SnapFile, m, false); err != nil {
			return storage.Snapshot{}, err
		}
	}
	if err := seal(); err != nil {
		return storage.Snapshot{}, err
	}
	unlock, err := in.b.locks.Lock(ctx, in.meta.Volume)
	if err != nil {
		return storage.Snapshot{}, err
	}
	defer unlock()
	if err := publish(in.p, in.meta.Volume, in.meta.ID, in.tree); err != nil {
		return storage.Snapshot{}, err
	}
	s, err := in.b.snapshot(in.p, op, in.meta.Volume, in.meta.ID)
	if err != nil {
		return s, err
	}
	in.letGo()
	// What is left is removed now or by Recover; the snapshot is there.
	_ = in.b.dropIncoming(in.p, in.meta.Volume, in.meta.ID)
	return s, nil
}

// checkTree refuses a tree that is not shaped like ours: a stream may hold
// anything, and what is published is trusted from then on.
func (in *incoming) checkTree() error {
	if in.tree < 0 {
		return damaged("the stream did not name what it holds")
	}
	for _, d := range []string{hostfs.DataDir, ".drover", hostfs.BesideDir} {
		fd, err := hostfs.OpenDir(in.tree, d)
		if err != nil {
			return damaged(fmt.Sprintf("it has no directory %s", d))
		}
		unix.Close(fd)
	}
	for _, f := range []string{hostfs.SnapFile, hostfs.SnapFile + ".new", hostfs.HeadFile, hostfs.HeadFile + ".new", markFile} {
		var st unix.Stat_t
		err := unix.Fstatat(in.tree, f, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			return damaged(fmt.Sprintf("its %s is not a file", f))
		}
	}
	names, err := hostfs.Names(in.tree, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != hostfs.DataDir && n != ".drover" {
			return damaged(fmt.Sprintf("it holds %q beside the data", n))
		}
	}
	return unix.Fchmod(in.tree, 0o700)
}

// letGo closes descriptors and gives up the claim; safe to repeat.
func (in *incoming) letGo() {
	if in.closed {
		return
	}
	in.closed = true
	if in.also != nil {
		in.also()
	}
	if in.tree >= 0 {
		unix.Close(in.tree)
	}
	unix.Close(in.dir)
	in.b.busy.Release(in.meta.Volume, in.meta.ID)
}

func (in *incoming) abort(ctx context.Context) error {
	if in.closed {
		return nil
	}
	unlock, err := in.b.locks.Lock(ctx, in.meta.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	err = in.b.dropIncoming(in.p, in.meta.Volume, in.meta.ID)
	in.letGo()
	return err
}

func (in *incoming) object() string { return in.meta.Volume + "@" + in.meta.ID }

func damaged(reason string) error {
	return &api.Error{Kind: api.Damaged, Op: "receive snapshot", Reason: reason, Next: "send it again from its beginning"}
}

// stage implements storage.Stage.
type stage struct {
	in   *incoming
	note []byte
}

// Stage implements storage.Backend.
func (b *Backend) Stage(ctx context.Context, spec storage.ReceiveSpec) (storage.Stage, error) {
	const op = "stage snapshot"
	object := spec.Volume + "@" + spec.ID
	in, err := b.beginIncoming(ctx, op, spec, "")
	if err != nil {
		return nil, b.fail(op, object, err)
	}
	s := &stage{in: in}
	if in.tree < 0 {
		err = b.beginTree(in.p, op, in.dir, "tree", spec.Volume, spec.Base)
		if err == nil {
			in.tree, err = openSubvol(in.dir, "tree")
		}
	} else {
		err = hostfs.ReadJSON(in.tree, markFile, &s.note)
	}
	if err != nil {
		in.letGo()
		return nil, b.fail(op, object, err)
	}
	return s, nil
}

func (s *stage) Dir() string {
	return s.in.b.dirPath(hostfs.IncomingPath(s.in.meta.Volume, s.in.meta.ID), "tree", hostfs.DataDir)
}

func (s *stage) Beside() string {
	return s.in.b.dirPath(hostfs.IncomingPath(s.in.meta.Volume, s.in.meta.ID), "tree", hostfs.BesideDir)
}

func (s *stage) Marked() []byte { return s.note }

func (s *stage) Mark(ctx context.Context, note []byte) error {
	const op = "mark stage"
	if s.in.closed {
		return hostfs.Closed(op, s.in.object())
	}
	if err := errors.Join(ctx.Err(), hostfs.CheckNote(note)); err != nil {
		return s.in.b.fail(op, s.in.object(), err)
	}
	err := hostfs.WriteJSON(s.in.tree, markFile, note, false)
	if err == nil {
		err = s.in.keep(s.in.mark + 1)
	}
	if err == nil {
		s.note = bytes.Clone(note)
	}
	return s.in.b.fail(op, s.in.object(), err)
}

func (s *stage) Commit(ctx context.Context) (storage.Snapshot, error) {
	const op = "commit stage"
	if s.in.closed {
		return storage.Snapshot{}, hostfs.Closed(op, s.in.object())
	}
	if err := ctx.Err(); err != nil {
		return storage.Snapshot{}, s.in.b.fail(op, s.in.object(), err)
	}
	snap, err := s.in.finish(ctx, op, func() error {
		if err := unix.Unlinkat(s.in.tree, markFile, 0); err != nil && err != unix.ENOENT {
			return err
		}
		return nil
	})
	return snap, s.in.b.fail(op, s.in.object(), err)
}

func (s *stage) Abort(ctx context.Context) error {
	return s.in.b.fail("abort stage", s.in.object(), s.in.abort(ctx))
}

func (s *stage) Close() error {
	s.in.letGo()
	return nil
}
