package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// pool is one of the node's pools with what was last seen of it.
type pool struct {
	name    string
	backend storage.Backend

	mu   sync.Mutex
	info storage.Info    // guarded by mu
	more *storage.Growth // guarded by mu; what it could grow to, nil where it does not grow
	warn string          // guarded by mu; why it could not grow, since that was said

	growing sync.Mutex // one growth after the other
	again   time.Time  // guarded by growing; not before this, because it failed
}

// AddPool opens a pool, made if need be, and keeps it for later starts.
func (a *Agent) AddPool(ctx context.Context, c api.AddPool) (api.Pool, error) {
	if err := api.CheckPoolName(c.Name); err != nil {
		return api.Pool{}, err
	}
	c.Node = ""
	if _, err := a.pool(c.Name); err == nil {
		return api.Pool{}, &api.Error{Kind: api.Exists, Op: "add pool", Object: c.Name, Reason: "this node has a pool of that name"}
	}
	b, err := a.deps.Open(ctx, c, true)
	if err != nil {
		return api.Pool{}, err
	}
	if err := put(a.index, bucketPools, c.Name, c); err != nil {
		b.Close()
		return api.Pool{}, err
	}
	out := a.usePool(ctx, c.Name, b)
	a.reportPool(ctx, c.Name)
	return out, nil
}

func (a *Agent) usePool(ctx context.Context, name string, b storage.Backend) api.Pool {
	p := &pool{name: name, backend: b}
	p.look(ctx)
	a.mu.Lock()
	a.pools[name] = p
	a.mu.Unlock()
	a.poolsChanged()
	return a.describe(p)
}

// openPools opens the pools of earlier starts. One that cannot be opened is
// tried again until it can, and is said to be gone meanwhile.
func (a *Agent) openPools(ctx context.Context) error {
	var list []api.AddPool
	if err := each(a.index, bucketPools, func(_ string, c api.AddPool) { list = append(list, c) }); err != nil {
		return err
	}
	for _, c := range list {
		b, err := a.deps.Open(ctx, c, false)
		if err == nil {
			a.usePool(ctx, c.Name, b)
			continue
		}
		a.usePool(ctx, c.Name, &storage.Absent{Kind: c.Kind, Source: c.Source, Cause: err})
		a.deps.Events.Add(api.Event{Type: "pool.gone", Level: "error", Object: c.Name, Message: "pool " + c.Name + " cannot be opened: " + err.Error()})
		a.group.Go(func() error { a.reopen(ctx, c); return nil })
	}
	return nil
}

func (a *Agent) reopen(ctx context.Context, c api.AddPool) {
	ticker := time.NewTicker(poolEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		p, err := a.pool(c.Name)
		if err != nil {
			return // it was removed meanwhile
		}
		b, err := a.deps.Open(ctx, c, false)
		if err != nil {
			p.look(ctx)
			continue
		}
		a.usePool(ctx, c.Name, b)
		a.reportPool(ctx, c.Name)
		a.deps.Events.Add(api.Event{Type: "pool.ready", Object: c.Name, Message: "pool " + c.Name + " is there again"})
		return
	}
}

// poolInUse says why a pool cannot be let go: volumes that are only deleted
// still lie there, so that they can be restored.
func poolInUse(name string, v api.Volume) error {
	e := &api.Error{Kind: api.InUse, Op: "remove pool", Object: name, Reason: "volume " + v.Name + " is in it", Next: "move or remove its volumes first"}
	if v.Deleted != nil {
		e.Reason = "deleted volume " + v.Name + " is in it until its grace is over"
		e.Next = "drover volume purge " + v.ID + " --yes removes it now; drover volume ls --deleted lists others"
	}
	return e
}

// RemovePool lets go of a pool; its data stays.
func (a *Agent) RemovePool(ctx context.Context, name string) error {
	p, err := a.pool(name)
	if err != nil {
		return err
	}
	a.mu.Lock()
	for key, h := range a.heads {
		if v := h.volume(); v.Heads[key.branch].Pool == name && v.Heads[key.branch].Node == a.cfg.Node {
			a.mu.Unlock()
			return poolInUse(name, v)
		}
	}
	delete(a.pools, name)
	a.mu.Unlock()
	if err := remove(a.index, bucketPools, name); err != nil {
		return err
	}
	a.poolsChanged()
	return p.backend.Close()
}

