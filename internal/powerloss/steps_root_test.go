//go:build root

package powerloss

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// step is one thing that is done to a pool. It is durable when do has returned,
// and doing it again finishes it.
type step struct {
	name string
	do   func(ctx context.Context, b storage.Backend) error
}

// rig is a pool of a kind on a disk that forgets.
type rig struct {
	name    string
	mkfs    []string
	options string // of the mount
	size    int64
	// open opens the pool at dir, making it one when create is set.
	open  func(ctx context.Context, dir string, create bool) (storage.Backend, error)
	steps func(t *testing.T) []step
}

// session is the pool while the power is on.
type session struct {
	d   *Disk
	dir string
	b   storage.Backend
}

func (r rig) up(t *testing.T, d *Disk, dir string, create bool) *session {
	t.Helper()
	d.Mount(t, dir, r.options)
	b, err := r.open(t.Context(), filepath.Join(dir, "pool"), create)
	if err != nil {
		t.Fatal(err)
	}
	return &session{d, dir, b}
}

func (s *session) down(t *testing.T) {
	t.Helper()
	if err := s.b.Close(); err != nil {
		t.Fatal(err)
	}
	s.d.Unmount(t, s.dir)
}

// look describes all that a pool holds, after a recovery.
func look(ctx context.Context, b storage.Backend, dir string) (string, error) {
	c, err := b.Recover(ctx)
	if err != nil {
		return "", err
	}
	var lines []string
	for _, h := range c.Heads {
		files, err := describe(h.Dir)
		if err != nil {
			return "", err
		}
		lines = append(lines, fmt.Sprintf("head %s from=%q size=%d note=%q: %s", h.Key, h.From, h.Size, h.Note, files))
	}
	for _, s := range c.Snapshots {
		files, err := describe(s.Dir)
		if err != nil {
			return "", err
		}
		lines = append(lines, fmt.Sprintf("snapshot %s@%s note=%q: %s", s.Volume, s.ID, s.Note, files))
	}
	for _, p := range c.Partial {
		lines = append(lines, fmt.Sprintf("partial %s@%s base=%q", p.Volume, p.ID, p.Base))
	}
	for _, s := range c.Strange {
		lines = append(lines, "STRANGE "+s)
	}
	left, err := os.ReadDir(filepath.Join(dir, "pool", "tmp"))
	if err != nil {
		return "", err
	}
	for _, e := range left {
		lines = append(lines, "LEFT OVER "+e.Name())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

// describe lists a tree's files by their content. What ends in .tmp is not yet
// acknowledged to anybody.
func describe(dir string) (string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, ".tmp") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		out = append(out, fmt.Sprintf("%s=%d:%.6x", rel, len(data), sha256.Sum256(data)))
		return err
	})
	return strings.Join(out, " "), err
}

// fill gives bytes that depend on a name.
func fill(name string, n int) []byte {
	out := make([]byte, 0, n+sha256.Size)
	sum := sha256.Sum256([]byte(name))
	for len(out) < n {
		out = append(out, sum[:]...)
		sum = sha256.Sum256(sum[:])
	}
	return out[:n]
}

// writeFile writes as a careful user does.
func writeFile(dir, name string, n int) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.Write(fill(name, n))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// scribble writes and leaves it to the system when that reaches the disk.
func scribble(dir, name string, n int) error {
	return os.WriteFile(filepath.Join(dir, name), fill(name, n), 0o644)
}

func writeTo(key storage.HeadKey, name string, n int) step {
	return step{name: "write " + name, do: func(ctx context.Context, b storage.Backend) error {
		h, err := b.Head(ctx, key)
		if err != nil {
			return err
		}
		return writeFile(h.Dir, name, n)
	}}
}

func noteOf(key storage.HeadKey, note string) step {
	return step{name: "note " + note, do: func(ctx context.Context, b storage.Backend) error {
		return b.SetNote(ctx, key, []byte(note))
	}}
}

func makeHead(key storage.HeadKey, from, note string) step {
	return step{name: "make head " + key.String(), do: func(ctx context.Context, b storage.Backend) error {
		_, err := b.CreateHead(ctx, storage.HeadSpec{Key: key, From: from, Note: []byte(note)})
		return err
	}}
}

// makeSnapshot takes one of a head that holds data nobody flushed: what the
// snapshot acknowledges is durable all the same.
func makeSnapshot(key storage.HeadKey, id string) step {
	return step{name: "snapshot " + id, do: func(ctx context.Context, b storage.Backend) error {
		h, err := b.Head(ctx, key)
		if err != nil {
			return err
		}
		// A repetition of this step finds the file there, or not: it is written anew, as .tmp that no one compares.
		if err := scribble(h.Dir, "before-"+id+".tmp", 300<<10); err != nil {
			return err
		}
		s, err := b.Snapshot(ctx, key, id, []byte("of "+id))
		if err != nil {
			return err
		}
		_, err = os.Stat(filepath.Join(s.Dir, "before-"+id+".tmp"))
		return err
	}}
}

func destroyHead(key storage.HeadKey) step {
	return step{name: "destroy head " + key.String(), do: func(ctx context.Context, b storage.Backend) error { return b.DestroyHead(ctx, key) }}
}

func destroySnapshot(volume, id string) step {
	return step{name: "destroy snapshot " + id, do: func(ctx context.Context, b storage.Backend) error {
		return b.DestroySnapshot(ctx, volume, id)
	}}
}

