package agent

import (
	"context"
	"sync"
	"time"

	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/tree"
)

// commits is what a volume has here, for package exchange. A push or fetch asks
// for one ancestor after the other: the pools are listed once for all of them, and
// again when that is listedFor ago, since retention goes on meanwhile.
type commits struct {
	a      *Agent
	volume string // id
	pool   string // to look in first

	mu       sync.Mutex
	byID     map[string][]Found // guarded by mu
	complete bool               // guarded by mu; no pool was gone
	at       time.Time          // guarded by mu; when they were listed
}

const listedFor = 10 * time.Second

// commitsOf lists nothing yet.
func (a *Agent) commitsOf(volume, pool string) *commits {
	return &commits{a: a, volume: volume, pool: pool}
}

// changed says that something arrived.
func (c *commits) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID = nil
}

// list looks at the pools if that is due. mu is held.
func (c *commits) list(ctx context.Context) error {
	now := c.a.deps.Now()
	if c.byID != nil && now.Sub(c.at) < listedFor {
		return nil
	}
	list, complete, err := c.a.held(ctx, c.volume)
	if err != nil {
		return err
	}
	c.byID, c.complete, c.at = make(map[string][]Found, len(list)), complete, now
	for _, f := range list {
		c.byID[f.Commit.ID] = append(c.byID[f.Commit.ID], f)
	}
	return nil
}

func (c *commits) find(ctx context.Context, id, pool string) (Found, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.list(ctx); err != nil {
		return Found{}, err
	}
	return c.a.choose(c.byID[id], c.complete, id, pool)
}

// Graph is what the pools hold of the volume's history.
func (c *commits) Graph(ctx context.Context) (repo.Graph, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.list(ctx); err != nil {
		return nil, err
	}
	g := make(repo.Graph, len(c.byID))
	for id, list := range c.byID {
		g[id] = list[0].Commit
	}
	return g, nil
}

// Find is of exchange.Pool.
func (c *commits) Find(ctx context.Context, id string) (exchange.Local, error) {
	f, err := c.find(ctx, id, c.pool)
	return exchange.Local{Commit: f.Commit, Snapshot: f.Snapshot}, err
}

// Hints ask the pool that has both commits where they can differ.
func (c *commits) Hints(ctx context.Context, base, id string) (*tree.Hints, error) {
	to, err := c.find(ctx, id, c.pool)
	if err != nil {
		return nil, err
	}
	from, err := c.find(ctx, base, to.Pool)
	if err != nil {
		return nil, err
	}
	if from.Pool != to.Pool {
		return nil, nil
	}
	return tree.HintsOf(ctx, to.Backend, c.volume, base, id)
}
