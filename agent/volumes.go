package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/state"
)

// This file is what Docker's volume plugin asks of the agent. Names here are
// references as a user writes them: pg, or pg@feature.

// Known is a volume as the local index knows it.
type Known struct {
	Name    string
	Path    string // "" while it is not mounted here
	Created time.Time
	Status  map[string]any
}

// Create makes a volume here. One of that name that fits is success.
func (a *Agent) Create(ctx context.Context, c api.CreateVolume) error {
	ref, err := api.ParseRef(c.Name)
	if err != nil {
		return err
	}
	v, err := a.find(ctx, ref.Volume)
	switch {
	case err == nil:
		if ref.At != "" || ref.Back != 0 {
			if _, err := a.branch(v, ref); err != nil {
				return err
			}
		}
		if c.Size != 0 && c.Size != v.Size {
			return &api.Error{Kind: api.Exists, Op: "create volume", Object: c.Name, Reason: fmt.Sprintf("it exists with a size of %d bytes", v.Size), Next: fmt.Sprintf("leave the size out, or drover volume resize %s %d", v.Name, c.Size)}
		}
		return nil
	case !api.Is(err, api.NotFound):
		return &api.Error{Kind: api.Unknown, Op: "create volume", Object: c.Name, Reason: "whether it exists cannot be known now, and an empty twin must not be made", Err: err, Next: "try again when drover status shows the cluster healthy"}
	case ref.At != "" || ref.Back != 0:
		return &api.Error{Kind: api.NotFound, Op: "use volume", Object: c.Name, Reason: "there is no volume " + ref.Volume, Next: "create it first: drover volume create " + ref.Volume}
	}
	// Docker makes a volume of any name that it has not heard of. A person who
	// means it says so.
	if silent, err := a.unreported(ctx); err != nil || len(silent) > 0 {
		return &api.Error{Kind: api.Unknown, Op: "create volume", Object: c.Name, Reason: fmt.Sprintf("the cluster was recovered without %s, which may have a volume of that name; an empty twin must not be made", strings.Join(silent, ", ")), Err: err, Next: "bring that node back, or remove it with drover node rm --force; drover volume create " + c.Name + " makes a new one"}
	}
	_, err = a.NewVolume(ctx, c)
	return err
}

// NewVolume makes a volume here and waits until it is ready.
func (a *Agent) NewVolume(ctx context.Context, c api.CreateVolume) (api.Volume, error) {
	if err := a.mayChange("create volume", c.Name); err != nil {
		return api.Volume{}, err
	}
	pool, err := a.choosePool(c.Pool)
	if err != nil {
		return api.Volume{}, err
	}
	p, err := a.pool(pool)
	if err != nil {
		return api.Volume{}, err
	}
	if info := a.makeRoom(ctx, p, 0); info.State != api.PoolReady {
		kind := map[api.PoolState]api.Kind{api.PoolFull: api.Exhausted, api.PoolReadOnly: api.ReadOnly}[info.State]
		if kind == "" {
			kind = api.Unavailable
		}
		return api.Volume{}, &api.Error{Kind: kind, Op: "create volume", Object: c.Name, Reason: fmt.Sprintf("pool %s is %s: %s", pool, info.State, info.Reason), Next: "mend the pool, or choose another with --pool"}
	}
	create := ledger.Create{ID: a.deps.NewID(), Name: c.Name, Labels: c.Labels, Size: c.Size, Node: a.cfg.Node, Pool: pool}
	if c.From != "" {
		drop, err := a.seed(ctx, c.From, pool, &create)
		if err != nil {
			return api.Volume{}, err
		}
		defer drop()
	}
	v, err := a.deps.Ledger.Create(ctx, create)
	if err != nil {
		return v, err
	}
	a.take(v, true)
	return v, a.ready(ctx, v.ID, api.MainBranch, a.cfg.MountWait)
}

