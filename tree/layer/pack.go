package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/drover-data/drover/tree/digest"
)

// Sealer hides what is stored from whoever keeps it. Equal content gives equal
// bytes.
type Sealer interface {
	Seal(mediaType string, plain []byte) []byte
	Open(mediaType string, sealed []byte) ([]byte, error)
}

// The media types of blobs.
const (
	IndexType = "application/vnd.drover.index.v1"
	PackType  = "application/vnd.drover.pack.v1"
)

// codec turns frames' content into what packs hold, and back.
type codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	seal Sealer // nil: in clear
}

func newCodec(seal Sealer, workers int) (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers), zstd.WithWindowSize(MaxChunk), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxMemory(MaxChunk), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return &codec{enc, dec, seal}, nil
}

func (c *codec) close() {
	_ = c.enc.Close()
	c.dec.Close()
}

func (c *codec) store(plain []byte) []byte {
	b := c.enc.EncodeAll(plain, make([]byte, 0, len(plain)/3+64))
	if c.seal != nil {
		b = c.seal.Seal(PackType, b)
	}
	return b
}

func (c *codec) load(stored []byte, plain int) ([]byte, error) {
	if c.seal != nil {
		var err error
		if stored, err = c.seal.Open(PackType, stored); err != nil {
			return nil, err
		}
	}
	b, err := c.dec.DecodeAll(stored, make([]byte, 0, plain))
	if err != nil {
		return nil, damaged("a frame of a pack cannot be decompressed: " + err.Error())
	}
	if len(b) != plain {
		return nil, damaged(fmt.Sprintf("a frame of a pack has %d bytes where the index says %d", len(b), plain))
	}
	return b, nil
}

// packer gathers frames into packs. While a pack is open its frames are known
// under a provisional digest.
type packer struct {
	size int
	emit func(Pack, []byte) error
	buf  []byte
	open digest.Sum
	n    uint64
	real map[digest.Sum]Pack // by provisional digest
}

func (p *packer) begin() {
	p.n++
	p.open = digest.Sum{}
	copy(p.open[:], "provisional")
	binary.BigEndian.PutUint64(p.open[24:], p.n)
	p.buf = make([]byte, 0, p.size+p.size/8)
}

// add appends a frame and says where it is.
func (p *packer) add(frame []byte) (pack digest.Sum, offset int64, err error) {
	if p.buf == nil {
		p.begin()
	}
	pack, offset = p.open, int64(len(p.buf))
	p.buf = append(p.buf, frame...)
	if len(p.buf) >= p.size {
		err = p.flush()
	}
	return pack, offset, err
}

func (p *packer) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	done := Pack{Sum: sha256.Sum256(p.buf), Size: int64(len(p.buf))}
	p.real[p.open] = done
	b := p.buf
	p.buf = nil
	return p.emit(done, b)
}

// OpenIndex reads an index as it is stored.
func OpenIndex(stored io.Reader, seal Sealer) (*Reader, error) {
	if seal == nil {
		return NewReader(stored)
	}
	b, err := io.ReadAll(stored)
	if err != nil {
		return nil, err
	}
	if b, err = seal.Open(IndexType, b); err != nil {
		return nil, err
	}
	return NewReader(bytes.NewReader(b))
}
