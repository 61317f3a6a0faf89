package recovery

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/state"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// access notes who was let in.
type access map[string]bool

func (a access) Add(_ context.Context, node string) error          { a[node] = true; return nil }
func (a access) Control(_ context.Context, _ string, _ bool) error { return nil }
func (a access) Remove(_ context.Context, node string) error       { delete(a, node); return nil }

// world is a state store with what serves it.
type world struct {
	t     *testing.T
	store *state.Store
	books *ledger.Service
	s     *Service
	in    access
	told  []api.Event
	cfg   cluster.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	cfg, err := cluster.Init(t.Context(), cluster.InitConfig{Node: cluster.Config{Name: "n1", Address: "10.0.0.1", DataDir: t.TempDir()}, ClusterName: "test", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cfg: cfg}
	w.open(state.New(state.NewMemory()))
	if err := cluster.Bootstrap(t.Context(), cfg, w.store); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"n2", "n3"} {
		w.must(w.store.Update(t.Context(), func(tx *state.Tx) error {
			return state.Nodes.Put(tx, n, api.Node{Name: n, Address: n + ":7433", PeerURL: "https://" + n + ":7435", Candidate: true, Incarnation: 1})
		}))
	}
	return w
}

func (w *world) open(store *state.Store) {
	w.store, w.in = store, access{}
	clock := func() time.Time { return now }
	w.books = &ledger.Service{Store: store, Now: clock, NewID: func() string { return strings.Repeat("f", 32) }, Grace: time.Hour}
	w.s = &Service{
		Store: store, Access: w.in, Ledger: w.books, Now: clock, Grace: time.Hour,
		Issued: func(*state.Tx, string, string) error { return nil }, Tell: func(e api.Event) { w.told = append(w.told, e) },
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func id(c string) string { return strings.Repeat(c, 32) }

func (w *world) create(c, name, node string) api.Volume {
	w.t.Helper()
	v, err := w.books.Create(w.t.Context(), ledger.Create{ID: id(c), Name: name, Node: node, Pool: "p"})
	w.must(err)
	v, err = w.books.Ready(w.t.Context(), v.ID, "main", node, 1)
	w.must(err)
	return v
}

// lose takes a backup, loses the store and begins anew from the backup.
func (w *world) take() []byte {
	w.t.Helper()
	file, h, err := Take(w.t.Context(), w.store, "n1", "v1", backup.Seal{Clear: true}, now)
	w.must(err)
	if h.Cluster.ID != w.cfg.Cluster || h.Records == 0 {
		w.t.Fatalf("header %+v", h)
	}
	return file
}

func (w *world) revive(file []byte) {
	w.t.Helper()
	b, err := backup.Decode(file)
	w.must(err)
	secrets, err := b.Open(backup.Key{})
	w.must(err)
	ca, err := CA(secrets)
	w.must(err)
	contents, err := Read(b)
	w.must(err)
	awaiting := map[string]string{}
	for n := range contents.Nodes {
		awaiting[n] = "its pools"
	}
	w.cfg, err = cluster.Revive(cluster.ReviveConfig{Node: w.cfg, Cluster: contents.Cluster, Incarnation: contents.Cluster.Incarnation + 1, CA: ca, Taken: b.Header.Taken, Awaiting: awaiting, Now: now})
	w.must(err)
	w.must(os.WriteFile(File(w.cfg), file, 0o600))
	w.open(state.New(state.NewMemory()))
	w.must(cluster.Bootstrap(w.t.Context(), w.cfg, w.store))
	w.must(w.s.Restore(w.t.Context(), w.cfg))
	w.must(w.s.Restore(w.t.Context(), w.cfg)) // again is nothing
	if _, err := os.Stat(File(w.cfg)); err == nil {
		w.t.Error("the backup is left beside the identity")
	}
}

func caller(node string) auth.Identity {
	return auth.Identity{Kind: auth.NodeKind, Name: node, KeyHash: id("e")}
}

// copyOf is what a pool of a node holds of a volume.
func copyOf(v api.Volume, node string, epoch uint64) ledger.Copy {
	v.Heads = map[string]api.Head{"main": {Node: node, Pool: "p", Epoch: epoch, Ready: true}}
	return ledger.Copy{Pool: "p", Branch: "main", Epoch: epoch, Volume: v}
}

func (w *world) report(node string, copies ...ledger.Copy) {
	w.t.Helper()
	// In parts of one, as a long report comes.
	for i, c := range copies {
		w.must(w.s.Report(w.t.Context(), caller(node), ledger.Report{Incarnation: 2, Part: i, Copies: []ledger.Copy{c}}))
	}
	w.must(w.s.Report(w.t.Context(), caller(node), ledger.Report{Incarnation: 2, Part: len(copies), Last: true, Copies: []ledger.Copy{}, Node: api.Node{Name: node, Address: node + ":7433"}}))
}

func (w *world) cluster() api.Cluster {
	w.t.Helper()
	c, err := w.s.cluster(w.t.Context())
	w.must(err)
	return c
}

func (w *world) owner(name string) (string, uint64) {
	w.t.Helper()
	v, err := w.books.Volume(w.t.Context(), name)
	w.must(err)
	return v.Heads["main"].Node, v.Heads["main"].Epoch
}

func (w *world) assigned(node string) []string {
	w.t.Helper()
	var names []string
	_, err := state.Assigned.All(w.t.Context(), w.store, node+"/", func(_ string, v api.Volume, _ int64) error {
		names = append(names, v.Name)
		return nil
	})
	w.must(err)
	slices.Sort(names)
	return names
}

// The whole way: what moved, came and went after the backup is as the pools
// say, and nothing is assigned to anybody before all have reported.
func TestComesBack(t *testing.T) {
	w := newWorld(t)
	moved, gone := w.create("a", "moved", "n1"), w.create("b", "gone", "n2")
	w.create("c", "stays", "n3")
	file := w.take()
	fresh := api.Volume{ID: id("d"), Name: "fresh", Branch: "main", Version: 2, Created: now}
	deleted := gone
	deleted.Version, deleted.Deleted = 9, &api.Deletion{At: now, By: "eve", Purge: now.Add(time.Hour)}

	w.revive(file)
	if c := w.cluster(); c.Incarnation != 2 || c.Recovery == nil || len(c.Recovery.Awaiting) != 3 {
		t.Fatalf("cluster %+v", c)
	}
	if !w.in["n2"] || !w.in["n3"] {
		t.Errorf("let in are %v", w.in)
	}
	w.report("n1")
	w.report("n2", copyOf(moved, "n2", 2), copyOf(deleted, "n2", 1))
	for _, n := range []string{"n1", "n2", "n3"} {
		if got := w.assigned(n); len(got) > 0 {
			t.Errorf("%s was given %v before everybody had reported", n, got)
		}
	}
	stays, err := w.books.Volume(t.Context(), "stays")
	w.must(err)
	w.report("n3", copyOf(stays, "n3", 1), copyOf(fresh, "n3", 1))
	if c := w.cluster(); c.Recovery != nil {
		t.Fatalf("still waiting: %+v", c.Recovery)
	}
	for name, want := range map[string]string{"moved": "n2", "stays": "n3", "fresh": "n3"} {
		if got, _ := w.owner(name); got != want {
			t.Errorf("%s is on %s, want %s", name, got, want)
		}
	}
	if _, err := w.books.Volume(t.Context(), "gone"); !api.Is(err, api.NotFound) {
		t.Errorf("the deleted volume: %v", err)
	}
	if v, err := w.books.Volume(t.Context(), id("b")); err != nil || v.Deleted == nil {
		t.Errorf("the deleted volume cannot be restored: %+v, %v", v, err)
	}
	if got := strings.Join(w.assigned("n2"), " "); got != "gone moved" {
		t.Errorf("n2 has %q", got)
	}
	if got := strings.Join(w.assigned("n3"), " "); got != "fresh stays" {
		t.Errorf("n3 has %q", got)
	}
	left := 0
	if _, err := state.Reports.All(t.Context(), w.store, "", func(string, json.RawMessage, int64) error { left++; return nil }); err != nil || left > 0 {
		t.Errorf("%d reports are left, %v", left, err)
	}
}

// Without a node the others go on; its volumes are unknown, and when it comes
// back what it holds is found its place.
func TestGivesUpANode(t *testing.T) {
	w := newWorld(t)
	v := w.create("a", "pg", "n3")
	w.create("b", "other", "n1")
	file := w.take()
	w.revive(file)
	w.report("n1", copyOf(api.Volume{ID: id("b"), Name: "other", Branch: "main", Version: 3}, "n1", 1))
	w.report("n2")
	if err := w.s.GiveUp(t.Context(), "n2"); !api.Is(err, api.NotFound) {
		t.Errorf("giving up a node that has reported: %v", err)
	}
	w.must(w.s.GiveUp(t.Context(), "n3"))
	if node, epoch := w.owner("pg"); node != "n3" || epoch != 1 {
		t.Errorf("pg is on %s at epoch %d", node, epoch)
	}
	// It comes back with a later epoch, and with a volume whose name was taken since.
	w.create("e", "twin", "n1")
	twin := api.Volume{ID: id("c"), Name: "twin", Branch: "main", Version: 2, Created: now}
	w.report("n3", copyOf(v, "n3", 3), copyOf(twin, "n3", 1))
	if node, epoch := w.owner("pg"); node != "n3" || epoch != 3 {
		t.Errorf("pg is on %s at epoch %d", node, epoch)
	}
	if node, _ := w.owner("twin"); node != "n1" {
		t.Errorf("the name was taken from the volume that has it, by one on %s", node)
	}
	if node, _ := w.owner("twin-recovered-cccccccc"); node != "n3" {
		t.Errorf("the other twin is on %s", node)
	}
}

// A node that joined after the backup is known again by its report.
func TestUnknownNode(t *testing.T) {
	w := newWorld(t)
	file := w.take()
	w.revive(file)
	w.report("n4", copyOf(api.Volume{ID: id("a"), Name: "new", Branch: "main", Version: 2}, "n4", 1))
	for _, n := range []string{"n1", "n2", "n3"} {
		w.report(n)
	}
	if node, _ := w.owner("new"); node != "n4" || !w.in["n4"] {
		t.Errorf("new is on %s, let in %v", node, w.in)
	}
}

// A pool that is not there is waited for.
func TestWaitsForPool(t *testing.T) {
	w := newWorld(t)
	w.revive(w.take())
	w.report("n1")
	w.report("n2")
	w.must(w.s.Report(t.Context(), caller("n3"), ledger.Report{Incarnation: 2, Last: true, Gone: map[string]string{"big": "no disk"}}))
	if c := w.cluster(); c.Recovery == nil || !strings.Contains(c.Recovery.Awaiting["n3"], "big") {
		t.Fatalf("recovery %+v", c.Recovery)
	}
	w.report("n3")
	if c := w.cluster(); c.Recovery != nil {
		t.Fatalf("recovery %+v", c.Recovery)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	file := w.take()
	w.revive(file)
	if err := w.s.Report(t.Context(), caller("n2"), ledger.Report{Incarnation: 1, Last: true}); !api.Is(err, api.Conflict) {
		t.Errorf("a report to the incarnation before: %v", err)
	}
	good := copyOf(api.Volume{ID: id("a"), Name: "v"}, "n2", 1)
	for what, spoil := range map[string]func(*ledger.Copy){
		"no epoch":        func(c *ledger.Copy) { c.Epoch = 0 },
		"a huge epoch":    func(c *ledger.Copy) { c.Epoch = 1 << 63 },
		"a path for name": func(c *ledger.Copy) { c.Volume.Name = "../x" },
		"no id":           func(c *ledger.Copy) { c.Volume.ID = "x/y" },
		"a bad branch":    func(c *ledger.Copy) { c.Branch = "a..b" },
	} {
		c := good
		spoil(&c)
		if err := w.s.Report(t.Context(), caller("n2"), ledger.Report{Incarnation: 2, Copies: []ledger.Copy{c}}); !api.Is(err, api.Invalid) {
			t.Errorf("a copy with %s: %v", what, err)
		}
	}
	if err := w.s.Report(t.Context(), auth.Identity{Kind: auth.UserKind, Name: "eve", Role: api.Admin}, ledger.Report{Incarnation: 2}); !api.Is(err, api.Denied) {
		t.Errorf("a user's report: %v", err)
	}
	if _, _, err := Take(t.Context(), w.store, "n1", "v1", backup.Seal{Clear: true}, now); !api.Is(err, api.Unavailable) {
		t.Errorf("a backup in the midst of a recovery: %v", err)
	}
	other := cluster.Config{Name: "n1", Address: "10.0.0.1", DataDir: filepath.Join(t.TempDir(), "x")}
	if _, err := cluster.Init(t.Context(), cluster.InitConfig{Node: other, Now: now}); err != nil {
		t.Fatal(err)
	}
	b, err := backup.Decode(file)
	w.must(err)
	secrets, err := b.Open(backup.Key{})
	w.must(err)
	ca, err := CA(secrets)
	w.must(err)
	if _, err := cluster.Revive(cluster.ReviveConfig{Node: other, Cluster: b.Header.Cluster, Incarnation: 9, CA: ca, Now: now}); !api.Is(err, api.Exists) {
		t.Errorf("recovery on a host of another cluster: %v", err)
	}
	if _, err := cluster.Revive(cluster.ReviveConfig{Node: w.cfg, Cluster: b.Header.Cluster, Incarnation: 2, CA: ca, Now: now}); !api.Is(err, api.Unavailable) {
		t.Errorf("the same incarnation again: %v", err)
	}
}
