//go:build root

package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
)

func TestBackend(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Backend { return newGrowing(t, 512<<20) }, storagetest.Options{
		Mounts: true,
		Reopen: func(t *testing.T, old storage.Backend) storage.Backend {
			was := old.(*Growing)
			b, err := New(was.cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b.On(was.ground)
		},
		Strange: func(t *testing.T, b storage.Backend) string {
			dir := filepath.Join(b.(*Growing).cfg.Dir, "heads", "v", "stranger")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		},
		Nested: func(t *testing.T, dir string) {
			parent, err := unix.Open(filepath.Dir(dir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(parent)
			if err := subvolCreate(parent, filepath.Base(dir)); err != nil {
				t.Fatal(err)
			}
		},
		Gone: func(t *testing.T, b storage.Backend) {
			if err := unix.Unmount(b.(*Growing).cfg.Dir, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
	})
}
