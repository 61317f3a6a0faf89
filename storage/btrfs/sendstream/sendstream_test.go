package sendstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := uint32(rapid.IntRange(1, 2).Draw(t, "version"))
		path := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "path")
		data := rapid.SliceOfN(rapid.Byte(), 0, 70000>>min(version&1, 1)).Draw(t, "data")
		off := binary.LittleEndian.AppendUint64(nil, rapid.Uint64().Draw(t, "offset"))
		b := AppendCommand(nil, version, Write, Field{Path, path}, Field{FileOffset, off}, Field{Data, data})
		n, err := Length(b)
		if err != nil || n != len(b) {
			t.Fatalf("Length gave %d, %v of %d", n, err, len(b))
		}
		var c Command
		if err := c.Parse(b, version); err != nil {
			t.Fatal(err)
		}
		p, _ := c.Bytes(Path)
		d, _ := c.Bytes(Data)
		o, _ := c.Uint(FileOffset)
		if c.Op != Write || !bytes.Equal(p, path) || !bytes.Equal(d, data) || o != binary.LittleEndian.Uint64(off) {
			t.Fatal("not what was written")
		}
		i := rapid.IntRange(4, len(b)-1).Draw(t, "flip")
		b[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if err := c.Parse(b, version); !errors.Is(err, ErrStream) {
			t.Fatalf("a flipped bit gave %v", err)
		}
	})
}

// TestChecksum holds the checksum against a command the kernel made.
func TestChecksum(t *testing.T) {
	// The END command, as at the end of any stream: 0 bytes, command 21.
	want := []byte{0, 0, 0, 0, 21, 0, 0x50, 0x6c, 0xc9, 0x9d}
	got := AppendCommand(nil, 1, End)
	if !bytes.Equal(got, want) {
		t.Errorf("END is % x, the kernel writes % x", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(uint32(1), AppendCommand(nil, 1, Mkfile, Field{Path, []byte("a")}))
	f.Add(uint32(2), AppendCommand(nil, 2, Write, Field{Path, []byte("a")}, Field{FileOffset, make([]byte, 8)}, Field{Data, []byte("x")}))
	f.Add(uint32(2), AppendHeader(nil, 2))
	f.Fuzz(func(t *testing.T, version uint32, b []byte) {
		_, _ = ParseHeader(b)
		if len(b) < CommandSize {
			return
		}
		if n, err := Length(b); err == nil && n < CommandSize {
			t.Fatal("too short a command")
		}
		// A right checksum, so that the attributes are reached.
		binary.LittleEndian.PutUint32(b[6:], checksum(b))
		var c Command
		if err := c.Parse(b, version); err != nil {
			if !errors.Is(err, ErrStream) {
				t.Fatal(err)
			}
			return
		}
		for a := Attr(0); a < attrs; a++ {
			if v, err := c.Bytes(a); err == nil && len(v) > len(b) {
				t.Fatal("an attribute longer than the command")
			}
			_, _ = c.Uint(a)
			_, _, _ = c.Time(a)
			_, _ = c.ID(a)
		}
	})
}
