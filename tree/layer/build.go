package layer

import (
	"context"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
)

// Sizes of what is read and stored, in bytes.
const (
	pieceSize = 128 << 10 // content is cut at multiples of this
	frameSize = 1 << 20   // a frame is closed when it holds this much
	// maxSeen bounds the chunks of one layer that are remembered to be found again.
	maxSeen = 1 << 20
)

// Leaves remembers digests of leaves between commits, so that a range of which
// little changed need not be read whole. What it gives is checked against the
// range's digest; it may forget and be wrong. Safe for concurrent use.
type Leaves interface {
	Get(path string, n int64) []byte
	Put(path string, n int64, leaves []byte)
}

// Config says how a layer is built.
type Config struct {
	Spool    string // directory for temporary files
	PackSize int    // bytes; a pack is closed when it holds this much
	Seal     Sealer // nil: in clear
	Workers  int
	// Parent is the whole tree that the layer changes; nil: it holds a whole tree.
	Parent Source
	// Known finds a chunk that is stored already; nil knows none.
	Known func(digest.Sum, int) (Chunk, bool)
	// KnownSize is the size of a pack that Known or Put entries name.
	KnownSize func(digest.Sum) int64
	Leaves    Leaves // nil remembers nothing
	// Emit takes a finished pack, which is its to keep.
	Emit func(Pack, []byte) error
}

// Builder makes a layer of what a walk finds. It is a tree.Visitor.
type Builder struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	group  *errgroup.Group
	codec  *codec
	out    *Writer
	packer packer
	zeros  *digest.Zeros
	parent *Entry // where Parent stands; nil at its end

	frame  *frame
	hashed chan *frame // in order; each is waited for
	stored chan *frame
	slots  chan struct{} // bounds the frames in memory
	hashes chan struct{} // bounds the ranges in memory
	seen   map[digest.Sum]*piece
	file   fileSums
	// Bytes counts what was stored: plain content of new chunks, and frames.
	Plain, Stored int64
}

// frame is some content on its way into a pack, and what belongs between it.
type frame struct {
	buf   []byte
	items []item
	ready chan struct{} // closed when hashed, and anew when stored
	data  []byte        // as stored; nil when nothing of it is new
	plain int
}

// item is one step of writing the index, in order: a piece, a hole or an entry's end.
type item struct {
	e     *Entry
	piece *piece // content; nil: see hole
	hole  bool
	off   int64
	n     int64
	parts []span  // of the piece, what is no hole
	ready *Extent // content that is stored already
	end   bool
	sums  bool // the entry has its digests already
}

// piece is content that becomes a chunk.
type piece struct {
	at, n  int // in the frame's buffer
	leaves []byte
	sum    digest.Sum
	same   *piece // an earlier one with the same content
	chunk  Chunk
	known  bool
}

// Build begins a layer. Finish or Close ends it.
func Build(ctx context.Context, cfg Config) (*Builder, error) {
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	b := &Builder{
		cfg: cfg, ctx: ctx, cancel: cancel, group: group, zeros: digest.NewZeros(), seen: map[digest.Sum]*piece{},
		hashed: make(chan *frame, 4*cfg.Workers), stored: make(chan *frame, 4*cfg.Workers),
		slots: make(chan struct{}, 8+4*cfg.Workers), hashes: make(chan struct{}, cfg.Workers),
	}
	b.packer = packer{size: cfg.PackSize, emit: cfg.Emit, real: map[digest.Sum]Pack{}}
	var err error
	if b.codec, err = newCodec(cfg.Seal, cfg.Workers); err != nil {
		cancel()
		return nil, err
	}
	if b.out, err = NewWriter(cfg.Spool, cfg.KnownSize); err != nil {
		cancel()
		b.codec.close()
		return nil, err
	}
	b.file.zeros = b.zeros
	group.Go(b.decide)
	group.Go(b.place)
	if cfg.Parent != nil {
		if b.parent, err = next(cfg.Parent); err != nil {
			b.Close()
			return nil, err
		}
	}
	return b, nil
}

