package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
)

// StartMove begins the move of a head that this node owns, or, for a dry run,
// only says what it would do.
func (a *Agent) StartMove(ctx context.Context, volume string, r api.StartMove, by string) (api.MovePlan, error) {
	if err := a.mayChange("move volume", volume); err != nil {
		return api.MovePlan{}, err
	}
	branch := r.Branch
	h := a.head(volume, branch)
	if branch == "" {
		if v, known := a.record(volume); known {
			branch = v.Branch
			h = a.head(volume, branch)
		}
	}
	if h == nil {
		return api.MovePlan{}, notHere(a.cfg.Node, volume)
	}
	v := h.volume()
	rec := v.Heads[branch]
	if rec.Node != a.cfg.Node {
		return api.MovePlan{}, notHere(a.cfg.Node, v.Name)
	}
	pool, err := a.targetPool(ctx, r.To, r.Pool)
	if err != nil {
		return api.MovePlan{}, err
	}
	if r.Options.Users == "" {
		r.Options.Users = api.UsersMove
	}
	wish := api.Move{To: r.To, Pool: pool, By: by, Requested: a.deps.Now(), Options: r.Options}
	out, err := h.preview(ctx, v, rec, wish)
	if err != nil {
		return out, err
	}
	if r.DryRun {
		if out.Base == "" {
			out.Bytes = h.weigh(ctx, rec.Pool)
		}
		return out, nil
	}
	wish.ID = a.deps.NewID()
	after, err := a.deps.Ledger.RequestMove(ctx, volume, branch, wish)
	if err := h.took(after, err); err != nil {
		return out, err
	}
	out.Move = after.Heads[branch].Move.ID
	return out, nil
}

// targetPool chooses the pool on another node: the one named, its default
// one, or its only one.
func (a *Agent) targetPool(ctx context.Context, node, name string) (string, error) {
	if node == a.cfg.Node {
		return a.choosePool(name)
	}
	const op = "choose a pool"
	var status api.NodeStatus
	err := a.deps.Store.View(ctx, func(tx *state.Tx) error {
		if _, _, err := state.Nodes.Get(tx, node); err != nil {
			return err
		}
		var err error
		status, _, err = state.Alive.Get(tx, node)
		if api.Is(err, api.NotFound) {
			return &api.Error{Kind: api.Unavailable, Op: op, Object: node, Reason: "the node does not answer", Next: "drover node ls shows since when"}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	var names []string
	for _, p := range status.Pools {
		names = append(names, p.Name)
	}
	switch {
	case name != "" && slices.Contains(names, name):
		return name, nil
	case name != "":
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: name + " on " + node, Reason: "the node has no pool of that name", Next: "drover pool ls shows what there is"}
	case slices.Contains(names, DefaultPool):
		return DefaultPool, nil
	case len(names) == 1:
		return names[0], nil
	case len(names) == 0:
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: node, Reason: "the node has no pool", Next: "drover pool add default --node " + node}
	}
	return "", &api.Error{Kind: api.Invalid, Op: op, Object: node, Reason: "the node has several pools and none is called " + DefaultPool, Next: "say which with --pool"}
}

// preview says what a move would do.
func (h *head) preview(ctx context.Context, v api.Volume, rec api.Head, wish api.Move) (api.MovePlan, error) {
	out := api.MovePlan{From: rec.Node, To: wish.To, Pool: wish.Pool, Bytes: -1, Format: repo.Portable}
	p, err := h.a.pool(rec.Pool)
	if err != nil {
		return out, err
	}
	holders, err := h.strangers(ctx)
	if err != nil {
		return out, err
	}
	if len(holders) > 0 && wish.Options.Users == api.UsersRefuse {
		return out, &api.Error{Kind: api.InUse, Op: "move volume", Object: v.Name, Reason: "it is used by " + names(holders), Next: "leave out --refuse-users: then they are stopped here and started there"}
	}
	mounted, err := h.mounted()
	if err != nil {
		return out, err
	}
	info := p.seen()
	m := plan.MoveState{Atomic: info.Atomic, Instant: info.Instant, Users: len(holders) > 0, Movable: true, Mounted: mounted}
	for _, x := range holders {
		if x.Container == "" {
			return out, &api.Error{Kind: api.InUse, Op: "move volume", Object: v.Name, Reason: "it is used by " + x.Text + ", which Drover cannot stop", Next: "end it first"}
		}
		out.Users = append(out.Users, x.Container)
	}
	if n, ok := storage.As[storage.NativeStreams](p.backend); ok {
		out.Format = n.Format()
	}
	bases, err := h.a.index.bases(h.id())
	if err != nil {
		return out, err
	}
	out.Base = bases[wish.To]
	for _, action := range plan.Preview(m, wish, rec.Epoch) {
		out.Actions = append(out.Actions, action.String())
	}
	return out, nil
}

// Resize sets a volume's wished size, after seeing that it would fit; the
// pool is told by the plan.
func (a *Agent) Resize(ctx context.Context, volume string, size int64) (api.Volume, error) {
	known, there := a.record(volume)
	h := a.head(volume, known.Branch)
	if !there || h == nil {
		return api.Volume{}, notHere(a.cfg.Node, volume)
	}
	v := h.volume()
	rec := v.Heads[h.key.branch]
	if rec.Node != a.cfg.Node {
		return v, notHere(a.cfg.Node, v.Name)
	}
	p, err := a.pool(rec.Pool)
	if err != nil {
		return v, err
	}
	hd, err := p.backend.Head(ctx, h.storageKey())
	if err != nil {
		return v, err
	}
	if size != 0 && hd.Used > size {
		return v, &api.Error{Kind: api.Exhausted, Op: "resize volume", Object: v.Name, Reason: fmt.Sprintf("its data takes %d bytes", hd.Used), Next: "remove data, or choose a larger size"}
	}
	after, err := a.deps.Ledger.Resize(ctx, volume, size)
	return after, h.took(after, err)
}

// Held lists the snapshots of a volume that this node holds, latest last.
func (a *Agent) Held(ctx context.Context, volume string) ([]api.HeldSnapshot, error) {
	out := []api.HeldSnapshot{}
	for _, p := range a.poolList() {
		if p.seen().State == api.PoolGone {
			continue
		}
		list, err := p.backend.Snapshots(ctx, volume)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			out = append(out, api.HeldSnapshot{Pool: p.name, ID: s.ID, Created: s.Created})
		}
	}
	slices.SortFunc(out, func(x, y api.HeldSnapshot) int { return x.Created.Compare(y.Created) })
	return out, nil
}
