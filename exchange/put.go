package exchange

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/tree"
	treedigest "github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
)

// Put brings one commit to the remote, as a difference to base, which both
// sides have; whole when base is nil. It is there under its own name then, and
// no branch has moved. hints may be nil. Whoever calls it holds a lease.
func (r *Remote) Put(ctx context.Context, c Local, base *Base, hints *tree.Hints) (*Stored, error) {
	if s, err := r.Find(ctx, c.Commit.ID); err == nil || !api.Is(err, api.NotFound) {
		return s, err
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	cache, err := r.openLeaves()
	if err != nil {
		return nil, err
	}
	defer cache.close()
	p := &putter{r: r, c: c, leaves: cache, known: known{chunks: map[treedigest.Sum]layer.Chunk{}, sizes: map[treedigest.Sum]int64{}}}
	if base != nil {
		p.list = base.Stored.Record.Layers
		if err := r.learn(ctx, &p.known, p.list); err != nil {
			return nil, err
		}
		err = p.change(ctx, base, hints)
	} else {
		if err := p.others(ctx); err != nil {
			return nil, err
		}
		err = p.whole(ctx)
	}
	if err != nil {
		return nil, err
	}
	for {
		n, level := repo.Merge(levels(p.list))
		if n == 0 {
			break
		}
		if err := p.merge(ctx, n, level); err != nil {
			return nil, err
		}
	}
	return p.finish(ctx)
}

// Base is a commit that both sides have.
type Base struct {
	Local
	Stored *Stored
}

func levels(list []Layer) []repo.Layer {
	out := make([]repo.Layer, len(list))
	for i, l := range list {
		out[i] = repo.Layer{Level: l.Level, Bytes: l.Bytes}
	}
	return out
}

// putter makes the layers of one commit.
type putter struct {
	r      *Remote
	c      Local
	leaves *leaves
	known  known
	list   []Layer
}

// others learns what other branches of the repository have, where there is no
// base: a copy of a volume, or one that came by another way, sends little.
func (p *putter) others(ctx context.Context) error {
	refs, err := p.r.Store.Refs(ctx, remote.BranchPrefix)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		d := ref.Desc.Digest
		if d == "" {
			full, err := p.r.Store.Ref(ctx, ref.Name)
			if err != nil {
				continue // it went meanwhile
			}
			d = full.Desc.Digest
		}
		s, err := p.r.Load(ctx, d)
		if err != nil || s.Record.Key != keyID(p.r.Key) {
			continue // what cannot be read cannot be built on
		}
		if err := p.r.learn(ctx, &p.known, s.Record.Layers); err != nil {
			return err
		}
		if len(p.known.chunks) >= maxChunks {
			return nil
		}
	}
	return nil
}

func (p *putter) whole(ctx context.Context) error {
	return p.build(ctx, nil, repo.Base, func(b *layer.Builder) error {
		return tree.Walk(ctx, nil, p.c.Snapshot, nil, p.counting(b))
	})
}

func (p *putter) change(ctx context.Context, base *Base, hints *tree.Hints) error {
	parent, done, err := p.r.layers(ctx, true, base.Stored.Record.Layers)
	if err != nil {
		return err
	}
	defer done()
	return p.build(ctx, parent, 0, func(b *layer.Builder) error {
		return tree.Walk(ctx, &base.Snapshot, p.c.Snapshot, hints, p.counting(b))
	})
}

// merge makes one layer of the newest n.
func (p *putter) merge(ctx context.Context, n, level int) error {
	old := p.list[len(p.list)-n:]
	whole := n == len(p.list)
	dead, err := p.mostlyDead(ctx, whole, old)
	if err != nil {
		return err
	}
	src, done, err := p.r.layers(ctx, whole, old)
	if err != nil {
		return err
	}
	defer done()
	files, err := tree.OpenFiles(ctx, p.c.Snapshot.Dir)
	if err != nil {
		return err
	}
	defer files.Close()
	p.list = p.list[:len(p.list)-n]
	rewrite := func(c *layer.Chunk) bool { return dead[c.Pack] || p.known.sizes[c.Pack] < minPack }
	// What is stored anew must not be found where it was.
	p.known.chunks = map[treedigest.Sum]layer.Chunk{}
	return p.build(ctx, nil, level, func(b *layer.Builder) error {
		for {
			e, err := src.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := putMerged(b, files, e, rewrite); err != nil {
				return err
			}
		}
	})
}