// seed takes a snapshot of another volume in the same pool, to begin with. It
// is kept from being thinned out until drop is called.
func (a *Agent) seed(ctx context.Context, from, pool string, create *ledger.Create) (drop func(), err error) {
	const op = "copy volume"
	ref, err := api.ParseRef(from)
	if err != nil {
		return nil, err
	}
	v, err := a.find(ctx, ref.Volume)
	if err != nil {
		return nil, err
	}
	branch, err := a.branch(v, ref)
	if err != nil {
		return nil, err
	}
	h := a.head(v.ID, branch)
	rec := v.Heads[branch]
	if h == nil || rec.Node != a.cfg.Node {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: from, Reason: "it is on " + rec.Node + ", the copy would be on " + a.cfg.Node, Next: "create the copy with --node " + rec.Node}
	}
	if rec.Pool != pool {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: from, Reason: "it is in pool " + rec.Pool, Next: "create the copy with --pool " + rec.Pool + ", and move it then"}
	}
	b, err := a.backend(pool)
	if err != nil {
		return nil, err
	}
	if info, err := b.Info(ctx); err != nil {
		return nil, err
	} else if !info.Atomic {
		release, err := h.mover.pause(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	create.Seed, create.SeedVolume = a.deps.NewID(), v.ID
	a.mu.Lock()
	a.copying[create.ID] = true
	a.mu.Unlock()
	drop = func() {
		a.mu.Lock()
		delete(a.copying, create.ID)
		a.mu.Unlock()
		h.kick()
	}
	// The mark outlives a crash, and an answer of the ledger that is lost.
	if err := put(a.index, bucketCopies, h.id()+"/"+create.ID, create.Seed); err != nil {
		drop()
		return nil, err
	}
	if _, err := b.Snapshot(ctx, h.storageKey(), create.Seed, nil); err != nil {
		drop()
		return nil, err
	}
	return drop, nil
}

// find looks a volume up: in the records of this node, then at the ledger.
// NotFound is said only when the ledger says it.
func (a *Agent) find(ctx context.Context, name string) (api.Volume, error) {
	if v, ok := a.local(name); ok {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.PeerWait)
	defer cancel()
	v, err := a.deps.Ledger.Volume(ctx, name)
	if api.Is(err, api.NotFound) {
		if held := a.mayChange("look up volume", name); held != nil {
			return v, held
		}
	}
	if err != nil {
		return v, err
	}
	a.mu.Lock()
	a.names[v.Name] = v.ID
	a.mu.Unlock()
	return v, nil
}

func (a *Agent) local(name string) (api.Volume, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, ok := a.names[name]
	if !ok {
		return api.Volume{}, false
	}
	for key, h := range a.heads {
		if key.volume == id {
			return h.volume(), true
		}
	}
	return api.Volume{}, false
}

// branch is the branch that a reference means.
func (a *Agent) branch(v api.Volume, ref api.Ref) (string, error) {
	branch := ref.At
	if branch == "" {
		branch = v.Branch
	}
	if _, ok := v.Heads[branch]; !ok || ref.Back != 0 {
		return "", &api.Error{Kind: api.NotFound, Op: "use volume", Object: ref.String(), Reason: "volume " + v.Name + " has no branch of that name", Next: "drover volume inspect " + v.Name + " shows its branches"}
	}
	return branch, nil
}

// Get knows a volume from the local index; only a name that is in no index is
// looked up.
func (a *Agent) Get(ctx context.Context, name string) (Known, error) {
	ref, err := api.ParseRef(name)
	if err != nil {
		return Known{}, err
	}
	if v, ok := a.local(ref.Volume); ok {
		return a.known(v, ref, name)
	}
	a.mu.Lock()
	_, indexed := a.names[ref.Volume]
	a.mu.Unlock()
	if indexed && ref.At == "" {
		return Known{Name: name}, nil
	}
	v, err := a.find(ctx, ref.Volume)
	if err != nil {
		return Known{}, err
	}
	return a.known(v, ref, name)
}

// known describes a branch under the name by which it was asked for: an engine
// compares them.
func (a *Agent) known(v api.Volume, ref api.Ref, name string) (Known, error) {
	branch, err := a.branch(v, ref)
	if err != nil {
		return Known{}, err
	}
	rec := v.Heads[branch]
	k := Known{Name: name, Created: v.Created, Status: map[string]any{"id": v.ID, "node": rec.Node, "pool": rec.Pool, "epoch": rec.Epoch}}
	if rec.Move != nil {
		k.Status["moving to"] = rec.Move.To
	}
	if h := a.head(v.ID, branch); h != nil && rec.Node == a.cfg.Node {
		if mounted, err := h.mounted(); err == nil && mounted {
			k.Path = h.mountpoint()
		}
	}
	return k, nil
}

// fetchEvery is how old the index of all names may become.
const fetchEvery = 30 * time.Second

// List gives every volume of the cluster, from the local index; the index is
// fetched anew in the background when it is old.
func (a *Agent) List(context.Context) ([]Known, error) {
	a.mu.Lock()
	old := a.deps.Now().Sub(a.fetch) > fetchEvery
	if old {
		a.fetch = a.deps.Now()
	}
	out := make([]Known, 0, len(a.names))
	for name := range a.names {
		out = append(out, Known{Name: name})
	}
	group := a.group
	a.mu.Unlock()
	if old && group != nil {
		group.Go(func() error { a.fetchNames(a.ctx); return nil })
	}
	return out, nil
}

func (a *Agent) fetchNames(ctx context.Context) {
	names := map[string]string{}
	_, err := state.Names.All(ctx, a.deps.Store, "", func(name, id string, _ int64) error {
		names[name] = id
		return nil
	})
	if err != nil {
		return // the index of before is still the best that is known
	}
	a.mu.Lock()
	a.names = names
	a.mu.Unlock()
	if err := a.index.setNames(names); err != nil {
		a.deps.Log.Error("cannot keep the index of names", "error", err)
	}
}

// Path is where a volume is mounted, "" if it is not mounted here.
func (a *Agent) Path(ctx context.Context, name string) (string, error) {
	k, err := a.Get(ctx, name)
	return k.Path, err
}

// Remove deletes a volume that nobody uses, with its grace.
func (a *Agent) Remove(ctx context.Context, name string) error {
	ref, err := api.ParseRef(name)
	if err != nil {
		return err
	}
	v, err := a.find(ctx, ref.Volume)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if ref.At != "" || ref.Back != 0 {
		// Docker forgets its own record of the branch's name; the branch stays.
		return nil
	}
	by := "docker on " + a.cfg.Node
	owner := v.Heads[v.Branch].Node
	if owner == a.cfg.Node {
		return a.Delete(ctx, v.ID, by)
	}
	return a.deps.Peers.Delete(ctx, owner, v.ID, by)
}

// Mount makes a volume usable here for the mount that Docker calls id.
func (a *Agent) Mount(ctx context.Context, name, id string) (string, error) {
	ref, err := api.ParseRef(name)
	if err != nil {
		return "", err
	}
	v, err := a.find(ctx, ref.Volume)
	if err != nil {
		return "", marked(err)
	}
	branch, err := a.branch(v, ref)
	if err != nil {
		return "", err
	}
	if err := a.mayMount(v, branch); err != nil {
		return "", marked(err)
	}
	if v.Heads[branch].Node != a.cfg.Node {
		if err := a.pull(ctx, v, branch); err != nil {
			return "", err
		}
	}
	if err := a.ready(ctx, v.ID, branch, a.cfg.MountWait); err != nil {
		return "", a.onTheWay(ctx, v, branch, err)
	}
	h := a.head(v.ID, branch)
	if h == nil {
		return "", marked(notHere(a.cfg.Node, v.Name))
	}
	path, err := h.use(ctx, id, ref.At == "")
	if err = marked(err); isMarked(err) {
		if err := a.wait(h.key); err != nil {
			a.deps.Log.Error("cannot note that a container waits", "volume", v.Name, "error", err)
		}
	}
	return path, err
}

func isMarked(err error) bool {
	var m *markedError
	return errors.As(err, &m)
}

// use adds a reference and mounts the head if it is not mounted.
func (h *head) use(ctx context.Context, id string, plain bool) (string, error) {
	h.mounting.Lock()
	defer h.mounting.Unlock()
	v := h.volume()
	rec := v.Heads[h.key.branch]
	const op = "mount volume"
	if v.Deleted != nil {
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it was deleted", Next: "drover volume restore " + v.Name}
	}
	if rec.Node != h.a.cfg.Node {
		return "", notHere(h.a.cfg.Node, v.Name)
	}
	j, err := h.mover.journal()
	if err != nil {
		return "", err
	}
	if j.Closed {
		to := "another node"
		if rec.Move != nil {
			to = rec.Move.To
		}
		return "", &api.Error{Kind: api.InUse, Op: op, Object: v.Name, Reason: "it is just moving to " + to, Next: "start the container there, or wait and try again"}
	}
	if w, found, err := h.work(); err != nil {
		return "", err
	} else if found && w.Closed && (plain || w.Kind != plan.WorkCheckout) {
		return "", &api.Error{Kind: api.InUse, Op: op, Object: v.Name, Reason: "a " + w.Op + " by " + w.By + " is just changing it", Next: "try again in a moment"}
	}
	if plain && v.Branch != h.key.branch {
		return "", &api.Error{Kind: api.Conflict, Op: op, Object: v.Name, Reason: "its current branch is " + v.Branch + " since a moment ago", Next: "try again"}
	}
	b, err := h.a.backend(rec.Pool)
	if err != nil {
		return "", err
	}
	hd, err := b.Head(ctx, h.storageKey())
	if err != nil {
		return "", &api.Error{Kind: api.KindOf(err), Op: op, Object: v.Name, Reason: "its data in pool " + rec.Pool + " cannot be reached, and nothing is made in its place", Err: err, Next: "drover pool ls and drover doctor tell more"}
	}
	if n := readNote(hd.Note); n.Epoch != rec.Epoch || n.Released != "" {
		return "", &api.Error{Kind: api.Unknown, Op: op, Object: v.Name, Reason: fmt.Sprintf("the pool remembers epoch %d, the record says %d: who owns the data is not sure now", n.Epoch, rec.Epoch), Next: "try again when the state store answers; drover status shows it"}
	}
	if err := h.a.refs.add(h.key, id, h.a.deps.Now()); err != nil {
		return "", err
	}
	path, err := h.mount(ctx, b)
	if err != nil {
		if _, err2 := h.a.refs.remove(h.key, id); err2 != nil {
			h.a.deps.Log.Error("cannot forget a mount", "error", err2)
		}
	}
	return path, err
}

// Unmount takes a reference back; the last one unmounts the head.
func (a *Agent) Unmount(ctx context.Context, name, id string) error {
	ref, err := api.ParseRef(name)
	if err != nil {
		return err
	}
	v, ok := a.local(ref.Volume)
	if !ok {
		return nil // it left this node: there is nothing to unmount
	}
	branch, known := a.refs.branchOf(v.ID, id)
	if !known {
		if branch, err = a.branch(v, ref); err != nil {
			return nil //nolint:nilerr // a branch that is gone has no mount
		}
	}
	h := a.head(v.ID, branch)
	if h == nil {
		return nil
	}
	h.mounting.Lock()
	defer h.mounting.Unlock()
	left, err := a.refs.remove(h.key, id)
	if err != nil {
		return err
	}
	if left > 0 {
		// A crash may have left references that nobody will take back.
		if holders, err := h.holders(ctx); err != nil || len(holders) > 0 {
			return nil //nolint:nilerr // then somebody may still use it
		}
	}
	b, err := a.backend(h.volume().Heads[branch].Pool)
	if err != nil {
		return err
	}
	defer h.kick()
	if err := h.unmount(ctx, b); !api.Is(err, api.InUse) {
		return err
	}
	return nil // somebody else still has it open; the mount goes with a later one
}

// pull asks the owner for a head and waits a moment for it.
func (a *Agent) pull(ctx context.Context, v api.Volume, branch string) error {
	rec := v.Heads[branch]
	if gone, here := rec.Away[a.cfg.Node]; here {
		if err := a.mayReturn(ctx, v, branch, gone); err != nil {
			return err
		}
	}
	if rec.Move != nil && rec.Move.To == a.cfg.Node {
		return nil
	}
	pool, err := a.choosePool("")
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, a.cfg.PeerWait)
	defer cancel()
	err = a.deps.Peers.Pull(asking, rec.Node, peer.Pull{Volume: v.ID, Branch: branch, To: a.cfg.Node, Pool: pool, By: "mount on " + a.cfg.Node})
	if api.Is(err, api.Unavailable) || (err != nil && asking.Err() != nil && ctx.Err() == nil) {
		return marked(&api.Error{Kind: api.Unknown, Op: "mount volume", Object: v.Name, Reason: "its owner " + rec.Node + " does not answer, so whether it is used there is unknown", Err: err, Next: "bring " + rec.Node + " back, or if it is gone for good, see drover volume recover --help"})
	}
	return err
}

