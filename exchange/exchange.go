// Package exchange brings commits between a pool and a remote: it makes the
// layers that a remote lacks from the difference of two snapshots, and
// snapshots from layers. It knows neither who asked nor which branch of a cluster it is
// for; docs/format/remote.md is what it writes and reads.
package exchange

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	treedigest "github.com/drover-data/drover/tree/digest"
	"github.com/drover-data/drover/tree/layer"
)

// Sizes, in bytes.
const (
	minPack   = 8 << 20  // content of smaller packs is stored anew when layers are merged
	packSize  = 32 << 20 // packs are closed when they hold this much
	uploads   = 3        // packs on their way at once: what is in memory is bounded by them
	maxChunks = 2 << 20  // stored chunks that are remembered to be found again
)

// Remote is a repository with what is kept here of it.
type Remote struct {
	Store remote.Store
	// Cache is a directory for indexes, digests and packs on their way. It can
	// be emptied at any time.
	Cache string
	Key   Key   // nil: in clear
	Old   []Key // that it had before: for reading only
	Now   func() time.Time
	// Told of progress, from any goroutine; nil tells nobody.
	Progress func(Progress)
}

// Key seals what a remote keeps.
type Key interface {
	layer.Sealer
	ID() string
	// Digest is the keyed digest of a tree that a record shows in clear.
	Digest(treedigest.Sum) string
}

// Progress is a step forward; numbers add up.
type Progress struct {
	Phase string // "reading", "uploading", "downloading", "writing", "looking", "removing"
	Bytes int64  // so many more
	Total int64  // expected in this phase in all, if it has become known
}

func (r *Remote) tell(p Progress) {
	if r.Progress != nil {
		r.Progress(p)
	}
}

func (r *Remote) workers() int { return max(2, runtime.GOMAXPROCS(0)) }

func (r *Remote) sealer() layer.Sealer {
	if r.Key == nil {
		return nil
	}
	return r.Key
}

// keyID is "" for what is in clear.
func keyID(k Key) string {
	if k == nil {
		return ""
	}
	return k.ID()
}

// find gives a key by its id; nil when it is not here.
func (r *Remote) find(id string) Key {
	if id == "" {
		return nil
	}
	for _, k := range append([]Key{r.Key}, r.Old...) {
		if keyID(k) == id {
			return k
		}
	}
	return nil
}

// reading is the remote with the key that a commit was sealed with: all layers of
// a commit are sealed with one.
func (r *Remote) reading(s *Stored) *Remote {
	c := *r
	c.Key = r.find(s.Record.Key)
	return &c
}

func (r *Remote) spool() string { return filepath.Join(r.Cache, "spool") }

// Local is a commit that the pool has.
type Local struct {
	Commit   api.Commit
	Snapshot storage.Snapshot
}

// Pool is what a pool has of a volume.
type Pool interface {
	// Find gives a commit; NotFound when the pool does not have it.
	Find(ctx context.Context, id string) (Local, error)
	// Hints say where two commits can differ; nil when the pool cannot tell.
	Hints(ctx context.Context, base, id string) (*tree.Hints, error)
}

func ociDigest(s treedigest.Sum) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(s[:]))
}

func damaged(object, reason string) error {
	return &api.Error{Kind: api.Damaged, Op: "read commit", Object: object, Reason: reason, Next: "drover verify tells which commits are affected; push them again from a node that has them"}
}

func short(id string) string { return id[:min(12, len(id))] }
