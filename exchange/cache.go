package exchange

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	treedigest "github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
)

// prepare makes the cache's directories.
func (r *Remote) prepare() error {
	for _, d := range []string{r.spool(), filepath.Join(r.Cache, "indexes")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// index opens an index, which is fetched once and kept. It is closed by done.
func (r *Remote) index(ctx context.Context, d digest.Digest) (*layer.Reader, func(), error) {
	path := filepath.Join(r.Cache, "indexes", d.Encoded())
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := r.fetchIndex(ctx, d, path); err != nil {
			return nil, nil, err
		}
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, nil, err
	}
	x, err := layer.OpenIndex(f, r.sealer())
	if err != nil {
		f.Close()
		_ = os.Remove(path) // it is fetched again
		return nil, nil, named(err, d)
	}
	return x, func() { x.Close(); f.Close() }, nil
}

// named says in which blob something is damaged.
func named(err error, d digest.Digest) error {
	var e *api.Error
	if errors.As(err, &e) && e.Object == "" {
		c := *e
		c.Object = string(d)
		return &c
	}
	return err
}

func (r *Remote) fetchIndex(ctx context.Context, d digest.Digest, path string) error {
	in, err := r.Store.Get(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := renameio.NewPendingFile(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	n, err := io.Copy(f, in)
	if err != nil {
		return err
	}
	r.tell(Progress{Phase: "downloading", Bytes: n})
	return f.CloseAtomicallyReplace()
}

// keepIndex puts an index that was just made into the cache.
func (r *Remote) keepIndex(d digest.Digest, body []byte) error {
	return renameio.WriteFile(filepath.Join(r.Cache, "indexes", d.Encoded()), body, 0o600)
}

// cachedIndex opens an index that was made or fetched here.
func (r *Remote) cachedIndex(d digest.Digest) remote.Content {
	return func() (io.ReadCloser, error) { return os.Open(filepath.Join(r.Cache, "indexes", d.Encoded())) }
}

// layers opens a commit's layers, merged. whole: the oldest of them holds a tree.
func (r *Remote) layers(ctx context.Context, whole bool, list []Layer) (layer.Source, func(), error) {
	var sources []layer.Source
	var ends []func()
	end := func() {
		for _, f := range ends {
			f()
		}
	}
	for i := len(list) - 1; i >= 0; i-- {
		x, done, err := r.index(ctx, list[i].Index)
		if err != nil {
			end()
			return nil, nil, err
		}
		ends = append(ends, done)
		sources = append(sources, x)
	}
	return layer.Merge(whole, sources...), end, nil
}

// known is what a remote has in packs.
type known struct {
	chunks map[treedigest.Sum]layer.Chunk
	sizes  map[treedigest.Sum]int64
}

// learn reads the indexes of layers, the newest first, as far as memory is given.
func (r *Remote) learn(ctx context.Context, k *known, list []Layer) error {
	for i := len(list) - 1; i >= 0; i-- {
		if err := r.learnOne(ctx, k, list[i].Index); err != nil {
			return err
		}
	}
	return nil
}

func (r *Remote) learnOne(ctx context.Context, k *known, d digest.Digest) error {
	x, done, err := r.index(ctx, d)
	if err != nil {
		return err
	}
	defer done()
	for _, p := range x.Packs() {
		k.sizes[p.Sum] = p.Size
	}
	for {
		e, err := x.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return named(err, d)
		}
		for i := range e.Extents {
			if x := &e.Extents[i]; !x.Hole && len(k.chunks) < maxChunks {
				k.chunks[x.Chunk.Sum] = x.Chunk
			}
		}
	}
}

func (k *known) find(s treedigest.Sum, n int) (layer.Chunk, bool) {
	c, ok := k.chunks[s]
	return c, ok && c.Len == n
}

// leaves remembers digests of leaves between commits of one volume. What it
// forgets is computed again, and what it gives is checked: it need not survive.
type leaves struct {
	db *bbolt.DB

	mu   sync.Mutex
	news map[string][]byte // guarded by mu
}

var leafBucket = []byte("leaves")

// maxNews bounds what is in memory: about 8 KiB each.
const maxNews = 2000

// openLeaves is nil while somebody else has it open.
func (r *Remote) openLeaves() (*leaves, error) {
	path := filepath.Join(r.Cache, "leaves.db")
	for range 2 {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, Timeout: time.Second})
		if errors.Is(err, bolterrors.ErrTimeout) {
			return nil, nil // another exchange of this volume has it
		}
		if err == nil {
			err = db.Update(func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucketIfNotExists(leafBucket)
				return err
			})
			if err == nil {
				return &leaves{db: db, news: map[string][]byte{}}, nil
			}
			_ = db.Close()
		}
		_ = os.Remove(path) // a crash may have broken it
	}
	return nil, &api.Error{Kind: api.Unavailable, Op: "open cache", Object: path, Reason: "it can be neither read nor made", Next: "see whether the data directory is full or read-only"}
}

func leafKey(path string, n int64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(path), 0), uint64(n))
}

// use is nil, and not a nil *leaves, where there is none.
func (l *leaves) use() layer.Leaves {
	if l == nil {
		return nil
	}
	return l
}

func (l *leaves) Get(path string, n int64) (out []byte) {
	key := leafKey(path, n)
	l.mu.Lock()
	fresh, ok := l.news[string(key)]
	l.mu.Unlock()
	if ok {
		return fresh
	}
	_ = l.db.View(func(tx *bbolt.Tx) error {
		out = append(out, tx.Bucket(leafBucket).Get(key)...)
		return nil
	})
	return out
}

func (l *leaves) Put(path string, n int64, b []byte) {
	if len(path) > 4096 {
		return
	}
	l.mu.Lock()
	l.news[string(leafKey(path, n))] = append([]byte(nil), b...)
	var full map[string][]byte
	if len(l.news) >= maxNews {
		full, l.news = l.news, map[string][]byte{}
	}
	l.mu.Unlock()
	l.write(full)
}

func (l *leaves) write(news map[string][]byte) {
	if len(news) == 0 {
		return
	}
	_ = l.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(leafBucket)
		for k, v := range news {
			if err := b.Put([]byte(k), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *leaves) close() {
	if l == nil {
		return
	}
	l.write(l.news)
	_ = l.db.Close()
}