// mayReturn refuses to pull a head back for a container that was moved away.
func (a *Agent) mayReturn(ctx context.Context, v api.Volume, branch string, gone api.Departure) error {
	here, err := a.deps.Engine.List(ctx, Driver)
	if err != nil {
		return err
	}
	for _, c := range here {
		if !slices.Contains(gone.Containers, c.Name) {
			continue
		}
		return &api.Error{Kind: api.InUse, Op: "mount volume", Object: v.Name, Reason: fmt.Sprintf("it moved to %s together with container %s, whose original still stands here", gone.To, c.Name), Next: fmt.Sprintf("docker rm %s here, or bring both back with drover volume move %s %s", c.Name, v.Name, a.cfg.Node)}
	}
	_, err = a.deps.Ledger.Returned(ctx, v.ID, branch, a.cfg.Node)
	return err
}

// ready waits until the head is here and ready.
func (a *Agent) ready(ctx context.Context, volume, branch string, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		h := a.head(volume, branch)
		var changed <-chan struct{}
		poll := 20 * time.Millisecond
		if h != nil {
			v, _, c := h.state()
			rec := v.Heads[branch]
			if rec.Node == a.cfg.Node && rec.Ready {
				return nil
			}
			changed, poll = c, time.Second
			h.mu.Lock()
			alarm := h.alarm
			h.mu.Unlock()
			if alarm != "" {
				return &api.Error{Kind: api.Unavailable, Op: "use volume", Object: v.Name, Reason: alarm}
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-time.After(poll):
		case <-timer.C:
			return &api.Error{Kind: api.Unavailable, Op: "use volume", Object: volume, Reason: "it is not ready yet"}
		}
	}
}

