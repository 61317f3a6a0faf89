//go:build root

package btrfs

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

// BenchmarkWalk is what a push has to look at after 2,000 random writes of
// 8 KiB into 2 GiB: with the file system's word for it, and by comparison.
func BenchmarkWalk(b *testing.B) {
	p, s1, s2 := changedDatabase(b)
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

// changedDatabase makes a snapshot of 2 GiB and one after 2,000 random writes
// of 8 KiB.
func changedDatabase(b *testing.B) (*Backend, storage.Snapshot, storage.Snapshot) {
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
	return p, s1, s2
}

// BenchmarkSendChange sends the change when nothing of it is in memory, with
// and without reading ahead.
func BenchmarkSendChange(b *testing.B) {
	p, _, s2 := changedDatabase(b)
	forget := func() {
		for _, name := range []string{"a", "b"} {
			f, err := os.Open(filepath.Join(s2.Dir, name))
			if err != nil {
				b.Fatal(err)
			}
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	}
	spec := storage.SendSpec{Volume: "v", ID: "s2", Base: "s1"}
	for name, alone := range map[string]bool{"ahead": false, "alone": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				forget()
				s, err := p.startSend(b.Context(), "send", spec)
				if err != nil {
					b.Fatal(err)
				}
				if alone {
					s.w.end()
				}
				if _, err := io.Copy(io.Discard, s); err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
