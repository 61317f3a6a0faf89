package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
)

// This file is what a node does after the cluster's state came back from a
// backup: it reports what its pools remember, and until the cluster has settled
// what follows from that, it mounts nothing new, removes nothing and moves
// nothing. What runs keeps running.

const keyIncarnation = "incarnation"

// holdIfBehind holds the node from the start when its pools have not been
// reported to this incarnation.
func (a *Agent) holdIfBehind() error {
	last, found, err := get[uint64](a.index, bucketMeta, keyIncarnation)
	switch {
	case err != nil || a.cfg.Incarnation == 0 || last >= a.cfg.Incarnation:
		return err
	case !found && a.cfg.Incarnation == 1:
		// The first incarnation came from no backup.
		return put(a.index, bucketMeta, keyIncarnation, a.cfg.Incarnation)
	}
	a.onHold = "this node has not reported its pools yet"
	return nil
}

// OnHold says why nothing new may be mounted here, "" when it may.
func (a *Agent) OnHold() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.onHold
}

func (a *Agent) hold(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onHold = why
}

// mayChange refuses what must wait for the end of a recovery.
func (a *Agent) mayChange(op, object string) error {
	why := a.OnHold()
	if why == "" {
		return nil
	}
	return &api.Error{Kind: api.Unknown, Op: op, Object: object, Reason: "the cluster's state came back from a backup, and " + why + "; until then nobody knows for sure who owns what", Next: "drover status shows what is waited for; what runs keeps running"}
}

// mayMount refuses a mount during a recovery, unless the head is mounted.
func (a *Agent) mayMount(v api.Volume, branch string) error {
	err := a.mayChange("mount volume", v.Name)
	if err == nil {
		return nil
	}
	if h := a.head(v.ID, branch); h != nil {
		if mounted, err := h.mounted(); err == nil && mounted {
			return nil
		}
	}
	if waiting := a.wait(headKey{v.ID, branch}); waiting != nil {
		a.deps.Log.Error("cannot note that a container waits", "volume", v.Name, "error", waiting)
	}
	return err
}