// onTheWay tells Docker that the head is coming, and has the agent start the
// container then.
func (a *Agent) onTheWay(ctx context.Context, v api.Volume, branch string, cause error) error {
	if err := a.wait(headKey{v.ID, branch}); err != nil {
		return err
	}
	text := "moving here"
	asking, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	rec := v.Heads[branch]
	if rec.Node != a.cfg.Node {
		if s, err := a.deps.Peers.Status(asking, rec.Node, v.ID, branch); err == nil && s.Move != nil {
			text += progressText(*s.Move)
		}
	}
	return marked(&api.Error{Kind: api.Unavailable, Op: "mount volume", Object: v.Name, Reason: text, Err: cause, Next: "the container is started by itself when the data is here"})
}

func progressText(p api.MoveProgress) string {
	text := ""
	if p.RoundSize > 0 {
		text = fmt.Sprintf(", %d %%", min(99, 100*p.RoundSent/p.RoundSize))
	}
	if p.Remaining > 0 {
		text += ", about " + p.Remaining.Round(time.Second).String()
	}
	return text
}

// marked makes an error recognisable in the engine's word on a container that
// could not start, unless the user has to act first.
func marked(err error) error {
	if err == nil || api.Is(err, api.NotFound) || api.Is(err, api.Invalid) {
		return err
	}
	return &markedError{err}
}

type markedError struct{ error }

func (e *markedError) Error() string { return e.error.Error() + " " + Mark }
func (e *markedError) Unwrap() error { return e.error }
