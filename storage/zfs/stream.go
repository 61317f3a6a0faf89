package zfs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A stream of ours is a header and one or more streams of zfs send, each of
// which continues what the one before ends with: ZFS continues only from an
// earlier snapshot of the same data set or from a clone's origin, and every
// received snapshot lies in a data set of its own, so a base further back is
// reached in several steps.
//
//	8 bytes   magic
//	8 bytes   guid of the base, 0 for none; little-endian as all numbers
//	8 bytes   guid of the snapshot
//	8 bytes   number of zfs streams
//
// A base may be named although the first zfs stream is a full one, where the
// sender's ZFS cannot continue from it. The header keeps a stream that was cut
// between two zfs streams from being taken for a whole one.
//
// Of a zfs stream (replay records of 312 bytes, some with a payload; see
// zfs_ioctl.h of OpenZFS) only the frame is read here: its guids, its
// records' lengths and the checksum (fletcher-4 over 32-bit words) at its end. That
// is known before ZFS is asked to receive anything.

const (
	magic      = "drvzfs\x00\x01"
	headerSize = 32
	recordSize = 312

	zfsMagic = 0x2F5bacbac
	// maxPayload bounds what one record carries: blocks have at most 16 MiB.
	maxPayload = 32 << 20
	// maxSteps bounds the number of zfs streams in one of ours.
	maxSteps = 4096

	flagClone = 1 << 0 // drr_flags: the data set continues another's snapshot
)

// errStream marks a stream that is not what it should be.
var errStream = errors.New("the stream is damaged")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", errStream, fmt.Sprintf(format, a...))
}

// header is the beginning of a stream of ours.
type header struct{ base, to, steps uint64 }

func (h header) bytes() []byte {
	b := []byte(magic)
	b = binary.LittleEndian.AppendUint64(b, h.base)
	b = binary.LittleEndian.AppendUint64(b, h.to)
	return binary.LittleEndian.AppendUint64(b, h.steps)
}

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, bad("it ends in its header")
	}
	if string(b[:8]) != magic {
		return header{}, bad("it does not begin as a stream of a ZFS pool does")
	}
	h := header{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])}
	if h.steps == 0 || h.steps > maxSteps || h.to == 0 {
		return h, bad("its header makes no sense")
	}
	return h, nil
}

// step is one zfs stream within a stream of ours.
type step struct {
	at, size int64 // where in the stream
	from, to uint64
	created  int64 // seconds since 1970
	flags    uint32
	asClone  [4]uint64 // the checksum it would have with flagClone set
}

// fletcher4 is the running checksum of a zfs stream.
type fletcher4 [4]uint64

func (f *fletcher4) add(b []byte) {
	s0, s1, s2, s3 := f[0], f[1], f[2], f[3]
	for ; len(b) >= 4; b = b[4:] {
		s0 += uint64(binary.LittleEndian.Uint32(b))
		s1 += s0
		s2 += s1
		s3 += s2
	}
	f[0], f[1], f[2], f[3] = s0, s1, s2, s3
}

func (f fletcher4) put(b []byte) {
	for i, v := range f {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
}

// scan reads a whole stream and checks everything about it that can be checked.
func scan(r io.Reader) (header, []step, error) {
	in := &counting{r: bufio.NewReaderSize(r, 64<<10)}
	var head [headerSize]byte
	if err := in.full(head[:]); err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return h, nil, err
	}
	var steps []step
	for range h.steps {
		s, err := scanStep(in)
		if err != nil {
			return h, nil, err
		}
		if n := len(steps); n > 0 && s.from != steps[n-1].to {
			return h, nil, bad("its part %d does not continue the one before", n+1)
		}
		steps = append(steps, s)
	}
	if _, err := in.r.ReadByte(); err == nil {
		return h, nil, bad("there are bytes behind its end")
	} else if err != io.EOF {
		return h, nil, err
	}
	if first := steps[0].from; first != h.base && first != 0 {
		return h, nil, bad("it does not begin with the base that its header names")
	}
	if steps[len(steps)-1].to != h.to {
		return h, nil, bad("it does not end with the snapshot that its header names")
	}
	return h, steps, nil
}

func scanStep(in *counting) (step, error) {
	s := step{at: in.n}
	var sum, clone fletcher4
	var rec [recordSize]byte
	buf := make([]byte, 32<<10)
	for first := true; ; first = false {
		if err := in.full(rec[:]); err != nil {
			return s, err
		}
		kind := binary.LittleEndian.Uint32(rec[:])
		switch {
		case first:
			if err := s.begin(rec[:]); err != nil {
				return s, err
			}
			changed := rec
			setClone(changed[:])
			clone.add(changed[:])
			sum.add(rec[:])
		case kind == recordEnd:
			s.size, s.asClone = in.n-s.at, clone
			return s, checkEnd(rec[:], s, sum)
		case kind == recordBegin:
			return s, bad("it begins again in the middle")
		default:
			sum.add(rec[:])
			clone.add(rec[:])
		}
		n, err := payloadSize(rec[:])
		if err != nil {
			return s, err
		}
		for n > 0 {
			piece := buf[:min(n, len(buf))]
			if err := in.full(piece); err != nil {
				return s, err
			}
			sum.add(piece)
			clone.add(piece)
			n -= len(piece)
		}
	}
}

