// Package storagetest is the suite that every storage backend passes. A new
// backend's test is:
//
//	func TestBackend(t *testing.T) {
//		storagetest.Run(t, func(t *testing.T) storage.Backend { return open(t) }, storagetest.Options{Reopen: reopen})
//	}
//
// It knows the contract of package storage and no backend.
package storagetest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Options tell the suite what it cannot find out.
type Options struct {
	// Reopen gives a new Backend on the same pool, as a process has it that
	// starts after the one before was killed: the old one is not closed.
	Reopen func(t *testing.T, old storage.Backend) storage.Backend
	// Content reads and writes trees; by default through the directories that
	// the backend names.
	Content Content
	// Mounts: mount points are real and this process may make them (root).
	Mounts bool
	// RootWrites: nothing but permissions keeps writers out of a snapshot's
	// directory, so root can write there.
	RootWrites bool
	// Strange puts a thing into the pool that the backend did not make, and
	// gives the path under which Recover reports it; nil where that is impossible.
	Strange func(t *testing.T, b storage.Backend) string
	// Nested makes a nested volume (a subvolume, say) inside the directory; nil
	// where the file system has none.
	Nested func(t *testing.T, dir string)
	// Gone makes the pool disappear for the rest of the test; nil where that
	// is impossible.
	Gone func(t *testing.T, b storage.Backend)
}

// Files is the content of a tree, by path.
type Files map[string]string

// Content reads and writes the trees of a backend.
type Content interface {
	WriteHead(b storage.Backend, h storage.Head, f Files) error
	ReadHead(b storage.Backend, h storage.Head) (Files, error)
	ReadSnapshot(b storage.Backend, s storage.Snapshot) (Files, error)
	WriteStage(s storage.Stage, f Files) error
	ReadStage(s storage.Stage) (Files, error)
}

// Dirs is the Content of backends that give directories.
type Dirs struct{}

func (Dirs) WriteHead(_ storage.Backend, h storage.Head, f Files) error { return writeDir(h.Dir, f) }

func (Dirs) ReadHead(_ storage.Backend, h storage.Head) (Files, error) { return readDir(h.Dir) }

func (Dirs) ReadSnapshot(_ storage.Backend, s storage.Snapshot) (Files, error) { return readDir(s.Dir) }

func (Dirs) WriteStage(s storage.Stage, f Files) error { return writeDir(s.Dir(), f) }

func (Dirs) ReadStage(s storage.Stage) (Files, error) { return readDir(s.Dir()) }

func writeDir(dir string, f Files) error {
	for path, text := range f {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func readDir(dir string) (Files, error) {
	f := Files{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if names, err := os.ReadDir(path); err != nil || len(names) > 0 {
				return err
			}
			f[rel+"/"] = "" // an empty directory is content too
			return nil
		}
		text, err := os.ReadFile(path)
		f[rel] = string(text)
		return err
	})
	return f, err
}

// Run runs the suite. open gives a new, empty pool each time.
func Run(t *testing.T, open func(t *testing.T) storage.Backend, opt Options) {
	t.Helper()
	if opt.Reopen == nil {
		t.Fatal("storagetest: Options.Reopen is needed")
	}
	if opt.Content == nil {
		opt.Content = Dirs{}
	}
	s := suite{open, opt}
	t.Run("Info", s.info)
	t.Run("Life", s.life)
	t.Run("Arguments", s.arguments)
	t.Run("Snapshots", s.snapshots)
	t.Run("Independence", s.independence)
	t.Run("Notes", s.notes)
	t.Run("Concurrency", s.concurrency)
	t.Run("Stage", s.stage)
	t.Run("Recover", s.recover)
	t.Run("Sizer", s.sizer)
	t.Run("Canceled", s.canceled)
	if opt.Mounts {
		t.Run("Mounts", s.mounts)
	}
	if opt.Nested != nil {
		t.Run("Nested", s.nested)
	}
	if opt.Gone != nil {
		t.Run("Gone", s.gone)
	}
	probe := open(t)
	if _, ok := storage.As[storage.NativeStreams](probe); ok {
		t.Run("Streams", s.streams)
	}
	if _, ok := storage.As[storage.Grower](probe); ok {
		t.Run("Grower", s.grower)
	}
	if _, ok := storage.As[storage.Differ](probe); ok {
		t.Run("Differ", s.differ)
	}
}

type suite struct {
	open func(t *testing.T) storage.Backend
	opt  Options
}

// env is one pool in one test.
type env struct {
	storage.Backend
	t   *testing.T
	s   suite
	ctx context.Context
}

func (s suite) new(t *testing.T) *env {
	t.Helper()
	b := s.open(t)
	e := &env{b, t, s, t.Context()}
	if _, err := b.Recover(e.ctx); err != nil {
		t.Fatalf("Recover of a new pool: %v", err)
	}
	return e
}

