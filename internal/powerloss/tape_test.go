package powerloss

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestTape compares what a tape gives with what the words say: flushed is
// there, and of the rest each page is as one of the writes since, or the flush, left it.
func TestTape(t *testing.T) {
	const size = 8 * pageSize
	rapid.Check(t, func(t *rapid.T) {
		p := tape{base: pages{}}
		for i := range rapid.IntRange(0, 30).Draw(t, "events") {
			if rapid.IntRange(0, 4).Draw(t, "flush") == 0 {
				p.log = append(p.log, event{})
				continue
			}
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := rapid.Int64Range(1, size-off).Draw(t, "length")
			p.log = append(p.log, event{off, bytes.Repeat([]byte{byte(i + 1)}, int(n))})
		}
		at := rapid.IntRange(0, len(p.log)).Draw(t, "at")
		want := make([]byte, size) // what is surely there
		flushed := 0
		for i, e := range p.log[:at] {
			if e.data == nil {
				flushed = i
			}
		}
		for _, e := range p.log[:flushed] {
			copy(want[e.off:], e.data)
		}
		all := bytes.Clone(want)
		may := make([]map[byte]bool, size)
		for i := range may {
			may[i] = map[byte]bool{want[i]: true}
		}
		for _, e := range p.log[flushed:at] {
			copy(all[e.off:], e.data)
			for i, c := range e.data {
				may[e.off+int64(i)][c] = true
			}
		}
		for mode, check := range map[Mode]func(got []byte){
			Drop: func(got []byte) {
				if !bytes.Equal(got, want) {
					t.Fatal("drop: what was flushed, and only that, is not what is there")
				}
			},
			Keep: func(got []byte) {
				if !bytes.Equal(got, all) {
					t.Fatal("keep: something is missing")
				}
			},
			Reorder: func(got []byte) {
				for i, c := range got {
					if !may[i][c] {
						t.Fatalf("reorder: byte %d is %d, which nobody wrote after the flush", i, c)
					}
				}
			},
		} {
			content, err := p.at(at, mode, 7)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, size)
			content.read(got, 0)
			check(got)
		}
	})
}
