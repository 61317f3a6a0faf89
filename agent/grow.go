package agent

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Pools that lie on something larger grow by themselves, so that a default
// pool need not be planned. The space is the pool's before it is promised: when
// the host has none, the pool stays as it is and its watermark holds.

// growth looks at what a pool could grow to; nil when it does not grow.
func (p *pool) growth(ctx context.Context) (storage.Grower, *storage.Growth) {
	g, ok := storage.As[storage.Grower](p.backend)
	if !ok {
		return nil, nil
	}
	now, err := g.Growth(ctx)
	if err != nil {
		return nil, nil // what is wrong with the pool, its state says
	}
	return g, &now
}

// held says why a pool does not grow although it should; empty when it does.
func held(g *storage.Growth) string {
	if g == nil || g.Want <= g.Size || g.Most > g.Size {
		return ""
	}
	return g.Limit
}

// growAgain is how long a growth that failed is not tried again: the host's
// file system may have worked hard before it refused.
const growAgain = time.Minute

// tend lets a pool grow when it is time.
func (a *Agent) tend(ctx context.Context, p *pool) {
	p.growing.Lock()
	defer p.growing.Unlock()
	g, now := p.growth(ctx)
	if now == nil {
		return
	}
	if now.Want <= now.Size && now.Most > now.Size {
		p.calm() // it need not grow, and could
	}
	if to := min(now.Want, now.Most); to > now.Size {
		if a.deps.Now().Before(p.again) {
			return
		}
		if err := a.grow(ctx, p, g, now.Size, to); err != nil {
			p.again = a.deps.Now().Add(growAgain)
			a.cannotGrow(ctx, p, err.Error())
		}
		return
	}
	if why := held(now); why != "" {
		a.cannotGrow(ctx, p, why)
	}
}

// calm forgets that it was said that the pool cannot grow.
func (p *pool) calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.warn = ""
}

// cannotGrow says once that a pool cannot grow, until it has grown or need not.
// p.growing is held.
func (a *Agent) cannotGrow(ctx context.Context, p *pool, why string) {
	if ctx.Err() != nil {
		return // the agent ends
	}
	p.mu.Lock()
	said := p.warn != ""
	p.warn = why
	p.mu.Unlock()
	if said {
		return
	}
	free := max(0, p.look(ctx).Free)
	a.deps.Events.Add(api.Event{
		Type: "pool.cannot-grow", Level: "warning", Object: p.name,
		Message: fmt.Sprintf("pool %s should grow and cannot: %s. It has %s free and takes no new data when that is used up: free space on the host, or remove or move volumes", p.name, why, humanize.IBytes(uint64(free))),
	})
	a.poolsChanged()
}

// grow makes a pool larger and says so. p.growing is held.
func (a *Agent) grow(ctx context.Context, p *pool, g storage.Grower, from, to int64) error {
	if err := g.Grow(ctx, to); err != nil {
		return err
	}
	p.look(ctx)
	p.calm()
	p.again = time.Time{}
	a.deps.Events.Add(api.Event{
		Type: "pool.grown", Level: "info", Object: p.name,
		Message: fmt.Sprintf("pool %s grew from %s to %s", p.name, humanize.IBytes(uint64(from)), humanize.IBytes(uint64(to))),
		Data:    map[string]string{"from": strconv.FormatInt(from, 10), "to": strconv.FormatInt(to, 10)},
	})
	a.poolsChanged()
	return nil
}

// makeRoom looks at a pool and, where less than need bytes can be promised,
// lets it grow for them as far as its host gives.
func (a *Agent) makeRoom(ctx context.Context, p *pool, need int64) storage.Info {
	info := p.look(ctx)
	enough := func() bool {
		return info.State != api.PoolFull && (info.State != api.PoolReady || info.Free >= need)
	}
	// A larger pool keeps more back, so that one step may not be enough.
	for range 3 {
		if enough() {
			return info
		}
		if !a.growFor(ctx, p, max(0, need-info.Free)) {
			return info
		}
		info = p.look(ctx)
	}
	return info
}

// growFor lets a pool grow by what lacks and something for its own use;
// false when it did not.
func (a *Agent) growFor(ctx context.Context, p *pool, lack int64) bool {
	p.growing.Lock()
	defer p.growing.Unlock()
	g, now := p.growth(ctx)
	if now == nil || now.Most-now.Size < lack {
		return false // what would be refused all the same takes nothing from the host
	}
	const own = 256 << 20 // what the pool keeps back and takes for its own records grows too
	to := max(now.Want, now.Size+lack+lack/10+own)
	if to = min(to, now.Most); to <= now.Size {
		return false
	}
	if err := a.grow(ctx, p, g, now.Size, to); err != nil {
		a.cannotGrow(ctx, p, err.Error())
		return false
	}
	return true
}

// GrowPool makes a pool size bytes large, as its user wishes.
func (a *Agent) GrowPool(ctx context.Context, name string, size int64) (api.Pool, error) {
	const op = "grow pool"
	p, err := a.pool(name)
	if err != nil {
		return api.Pool{}, err
	}
	p.growing.Lock()
	defer p.growing.Unlock()
	g, can := storage.As[storage.Grower](p.backend)
	if !can {
		info := p.look(ctx)
		if info.State == api.PoolGone {
			return api.Pool{}, &api.Error{Kind: api.Unavailable, Op: op, Object: name, Reason: info.Reason, Next: "mend the pool first"}
		}
		return api.Pool{}, &api.Error{Kind: api.Unsupported, Op: op, Object: name, Reason: fmt.Sprintf("only pools on a file that Drover made can grow; this one lies on %s", info.Source), Next: "make what it lies on larger by its own means: the pool follows"}
	}
	now, err := g.Growth(ctx)
	if err != nil {
		return api.Pool{}, err
	}
	if size > now.Size {
		if err := a.grow(ctx, p, g, now.Size, size); err != nil {
			return api.Pool{}, err
		}
	} else if err := g.Grow(ctx, size); err != nil { // finishes what was interrupted, or refuses
		return api.Pool{}, err
	}
	p.look(ctx)
	return a.describe(p), nil
}
