//go:build root

package btrfs

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

// BenchmarkWalk is what a push has to look at after 2,000 random writes of
// 8 KiB into 2 GiB: with the file system's word for it, and by comparison.
func BenchmarkWalk(b *testing.B) {
	p := newPool(b, 6<<30)
	h := mustHead(b, p, "")
	block := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range block {
		block[i] = byte(r.Uint32())
	}
	var files []*os.File
	for range 2 {
		f, err := os.Create(filepath.Join(h.Dir, string(rune('a'+len(files)))))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		for range 1 << 10 {
			if _, err := f.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		files = append(files, f)
	}
	s1, err := p.Snapshot(b.Context(), mainKey, "s1", nil)
	if err != nil {
		b.Fatal(err)
	}
	for range 2000 {
		if _, err := files[r.IntN(2)].WriteAt(block[r.IntN(1<<19):][:8192], r.Int64N(1<<30/8192)*8192); err != nil {
			b.Fatal(err)
		}
	}
	s2, err := p.Snapshot(b.Context(), mainKey, "s2", nil)
	if err != nil {
		b.Fatal(err)
	}
	for name, hints := range map[string]func() *tree.Hints{
		"hinted": func() *tree.Hints {
			h, err := tree.HintsOf(b.Context(), p, "v", "s1", "s2")
			if err != nil || h == nil {
				b.Fatal("no hints: ", err)
			}
			return h
		},
		"compared": func() *tree.Hints { return nil },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				walk(b, s1, s2, hints())
			}
		})
	}
}

// counting is a visitor that counts changed bytes.
type counting struct{ bytes int64 }

func (c *counting) Gone(string) error { return nil }

func (c *counting) Entry(_ *tree.Entry, content tree.Content) error {
	if content == nil {
		return nil
	}
	add := func(_, n int64) error { c.bytes += n; return nil }
	return content.Changed(add, add)
}

func walk(b *testing.B, base, s storage.Snapshot, hints *tree.Hints) {
	var c counting
	if err := tree.Walk(context.Background(), &base, s, hints, &c); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(c.bytes), "changed-bytes")
}
