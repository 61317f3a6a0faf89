package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
)

// Branch makes a branch on this node, from a commit that one of its pools holds.
func (a *Agent) Branch(ctx context.Context, volume string, r api.MakeBranch, by string) (api.Volume, error) {
	const op = "make branch"
	v, known := a.record(volume)
	if !known {
		return v, notHere(a.cfg.Node, volume)
	}
	if err := ledger.CheckBranch(v, op, r.Name); err != nil {
		return v, err
	}
	if r.Expire < 0 {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: r.Name, Reason: "it would have to be deleted in the past"}
	}
	from, err := a.resolveIn(ctx, v, v.Branch, r.From)
	if err != nil {
		return v, err
	}
	f, err := a.Find(ctx, volume, from, v.Heads[v.Branch].Pool)
	if err != nil {
		return v, err
	}
	b := ledger.NewBranch{
		Branch: r.Name, Node: a.cfg.Node, Pool: f.Pool, Seed: from, Commit: from,
		Tip: api.Tip{Op: repo.OpBranch, By: by, At: a.deps.Now().UTC(), Note: "at " + short(from)},
	}
	if s := f.Commit; s.Stash != "" {
		// A stash is no commit that a branch could point to: it is what was not
		// committed yet on top of its parent.
		b.Commit, b.Tip.Note = "", "from stash "+short(from)
		if len(s.Parents) > 0 {
			b.Commit = s.Parents[0]
		}
	}
	if r.Expire > 0 {
		b.Expires = a.deps.Now().Add(r.Expire).UTC()
	}
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{NewBranch: &b})
	if err != nil {
		return v, err
	}
	a.take(after, true)
	a.event("volume.branched", "info", after, r.Name, fmt.Sprintf("branch %s of volume %s begins at commit %s", r.Name, after.Name, short(from)), nil)
	return after, a.ready(ctx, volume, r.Name, branchWait)
}

// branchWait is how long a new branch is waited for: pools without clones copy it.
const branchWait = 10 * time.Minute

// alone waits for the head to have no work, then keeps its goroutine from
// acting while f does what cannot be done in steps. Nobody can begin to use
// the head meanwhile.
func (h *head) alone(ctx context.Context, op string, f func(x *hold) error) error {
	select {
	case h.acting <- struct{}{}:
	case <-ctx.Done():
		return &api.Error{Kind: api.Canceled, Op: op, Object: h.id(), Err: context.Cause(ctx)}
	}
	defer func() { <-h.acting; h.kick() }()
	h.mounting.Lock()
	defer h.mounting.Unlock()
	x, err := h.begin(op)
	if err != nil {
		return err
	}
	if x.rec.Move != nil || x.rec.From != "" {
		return &api.Error{Kind: api.InUse, Op: op, Object: x.volume.Name + "@" + h.key.branch, Reason: "it is just moving", Next: "try again when it has moved"}
	}
	return f(x)
}

// putAway makes sure that commits hold all that a head has, and writes beside
// it that it is let go of. Whoever uses it makes that fail.
func (x *hold) putAway(ctx context.Context, op, id, by string) (stash string, err error) {
	h := x.h
	holders, err := h.holders(ctx)
	if err != nil {
		return "", err
	}
	if len(holders) > 0 {
		return "", &api.Error{Kind: api.InUse, Op: op, Object: x.volume.Name + "@" + h.key.branch, Reason: "it is used by " + names(holders), Next: "stop them first"}
	}
	if err := h.unmount(ctx, x.b); err != nil {
		return "", err
	}
	dirty, _, err := h.dirty(ctx, x.rec)
	if err != nil {
		return "", err
	}
	if dirty {
		w := workJournal{Op: op, Stash: h.a.commitID(), By: by, At: h.a.deps.Now().UTC()}
		if err := h.stash(ctx, x.volume, x.rec, w); err != nil {
			return "", err
		}
		stash = w.Stash
	}
	return stash, h.keepNote(ctx, x.rec.Pool, x.volume, x.rec.Epoch, id)
}

// The beginnings of what a head's note says when it was let go of because its
// branch was to be deleted or renamed.
const (
	forDrop   = "drop "
	forRename = "rename "
)

