package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/repo"
)

// commitID is 160 random bits in hexadecimal.
func (a *Agent) commitID() string {
	const digits = 40
	id := a.deps.NewID()
	for len(id) < digits {
		id += a.deps.NewID()
	}
	return id[len(id)-digits:]
}

// Commit makes a commit of a head that this node owns.
func (a *Agent) Commit(ctx context.Context, volume string, r api.MakeCommit, by string) (api.Committed, error) {
	const op = "commit"
	if err := checkCommit(r); err != nil {
		return api.Committed{}, err
	}
	h, _, _, err := a.owned(op, volume, r.Branch)
	if err != nil {
		return api.Committed{}, err
	}
	x, err := h.hold(ctx, r.Consistency, false)
	if err != nil {
		return api.Committed{}, err
	}
	defer x.done()
	c := x.commit(a.commitID(), a.deps.Now(), r, by)
	err = x.take(ctx, c)
	if err2 := x.end(); err == nil {
		err = err2
	}
	if err != nil {
		x.drop()
		return api.Committed{}, err
	}
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{Advance: x.advance(c)})
	if err != nil {
		if definite(err) {
			x.drop()
		}
		return api.Committed{}, err
	}
	a.tell(after)
	a.event("volume.committed", "info", after, h.key.branch, fmt.Sprintf("commit %s of volume %s (%s): %s", short(c.ID), after.Name, c.Consistency, repo.Subject(c.Message)), map[string]string{"commit": c.ID})
	return api.Committed{Volume: after.Name, Branch: h.key.branch, Commit: c}, nil
}

func checkCommit(r api.MakeCommit) error {
	if err := api.CheckMessage(r.Message); err != nil {
		return err
	}
	if err := api.CheckLabels(r.Labels); err != nil {
		return err
	}
	switch r.Consistency {
	case "", api.ConsistencyCrash, api.ConsistencyPaused, api.ConsistencyApplication:
		return nil
	}
	return &api.Error{Kind: api.Invalid, Op: "commit", Object: string(r.Consistency), Reason: "there is no such level of consistency", Next: "the levels are crash, paused and application"}
}

// definite reports whether an error says that nothing was changed.
func definite(err error) bool {
	switch api.KindOf(err) {
	case api.Conflict, api.NotFound, api.Invalid, api.Denied, api.InUse, api.Exists, api.Exhausted, api.Unsupported:
		return true
	}
	return false
}

// commit is the record of the next commit of a held head.
func (x *hold) commit(id string, now time.Time, r api.MakeCommit, by string) api.Commit {
	c := api.Commit{
		ID: id, Volume: x.volume.ID, Branch: x.h.key.branch, Message: r.Message, Author: by, Time: now.UTC(),
		Labels: r.Labels, Consistency: x.level, Hooks: x.hooks,
	}
	if x.rec.Commit != "" {
		c.Parents = []string{x.rec.Commit}
	}
	return c
}

func (x *hold) advance(c api.Commit) *ledger.Advance {
	return &ledger.Advance{
		Branch: x.h.key.branch, Node: x.h.a.cfg.Node, Epoch: x.rec.Epoch, From: x.rec.Commit, To: c.ID,
		Tip: api.Tip{Op: repo.OpCommit, By: c.Author, At: c.Time, Note: repo.Subject(c.Message)},
	}
}

// Books advance the tips of several volumes at once; only a control node has them.
type Books interface {
	AdvanceAll(ctx context.Context, moves map[string]ledger.Advance) (map[string]api.Volume, error)
}

// CommitAll makes commits of several volumes' heads in one instant. It runs on
// a control node and asks the owners: all are held before the first snapshot,
// and until after the last, or nothing is committed.
func (a *Agent) CommitAll(ctx context.Context, heads []peer.Held, r api.MakeCommit, by string) ([]api.Committed, error) {
	const op = "commit"
	if err := checkCommit(r); err != nil {
		return nil, err
	}
	books, ok := a.deps.Ledger.(Books)
	if !ok {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Reason: "only a control node commits several volumes"}
	}
	group := a.commitID()
	slices.SortFunc(heads, func(x, y peer.Held) int { return compareHeld(x, y) }) // in one order, so that two never wait for each other
	var held []peer.Held
	letGo := func(commit bool) (err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), holdTime)
		defer cancel()
		for _, x := range slices.Backward(held) {
			if e := a.release(ctx, x, !commit); e != nil && err == nil {
				err = e
			}
		}
		return err
	}
	refuse := func(err error) error {
		if err2 := letGo(false); err2 != nil {
			a.deps.Log.Warn("what was held for a commit ends at its deadline", "error", err2)
		}
		return err
	}
	for i, x := range heads {
		if i > 0 && compareHeld(heads[i-1], x) == 0 {
			return nil, refuse(&api.Error{Kind: api.Invalid, Op: op, Object: x.Name, Reason: "it is named twice"})
		}
		x.Token = a.deps.NewID()
		held = append(held, x) // one that was held although the answer was lost is let go too
		if err := a.holdAt(ctx, &held[i], r); err != nil {
			return nil, refuse(err)
		}
	}
	moves, out := map[string]ledger.Advance{}, make([]api.Committed, 0, len(held))
	now := a.deps.Now().UTC()
	for _, x := range held {
		c := api.Commit{
			ID: a.commitID(), Volume: x.Volume, Branch: x.Branch, Message: r.Message, Author: by, Time: now, Labels: r.Labels,
			Consistency: x.Level, Hooks: x.Hooks, Group: group,
		}
		if x.Tip != "" {
			c.Parents = []string{x.Tip}
		}
		if err := a.takeAt(ctx, x, c); err != nil {
			return nil, refuse(err)
		}
		if _, twice := moves[x.Volume]; twice {
			return nil, refuse(&api.Error{Kind: api.Unsupported, Op: op, Object: x.Name, Reason: "two branches of it are named", Next: "commit one branch of each volume"})
		}
		moves[x.Volume] = ledger.Advance{
			Branch: x.Branch, Node: x.Node, Epoch: x.Epoch, From: x.Tip, To: c.ID,
			Tip: api.Tip{Op: repo.OpCommit, By: by, At: now, Note: repo.Subject(r.Message)},
		}
		out = append(out, api.Committed{Volume: x.Name, Branch: x.Branch, Commit: c})
	}
	if err := letGo(true); err != nil {
		return nil, err // the snapshots that were made go by themselves after a day
	}
	after, err := books.AdvanceAll(ctx, moves)
	if err != nil {
		return nil, err
	}
	for _, v := range after {
		a.event("volume.committed", "info", v, "", fmt.Sprintf("commit of volume %s together with %d more", v.Name, len(after)-1), map[string]string{"group": group})
	}
	return out, nil
}

