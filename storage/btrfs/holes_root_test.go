//go:build root

package btrfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHoles changes files so that they have holes where they had data, at
// every place and of sizes that are no whole blocks.
func TestHoles(t *testing.T) {
	a := newPool(t, 1<<30)
	h := mustHead(t, a, "")
	type shape struct {
		before, data, size int64 // bytes before; then data up to data and a hole up to size
		behind             bool  // data behind the hole
	}
	var shapes []shape
	for _, before := range []int64{0, 100, 4096, 10000, 19900, 20480, 50000, 200000} {
		for _, data := range []int64{0, 100, 4096, 8192, 9000} {
			for _, size := range []int64{1, 3000, 4096, 8192, 9001, 12288, 12300, 19900, 20000, 49152, 60000, 100001, 250000} {
				if size >= data { // and with data behind the hole as well
					shapes = append(shapes, shape{before, data, size, false}, shape{before, data, size, true})
				}
			}
		}
	}
	put := func(path string, n int64, b byte) {
		if err := os.WriteFile(path, bytes.Repeat([]byte{b}, int(n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := func(s shape) string {
		return filepath.Join(h.Dir, fmt.Sprintf("b%d-d%d-s%d-%v", s.before, s.data, s.size, s.behind))
	}
	for _, s := range shapes {
		put(name(s), s.before, 'a')
	}
	s1, err := a.Snapshot(t.Context(), mainKey, "s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shapes {
		put(name(s), s.data, 'b')
		if err := unix.Truncate(name(s), s.size); err != nil {
			t.Fatal(err)
		}
		if s.behind {
			f, err := os.OpenFile(name(s), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt([]byte("behind"), s.size+3*block+7)
			if e := f.Close(); err != nil || e != nil {
				t.Fatal(err, e)
			}
		}
	}
	s2, err := a.Snapshot(t.Context(), mainKey, "s2", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range a.Formats() {
		b := newPool(t, 1<<30)
		sameTree(t, s1.Dir, transferTo(t, a, b, "s1", "", format).Dir)
		sameTree(t, s2.Dir, transferTo(t, a, b, "s2", "s1", format).Dir)
	}
}