// next is nil at the end.
func next(s Source) (*Entry, error) {
	e, err := s.Next()
	if err == io.EOF {
		return nil, nil
	}
	return e, err
}

// Gone is of tree.Visitor.
func (b *Builder) Gone(path string) error {
	return b.put(item{e: &Entry{Gone: true, Entry: tree.Entry{Path: path}}, end: true})
}

// Entry is of tree.Visitor.
func (b *Builder) Entry(e *tree.Entry, content tree.Content) error {
	out := &Entry{Entry: *e, Cut: e.Size}
	if e.Fresh {
		out.Cut = 0
	}
	if content == nil {
		return b.put(item{e: out, end: true})
	}
	if e.Fresh {
		if err := b.fresh(out, content); err != nil {
			return err
		}
	} else if err := b.changed(out, content); err != nil {
		return err
	}
	return b.put(item{e: out, end: true})
}

// fresh takes all of a file. What is stored begins and ends with leaves, so
// that the pieces' leaves are the file's; extents are just what is no hole.
func (b *Builder) fresh(e *Entry, content tree.Content) error {
	var data []span
	err := content.Changed(func(off, n int64) error {
		data = append(data, span{off, off + n})
		return nil
	}, nil)
	if err != nil {
		return err
	}
	for i := 0; i < len(data); {
		run := span{data[i].from - data[i].from%digest.LeafSize, leafEnd(data[i].to, e.Size)}
		j := i + 1
		for ; j < len(data) && data[j].from-data[j].from%digest.LeafSize <= run.to; j++ {
			run.to = leafEnd(data[j].to, e.Size)
		}
		if err := b.read(e, content, run, data[i:j], false); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// leafEnd is the end of the leaf that the byte before off lies in.
func leafEnd(off, size int64) int64 {
	return min(off+digest.LeafSize-1-(off-1)%digest.LeafSize, size)
}

// read takes a range of a file, cut at fixed offsets; data says what of it
// counts, in order.
func (b *Builder) read(e *Entry, content io.ReaderAt, run span, data []span, sums bool) error {
	for off := run.from; off < run.to; {
		n := int(min(run.to, (off/pieceSize+1)*pieceSize) - off)
		f, err := b.room(n)
		if err != nil {
			return err
		}
		at := len(f.buf)
		f.buf = f.buf[:at+n]
		if _, err := content.ReadAt(f.buf[at:], off); err != nil {
			return err
		}
		it := item{e: e, piece: &piece{at: at, n: n}, off: off, n: int64(n), sums: sums}
		for len(data) > 0 && data[0].to <= off {
			data = data[1:]
		}
		for _, d := range data {
			if d.from >= off+int64(n) {
				break
			}
			it.parts = append(it.parts, span{max(d.from, off), min(d.to, off+int64(n))})
		}
		f.items = append(f.items, it)
		off += int64(n)
	}
	return nil
}

// changed takes the ranges of a file that differ, and hashes what they touch.
func (b *Builder) changed(e *Entry, content tree.Content) error {
	old, err := b.was(e.Path)
	if err != nil {
		return err
	}
	touched := map[int64][]span{}
	touch := func(off, end int64) {
		for off < end {
			n := off / digest.RangeSize
			to := min(end, (n+1)*digest.RangeSize)
			touched[n] = append(touched[n], span{off, to})
			off = to
		}
	}
	var oldSize int64
	if old != nil {
		oldSize = old.Size
	}
	if oldSize != e.Size {
		// The leaf in which the shorter one ends is another one now, and all
		// up to the end of the range is.
		edge := min(oldSize, e.Size)
		if n := edge / digest.RangeSize; edge%digest.RangeSize != 0 {
			touched[n] = append(touched[n], span{edge, edge}) // it has more or fewer leaves
		}
		touch(edge-edge%digest.LeafSize, min(e.Size, edge-edge%digest.RangeSize+digest.RangeSize))
	}
	err = content.Changed(func(off, n int64) error {
		touch(off, off+n)
		return b.read(e, content, span{off, off + n}, []span{{off, off + n}}, false)
	}, func(off, n int64) error {
		touch(off, min(off+n, e.Size))
		return b.put(item{e: e, hole: true, off: off, n: min(n, e.Size-off)})
	})
	if err != nil {
		return err
	}
	return b.hash(e, content, old, touched)
}

// was finds the parent's entry at a path that is asked for in tree order.
func (b *Builder) was(path string) (*Entry, error) {
	for b.parent != nil && tree.Order(b.parent.Path, path) < 0 {
		var err error
		if b.parent, err = next(b.cfg.Parent); err != nil {
			return nil, err
		}
	}
	if b.parent != nil && b.parent.Path == path && b.parent.Kind == tree.File {
		return b.parent, nil
	}
	return nil, nil
}

// hash computes the digests of the ranges that were touched.
func (b *Builder) hash(e *Entry, content tree.Content, old *Entry, touched map[int64][]span) error {
	ns := make([]int64, 0, len(touched))
	for n := range touched {
		ns = append(ns, n)
	}
	slices.Sort(ns)
	e.Sums = make([]RangeSum, len(ns))
	group, ctx := errgroup.WithContext(b.ctx)
	for i, n := range ns {
		if ctx.Err() != nil {
			break
		}
		b.hashes <- struct{}{}
		group.Go(func() error {
			defer func() { <-b.hashes }()
			sum, err := rangeSum(b.cfg.Leaves, content, e, old, n, touched[n])
			e.Sums[i] = RangeSum{n, sum}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(b.ctx)
}

// room gives a frame with space for n bytes.
func (b *Builder) room(n int) (*frame, error) {
	if b.frame != nil && len(b.frame.buf)+n > cap(b.frame.buf) {
		if err := b.send(); err != nil {
			return nil, err
		}
	}
	if b.frame == nil {
		select {
		case b.slots <- struct{}{}:
		case <-b.ctx.Done():
			return nil, context.Cause(b.ctx)
		}
		b.frame = &frame{buf: make([]byte, 0, frameSize), ready: make(chan struct{})}
	}
	return b.frame, nil
}

// put adds a step that needs no space.
func (b *Builder) put(i item) error {
	f, err := b.room(0)
	if err != nil {
		return err
	}
	f.items = append(f.items, i)
	if len(f.items) >= 4096 {
		return b.send()
	}
	return nil
}

// send lets the frame be hashed.
func (b *Builder) send() error {
	f := b.frame
	b.frame = nil
	if f == nil {
		return nil
	}
	go func() {
		defer close(f.ready)
		for i := range f.items {
			if p := f.items[i].piece; p != nil {
				data := f.buf[p.at : p.at+p.n]
				p.leaves = digest.Leaves(make([]byte, 0, 32*(p.n/digest.LeafSize+1)), data)
				p.sum = digest.Node(p.leaves)
			}
		}
	}()
	select {
	case b.hashed <- f:
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// decide goes over the hashed frames in order and leaves out what is stored
// already; the rest is compressed.
func (b *Builder) decide() error {
	defer close(b.stored)
	for {
		var f *frame
		select {
		case f = <-b.hashed:
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		if f == nil {
			return nil
		}
		<-f.ready
		f.ready = make(chan struct{})
		w := 0
		for i := range f.items {
			p := f.items[i].piece
			if p == nil || b.have(p) {
				continue
			}
			if len(b.seen) < maxSeen {
				b.seen[p.sum] = p
			}
			copy(f.buf[w:], f.buf[p.at:p.at+p.n])
			p.at = w
			w += p.n
		}
		f.plain = w
		b.Plain += int64(w)
		go func() {
			defer close(f.ready)
			if w > 0 {
				f.data = b.codec.store(f.buf[:w])
			}
			f.buf = nil
		}()
		select {
		case b.stored <- f:
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
	}
}

// have looks whether a piece is stored already.
func (b *Builder) have(p *piece) bool {
	if p.same = b.seen[p.sum]; p.same != nil && p.same.n == p.n {
		return true
	}
	p.same = nil
	if b.cfg.Known != nil {
		p.chunk, p.known = b.cfg.Known(p.sum, p.n)
	}
	return p.known
}

// place goes over the stored frames in order, puts them into packs, and
// writes the index.
func (b *Builder) place() error {
	for f := range b.stored {
		<-f.ready
		var pack digest.Sum
		var at int64
		if f.data != nil {
			var err error
			if pack, at, err = b.packer.add(f.data); err != nil {
				return err
			}
			b.Stored += int64(len(f.data))
		}
		for i := range f.items {
			it := &f.items[i]
			if p := it.piece; p != nil {
				switch {
				case p.same != nil:
					p.chunk = p.same.chunk
				case !p.known:
					p.chunk = Chunk{Sum: p.sum, Len: p.n, Pack: pack, Frame: at, Stored: len(f.data), Plain: f.plain, At: p.at}
				}
			}
			if err := b.step(it); err != nil {
				return err
			}
		}
		<-b.slots
	}
	return nil
}

// step writes one step.
func (b *Builder) step(it *item) error {
	e := it.e
	switch p := it.piece; {
	case p != nil:
		if e.Fresh && !it.sums {
			b.file.add(it.off, p.leaves)
		}
		p.leaves = nil
		for _, s := range it.parts {
			e.Extents = append(e.Extents, Extent{Off: s.from, Len: s.to - s.from, Chunk: p.chunk, Skip: int(s.from - it.off)})
		}
	case it.ready != nil:
		e.Extents = append(e.Extents, *it.ready)
	case it.hole:
		if it.n > 0 {
			e.Extents = append(e.Extents, Extent{Off: it.off, Len: it.n, Hole: true})
		}
	case it.end:
		if e.Fresh && e.Kind == tree.File && !it.sums {
			e.Sums = b.file.finish(e.Size, func(n int64, leaves []byte) {
				if b.cfg.Leaves != nil && len(leaves) > 64*32 {
					b.cfg.Leaves.Put(e.Path, n, leaves)
				}
			})
		}
		return b.out.Put(e)
	}
	return nil
}

// Put adds an entry of a merged layer, whose content is stored already; what
// rewrite says of it is read from content and stored anew.
func (b *Builder) Put(e *Entry, content io.ReaderAt, rewrite func(*Chunk) bool) error {
	out := &Entry{Entry: e.Entry, Gone: e.Gone, Cut: e.Cut, Sums: e.Sums}
	for i := 0; i < len(e.Extents); i++ {
		x := &e.Extents[i]
		if x.Hole || !rewrite(&x.Chunk) {
			if err := b.put(item{e: out, ready: x, sums: true}); err != nil {
				return err
			}
			continue
		}
		// What lies next to each other becomes one piece again.
		run := span{x.Off, x.Off + x.Len}
		for i+1 < len(e.Extents) && e.Extents[i+1].Off == run.to && !e.Extents[i+1].Hole && rewrite(&e.Extents[i+1].Chunk) {
			i++
			run.to += e.Extents[i].Len
		}
		if err := b.read(out, content, run, []span{run}, true); err != nil {
			return err
		}
	}
	return b.put(item{e: out, end: true, sums: true})
}

// Finish writes the index, and gives the packs that it names.
func (b *Builder) Finish(index io.Writer) ([]Pack, error) {
	err := b.send()
	close(b.hashed)
	if err2 := b.group.Wait(); err2 != nil || err != nil {
		if err2 != nil {
			err = err2
		}
		b.Close()
		return nil, err
	}
	defer b.Close()
	if err := b.packer.flush(); err != nil {
		return nil, err
	}
	b.out.settle(b.packer.real)
	return b.out.Finish(index)
}

// Close ends what is not finished and lets go of everything.
func (b *Builder) Close() {
	b.cancel()
	_ = b.group.Wait()
	_ = b.out.Close()
	b.codec.close()
}
