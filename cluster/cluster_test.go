package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fakeStore stands for the members and users of an embedded store.
type fakeStore struct {
	mu      sync.Mutex
	members []state.Member
	next    uint64
	access  map[string]string // node: "node" or "control"
	fail    error             // of the next operation
}

func (f *fakeStore) do(change func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail; err != nil {
		f.fail = nil
		return err
	}
	return change()
}

func (f *fakeStore) List(context.Context) ([]state.Member, error) {
	var out []state.Member
	err := f.do(func() error { out = slices.Clone(f.members); return nil })
	return out, err
}

type fakeMembers struct{ *fakeStore }

func (f fakeMembers) Add(_ context.Context, url string) error {
	return f.do(func() error {
		f.next++
		f.members = append(f.members, state.Member{ID: f.next, PeerURL: url})
		return nil
	})
}

func (f fakeMembers) Promote(_ context.Context, id uint64) error {
	return f.do(func() error {
		for i := range f.members {
			if f.members[i].ID == id {
				f.members[i].Voter = true
			}
		}
		return nil
	})
}

func (f fakeMembers) Remove(_ context.Context, id uint64) error {
	return f.do(func() error {
		f.members = slices.DeleteFunc(f.members, func(m state.Member) bool { return m.ID == id })
		return nil
	})
}

type fakeAccess struct{ *fakeStore }

func (f fakeAccess) Add(_ context.Context, node string) error {
	return f.do(func() error { f.access[node] = "node"; return nil })
}

func (f fakeAccess) Control(_ context.Context, node string, control bool) error {
	return f.do(func() error {
		f.access[node] = map[bool]string{true: "control", false: "node"}[control]
		return nil
	})
}

func (f fakeAccess) Remove(_ context.Context, node string) error {
	return f.do(func() error { delete(f.access, node); return nil })
}

type fakeDialer struct {
	dialed []string
	err    error
}

func (d *fakeDialer) DialBack(_ context.Context, address, _ string) error {
	d.dialed = append(d.dialed, address)
	return d.err
}

// testCluster is a cluster of one node, n1, in memory.
type testCluster struct {
	*Service
	t      *testing.T
	fake   *fakeStore
	dialer *fakeDialer
	clock  time.Time
	cfg    Config
}

func newCluster(t *testing.T) *testCluster {
	t.Helper()
	c := &testCluster{t: t, fake: &fakeStore{access: map[string]string{"n1": "control"}, next: 1}, dialer: &fakeDialer{}, clock: start}
	cfg, err := Init(t.Context(), InitConfig{Node: Config{Name: "n1", Address: "10.0.0.1", DataDir: t.TempDir()}, ClusterName: "test", Now: start})
	if err != nil {
		t.Fatal(err)
	}
	c.cfg = cfg
	store := state.New(state.NewMemory())
	if err := Bootstrap(t.Context(), cfg, store); err != nil {
		t.Fatal(err)
	}
	c.fake.members = []state.Member{{ID: 1, PeerURL: cfg.PeerURL(), Voter: true, Ready: true}}
	c.Service = &Service{Store: store, Members: fakeMembers{c.fake}, Access: fakeAccess{c.fake}, Dialer: c.dialer, Node: "n1", Now: func() time.Time { return c.clock }}
	return c
}

func (c *testCluster) token(o TokenOptions) auth.Token {
	c.t.Helper()
	word, _, err := c.CreateToken(c.t.Context(), "root", o)
	if err != nil {
		c.t.Fatal(err)
	}
	tok, err := auth.ParseToken(word)
	if err != nil {
		c.t.Fatal(err)
	}
	return tok
}

func (c *testCluster) request(name string, n int) (JoinRequest, auth.Token, *auth.Request, Config) {
	c.t.Helper()
	tok := c.token(TokenOptions{})
	cfg := Config{Name: name, Address: fmt.Sprintf("10.0.0.%d", n), DataDir: c.t.TempDir(), Candidate: true}
	r, key, err := PrepareJoin(cfg, tok, "v1", c.clock)
	if err != nil {
		c.t.Fatal(err)
	}
	return r, tok, key, cfg
}

