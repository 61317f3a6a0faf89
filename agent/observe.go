package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// observe sees everything that plan.Next needs of this head.
func (h *head) observe(ctx context.Context) (plan.Observed, error) {
	v, fresh, _ := h.state()
	o := plan.Observed{
		Node: h.a.cfg.Node, Branch: h.key.branch, Now: h.a.deps.Now(), Volume: v, Fresh: fresh,
		Pools: map[string]api.PoolState{}, Base: map[string]bool{}, Needed: map[string]bool{},
	}
	rec := v.Heads[h.key.branch]
	if err := h.sweepCopies(ctx); err != nil {
		return o, err
	}
	j, err := h.mover.current(rec, fresh)
	if err != nil {
		return o, err
	}
	for _, p := range h.a.poolList() {
		o.Pools[p.name] = p.seen().State
		if o.Pools[p.name] == api.PoolGone {
			continue
		}
		if err := h.observePool(ctx, p, v, j, &o); err != nil {
			return o, err
		}
	}
	if err := h.observeHistory(ctx, v, &o); err != nil {
		return o, err
	}
	if err := h.observeWork(ctx, &o, rec); err != nil {
		return o, err
	}
	if o.Base, err = h.a.pinned(h.key.volume); err != nil {
		return o, err
	}
	if err := h.observeArriving(&o); err != nil {
		return o, err
	}
	for _, s := range o.Snapshots {
		if h.a.isRead(s.ID) {
			o.Needed[s.ID] = true
		}
	}
	for _, other := range v.Heads {
		if other.Move == nil {
			continue
		}
		// While it moves, a snapshot may be base or on its way.
		for _, s := range o.Snapshots {
			o.Needed[s.ID] = true
		}
	}
	o.Arriving, err = h.arriving(rec, fresh)
	if err != nil {
		return o, err
	}
	if j.of(rec) {
		o.Closed = j.closedFor()
		if len(j.Stopped) > 0 {
			o.Stopped = j.Move
		}
	}
	if err := h.observeUsers(ctx, rec, &o); err != nil {
		return o, err
	}
	if rec.Node == h.a.cfg.Node && rec.Move != nil && fresh {
		o.Move, err = h.mover.observe(ctx, v, rec, j)
	}
	return o, err
}

// observeArriving adds what began to arrive and is not complete, so that it is
// thinned out like any snapshot when the move it was for has ended.
func (h *head) observeArriving(o *plan.Observed) error {
	ids, err := h.a.index.arriving(h.id())
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if !slices.ContainsFunc(o.Snapshots, func(s plan.Snapshot) bool { return s.ID == id && s.Pool == ids[id] }) {
			o.Snapshots = append(o.Snapshots, plan.Snapshot{Pool: ids[id], ID: id})
		}
	}
	return nil
}

func (h *head) observePool(ctx context.Context, p *pool, v api.Volume, j journal, o *plan.Observed) error {
	snapshots, err := p.backend.Snapshots(ctx, h.key.volume)
	if err != nil {
		return err
	}
	sealed := sealedHead(h.a, p, h.key.branch, v.Heads[h.key.branch], snapshots)
	for _, s := range snapshots {
		x := plan.Snapshot{Pool: p.name, ID: s.ID, Order: s.Order, Created: s.Created}
		n := h.a.notes.note(s)
		x.Commit = n.Commit != nil
		if n.Sealed != nil && n.Sealed.Node == h.a.cfg.Node && n.Sealed.Pool == p.name {
			x.Sealed, x.SealedEpoch = n.Sealed.Branch, n.Sealed.Epoch
		}
		o.Snapshots = append(o.Snapshots, x)
		if j.Sealed != "" && s.ID == j.Sealed && p.name == j.Pool {
			sealed = &repo.Sealed{Epoch: j.Epoch, Move: j.Move}
		}
	}
	_, sizes := storage.As[storage.Sizer](p.backend)
	hd, err := p.backend.Head(ctx, h.storageKey())
	switch {
	case err == nil:
		n := readNote(hd.Note)
		o.Copies = append(o.Copies, plan.Copy{
			Pool: p.name, Epoch: n.Epoch, Released: n.Released != "", ReleasedFor: n.Released, Size: hd.Size,
			Sizes: sizes && p.seen().HardSizes, Stale: n.stale(v), Behind: h.forgetful(n, v, p.name),
		})
	case api.Is(err, api.NotFound) && sealed != nil:
		o.Copies = append(o.Copies, plan.Copy{Pool: p.name, Epoch: sealed.Epoch, Released: true, ReleasedFor: sealed.Move, Size: v.Size, Sealed: true})
	case !api.Is(err, api.NotFound):
		return err
	}
	return nil
}

// sealedHead finds the snapshot that the owner's head was made for a move, from
// what it says itself: the journal of the move may be gone.
func sealedHead(a *Agent, p *pool, branch string, rec api.Head, list []storage.Snapshot) *repo.Sealed {
	for _, s := range list {
		x := a.notes.note(s).Sealed
		if x != nil && x.Node == a.cfg.Node && x.Pool == p.name && x.Branch == branch && rec.Node == x.Node && rec.Pool == x.Pool && rec.Epoch == x.Epoch {
			return x
		}
	}
	return nil
}

// forgetful reports whether a head's note lacks the last move of its tip.
func (h *head) forgetful(n note, v api.Volume, pool string) bool {
	rec := v.Heads[h.key.branch]
	if rec.Node != h.a.cfg.Node || rec.Pool != pool || rec.Epoch != n.Epoch || rec.Tip == nil {
		return false
	}
	log, err := repo.UnpackRefLog(n.RefLog)
	return err == nil && behind(log, rec)
}

