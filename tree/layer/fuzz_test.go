package layer

import (
	"bytes"
	"io"
	"testing"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/wire"
)

// FuzzEntry: what is read of an entry is inside the tree and inside its packs,
// and is written the same way again.
func FuzzEntry(f *testing.F) {
	packs := []Pack{{Sum: digest.Sum{1}, Size: 1000}, {Sum: digest.Sum{2}, Size: 5000}}
	number := func(s digest.Sum) uint64 { return uint64(s[0] - 1) }
	add := func(e Entry) { f.Add(e.encode(nil, number)) }
	file := tree.Entry{Path: "a/b", Kind: tree.File, Meta: tree.Meta{Mode: 0o100644}, Size: 100_000}
	add(Entry{Entry: file, Cut: 50, Extents: []Extent{
		{Off: 10, Len: 20, Hole: true},
		{Off: 40, Len: 100, Chunk: Chunk{Len: 100, Pack: packs[0].Sum, Stored: 90, Plain: 200, At: 50}},
		{Off: 200, Len: 50, Skip: 10, Chunk: Chunk{Len: 100, Pack: packs[1].Sum, Frame: 7, Stored: 90, Plain: 200, At: 50}},
	}, Sums: []RangeSum{{0, digest.Sum{9}}}})
	add(Entry{Gone: true, Entry: tree.Entry{Path: "x"}})
	add(Entry{Entry: tree.Entry{Path: "b", Kind: tree.Link, Fresh: true, Target: "a"}})
	add(Entry{Entry: tree.Entry{Path: "", Kind: tree.Dir, Fresh: true, Meta: tree.Meta{Mode: 0o40755}}})
	add(Entry{Entry: tree.Entry{Path: "l", Kind: tree.Symlink, Meta: tree.Meta{Mode: 0o120777}, Target: "../.."}})
	add(Entry{Entry: tree.Entry{Path: "n", Kind: tree.Node, Meta: tree.Meta{Mode: 0o20666}, Rdev: 259}})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || (b[0] != recGone && b[0] != recEntry) {
			return
		}
		d := decoder{Decoder: wire.Decoder{Rest: b[1:]}, packs: packs}
		e := d.entry(b[0])
		if d.Failed() {
			return
		}
		if e.Path != "" && !tree.ValidPath(e.Path) {
			t.Fatalf("path %q", e.Path)
		}
		var end int64
		for _, x := range e.Extents {
			if x.Off < end || x.Len <= 0 || x.Off+x.Len > e.Size {
				t.Fatalf("extent %+v of %d bytes", x, e.Size)
			}
			end = x.Off + x.Len
			c := x.Chunk
			if !x.Hole && (x.Skip < 0 || x.Skip+int(x.Len) > c.Len || c.At+c.Len > c.Plain || c.Plain > MaxChunk || c.Frame+int64(c.Stored) > 5000) {
				t.Fatalf("extent %+v", x)
			}
		}
		again := e.encode(nil, number)
		d = decoder{Decoder: wire.Decoder{Rest: again[1:]}, packs: packs}
		if e2 := d.entry(again[0]); d.Failed() || !bytes.Equal(e2.encode(nil, number), again) {
			t.Fatalf("%+v became %+v", e, e2)
		}
	})
}

// FuzzIndex: no bytes make the reader do anything but give entries in order
// or say what is wrong.
func FuzzIndex(f *testing.F) {
	w, err := NewWriter(f.TempDir(), func(digest.Sum) int64 { return 100 })
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{"", "a", "a/b", "c"} {
		e := &Entry{Entry: tree.Entry{Path: p, Kind: tree.Dir, Fresh: true, Meta: tree.Meta{Mode: 0o40755}}}
		if err := w.Put(e); err != nil {
			f.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := w.Finish(&out); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		last, any := "", false
		for range 1000 {
			e, err := r.Next()
			if err == io.EOF || err != nil {
				return
			}
			if any && tree.Order(last, e.Path) >= 0 {
				t.Fatalf("%q after %q", e.Path, last)
			}
			last, any = e.Path, true
		}
	})
}
