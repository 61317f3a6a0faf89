package agent_test

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	containers "github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/faulty"
	poolmemory "github.com/drover-data/drover/storage/memory"
)

// grown is an agent with one pool on a host whose space the test decides.
type grown struct {
	t      *testing.T
	a      *agent.Agent
	pool   *poolmemory.Growing
	faults *faulty.Faults
	host   atomic.Int64 // how large the pool can be
	events *events.Log
}

var grownKey = storage.HeadKey{Volume: "v", Branch: api.MainBranch}

func newGrown(t *testing.T, size, host int64) *grown {
	g := &grown{t: t, events: events.New("n", slog.New(slog.DiscardHandler), time.Now)}
	g.host.Store(host)
	g.pool = &poolmemory.Growing{Backend: poolmemory.New(poolmemory.Config{Capacity: size}), Host: g.host.Load}
	plain := poolmemory.New(poolmemory.Config{Capacity: size})
	wrapped, faults := faulty.Wrap(g.pool)
	g.faults = faults
	dir := t.TempDir()
	a, err := agent.New(agent.Config{Node: "n", DataDir: dir, VolatileDir: dir}, agent.Deps{
		Store: state.New(state.NewMemory()), Engine: containers.New("n", time.Now, nil), Events: g.events,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, NewID: func() string { return "id" },
		Open: func(_ context.Context, p api.AddPool, _ bool) (storage.Backend, error) {
			if p.Name == "plain" {
				return plain, nil
			}
			return wrapped, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	g.a = a
	ctx, end := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := a.Run(ctx); err != nil {
			t.Errorf("the agent ended: %v", err)
		}
	}()
	t.Cleanup(func() { end(); <-over })
	synctest.Wait()
	for _, name := range []string{"default", "plain"} {
		if _, err := a.AddPool(ctx, api.AddPool{Name: name, Kind: "memory"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.pool.CreateHead(ctx, storage.HeadSpec{Key: grownKey}); err != nil {
		t.Fatal(err)
	}
	return g
}

// write makes a file of so many bytes.
func (g *grown) write(name string, n int) error {
	return g.pool.Put(grownKey, poolmemory.Files{name: strings.Repeat("x", n-len(name))})
}

// see waits until every tick of that time has done its work, and gives the
// pool as it is shown then.
func (g *grown) see(after time.Duration) api.Pool {
	g.t.Helper()
	time.Sleep(after)
	synctest.Wait()
	for _, p := range g.a.Pools() {
		if p.Name == "default" {
			return p
		}
	}
	g.t.Fatal("the pool is gone")
	return api.Pool{}
}

// count is how often an event of the type was seen.
func (g *grown) count(typ string) (n int) {
	list, _ := g.events.After("")
	for _, e := range list {
		if e.Type == typ {
			n++
		}
	}
	return n
}

func (g *grown) want(p api.Pool, capacity int64, isHeld bool, grown, warned int) {
	g.t.Helper()
	if p.Capacity != capacity || !p.Grows || (p.Held != "") != isHeld || p.Room != max(0, g.host.Load()-capacity) {
		g.t.Errorf("the pool is %+v, want capacity %d, held %v", p, capacity, isHeld)
	}
	if a, b := g.count("pool.grown"), g.count("pool.cannot-grow"); a != grown || b != warned {
		g.t.Errorf("%d events that it grew and %d that it cannot, want %d and %d", a, b, grown, warned)
	}
}

func TestPoolGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGrown(t, 1000, 5000)
		g.want(g.see(time.Minute), 1000, false, 0, 0)
		if err := g.write("a", 600); err != nil {
			t.Fatal(err)
		}
		g.want(g.see(15*time.Second), 2000, false, 1, 0)
		// The host has less than a whole step: the pool takes what there is.
		g.host.Store(2500)
		if err := g.write("b", 600); err != nil {
			t.Fatal(err)
		}
		g.want(g.see(15*time.Second), 2500, false, 2, 0)
		// It has nothing: that is said once, not at each tick.
		if err := g.write("c", 600); err != nil {
			t.Fatal(err)
		}
		g.want(g.see(5*time.Minute), 2500, true, 2, 1)
		if err := g.write("d", 600); err != nil {
			t.Fatal(err)
		}
		if err := g.write("e", 600); !api.Is(err, api.Exhausted) {
			t.Fatalf("a write into a full pool: %v", err)
		}
		g.want(g.see(5*time.Minute), 2500, true, 2, 1)
		// There is space again, and then none again.
		g.host.Store(4500)
		g.want(g.see(2*time.Minute), 4500, true, 3, 2)
		if err := g.write("e", 600); err != nil {
			t.Fatalf("a write after it grew: %v", err)
		}
		g.host.Store(20000)
		g.want(g.see(2*time.Minute), 9000, false, 4, 2)
		if f, err := g.pool.Files(grownKey); err != nil || len(f) != 5 {
			t.Errorf("the head has %d files: %v", len(f), err)
		}
	})
}

// TestPoolGrowthFails lets the host refuse what it seemed to have.
func TestPoolGrowthFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGrown(t, 1000, 5000)
		for n := range 2 {
			g.faults.Fail("Grow", n+1, api.Exhausted)
		}
		if err := g.write("a", 600); err != nil {
			t.Fatal(err)
		}
		g.want(g.see(30*time.Second), 1000, true, 0, 1)
		if n := strings.Count(strings.Join(g.faults.Calls(), " "), "Grow "); n > 1 {
			t.Errorf("it was tried %d times within half a minute", n)
		}
		g.want(g.see(time.Minute), 1000, true, 0, 1)
		g.want(g.see(time.Minute), 2000, false, 1, 1)
	})
}

// TestRoomIsMade grows a pool for what is to come, before it is promised.
func TestRoomIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGrown(t, 1000, 5000)
		ask := func(n int64) error {
			ctx, stop := context.WithTimeout(t.Context(), time.Second)
			defer stop()
			return g.a.Prepare(ctx, peer.Preparation{Volume: api.Volume{ID: "v2", Name: "v2"}, Branch: api.MainBranch, Pool: "default", Bytes: n})
		}
		if err := ask(6000); !api.Is(err, api.Exhausted) {
			t.Errorf("more than the host has: %v", err)
		}
		g.want(g.see(time.Minute), 1000, false, 0, 0)
		g.host.Store(8000)
		if err := ask(6000); api.Is(err, api.Exhausted) {
			t.Errorf("what the host has: %v", err)
		}
		if p := g.see(15 * time.Second); p.Free < 6000 {
			t.Errorf("room was promised and is not there: %+v", p)
		}
	})
}

func TestGrowPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGrown(t, 1000, 5000)
		for range 2 {
			if p, err := g.a.GrowPool(t.Context(), "default", 3000); err != nil || p.Capacity != 3000 {
				t.Errorf("GrowPool: %+v, %v", p, err)
			}
		}
		g.want(g.see(time.Minute), 3000, false, 1, 0)
		for _, c := range []struct {
			pool string
			size int64
			want api.Kind
		}{{"default", 2000, api.Invalid}, {"default", 6000, api.Exhausted}, {"plain", 2000, api.Unsupported}, {"none", 2000, api.NotFound}} {
			if _, err := g.a.GrowPool(t.Context(), c.pool, c.size); !api.Is(err, c.want) {
				t.Errorf("GrowPool of %s to %d: %v, want %s", c.pool, c.size, err, c.want)
			}
		}
		g.want(g.see(time.Minute), 3000, false, 1, 0)
	})
}
