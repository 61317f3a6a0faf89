package exchange

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
)

// Prune says what a remote is to keep.
type Prune struct {
	Keep   api.Keep // the zero value keeps every commit, and only collects
	DryRun bool     // only say what would go
}

// Pruned is what a retention did or would do.
type Pruned struct {
	Kept    int      `json:"kept"`    // commits
	Dropped []string `json:"dropped"` // commits
	// Blobs and Bytes are gone, or would go; Waiting are unreachable too, but
	// younger than the grace period. All are 0 where the remote collects by itself.
	Blobs   int   `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	Waiting int64 `json:"waiting"` // bytes
	// Collects: the remote frees the room by its own means.
	Collects bool     `json:"collects"`
	Warnings []string `json:"warnings,omitempty"`
}

// Prune drops the commits that a policy does not keep: what branches and tags
// point to stays. Then it removes what no name reaches, where the remote does
// not do that itself. It can be ended at any moment and repeated. A push at the
// same time waits, or makes it give way (InUse).
func (r *Remote) Prune(ctx context.Context, p Prune) (out Pruned, err error) {
	out.Dropped = []string{}
	c, ok := r.Store.(remote.Collector)
	out.Collects = !ok
	run := &sweep{r: r, out: &out, dry: p.DryRun}
	if ok && !p.DryRun {
		if run.collection, err = c.Collect(ctx); err != nil {
			return out, err
		}
		run.alive = r.Now()
		defer func() { _ = run.collection.End(context.WithoutCancel(ctx)) }()
	}
	r.tell(Progress{Phase: "looking"})
	refs, err := r.refs(ctx, "")
	if err != nil {
		return out, err
	}
	left, err := run.names(ctx, refs, p.Keep)
	if err != nil || !ok {
		return out, err
	}
	return out, run.blobs(ctx, c, left)
}

// sweep is a retention on its way.
type sweep struct {
	r          *Remote
	out        *Pruned
	dry        bool
	collection remote.Collection
	alive      time.Time // when the collection last said so
}

// stay renews the collection. Without that nothing may be deleted any more:
// a push that waited may have gone on.
func (s *sweep) stay(ctx context.Context) error {
	if s.collection.Renew == nil {
		return nil
	}
	age := s.r.Now().Sub(s.alive)
	if age < remote.RenewCollect {
		return nil
	}
	if age < 2*remote.RenewCollect {
		begun := s.r.Now()
		if err := s.collection.Renew(ctx); err != nil {
			return err
		}
		s.alive = begun
		return nil
	}
	return &api.Error{Kind: api.Unavailable, Op: "prune", Object: s.r.Store.Info().URL, Reason: fmt.Sprintf("the remote answered so slowly (%s) that a push may have begun meanwhile", age.Round(time.Second)), Next: "repeat it: it goes on"}
}

// names drops commits, and gives the names that are left.
func (s *sweep) names(ctx context.Context, refs []remote.Ref, keep api.Keep) ([]remote.Ref, error) {
	stored, err := s.r.stored(ctx, refs)
	if err != nil {
		return nil, err
	}
	pinned := map[string]bool{}
	var commits []api.Commit
	for i, ref := range refs {
		x := stored[i]
		switch {
		case x.err != nil:
			s.out.Warnings = append(s.out.Warnings, ref.Name+" stays: "+x.err.Error())
		case x.Stored == nil: // of somebody else
		case strings.HasPrefix(ref.Name, remote.CommitPrefix):
			commits = append(commits, x.Record.Commit)
		default:
			pinned[x.Record.ID] = true
		}
	}
	kept := repo.Retain(commits, keep, pinned, s.r.Now())
	var left []remote.Ref
	for i, ref := range refs {
		x := stored[i]
		commit := x.err == nil && x.Stored != nil && strings.HasPrefix(ref.Name, remote.CommitPrefix)
		if !commit || kept[x.Record.ID] || ref.Name != remote.CommitPrefix+x.Record.ID {
			if commit {
				s.out.Kept++
			}
			left = append(left, ref)
			continue
		}
		if !s.dry {
			if err := s.stay(ctx); err != nil {
				return nil, err
			}
			err := s.r.Store.DeleteRef(ctx, ref.Name, ref.Desc.Digest)
			if api.Is(err, api.Conflict) { // somebody has put another in its place
				left = append(left, ref)
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		s.out.Dropped = append(s.out.Dropped, x.Record.ID)
	}
	slices.Sort(s.out.Dropped)
	return left, nil
}

// blobs removes what no name reaches. If a name cannot be followed to its end,
// nothing is removed: what it leads to is not known.
func (s *sweep) blobs(ctx context.Context, c remote.Collector, names []remote.Ref) error {
	reached := map[digest.Digest]bool{}
	for _, ref := range names {
		if err := s.r.reach(ctx, ref.Desc.Digest, reached, 0); err != nil {
			return &api.Error{Kind: api.KindOf(err), Op: "collect", Object: ref.Name, Reason: "it cannot be followed, so nothing was removed", Err: err, Next: "push that commit again, or delete the name"}
		}
		if err := s.stay(ctx); err != nil {
			return err
		}
	}
	var gone []remote.Blob
	now := s.r.Now()
	err := c.Blobs(ctx, func(b remote.Blob) error {
		switch {
		case reached[b.Digest]:
		case now.Sub(b.Time) < remote.Grace:
			s.out.Waiting += b.Size
		default:
			gone = append(gone, b)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var all int64
	for _, b := range gone {
		all += b.Size
	}
	s.r.tell(Progress{Phase: "removing", Total: all})
	for _, b := range gone {
		if !s.dry {
			if err := s.stay(ctx); err != nil {
				return err
			}
			if err := c.Delete(ctx, b.Digest); err != nil {
				return err
			}
		}
		s.r.tell(Progress{Phase: "removing", Bytes: b.Size})
		s.out.Blobs++
		s.out.Bytes += b.Size
	}
	return nil
}

// reachText follows what a manifest or index names.
func (r *Remote) reachText(ctx context.Context, d digest.Digest, text []byte, seen map[digest.Digest]bool, depth int) error {
	var l links
	if err := json.Unmarshal(text, &l); err != nil {
		return damaged(string(d), "its manifest cannot be read")
	}
	seen[d] = true
	for _, m := range l.Manifests {
		if err := r.reach(ctx, m.Digest, seen, depth+1); err != nil {
			return err
		}
	}
	if l.Subject != nil {
		seen[l.Subject.Digest] = true
	}
	if l.Config != nil {
		seen[l.Config.Digest] = true
	}
	for _, x := range l.Layers {
		seen[x.Digest] = true
	}
	return nil
}