// closePools lets go of the pools at the end; what is mounted stays mounted.
func (a *Agent) closePools() {
	for _, p := range a.poolList() {
		if err := p.backend.Close(); err != nil {
			a.deps.Log.Warn("cannot close a pool", "pool", p.name, "error", err)
		}
	}
}

// poolsChanged lets the heads look again, and the cluster know.
func (a *Agent) poolsChanged() {
	select {
	case a.PoolsChanged <- struct{}{}:
	default:
	}
	a.kickAll()
}

func (p *pool) look(ctx context.Context) storage.Info {
	info, err := p.backend.Info(ctx)
	if err != nil {
		info.State, info.Reason = api.PoolGone, err.Error()
	}
	_, more := p.growth(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info, p.more = info, more
	return info
}

func (p *pool) seen() storage.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info
}

func (a *Agent) pool(name string) (*pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pools[name]
	if p == nil {
		return nil, &api.Error{Kind: api.NotFound, Op: "use pool", Object: name + " on " + a.cfg.Node, Reason: "this node has no pool of that name", Next: "drover pool ls shows what there is"}
	}
	return p, nil
}

func (a *Agent) backend(name string) (storage.Backend, error) {
	p, err := a.pool(name)
	if err != nil {
		return nil, err
	}
	return p.backend, nil
}

func (a *Agent) poolList() []*pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]*pool, 0, len(a.pools))
	for _, p := range a.pools {
		list = append(list, p)
	}
	return list
}

// Pools describes the node's pools.
func (a *Agent) Pools() []api.Pool {
	var out []api.Pool
	for _, p := range a.poolList() {
		out = append(out, a.describe(p))
	}
	return out
}

// describe is a pool as it was last seen.
func (a *Agent) describe(p *pool) api.Pool {
	p.mu.Lock()
	i, more, warn := p.info, p.more, p.warn
	p.mu.Unlock()
	out := api.Pool{
		Name: p.name, Node: a.cfg.Node, Kind: i.Kind, Source: i.Source, State: i.State, Reason: i.Reason,
		Capacity: i.Capacity, Used: i.Used, Free: i.Free, Sizes: sizes(i), Snapshot: "paused", Cannot: i.Fidelity.Cannot(),
	}
	if i.Atomic {
		out.Snapshot = "atomic"
	}
	if more != nil {
		out.Grows, out.Room, out.Held = true, more.Most-more.Size, held(more)
		if out.Held == "" && more.Want > more.Size {
			out.Held = warn
		}
	}
	return out
}

// sizes says how a pool keeps the sizes of its volumes.
func sizes(i storage.Info) string {
	if i.HardSizes {
		return "hard"
	}
	return "soft"
}

const (
	// poolEvery is how often pools are looked at; a change shows at the latest then.
	poolEvery = 10 * time.Second
	// tendEvery is how often those that grow are looked at: a fast writer may
	// fill the part that is left before it was noticed that it should grow.
	tendEvery = 2 * time.Second
)

// watchPools says in events what becomes of the pools, and lets them grow.
func (a *Agent) watchPools(ctx context.Context) error {
	look, tend := time.NewTicker(poolEvery), time.NewTicker(tendEvery)
	defer look.Stop()
	defer tend.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tend.C:
			for _, p := range a.poolList() {
				a.tend(ctx, p)
			}
			continue
		case <-look.C:
		}
		for _, p := range a.poolList() {
			before := p.seen()
			after := p.look(ctx)
			if before.State == after.State {
				continue
			}
			level := "warning"
			if after.State == api.PoolReady {
				level = "info"
			}
			a.deps.Events.Add(api.Event{
				Type: "pool." + string(after.State), Level: level, Object: p.name,
				Message: fmt.Sprintf("pool %s is %s (was %s): %s", p.name, after.State, before.State, after.Reason),
			})
			a.poolsChanged()
		}
	}
}

// choosePool picks the pool for a new volume: the one named, or the only or
// the default one.
func (a *Agent) choosePool(name string) (string, error) {
	if name != "" {
		_, err := a.pool(name)
		return name, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, there := a.pools[DefaultPool]; there {
		return DefaultPool, nil
	}
	if len(a.pools) == 1 {
		for name := range a.pools {
			return name, nil
		}
	}
	return "", &api.Error{Kind: api.Invalid, Op: "choose a pool", Object: a.cfg.Node, Reason: fmt.Sprintf("the node has %d pools and none is called %q", len(a.pools), DefaultPool), Next: "say which with --pool"}
}

// DefaultPool is the name of the pool that is made when none is given.
const DefaultPool = "default"
