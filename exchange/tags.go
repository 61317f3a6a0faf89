package exchange

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
)

// PushTags is what tags are to be pushed.
type PushTags struct {
	Tags  map[string]string // name -> commit
	Graph repo.Graph
	// Force moves tags of the remote that point to other commits.
	Force  bool
	DryRun bool
}

// Tagged is a tag of the remote that was made or moved.
type Tagged struct {
	Name   string `json:"name"`
	Commit string `json:"commit"`
	Was    string `json:"was,omitempty"` // that it pointed to
}

// PushTags makes the remote's tags as ours are, with the commits they need. One that
// points elsewhere there is left, and named by a Conflict after all others are done.
func (r *Remote) PushTags(ctx context.Context, pool Pool, p PushTags) (tags []Tagged, out Pushed, err error) {
	if !p.DryRun {
		release, err := r.lease(ctx)
		if err != nil {
			return nil, out, err
		}
		defer release()
	}
	var taken, lacking []string
	for _, name := range slices.Sorted(maps.Keys(p.Tags)) {
		commit := p.Tags[name]
		was, at, err := r.tag(ctx, name)
		switch {
		case err != nil:
			return tags, out, err
		case was == commit:
			continue
		case at != "" && !p.Force:
			taken = append(taken, fmt.Sprintf("%s (there %s, here %s)", name, orUnknown(short(was)), short(commit)))
			continue
		}
		tip, err := r.bring(ctx, pool, p.Graph, commit, p.DryRun, &out)
		if api.Is(err, api.NotFound) {
			lacking = append(lacking, fmt.Sprintf("%s (%s)", name, short(commit)))
			continue
		}
		if err != nil {
			return tags, out, err
		}
		if !p.DryRun {
			if out.Warning, err = r.point(ctx, remote.TagPrefix, name, tip, at); err != nil {
				return tags, out, err
			}
		}
		tags = append(tags, Tagged{Name: name, Commit: commit, Was: was})
	}
	return tags, out, leftTags("push tags", "the remote has them for other commits: ", taken, lacking)
}

// leftTags names the tags that were left, after all others are done.
func leftTags(op, why string, taken, lacking []string) error {
	e := &api.Error{Kind: api.NotFound, Op: op, Next: "the commits were pruned, or lie on another node: push from there, or delete the tags"}
	if len(lacking) > 0 {
		e.Reason = "neither here nor there is any data of " + strings.Join(lacking, ", ")
	}
	if len(taken) > 0 {
		reason := why + strings.Join(taken, ", ")
		if e.Reason != "" {
			reason += "; " + e.Reason
		}
		e = &api.Error{Kind: api.Conflict, Op: op, Reason: reason, Next: "choose another name, or move them with --force"}
	}
	if e.Reason == "" {
		return nil
	}
	return e
}

func orUnknown(id string) string {
	if id == "" {
		return "something that cannot be read"
	}
	return id
}

// Tags lists the remote's tags that can be read.
func (r *Remote) Tags(ctx context.Context) ([]Named, error) {
	var out Listing
	err := r.list(ctx, remote.TagPrefix, &out)
	return out.Tags, err
}

// tag gives the commit that a tag of the remote points to, and its manifest; ""
// for both when there is no such tag, for the commit when it cannot be read.
func (r *Remote) tag(ctx context.Context, name string) (commit string, at digest.Digest, err error) {
	ref, err := r.Store.Ref(ctx, remote.TagPrefix+remote.Escape(name))
	if api.Is(err, api.NotFound) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	s, err := unopened(r.Load(ctx, ref.Desc.Digest))
	switch {
	case err == nil:
		return s.Record.ID, ref.Desc.Digest, nil
	case api.Is(err, api.Damaged), api.Is(err, api.NotFound), api.Is(err, api.Invalid):
		return "", ref.Desc.Digest, nil
	}
	return "", "", err
}
