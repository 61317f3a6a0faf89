//go:build root

package dir

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
)

// loopFS mounts a new file system of a kind.
func loopFS(t *testing.T, mkfs ...string) string {
	t.Helper()
	top := t.TempDir()
	img, dir := filepath.Join(top, "img"), filepath.Join(top, "fs")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(512 << 20)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, img), {"mkdir", dir}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func TestFileSystems(t *testing.T) {
	for _, c := range []struct {
		name    string
		mkfs    []string
		reflink bool
	}{
		{"xfs with reflinks", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, true},
		{"ext4", []string{"mkfs.ext4", "-q", "-F"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := loopFS(t, c.mkfs...)
			opt := options()
			opt.Mounts = true
			n := 0
			storagetest.Run(t, func(t *testing.T) storage.Backend {
				n++
				dir := filepath.Join(fs, string(rune('a'+n)))
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir); os.RemoveAll(dir + ".away") })
				b := newPool(t, Config{Dir: dir})
				i, err := b.Info(t.Context())
				if err != nil || i.Instant != c.reflink {
					t.Fatalf("Info: %+v, %v", i, err)
				}
				want := storage.Full()
				want.TimeMax = i.Fidelity.TimeMax
				if i.Fidelity != want {
					t.Fatalf("its fidelity is %+v", i.Fidelity)
				}
				return b
			}, opt)
		})
	}
}
