package storagetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
	"github.com/drover-data/drover/tree/treetest"
)

// entryOf is what a path is.
type entryOf struct {
	line string // all but content
	ino  uint64
	data []byte // of a file
}

func entriesOf(t testing.TB, dir string) map[string]entryOf {
	out := map[string]entryOf{}
	for _, line := range Describe(t, dir) {
		var rel string
		if _, err := fmt.Sscanf(line, "%q", &rel); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		full := filepath.Join(dir, rel)
		if err := unix.Lstat(full, &st); err != nil {
			t.Fatal(err)
		}
		e := entryOf{ino: st.Ino}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			data, err := os.ReadFile(full)
			if err != nil {
				t.Fatal(err)
			}
			e.data = data
		}
		if rel == "." {
			rel = ""
		}
		// The sum stands for the content, which is compared by range.
		before, after, found := strings.Cut(line, " sum=")
		if found { // and the other names of a file do not belong to this one
			_, after, _ = strings.Cut(after, " ")
			if strings.HasPrefix(after, "same=") {
				_, after, _ = strings.Cut(after, " ")
			}
		}
		e.line = before + " " + after
		out[rel] = e
	}
	return out
}

// sound demands that every difference between two trees is named.
func sound(t testing.TB, a, b map[string]entryOf, named map[string]storage.Change) error {
	for path, was := range a {
		now, there := b[path]
		c, ok := named[path]
		switch {
		case !there || now.ino != was.ino:
			if !c.Whole {
				return fmt.Errorf("%q went or is another one, and is named as %+v, %v", path, c, ok)
			}
			continue
		case now.line != was.line && !ok:
			return fmt.Errorf("%q is not named:\n%s\n%s", path, was.line, now.line)
		case c.Whole:
			continue
		}
		for i := range min(len(now.data), len(was.data)) {
			if now.data[i] != was.data[i] && !within(int64(i), c.Ranges) {
				return fmt.Errorf("byte %d of %q differs and is not named: %v", i, path, c.Ranges)
			}
		}
	}
	for path := range b {
		if _, there := a[path]; !there && !named[path].Whole {
			return fmt.Errorf("%q is new and not named", path)
		}
	}
	return nil
}

func within(i int64, list []storage.Range) bool {
	for _, r := range list {
		if i >= r.Offset && i < r.Offset+r.Length {
			return true
		}
	}
	return false
}

// index makes the layer that turns base into s.
func index(t testing.TB, base *storage.Snapshot, s storage.Snapshot, hints *tree.Hints, parent []byte) []byte {
	t.Helper()
	var from layer.Source
	if parent != nil {
		r, err := layer.NewReader(bytes.NewReader(parent))
		if err != nil {
			t.Fatal(err)
		}
		from = layer.Merge(true, r)
	}
	b, err := layer.Build(t.Context(), layer.Config{
		Spool: t.TempDir(), PackSize: 1 << 20, Workers: 1, Parent: from,
		KnownSize: func(digest.Sum) int64 { return 0 }, Emit: func(layer.Pack, []byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Walk(t.Context(), base, s, hints, b); err != nil {
		b.Close()
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := b.Finish(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func rootOf(t testing.TB, newestFirst ...[]byte) layer.Content {
	t.Helper()
	var list []layer.Source
	for _, x := range newestFirst {
		r, err := layer.NewReader(bytes.NewReader(x))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	c, err := layer.Root(layer.Merge(true, list...))
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return c
}

// Differs is how often a property test has met what.
type Differs struct {
	Told, Unsure int
	Plain        bool // the file system cannot hold all that treetest.Populate makes
}

// Case makes a history of random changes and demands that every pair of its
// snapshots is told apart exactly.
func (d *Differs) Case(t *testing.T, r *rapid.T, b storage.Backend, n int) {
	key := storage.HeadKey{Volume: fmt.Sprintf("v%d", n), Branch: "main"}
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if rapid.Bool().Draw(r, "populated") && !d.Plain {
		treetest.Populate(t, h.Dir)
	}
	if err := os.MkdirAll(filepath.Join(h.Dir, "d/e"), 0o755); err != nil {
		t.Fatal(err)
	}
	treetest.Mutate(r, h.Dir, rapid.IntRange(0, 12).Draw(r, "before"))
	var snaps []storage.Snapshot
	var fulls [][]byte
	var entries []map[string]entryOf
	for i := range 3 {
		if i > 0 {
			for range rapid.IntRange(0, 3).Draw(r, "rounds") {
				treetest.Rearrange(r, h.Dir, rapid.IntRange(0, 4).Draw(r, "rearranged"))
				treetest.Mutate(r, h.Dir, rapid.IntRange(0, 2).Draw(r, "mutated"))
			}
		}
		s, err := b.Snapshot(t.Context(), key, fmt.Sprintf("s%d", i), nil)
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, s)
		fulls = append(fulls, index(t, nil, s, nil, nil))
		entries = append(entries, entriesOf(t, s.Dir))
	}
	for _, pair := range [][2]int{{0, 1}, {1, 2}, {0, 2}, {2, 0}} {
		x, y := pair[0], pair[1]
		if err := d.pair(t, b, snaps[x], snaps[y], entries[x], entries[y], fulls[x], fulls[y]); err != nil {
			r.Fatalf("%s against %s: %v", snaps[y].ID, snaps[x].ID, err)
		}
	}
	for _, s := range snaps {
		if err := b.DestroySnapshot(t.Context(), key.Volume, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.DestroyHead(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func (d *Differs) pair(t *testing.T, b storage.Backend, x, y storage.Snapshot, ex, ey map[string]entryOf, fx, fy []byte) error {
	named := map[string]storage.Change{}
	hints := tree.NewHints()
	differ, ok := storage.As[storage.Differ](b)
	if !ok {
		t.Fatal("the backend is no Differ")
	}
	err := differ.Changes(t.Context(), x.Volume, x.ID, y.ID, func(c storage.Change) error {
		was := named[c.Path]
		named[c.Path] = storage.Change{Path: c.Path, Whole: was.Whole || c.Whole, Ranges: append(was.Ranges, c.Ranges...)}
		return hints.Add(c)
	})
	want := rootOf(t, fy)
	if got := rootOf(t, index(t, &x, y, nil, fx), fx); got != want {
		return fmt.Errorf("without hints the digest is another one: %+v, %+v", got, want)
	}
	if api.Is(err, api.Unsupported) {
		d.Unsure++
		return nil
	}
	if err != nil {
		return err
	}
	d.Told++
	if err := sound(t, ex, ey, named); err != nil {
		return err
	}
	if got := rootOf(t, index(t, &x, y, hints, fx), fx); got != want {
		return fmt.Errorf("with hints the digest is another one: %+v, %+v", got, want)
	}
	return nil
}

// Describe lists everything a file system keeps of a tree, one line an entry.
func Describe(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%q mode=%o owner=%d:%d links=%d rdev=%x mtime=%d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sum=%x", st.Size, sha256.Sum256(data))
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				line += " same=" + first[st.Ino]
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to=" + to
		}
		lines = append(lines, line+xattrs(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrs(t testing.TB, path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "" // this file system has none
	}
	if err != nil {
		t.Fatal(err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var out string
	for _, name := range names {
		value := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf(" %s=%x", name, value[:k])
	}
	return out
}
