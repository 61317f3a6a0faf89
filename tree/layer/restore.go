package layer

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math"

	"github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/digest"
)

// Packs opens packs for reading. Safe for concurrent use.
type Packs interface {
	// ReadAt fills p with bytes of a pack from off on.
	ReadAt(ctx context.Context, pack digest.Sum, p []byte, off int64) error
}

// Restore says how a tree is written from layers.
type Restore struct {
	Packs   Packs
	Seal    Sealer // nil: in clear
	Workers int
	// Base is the tree that the target begins as a copy of, with what its
	// layers say of it; nil: the target begins empty.
	Base   *tree.Files
	Old    Source
	Leaves Leaves // nil remembers nothing
	// Done is told of bytes of content that were written; nil tells nobody.
	Done func(int64)
}

// restorer writes entries in order, while workers prepare content ahead.
type restorer struct {
	Restore
	codec  *codec
	frames *lru.Cache[frameKey, []byte]
	flight singleflight.Group
	zeros  *digest.Zeros
	to     *tree.Target
	dirs   []tree.Entry // whose metadata is written when they are left
	flags  []flagged
}

type frameKey struct {
	pack  digest.Sum
	frame int64
}

type flagged struct {
	path  string
	flags uint32
}

// step is one thing to do in order.
type step struct {
	e     *Entry
	begin bool // make the entry
	end   bool // its content is complete
	data  *rangeJob
}

// Run writes what src says into a target. src is a whole tree, or what has
// changed since Base.
func (r Restore) Run(ctx context.Context, src Source, to *tree.Target) error {
	return r.run(ctx, src, to)
}

