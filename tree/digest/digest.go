// Package digest computes the content digest of docs/format/remote.md: a Merkle
// root that depends on a tree's content alone. It knows no files and no remotes.
package digest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/wire"
)

// Sum is a SHA-256.
type Sum [sha256.Size]byte

// Sizes of the Merkle tree's parts.
const (
	LeafSize  = 16 << 10       // bytes of a file in a leaf
	Fan       = 256            // children of a node
	RangeSize = Fan * LeafSize // bytes of a file below a level-1 node
	levels    = 8              // 2^63 bytes are 2^41 ranges: six levels of nodes above them
)

// What comes first in everything that is hashed, so that nothing can be taken
// for something else.
const (
	domainLeaf byte = iota
	domainNode
	domainFile
	domainEntry
	domainDir
)

// Leaf is the digest of at most LeafSize bytes.
func Leaf(data []byte) Sum {
	h := sha256.New()
	h.Write([]byte{domainLeaf})
	h.Write(data)
	var s Sum
	h.Sum(s[:0])
	return s
}

// Node is the digest over at most Fan digests, written one after the other.
func Node(children []byte) Sum {
	h := sha256.New()
	h.Write([]byte{domainNode})
	h.Write(children)
	var s Sum
	h.Sum(s[:0])
	return s
}

// Leaves appends the digests of data's leaves.
func Leaves(to, data []byte) []byte {
	for len(data) > 0 {
		n := min(len(data), LeafSize)
		s := Leaf(data[:n])
		to = append(to, s[:]...)
		data = data[n:]
	}
	return to
}

// Data is the digest of at most RangeSize bytes: a node over their leaves. It is
// how ranges of files and chunks are named.
func Data(data []byte) Sum { return Node(Leaves(make([]byte, 0, 32*(len(data)/LeafSize+1)), data)) }

// Zeros knows the digests of what is nothing but zeros.
type Zeros struct {
	leaf   Sum         // of a whole leaf
	levels [levels]Sum // of whole nodes, level 1 first
}

// NewZeros computes them once.
func NewZeros() *Zeros {
	z := &Zeros{leaf: Leaf(make([]byte, LeafSize))}
	below := z.leaf
	for i := range z.levels {
		all := make([]byte, 0, Fan*len(below))
		for range Fan {
			all = append(all, below[:]...)
		}
		z.levels[i] = Node(all)
		below = z.levels[i]
	}
	return z
}

// Leaf is the digest of n zeros, at most LeafSize.
func (z *Zeros) Leaf(n int) Sum {
	if n == LeafSize {
		return z.leaf
	}
	return Leaf(make([]byte, n))
}

// Range is the digest of n zeros, at most RangeSize.
func (z *Zeros) Range(n int64) Sum {
	if n == RangeSize {
		return z.levels[0]
	}
	var all []byte
	for ; n >= LeafSize; n -= LeafSize {
		all = append(all, z.leaf[:]...)
	}
	if n > 0 {
		s := z.Leaf(int(n))
		all = append(all, s[:]...)
	}
	return Node(all)
}

// File folds the digests of a file's ranges, given in order.
type File struct {
	zeros *Zeros
	// open are the children of the node that is being filled at each level.
	open [levels][]byte
}

// NewFile begins a file.
func NewFile(z *Zeros) *File { return &File{zeros: z} }

// Add takes the digest of the next range.
func (f *File) Add(s Sum) { f.push(0, s) }

func (f *File) push(level int, s Sum) {
	f.open[level] = append(f.open[level], s[:]...)
	if len(f.open[level]) == Fan*len(s) {
		up := Node(f.open[level])
		f.open[level] = f.open[level][:0]
		f.push(level+1, up)
	}
}

// AddZeros takes n whole ranges of zeros, in few steps however many they are.
func (f *File) AddZeros(n int64) {
	for n > 0 {
		level, step := 0, int64(1)
		for level+1 < levels && len(f.open[level]) == 0 && step*Fan <= n {
			level, step = level+1, step*Fan
		}
		f.push(level, f.zeros.levels[level])
		n -= step
	}
}

// Sum closes the file. size is its length in bytes.
func (f *File) Sum(size int64) Sum {
	root := Leaf(nil)
	top := -1
	for i := range f.open {
		if len(f.open[i]) > 0 {
			top = i
		}
	}
	for i := 0; i <= top; i++ {
		if i == top && len(f.open[i]) == len(root) {
			copy(root[:], f.open[i])
			break
		}
		if len(f.open[i]) == 0 {
			continue
		}
		s := Node(f.open[i])
		if i == top {
			root = s
			break
		}
		f.open[i+1] = append(f.open[i+1], s[:]...)
	}
	h := sha256.New()
	h.Write(binary.AppendUvarint([]byte{domainFile}, uint64(size)))
	h.Write(root[:])
	var s Sum
	h.Sum(s[:0])
	return s
}

// Entry is the digest of what is not a directory; content is the digest of a
// file's content and ignored for everything else.
func Entry(e *tree.Entry, content Sum) Sum {
	b := []byte{domainEntry, byte(e.Kind)}
	if e.Kind != tree.Link {
		b = binary.AppendUvarint(e.Meta.Append(b), uint64(e.Flags))
	}
	switch e.Kind {
	case tree.File:
		b = append(b, content[:]...)
	case tree.Link, tree.Symlink:
		b = wire.AppendString(b, e.Target)
	case tree.Node:
		b = binary.AppendUvarint(b, e.Rdev)
	}
	return sha256.Sum256(b)
}

// Tree folds the entries of a whole tree, given in tree order.
type Tree struct {
	stack   []folder
	Entries int64 // how many there were, the root not counted
	Bytes   int64 // sum of files' sizes
}

type folder struct {
	path string
	name string
	sum  hash.Hash
}

// Dir begins a directory; the root has the path "".
func (t *Tree) Dir(e *tree.Entry) {
	t.leave(e.Path)
	_, name := tree.SplitPath(e.Path)
	h := sha256.New()
	h.Write([]byte{domainDir})
	h.Write(binary.AppendUvarint(e.Meta.Append(nil), uint64(e.Flags)))
	t.stack = append(t.stack, folder{e.Path, name, h})
	if e.Path != "" {
		t.Entries++
	}
}

// Other takes what is not a directory, with its digest.
func (t *Tree) Other(e *tree.Entry, s Sum) {
	t.leave(e.Path)
	_, name := tree.SplitPath(e.Path)
	t.child(name, s)
	t.Entries++
	t.Bytes += e.Size
}

func (t *Tree) child(name string, s Sum) {
	h := t.stack[len(t.stack)-1].sum
	h.Write(wire.AppendString(nil, name))
	h.Write(s[:])
}

// leave closes directories that path is not in.
func (t *Tree) leave(path string) {
	for len(t.stack) > 0 {
		top := t.stack[len(t.stack)-1]
		if path != top.path && tree.Below(path, top.path) {
			return
		}
		t.close()
	}
}

func (t *Tree) close() Sum {
	top := t.stack[len(t.stack)-1]
	t.stack = t.stack[:len(t.stack)-1]
	var s Sum
	top.sum.Sum(s[:0])
	if len(t.stack) > 0 {
		t.child(top.name, s)
	}
	return s
}

// Sum closes the tree: the digest of its root directory.
func (t *Tree) Sum() Sum {
	var s Sum
	for len(t.stack) > 0 {
		s = t.close()
	}
	return s
}
