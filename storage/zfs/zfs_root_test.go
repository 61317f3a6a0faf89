//go:build root

package zfs

import (
	"os/exec"
	"testing"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
	"github.com/drover-data/drover/storage/zfs/zfstest"
)

func TestMain(m *testing.M) { zfstest.Main(m) }

func newPool(t testing.TB) *Backend {
	t.Helper()
	pool, dir := zfstest.Pool(t, 1<<30)
	b, err := New(Config{Source: pool + "/drover", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func zfsDo(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func TestBackend(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Backend { return newPool(t) }, storagetest.Options{
		Mounts: true,
		Reopen: func(t *testing.T, old storage.Backend) storage.Backend {
			b, err := New(old.(*Backend).cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b
		},
		Strange: func(t *testing.T, b storage.Backend) string {
			name := b.(*Backend).cfg.Source + "/t/stranger"
			zfsDo(t, "zfs", "create", name)
			return name
		},
		Gone: func(t *testing.T, b storage.Backend) {
			zfsDo(t, "zpool", "export", "-f", poolOf(b.(*Backend).cfg.Source))
		},
	})
}
