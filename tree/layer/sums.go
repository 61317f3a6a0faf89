package layer

import (
	"cmp"
	"io"
	"slices"

	"github.com/drover-data/drover/tree/digest"
)

const sumSize = len(digest.Sum{})

// span is a range of a file.
type span struct{ from, to int64 }

// rangeLen is the length of range n of a file.
func rangeLen(size, n int64) int64 { return min(digest.RangeSize, size-n*digest.RangeSize) }

// leafCount is how many leaves n bytes have.
func leafCount(n int64) int64 { return (n + digest.LeafSize - 1) / digest.LeafSize }

// rangeSum computes the digest of range n of a file of which only spans can
// differ from what it was; all of it is read where the leaves of before are
// not known for certain.
func rangeSum(cache Leaves, content io.ReaderAt, e, old *Entry, n int64, spans []span) (digest.Sum, error) {
	start, length := n*digest.RangeSize, rangeLen(e.Size, n)
	leaves := make([]byte, leafCount(length)*int64(sumSize))
	todo := make([]bool, leafCount(length))
	if was, ok := knownLeaves(cache, e.Path, old, n); ok {
		copy(leaves, was)
		for i := range todo {
			todo[i] = (i+1)*sumSize > len(was)
		}
		for _, s := range spans {
			for i := (s.from - start) / digest.LeafSize; i < leafCount(s.to-start) && i < int64(len(todo)); i++ {
				todo[i] = true
			}
		}
	} else {
		for i := range todo {
			todo[i] = true
		}
	}
	buf := make([]byte, pieceSize)
	for i := 0; i < len(todo); {
		if !todo[i] {
			i++
			continue
		}
		j := i
		for j < len(todo) && todo[j] && (j-i) < pieceSize/digest.LeafSize {
			j++
		}
		from := int64(i) * digest.LeafSize
		part := buf[:min(int64(j)*digest.LeafSize, length)-from]
		if _, err := content.ReadAt(part, start+from); err != nil {
			return digest.Sum{}, err
		}
		copy(leaves[i*sumSize:], digest.Leaves(nil, part))
		i = j
	}
	if cache != nil && len(todo) > 64 {
		cache.Put(e.Path, n, leaves)
	}
	return digest.Node(leaves), nil
}

// knownLeaves gives the leaves of a range as they were, if what the cache says
// has the digest that the range had.
func knownLeaves(cache Leaves, path string, old *Entry, n int64) ([]byte, bool) {
	if cache == nil || old == nil {
		return nil, false
	}
	i, found := slices.BinarySearchFunc(old.Sums, n, func(s RangeSum, n int64) int { return cmp.Compare(s.N, n) })
	if !found {
		return nil, false
	}
	leaves := cache.Get(path, n)
	return leaves, len(leaves) > 0 && digest.Node(leaves) == old.Sums[i].Sum
}

// fileSums makes the digests of a fresh file's ranges from the leaves of its
// pieces, which come in order and begin with a leaf.
type fileSums struct {
	zeros  *digest.Zeros
	pieces []leafRun
}

type leafRun struct {
	first  int64 // number of the first leaf in the file
	leaves []byte
}

func (f *fileSums) add(off int64, leaves []byte) {
	f.pieces = append(f.pieces, leafRun{off / digest.LeafSize, leaves})
}

// finish gives the digests of all ranges that have content, and begins anew.
func (f *fileSums) finish(size int64, each func(n int64, leaves []byte)) []RangeSum {
	var out []RangeSum
	for i := 0; i < len(f.pieces); {
		n := f.pieces[i].first / digest.Fan
		length := rangeLen(size, n)
		leaves := make([]byte, leafCount(length)*int64(sumSize))
		next := n * digest.Fan
		fill := func(to int64) {
			for ; next < to; next++ {
				s := f.zeros.Leaf(int(min(digest.LeafSize, size-next*digest.LeafSize)))
				copy(leaves[(next-n*digest.Fan)*int64(sumSize):], s[:])
			}
		}
		for ; i < len(f.pieces) && f.pieces[i].first/digest.Fan == n; i++ {
			p := f.pieces[i]
			fill(p.first)
			copy(leaves[(p.first-n*digest.Fan)*int64(sumSize):], p.leaves)
			next = p.first + int64(len(p.leaves)/sumSize)
		}
		fill(n*digest.Fan + leafCount(length))
		sum := digest.Node(leaves)
		if sum != f.zeros.Range(length) {
			out = append(out, RangeSum{n, sum})
			each(n, leaves)
		}
	}
	f.pieces = f.pieces[:0]
	return out
}
