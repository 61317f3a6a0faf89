package layer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
	"github.com/drover-data/drover/tree/treetest"
)

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func must(t fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// store keeps packs in memory.
type store struct {
	mu     sync.Mutex
	packs  map[digest.Sum][]byte
	leaves map[string][]byte
	chunks map[digest.Sum]layer.Chunk
}

func newStore() *store {
	return &store{packs: map[digest.Sum][]byte{}, leaves: map[string][]byte{}, chunks: map[digest.Sum]layer.Chunk{}}
}

func (s *store) ReadAt(_ context.Context, pack digest.Sum, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := copy(p, s.packs[pack][off:]); n < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (s *store) Get(path string, n int64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.leaves[fmt.Sprint(path, n)])
}

func (s *store) Put(path string, n int64, leaves []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaves[fmt.Sprint(path, n)] = bytes.Clone(leaves)
}

func (s *store) emit(p layer.Pack, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs[p.Sum] = b
	return nil
}

func (s *store) size(sum digest.Sum) int64 { return int64(len(s.packs[sum])) }

func (s *store) known(sum digest.Sum, n int) (layer.Chunk, bool) {
	c, ok := s.chunks[sum]
	return c, ok && c.Len == n
}

// learn remembers the chunks of an index.
func (s *store) learn(t fataler, index []byte) {
	src := read(t, index)
	for {
		e, err := src.Next()
		if err == io.EOF {
			return
		}
		must(t, err)
		for _, x := range e.Extents {
			if !x.Hole {
				s.chunks[x.Chunk.Sum] = x.Chunk
			}
		}
	}
}

func read(t fataler, index []byte) layer.Source {
	r, err := layer.NewReader(bytes.NewReader(index))
	must(t, err)
	return r
}

// merged lays indexes over each other, the oldest first in the list.
func merged(t fataler, whole bool, oldestFirst ...[]byte) layer.Source {
	var list []layer.Source
	for i := len(oldestFirst) - 1; i >= 0; i-- {
		list = append(list, read(t, oldestFirst[i]))
	}
	return layer.Merge(whole, list...)
}

func snap(dir string) storage.Snapshot { return storage.Snapshot{ID: filepath.Base(dir), Dir: dir} }

// build makes the layer that turns base ("" for nothing) into dir.
func (s *store) build(t fataler, base, dir string, parent layer.Source) []byte {
	t.Helper()
	b, err := layer.Build(context.Background(), layer.Config{
		Spool: os.TempDir(), PackSize: 1 << 20, Workers: 2, Parent: parent, Known: s.known, KnownSize: s.size, Leaves: s, Emit: s.emit,
	})
	must(t, err)
	var from *storage.Snapshot
	if base != "" {
		x := snap(base)
		from = &x
	}
	must(t, tree.Walk(context.Background(), from, snap(dir), nil, b))
	var out bytes.Buffer
	_, err = b.Finish(&out)
	must(t, err)
	s.learn(t, out.Bytes())
	return out.Bytes()
}

func (s *store) restore(t fataler, r layer.Restore, src layer.Source, dir string) error {
	t.Helper()
	to, err := tree.OpenTarget(dir, "", storage.Full(), false)
	must(t, err)
	r.Packs, r.Workers = s, 2
	err = r.Run(context.Background(), src, to)
	must(t, to.Close())
	return err
}

func same(t fataler, a, b string) {
	t.Helper()
	list, err := tree.Compare(a, b, storage.Full())
	must(t, err)
	if len(list) > 0 {
		t.Fatalf("%s and %s differ: %v", a, b, list)
	}
}

func root(t fataler, src layer.Source) layer.Content {
	t.Helper()
	c, err := layer.Root(src)
	must(t, err)
	return c
}

func TestEverything(t *testing.T) {
	dir := t.TempDir()
	v := func(i int) string { return filepath.Join(dir, fmt.Sprint("v", i)) }
	treetest.Populate(t, v(0))
	s := newStore()
	indexes := [][]byte{s.build(t, "", v(0), nil)}
	for i := 1; i < 4; i++ {
		must(t, os.Mkdir(v(i), 0o700))
		must(t, tree.Copy(context.Background(), v(i-1), v(i), false))
		treetest.Change(t, v(i), i)
		indexes = append(indexes, s.build(t, v(i-1), v(i), merged(t, true, indexes...)))
		out := filepath.Join(dir, fmt.Sprint("out", i))
		must(t, os.Mkdir(out, 0o700))
		must(t, s.restore(t, layer.Restore{}, merged(t, true, indexes...), out))
		same(t, v(i), out)
		other := newStore()
		if a, b := root(t, merged(t, true, indexes...)), root(t, read(t, other.build(t, "", v(i), nil))); a != b {
			t.Fatalf("version %d: content %+v by its history, %+v by itself", i, a, b)
		}
	}
}

// TestRandomHistories: whatever was changed, merged and laid over what, what
// comes out is what went in, and its digest does not depend on the way.
func TestRandomHistories(t *testing.T) {
	top := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		defer os.RemoveAll(dir)
		v := func(i int) string { return filepath.Join(dir, fmt.Sprint("v", i)) }
		must(t, os.MkdirAll(v(0), 0o755))
		treetest.Mutate(t, v(0), 10)
		s := newStore()
		layers := [][]byte{s.build(t, "", v(0), nil)}
		count := rapid.IntRange(1, 4).Draw(t, "versions")
		at := []int{0} // version that the layers up to each make
		for i := 1; i <= count; i++ {
			must(t, os.Mkdir(v(i), 0o700))
			must(t, tree.Copy(context.Background(), v(i-1), v(i), false))
			treetest.Mutate(t, v(i), 6)
			layers = append(layers, s.build(t, v(i-1), v(i), merged(t, true, layers...)))
			at = append(at, i)
			if len(layers) > 2 && rapid.Bool().Draw(t, "merge") {
				from := rapid.IntRange(0, len(layers)-2).Draw(t, "from")
				one := s.rewrite(t, merged(t, from == 0, layers[from:]...), v(i), func(c *layer.Chunk) bool { return c.Sum[0]%2 == 0 })
				layers, at = append(layers[:from:from], one), append(at[:from:from], i)
			}
			whole := root(t, merged(t, true, layers...))
			one := newStore().build(t, "", v(i), nil)
			if alone := root(t, read(t, one)); alone != whole {
				t.Fatalf("content %+v by its history, %+v by itself: %s", whole, alone, differing(t, merged(t, true, layers...), read(t, one)))
			}
		}
		out := filepath.Join(dir, "out")
		must(t, os.Mkdir(out, 0o700))
		must(t, s.restore(t, layer.Restore{}, merged(t, true, layers...), out))
		same(t, v(count), out)
		// And as a difference to an earlier version.
		j := rapid.IntRange(0, len(layers)-1).Draw(t, "base")
		if j == len(layers)-1 {
			return
		}
		on := filepath.Join(dir, "on")
		must(t, os.Mkdir(on, 0o700))
		must(t, tree.Copy(context.Background(), v(at[j]), on, false))
		base, err := tree.OpenFiles(context.Background(), v(at[j]))
		must(t, err)
		defer base.Close()
		r := layer.Restore{Base: base, Old: merged(t, true, layers[:j+1]...)}
		if rapid.Bool().Draw(t, "leaves") {
			r.Leaves = s
		}
		must(t, s.restore(t, r, merged(t, false, layers[j+1:]...), on))
		same(t, v(count), on)
	})
}

