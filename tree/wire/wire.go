// Package wire holds what Drover's formats of trees share: blocks with
// checksums, and the numbers and strings in them. docs/format/stream.md
// describes both. It does not know what they mean.
package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Sizes of blocks, in bytes.
const (
	Head     = 8         // length and checksum, before the payload
	Full     = 256 << 10 // a writer closes a block that holds this much
	MaxBlock = 16 << 20  // no payload is longer
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal fills in the head of a block whose payload begins at Head.
func Seal(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(len(b)-Head))
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[Head:], castagnoli))
}

// Split takes one block off b; need is how many bytes it takes in all when
// there are too few. A reason says why it is not a block.
func Split(b []byte) (payload []byte, length, need int, reason string) {
	if len(b) < Head {
		return nil, 0, Head, ""
	}
	n := int(binary.BigEndian.Uint32(b))
	if n == 0 || n > MaxBlock {
		return nil, 0, 0, fmt.Sprintf("a block has %d bytes", n)
	}
	if len(b) < Head+n {
		return nil, 0, Head + n, ""
	}
	payload = b[Head : Head+n]
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(b[4:]) {
		return nil, 0, 0, "a block does not have its checksum"
	}
	return payload, Head + n, 0, ""
}

// ReadBlock reads one block into buf, which it may replace by a larger one,
// and gives its payload. io.EOF only where no further block begins; a reason
// says why what is there is not a block.
func ReadBlock(r io.Reader, buf *[]byte) (payload []byte, reason string, err error) {
	if cap(*buf) < Head {
		*buf = make([]byte, Head, Full+Full/2)
	}
	b := (*buf)[:Head]
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.ErrUnexpectedEOF {
			return nil, "it is cut", nil
		}
		return nil, "", err
	}
	_, _, need, reason := Split(b)
	if reason != "" {
		return nil, reason, nil
	}
	if cap(b) < need {
		b = append(make([]byte, 0, need+need/4), b...)
		*buf = b
	}
	b = b[:need]
	if _, err := io.ReadFull(r, b[Head:]); err != nil {
		if err == io.ErrUnexpectedEOF || err == io.EOF {
			return nil, "it is cut", nil
		}
		return nil, "", err
	}
	payload, _, _, reason = Split(b)
	return payload, reason, nil
}

// AppendString appends a string with its length.
func AppendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// Decoder reads values from one payload. Its first failure stays, and every
// read after it gives nothing.
type Decoder struct {
	Rest   []byte
	Reason string // why it failed
}

// Fail notes a failure.
func (d *Decoder) Fail(reason string) {
	if d.Reason == "" {
		d.Reason = reason
	}
	d.Rest = nil
}

// Failed reports whether anything did.
func (d *Decoder) Failed() bool { return d.Reason != "" }

// Uint reads a number of at most limit.
func (d *Decoder) Uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.Rest)
	if n <= 0 || v > limit {
		d.Fail("a number in it is cut or too large")
		return 0
	}
	d.Rest = d.Rest[n:]
	return v
}

// Int reads a signed number.
func (d *Decoder) Int() int64 {
	v, n := binary.Varint(d.Rest)
	if n <= 0 {
		d.Fail("a number in it is cut or too large")
		return 0
	}
	d.Rest = d.Rest[n:]
	return v
}

// Byte reads one byte.
func (d *Decoder) Byte() byte {
	if len(d.Rest) == 0 {
		d.Fail("a field in it is longer than its block")
		return 0
	}
	v := d.Rest[0]
	d.Rest = d.Rest[1:]
	return v
}

// Fixed reads n bytes, which belong to the payload.
func (d *Decoder) Fixed(n int) []byte {
	if len(d.Rest) < n {
		d.Fail("a field in it is longer than its block")
		return make([]byte, n)
	}
	v := d.Rest[:n:n]
	d.Rest = d.Rest[n:]
	return v
}

// Bytes reads a string of at most limit bytes, which belong to the payload.
func (d *Decoder) Bytes(limit uint64) []byte {
	n := d.Uint(limit)
	if n > uint64(len(d.Rest)) {
		d.Fail("a field in it is longer than its block")
		return nil
	}
	v := d.Rest[:n:n]
	d.Rest = d.Rest[n:]
	return v
}
