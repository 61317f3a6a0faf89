package exchange

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Listing is what a remote has.
type Listing struct {
	Branches []Named  `json:"branches"`
	Tags     []Named  `json:"tags"`
	Commits  []Listed `json:"commits"` // by id
	// Damaged are names of commits that cannot be read, with the reason.
	Damaged map[string]string `json:"damaged,omitempty"`
}

// Named is a branch or tag with the commit that it points to.
type Named struct {
	Name    string `json:"name"` // cut where the remote keeps no longer one
	Listed  `json:"at"`
	Changed time.Time `json:"changed,omitzero"` // where the remote says it
}

// Listed is a commit.
type Listed struct {
	api.Commit
	Sealed string        `json:"sealed,omitempty"` // id of the key
	Bytes  int64         `json:"bytes"`            // of all files' sizes
	Stored int64         `json:"stored"`           // of all packs and indexes that it needs
	Digest digest.Digest `json:"digest"`           // of the manifest
	// Content is the digest of its content.
	Content string `json:"content"`
}

// readers are how many commits are looked at at once.
const readers = 8

// List reads names and records, no data: what branches and tags point to, and
// with commits also every other commit there is.
func (r *Remote) List(ctx context.Context, commits bool) (Listing, error) {
	out := Listing{Branches: []Named{}, Tags: []Named{}, Commits: []Listed{}, Damaged: map[string]string{}}
	prefixes := []string{remote.BranchPrefix, remote.TagPrefix}
	if commits {
		prefixes = append(prefixes, remote.CommitPrefix)
	}
	for _, prefix := range prefixes {
		if err := r.list(ctx, prefix, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// list adds what the names lead to that begin with prefix.
func (r *Remote) list(ctx context.Context, prefix string, out *Listing) error {
	refs, err := r.refs(ctx, prefix)
	if err != nil {
		return err
	}
	stored, err := r.stored(ctx, refs)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		s := stored[i]
		switch {
		case s.err != nil && out.Damaged != nil:
			out.Damaged[ref.Name] = s.err.Error()
		case s.err != nil || s.Stored == nil: // of somebody else
		case prefix == remote.CommitPrefix:
			out.Commits = append(out.Commits, s.listed())
		default:
			name := Named{Name: whole(ref, ref.Name[len(prefix):]), Listed: s.listed(), Changed: ref.Time}
			if prefix == remote.BranchPrefix {
				out.Branches = append(out.Branches, name)
			} else {
				out.Tags = append(out.Tags, name)
			}
		}
	}
	return nil
}

func (s *Stored) listed() Listed {
	l := Listed{Commit: s.Record.Commit, Sealed: s.Record.Key, Bytes: s.Record.Content.Bytes, Digest: s.Manifest.Digest, Content: s.Record.Content.Digest}
	for _, n := range s.packs {
		l.Stored += n
	}
	for _, x := range s.Record.Layers {
		l.Stored += x.Size
	}
	return l
}

// whole is a branch's or tag's name as it was given.
func whole(ref remote.Ref, name string) string {
	if full, ok := remote.Unescape(name); ok {
		return full
	}
	if full := ref.Desc.Annotations[remote.RefAnnotation]; remote.Escape(full) == name {
		return full
	}
	return name
}

// refs lists the names that begin with prefix, with their digests.
func (r *Remote) refs(ctx context.Context, prefix string) ([]remote.Ref, error) {
	refs, err := r.Store.Refs(ctx, prefix)
	if err != nil {
		return nil, err
	}
	g, looking := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i := range refs {
		if refs[i].Desc.Digest != "" {
			continue
		}
		g.Go(func() error {
			full, err := r.Store.Ref(looking, refs[i].Name)
			if err != nil && !api.Is(err, api.NotFound) { // it may go meanwhile
				return err
			}
			at := refs[i].Time
			refs[i].Desc = full.Desc
			if !full.Time.IsZero() {
				at = full.Time
			}
			refs[i].Time = at
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := refs[:0]
	for _, ref := range refs {
		if ref.Desc.Digest != "" {
			out = append(out, ref)
		}
	}
	return out, nil
}

// found is what a name points to: a commit, something else (nil), or something
// that is damaged.
type found struct {
	*Stored
	err error
}

// stored reads the commits of names, each once. A key is not needed: what
// retention looks at is in clear.
func (r *Remote) stored(ctx context.Context, refs []remote.Ref) ([]found, error) {
	var mu sync.Mutex
	known := map[digest.Digest]found{} // guarded by mu
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	started := map[digest.Digest]bool{}
	for _, ref := range refs {
		d := ref.Desc.Digest
		if started[d] || strings.HasPrefix(ref.Name, remote.KeyPrefix) {
			continue
		}
		started[d] = true
		g.Go(func() error {
			s, err := unopened(r.Load(reading, d))
			switch {
			case api.Is(err, api.Invalid):
				s, err = nil, nil
			case err != nil && !api.Is(err, api.Damaged) && !api.Is(err, api.NotFound):
				return err // not knowing is not damage
			}
			mu.Lock()
			defer mu.Unlock()
			known[d] = found{s, err}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := make([]found, len(refs))
	for i, ref := range refs {
		out[i] = known[ref.Desc.Digest]
	}
	return out, nil
}

// reach adds everything that a manifest or index leads to.
func (r *Remote) reach(ctx context.Context, d digest.Digest, seen map[digest.Digest]bool, depth int) error {
	if seen[d] {
		return nil
	}
	if depth > 4 {
		return damaged(string(d), "its indexes go deeper than any of Drover's")
	}
	_, text, err := r.Store.Manifest(ctx, d)
	if err != nil {
		return err
	}
	return r.reachText(ctx, d, text, seen, depth)
}

// links are what manifests and indexes name.
type links struct {
	Config    *ocispec.Descriptor  `json:"config"`
	Subject   *ocispec.Descriptor  `json:"subject"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}
