//go:build root

package btrfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
)

// TestDirtySeesEverything does one thing at a time to a head that is clean.
// What is written is not flushed: Dirty has to see it all the same.
func TestDirtySeesEverything(t *testing.T) {
	b := newPool(t, 1<<30)
	h := mustHead(t, b, "")
	p := func(name string) string { return filepath.Join(h.Dir, name) }
	write := func(name string, n int) error { return os.WriteFile(p(name), make([]byte, n), 0o644) }
	open := func(name string, f func(fd int) error) error {
		g, err := os.OpenFile(p(name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer g.Close()
		return f(int(g.Fd()))
	}
	for _, err := range []error{write("f", 100_000), write("g", 10), os.Mkdir(p("d"), 0o755), os.Mkdir(p("e"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, x := range []struct {
		what string
		do   func() error
	}{
		{"a byte written", func() error {
			return open("f", func(fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 5000); return err })
		}},
		{"a byte written through memory", func() error {
			return open("f", func(fd int) error {
				m, err := unix.Mmap(fd, 0, 100_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				m[70_000] = 1
				return unix.Munmap(m)
			})
		}},
		{"a hole", func() error {
			return open("f", func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096)
			})
		}},
		{"longer", func() error { return os.Truncate(p("f"), 200_000) }},
		{"shorter", func() error { return os.Truncate(p("f"), 3) }},
		{"mode", func() error { return os.Chmod(p("f"), 0o600) }},
		{"owner", func() error { return os.Chown(p("f"), 1, 2) }},
		{"times", func() error { return os.Chtimes(p("f"), time.Unix(1, 0), time.Unix(2, 0)) }},
		{"attribute", func() error { return unix.Setxattr(p("f"), "user.x", []byte("y"), 0) }},
		{"flag", func() error {
			return open("g", func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x40) })
		}},
		{"a new file", func() error { return write("n", 0) }},
		{"a second name", func() error { return os.Link(p("n"), p("m")) }},
		{"a name less", func() error { return os.Remove(p("m")) }},
		{"a name that moves", func() error { return os.Rename(p("n"), p("d/n")) }},
		{"a directory that moves", func() error { return os.Rename(p("d"), p("e/d")) }},
		{"two that change places", func() error {
			return unix.Renameat2(unix.AT_FDCWD, p("f"), unix.AT_FDCWD, p("g"), unix.RENAME_EXCHANGE)
		}},
		{"a file less", func() error { return os.Remove(p("f")) }},
		{"the root's mode", func() error { return os.Chmod(h.Dir, 0o711) }},
	} {
		id := fmt.Sprintf("s%d", i)
		if _, err := b.Snapshot(t.Context(), mainKey, id, nil); err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{false, true} {
			if got, err := b.Dirty(t.Context(), mainKey, id); err != nil || got != want {
				t.Fatalf("%s: dirty is %v, %v, want %v", x.what, got, err, want)
			}
			if !want {
				if err := x.do(); err != nil {
					t.Fatalf("%s: %v", x.what, err)
				}
			}
		}
	}
}

// TestCleanStaysClean does to a head what leaves its content as it is.
func TestCleanStaysClean(t *testing.T) {
	b := newPool(t, 1<<30)
	h := mustHead(t, b, "")
	if err := unix.Mount("", b.cfg.Dir, "", unix.MS_REMOUNT|unix.MS_STRICTATIME, ""); err != nil {
		t.Fatal(err)
	}
	everything(t, h.Dir, 0)
	// A read is told from a change only when the last change is longer ago
	// than the clock's grain.
	time.Sleep((clockGrain + 1) * time.Second)
	if _, err := b.Snapshot(t.Context(), mainKey, "s1", nil); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	other := storage.HeadKey{Volume: "v", Branch: "other"}
	for _, x := range []struct {
		what string
		do   func() error
	}{
		{"a note", func() error { return b.SetNote(t.Context(), mainKey, []byte("new")) }},
		{"a snapshot", func() error { _, err := b.Snapshot(t.Context(), mainKey, "s2", nil); return err }},
		{"a mount", func() error { return b.Mount(t.Context(), mainKey, mnt) }},
		{"an unmount", func() error { return b.Unmount(t.Context(), mainKey, mnt) }},
		{"a size", func() error { return b.Resize(t.Context(), mainKey, 100<<20) }},
		{"a read", func() error { storagetest.Describe(t, h.Dir); return nil }},
		{"a read and a snapshot", func() error {
			storagetest.Describe(t, h.Dir)
			_, err := b.Snapshot(t.Context(), mainKey, "s3", nil)
			return err
		}},
		{"a branch", func() error {
			_, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: other, From: "s3"})
			return err
		}},
		{"a snapshot that goes", func() error { return b.DestroySnapshot(t.Context(), "v", "s2") }},
	} {
		if err := x.do(); err != nil {
			t.Fatalf("%s: %v", x.what, err)
		}
		if dirty, err := b.Dirty(t.Context(), mainKey, "s1"); err != nil || dirty {
			t.Errorf("after %s: dirty is %v, %v", x.what, dirty, err)
		}
	}
	// The branch began as s3 and knows s1 only through it.
	if dirty, err := b.Dirty(t.Context(), other, "s1"); err != nil || dirty {
		t.Errorf("of the branch: dirty is %v, %v", dirty, err)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Snapshot(t.Context(), mainKey, "s4", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.DestroyHead(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: other, From: "s4"}); err != nil {
		t.Fatal(err)
	}
	if dirty, err := b.Dirty(t.Context(), other, "s1"); err != nil || !dirty {
		t.Errorf("a branch from a later state: dirty is %v, %v", dirty, err)
	}
}
