//go:build root

package zfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
)

func TestChangesAreAllNamed(t *testing.T) {
	b := newPool(t)
	// zfs-fuse answers ENOSYS for the extended attributes of a pipe, and from
	// then on the kernel shows none of that mount.
	if _, err := b.zfs(t.Context(), nil, "set", "xattr=off", b.cfg.Source); err != nil {
		t.Fatal(err)
	}
	d := storagetest.Differs{Plain: true}
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		d.Case(t, r, b, n)
	})
	t.Logf("%d pairs told, %d left to be compared", d.Told, d.Unsure)
	if d.Told == 0 {
		t.Error("nothing was told")
	}
}

// A small write into a large file is named as what it is; a file that took the
// place of another one, with its number, is named as a whole.
func TestChangesAreSmall(t *testing.T) {
	b := newPool(t)
	key := storage.HeadKey{Volume: "v", Branch: "main"}
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	big, old := filepath.Join(h.Dir, "big"), filepath.Join(h.Dir, "old")
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i>>16) + 1
	}
	if err := errors.Join(os.WriteFile(big, data, 0o600), os.WriteFile(old, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Snapshot(t.Context(), key, "s0", nil); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(big, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Remove(old)); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the number is given again soon
		if err := os.WriteFile(old, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(old, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Snapshot(t.Context(), key, "s1", nil); err != nil {
		t.Fatal(err)
	}
	named := map[string]storage.Change{}
	err = b.Changes(t.Context(), "v", "s0", "s1", func(c storage.Change) error {
		was := named[c.Path]
		named[c.Path] = storage.Change{Path: c.Path, Whole: was.Whole || c.Whole, Ranges: append(was.Ranges, c.Ranges...)}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c := named["big"]
	sum := int64(0)
	for _, r := range c.Ranges {
		sum += min(r.Length, 4<<20-r.Offset)
	}
	if c.Whole || sum < 1 || sum > 256<<10 {
		t.Errorf("one byte is named as %+v", c)
	}
	if !named["old"].Whole {
		t.Errorf("the new file is named as %+v", named["old"])
	}
}
