// Package layer is the form in which remotes keep trees, docs/format/remote.md:
// indexes that say what one commit changed, packs that hold the bytes, and the
// merging of layers into a whole tree or into one layer that says the same.
// It works on directories and streams and must not know what a volume or a
// remote is.
package layer

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/wire"
)

// MaxChunk is the longest piece of content that is stored as one, in bytes.
const MaxChunk = 1 << 20

// Chunk is a piece of content as it is stored: part of a frame of a pack.
type Chunk struct {
	Sum    digest.Sum // digest.Data of it
	Len    int
	Pack   digest.Sum // the pack's digest
	Frame  int64      // offset of its frame in the pack
	Stored int        // length of the frame in the pack
	Plain  int        // length of the frame's content
	At     int        // offset of the chunk in the frame's content
}

// Extent is a range of a file.
type Extent struct {
	Off, Len int64
	Hole     bool
	Chunk    Chunk // where its content is, unless it is a hole
	Skip     int   // bytes of the chunk before the extent's
}

// RangeSum is the digest of the range number N of a file, digest.RangeSize long.
type RangeSum struct {
	N   int64
	Sum digest.Sum
}

// Entry is what a layer says of a path.
type Entry struct {
	tree.Entry
	Gone bool // nothing is at the path any more; only Path counts
	// Cut is the length beyond which content of older layers does not count;
	// at most Size. Of files that are not fresh only.
	Cut     int64
	Extents []Extent
	Sums    []RangeSum
}

// The types of records.
const (
	recGone byte = iota + 1
	recEntry
	recPacks
	recEnd
)

// Flags of an entry.
const (
	flagFresh = 1 << iota
	flagCut
	flagsKnown = flagFresh | flagCut
)

// The kinds of extents.
const (
	extentHole byte = iota
	extentWhole
	extentPart
)

const (
	max31 = 1<<31 - 1
	max32 = 1<<32 - 1
	max63 = 1<<63 - 1
)

// encode appends the entry's record; pack gives the number of a pack.
func (e *Entry) encode(b []byte, pack func(digest.Sum) uint64) []byte {
	if e.Gone {
		return wire.AppendString(append(b, recGone), e.Path)
	}
	b = wire.AppendString(append(b, recEntry), e.Path)
	flags := uint64(0)
	if e.Fresh {
		flags |= flagFresh
	}
	if e.Kind == tree.File && !e.Fresh && e.Cut < e.Size {
		flags |= flagCut
	}
	b = append(binary.AppendUvarint(b, flags), byte(e.Kind))
	if e.Kind != tree.Link {
		b = binary.AppendUvarint(e.Meta.Append(b), uint64(e.Flags))
	}
	switch e.Kind {
	case tree.Link, tree.Symlink:
		return wire.AppendString(b, e.Target)
	case tree.Node:
		return binary.AppendUvarint(b, e.Rdev)
	case tree.File:
	default:
		return b
	}
	b = binary.AppendUvarint(b, uint64(e.Size))
	if flags&flagCut != 0 {
		b = binary.AppendUvarint(b, uint64(e.Cut))
	}
	b = binary.AppendUvarint(b, uint64(len(e.Extents)))
	var end int64
	for i := range e.Extents {
		b = e.Extents[i].encode(b, end, pack)
		end = e.Extents[i].Off + e.Extents[i].Len
	}
	b = binary.AppendUvarint(b, uint64(len(e.Sums)))
	next := int64(0)
	for _, s := range e.Sums {
		b = append(binary.AppendUvarint(b, uint64(s.N-next)), s.Sum[:]...)
		next = s.N + 1
	}
	return b
}

func (x *Extent) encode(b []byte, end int64, pack func(digest.Sum) uint64) []byte {
	b = binary.AppendUvarint(b, uint64(x.Off-end))
	b = binary.AppendUvarint(b, uint64(x.Len))
	if x.Hole {
		return append(b, extentHole)
	}
	c := &x.Chunk
	if x.Skip == 0 && int(x.Len) == c.Len {
		b = append(b, extentWhole)
	} else {
		b = binary.AppendUvarint(binary.AppendUvarint(append(b, extentPart), uint64(x.Skip)), uint64(c.Len))
	}
	b = binary.AppendUvarint(b, pack(c.Pack))
	b = binary.AppendUvarint(b, uint64(c.Frame))
	b = binary.AppendUvarint(b, uint64(c.Stored))
	b = binary.AppendUvarint(b, uint64(c.Plain))
	b = binary.AppendUvarint(b, uint64(c.At))
	return append(b, c.Sum[:]...)
}

// decoder reads entries from one payload.
type decoder struct {
	wire.Decoder
	packs []Pack
}