// again is the same pool after the process was killed.
func (e *env) again() (*env, storage.Content) {
	e.t.Helper()
	b := e.s.opt.Reopen(e.t, e.Backend)
	c, err := b.Recover(e.ctx)
	if err != nil {
		e.t.Fatalf("Recover: %v", err)
	}
	return &env{b, e.t, e.s, e.ctx}, c
}

func (e *env) ok(err error, what string) {
	e.t.Helper()
	if err != nil {
		e.t.Fatalf("%s: %v", what, err)
	}
}

// is demands an *api.Error of kind k.
func (e *env) is(err error, k api.Kind, what string) {
	e.t.Helper()
	if !api.Is(err, k) {
		e.t.Fatalf("%s: got %v (%s), want kind %s", what, err, api.KindOf(err), k)
	}
}

func key(volume string) storage.HeadKey {
	return storage.HeadKey{Volume: volume, Branch: api.MainBranch}
}

func (e *env) head(volume, from string) storage.Head {
	e.t.Helper()
	h, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: key(volume), From: from, Note: []byte("note of " + volume)})
	e.ok(err, "CreateHead")
	return h
}

func (e *env) write(h storage.Head, f Files) {
	e.t.Helper()
	e.ok(e.s.opt.Content.WriteHead(e.Backend, h, f), "write into the head")
}

func (e *env) wantHead(h storage.Head, want Files) {
	e.t.Helper()
	got, err := e.s.opt.Content.ReadHead(e.Backend, h)
	e.ok(err, "read the head")
	e.same(got, want, "head "+h.Key.String())
}

func (e *env) wantSnapshot(s storage.Snapshot, want Files) {
	e.t.Helper()
	got, err := e.s.opt.Content.ReadSnapshot(e.Backend, s)
	e.ok(err, "read the snapshot")
	e.same(got, want, "snapshot "+s.ID)
}

func (e *env) same(got, want Files, what string) {
	e.t.Helper()
	if maps.Equal(got, want) {
		return
	}
	var diff []string
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[p]; !ok {
			diff = append(diff, "missing "+p)
		} else if g != want[p] {
			diff = append(diff, fmt.Sprintf("%s differs: %d bytes, want %d", p, len(g), len(want[p])))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			diff = append(diff, "unexpected "+p)
		}
	}
	e.t.Fatalf("%s has the wrong content: %s", what, strings.Join(diff, "; "))
}

func (e *env) snap(h storage.Head, id string) storage.Snapshot {
	e.t.Helper()
	s, err := e.Snapshot(e.ctx, h.Key, id, []byte("note of "+id))
	e.ok(err, "Snapshot")
	if s.ID != id || s.Volume != h.Key.Volume || string(s.Note) != "note of "+id {
		e.t.Fatalf("Snapshot gave %+v", s)
	}
	return s
}

// ids lists a volume's snapshots in their order.
func (e *env) ids(volume string) []string {
	e.t.Helper()
	list, err := e.Snapshots(e.ctx, volume)
	e.ok(err, "Snapshots")
	ids := []string{}
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids
}

func (e *env) wantIDs(volume string, want ...string) {
	e.t.Helper()
	if got := e.ids(volume); !slices.Equal(got, want) {
		e.t.Fatalf("snapshots of %s are %q, want %q", volume, got, want)
	}
}

// native is the backend's streams.
func (e *env) native() storage.NativeStreams {
	e.t.Helper()
	n, ok := storage.As[storage.NativeStreams](e.Backend)
	if !ok {
		e.t.Fatal("the backend lost its NativeStreams")
	}
	return n
}

// stream is a whole stream.
func (e *env) stream(volume, id, base string, offset int64) []byte {
	e.t.Helper()
	r, err := e.native().Send(e.ctx, storage.SendSpec{Volume: volume, ID: id, Base: base, Format: e.native().Format(), Offset: offset})
	e.ok(err, "Send")
	data, err := io.ReadAll(r)
	e.ok(err, "read the stream")
	e.ok(r.Close(), "close the stream")
	return data
}

func (e *env) receive(volume, id, base string) storage.Receive {
	e.t.Helper()
	r, err := e.native().Receive(e.ctx, storage.ReceiveSpec{Volume: volume, ID: id, Base: base, Note: []byte("note of " + id)}, e.native().Format())
	e.ok(err, "Receive")
	return r
}

// take receives a whole stream.
func (e *env) take(volume, id, base string, data []byte) storage.Snapshot {
	e.t.Helper()
	r := e.receive(volume, id, base)
	_, err := r.Write(data)
	e.ok(err, "Write of the stream")
	s, err := r.Commit(e.ctx)
	e.ok(err, "Commit")
	e.ok(r.Close(), "Close after Commit")
	return s
}