// rewrite makes one layer of a merged source, storing some content anew.
func (s *store) rewrite(t fataler, src layer.Source, dir string, some func(*layer.Chunk) bool) []byte {
	b, err := layer.Build(context.Background(), layer.Config{Spool: os.TempDir(), PackSize: 1 << 20, Workers: 2, KnownSize: s.size, Emit: s.emit})
	must(t, err)
	files, err := tree.OpenFiles(context.Background(), dir)
	must(t, err)
	defer files.Close()
	for {
		e, err := src.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if e.Kind != tree.File || e.Gone {
			must(t, b.Put(e, nil, nil))
			continue
		}
		f, err := files.Open(e.Path)
		must(t, err)
		must(t, b.Put(e, f, some))
		must(t, f.Close())
	}
	var out bytes.Buffer
	_, err = b.Finish(&out)
	must(t, err)
	return out.Bytes()
}

// list gives every entry of a source in words, for comparing.
func list(t fataler, src layer.Source) []string {
	var out []string
	zeros := digest.NewZeros()
	for {
		e, err := src.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		out = append(out, fmt.Sprintf("%q %+v %x", e.Path, e.Entry, layer.FileSum(zeros, e)))
	}
}

// differing gives the first entries in which two whole trees differ.
func differing(t fataler, a, b layer.Source) string {
	x, y := list(t, a), list(t, b)
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return x[i] + "\n" + y[i]
		}
	}
	return fmt.Sprint(len(x), " and ", len(y), " entries")
}