// arrive is a portable arrival with one mark on its way.
func arrive(spec storage.ReceiveSpec) []step {
	first := step{name: "stage " + spec.ID + " to its mark", do: func(ctx context.Context, b storage.Backend) error {
		s, err := b.Stage(ctx, spec)
		if err != nil {
			return err
		}
		defer s.Close()
		if string(s.Marked()) == "one" {
			return nil
		}
		if err := scribble(s.Dir(), spec.ID+"-one", 200<<10); err != nil {
			return err
		}
		return s.Mark(ctx, []byte("one"))
	}}
	second := step{name: "stage and commit " + spec.ID, do: func(ctx context.Context, b storage.Backend) error {
		s, err := b.Stage(ctx, spec)
		if exists(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer s.Close()
		if string(s.Marked()) != "one" {
			return fmt.Errorf("its mark is %q, %q was acknowledged", s.Marked(), "one")
		}
		data, err := os.ReadFile(filepath.Join(s.Dir(), spec.ID+"-one"))
		if err != nil || string(data) != string(fill(spec.ID+"-one", 200<<10)) {
			return fmt.Errorf("what the mark holds: %d bytes, %w", len(data), err)
		}
		if err := scribble(s.Dir(), spec.ID+"-two", 100<<10); err != nil {
			return err
		}
		_, err = s.Commit(ctx)
		return err
	}}
	return []step{first, second}
}

// receive is a native stream with one checkpoint on its way.
func receive(spec storage.ReceiveSpec, format string, stream []byte) []step {
	var kept int64
	first := step{name: "receive " + spec.ID + " to its checkpoint", do: func(ctx context.Context, b storage.Backend) error {
		r, err := b.(storage.NativeStreams).Receive(ctx, spec, format)
		if err != nil {
			return err
		}
		defer r.Close()
		if at := r.Offset(); at < int64(len(stream)/2) {
			if _, err := r.Write(stream[at : len(stream)/2]); err != nil {
				return err
			}
		}
		kept, err = r.Checkpoint(ctx)
		return err
	}}
	second := step{name: "receive and commit " + spec.ID, do: func(ctx context.Context, b storage.Backend) error {
		r, err := b.(storage.NativeStreams).Receive(ctx, spec, format)
		if exists(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer r.Close()
		if r.Offset() < kept || kept == 0 {
			return fmt.Errorf("it goes on at %d, %d was acknowledged", r.Offset(), kept)
		}
		if _, err := r.Write(stream[r.Offset():]); err != nil {
			return err
		}
		_, err = r.Commit(ctx)
		return err
	}}
	return []step{first, second}
}

// moment is when a step began or ended on the tape, and how the pool was then.
type moment struct {
	begin, end int
	after      string
}

// record does the steps on a new pool and gives what is needed to cut
// the power at any moment of it.
func (r rig) record(t *testing.T, d *Disk, dir string, steps []step) (*Tape, []moment) {
	t.Helper()
	d.Format(t, r.mkfs...)
	s := r.up(t, d, dir, true)
	moments := make([]moment, 0, len(steps))
	for _, st := range steps {
		begin := d.Position(t)
		if err := st.do(t.Context(), s.b); err != nil {
			t.Fatalf("%s: %v", st.name, err)
		}
		end := d.Position(t)
		after, err := look(t.Context(), s.b, dir)
		if err != nil {
			t.Fatalf("%s: %v", st.name, err)
		}
		if strings.Contains(after, "STRANGE") || strings.Contains(after, "LEFT OVER") {
			t.Fatalf("after %s:\n%s", st.name, after)
		}
		moments = append(moments, moment{begin, end, after})
	}
	s.down(t)
	return d.Eject(t), moments
}

// try brings the pool up after a cut at that moment and checks it: it holds
// what was acknowledged, the step that was cut happened or not, and doing it
// again finishes it.
func (r rig) try(t *testing.T, tape *Tape, dir string, steps []step, moments []moment, i, at int, mode Mode, seed uint64, all bool) {
	t.Helper()
	tape.Load(t, at, mode, seed)
	s := r.up(t, tape.d, dir, false)
	defer s.down(t)
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: cut at event %d (of %q: %d to %d), %s, seed %d: %s", r.name, at, steps[i].name, moments[i].begin, moments[i].end, mode, seed, fmt.Sprintf(format, args...))
	}
	got, err := look(t.Context(), s.b, dir)
	if err != nil {
		fail("recovery: %v", err)
		return
	}
	before := ""
	if i > 0 {
		before = moments[i-1].after
	}
	switch acked := at >= moments[i].end; {
	case got == moments[i].after:
	case acked:
		fail("it was acknowledged, and this is there:\n%s\nnot:\n%s", got, moments[i].after)
	case got != before:
		fail("this is there:\n%s\nneither as before:\n%s\nnor as after:\n%s", got, before, moments[i].after)
	}
	last := i
	if all {
		last = len(steps) - 1
	}
	for k := i; k <= last; k++ {
		if err := steps[k].do(t.Context(), s.b); err != nil {
			fail("%s again: %v", steps[k].name, err)
			return
		}
	}
	if got, err := look(t.Context(), s.b, dir); err != nil || got != moments[last].after {
		fail("after %s again: %v; this is there:\n%s\nnot:\n%s", steps[last].name, err, got, moments[last].after)
	}
}

// rename changes a name behind the pool's back.
func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
