package layer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/wire"
)

// Magic is how every index begins, before compression.
const Magic = "drover-index-1\n\x00"

// Pack is a blob of content.
type Pack struct {
	Sum  digest.Sum
	Size int64
}

// Source gives entries in tree order, and io.EOF after the last. An entry is
// the caller's to keep.
type Source interface{ Next() (*Entry, error) }

// Writer writes an index. Entries go to a spool first: the packs they name
// are listed before them, and are known only when all entries are.
type Writer struct {
	spool  *os.File
	out    *bufio.Writer
	number map[digest.Sum]uint64
	packs  []Pack
	sizes  func(digest.Sum) int64
	last   string
	any    bool
	buf    []byte
	Count  int64 // entries written
}

// NewWriter spools in dir. sizes gives the length of a pack.
func NewWriter(dir string, sizes func(digest.Sum) int64) (*Writer, error) {
	f, err := os.CreateTemp(dir, "index-*")
	if err != nil {
		return nil, err
	}
	// The name goes at once, so that nothing is left whatever happens.
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &Writer{spool: f, out: bufio.NewWriterSize(f, 1<<20), number: map[digest.Sum]uint64{}, sizes: sizes}, nil
}

func (w *Writer) pack(s digest.Sum) uint64 {
	n, known := w.number[s]
	if !known {
		n = uint64(len(w.packs))
		w.number[s] = n
		w.packs = append(w.packs, Pack{s, w.sizes(s)})
	}
	return n
}

// Put appends an entry, which comes after the one before in tree order.
func (w *Writer) Put(e *Entry) error {
	if w.any && tree.Order(w.last, e.Path) >= 0 {
		return fmt.Errorf("write index: %q does not come after %q", e.Path, w.last)
	}
	w.any, w.last = true, e.Path
	w.Count++
	w.buf = e.encode(w.buf[:0], w.pack)
	if len(w.buf) > wire.MaxBlock-wire.Full {
		return fmt.Errorf("write index: what is to be said of %.200q is too long", e.Path)
	}
	if _, err := w.out.Write(binary.AppendUvarint(nil, uint64(len(w.buf)))); err != nil {
		return err
	}
	_, err := w.out.Write(w.buf)
	return err
}

// Close gives the spool back; harmless after Finish.
func (w *Writer) Close() error { return w.spool.Close() }

