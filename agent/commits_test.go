package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	containers "github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/remote/layout"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/dir"
)

// counting is a pool that counts how often its snapshots are listed.
type counting struct {
	storage.Backend
	lists atomic.Int64
}

func (c *counting) Snapshots(ctx context.Context, volume string) ([]storage.Snapshot, error) {
	c.lists.Add(1)
	return c.Backend.Snapshots(ctx, volume)
}

// newCounting is an agent with one pool on a directory. It does not run: nobody
// else lists the pool.
func newCounting(t *testing.T, now func() time.Time) (*agent.Agent, *counting) {
	t.Helper()
	b, err := dir.New(dir.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool := &counting{Backend: b}
	data := t.TempDir()
	a, err := agent.New(agent.Config{Node: "n", DataDir: data, VolatileDir: data}, agent.Deps{
		Store: state.New(state.NewMemory()), Engine: containers.New("n", time.Now, nil), Events: events.New("n", slog.New(slog.DiscardHandler), time.Now),
		Log: slog.New(slog.DiscardHandler), Now: now, NewID: func() string { return "id" },
		Open: func(context.Context, api.AddPool, bool) (storage.Backend, error) { return pool, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Crash)
	if _, err := a.AddPool(t.Context(), api.AddPool{Name: "default", Kind: "dir"}); err != nil {
		t.Fatal(err)
	}
	return a, pool
}

// TestPushListsThePoolOnce: a push asks for every ancestor, and the pool is
// listed once for all of them.
func TestPushListsThePoolOnce(t *testing.T) {
	ctx := t.Context()
	var clock atomic.Int64
	a, pool := newCounting(t, func() time.Time { return time.Unix(1_800_000_000+clock.Load(), 0) })
	key := storage.HeadKey{Volume: "0123456789abcdef0123456789abcdef", Branch: api.MainBranch}
	head, err := pool.CreateHead(ctx, storage.HeadSpec{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	g := repo.Graph{}
	const n = 40
	id := func(i int) string { return fmt.Sprintf("%040x", i+1) }
	for i := range n {
		if err := os.WriteFile(filepath.Join(head.Dir, "f"), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		c := api.Commit{ID: id(i), Volume: key.Volume, Branch: "main", Message: "m", Time: time.Unix(int64(i), 0).UTC()}
		if i > 0 {
			c.Parents = []string{id(i - 1)}
		}
		note, err := json.Marshal(repo.Note{Commit: &c})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Snapshot(ctx, key, c.ID, note); err != nil {
			t.Fatal(err)
		}
		g[c.ID] = c
	}
	there := t.TempDir()
	leases := 0
	r := &exchange.Remote{
		Store: layout.Open(there, time.Now, func() string { leases++; return fmt.Sprint("lease-", leases) }),
		Cache: t.TempDir(), Now: time.Now,
	}
	here := a.CommitsOf(key.Volume, "default")
	before := pool.lists.Load()
	out, err := r.Push(ctx, here, exchange.Push{Branch: "main", Tip: id(n - 1), Graph: g})
	if err != nil || len(out.Commits) != n {
		t.Fatalf("%v, %d commits", err, len(out.Commits))
	}
	if got := pool.lists.Load() - before; got != 1 {
		t.Errorf("the pool was listed %d times for a push of %d commits", got, n)
	}
	// What retention has removed meanwhile is not taken for there for long.
	if err := pool.DestroySnapshot(ctx, key.Volume, id(3)); err != nil {
		t.Fatal(err)
	}
	clock.Add(10)
	if _, err := here.Find(ctx, id(3)); !api.Is(err, api.NotFound) {
		t.Errorf("a snapshot that is gone: %v", err)
	}
	if _, err := here.Find(ctx, id(4)); err != nil {
		t.Error(err)
	}
}
