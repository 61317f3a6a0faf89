package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/transfer"
)

// Pull begins to move a head to the asking node if nobody uses it here.
func (a *Agent) Pull(ctx context.Context, r peer.Pull) error {
	if err := a.mayChange("move volume", r.Volume); err != nil {
		return err
	}
	h := a.head(r.Volume, r.Branch)
	if h == nil {
		return notHere(a.cfg.Node, r.Volume)
	}
	v := h.volume()
	rec := v.Heads[r.Branch]
	switch {
	case rec.Node == r.To:
		return nil
	case rec.Node != a.cfg.Node:
		return notHere(a.cfg.Node, v.Name)
	case rec.Move != nil && rec.Move.To == r.To:
		return nil
	}
	holders, err := h.holders(ctx)
	if err != nil {
		return err
	}
	if len(holders) > 0 {
		return &api.Error{Kind: api.InUse, Op: "mount volume", Object: v.Name, Reason: "it is used on " + a.cfg.Node + " by " + names(holders), Next: "drover volume move " + v.Name + " " + r.To + " moves it with its containers"}
	}
	after, err := a.deps.Ledger.RequestMove(ctx, r.Volume, r.Branch, api.Move{
		ID: a.deps.NewID(), To: r.To, Pool: r.Pool, By: r.By, Requested: a.deps.Now(),
		Options: api.MoveOptions{Users: api.UsersRefuse},
	})
	return h.took(after, err)
}

func notHere(node, volume string) error {
	return &api.Error{Kind: api.Conflict, Op: "use volume", Object: volume, Reason: node + " does not own it any more", Next: "try again"}
}

// Prepare says whether this node can take a head and its containers.
func (a *Agent) Prepare(ctx context.Context, p peer.Preparation) error {
	op, object := "move volume", p.Volume.Name
	pool, err := a.pool(p.Pool)
	if err != nil {
		return err
	}
	info := a.makeRoom(ctx, pool, p.Bytes)
	switch {
	case info.State == api.PoolGone:
		return &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("pool %s on %s is not there: %s", p.Pool, a.cfg.Node, info.Reason), Next: "mend the pool, or choose another with --pool"}
	case info.State == api.PoolReadOnly:
		return &api.Error{Kind: api.ReadOnly, Op: op, Object: object, Reason: fmt.Sprintf("pool %s on %s is read-only: %s", p.Pool, a.cfg.Node, info.Reason), Next: "mend the pool, or choose another with --pool"}
	case info.State == api.PoolFull || p.Bytes > info.Free:
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: fmt.Sprintf("pool %s on %s has %d bytes free, %d are to come", p.Pool, a.cfg.Node, info.Free, p.Bytes), Next: "free space, or choose another pool with --pool"}
	}
	if lost := p.Fidelity.Lost(info.Fidelity); len(lost) > 0 && !p.AllowLoss {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("pool %s on %s (%s) does not keep %s", p.Pool, a.cfg.Node, info.Kind, strings.Join(lost, ", ")), Next: "choose another pool, or pass --allow-loss: what it cannot keep is then stored beside the data and restored by the next move"}
	}
	// Only when this node's own watch has come to this move, nothing of an
	// earlier one is still to come that would forget it.
	rec, err := a.announced(ctx, p.Volume.ID, p.Branch, func(h api.Head) bool { return h.Move != nil && h.Move.ID == p.Move })
	if err != nil {
		return err
	}
	plan := prepared{Preparation: p}
	for _, spec := range p.Containers {
		reuse, err := a.standsHere(ctx, rec, p.Volume, spec)
		if err != nil {
			return err
		}
		if reuse {
			plan.Reuse = append(plan.Reuse, spec.Name)
			continue
		}
		if err := a.deps.Engine.CheckImport(ctx, spec); err != nil {
			return err
		}
	}
	key := p.Volume.ID + "@" + p.Branch
	if len(p.Containers) == 0 {
		return remove(a.index, bucketPrepared, key)
	}
	return put(a.index, bucketPrepared, key, plan)
}

// standsHere reports whether a container's original, which moved away with the
// head, or with another branch that the plain name meant then, stands here
// stopped and of the same image, so that it can go on.
func (a *Agent) standsHere(ctx context.Context, rec api.Head, v api.Volume, spec container.Spec) (bool, error) {
	away := slices.Contains(rec.Away[a.cfg.Node].Containers, spec.Name)
	for _, other := range v.Heads {
		away = away || slices.Contains(other.Away[a.cfg.Node].Containers, spec.Name)
	}
	if !away {
		return false, nil
	}
	c, err := a.deps.Engine.Inspect(ctx, spec.Name)
	if api.Is(err, api.NotFound) {
		return false, nil
	}
	return err == nil && !c.State.Uses() && c.ImageID == spec.ImageID, err
}

// announced waits until this node's record of a head is as ok wants it.
func (a *Agent) announced(ctx context.Context, volume, branch string, ok func(api.Head) bool) (api.Head, error) {
	const patience = 3 * time.Second
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		h := a.head(volume, branch)
		var changed, after <-chan struct{}
		if h != nil {
			v, fresh, c := h.state()
			changed = c
			if rec := v.Heads[branch]; fresh && ok(rec) {
				if after = h.after; after == nil {
					return rec, nil
				}
				select {
				case <-after: // what it left here before is cleared away
					return rec, nil
				default:
				}
			}
		}
		tick := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			return api.Head{}, context.Cause(ctx)
		case <-changed:
		case <-after:
		case <-tick.C:
		case <-deadline.C:
			return api.Head{}, &api.Error{Kind: api.Unavailable, Op: "move volume", Object: volume, Reason: a.cfg.Node + " does not know of the move yet"}
		}
		tick.Stop()
	}
}

