//go:build root

package powerloss

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/storage/loopfile"
)

// TestHostLosesPower: what a host wrote down of itself is there after a power
// cut the moment the call has returned, directories included.
func TestHostLosesPower(t *testing.T) {
	for name, mkfs := range map[string][]string{"xfs": {"mkfs.xfs", "-q"}, "ext4": {"mkfs.ext4", "-q", "-F"}} {
		t.Run(name, func(t *testing.T) {
			d, place := New(t, 1<<30), t.TempDir()
			d.Format(t, mkfs...)
			d.Mount(t, place, "")
			d.Unmount(t, place)
			empty := d.Eject(t)
			data := filepath.Join(place, "var", "data")
			pool := loopfile.Config{File: filepath.Join(data, "pools", "default.img"), Dir: filepath.Join(t.TempDir(), "pool"), Size: loopfile.MinSize}
			for what, c := range map[string]struct {
				do   func() error
				file string
			}{
				"identity": {func() error {
					return auth.WriteIdentity(filepath.Join(data, "identity"), []byte("bundle"), []byte("ca"))
				}, "identity/" + auth.IdentityFile},
				"configuration": {cluster.Config{Cluster: "c", Name: "n", DataDir: data}.Save, cluster.ConfigFile},
				"revoked keys":  {func() error { return auth.WriteCRL(filepath.Join(place, auth.CRLFile), nil) }, "../../" + auth.CRLFile},
				"pool file":     {func() error { return loopfile.Ensure(t.Context(), pool) }, "pools/default.img"},
			} {
				empty.Load(t, empty.End, Keep, 0)
				d.Mount(t, place, "")
				if err := c.do(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				at := d.Position(t)
				if err := loopfile.Detach(t.Context(), pool); err != nil {
					t.Fatal(err)
				}
				want, err := os.ReadFile(filepath.Join(data, c.file))
				if err != nil {
					t.Fatal(err)
				}
				d.Unmount(t, place)
				d.Eject(t).Load(t, at, Drop, 0)
				d.Mount(t, place, "")
				if got, err := os.ReadFile(filepath.Join(data, c.file)); err != nil || len(got) != len(want) {
					t.Errorf("%s: acknowledged, and after a power cut: %d bytes, %v", what, len(got), err)
				}
				d.Unmount(t, place)
			}
		})
	}
}
