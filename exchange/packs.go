package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	treedigest "github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
)

// packs are those that a commit's content is read from. One of which much is
// needed is fetched whole, checked and kept on disk until the end; of others
// the frames are fetched that are needed, and checked by the content's digests.
type packs struct {
	r      *Remote
	cancel context.CancelFunc
	group  *errgroup.Group
	fed    chan struct{} // closed when group gets nothing more
	all    map[treedigest.Sum]*pack
}

type pack struct {
	sum   treedigest.Sum
	size  int64
	need  int64
	ready chan struct{} // of a pack that is fetched whole
	file  *os.File
	err   error
	once  sync.Once
}

// smallPack is fetched whole however little of it is needed.
const smallPack = 1 << 20

// openPacks begins to fetch what the layers need.
func (r *Remote) openPacks(ctx context.Context, s *Stored, list []Layer, whole bool) (*packs, error) {
	src, done, err := r.layers(ctx, whole, list)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	p := &packs{r: r, cancel: cancel, fed: make(chan struct{}), all: map[treedigest.Sum]*pack{}}
	p.group, ctx = errgroup.WithContext(ctx)
	p.group.SetLimit(uploads)
	order, err := p.needs(s, src)
	if err != nil {
		cancel()
		return nil, err
	}
	direct := r.Store.Info().Kind == "directory"
	var total int64
	for _, x := range order {
		total += x.need
		if direct || (x.size > smallPack && 4*x.need < x.size) {
			continue
		}
		x.ready = make(chan struct{})
	}
	r.tell(Progress{Phase: "downloading", Total: total})
	go func() {
		defer close(p.fed)
		for _, x := range order {
			if x.ready != nil {
				p.group.Go(func() error { p.fetch(ctx, x); return nil })
			}
		}
	}()
	return p, nil
}

// needs finds how much of each pack is read, in the order in which it is.
func (p *packs) needs(s *Stored, src layer.Source) ([]*pack, error) {
	var order []*pack
	type at struct {
		pack  treedigest.Sum
		frame int64
	}
	seen := map[at]bool{}
	for {
		e, err := src.Next()
		if err == io.EOF {
			return order, nil
		}
		if err != nil {
			return nil, err
		}
		for i := range e.Extents {
			c := &e.Extents[i].Chunk
			if e.Extents[i].Hole || seen[at{c.Pack, c.Frame}] {
				continue
			}
			if len(seen) < maxChunks {
				seen[at{c.Pack, c.Frame}] = true
			}
			x := p.all[c.Pack]
			if x == nil {
				size, listed := s.packs[ociDigest(c.Pack)]
				if !listed {
					return nil, damaged(short(s.Record.ID), "it needs a pack that its manifest does not list: "+string(ociDigest(c.Pack)))
				}
				x = &pack{sum: c.Pack, size: size}
				p.all[c.Pack] = x
				order = append(order, x)
			}
			x.need += int64(c.Stored)
		}
	}
}

func (p *packs) path(x *pack) string {
	return filepath.Join(p.r.spool(), "pack-"+ociDigest(x.sum).Encoded())
}

// fetch brings a pack here; one that came before a break is there still.
func (p *packs) fetch(ctx context.Context, x *pack) {
	x.once.Do(func() {
		defer close(x.ready)
		d := ociDigest(x.sum)
		if x.file, x.err = os.Open(p.path(x)); x.err == nil || !errors.Is(x.err, fs.ErrNotExist) {
			return
		}
		x.err = p.download(ctx, d, p.path(x))
		if x.err == nil {
			x.file, x.err = os.Open(p.path(x))
		}
	})
}

func (p *packs) download(ctx context.Context, d digest.Digest, path string) error {
	in, err := p.r.Store.Get(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := renameio.NewPendingFile(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	if _, err := io.Copy(f, p.r.told(in, "downloading")); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// told tells of what is read.
func (r *Remote) told(in io.Reader, phase string) io.Reader { return &toldReader{in, r, phase} }

type toldReader struct {
	io.Reader
	r     *Remote
	phase string
}

func (t *toldReader) Read(b []byte) (int, error) {
	n, err := t.Reader.Read(b)
	t.r.tell(Progress{Phase: t.phase, Bytes: int64(n)})
	return n, err
}

// ReadAt is of layer.Packs.
func (p *packs) ReadAt(ctx context.Context, sum treedigest.Sum, b []byte, off int64) error {
	x := p.all[sum]
	if x == nil {
		return &api.Error{Kind: api.Internal, Op: "read pack", Object: string(ociDigest(sum)), Reason: "it was not looked for"}
	}
	if x.ready == nil {
		in, err := p.r.Store.GetRange(ctx, ociDigest(sum), off, int64(len(b)))
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := io.ReadFull(p.r.told(in, "downloading"), b); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				return remote.Damaged(ociDigest(sum))
			}
			return err
		}
		return nil
	}
	select {
	case <-x.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if x.err != nil {
		return x.err
	}
	if _, err := x.file.ReadAt(b, off); err != nil {
		return fmt.Errorf("read pack %s: %w", ociDigest(sum), err)
	}
	return nil
}

// drop removes what was fetched: all of it was used.
func (p *packs) drop() {
	for _, x := range p.all {
		if x.ready != nil {
			_ = os.Remove(p.path(x))
		}
	}
}

// close ends what is on its way. What has come stays for the next try.
func (p *packs) close() {
	p.cancel()
	<-p.fed
	_ = p.group.Wait()
	for _, x := range p.all {
		if x.file != nil {
			_ = x.file.Close()
		}
	}
}

// readBack reads a blob and lets it be checked.
func (r *Remote) readBack(ctx context.Context, d digest.Digest) error {
	in, err := r.Store.Get(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(io.Discard, in)
	return err
}