// Status tells how a head of this node is.
func (a *Agent) Status(ctx context.Context, volume, branch string) (api.HeadStatus, error) {
	h := a.head(volume, branch)
	if h == nil {
		return api.HeadStatus{}, notHere(a.cfg.Node, volume)
	}
	rec := h.volume().Heads[branch]
	s := api.HeadStatus{Node: a.cfg.Node, Pool: rec.Pool, Epoch: rec.Epoch, Used: -1}
	h.mu.Lock()
	s.Waiting, s.Alarm = h.waiting, h.alarm
	h.mu.Unlock()
	if p, ok := h.mover.Progress(); ok && rec.Move != nil && rec.Move.ID == p.ID {
		s.Move = &p
	}
	if rec.Node != a.cfg.Node {
		return s, nil
	}
	p, err := a.pool(rec.Pool)
	if err != nil {
		return s, err
	}
	s.Sizes = sizes(p.seen())
	if hd, err := p.backend.Head(ctx, h.storageKey()); err == nil {
		s.Here, s.Used, s.Size, s.Nested = true, hd.Used, hd.Size, hd.Nested
	} else if !api.Is(err, api.NotFound) {
		return s, err
	}
	if s.Mounted, err = h.mounted(); err != nil {
		return s, err
	}
	if s.Mounted {
		s.Path = h.mountpoint()
	}
	if list, err := p.backend.Snapshots(ctx, volume); err == nil {
		s.Snapshots = len(list)
	}
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

// Delete begins the grace of a volume that this node owns and nobody uses.
func (a *Agent) Delete(ctx context.Context, volume, by string) error {
	if err := a.mayChange("delete volume", volume); err != nil {
		return err
	}
	a.mu.Lock()
	var mine []*head
	for key, h := range a.heads {
		if key.volume == volume {
			mine = append(mine, h)
		}
	}
	a.mu.Unlock()
	if len(mine) == 0 {
		return notHere(a.cfg.Node, volume)
	}
	for _, h := range mine {
		// From here until the record says that it is deleted, nobody can begin to use it.
		h.mounting.Lock()
		defer h.mounting.Unlock()
		v := h.volume()
		if v.Heads[h.key.branch].Node != a.cfg.Node {
			continue
		}
		holders, err := h.strangers(ctx)
		if err != nil {
			return err
		}
		if len(holders) > 0 {
			return &api.Error{Kind: api.InUse, Op: "delete volume", Object: v.Name, Reason: "it is used on " + a.cfg.Node + " by " + names(holders), Next: "stop them first"}
		}
	}
	if err := a.unusedElsewhere(ctx, mine[0].volume()); err != nil {
		return err
	}
	v, err := a.deps.Ledger.Delete(ctx, volume, by)
	if err != nil {
		return err
	}
	for _, h := range mine {
		h.setRecord(v, true)
	}
	a.take(v, true)
	a.event("volume.deleted", "info", v, "", fmt.Sprintf("volume %s was deleted by %s; it can be restored until %s", v.Name, by, v.Deleted.Purge.UTC().Format(time.DateTime)), nil)
	return nil
}

// unusedElsewhere asks the owners of a volume's other branches whether anybody
// uses them. One that does not answer leaves it unknown.
func (a *Agent) unusedElsewhere(ctx context.Context, v api.Volume) error {
	const op = "delete volume"
	for branch, rec := range v.Heads {
		if rec.Node == a.cfg.Node {
			continue
		}
		s, err := a.deps.Peers.Status(ctx, rec.Node, v.ID, branch)
		if err != nil {
			return &api.Error{Kind: api.Unknown, Op: op, Object: v.Name + "@" + branch, Reason: "its owner " + rec.Node + " does not say whether it is used", Err: err, Next: "try again when " + rec.Node + " answers"}
		}
		if len(s.Users) > 0 {
			return &api.Error{Kind: api.InUse, Op: op, Object: v.Name + "@" + branch, Reason: "it is used on " + rec.Node + " by " + strings.Join(s.Users, ", "), Next: "stop them first"}
		}
	}
	return nil
}

// permit lets in only the owner of a head that moves here, with what it moves.
func (a *Agent) permit(ctx context.Context, peer string, offer transfer.Offer) error {
	_, err := a.announced(ctx, offer.Volume, offer.Branch, func(rec api.Head) bool {
		return rec.Node == peer && rec.Move != nil && rec.Move.ID == offer.Move && rec.Move.To == a.cfg.Node && rec.Move.Pool == offer.Pool
	})
	if err != nil {
		return err
	}
	return put(a.index, bucketArriving, offer.Volume+"@"+offer.Branch+"/"+offer.Snapshot, offer.Pool)
}

// arrived is told by sessions what comes.
func (a *Agent) arrived(t transfer.Arrival) {
	if !t.Done {
		return
	}
	head := t.Offer.Volume + "@" + t.Offer.Branch
	err := put(a.index, bucketBases, head+"/"+t.Peer, t.Offer.Snapshot)
	if err == nil {
		err = remove(a.index, bucketArriving, head+"/"+t.Offer.Snapshot)
	}
	if err != nil {
		a.deps.Log.Error("cannot note a common snapshot", "error", err)
	}
}

// streamID identifies what a native stream's bytes depend on besides the
// snapshots: the kernel that makes it.
func (a *Agent) streamID() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:])
}