func putMerged(b *layer.Builder, files *tree.Files, e *layer.Entry, rewrite func(*layer.Chunk) bool) error {
	if e.Gone || e.Kind != tree.File || len(e.Extents) == 0 {
		return b.Put(e, nil, func(*layer.Chunk) bool { return false })
	}
	f, err := files.Open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return b.Put(e, f, rewrite)
}

// mostlyDead finds the packs of which less than half is in use. It is asked
// for only when everything is merged, because only then it is known.
func (p *putter) mostlyDead(ctx context.Context, whole bool, list []Layer) (map[treedigest.Sum]bool, error) {
	dead := map[treedigest.Sum]bool{}
	if !whole {
		return dead, nil
	}
	src, done, err := p.r.layers(ctx, true, list)
	if err != nil {
		return nil, err
	}
	defer done()
	live := map[treedigest.Sum]float64{}
	for {
		e, err := src.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		for i := range e.Extents {
			if x := &e.Extents[i]; !x.Hole {
				live[x.Chunk.Pack] += float64(x.Chunk.Stored) * float64(x.Len) / float64(x.Chunk.Plain)
			}
		}
	}
	for pack, n := range live {
		dead[pack] = 2*n < float64(p.known.sizes[pack])
	}
	return dead, nil
}

// counting tells of what is read.
func (p *putter) counting(v tree.Visitor) tree.Visitor { return &counting{v, p.r} }

type counting struct {
	tree.Visitor
	r *Remote
}

func (c *counting) Entry(e *tree.Entry, content tree.Content) error {
	if content != nil {
		content = &countingContent{content, c.r}
	}
	return c.Visitor.Entry(e, content)
}

type countingContent struct {
	tree.Content
	r *Remote
}

func (c *countingContent) Changed(data, hole func(off, n int64) error) error {
	return c.Content.Changed(func(off, n int64) error {
		c.r.tell(Progress{Phase: "reading", Bytes: n})
		return data(off, n)
	}, hole)
}

// build makes a layer, uploads its packs while they come, and adds it.
func (p *putter) build(ctx context.Context, parent layer.Source, level int, fill func(*layer.Builder) error) error {
	up, uploading := errgroup.WithContext(ctx)
	up.SetLimit(uploads)
	var mu sync.Mutex
	var bytesNew atomic.Int64
	b, err := layer.Build(uploading, layer.Config{
		Spool: p.r.spool(), PackSize: packSize, Seal: p.r.sealer(), Workers: p.r.workers(), Parent: parent,
		Known: p.known.find, Leaves: p.leaves.use(),
		KnownSize: func(s treedigest.Sum) int64 {
			mu.Lock()
			defer mu.Unlock()
			return p.known.sizes[s]
		},
		Emit: func(pack layer.Pack, body []byte) error {
			mu.Lock()
			p.known.sizes[pack.Sum] = pack.Size
			mu.Unlock()
			bytesNew.Add(pack.Size)
			p.r.tell(Progress{Phase: "uploading", Total: pack.Size})
			up.Go(func() error {
				desc := ocispec.Descriptor{MediaType: layer.PackType, Digest: ociDigest(pack.Sum), Size: pack.Size}
				return p.r.Store.Put(uploading, desc, remote.Bytes(body), p.sent)
			})
			return nil
		},
	})
	if err != nil {
		return err
	}
	if err := fill(b); err != nil {
		b.Close()
		if err2 := up.Wait(); err2 != nil {
			return err2 // the upload's failure ended the reading
		}
		return err
	}
	var out bytes.Buffer
	named, err := b.Finish(&out)
	if err2 := up.Wait(); err2 != nil {
		return err2
	}
	if err != nil {
		return err
	}
	body := out.Bytes()
	if p.r.Key != nil {
		body = p.r.Key.Seal(layer.IndexType, body)
	}
	l := Layer{Index: digest.FromBytes(body), Size: int64(len(body)), Level: level, Bytes: bytesNew.Load()}
	if level > 0 {
		// It stands for the layers it was made of, and their packs that stay.
		if l.Bytes, err = p.brought(ctx, named); err != nil {
			return err
		}
	}
	if err := p.r.keepIndex(l.Index, body); err != nil {
		return err
	}
	p.list = append(p.list[:len(p.list):len(p.list)], l)
	return nil
}

