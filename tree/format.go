// Package tree is the portable form of a directory: the stream "drover-tree-1"
// that carries everything a Linux file system keeps, in full or as the
// difference of two snapshots, and the comparison of two directories. It works
// on directories and must not know what a volume, a backend or a node is.
// docs/format/stream.md describes the stream.
package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/tree/wire"
)

// Magic is how every stream begins.
const Magic = "drover-tree-1\n\x00\x00"

const (
	blockHead  = wire.Head
	blockFull  = wire.Full
	maxBlock   = wire.MaxBlock
	maxData    = 128 << 10 // file content in one record
	maxPath    = 1 << 20   // longest path; deeper trees are refused
	digestSize = 32
)

// op is the first byte of a record.
type op byte

const (
	opBegin   op = iota + 1
	opUnflag     // path: clear inode flags
	opDelete     // path: remove, with everything below
	opDir        // path: make a directory
	opFile       // path, size: make an empty file of that size, in place of what is there
	opChange     // path, size: cut or extend a file that is there
	opData       // path, offset, bytes
	opHole       // path, offset, length
	opLink       // path, first path of the same file
	opSymlink    // path, target
	opNode       // path, type, device number
	opMeta       // path, metadata; "" is the tree's root
	opFlags      // path, inode flags
	opEnd        // digest
	opLast    = opEnd
)

// Meta is what an entry has besides name and content.
type Meta struct {
	Mode   uint32 // type and permission bits as in st_mode
	UID    uint32
	GID    uint32
	Sec    int64 // modification time
	Nsec   uint32
	Xattrs []Xattr // sorted by name; access lists are among them
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

func (m Meta) equal(o Meta) bool {
	return m.Mode == o.Mode && m.UID == o.UID && m.GID == o.GID && m.Sec == o.Sec && m.Nsec == o.Nsec && sameXattrs(m.Xattrs, o.Xattrs)
}

func sameXattrs(a, b []Xattr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || !bytes.Equal(a[i].Value, b[i].Value) {
			return false
		}
	}
	return true
}

// record is one step of a stream. Which fields count depends on op.
type record struct {
	op     op
	path   string
	target string // link, symlink; base of begin
	off    int64  // data, hole; version of begin
	size   int64  // file, change, hole; device number of node; flags
	data   []byte // data; digest of end
	meta   Meta   // meta; of node only Mode
}

// encode appends a record.
func (r *record) encode(b []byte) []byte {
	b = append(b, byte(r.op))
	if r.op == opEnd {
		return append(b, r.data...)
	}
	b = wire.AppendString(b, r.path)
	switch r.op {
	case opBegin:
		b = binary.AppendUvarint(b, uint64(r.off))
		b = wire.AppendString(b, r.target)
	case opFile, opChange, opFlags:
		b = binary.AppendUvarint(b, uint64(r.size))
	case opData:
		b = binary.AppendUvarint(b, uint64(r.off))
		b = wire.AppendString(b, r.data)
	case opHole:
		b = binary.AppendUvarint(b, uint64(r.off))
		b = binary.AppendUvarint(b, uint64(r.size))
	case opLink, opSymlink:
		b = wire.AppendString(b, r.target)
	case opNode:
		b = binary.AppendUvarint(b, uint64(r.meta.Mode))
		b = binary.AppendUvarint(b, uint64(r.size))
	case opMeta:
		b = r.meta.Append(b)
	}
	return b
}

// Append appends it as streams and indexes hold it.
func (m Meta) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(m.Mode))
	b = binary.AppendUvarint(b, uint64(m.UID))
	b = binary.AppendUvarint(b, uint64(m.GID))
	b = binary.AppendVarint(b, m.Sec)
	b = binary.AppendUvarint(b, uint64(m.Nsec))
	b = binary.AppendUvarint(b, uint64(len(m.Xattrs)))
	for _, x := range m.Xattrs {
		b = wire.AppendString(b, x.Name)
		b = wire.AppendString(b, x.Value)
	}
	return b
}

// decoder reads records from one block.
type decoder struct{ wire.Decoder }

func newDecoder(payload []byte) decoder { return decoder{wire.Decoder{Rest: payload}} }

// err is the first failure.
func (d *decoder) err() error {
	if !d.Failed() {
		return nil
	}
	return damaged(d.Reason)
}

