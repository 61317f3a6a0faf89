package exchange

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// database writes pages as pgbench's tables have them: rows of a few numbers and
// much filler, and indexes.
func database(b *testing.B, dir string, size int64) {
	r := rand.New(rand.NewPCG(1, 2))
	f, err := os.Create(filepath.Join(dir, "accounts"))
	must(b, err)
	defer f.Close()
	page := make([]byte, 8192)
	for n := int64(0); n < size; n += int64(len(page)) {
		clear(page)
		binary.LittleEndian.PutUint64(page, r.Uint64()>>20)
		for row := range 61 {
			at := len(page) - (row+1)*128
			binary.LittleEndian.PutUint16(page[24+row*4:], uint16(at))
			binary.LittleEndian.PutUint32(page[at:], uint32(r.IntN(1000)))
			binary.LittleEndian.PutUint32(page[at+24:], uint32(n/8192*61)+uint32(row))
			binary.LittleEndian.PutUint32(page[at+32:], uint32(r.IntN(5000)))
			for i := 40; i < 124; i++ {
				page[at+i] = ' '
			}
		}
		_, err := f.Write(page)
		must(b, err)
	}
}

// BenchmarkFirstPush is all of a database into a directory.
func BenchmarkFirstPush(b *testing.B) {
	const size = 512 << 20
	p := newPool(b.TempDir())
	tip := p.commit(b, 0, func(dir string) { database(b, dir, size) })
	b.SetBytes(size)
	for i := 0; b.Loop(); i++ {
		r := open(filepath.Join(b.TempDir(), fmt.Sprint(i)), nil)
		_, err := r.Push(context.Background(), p, Push{Branch: "main", Tip: tip, Graph: p.commits})
		must(b, err)
	}
}