func (c *testCluster) join(name string, n int) (JoinAnswer, Config) {
	c.t.Helper()
	r, tok, key, cfg := c.request(name, n)
	a, err := c.Join(c.t.Context(), r)
	if err != nil {
		c.t.Fatal(err)
	}
	// FinishJoin verifies against the real clock; the CA is of the test's.
	if cfg, err = FinishJoin(cfg, tok, key, a); err != nil {
		c.t.Fatal(err)
	}
	return a, cfg
}

func TestInitAndBootstrap(t *testing.T) {
	c := newCluster(t)
	var cluster api.Cluster
	var node api.Node
	err := c.Store.View(t.Context(), func(tx *state.Tx) (err error) {
		if cluster, _, err = state.TheCluster.Get(tx, "cluster"); err != nil {
			return err
		}
		node, _, err = state.Nodes.Get(tx, "n1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if cluster.Name != "test" || cluster.ID != c.cfg.Cluster || cluster.Incarnation != 1 {
		t.Errorf("%+v", cluster)
	}
	if !node.Control || node.Member != api.MemberVoter || node.Address != "10.0.0.1:7433" || node.PeerURL != "https://10.0.0.1:7435" {
		t.Errorf("%+v", node)
	}
	// The CA's key has left the disk.
	_ = filepath.WalkDir(c.cfg.DataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(path, "bootstrap") {
			t.Errorf("%s is still there", path)
		}
		if info, _ := d.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		_ = data
		return err
	})
	loaded, err := LoadConfig(c.cfg.DataDir)
	if err != nil || loaded.Cluster != c.cfg.Cluster || !slices.Equal(loaded.Endpoints, []string{"https://10.0.0.1:7434"}) {
		t.Errorf("%+v, %v", loaded, err)
	}
	if _, err := Init(t.Context(), InitConfig{Node: c.cfg, Now: start}); !api.Is(err, api.Exists) {
		t.Errorf("init twice: %v", err)
	}
	// A store that holds another cluster is left alone.
	other, err := Init(t.Context(), InitConfig{Node: Config{Name: "n1", Address: "10.0.0.1", DataDir: t.TempDir()}, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	if err := Bootstrap(t.Context(), other, c.Store); !api.Is(err, api.Exists) {
		t.Errorf("two clusters in one store: %v", err)
	}
}

func TestConfigReportsEverything(t *testing.T) {
	err := Config{Name: "N 1", Address: "0.0.0.0", DataDir: "here", Ports: Ports{API: 1, State: 1, Peer: 70000}, Endpoints: []string{"http://x:1"}, External: &External{CA: "/none"}}.Validate()
	if !api.Is(err, api.Invalid) {
		t.Fatal(err)
	}
	for _, part := range []string{"name:", "data directory", "state port: 1 is the API port", "peer port: 70000", "address:", `"http://x:1"`, "CA of the external"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if _, err := LoadConfig(t.TempDir()); !api.Is(err, api.NotFound) {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := writeFile(filepath.Join(dir, ConfigFile), []byte(`{"name":"n1","unheard":1}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(dir); !api.Is(err, api.Damaged) {
		t.Error(err)
	}
}

func TestJoin(t *testing.T) {
	c := newCluster(t)
	a, cfg := c.join("n2", 2)
	if a.Cluster.ID != c.cfg.Cluster || a.Node.Control || !a.Node.Candidate || !slices.Equal(cfg.Endpoints, []string{"https://10.0.0.1:7434"}) {
		t.Fatalf("%+v, %+v", a, cfg)
	}
	if c.fake.access["n2"] != "node" || !slices.Equal(c.dialer.dialed, []string{"10.0.0.2:7433"}) {
		t.Fatalf("access %v, dialed %v", c.fake.access, c.dialer.dialed)
	}
	k, err := auth.Open(cfg.IdentityDir())
	if err != nil || k.Identity().Name != "n2" || k.Identity().Control || k.Identity().KeyHash != a.Node.Key {
		t.Fatalf("%+v, %v", k, err)
	}
}

func TestJoinRefuses(t *testing.T) {
	c := newCluster(t)
	c.join("n2", 2)
	used, _, _, _ := c.request("n3", 3)
	if _, err := c.Join(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		change func(*JoinRequest)
		kind   api.Kind
		says   []string
	}{
		"wrong token":    {func(r *JoinRequest) { r.Secret = strings.Repeat("0", 40) }, api.Unauthenticated, []string{"token"}},
		"unknown token":  {func(r *JoinRequest) { r.Token = "nothing" }, api.Unauthenticated, []string{"token"}},
		"strange token":  {func(r *JoinRequest) { r.Token = "../secrets/ca" }, api.Unauthenticated, []string{"token"}},
		"used token":     {func(r *JoinRequest) { r.Token, r.Secret = used.Token, used.Secret }, api.Denied, []string{"used already", "n3"}},
		"clock ahead":    {func(r *JoinRequest) { r.Clock = start.Add(5001 * time.Millisecond) }, api.Invalid, []string{"2026-01-02T03:04:10.001Z", "2026-01-02T03:04:05Z", "5.001s"}},
		"clock behind":   {func(r *JoinRequest) { r.Clock = start.Add(-6 * time.Second) }, api.Invalid, []string{"2026-01-02T03:03:59Z", "2026-01-02T03:04:05Z"}},
		"duplicate name": {func(r *JoinRequest) { r.Name = "n2" }, api.Exists, []string{"10.0.0.2:7433", "--name", "drover node rm n2"}},
		"the first's":    {func(r *JoinRequest) { r.Name = "n1" }, api.Exists, []string{"10.0.0.1:7433"}},
		"duplicate place": {func(r *JoinRequest) {
			r.Address, r.StateURL, r.PeerURL = "10.0.0.2:7433", "https://10.0.0.2:1", "https://10.0.0.2:2"
		}, api.Exists, []string{"n2", "--advertise"}},
		"new API":        {func(r *JoinRequest) { r.API, r.Oldest = 3, 2 }, api.Unsupported, []string{"API 2-3", "n1", "API 1"}},
		"new, only one":  {func(r *JoinRequest) { r.API, r.Oldest = 2, 0 }, api.Unsupported, []string{"API 2", "API 1"}},
		"no API":         {func(r *JoinRequest) { r.API, r.Oldest = 0, 0 }, api.Unsupported, []string{"API 1"}},
		"bad name":       {func(r *JoinRequest) { r.Name = "a/b" }, api.Invalid, nil},
		"root":           {func(r *JoinRequest) { r.Name = "root" }, api.Invalid, nil},
		"bad address":    {func(r *JoinRequest) { r.Address = "0.0.0.0:7433" }, api.Invalid, nil},
		"peer elsewhere": {func(r *JoinRequest) { r.PeerURL = "https://10.0.0.1:7435" }, api.Invalid, []string{"peer URL"}},
		"peer in clear":  {func(r *JoinRequest) { r.PeerURL = "http://10.0.0.9:7435" }, api.Invalid, []string{"peer URL"}},
		"no request":     {func(r *JoinRequest) { r.CSR = nil }, api.Invalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _, _ := c.request("n9", 9)
			before := len(c.dialer.dialed)
			x.change(&r)
			_, err := c.Join(t.Context(), r)
			if !api.Is(err, x.kind) {
				t.Fatal(err)
			}
			for _, part := range x.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
			if len(c.dialer.dialed) != before {
				t.Error("it was dialed all the same")
			}
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		r, _, _, _ := c.request("n9", 9)
		c.dialer.err = &api.Error{Kind: api.Invalid, Reason: "no route"}
		if _, err := c.Join(t.Context(), r); !api.Is(err, api.Invalid) {
			t.Fatal(err)
		}
		c.dialer.err = nil
		if _, err := c.Join(t.Context(), r); err != nil { // nothing was used up
			t.Fatal(err)
		}
	})
	t.Run("expired", func(t *testing.T) {
		r, _, _, _ := c.request("n10", 10)
		c.clock = start.Add(TokenTTL)
		r.Clock = c.clock
		if _, err := c.Join(t.Context(), r); !api.Is(err, api.Denied) || !strings.Contains(err.Error(), "expired at 2026-01-02T04:04:05Z") {
			t.Fatal(err)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		r, tok, _, _ := c.request("n10", 10)
		if err := c.RevokeToken(t.Context(), tok.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Join(t.Context(), r); !api.Is(err, api.Unauthenticated) {
			t.Fatal(err)
		}
	})
}

// TestJoinGoesOn fails behind the commit and repeats, as after a lost answer.
func TestJoinGoesOn(t *testing.T) {
	c := newCluster(t)
	r, tok, key, cfg := c.request("n2", 2)
	c.fake.fail = &api.Error{Kind: api.Unavailable, Reason: "no quorum"}
	if _, err := c.Join(t.Context(), r); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
	c.clock = start.Add(2 * TokenTTL) // the answer may take longer than the token lasts
	again, key2, err := PrepareJoin(cfg, tok, "v1", c.clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	_ = key
	a, err := c.Join(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FinishJoin(cfg, tok, key2, a); err != nil {
		t.Fatal(err)
	}
	// Whoever finds the used token cannot pass for the node.
	thief, err := auth.NewRequest("n2")
	if err != nil {
		t.Fatal(err)
	}
	again.CSR = thief.CSR
	if _, err := c.Join(t.Context(), again); !api.Is(err, api.Denied) {
		t.Fatal(err)
	}
	if _, err := FinishJoin(cfg, auth.Token{CA: "another"}, key2, a); !api.Is(err, api.Unauthenticated) {
		t.Fatalf("an answer of another cluster: %v", err)
	}
}

func TestDialBack(t *testing.T) {
	mine, err := auth.NewRequest("n2")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := auth.RequestKeyHash(mine.CSR)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- AnswerDialBack(ctx, l, mine) }()
	address := l.Addr().String()
	if err := (TLSDialer{}).DialBack(t.Context(), address, hash); err != nil {
		t.Error(err)
	}
	if err := (TLSDialer{}).DialBack(t.Context(), address, strings.Repeat("0", 64)); !api.Is(err, api.Invalid) {
		t.Errorf("another key: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (TLSDialer{}).DialBack(t.Context(), address, hash); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "--advertise") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestRemoveNode(t *testing.T) {
	c := newCluster(t)
	a, cfg := c.join("n2", 2)
	k, err := auth.Open(cfg.IdentityDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := auth.NewRequest("n2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Renew(t.Context(), k.Identity(), r.CSR); err != nil {
		t.Fatal(err)
	}
	volume := api.Volume{ID: "1", Name: "pg", Heads: map[string]api.Head{"main": {Node: "n2"}, "other": {Node: "n1"}}}
	if err := c.Store.Update(t.Context(), func(tx *state.Tx) error { return state.Assigned.Put(tx, "n2/1", volume) }); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNode(t.Context(), "n2", false); !api.Is(err, api.InUse) || !strings.Contains(err.Error(), "pg@main") || strings.Contains(err.Error(), "pg@other") {
		t.Fatal(err)
	}
	if err := c.RemoveNode(t.Context(), "n1", true); !api.Is(err, api.InUse) {
		t.Fatal(err)
	}
	other := *c.Service
	other.Node = "n2"
	if err := other.RemoveNode(t.Context(), "n1", true); !api.Is(err, api.InUse) || !strings.Contains(err.Error(), "drain") {
		t.Fatalf("the only voter: %v", err)
	}
	c.fake.fail = &api.Error{Kind: api.Unavailable}
	if err := c.RemoveNode(t.Context(), "n2", true); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
	if err := c.RemoveNode(t.Context(), "n2", true); err != nil { // goes on
		t.Fatal(err)
	}
	if _, ok := c.fake.access["n2"]; ok {
		t.Error("it still has access")
	}
	// Both its keys are revoked, the first and the renewed one.
	renewed, err := auth.RequestKeyHash(r.CSR)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Store.View(t.Context(), func(tx *state.Tx) error {
		_, _, e1 := state.Revoked.Get(tx, a.Node.Key)
		_, _, e2 := state.Revoked.Get(tx, renewed)
		return errors.Join(e1, e2)
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := c.Renew(t.Context(), k.Identity(), r.CSR); !api.Is(err, api.Unauthenticated) {
		t.Errorf("a removed node renewed: %v", err)
	}
	if err := c.RemoveNode(t.Context(), "n2", true); !api.Is(err, api.NotFound) {
		t.Error(err)
	}
	c.clock = start.Add(auth.Validity + 48*time.Hour)
	if err := c.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := all(t.Context(), c.Service, state.Revoked); err != nil || len(left) != 0 {
		t.Errorf("%d revocations of certificates that are over, %v", len(left), err)
	}
	if left, err := c.Tokens(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%d tokens that are over, %v", len(left), err)
	}
}

func TestUsers(t *testing.T) {
	c := newCluster(t)
	r, err := auth.NewRequest("ann")
	if err != nil {
		t.Fatal(err)
	}
	u, chain, err := c.AddUser(t.Context(), "ann", api.Operator, r.CSR)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := c.ca(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		t.Fatal(err)
	}
	k, err := auth.OpenBundle(bundle, ca.PEM())
	if err != nil || k.Identity().Role != api.Operator || k.Identity().KeyHash != u.Key {
		t.Fatalf("%v", err)
	}
	if _, _, err := c.AddUser(t.Context(), "ann", api.Admin, r.CSR); !api.Is(err, api.Exists) {
		t.Error(err)
	}
	if _, _, err := c.AddUser(t.Context(), "bob", "god", r.CSR); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
	if err := c.RemoveUser(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveUser(t.Context(), "ann"); !api.Is(err, api.NotFound) {
		t.Error(err)
	}
	if err := c.Store.View(t.Context(), func(tx *state.Tx) error { _, _, err := state.Revoked.Get(tx, u.Key); return err }); err != nil {
		t.Error(err)
	}
}

func TestChangeNode(t *testing.T) {
	c := newCluster(t)
	ssd, yes := "ssd", true
	n, err := c.ChangeNode(t.Context(), "n1", NodeChange{Labels: map[string]*string{"disk": &ssd}, Draining: &yes})
	if err != nil || n.Labels["disk"] != "ssd" || !n.Draining {
		t.Fatalf("%+v, %v", n, err)
	}
	if _, err := c.ChangeNode(t.Context(), "n1", NodeChange{Version: n.Version + 1}); !api.Is(err, api.Conflict) {
		t.Error(err)
	}
	if n, err = c.ChangeNode(t.Context(), "n1", NodeChange{Version: n.Version, Labels: map[string]*string{"disk": nil}}); err != nil || len(n.Labels) != 0 {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestRebalanceRecords brings records and rights in line with the members,
// also after a failure anywhere in between.
func TestRebalanceRecords(t *testing.T) {
	c := newCluster(t)
	for i := 2; i <= 4; i++ {
		c.join(fmt.Sprintf("n%d", i), i)
	}
	err := c.Store.Update(t.Context(), func(tx *state.Tx) error {
		for i := 1; i <= 4; i++ {
			if err := state.Alive.Put(tx, fmt.Sprintf("n%d", i), api.NodeStatus{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		if round%2 == 1 {
			c.fake.fail = &api.Error{Kind: api.Unavailable}
		}
		_, _ = c.Rebalance(t.Context())
		for i := range c.fake.members {
			c.fake.members[i].Ready = true
		}
	}
	c.fake.fail = nil
	if did, err := c.Rebalance(t.Context()); err != nil || len(did) != 0 {
		t.Fatalf("%v, %v", did, err)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		voter := n.Name != "n4"
		if (n.Member == api.MemberVoter) != voter || n.Control != voter || (c.fake.access[n.Name] == "control") != voter {
			t.Errorf("%+v with access %s", n, c.fake.access[n.Name])
		}
	}
	start, err := c.MemberStart(t.Context(), auth.Identity{Kind: auth.NodeKind, Name: "n3"})
	if err != nil || len(start.Peers) != 3 || start.Cluster != c.cfg.Cluster {
		t.Errorf("%+v, %v", start, err)
	}
	if _, err := c.MemberStart(t.Context(), auth.Identity{Kind: auth.NodeKind, Name: "n4"}); !api.Is(err, api.Conflict) {
		t.Errorf("a node that is no member: %v", err)
	}
}

// TestPlanMembers plays random histories of nodes that come, go, fall silent
// and drain against the plan, and looks that it never endangers the store and
// always comes to rest with the wanted voters.
func TestPlanMembers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &memberWorld{alive: map[string]bool{}, next: 1}
		w.addNode()
		w.members = []state.Member{{ID: 1, PeerURL: w.nodes[0].PeerURL, Voter: true, Ready: true}}
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			switch rapid.SampledFrom([]string{"join", "silent", "back", "drain", "undrain", "remove", "step", "step", "step"}).Draw(t, "event") {
			case "join":
				if len(w.nodes) < 10 {
					w.addNode()
				}
			case "silent":
				w.setAlive(w.pick(t), false)
			case "back":
				w.setAlive(w.pick(t), true)
			case "drain":
				w.nodes[w.pick(t)].Draining = true
			case "undrain":
				w.nodes[w.pick(t)].Draining = false
			case "remove":
				w.remove(w.pick(t))
			default:
				w.step(t)
			}
		}
		for i := range w.nodes {
			w.setAlive(i, true)
			w.nodes[i].Draining = false
		}
		for range 60 {
			if w.step(t) == 0 {
				break
			}
		}
		if got, want := w.voters(), Voters(len(w.nodes)); got != want || len(w.members) != want {
			t.Fatalf("%d voters of %d members for %d nodes, wanted %d: %+v", got, len(w.members), len(w.nodes), want, w.members)
		}
		if again := PlanMembers(w.nodes, w.alive, w.members); len(again) > 0 {
			t.Fatalf("it does not rest: %+v", again)
		}
	})
}

type memberWorld struct {
	nodes   []api.Node
	alive   map[string]bool
	members []state.Member
	next    uint64
	made    int
}

func (w *memberWorld) addNode() {
	w.made++
	n := api.Node{Name: fmt.Sprintf("n%02d", w.made), Candidate: true, PeerURL: fmt.Sprintf("https://n%02d:1", w.made)}
	w.nodes = append(w.nodes, n)
	w.alive[n.Name] = true
}

func (w *memberWorld) pick(t *rapid.T) int {
	return rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")
}

func (w *memberWorld) setAlive(i int, alive bool) {
	w.alive[w.nodes[i].Name] = alive
	for m := range w.members {
		if w.members[m].PeerURL == w.nodes[i].PeerURL {
			w.members[m].Ready = alive
		}
	}
}

func (w *memberWorld) voters() (n int) {
	for _, m := range w.members {
		if m.Voter {
			n++
		}
	}
	return n
}

func (w *memberWorld) answering() (n int) {
	for _, m := range w.members {
		if m.Voter && m.Ready {
			n++
		}
	}
	return n
}

// remove is `node rm`, with the refusals of RemoveNode and of etcd.
func (w *memberWorld) remove(i int) {
	url := w.nodes[i].PeerURL
	for m, member := range w.members {
		if member.PeerURL != url {
			continue
		}
		if left := w.answering() - map[bool]int{true: 1}[member.Voter && member.Ready]; member.Voter && (w.voters() == 1 || left < (w.voters()-1)/2+1) {
			return
		}
		w.members = slices.Delete(w.members, m, m+1)
		break
	}
	if len(w.nodes) > 1 {
		w.nodes = slices.Delete(w.nodes, i, i+1)
	}
}

// step applies one plan if the store has a majority, as otherwise nothing can
// be changed; it checks that each change keeps one.
func (w *memberWorld) step(t *rapid.T) int {
	quorum := func() bool { return w.answering() > w.voters()/2 }
	if !quorum() {
		return 0
	}
	changes := PlanMembers(w.nodes, w.alive, w.members)
	for _, c := range changes {
		switch c.Op {
		case AddLearner:
			w.next++
			w.members = append(w.members, state.Member{ID: w.next, PeerURL: c.URL, Ready: w.alive[c.Node]})
		case Promote:
			for i := range w.members {
				if w.members[i].ID == c.ID {
					if w.members[i].Voter || !w.members[i].Ready {
						t.Fatalf("promotes %+v", w.members[i])
					}
					w.members[i].Voter = true
				}
			}
		case RemoveMember:
			i := slices.IndexFunc(w.members, func(m state.Member) bool { return m.ID == c.ID })
			if i < 0 {
				t.Fatalf("removes what is not there: %+v", c)
			}
			if m := w.members[i]; m.Voter && !m.Ready {
				owner := slices.IndexFunc(w.nodes, func(n api.Node) bool { return n.PeerURL == m.PeerURL })
				if owner >= 0 && !w.nodes[owner].Draining {
					t.Fatalf("gives up a voter that is merely silent: %+v", c)
				}
			}
			w.members = slices.Delete(w.members, i, i+1)
		}
		if !quorum() {
			t.Fatalf("%+v cost the majority: %+v", c, w.members)
		}
	}
	if len(w.members) > w.voters()+4 {
		t.Fatalf("too many learners for etcd: %+v", w.members)
	}
	if len(changes) > 0 && w.voters() == 0 {
		t.Fatal("no voter is left")
	}
	return len(changes)
}
