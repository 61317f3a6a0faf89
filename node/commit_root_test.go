//go:build root

package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	containers "github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/loopfile"
)

// nobody uses anything: the test's own process has no mount of its own.
type nobody struct{}

func (nobody) Find(context.Context, storage.Identity) ([]agent.User, error) { return nil, nil }

// quick is an agent with a btrfs pool on a file, and a ledger in memory.
func quick(t testing.TB) *agent.Agent {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	store := state.New(state.NewMemory())
	if err := store.Update(t.Context(), func(tx *state.Tx) error { return state.Nodes.Put(tx, "n", api.Node{Name: "n"}) }); err != nil {
		t.Fatal(err)
	}
	service := &ledger.Service{Store: store, Now: time.Now, NewID: NewID, Grace: time.Hour}
	var pool storage.Backend
	open := func(ctx context.Context, p api.AddPool, make bool) (b storage.Backend, err error) {
		b, err = opener{dataDir: data}.open(ctx, p, make)
		pool = b
		return b, err
	}
	a, err := agent.New(agent.Config{Node: "n", DataDir: data, VolatileDir: data}, agent.Deps{
		Store: store, Ledger: service, Engine: containers.New("n", time.Now, nil), Users: nobody{},
		Events: events.New("n", slog.New(slog.DiscardHandler), time.Now), Open: open,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, NewID: NewID,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := a.Run(ctx); err != nil {
			t.Errorf("the agent ended: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		mounts, _ := filepath.Glob(filepath.Join(data, "mounts", "*", "*"))
		for _, m := range mounts { // a test that failed has left them
			_ = unix.Unmount(m, 0)
		}
		if pool != nil {
			if err := pool.Close(); err != nil {
				t.Error(err)
			}
		}
		file := loopfile.Config{File: filepath.Join(data, "pools", "default.img"), Dir: filepath.Join(data, "pools", "default")}
		if err := loopfile.Detach(context.Background(), file); err != nil {
			t.Error(err)
		}
	})
	if _, err := a.AddPool(t.Context(), api.AddPool{Name: "default", Kind: "btrfs", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestCommitsOnBtrfs makes commits and branches on a real pool, resets to one,
// and finds in each what was there when it was made.
func TestCommitsOnBtrfs(t *testing.T) {
	a := quick(t)
	v, err := a.NewVolume(t.Context(), api.CreateVolume{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	path, err := a.Mount(t.Context(), "v", "m")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(path, "f"), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := a.Commit(t.Context(), v.ID, api.MakeCommit{Branch: "main", Message: fmt.Sprint("m", i)}, "user")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.Commit.ID)
	}
	for i, id := range ids {
		f, err := a.Find(t.Context(), v.ID, id, "")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(f.Snapshot.Dir, "f"))
		if err != nil || string(text) != fmt.Sprint(i) {
			t.Errorf("commit %d holds %q: %v", i, text, err)
		}
	}
	status := func(dirty bool) {
		t.Helper()
		s, err := a.BranchStatus(t.Context(), v.ID, "main")
		if err != nil || s.Dirty != dirty || !s.Sure {
			t.Errorf("status %+v: %v, want dirty %v", s, err, dirty)
		}
	}
	status(false)
	if err := os.WriteFile(filepath.Join(path, "g"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	status(true)
	if _, err := a.Branch(t.Context(), v.ID, api.MakeBranch{Name: "x", From: ids[0]}, "user"); err != nil {
		t.Fatal(err)
	}
	beside, err := a.Mount(t.Context(), "v@x", "m2")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(beside, "f")); err != nil || string(text) != "0" {
		t.Errorf("the branch holds %q: %v", text, err)
	}
	if err := a.Unmount(t.Context(), "v", "m"); err != nil {
		t.Fatal(err)
	}
	m, err := a.Reset(t.Context(), v.ID, api.ResetBranch{Branch: "main", To: "~1"}, "user")
	if err != nil || m.To != ids[1] || m.Kept == "" {
		t.Fatalf("reset: %+v %v", m, err)
	}
	read := func(name, want string) {
		t.Helper()
		path, err := a.Mount(t.Context(), "v", "m")
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(filepath.Join(path, name)); string(text) != want {
			t.Errorf("%s holds %q, want %q", name, text, want)
		}
		if err := a.Unmount(t.Context(), "v", "m"); err != nil {
			t.Fatal(err)
		}
	}
	read("f", "1")
	read("g", "")
	if m, err = a.Undo(t.Context(), v.ID, "main", "user"); err != nil || m.To != ids[2] || m.Kept != "" {
		t.Fatalf("undo: %+v %v", m, err)
	}
	read("f", "2")
	read("g", "new")
	log, err := a.RefLog(t.Context(), v.ID, "main")
	ops := []string{}
	for _, e := range log {
		ops = append(ops, e.Op)
	}
	if err != nil || !slices.Equal(ops, []string{"commit", "commit", "commit", "reset", "undo"}) {
		t.Errorf("reflog: %v %v", ops, err)
	}
	if err := a.Unmount(t.Context(), "v@x", "m2"); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkCommit is what a commit takes in the agent, the state store's own
// disk left out.
func BenchmarkCommit(b *testing.B) {
	a := quick(b)
	v, err := a.NewVolume(b.Context(), api.CreateVolume{Name: "v"})
	if err != nil {
		b.Fatal(err)
	}
	path, err := a.Mount(b.Context(), "v", "m")
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := a.Unmount(context.Background(), "v", "m"); err != nil {
			b.Error(err)
		}
	}()
	var took []time.Duration
	for i := range b.N {
		if err := os.WriteFile(filepath.Join(path, "f"), fmt.Append(nil, i), 0o600); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if _, err := a.Commit(b.Context(), v.ID, api.MakeCommit{Branch: "main", Message: "m"}, "user"); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "ms-p90")
}