func (r Restore) run(ctx context.Context, src Source, to *tree.Target) error {
	c, err := newCodec(r.Seal, r.Workers)
	if err != nil {
		return err
	}
	defer c.close()
	frames, err := lru.New[frameKey, []byte](32 + 16*r.Workers)
	if err != nil {
		return err
	}
	x := &restorer{Restore: r, codec: c, frames: frames, zeros: digest.NewZeros(), to: to}
	group, ctx := errgroup.WithContext(ctx)
	steps := make(chan step, 4*r.Workers)
	slots := make(chan struct{}, 2*r.Workers)
	group.Go(func() error {
		defer close(steps)
		return x.produce(ctx, src, steps, slots)
	})
	group.Go(func() error {
		for s := range steps {
			do := x.do
			if to == nil {
				do = x.check
			}
			if err := do(ctx, s); err != nil {
				return err
			}
			if s.data != nil {
				<-slots
			}
		}
		return context.Cause(ctx)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if to == nil {
		return nil
	}
	if err := x.leave(""); err != nil {
		return err
	}
	for _, f := range x.flags {
		if err := to.Flags(f.path, f.flags); err != nil {
			return err
		}
	}
	return nil
}

// Check reads and checks everything that src, a whole tree, says, and writes nothing.
func (r Restore) Check(ctx context.Context, src Source) error {
	return r.run(ctx, src, nil)
}

// produce makes steps of entries, and starts preparing content.
func (x *restorer) produce(ctx context.Context, src Source, steps chan<- step, slots chan struct{}) error {
	send := func(s step) error {
		select {
		case steps <- s:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	old := &follower{src: x.Old}
	if err := old.begin(); err != nil {
		return err
	}
	for {
		e, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(step{e: e, begin: true}); err != nil || e.Gone {
			if err != nil {
				return err
			}
			continue
		}
		if e.Kind == tree.File {
			was, err := old.at(e.Path)
			if err != nil {
				return err
			}
			err = x.ranges(e, was, func(j *rangeJob) error {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				j.ready = make(chan struct{})
				go func() {
					defer close(j.ready)
					j.err = j.prepare(ctx)
				}()
				return send(step{e: e, data: j})
			})
			if err != nil {
				return err
			}
		}
		if err := send(step{e: e, end: true}); err != nil {
			return err
		}
	}
}

// follower finds entries of a source that are asked for in tree order.
type follower struct {
	src Source
	now *Entry
}

func (f *follower) begin() (err error) {
	if f.src != nil {
		f.now, err = next(f.src)
	}
	return err
}

func (f *follower) at(path string) (*Entry, error) {
	for f.now != nil && tree.Order(f.now.Path, path) < 0 {
		var err error
		if f.now, err = next(f.src); err != nil {
			return nil, err
		}
	}
	if f.now != nil && f.now.Path == path {
		return f.now, nil
	}
	return nil, nil
}

// ranges cuts a file's content into ranges and gives each one's job.
func (x *restorer) ranges(e, old *Entry, each func(*rangeJob) error) error {
	s := 0
	var job *rangeJob
	flush := func() error {
		j := job
		job = nil
		if j == nil {
			return nil
		}
		for s < len(e.Sums) && e.Sums[s].N < j.n {
			s++
		}
		if s < len(e.Sums) && e.Sums[s].N == j.n {
			j.sum = &e.Sums[s].Sum
		}
		return each(j)
	}
	for _, ext := range e.Extents {
		for off, end := ext.Off, ext.Off+ext.Len; off < end; {
			n := off / digest.RangeSize
			to := min(end, (n+1)*digest.RangeSize)
			if job == nil || job.n != n {
				if err := flush(); err != nil {
					return err
				}
				if ext.Hole && to-off == digest.RangeSize && n < math.MaxInt64/digest.RangeSize {
					// Whole ranges of holes need no content.
					to = max(to, end-end%digest.RangeSize)
					if err := each(&rangeJob{x: x, e: e, n: n, hole: to - off}); err != nil {
						return err
					}
					off = to
					continue
				}
				job = &rangeJob{x: x, e: e, old: old, n: n}
			}
			job.extents = append(job.extents, ext.part(off, to-off))
			off = to
		}
	}
	return flush()
}

// do does one step.
func (x *restorer) do(ctx context.Context, s step) error {
	switch {
	case s.begin:
		if err := x.leave(s.e.Path); err != nil {
			return err
		}
		if s.e.Gone {
			return x.to.Gone(s.e.Path)
		}
		if x.Base == nil && !s.e.Fresh {
			return damaged(fmt.Sprintf("%.200q changed, and it is not known what it was", s.e.Path))
		}
		if s.e.Kind == tree.File && !s.e.Fresh && s.e.Cut < s.e.Size {
			shorter := s.e.Entry
			shorter.Size = s.e.Cut
			if err := x.to.Make(&shorter); err != nil {
				return err
			}
		}
		return x.to.Make(&s.e.Entry)
	case s.end:
		if s.e.Flags != 0 || !s.e.Fresh {
			x.flags = append(x.flags, flagged{s.e.Path, s.e.Flags})
		}
		if s.e.Kind == tree.Dir {
			x.dirs = append(x.dirs, s.e.Entry)
			return nil
		}
		return x.to.Meta(&s.e.Entry)
	}
	select {
	case <-s.data.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.data.err != nil {
		return s.data.err
	}
	return s.data.write()
}

// check waits for content that is only looked at.
func (x *restorer) check(ctx context.Context, s step) error {
	if s.data == nil {
		return nil
	}
	select {
	case <-s.data.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.data.err == nil && x.Done != nil {
		for _, e := range s.data.extents {
			x.Done(e.Len)
		}
	}
	s.data.buf = nil
	return s.data.err
}

// leave writes the metadata of directories that path is not in.
func (x *restorer) leave(path string) error {
	for n := len(x.dirs); n > 0; n = len(x.dirs) {
		top := x.dirs[n-1]
		if path != "" && tree.Below(path, top.Path) {
			return nil
		}
		x.dirs = x.dirs[:n-1]
		if err := x.to.Meta(&top); err != nil {
			return err
		}
	}
	return nil
}

// frame gives the content of a frame.
func (x *restorer) frame(ctx context.Context, c *Chunk) ([]byte, error) {
	key := frameKey{c.Pack, c.Frame}
	if b, ok := x.frames.Get(key); ok {
		return b, nil
	}
	v, err, _ := x.flight.Do(fmt.Sprintf("%x@%d", c.Pack, c.Frame), func() (any, error) {
		stored := make([]byte, c.Stored)
		if err := x.Packs.ReadAt(ctx, c.Pack, stored, c.Frame); err != nil {
			return nil, err
		}
		b, err := x.codec.load(stored, c.Plain)
		if err != nil {
			return nil, err
		}
		x.frames.Add(key, b)
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return v.([]byte), nil
}

// rangeJob is the content of one range of a file.
type rangeJob struct {
	x       *restorer
	e, old  *Entry
	n       int64
	hole    int64 // so many bytes from the range's beginning are a hole; nothing else counts
	extents []Extent
	sum     *digest.Sum // nil: nothing but zeros
	buf     []byte      // the range's content
	ready   chan struct{}
	err     error
}

// prepare fetches, lays out and checks the range.
func (j *rangeJob) prepare(ctx context.Context) error {
	if j.hole > 0 {
		return nil
	}
	start, length := j.n*digest.RangeSize, rangeLen(j.e.Size, j.n)
	j.buf = make([]byte, length)
	var known []byte
	todo := make([]bool, leafCount(length))
	if !j.e.Fresh && j.x.Base != nil {
		var err error
		if known, err = j.before(todo); err != nil {
			return err
		}
	}
	for _, ext := range j.extents {
		part := j.buf[ext.Off-start : ext.Off-start+ext.Len]
		for i := (ext.Off - start) / digest.LeafSize; i*digest.LeafSize < ext.Off-start+ext.Len; i++ {
			todo[i] = true
		}
		if ext.Hole {
			clear(part)
			continue
		}
		b, err := j.x.frame(ctx, &ext.Chunk)
		if err != nil {
			return err
		}
		copy(part, b[ext.Chunk.At+ext.Skip:])
	}
	return j.check(known, todo)
}

// before fills in what the range was: all of it, or, where the leaves of
// before are known for certain, just those that change.
func (j *rangeJob) before(todo []bool) (known []byte, err error) {
	start, length := j.n*digest.RangeSize, int64(len(j.buf))
	f, err := j.x.Base.Open(j.e.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	read := func(from, to int64) error {
		to = min(to, length, max(from, j.e.Cut-start))
		if j.old != nil {
			to = min(to, max(from, j.old.Size-start))
		}
		_, err := f.ReadAt(j.buf[from:to], start+from)
		if err == io.EOF {
			err = nil // it was shorter; what follows is zeros
		}
		return err
	}
	if leaves, ok := knownLeaves(j.x.Leaves, j.e.Path, j.old, j.n); ok && j.old.Size == j.e.Size && j.e.Cut == j.e.Size {
		for _, ext := range j.extents {
			from, to := ext.Off-start, ext.Off-start+ext.Len
			if err := read(from-from%digest.LeafSize, to+digest.LeafSize-1-(to-1)%digest.LeafSize); err != nil {
				return nil, err
			}
		}
		return leaves, nil
	}
	for i := range todo {
		todo[i] = true
	}
	return nil, read(0, length)
}

// check compares the range with the digest that the index gives for it.
func (j *rangeJob) check(known []byte, todo []bool) error {
	leaves := make([]byte, len(todo)*sumSize)
	copy(leaves, known)
	for i := range todo {
		if known == nil || todo[i] {
			from := i * digest.LeafSize
			s := digest.Leaf(j.buf[from:min(from+digest.LeafSize, len(j.buf))])
			copy(leaves[i*sumSize:], s[:])
		}
	}
	want := j.x.zeros.Range(int64(len(j.buf)))
	if j.sum != nil {
		want = *j.sum
	}
	if got := digest.Node(leaves); got != want {
		return damaged(fmt.Sprintf("the content of %.200q from byte %d on does not have the digest %s", j.e.Path, j.n*digest.RangeSize, hex.EncodeToString(want[:])))
	}
	if j.x.Leaves != nil && len(todo) > 64 {
		j.x.Leaves.Put(j.e.Path, j.n, leaves)
	}
	return nil
}

// write puts the range's extents into the target.
func (j *rangeJob) write() error {
	start := j.n * digest.RangeSize
	if j.hole > 0 {
		return j.x.to.Hole(j.e.Path, start, j.hole)
	}
	for i := 0; i < len(j.extents); {
		ext := j.extents[i]
		end := ext.Off + ext.Len
		for i++; i < len(j.extents) && j.extents[i].Off == end && j.extents[i].Hole == ext.Hole; i++ {
			end += j.extents[i].Len
		}
		var err error
		if ext.Hole {
			err = j.x.to.Hole(j.e.Path, ext.Off, end-ext.Off)
		} else {
			err = j.x.to.Data(j.e.Path, ext.Off, j.buf[ext.Off-start:end-start])
			if j.x.Done != nil {
				j.x.Done(end - ext.Off)
			}
		}
		if err != nil {
			return err
		}
	}
	j.buf = nil
	return nil
}
