package agent

import (
	"context"
	"errors"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

// dirty reports whether a head has what its branch's newest commit has not.
// Where that cannot be known it is taken to have, and sure is false.
func (h *head) dirty(ctx context.Context, rec api.Head) (dirty, sure bool, err error) {
	b, err := h.a.backend(rec.Pool)
	if err != nil {
		return true, false, err
	}
	hd, err := b.Head(ctx, h.storageKey())
	if err != nil {
		return true, false, err
	}
	if rec.Commit == "" {
		return true, true, nil
	}
	tip, err := h.a.Find(ctx, h.key.volume, rec.Commit, rec.Pool)
	if api.Is(err, api.NotFound) || api.Is(err, api.Unknown) || (err == nil && tip.Pool != rec.Pool) {
		return true, false, nil
	}
	if err != nil {
		return true, false, err
	}
	if d, ok := storage.As[storage.Differ](b); ok {
		dirty, err := d.Dirty(ctx, h.storageKey(), rec.Commit)
		if err == nil && !dirty {
			return false, true, nil
		}
		if err != nil && !api.Is(err, api.Unsupported) && !api.Is(err, api.NotFound) {
			return true, false, err
		}
		// It may differ in nothing but what the pool counts: a walk tells.
	}
	if hd.Dir == "" || tip.Snapshot.Dir == "" {
		return true, false, nil
	}
	err = tree.Walk(ctx, &tip.Snapshot, storage.Snapshot{ID: h.id(), Dir: hd.Dir, Created: h.a.deps.Now()}, nil, stopAtFirst{})
	switch {
	case errors.Is(err, errDiffers):
		return true, true, nil
	case err == nil:
		return false, true, nil
	case ctx.Err() != nil:
		return true, false, err
	}
	// Files that come and go under a walk make it fail: then somebody writes.
	return true, false, nil //nolint:nilerr // not knowing is said by sure
}

var errDiffers = errors.New("they differ")

// stopAtFirst ends a walk at the first difference.
type stopAtFirst struct{}

func (stopAtFirst) Gone(string) error                     { return errDiffers }
func (stopAtFirst) Entry(*tree.Entry, tree.Content) error { return errDiffers }

// BranchStatus tells how a branch stands to its newest commit.
func (a *Agent) BranchStatus(ctx context.Context, volume, branch string) (api.BranchStatus, error) {
	h, v, rec, err := a.owned("look at branch", volume, branch)
	if err != nil {
		return api.BranchStatus{}, err
	}
	s := api.BranchStatus{Volume: v.Name, Branch: branch, Current: v.Branch == branch, Node: rec.Node, Tip: rec.Commit, Expires: rec.Expires}
	if s.Dirty, s.Sure, err = h.dirty(ctx, rec); err != nil {
		return s, err
	}
	g, err := a.Graph(ctx, volume)
	if err != nil {
		return s, err
	}
	if c, here := g[rec.Commit]; here {
		s.Commit = &c
	}
	log, _, err := h.reflog(ctx)
	if err != nil {
		return s, err
	}
	s.Stashes = len(repo.Stashes(log))
	h.mu.Lock()
	s.Waiting = h.waiting
	if h.alarm != "" {
		s.Waiting = h.alarm
	}
	h.mu.Unlock()
	holders, err := h.holders(ctx)
	if err != nil {
		s.Waiting = "the container engine: " + err.Error()
		return s, nil
	}
	for _, x := range holders {
		s.Users = append(s.Users, x.Text)
	}
	return s, nil
}