// stillThere asks the ledger, before a head is opened again that was let go of
// for a branch to be deleted or renamed, whether that took effect after all:
// the answer may have been lost, and the watch be late.
func (h *head) stillThere(ctx context.Context, o plan.Observed) error {
	if !slices.ContainsFunc(o.Copies, func(c plan.Copy) bool {
		return strings.HasPrefix(c.ReleasedFor, forDrop) || strings.HasPrefix(c.ReleasedFor, forRename)
	}) {
		return nil
	}
	now, err := h.a.deps.Ledger.Volume(ctx, h.key.volume)
	if err != nil {
		return err
	}
	h.a.take(now, true)
	if _, there := now.Heads[h.key.branch]; !there {
		return errLookAgain
	}
	return nil
}

// DropBranch deletes a branch that nobody uses. What was not committed is kept
// in a stash, and all of it can be brought back for a day.
func (a *Agent) DropBranch(ctx context.Context, volume, branch, by string) (api.Dropped, error) {
	const op = "delete branch"
	h, v, _, err := a.owned(op, volume, branch)
	if err != nil {
		return api.Dropped{}, err
	}
	if v.Branch == branch {
		return api.Dropped{}, &api.Error{Kind: api.InUse, Op: op, Object: v.Name + "@" + branch, Reason: "it is the current branch", Next: "check another one out first: drover checkout " + v.Name + " BRANCH"}
	}
	var out api.Dropped
	err = h.alone(ctx, op, func(x *hold) error {
		kept, err := x.putAway(ctx, op, forDrop+a.deps.NewID(), by)
		if err != nil {
			return err
		}
		after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{DropBranch: &ledger.DropBranch{
			Branch: branch, Node: a.cfg.Node, Epoch: x.rec.Epoch, From: x.rec.Commit, Kept: kept, By: by,
		}})
		if err != nil {
			return err // the next look opens the head again, if the record has it
		}
		a.take(after, true)
		for _, d := range after.Dropped {
			if d.Branch == branch && d.Epoch == x.rec.Epoch {
				out = d
			}
		}
		return nil
	})
	if err == nil {
		a.event("volume.branch-deleted", "info", v, branch, fmt.Sprintf("branch %s of volume %s was deleted by %s; drover undo brings it back until %s", branch, v.Name, by, out.Purge.UTC().Format(time.DateTime)), nil)
	}
	return out, err
}

// RestoreBranch brings a deleted branch back whose data is on this node.
func (a *Agent) RestoreBranch(ctx context.Context, volume, branch, by string) (api.Moved, error) {
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{RestoreBranch: &ledger.RestoreBranch{Branch: branch, Node: a.cfg.Node, By: by}})
	if err != nil {
		return api.Moved{}, err
	}
	a.take(after, true)
	out := api.Moved{Volume: after.Name, Branch: branch, Op: repo.OpUndo, To: after.Heads[branch].Commit, Note: "of deleting the branch"}
	a.event("volume.branch-restored", "info", after, branch, fmt.Sprintf("branch %s of volume %s was brought back by %s", branch, after.Name, by), nil)
	return out, a.ready(ctx, volume, branch, branchWait)
}

// RenameBranch gives a branch that nobody uses another name. Its head is made
// anew under that name, from a commit or stash that holds all it has.
func (a *Agent) RenameBranch(ctx context.Context, volume, branch, to, by string) (api.Volume, error) {
	const op = "rename branch"
	h, v, _, err := a.owned(op, volume, branch)
	if err != nil {
		return v, err
	}
	if err := ledger.CheckBranch(v, op, to); err != nil && !api.Is(err, api.Exhausted) {
		return v, err
	}
	var after api.Volume
	err = h.alone(ctx, op, func(x *hold) error {
		log, known, err := h.reflog(ctx)
		if err != nil || !known {
			if err == nil {
				err = &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name, Reason: "its reflog cannot be read now"}
			}
			return err
		}
		if x.rec.Commit == "" {
			return &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + branch, Reason: "it has no commit yet", Next: "drover commit " + v.Name + " -m … makes the first"}
		}
		packed, err := repo.PackRefLog(log)
		if err != nil {
			return err
		}
		if err := put(a.index, bucketRefLog, volume+"@"+to, savedLog{0, packed}); err != nil {
			return err
		}
		seed, err := x.putAway(ctx, op, forRename+a.deps.NewID(), by)
		if err != nil {
			return err
		}
		if seed == "" {
			seed = x.rec.Commit
		}
		after, err = a.deps.Ledger.Change(ctx, volume, ledger.Change{RenameBranch: &ledger.RenameBranch{
			Branch: branch, To: to, Node: a.cfg.Node, Epoch: x.rec.Epoch, From: x.rec.Commit, Seed: seed, By: by,
		}})
		if err == nil {
			a.take(after, true)
		}
		return err
	})
	if err != nil {
		return v, err
	}
	return after, a.ready(ctx, volume, to, branchWait)
}