// comeBack reports the pools and waits until the cluster has settled what they
// hold. It returns at once when there was no recovery.
func (a *Agent) comeBack(ctx context.Context) error {
	if a.OnHold() == "" {
		return nil
	}
	a.deps.Events.Add(api.Event{Type: "node.recovering", Level: "warning", Object: a.cfg.Node, Message: fmt.Sprintf("the cluster was recovered from a backup, incarnation %d; %s reports what its pools hold, and mounts and removes nothing new until that is settled", a.cfg.Incarnation, a.cfg.Node)})
	const every = 500 * time.Millisecond
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	reported, failed := false, 0
	for turn := 0; ; turn++ {
		again, over, err := a.settled(ctx)
		switch {
		case err != nil:
			a.hold("the state store does not answer: " + err.Error())
		case over:
			if err := put(a.index, bucketMeta, keyIncarnation, a.cfg.Incarnation); err != nil {
				return err
			}
			a.hold("")
			a.deps.Events.Add(api.Event{Type: "node.recovered", Object: a.cfg.Node, Message: a.cfg.Node + " has taken its place in the recovered cluster"})
			a.kickAll()
			return nil
		}
		// A report that failed, or of which a pool was missing, is made again every few seconds.
		if (!reported && failed == 0) || ((err != nil || !reported || again) && turn%8 == 0) {
			if err := a.reportAll(ctx); err != nil {
				failed++
				a.hold("this node could not report its pools: " + err.Error())
				a.deps.Log.Warn("cannot report the pools; trying again", "error", err)
			} else {
				reported = true
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// settled looks how far the recovery is: again says that the cluster still
// waits for this node's report, over that everything is settled.
func (a *Agent) settled(ctx context.Context) (again, over bool, err error) {
	var c api.Cluster
	var n api.Node
	err = a.deps.Store.View(ctx, func(tx *state.Tx) error {
		if c, _, err = state.TheCluster.Get(tx, "cluster"); err != nil {
			return err
		}
		n, _, err = state.Nodes.Get(tx, a.cfg.Node)
		return err
	})
	switch {
	case api.Is(err, api.NotFound):
		return true, false, nil // the node joined after the backup; its report makes it known
	case err != nil:
		return false, false, err
	case c.Incarnation != a.cfg.Incarnation:
		return false, false, &api.Error{Kind: api.Unavailable, Op: "recover", Object: a.cfg.Node, Reason: fmt.Sprintf("the state store is of incarnation %d, not %d", c.Incarnation, a.cfg.Incarnation)}
	case c.Recovery == nil:
		here := n.Incarnation == c.Incarnation
		return !here, here, nil
	}
	_, mine := c.Recovery.Awaiting[a.cfg.Node]
	var others []string
	for node := range c.Recovery.Awaiting {
		if node != a.cfg.Node {
			others = append(others, node)
		}
	}
	slices.Sort(others)
	switch {
	case c.Recovery.Restoring:
		a.hold("its records are being written")
	case mine:
		a.hold("this node has not reported all of its pools yet: " + c.Recovery.Awaiting[a.cfg.Node])
	default:
		a.hold(fmt.Sprintf("these nodes have not reported their pools yet: %v", others))
	}
	return mine, false, nil
}

// unreported are the nodes that have not told the cluster in this incarnation
// what they hold. Which volumes there are is not known for certain then.
func (a *Agent) unreported(ctx context.Context) (silent []string, err error) {
	if a.cfg.Incarnation <= 1 {
		return nil, nil
	}
	_, err = state.Nodes.All(ctx, a.deps.Store, "", func(name string, n api.Node, _ int64) error {
		if n.Incarnation < a.cfg.Incarnation {
			silent = append(silent, name)
		}
		return nil
	})
	return silent, err
}

// maxPart is about how many bytes one part of a report has.
const maxPart = 512 << 10

func (a *Agent) reportAll(ctx context.Context) error {
	copies, gone, err := a.Holdings(ctx)
	if err != nil {
		return err
	}
	return a.report(ctx, copies, gone)
}

func (a *Agent) report(ctx context.Context, copies []ledger.Copy, gone map[string]string) error {
	r := ledger.Report{Incarnation: a.cfg.Incarnation, Copies: []ledger.Copy{}}
	size := 0
	for _, c := range copies {
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if size += len(text); size > maxPart && len(r.Copies) > 0 {
			if err := a.deps.Report(ctx, r); err != nil {
				return err
			}
			r.Part, r.Copies, size = r.Part+1, []ledger.Copy{}, len(text)
		}
		r.Copies = append(r.Copies, c)
	}
	r.Last, r.Gone = true, gone
	return a.deps.Report(ctx, r)
}

// reportPool tells the cluster of a pool that came to this node, or back to it,
// with heads that no record here knows: they may be of before a recovery.
func (a *Agent) reportPool(ctx context.Context, name string) {
	if a.group == nil || a.OnHold() != "" || a.deps.Report == nil || a.cfg.Incarnation == 0 {
		return // what is reported anyway takes it in
	}
	a.group.Go(func() error {
		p, err := a.pool(name)
		if err != nil {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		copies, err := a.copiesIn(a.ctx, p, nil)
		if err != nil {
			a.deps.Log.Warn("cannot look what a pool holds", "pool", name, "error", err)
			return nil
		}
		copies = slices.DeleteFunc(copies, func(c ledger.Copy) bool { return a.head(c.Volume.ID, c.Branch) != nil })
		if len(copies) == 0 {
			return nil
		}
		others := map[string]string{}
		for _, q := range a.poolList() {
			if q.name != name {
				others[q.name] = "it is not part of this report"
			}
		}
		if err := a.report(a.ctx, copies, others); err != nil {
			a.deps.Log.Warn("cannot report what a pool holds", "pool", name, "error", err)
		}
		return nil
	})
}

// Holdings is what this node's pools hold, as they remember it; gone are the
// pools that cannot be looked into, with why.
func (a *Agent) Holdings(ctx context.Context) (copies []ledger.Copy, gone map[string]string, err error) {
	records, err := a.index.volumes()
	if err != nil {
		return nil, nil, err
	}
	known := map[string]api.Volume{}
	for _, v := range records {
		known[v.ID] = v
	}
	gone = map[string]string{}
	for _, p := range a.poolList() {
		if info := p.look(ctx); info.State == api.PoolGone {
			gone[p.name] = info.Reason
			continue
		}
		list, err := a.copiesIn(ctx, p, known)
		if err != nil {
			return nil, nil, err
		}
		copies = append(copies, list...)
	}
	return copies, gone, nil
}

// copiesIn gives a pool's heads with what is noted beside them, and those that
// a move had just turned into snapshots.
func (a *Agent) copiesIn(ctx context.Context, p *pool, known map[string]api.Volume) ([]ledger.Copy, error) {
	heads, err := p.backend.Heads(ctx)
	if err != nil {
		return nil, err
	}
	var out []ledger.Copy
	there := map[storage.HeadKey]bool{}
	for _, hd := range heads {
		there[hd.Key] = true
		n := readNote(hd.Note)
		if n.Format == 0 || n.Volume.ID != hd.Key.Volume || n.Branch != hd.Key.Branch || n.Cluster != a.cfg.Cluster {
			a.deps.Events.Add(api.Event{Type: "pool.strange", Level: "warning", Object: p.name, Message: fmt.Sprintf("pool %s holds %s, of which it does not remember that it is this cluster's; it is left alone", p.name, hd.Key)})
			continue
		}
		c := ledger.Copy{Node: a.cfg.Node, Pool: p.name, Branch: n.Branch, Epoch: n.Epoch, Released: n.Released, Volume: n.Volume}
		if c.Released != "" {
			c.To, c.ToPool = target(n.Branch, c.Released, n.Epoch, n.Volume, known[n.Volume.ID])
		}
		out = append(out, c)
	}
	sealed, err := a.sealedIn(ctx, p, known, there)
	return append(out, sealed...), err
}

// target is whom a head was let go to, from the records of that time.
func target(branch, move string, epoch uint64, records ...api.Volume) (node, pool string) {
	for _, v := range records {
		h := v.Heads[branch]
		switch {
		case h.Move != nil && h.Move.ID == move:
			return h.Move.To, h.Move.Pool
		case h.Epoch == epoch+1:
			return h.Node, h.Pool
		}
	}
	return "", ""
}

func (a *Agent) sealedIn(ctx context.Context, p *pool, known map[string]api.Volume, there map[storage.HeadKey]bool) ([]ledger.Copy, error) {
	journals := map[string]journal{}
	if err := each(a.index, bucketJournal, func(id string, j journal) {
		if j.Sealed != "" && j.Pool == p.name {
			journals[id] = j
		}
	}); err != nil {
		return nil, err
	}
	var out []ledger.Copy
	for _, id := range slices.Sorted(maps.Keys(journals)) {
		j := journals[id]
		for _, v := range known {
			for branch := range v.Heads {
				key := storage.HeadKey{Volume: v.ID, Branch: branch}
				if key.String() != id || there[key] {
					continue
				}
				list, err := p.backend.Snapshots(ctx, v.ID)
				if err != nil {
					return nil, err
				}
				if !slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.ID == j.Sealed }) {
					continue
				}
				c := ledger.Copy{Node: a.cfg.Node, Pool: p.name, Branch: branch, Epoch: j.Epoch, Volume: v}
				if j.Sent {
					c.Released = j.Move
					c.To, c.ToPool = target(branch, j.Move, j.Epoch, v)
				}
				out = append(out, c)
			}
		}
	}
	return out, nil
}
