//go:build root

package tree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

func flag(t *testing.T, path string, bits int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	was, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS) // some belong to the file system
	must(t, err)
	must(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, was&^flagBits|bits))
}

// TestFlags: inode flags travel to a store that keeps them, are in nobody's
// way, and are left out elsewhere.
func TestFlags(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && (e.IsDir() || e.Type().IsRegular()) {
				flag(t, path, 0)
			}
			return nil
		})
	})
	const immutable, noDump = 0x10, 0x40
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, d := range []string{a, b} {
		must(t, os.MkdirAll(filepath.Join(d, "locked"), 0o755))
		must(t, os.WriteFile(filepath.Join(d, "locked", "gone"), []byte("x"), 0o644))
		must(t, os.WriteFile(filepath.Join(d, "f"), []byte(filepath.Base(d)), 0o644))
	}
	must(t, os.Remove(filepath.Join(b, "locked", "gone")))
	must(t, os.WriteFile(filepath.Join(b, "locked", "new"), []byte("y"), 0o644))
	flag(t, filepath.Join(a, "locked", "gone"), immutable)
	for _, d := range []string{a, b} {
		flag(t, filepath.Join(d, "f"), immutable|noDump)
		flag(t, filepath.Join(d, "locked"), immutable)
	}
	keeps := storage.Full()
	keeps.Flags = true
	st := newStage(t, filepath.Join(dir, "out"))
	full := stream(t, snap(a), nil, 0)
	must(t, feed(t, st, full, keeps, false))
	base := snap(a)
	delta := stream(t, snap(b), &base, 0)
	check := func(from string) {
		t.Helper()
		same(t, from, st.dir, storage.Full())
		for _, n := range []string{"f", "locked"} {
			fd, err := openRoot(st.dir)
			must(t, err)
			e, err := statAt(fd, n)
			unix.Close(fd)
			must(t, err)
			if want := map[string]uint64{"f": immutable | noDump, "locked": immutable}[n]; e.flags != want {
				t.Fatalf("%s has flags %#x, want %#x", n, e.flags, want)
			}
		}
	}
	check(a)
	must(t, feed(t, st2(st), delta, keeps, false))
	check(b)
	// Once more from the beginning, as after a mark that was lost.
	must(t, feed(t, st2(st), delta, keeps, false))
	check(b)
	plain := newStage(t, filepath.Join(dir, "plain"))
	must(t, feed(t, plain, full, storage.Full(), false))
	must(t, os.Remove(filepath.Join(plain.dir, "f")))
}
