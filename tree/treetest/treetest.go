// Package treetest makes directory trees for tests that hold everything a
// stream must carry. It knows no stream and no backend.
package treetest

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Fataler is what of a test is needed.
type Fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func must(t Fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS)
}

// Populate makes a tree with everything this process may make.
func Populate(t Fataler, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "sub", "deep"), 0o755))
	w := func(name, text string, mode os.FileMode) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		must(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	w("a", "one", 0o644)
	w("suid", "x", 0o755|os.ModeSetuid|os.ModeSetgid)
	w("sub/none", "", 0o000)
	w("hard1", "hard", 0o640)
	r := rand.New(rand.NewPCG(1, 2))
	big := make([]byte, 900_000)
	for i := range big {
		big[i] = byte(r.Uint32())
	}
	w("big", string(big), 0o644)
	w("sub/\xff\n odd", "name", 0o644)
	must(t, os.Link(filepath.Join(dir, "hard1"), filepath.Join(dir, "hard2")))
	must(t, os.Link(filepath.Join(dir, "hard1"), filepath.Join(dir, "sub", "hard3")))
	must(t, os.Symlink("../nowhere", filepath.Join(dir, "sym")))
	must(t, os.Symlink("/nonexistent/outside", filepath.Join(dir, "abs")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	must(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o600, 0))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("island"), 5<<20)
	must(t, err)
	must(t, f.Truncate(9<<20))
	must(t, f.Close())
	x := filepath.Join(dir, "a")
	if err := unix.Setxattr(x, "user.k", []byte("v\x00w"), 0); err != nil && !unsupported(err) {
		t.Fatalf("%v", err)
	}
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, os.Lchown(filepath.Join(dir, "sym"), 12, 34))
		must(t, os.Chown(filepath.Join(dir, "suid"), 70000, 5))
		must(t, os.Chmod(filepath.Join(dir, "suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
		caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		for name, v := range map[string][]byte{"trusted.t": []byte("t"), "security.capability": caps, "system.posix_acl_access": testACL()} {
			if err := unix.Setxattr(x, name, v, 0); err != nil && !unsupported(err) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if err := unix.Setxattr(filepath.Join(dir, "sub"), "system.posix_acl_default", testACL(), 0); err != nil && !unsupported(err) {
			t.Fatalf("%v", err)
		}
	}
	must(t, os.Chmod(filepath.Join(dir, "sub", "deep"), 0o500|os.ModeSticky))
	must(t, os.Chtimes(filepath.Join(dir, "a"), time.Time{}, time.Unix(-5, 123456789)))
	must(t, os.Chtimes(filepath.Join(dir, "sub"), time.Time{}, time.Unix(1<<32+7, 999999999)))
}

// testACL: user::rw- user:5:r-- group::r-- mask::r-- other::r--
func testACL() []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, 0xffffffff}, {2, 4, 5}, {4, 4, 0xffffffff}, {16, 4, 0xffffffff}, {32, 4, 0xffffffff}} {
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

// Change changes a tree that Populate made in every way that a difference must
// carry. Round makes each change another one.
func Change(t Fataler, dir string, round int) {
	t.Helper()
	p := func(name string) string { return filepath.Join(dir, name) }
	patch, err := os.OpenFile(p("big"), os.O_RDWR, 0)
	must(t, err)
	_, err = patch.WriteAt([]byte{byte(round), 'x'}, int64(100_000+round*5000))
	must(t, err)
	must(t, patch.Close())
	must(t, os.WriteFile(p("sub/new-"+string(rune('a'+round))), []byte("new"), 0o640))
	if round%2 == 1 {
		must(t, os.Remove(p("hard2")))
		must(t, os.Remove(p("sym")))
		must(t, os.Mkdir(p("sym"), 0o2755))
		must(t, os.Rename(p("sub/deep"), p("deep")))
		must(t, os.Chmod(p("a"), 0o4600))
	} else {
		must(t, os.Link(p("hard1"), p("hard2")))
		must(t, os.Remove(p("sym")))
		must(t, os.Symlink("again", p("sym")))
		must(t, os.Rename(p("deep"), p("sub/deep")))
		must(t, unix.Removexattr(p("a"), "user.k"))
		must(t, unix.Setxattr(p("a"), "user.other", []byte("o"), 0))
	}
	hole, err := os.OpenFile(p("sparse"), os.O_RDWR, 0)
	must(t, err)
	_, err = hole.WriteAt([]byte("island"), int64(round)<<20)
	must(t, err)
	must(t, hole.Truncate(int64(8+round)<<20))
	must(t, hole.Close())
}