// observeHistory sees which commits have to be kept.
func (h *head) observeHistory(ctx context.Context, v api.Volume, o *plan.Observed) error {
	if !slices.ContainsFunc(o.Snapshots, func(s plan.Snapshot) bool { return s.Commit }) {
		return nil
	}
	g, err := h.a.Graph(ctx, h.key.volume)
	if err != nil {
		return err
	}
	keep, sure, err := h.a.reached(ctx, v, g)
	o.Keep, o.Unsure = keep, !sure
	return err
}

// observeUsers looks for users only where the plan would act against them.
func (h *head) observeUsers(ctx context.Context, rec api.Head, o *plan.Observed) error {
	mine := rec.Node == h.a.cfg.Node
	_, there := o.Volume.Heads[h.key.branch]
	matters := len(o.Copies) > 0 && (!mine || !there || o.Volume.Deleted != nil || !rec.Ready)
	if !matters {
		return nil
	}
	holders, err := h.holders(ctx)
	if err != nil {
		return err
	}
	o.InUse = len(holders) > 0
	return nil
}

// holder is somebody who uses the head.
type holder struct {
	Container string // name, "" for what is no container that Drover can stop
	ID        string // of a container
	Text      string
}

func (x holder) String() string { return x.Text }

// containers lists this host's containers that have the head as a mount.
func (h *head) containers(ctx context.Context) ([]container.Container, error) {
	all, err := h.a.deps.Engine.List(ctx, Driver)
	if err != nil {
		return nil, err
	}
	v := h.volume()
	var mine []container.Container
	for _, c := range all {
		if slices.ContainsFunc(c.Mounts, func(m container.Mount) bool { return h.means(v, m) }) {
			mine = append(mine, c)
		}
	}
	return mine, nil
}

// Driver is the name of the volume plugin.
const Driver = "drover"

// means reports whether a container's mount is this head.
func (h *head) means(v api.Volume, m container.Mount) bool {
	if m.Driver != Driver {
		return false
	}
	if m.Source != "" && m.Source == h.mountpoint() {
		return true
	}
	ref, err := api.ParseRef(m.Volume)
	if err != nil || ref.Volume != v.Name || ref.Back != 0 {
		return false
	}
	branch := ref.At
	if branch == "" {
		branch = v.Branch
	}
	return branch == h.key.branch
}

// holders finds who uses the head: containers that run, processes with an
// open file or a mount, and mounts that Docker asked for a moment ago.
func (h *head) holders(ctx context.Context) ([]holder, error) {
	var out []holder
	cs, err := h.containers(ctx)
	if err != nil {
		return nil, err
	}
	known, byID := map[string]bool{}, map[string]string{}
	for _, c := range cs {
		byID[c.ID] = c.Name
		if c.State.Uses() {
			known[c.ID] = true
			out = append(out, holder{Container: c.Name, ID: c.ID, Text: "container " + c.Name})
		}
	}
	found, err := h.kernelUsers(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range found {
		if u.Container != "" && known[u.Container] {
			continue
		}
		if u.Container != "" {
			known[u.Container] = true
			if name := byID[u.Container]; name != "" {
				// It is just being started, or has not quite ended.
				out = append(out, holder{Container: name, ID: u.Container, Text: "container " + name})
				continue
			}
			out = append(out, holder{ID: u.Container, Text: "container " + short(u.Container) + " (" + u.What + ")"})
			continue
		}
		out = append(out, holder{Text: fmt.Sprintf("process %d (%s, %s)", u.PID, u.Command, u.What)})
	}
	if len(out) > 0 {
		return out, nil
	}
	return h.unsettled()
}

// settling is how long a mount that Docker asked for may take to show in a
// container. A reference that is older, while the kernel shows no user, was
// left by a crash of Docker.
const settling = 30 * time.Second

// unsettled gives the references that may still become users, and forgets
// those that cannot.
func (h *head) unsettled() ([]holder, error) {
	var out []holder
	var old []string
	for id, since := range h.a.refs.of(h.key) {
		if h.a.deps.Now().Sub(since) > settling {
			old = append(old, id)
			continue
		}
		out = append(out, holder{Text: "a mount that Docker asked for just now (" + short(id) + ")"})
	}
	if len(out) == 0 && len(old) > 0 {
		if _, err := h.a.refs.remove(h.key, old...); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func short(id string) string { return id[:min(12, len(id))] }

// kernelUsers asks the kernel, about every copy of the head on this node; the
// agent's own mount of it does not count.
func (h *head) kernelUsers(ctx context.Context) ([]User, error) {
	var out []User
	for _, p := range h.a.poolList() {
		if p.seen().State == api.PoolGone {
			continue
		}
		id, err := p.backend.Identity(ctx, h.storageKey())
		if api.Is(err, api.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := h.a.deps.Users.Find(ctx, id)
		if err != nil {
			return nil, err
		}
		own := h.mountpoint()
		mounted, err := h.mounted()
		if err != nil {
			return nil, err
		}
		for _, u := range found {
			if u.What == UserMount && u.Path == own && u.Container == "" && mounted {
				continue
			}
			out = append(out, u)
		}
	}
	return out, nil
}

// UserMount is User.What for a mount; everything else is an open file.
const UserMount = "mount"

func names(list []holder) string {
	texts := map[string]bool{}
	for _, x := range list {
		texts[x.Text] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(texts)), ", ")
}