// Finish writes the whole index, and gives the packs it names.
func (w *Writer) Finish(to io.Writer) ([]Pack, error) {
	if err := w.out.Flush(); err != nil {
		return nil, err
	}
	if _, err := w.spool.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	if _, err := z.Write([]byte(Magic)); err != nil {
		return nil, err
	}
	b := blockWriter{w: z, buf: make([]byte, wire.Head, 2*wire.Full), sum: sha256.New()}
	rec := binary.AppendUvarint([]byte{recPacks}, uint64(len(w.packs)))
	for _, p := range w.packs {
		rec = binary.AppendUvarint(append(rec, p.Sum[:]...), uint64(p.Size))
	}
	if err := b.put(rec); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(w.spool, 1<<20)
	for {
		n, err := binary.ReadUvarint(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if uint64(cap(w.buf)) < n {
			w.buf = make([]byte, n)
		}
		w.buf = w.buf[:n]
		if _, err := io.ReadFull(in, w.buf); err != nil {
			return nil, err
		}
		if err := b.put(w.buf); err != nil {
			return nil, err
		}
	}
	if err := b.end(); err != nil {
		return nil, err
	}
	return w.packs, z.Close()
}

// blockWriter gathers records into blocks.
type blockWriter struct {
	w   io.Writer
	buf []byte
	sum hash.Hash
}

func (b *blockWriter) put(record []byte) error {
	if len(b.buf)+len(record) > wire.MaxBlock {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.buf = append(b.buf, record...)
	if len(b.buf) >= wire.Full {
		return b.flush()
	}
	return nil
}

func (b *blockWriter) flush() error {
	if len(b.buf) == wire.Head {
		return nil
	}
	wire.Seal(b.buf)
	b.sum.Write(b.buf[wire.Head:])
	_, err := b.w.Write(b.buf)
	b.buf = b.buf[:wire.Head]
	return err
}

func (b *blockWriter) end() error {
	if err := b.flush(); err != nil {
		return err
	}
	if err := b.put(b.sum.Sum([]byte{recEnd})); err != nil {
		return err
	}
	return b.flush()
}

// Reader reads an index, checking everything it can by itself.
type Reader struct {
	z     *zstd.Decoder
	buf   []byte
	d     decoder
	sum   hash.Hash
	last  string
	any   bool
	ended bool
}

// maxWindow bounds the memory that a compressed stream can ask for.
const maxWindow = 8 << 20

// NewReader begins to read an index.
func NewReader(r io.Reader) (*Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	x := &Reader{z: z, sum: sha256.New()}
	head := make([]byte, len(Magic))
	if _, err := io.ReadFull(z, head); err != nil || !bytes.Equal(head, []byte(Magic)) {
		x.Close()
		return nil, damaged("it does not begin as an index")
	}
	if err := x.block(); err != nil {
		x.Close()
		return nil, err
	}
	if x.d.Byte() != recPacks {
		x.Close()
		return nil, damaged("it does not begin with its packs")
	}
	n := x.d.Uint(uint64(len(x.d.Rest)))
	for i := uint64(0); i < n && !x.d.Failed(); i++ {
		var p Pack
		copy(p.Sum[:], x.d.Fixed(len(p.Sum)))
		p.Size = int64(x.d.Uint(1 << 40))
		x.d.packs = append(x.d.packs, p)
	}
	if x.d.Failed() {
		x.Close()
		return nil, damaged(x.d.Reason)
	}
	return x, nil
}

// Packs lists the packs that entries name.
func (x *Reader) Packs() []Pack { return x.d.packs }

// Close lets go of the decoder.
func (x *Reader) Close() { x.z.Close() }

func (x *Reader) block() error {
	payload, reason, err := wire.ReadBlock(x.z, &x.buf)
	switch {
	case err == io.EOF:
		return damaged("it is cut")
	case err != nil:
		return damaged("it cannot be decompressed: " + err.Error())
	case reason != "":
		return damaged(reason)
	}
	x.d.Rest = payload
	if payload[0] != recEnd {
		x.sum.Write(payload)
	}
	return nil
}

// Next gives the next entry.
func (x *Reader) Next() (*Entry, error) {
	if x.ended {
		return nil, io.EOF
	}
	for len(x.d.Rest) == 0 {
		if err := x.block(); err != nil {
			return nil, err
		}
	}
	kind := x.d.Byte()
	switch kind {
	case recGone, recEntry:
	case recEnd:
		if !bytes.Equal(x.d.Rest, x.sum.Sum(nil)) {
			return nil, damaged("it does not have the digest it says")
		}
		if n, _ := x.z.Read(make([]byte, 1)); n != 0 {
			return nil, damaged("something follows its end")
		}
		x.ended = true
		return nil, io.EOF
	default:
		return nil, damaged(fmt.Sprintf("record type %d is not known", kind))
	}
	e := x.d.entry(kind)
	if x.d.Failed() {
		return nil, damaged(x.d.Reason)
	}
	if x.any && tree.Order(x.last, e.Path) >= 0 {
		return nil, damaged(fmt.Sprintf("%.200q does not come after %.200q", e.Path, x.last))
	}
	x.any, x.last = true, e.Path
	return e, nil
}

// settle puts digests of packs in the place of provisional ones.
func (w *Writer) settle(known map[digest.Sum]Pack) {
	for i := range w.packs {
		if p, ok := known[w.packs[i].Sum]; ok {
			w.packs[i] = p
		}
	}
}
