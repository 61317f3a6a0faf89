//go:build root

package zfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// TestDirtySeesEverything does one thing at a time to a head that is clean, and
// leaves it where the kernel has it.
func TestDirtySeesEverything(t *testing.T) {
	b := newPool(t)
	key := storage.HeadKey{Volume: "v", Branch: "main"}
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	p := func(name string) string { return filepath.Join(h.Dir, name) }
	for name, n := range map[string]int{"f": 300_000, "g": 10} {
		if err := os.WriteFile(p(name), make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, x := range []struct {
		what string
		do   func() error
	}{
		{"a byte written", func() error {
			f, err := os.OpenFile(p("f"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 150_000)
			return err
		}},
		{"a byte written through memory", func() error {
			f, err := os.OpenFile(p("f"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			m, err := unix.Mmap(int(f.Fd()), 0, 300_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			m[70_000] = 1
			return unix.Munmap(m)
		}},
		{"shorter", func() error { return os.Truncate(p("f"), 200_000) }},
		{"mode", func() error { return os.Chmod(p("f"), 0o600) }},
		{"times", func() error { return os.Chtimes(p("f"), time.Unix(1, 0), time.Unix(2, 0)) }},
		{"an empty file", func() error { return os.WriteFile(p("n"), nil, 0o644) }},
		{"a name that moves", func() error { return os.Rename(p("n"), p("m")) }},
		{"a file less", func() error { return os.Remove(p("m")) }},
	} {
		id := fmt.Sprintf("s%d", i)
		if _, err := b.Snapshot(t.Context(), key, id, nil); err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{false, true} {
			if got, err := b.Dirty(t.Context(), key, id); err != nil || got != want {
				t.Fatalf("%s: dirty is %v, %v, want %v", x.what, got, err, want)
			}
			if !want {
				if err := x.do(); err != nil {
					t.Fatalf("%s: %v", x.what, err)
				}
			}
		}
	}
	// What it made to look is gone.
	out, err := b.zfs(t.Context(), nil, "list", "-H", "-t", "snapshot", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out, "@"); n != 8 {
		t.Errorf("%d snapshots are there:\n%s", n, out)
	}
	// A head of another origin.
	other := storage.HeadKey{Volume: "v", Branch: "other"}
	if _, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: other}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Dirty(t.Context(), other, "s1"); !api.Is(err, api.Unsupported) {
		t.Errorf("against a snapshot of another head: %v", err)
	}
}