// entry reads what follows the type of a record.
func (d *decoder) entry(kind byte) *Entry {
	e := &Entry{Gone: kind == recGone}
	e.Path = string(d.Bytes(1 << 20))
	if d.Failed() {
		return e
	}
	if e.Path != "" && !tree.ValidPath(e.Path) || e.Path == "" && e.Gone {
		d.Fail(fmt.Sprintf("%.200q is not a path inside the tree", e.Path))
		return e
	}
	if e.Gone {
		return e
	}
	flags := d.Uint(flagsKnown)
	e.Fresh = flags&flagFresh != 0
	e.Kind = tree.Kind(d.Byte())
	if e.Kind != tree.Link {
		e.Meta = tree.DecodeMeta(&d.Decoder)
		e.Flags = uint32(d.Uint(max32))
	}
	switch e.Kind {
	case tree.Link:
		e.Target = string(d.Bytes(1 << 20))
		if !d.Failed() && (!tree.ValidPath(e.Target) || tree.Order(e.Target, e.Path) >= 0) {
			d.Fail(fmt.Sprintf("%.200q is a link to %.200q, which does not come before it", e.Path, e.Target))
		}
	case tree.Symlink:
		e.Target = string(d.Bytes(4095))
		if !d.Failed() && (e.Target == "" || containsZero(e.Target)) {
			d.Fail(fmt.Sprintf("the symbolic link %.200q has no valid target", e.Path))
		}
	case tree.Node:
		e.Rdev = d.Uint(max63)
	case tree.File:
		d.file(e, flags)
	case tree.Dir:
	default:
		d.Fail(fmt.Sprintf("kind %d is not known", e.Kind))
	}
	if !d.Failed() {
		d.check(e)
	}
	return e
}

func containsZero(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

// check refuses what contradicts itself.
func (d *decoder) check(e *Entry) {
	want := map[tree.Kind][]uint32{
		tree.Dir: {unix.S_IFDIR}, tree.File: {unix.S_IFREG}, tree.Symlink: {unix.S_IFLNK},
		tree.Node: {unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK},
	}[e.Kind]
	ok := e.Kind == tree.Link
	for _, k := range want {
		ok = ok || e.Meta.Mode&unix.S_IFMT == k
	}
	if !ok {
		d.Fail(fmt.Sprintf("%.200q is of another kind than its mode says", e.Path))
	}
	if e.Path == "" && e.Kind != tree.Dir {
		d.Fail("its root is not a directory")
	}
}

func (d *decoder) file(e *Entry, flags uint64) {
	e.Size = int64(d.Uint(max63))
	e.Cut = e.Size
	if flags&flagCut != 0 {
		e.Cut = int64(d.Uint(uint64(e.Size)))
	}
	if e.Fresh {
		e.Cut = 0
	}
	n := d.Uint(uint64(len(d.Rest)))
	if n > 0 {
		e.Extents = make([]Extent, 0, min(n, 1<<16))
	}
	var end int64
	for i := uint64(0); i < n && !d.Failed(); i++ {
		x := d.extent(end, e.Size)
		end = x.Off + x.Len
		e.Extents = append(e.Extents, x)
	}
	n = d.Uint(uint64(len(d.Rest)))
	next := int64(0)
	last := (e.Size + digest.RangeSize - 1) / digest.RangeSize
	for i := uint64(0); i < n && !d.Failed(); i++ {
		s := RangeSum{N: next + int64(d.Uint(max63/digest.RangeSize))}
		copy(s.Sum[:], d.Fixed(len(s.Sum)))
		if !d.Failed() && s.N >= last {
			d.Fail(fmt.Sprintf("%.200q has a digest behind its end", e.Path))
		}
		next = s.N + 1
		e.Sums = append(e.Sums, s)
	}
}

func (d *decoder) extent(end, size int64) Extent {
	x := Extent{Off: int64(d.Uint(max63))}
	if x.Off > max63-end {
		d.Fail("an extent lies behind the largest offset")
		return x
	}
	x.Off += end
	x.Len = int64(d.Uint(max63))
	if !d.Failed() && (x.Len == 0 || x.Len > size-x.Off || x.Off > size) {
		d.Fail("an extent lies behind the end of its file")
		return x
	}
	kind := d.Byte()
	c := &x.Chunk
	switch kind {
	case extentHole:
		x.Hole = true
		return x
	case extentWhole:
		if x.Len > MaxChunk {
			d.Fail("an extent is too long")
			return x
		}
		c.Len = int(x.Len)
	case extentPart:
		x.Skip = int(d.Uint(MaxChunk))
		c.Len = int(d.Uint(MaxChunk))
		if !d.Failed() && int64(c.Len-x.Skip) < x.Len {
			d.Fail("an extent is longer than its chunk")
			return x
		}
	default:
		d.Fail(fmt.Sprintf("extents of kind %d are not known", kind))
		return x
	}
	pack := d.Uint(max31)
	c.Frame = int64(d.Uint(1 << 40))
	c.Stored = int(d.Uint(2 * MaxChunk))
	c.Plain = int(d.Uint(MaxChunk))
	c.At = int(d.Uint(MaxChunk))
	copy(c.Sum[:], d.Fixed(len(c.Sum)))
	switch {
	case d.Failed():
	case pack >= uint64(len(d.packs)):
		d.Fail("an extent names a pack that is not listed")
	case c.Stored == 0 || c.Frame > d.packs[pack].Size-int64(c.Stored):
		d.Fail("an extent lies behind the end of its pack")
	case c.Len > c.Plain-c.At:
		d.Fail("an extent lies behind the end of its frame")
	default:
		c.Pack = d.packs[pack].Sum
	}
	return x
}

func damaged(reason string) error {
	return &api.Error{Kind: api.Damaged, Op: "read index", Reason: reason, Next: "drover verify tells which commits are affected; push them again from a node that has them"}
}