// expireAgain is when a branch is tried again that was used when its time came.
const expireAgain = 10 * time.Minute

// expire deletes a branch whose time has come, unless somebody uses it.
func (h *head) expire(v api.Volume) {
	if now := h.a.deps.Now(); now.Sub(h.expired) < expireAgain {
		return
	} else {
		h.expired = now
	}
	h.a.group.Go(func() error {
		if _, err := h.a.DropBranch(h.a.ctx, h.key.volume, h.key.branch, "its expiry"); err != nil && h.a.ctx.Err() == nil {
			h.a.event("volume.expiry-failed", "warning", v, h.key.branch, "branch "+h.key.branch+" of volume "+v.Name+" should be deleted by itself: "+err.Error(), nil)
		}
		return nil
	})
}

// Undo takes the last move of a branch's tip back.
func (a *Agent) Undo(ctx context.Context, volume, branch, by string) (api.Moved, error) {
	const op = "undo"
	h, v, rec, err := a.owned(op, volume, branch)
	if err != nil {
		return api.Moved{}, err
	}
	log, err := a.RefLog(ctx, volume, branch)
	if err != nil {
		return api.Moved{}, err
	}
	nothing := &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + branch, Reason: "nothing of it can be undone", Next: "drover reflog " + v.Name + " shows what happened; drover reset goes anywhere"}
	if len(log) == 0 {
		return api.Moved{}, nothing
	}
	last := log[len(log)-1]
	if last.To != rec.Commit {
		return api.Moved{}, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + branch, Reason: "it was changed just now", Next: "try again"}
	}
	note := "of " + last.Op
	switch {
	case last.Op == repo.OpCommit, last.Op == repo.OpUndo && strings.HasPrefix(last.Note, "of "+repo.OpCommit):
		if last.Op == repo.OpUndo {
			note = "of " + repo.OpCommit + ", undone" // so that this one is a move of the name alone too
		}
		return a.moveTip(ctx, h, last.From, by, note)
	case last.Op == repo.OpRename && strings.HasPrefix(last.Note, "was "):
		was := strings.TrimPrefix(last.Note, "was ")
		_, err := a.RenameBranch(ctx, volume, branch, was, by)
		return api.Moved{Volume: v.Name, Branch: was, Op: op, To: rec.Commit, Note: note}, err
	case last.Op == repo.OpDrop:
		g, err := a.Graph(ctx, volume)
		if err != nil {
			return api.Moved{}, err
		}
		if _, here := g[last.Note]; !here {
			return api.Moved{}, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "stash " + short(last.Note) + " was dropped and its space is freed"}
		}
		return a.moveTip(ctx, h, rec.Commit, by, repo.UndoneDrop+last.Note)
	case last.Op == repo.OpUndo && strings.HasPrefix(last.Note, repo.UndoneDrop):
		return api.Moved{}, nothing
	case last.Op == repo.OpBranch, last.Op == repo.OpUndo && strings.HasSuffix(last.Note, "deleting it"):
		return api.Moved{}, nothing
	}
	seed := last.Kept
	if seed == "" {
		seed = last.From
	}
	if seed == "" {
		return api.Moved{}, nothing
	}
	w, err := h.do(ctx, func(api.Volume, api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkReset, Op: repo.OpUndo, To: last.From, Seed: seed, By: by, Note: note}, nil
	})
	return h.moved(w), err
}

// moveTip moves a branch's name and leaves its content alone.
func (a *Agent) moveTip(ctx context.Context, h *head, to, by, note string) (api.Moved, error) {
	m, err := a.noteTip(ctx, h, "undo", to, api.Tip{Op: repo.OpUndo, By: by, Note: note})
	m.Note = note + "; the content stays as it is"
	return m, err
}

