package hostfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

func root(t *testing.T) (int, string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, dir
}

func TestNames(t *testing.T) {
	for _, id := range []string{"", ".", "..", ".x", "-x", "a/b", "a b", "a~", "ä", strings.Repeat("n", api.MaxName+1)} {
		if err := CheckID("volume", id); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
	key := storage.HeadKey{Volume: "v", Branch: "a/b"}
	for _, err := range []error{
		CheckID("volume", "a_b.c-9"), CheckKey(key),
		CheckSpec(storage.HeadSpec{Key: key, From: "s", FromVolume: "w"}, CheckID), CheckArrival(storage.ReceiveSpec{Volume: "v", ID: "s", Base: "b"}, CheckID),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range []error{
		CheckKey(storage.HeadKey{Volume: "v", Branch: "../x"}), CheckNote(make([]byte, MaxNote+1)),
		CheckSpec(storage.HeadSpec{Key: key, From: "../s"}, CheckID), CheckSpec(storage.HeadSpec{Key: key, From: "s", FromVolume: "../w"}, CheckID),
		CheckArrival(storage.ReceiveSpec{Volume: "v", ID: "s", Base: "../b"}, CheckID), CheckArrival(storage.ReceiveSpec{Volume: "v", ID: ".."}, CheckID),
	} {
		if !api.Is(err, api.Invalid) {
			t.Errorf("not refused: %v", err)
		}
	}
	if got := HeadPath(key); got != "heads/v/a~b" {
		t.Errorf("HeadPath is %s", got)
	}
}

// TestFiles writes, reads and removes, and never through a symbolic link.
func TestFiles(t *testing.T) {
	fd, dir := root(t)
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte(`"safe"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MakeDirs(fd, "a", "b"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		var got, also string
		if err := errors.Join(WriteJSON(fd, "a/b/f", want, true), ReadJSON(fd, "a/b/f", &got), ReadJSONAt(filepath.Join(dir, "a/b/f"), &also)); err != nil || got != want || also != want {
			t.Errorf("got %q and %q, want %q: %v", got, also, want, err)
		}
	}
	if names, err := Names(fd, "a/b"); err != nil || len(names) != 1 {
		t.Errorf("left behind: %q, %v", names, err)
	}
	for link, to := range map[string]string{"link": outside, "up": filepath.Dir(outside)} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	var v string
	for _, path := range []string{"link", "up/victim", "../x", "/etc/passwd"} {
		if err := ReadJSON(fd, path, &v); err == nil {
			t.Errorf("%s was read: %q", path, v)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxMeta+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(fd, "large", &v); err == nil {
		t.Error("a file that is too large was read")
	}
	if err := WriteJSON(fd, "up/victim", "evil", true); err == nil {
		t.Error("it wrote through a link")
	}
	for _, n := range []string{"link", "up", "a", "none"} {
		if err := RemoveTree(fd, n, nil); err != nil {
			t.Errorf("RemoveTree of %s: %v", n, err)
		}
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != `"safe"` {
		t.Errorf("outside: %q, %v", text, err)
	}
	if err := Access(fd, "a"); err != unix.ENOENT {
		t.Errorf("what was removed: %v", err)
	}
	if err := CheckMarker(fd, dir); !errors.Is(err, ErrNotThere) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no pool: %v", err)
	}
	if err := errors.Join(WriteMarker(fd), CheckMarker(fd, dir)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(WriteJSON(fd, Marker, markerFile{Format: poolFormat + 1}, true), CheckMarker(fd, dir)); !api.Is(err, api.Unsupported) {
		t.Errorf("a pool of another format: %v", err)
	}
}

// TestMounts asks made-up tables: a pool at /pool, a head mounted at /m.
func TestMounts(t *testing.T) {
	dir := t.TempDir()
	head := filepath.Join(dir, "heads/v/main/data")
	if err := os.MkdirAll(head, 0o700); err != nil {
		t.Fatal(err)
	}
	mount := func(id, parent, minor int, root, at string) *mountinfo.Info {
		return &mountinfo.Info{ID: id, Parent: parent, Major: 0, Minor: minor, Root: root, Mountpoint: at}
	}
	all := Mounts{
		mount(1, 0, 1, "/", "/"),
		mount(2, 1, 2, "/under", dir),
		mount(3, 1, 7, "/pools/p", dir), // on top
		mount(4, 1, 7, "/pools/p/heads/v/main/data", "/m"),
		mount(5, 4, 8, "/", "/m/inner"),
		mount(6, 1, 7, "/pools/p/heads/v/main2/data", "/n"),
		mount(7, 3, 9, "/", head+"/direct"),
		mount(8, 1, 7, "/pools/p/heads/v/main/data/sub", "/s"),
		mount(9, 8, 8, "/", "/s/deep"),
		mount(10, 4, 7, "/pools/p/heads/v/main/data", "/m"), // on itself
	}
	at, err := all.Locate(dir)
	if err != nil || at != (Place{"0:7", "/pools/p"}) {
		t.Fatalf("%+v, %v", at, err)
	}
	at = at.Below("heads/v/main/data")
	if got := all.Of(at); !slices.Equal(got, []string{"/m", "/s", "/m"}) {
		t.Errorf("it is mounted at %q", got)
	}
	got, err := all.Nested(at, head)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []string{"direct", "inner", "sub/deep"}) {
		t.Errorf("nested are %q, %v", got, err)
	}
	if p, err := all.At(dir); err != nil || p != (Place{"0:7", "/pools/p"}) {
		t.Errorf("At: %+v, %v", p, err)
	}
	if _, err := all.At(head); !errors.Is(err, ErrNotThere) {
		t.Errorf("At of what is no mount point: %v", err)
	}
	if _, err := all.Locate(filepath.Join(dir, "none")); !errors.Is(err, ErrNotThere) {
		t.Errorf("Locate of what is not there: %v", err)
	}
	if err := Unused("x", storage.HeadKey{}, []string{"/m"}); !api.Is(err, api.InUse) {
		t.Errorf("Unused: %v", err)
	}
}

func TestWording(t *testing.T) {
	for _, c := range []struct {
		err    error
		limits bool
		want   api.Kind
	}{
		{unix.ENOSPC, true, api.Exhausted},
		{unix.EDQUOT, true, api.Exhausted},
		{unix.EROFS, true, api.ReadOnly},
		{unix.EIO, true, api.Unavailable},
		{ErrNotThere, true, api.Unavailable},
		{unix.EUCLEAN, true, api.Damaged},
		{unix.EBUSY, true, api.InUse},
		{context.Canceled, true, api.Canceled},
		{unix.EINVAL, true, api.Internal},
		{&api.Error{Kind: api.Conflict}, true, api.Conflict},
	} {
		w := Wording{Pool: "p", Limits: c.limits}
		if err := w.Fail("x", "y", fmt.Errorf("wrapped: %w", c.err)); !api.Is(err, c.want) {
			t.Errorf("%v became %v", c.err, err)
		}
	}
	of := func(limits bool) string {
		return Wording{Pool: "p", Limits: limits}.Fail("x", "y", unix.EDQUOT).Error()
	}
	if !strings.Contains(of(true), "size limit") || !strings.Contains(of(false), "pool p is full") {
		t.Errorf("%q, %q", of(true), of(false))
	}
	if (Wording{}).Fail("x", "y", nil) != nil {
		t.Error("nil became an error")
	}
}

func TestLocksAndClaims(t *testing.T) {
	var l Locks
	unlock, err := l.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := l.Lock(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for what is held: %v", err)
	}
	if other, err := l.Lock(t.Context(), "b"); err != nil {
		t.Error(err)
	} else {
		other()
	}
	unlock()
	if again, err := l.Lock(t.Context(), "a"); err != nil {
		t.Error(err)
	} else {
		again()
	}
	var c Claims[int]
	one := 1
	if !c.Take("v", "s") || c.Take("v", "s") || !c.Take("v", "t") {
		t.Error("a right was given twice, or not at all")
	}
	c.Set("v", "s", &one)
	if left := c.Drain(); len(left) != 1 || *left[0] != 1 {
		t.Errorf("left were %v", left)
	}
	if !c.Take("v", "s") {
		t.Error("after Drain a right is still held")
	}
	if c.Release("v", "s"); !c.Take("v", "s") {
		t.Error("a right was not given up")
	}
}

func TestScan(t *testing.T) {
	fd, dir := root(t)
	for _, d := range []string{"snapshots/v/a", "snapshots/v/b", "snapshots/w/c", "snapshots/.odd/x"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "snapshots/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(v, id string) (storage.Snapshot, error) {
		if id == "b" {
			return storage.Snapshot{}, ErrNotOurs
		}
		return storage.Snapshot{Volume: v, ID: id}, nil
	}
	list, strange, err := ScanSnapshots(t.Context(), fd, "", read)
	slices.Sort(strange)
	if err != nil || len(list) != 2 || !slices.Equal(strange, []string{"snapshots/.odd", "snapshots/file", "snapshots/v/b"}) {
		t.Errorf("%+v, %q, %v", list, strange, err)
	}
	if list, strange, err = ScanSnapshots(t.Context(), fd, "none", read); err != nil || len(list)+len(strange) > 0 {
		t.Errorf("%+v, %q, %v", list, strange, err)
	}
	if _, _, err = ScanSnapshots(t.Context(), fd, "v", func(string, string) (storage.Snapshot, error) { return storage.Snapshot{}, unix.EIO }); !errors.Is(err, unix.EIO) {
		t.Errorf("a device that is gone: %v", err)
	}
}

// TestRoot takes the directory away and puts another one in its place.
func TestRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	var r Root[int]
	t.Cleanup(r.Close)
	looked := 0
	look := func(fd int) (*int, error) { looked++; return &looked, CheckMarker(fd, dir) }
	make := func() {
		t.Helper()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		fd, err := OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := WriteMarker(fd); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.At(dir, look); !errors.Is(err, ErrNotThere) || looked != 0 {
		t.Errorf("nothing there: %v", err)
	}
	make()
	for range 3 {
		if _, err := r.At(dir, look); err != nil || looked != 1 {
			t.Errorf("looked %d times, %v", looked, err)
		}
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.At(dir, look); !errors.Is(err, ErrNotThere) {
		t.Errorf("an empty directory in its place: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	make()
	if _, err := r.At(dir, look); err != nil || looked != 3 {
		t.Errorf("another pool in its place: looked %d times, %v", looked, err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, _, err := Enter(ended, &Locks{}, "v", func() (*int, error) { return r.At(dir, look) }); !errors.Is(err, context.Canceled) {
		t.Errorf("Enter after the end: %v", err)
	}
}

func TestProbe(t *testing.T) {
	fd, dir := root(t)
	f, _, err := Probe(fd, "try")
	if err != nil || !f.Modes || !f.Symlinks || !f.HardLinks || !f.CaseSensitive || f.TimeGrain == 0 || f.NameBytes < 100 {
		t.Errorf("%+v, %v", f, err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPump(t *testing.T) {
	fail := func(err error) error { return fmt.Errorf("told: %w", err) }
	whole := strings.Repeat("0123456789", 1<<18)
	p, err := NewPump(t.Context(), fail, func(_ context.Context, w *os.File) error { _, err := io.WriteString(w, whole); return err })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Skip("s", 1<<20); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(p); err != nil || string(got) != whole[1<<20:] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	p.Close()
	// One that breaks off is no whole stream.
	p, err = NewPump(t.Context(), fail, func(_ context.Context, w *os.File) error { _, _ = io.WriteString(w, "part"); return unix.EIO })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(p); !errors.Is(err, unix.EIO) || string(got) != "part" {
		t.Errorf("%q, %v", got, err)
	}
	p.Close()
	// A short one cannot be gone on with.
	p, err = NewPump(t.Context(), fail, func(_ context.Context, w *os.File) error { _, err := io.WriteString(w, "short"); return err })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Skip("s", 100); !api.Is(err, api.Invalid) {
		t.Errorf("Skip beyond the end: %v", err)
	}
	p.Close()
	// Close and a context end a producer that would never end.
	ctx, end := context.WithCancel(t.Context())
	for _, stop := range []func(*Pump){func(*Pump) { end() }, func(p *Pump) { p.Close() }} {
		p, err := NewPump(ctx, fail, func(_ context.Context, w *os.File) error {
			for {
				if _, err := io.WriteString(w, whole); err != nil {
					return err
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		stop(p)
		if _, err := io.Copy(io.Discard, p); err == nil {
			t.Error("a stream that was stopped looks whole")
		}
		p.Close()
		ctx = t.Context()
	}
}