const (
	max32 = 1<<32 - 1
	max63 = 1<<63 - 1
)

// DecodeMeta reads what Append wrote.
func DecodeMeta(d *wire.Decoder) Meta {
	m := Meta{Mode: uint32(d.Uint(max32)), UID: uint32(d.Uint(max32)), GID: uint32(d.Uint(max32))}
	m.Sec, m.Nsec = d.Int(), uint32(d.Uint(999_999_999))
	count := d.Uint(max32)
	last := ""
	for i := uint64(0); i < count && !d.Failed(); i++ {
		x := Xattr{string(d.Bytes(255)), bytes.Clone(d.Bytes(64 << 10))}
		if !d.Failed() && (x.Name <= last || !carried(x.Name)) {
			d.Fail(fmt.Sprintf("it has the attribute %q", x.Name))
			return m
		}
		last = x.Name
		m.Xattrs = append(m.Xattrs, x)
	}
	return m
}

// next reads a record; false at the end of the block or at an error. data
// belongs to the block.
func (d *decoder) next(r *record) bool {
	*r = record{}
	if d.Failed() || len(d.Rest) == 0 {
		return false
	}
	r.op, d.Rest = op(d.Rest[0]), d.Rest[1:]
	if r.op < opBegin || r.op > opLast {
		d.Fail(fmt.Sprintf("record type %d is not known", r.op))
		return false
	}
	if r.op == opEnd {
		if len(d.Rest) != digestSize {
			d.Fail("its end is not at the end of a block")
			return false
		}
		r.data, d.Rest = d.Rest, nil
		return true
	}
	r.path = string(d.Bytes(maxPath))
	switch r.op {
	case opBegin:
		r.off, r.target = int64(d.Uint(max32)), string(d.Bytes(1024))
	case opFile, opChange, opFlags:
		r.size = int64(d.Uint(max63))
	case opData:
		r.off, r.data = int64(d.Uint(max63)), d.Bytes(maxData)
		if r.off > max63-maxData {
			d.Fail("data lies behind the largest offset")
		}
	case opHole:
		r.off, r.size = int64(d.Uint(max63)), int64(d.Uint(max63))
		if r.off > max63-r.size {
			d.Fail("a hole lies behind the largest offset")
		}
	case opLink, opSymlink:
		r.target = string(d.Bytes(maxPath))
	case opNode:
		r.meta.Mode, r.size = uint32(d.Uint(max32)), int64(d.Uint(max63))
	case opMeta:
		r.meta = DecodeMeta(&d.Decoder)
	}
	if !d.Failed() {
		d.check(r)
	}
	return !d.Failed()
}

// check refuses paths that could mean anything but an entry of the tree.
func (d *decoder) check(r *record) {
	if r.path == "" {
		if r.op != opBegin && r.op != opMeta && r.op != opFlags && r.op != opUnflag {
			d.Fail("a record has no path")
		}
	} else if !validPath(r.path) {
		d.Fail(fmt.Sprintf("%.200q is not a path inside the tree", r.path))
	}
	if r.op == opLink && !validPath(r.target) {
		d.Fail(fmt.Sprintf("%.200q is not a path inside the tree", r.target))
	}
	if r.op == opSymlink && (r.target == "" || len(r.target) > 4095 || bytes.IndexByte([]byte(r.target), 0) >= 0) {
		d.Fail(fmt.Sprintf("the symbolic link %.200q has no valid target", r.path))
	}
}

// validPath: names that are not empty, "." or "..", joined by single slashes.
func validPath(p string) bool {
	start := 0
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] == 0 {
			return false
		}
		if i == len(p) || p[i] == '/' {
			name := p[start:i]
			if name == "" || name == "." || name == ".." {
				return false
			}
			start = i + 1
		}
	}
	return len(p) > 0
}

// splitBlock takes one block off b; need is how many bytes it takes in all
// when there are too few.
func splitBlock(b []byte) (payload []byte, length, need int, err error) {
	payload, length, need, reason := wire.Split(b)
	if reason != "" {
		err = damaged(reason)
	}
	return payload, length, need, err
}

func damaged(why string) error {
	return &api.Error{Kind: api.Damaged, Op: "receive snapshot", Reason: "the portable stream cannot be read: " + why, Next: "send it again from its beginning"}
}
