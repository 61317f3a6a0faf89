//go:build root

package btrfs

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/loopfile"
	"github.com/drover-data/drover/storage/storagetest"
)

// newPool makes a pool on a file, which is gone when the test is over.
func newPool(t testing.TB, size int64) *Backend {
	t.Helper()
	return newGrowing(t, size).Backend
}

func newGrowing(t testing.TB, size int64) *Growing {
	t.Helper()
	base := t.TempDir()
	cfg := loopfile.Config{File: filepath.Join(base, "pool.img"), Dir: filepath.Join(base, "pool"), Size: size}
	t.Cleanup(func() {
		if err := loopfile.Detach(context.Background(), cfg); err != nil {
			t.Error(err)
			_ = unix.Unmount(cfg.Dir, unix.MNT_DETACH)
		}
	})
	if err := loopfile.Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Dir: cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b.On(&loopfile.File{Config: cfg, Policy: loopfile.Policy{KeepFree: 64 << 20}})
}

// blocks lists the blocks of a file that are no holes.
func blocks(t testing.TB, path string) []int64 {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []int64
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		for b := data / block; b*block < at; b++ {
			list = append(list, b)
		}
	}
}

// sameHoles demands that b, whose content is the same as a's, has a hole
// wherever a has one. Zeros that were written may be a hole in b: a stream of
// version 1 does not tell them apart.
func sameHoles(t testing.TB, a, b string) {
	t.Helper()
	err := filepath.WalkDir(a, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, _ := filepath.Rel(a, path)
		from, to := blocks(t, path), blocks(t, filepath.Join(b, rel))
		for _, n := range to {
			if _, there := slices.BinarySearch(from, n); !there {
				t.Errorf("%q: block %d is a hole and became zeros: %d, %d blocks", rel, n, len(from), len(to))
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func sameTree(t testing.TB, a, b string) {
	t.Helper()
	x, y := storagetest.Describe(t, a), storagetest.Describe(t, b)
	for i := range max(len(x), len(y)) {
		switch {
		case i >= len(x):
			t.Fatalf("only in %s: %s", b, y[i])
		case i >= len(y):
			t.Fatalf("only in %s: %s", a, x[i])
		case x[i] != y[i]:
			t.Fatalf("differs:\n%s\n%s", x[i], y[i])
		}
	}
	if len(x) < 2 {
		t.Fatal("the tree is empty")
	}
	sameHoles(t, a, b)
}

// everything makes a tree with all that a file system can hold.
func everything(t testing.TB, dir string, round int) {
	t.Helper()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(name string) string { return filepath.Join(dir, fmt.Sprintf("r%d", round), name) }
	do(os.MkdirAll(p("d/e"), 0o755))
	do(os.WriteFile(p("plain"), []byte("text"), 0o644))
	do(os.Chmod(p("plain"), 0o6751))
	do(unix.Chown(p("plain"), 1234, 2345))
	do(os.Chmod(p("plain"), os.FileMode(0o751)|os.ModeSetuid|os.ModeSetgid))
	do(os.Chmod(p("d"), 0o1777|os.ModeSticky))
	do(os.Link(p("plain"), p("d/hard")))
	do(os.Symlink("../nowhere/at all", p("d/e/sym")))
	do(unix.Lchown(p("d/e/sym"), 7, 8))
	do(unix.Mkfifo(p("fifo"), 0o640))
	do(unix.Mknod(p("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	do(unix.Mknod(p("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	do(unix.Mknod(p("sock"), unix.S_IFSOCK|0o700, 0))
	do(unix.Setxattr(p("plain"), "user.note", []byte("v\x00w"), 0))
	do(unix.Setxattr(p("d"), "trusted.x", []byte("t"), 0))
	// An access and a default ACL: version 2, user::rwx, user:1000:r--, group::r-x, mask::r-x, other::---.
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	do(unix.Setxattr(p("d/e"), "system.posix_acl_access", acl, 0))
	do(unix.Setxattr(p("d/e"), "system.posix_acl_default", acl, 0))
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	do(os.WriteFile(p("tool"), []byte("#!"), 0o755))
	do(unix.Setxattr(p("tool"), "security.capability", capability, 0))
	f, err := os.Create(p("sparse"))
	do(err)
	_, err = f.WriteAt([]byte(strings.Repeat("x", 5000)), 10<<20)
	do(err)
	do(f.Truncate(30 << 20))
	do(f.Close())
	do(os.WriteFile(p("with\nodd \xff name"), nil, 0o000))
	do(os.WriteFile(p(strings.Repeat("n", 255)), []byte("long"), 0o644))
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i*i>>7 + round)
	}
	do(os.WriteFile(p("big"), big, 0o600))
	if round > 0 { // change what is there from before
		old := filepath.Join(dir, fmt.Sprintf("r%d", round-1))
		do(os.Rename(filepath.Join(old, "d/e"), p("moved")))
		do(os.Remove(filepath.Join(old, "plain")))
		do(os.Remove(filepath.Join(old, "fifo")))
		do(os.Mkdir(filepath.Join(old, "fifo"), 0o700))
		do(os.Truncate(filepath.Join(old, "big"), 1<<20+17))
		g, err := os.OpenFile(filepath.Join(old, "sparse"), os.O_RDWR, 0)
		do(err)
		do(unix.Fallocate(int(g.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 10<<20, 4096))
		_, err = g.WriteAt([]byte("later"), 20<<20)
		do(err)
		do(g.Close())
		do(unix.Removexattr(filepath.Join(old, "d"), "trusted.x"))
	}
	ts := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 4102444800, Nsec: 123456789}}
	do(unix.UtimesNanoAt(unix.AT_FDCWD, p("d/e/sym"), ts, unix.AT_SYMLINK_NOFOLLOW))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, p("d"), ts, 0))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, p("char"), ts, 0))
}