func compareHeld(x, y peer.Held) int {
	if x.Volume != y.Volume {
		if x.Volume < y.Volume {
			return -1
		}
		return 1
	}
	switch {
	case x.Branch < y.Branch:
		return -1
	case x.Branch > y.Branch:
		return 1
	}
	return 0
}

// holdAt, takeAt and release ask a head's owner, which may be this node.
func (a *Agent) holdAt(ctx context.Context, x *peer.Held, r api.MakeCommit) error {
	ask := peer.Hold{Token: x.Token, Volume: x.Volume, Branch: x.Branch, Consistency: r.Consistency}
	var got peer.Held
	var err error
	if x.Node == a.cfg.Node {
		got, err = a.Hold(ctx, ask)
	} else {
		got, err = a.deps.Peers.Hold(ctx, x.Node, ask)
	}
	if err != nil {
		return err
	}
	x.Level, x.Hooks, x.Epoch, x.Tip = got.Level, got.Hooks, got.Epoch, got.Tip
	return nil
}

func (a *Agent) takeAt(ctx context.Context, x peer.Held, c api.Commit) error {
	take := peer.Take{Token: x.Token, Commit: c}
	if x.Node == a.cfg.Node {
		return a.Take(ctx, take)
	}
	return a.deps.Peers.Take(ctx, x.Node, take)
}

func (a *Agent) release(ctx context.Context, x peer.Held, drop bool) error {
	r := peer.Release{Token: x.Token, Drop: drop}
	if x.Node == a.cfg.Node {
		return a.Release(ctx, r)
	}
	return a.deps.Peers.Release(ctx, x.Node, r)
}

// Hold holds a head of this node for a commit of several volumes. It ends by
// itself: at its deadline if nobody releases it before.
func (a *Agent) Hold(ctx context.Context, r peer.Hold) (peer.Held, error) {
	h, _, _, err := a.owned("commit", r.Volume, r.Branch)
	if err != nil {
		return peer.Held{}, err
	}
	x, err := h.hold(ctx, r.Consistency, true)
	if err != nil {
		return peer.Held{}, err
	}
	if ctx.Err() != nil {
		// Whoever asked has gone, and will not release it.
		_ = x.end()
		x.done()
		return peer.Held{}, &api.Error{Kind: api.Canceled, Op: "commit", Object: x.volume.Name, Err: context.Cause(ctx)}
	}
	a.mu.Lock()
	a.holds[r.Token] = x
	a.mu.Unlock()
	x.openAtEnd()
	return peer.Held{
		Token: r.Token, Node: a.cfg.Node, Volume: r.Volume, Name: x.volume.Name, Branch: r.Branch,
		Level: x.level, Hooks: x.hooks, Epoch: x.rec.Epoch, Tip: x.rec.Commit,
	}, nil
}

func (a *Agent) holdOf(token string, forget bool) (*hold, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.holds[token]
	if x == nil {
		return nil, &api.Error{Kind: api.Conflict, Op: "commit", Object: a.cfg.Node, Reason: "it holds nothing for this commit any more", Next: "nothing was committed; try again"}
	}
	if forget {
		delete(a.holds, token)
	}
	return x, nil
}

// Take makes a held head's snapshot.
func (a *Agent) Take(ctx context.Context, r peer.Take) error {
	x, err := a.holdOf(r.Token, false)
	if err != nil {
		return err
	}
	if !api.IsCommitID(r.Commit.ID) || r.Commit.Volume != x.volume.ID {
		return &api.Error{Kind: api.Invalid, Op: "commit", Object: r.Commit.ID, Reason: "it is no commit of volume " + x.volume.Name}
	}
	return x.take(ctx, r.Commit)
}

// Release lets a held head's users go, and says whether they were held until now.
func (a *Agent) Release(_ context.Context, r peer.Release) error {
	x, err := a.holdOf(r.Token, true)
	if err != nil {
		if r.Drop {
			return nil
		}
		return err
	}
	err = x.end()
	x.done()
	if r.Drop || err != nil {
		x.drop()
	}
	return err
}