// brought is the size of those packs that no older layer names.
func (p *putter) brought(ctx context.Context, named []layer.Pack) (n int64, err error) {
	older, err := p.packs(ctx)
	if err != nil {
		return 0, err
	}
	had := map[treedigest.Sum]bool{}
	for _, pack := range older {
		had[pack.Sum] = true
	}
	for _, pack := range named {
		if !had[pack.Sum] {
			n += pack.Size
		}
	}
	return n, nil
}

func (p *putter) sent(n int64) { p.r.tell(Progress{Phase: "uploading", Bytes: n}) }

// finish writes indexes, record and manifest, looks that everything is there,
// and gives the commit its name.
func (p *putter) finish(ctx context.Context) (*Stored, error) {
	src, done, err := p.r.layers(ctx, true, p.list)
	if err != nil {
		return nil, err
	}
	content, err := layer.Root(src)
	done()
	if err != nil {
		return nil, err
	}
	rec := Record{Format: recordFormat, Commit: p.c.Commit, Layers: p.list, Content: Content{Bytes: content.Bytes, Entries: content.Entries}}
	rec.Content.Digest = "sha256:" + ociDigest(content.Digest).Encoded()
	if p.r.Key != nil {
		rec.Content.Digest = p.r.Key.Digest(content.Digest)
	}
	if err := rec.seal(p.r.Key); err != nil {
		return nil, err
	}
	recDoc, err := encode(rec, recordType)
	if err != nil {
		return nil, err
	}
	packs, err := p.packs(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.upload(ctx, recDoc, packs); err != nil {
		return nil, err
	}
	docs, err := manifests(recDoc.desc, p.list, packs, p.r.Store.Info().MaxManifest)
	if err != nil {
		return nil, err
	}
	if len(docs) > 1 { // what the manifests of packs have for a config
		if err := p.r.Store.Put(ctx, ocispec.DescriptorEmptyJSON, remote.Bytes(ocispec.DescriptorEmptyJSON.Data), nil); err != nil {
			return nil, err
		}
	}
	for _, d := range docs {
		if err := p.r.Store.PutManifest(ctx, d.desc, d.body); err != nil {
			return nil, err
		}
	}
	top := docs[len(docs)-1].desc
	err = p.r.Store.SetRef(ctx, remote.CommitPrefix+p.c.Commit.ID, top, "")
	if api.Is(err, api.Conflict) {
		// Somebody brought the same commit meanwhile, as other layers.
		return p.r.Find(ctx, p.c.Commit.ID)
	}
	if err != nil {
		return nil, err
	}
	return p.r.Load(ctx, top.Digest)
}

// packs lists all packs that the layers name, each once, the oldest first.
func (p *putter) packs(ctx context.Context) ([]layer.Pack, error) {
	var out []layer.Pack
	seen := map[treedigest.Sum]bool{}
	for _, l := range p.list {
		x, done, err := p.r.index(ctx, l.Index)
		if err != nil {
			return nil, err
		}
		for _, pack := range x.Packs() {
			if !seen[pack.Sum] {
				seen[pack.Sum] = true
				out = append(out, pack)
			}
		}
		done()
	}
	return out, nil
}

// upload sends indexes and record, and looks that every blob is there.
func (p *putter) upload(ctx context.Context, rec doc, packs []layer.Pack) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * uploads)
	for _, l := range p.list {
		g.Go(func() error {
			if n, err := p.r.Store.Stat(ctx, l.Index); err == nil && n == l.Size {
				return nil
			}
			desc := ocispec.Descriptor{MediaType: layer.IndexType, Digest: l.Index, Size: l.Size}
			return p.r.Store.Put(ctx, desc, p.r.cachedIndex(l.Index), p.sent)
		})
	}
	g.Go(func() error { return p.r.Store.Put(ctx, rec.desc, remote.Bytes(rec.body), p.sent) })
	for _, pack := range packs {
		g.Go(func() error {
			n, err := p.r.Store.Stat(ctx, ociDigest(pack.Sum))
			if err == nil && n != pack.Size {
				err = remote.Damaged(ociDigest(pack.Sum))
			}
			return err
		})
	}
	return g.Wait()
}