// noteTip notes something in a branch's reflog and moves its tip; the drop of a
// stash leaves that where it is.
func (a *Agent) noteTip(ctx context.Context, h *head, op, to string, tip api.Tip) (api.Moved, error) {
	h.mounting.Lock()
	defer h.mounting.Unlock()
	x, err := h.begin(op)
	if err != nil {
		return api.Moved{}, err
	}
	if tip.Op == repo.OpDrop {
		to = x.rec.Commit
	}
	tip.At = a.deps.Now().UTC()
	after, err := a.deps.Ledger.Change(ctx, h.key.volume, ledger.Change{Advance: &ledger.Advance{
		Branch: h.key.branch, Node: a.cfg.Node, Epoch: x.rec.Epoch, From: x.rec.Commit, To: to, Tip: tip,
	}})
	if err != nil {
		return api.Moved{}, err
	}
	a.take(after, true)
	return api.Moved{Volume: after.Name, Branch: h.key.branch, Op: op, From: x.rec.Commit, To: to}, nil
}

// Tag names a commit that this node knows.
func (a *Agent) Tag(ctx context.Context, volume string, r api.MakeTag) (api.Volume, error) {
	v, known := a.record(volume)
	if !known {
		return v, notHere(a.cfg.Node, volume)
	}
	if err := api.CheckTagName(r.Name); err != nil {
		return v, err
	}
	id, err := a.resolveIn(ctx, v, v.Branch, r.At)
	if err != nil {
		return v, err
	}
	if _, err := a.Find(ctx, volume, id, ""); err != nil {
		return v, err
	}
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{Tag: &ledger.Tag{Name: r.Name, Commit: id, Force: r.Force}})
	if err == nil {
		a.take(after, true)
	}
	return after, err
}

// Log lists the commits that a reference, or with all every name, leads to,
// newest first.
func (a *Agent) Log(ctx context.Context, volume, branch, at string, all bool, limit int) ([]api.LoggedCommit, error) {
	v, known := a.record(volume)
	if !known {
		return nil, notHere(a.cfg.Node, volume)
	}
	if branch == "" {
		branch = v.Branch
	}
	g, err := a.Graph(ctx, volume)
	if err != nil {
		return nil, err
	}
	var tips []string
	if all {
		for _, h := range v.Heads {
			tips = append(tips, h.Commit)
		}
		tips = append(tips, a.nameless(v)...)
	} else {
		if at == "" && v.Heads[branch].Commit == "" {
			return []api.LoggedCommit{}, nil
		}
		id, err := a.resolveIn(ctx, v, branch, at)
		if err != nil {
			return nil, err
		}
		tips = []string{id}
	}
	refs := refsByCommit(v)
	out := []api.LoggedCommit{}
	for _, c := range g.Log(limit, tips...) {
		l := api.LoggedCommit{Commit: c, Refs: refs[c.ID]}
		for _, p := range c.Parents {
			if _, here := g[p]; !here {
				l.Missing = append(l.Missing, p)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// refsByCommit turns a record's names around.
func refsByCommit(v api.Volume) map[string][]string {
	refs := map[string][]string{}
	for name, h := range v.Heads {
		if h.Commit != "" {
			refs[h.Commit] = append(refs[h.Commit], name)
		}
	}
	for name, id := range v.Tags {
		refs[id] = append(refs[id], "tag: "+name)
	}
	for name, id := range v.Tracking {
		refs[id] = append(refs[id], name)
	}
	for id := range refs {
		slices.SortFunc(refs[id], func(x, y string) int {
			if (x == v.Branch) != (y == v.Branch) {
				if x == v.Branch {
					return -1
				}
				return 1
			}
			return strings.Compare(x, y)
		})
	}
	return refs
}

// strays lists the branches of which this node's pools hold a head.
func (a *Agent) strays(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	for _, p := range a.poolList() {
		if p.seen().State == api.PoolGone {
			continue
		}
		heads, err := p.backend.Heads(ctx)
		if err != nil {
			return out, err
		}
		for _, h := range heads {
			out[h.Key.Volume] = append(out[h.Key.Volume], h.Key.Branch)
		}
	}
	return out, nil
}
