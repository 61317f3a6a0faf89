package treetest

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Mutate changes a tree at random.
func Mutate(t *rapid.T, dir string, steps int) {
	pick := func(label string) string {
		all := []string{}
		_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			if err == nil {
				all = append(all, p)
			}
			return nil
		})
		return rapid.SampledFrom(all).Draw(t, label)
	}
	name := rapid.SampledFrom([]string{"a", "b", "c", "a-b", "a.b", "B", "\xfe"})
	for range steps {
		at := pick("at")
		st, err := os.Lstat(at)
		must(t, err)
		parent := at
		if !st.IsDir() {
			parent = filepath.Dir(at)
		}
		to := filepath.Join(parent, name.Draw(t, "name"))
		switch rapid.IntRange(0, 10).Draw(t, "step") {
		case 0, 1:
			_ = os.Mkdir(to, 0o755)
		case 2, 3:
			if old, err := os.Stat(to); err == nil && !old.Mode().IsRegular() {
				continue // a FIFO would wait for a reader
			}
			_ = os.WriteFile(to, bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(t, "byte"))}, rapid.SampledFrom([]int{0, 1, 4096, 5000, 300_000}).Draw(t, "size")), 0o644)
		case 4:
			_ = os.Symlink(name.Draw(t, "target"), to)
		case 5:
			if !st.IsDir() {
				_ = os.Link(at, to)
			}
		case 6:
			if at != dir {
				_ = os.RemoveAll(at)
			}
		case 7:
			if at != dir {
				_ = os.Rename(at, to)
			}
		case 8:
			if st.Mode().IsRegular() {
				if f, err := os.OpenFile(at, os.O_RDWR, 0); err == nil {
					_, _ = f.WriteAt([]byte("patched"), int64(rapid.SampledFrom([]int{0, 3, 4094, 200_000, 4<<20 - 3}).Draw(t, "offset")))
					_ = f.Truncate(int64(rapid.SampledFrom([]int{2, 4096, 100_000, 1 << 20, 4<<20 + 3, 9 << 20}).Draw(t, "length")))
					_ = f.Close()
				}
			}
		case 9:
			_ = unix.Mkfifo(to, 0o600)
		case 10:
			if st.Mode()&os.ModeSymlink == 0 {
				_ = os.Chmod(at, os.FileMode(rapid.SampledFrom([]uint32{0o700, 0o755, 0o777}).Draw(t, "mode")))
				_ = unix.Setxattr(at, "user.x", []byte(name.Draw(t, "value")), 0)
			}
		}
	}
}
