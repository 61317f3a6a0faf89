//go:build root

package loopfile

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

func TestLife(t *testing.T) {
	ctx, base := context.Background(), t.TempDir()
	cfg := Config{File: filepath.Join(base, "pool.img"), Dir: filepath.Join(base, "pool"), Size: MinSize}
	t.Cleanup(func() { _ = unix.Unmount(cfg.Dir, unix.MNT_DETACH) })
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		ok(Ensure(ctx, cfg))
	}
	var st unix.Stat_t
	ok(unix.Stat(cfg.File, &st))
	if st.Blocks*512 < cfg.Size {
		t.Errorf("only %d bytes of %d are reserved", st.Blocks*512, cfg.Size)
	}
	mark := filepath.Join(cfg.Dir, "mark")
	ok(os.WriteFile(mark, []byte("x"), 0o600))
	open, err := os.Open(mark)
	ok(err)
	if err := Detach(ctx, cfg); !api.Is(err, api.InUse) {
		t.Errorf("Detach while in use: %v", err)
	}
	ok(open.Close())
	var before, after unix.Statfs_t
	ok(unix.Statfs(cfg.Dir, &before))
	file := &File{Config: cfg}
	for range 2 {
		ok(file.Grow(ctx, 2*MinSize))
	}
	ok(unix.Statfs(cfg.Dir, &after))
	if int64(after.Blocks)*after.Bsize != 2*MinSize || after.Blocks <= before.Blocks {
		t.Errorf("after growing it has %d blocks, before %d", after.Blocks, before.Blocks)
	}
	if err := file.Grow(ctx, MinSize); !api.Is(err, api.Invalid) {
		t.Errorf("Grow to less: %v", err)
	}
	// A growth that ended after the space was reserved is finished by the next start.
	raw, err := os.OpenFile(cfg.File, os.O_RDWR, 0)
	ok(err)
	ok(reserve(raw, 2*MinSize, 3*MinSize))
	ok(raw.Close())
	ok(Ensure(ctx, cfg))
	ok(unix.Statfs(cfg.Dir, &after))
	if int64(after.Blocks)*after.Bsize != 3*MinSize {
		t.Errorf("an interrupted growth was not finished: %d blocks", after.Blocks)
	}
	// What the host has not is not promised, and leaves everything as it was.
	if err := file.Grow(ctx, 1<<43); !api.Is(err, api.Exhausted) {
		t.Errorf("Grow to more than the host has: %v", err)
	}
	if g, err := file.Growth(ctx, MinSize, true); err != nil || g.Size != 3*MinSize || g.Want <= g.Size {
		t.Errorf("Growth: %+v, %v", g, err)
	}
	for range 2 {
		ok(Detach(ctx, cfg))
	}
	if err := file.Grow(ctx, 4*MinSize); !api.Is(err, api.Unavailable) {
		t.Errorf("Grow of what is not mounted: %v", err)
	}
	if st, err := os.Stat(cfg.File); err != nil || st.Size() != 3*MinSize {
		t.Errorf("a refused growth changed the file: %v, %v", st, err)
	}
	if dev, err := findLoop(cfg.File); dev != nil || err != nil {
		t.Errorf("the loop device is still there: %v", err)
	}
	ok(Ensure(ctx, cfg)) // as after a reboot
	if text, err := os.ReadFile(mark); err != nil || string(text) != "x" {
		t.Errorf("the content is lost: %v", err)
	}
	ok(Detach(ctx, cfg))
	foreign := Config{File: filepath.Join(base, "foreign"), Dir: cfg.Dir, Size: MinSize}
	ok(os.WriteFile(foreign.File, []byte("precious"), 0o600))
	if err := Ensure(ctx, foreign); !api.Is(err, api.Damaged) {
		t.Errorf("a foreign file: %v", err)
	}
	if text, _ := os.ReadFile(foreign.File); string(text) != "precious" {
		t.Error("a foreign file was changed")
	}
	huge := Config{File: filepath.Join(base, "huge"), Dir: cfg.Dir, Size: 1 << 43}
	if err := Ensure(ctx, huge); !api.Is(err, api.Exhausted) {
		t.Errorf("more than the host has: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(base, "huge*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