// begin reads the first record.
func (s *step) begin(rec []byte) error {
	if binary.LittleEndian.Uint32(rec) != recordBegin || binary.LittleEndian.Uint64(rec[8:]) != zfsMagic {
		return bad("what it carries is no zfs stream of this byte order")
	}
	// One file system's stream: a package of several could bring properties
	// and other data sets.
	if binary.LittleEndian.Uint64(rec[16:])&3 != 1 || binary.LittleEndian.Uint32(rec[32:]) != 2 {
		return bad("what it carries is not the stream of one file system")
	}
	s.created = int64(binary.LittleEndian.Uint64(rec[24:]))
	s.flags = binary.LittleEndian.Uint32(rec[36:])
	s.to, s.from = binary.LittleEndian.Uint64(rec[40:]), binary.LittleEndian.Uint64(rec[48:])
	if s.to == 0 {
		return bad("it does not name its snapshot")
	}
	return nil
}

func setClone(begin []byte) {
	binary.LittleEndian.PutUint32(begin[36:], binary.LittleEndian.Uint32(begin[36:])|flagClone)
}

const (
	recordBegin = iota
	recordObject
	recordFreeObjects
	recordWrite
	recordFree
	recordEnd
	recordWriteByRef
	recordSpill
	recordWriteEmbedded
	recordObjectRange
	recordRedact
)

// checkEnd compares the checksum and refuses bits that mean nothing.
func checkEnd(rec []byte, s step, sum fletcher4) error {
	var want [32]byte
	sum.put(want[:])
	if !bytes.Equal(rec[8:40], want[:]) {
		return bad("its checksum does not match")
	}
	if binary.LittleEndian.Uint32(rec[4:]) != 0 || binary.LittleEndian.Uint64(rec[40:]) != s.to {
		return bad("its end does not belong to its beginning")
	}
	for _, c := range rec[48:280] {
		if c != 0 {
			return bad("its end holds what means nothing")
		}
	}
	// Newer senders put the checksum of each record at the record's own end.
	sum.add(rec[:280])
	sum.put(want[:])
	if !bytes.Equal(rec[280:], want[:]) && !bytes.Equal(rec[280:], make([]byte, 32)) {
		return bad("its last record's checksum does not match")
	}
	return nil
}

// payloadSize is how many bytes follow a record.
func payloadSize(rec []byte) (int, error) {
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(rec[at:])) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(rec[at:]) }
	var n uint64
	switch u32(0) {
	case recordBegin:
		n = u32(4)
	case recordObject:
		if n = u32(36); n == 0 { // not raw
			n = (u32(28) + 7) &^ 7
		}
	case recordWrite:
		if n = u64(96); n == 0 { // not compressed
			n = u64(32)
		}
	case recordSpill:
		if n = u64(40); n == 0 {
			n = u64(16)
		}
	case recordWriteEmbedded:
		n = (u32(52) + 7) &^ 7
	case recordFreeObjects, recordFree, recordWriteByRef, recordObjectRange, recordRedact:
	default:
		return 0, bad("it has a record of unknown kind %d", u32(0))
	}
	if n > maxPayload || n%4 != 0 {
		return 0, bad("a record carries %d bytes", n)
	}
	return int(n), nil
}

// counting reads and knows how far.
type counting struct {
	r *bufio.Reader
	n int64
}

func (c *counting) full(p []byte) error {
	n, err := io.ReadFull(c.r, p)
	c.n += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return bad("it ends after %d bytes, in the middle", c.n)
	}
	return err
}

// reader gives the zfs stream of a step. asClone has it say that it continues
// a snapshot of another data set: it is then received into a new one, and never
// into one that ZFS finds by itself.
func (s step) reader(r io.ReaderAt, asClone bool) io.Reader {
	whole := io.NewSectionReader(r, s.at, s.size)
	if !asClone {
		return whole
	}
	return &rewriting{r: whole, s: s}
}

type rewriting struct {
	r   io.Reader
	s   step
	pos int64
}

func (w *rewriting) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	var flags [4]byte
	binary.LittleEndian.PutUint32(flags[:], w.s.flags|flagClone)
	overlay(p[:n], w.pos, flags[:], 36)
	var sum [32]byte
	fletcher4(w.s.asClone).put(sum[:])
	overlay(p[:n], w.pos, sum[:], w.s.size-recordSize+8)
	w.pos += int64(n)
	return n, err
}

// overlay writes what of patch, which lies at offset at, falls into p, which
// lies at offset pos.
func overlay(p []byte, pos int64, patch []byte, at int64) {
	for i, c := range patch {
		if k := at + int64(i) - pos; k >= 0 && k < int64(len(p)) {
			p[k] = c
		}
	}
}
