package etcd_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
)

// host is a node in this process: its files, its identity, perhaps a member.
type host struct {
	t      *testing.T
	cfg    cluster.Config
	keeper *auth.Keeper
	kv     *etcd.KV
	store  *state.Store
	member *etcd.Member
	peers  map[string]string
}

func newConfig(t *testing.T, name string) cluster.Config {
	return cluster.Config{
		Name: name, Address: "127.0.0.1", DataDir: filepath.Join(t.TempDir(), name), Candidate: true,
		Ports: cluster.Ports{API: freePort(t), State: freePort(t), Peer: freePort(t)},
	}
}

func (h *host) memberConfig() etcd.Config {
	return etcd.Config{
		Name: h.cfg.Name, Dir: h.cfg.StateDir(), Address: h.cfg.Address, ClientPort: h.cfg.Ports.State, PeerPort: h.cfg.Ports.Peer,
		Identity: h.keeper, ClusterID: h.cfg.Cluster, Peers: h.peers,
		Tick: 20 * time.Millisecond, Election: 200 * time.Millisecond, NoSync: true,
		Log: slog.New(slog.NewTextHandler(h.t.Output(), nil)),
	}
}

// run starts the host's member; it may not be ready when this returns.
func (h *host) run() {
	h.t.Helper()
	m, err := etcd.Start(h.t.Context(), h.memberConfig())
	if err != nil {
		h.t.Fatal(err)
	}
	h.member = m
	h.t.Cleanup(m.Close)
}

func (h *host) ready() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	if err := h.member.Ready(ctx); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) connect() {
	h.t.Helper()
	var err error
	h.keeper, err = auth.Open(h.cfg.IdentityDir())
	if err != nil {
		h.t.Fatal(err)
	}
	h.kv = h.dial()
	h.store = state.New(h.kv)
}

func (h *host) dial() *etcd.KV {
	h.t.Helper()
	kv, err := etcd.Open(etcd.ClientConfig{Endpoints: h.cfg.Endpoints, TLS: h.keeper.ClientTLS(nil, auth.OnlyControl), Timeout: 2 * time.Second, Sync: 300 * time.Millisecond})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = kv.Close() })
	return kv
}

func (h *host) service() *cluster.Service {
	return &cluster.Service{Store: h.store, Members: h.kv.Members(), Access: h.kv.Users(), Dialer: cluster.TLSDialer{}, Node: h.cfg.Name}
}

// live keeps the host's heartbeat, as its agent does.
func (h *host) live() {
	h.t.Helper()
	lease, _, err := h.kv.Lease(h.t.Context(), state.LeaseTTL)
	if err != nil {
		h.t.Fatal(err)
	}
	err = h.store.Update(h.t.Context(), func(tx *state.Tx) error {
		return state.Alive.PutLeased(tx, h.cfg.Name, api.NodeStatus{Software: "test"}, lease)
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func initHost(t *testing.T, name string) *host {
	t.Helper()
	cfg, err := cluster.Init(t.Context(), cluster.InitConfig{Node: newConfig(t, name), Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, cfg: cfg}
	h.connect()
	h.run()
	h.ready()
	if err := cluster.Bootstrap(t.Context(), cfg, h.store); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Bootstrap(t.Context(), cfg, h.store); err != nil {
		t.Fatal("repeated:", err)
	}
	h.live()
	return h
}

// join lets a new host in through the whole handshake, dialing back included.
func join(t *testing.T, via *host, name string) *host {
	t.Helper()
	word, _, err := via.service().CreateToken(t.Context(), "test", cluster.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := auth.ParseToken(word)
	if err != nil {
		t.Fatal(err)
	}
	cfg := newConfig(t, name)
	request, key, err := cluster.PrepareJoin(cfg, token, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Ports.API)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = cluster.AnswerDialBack(ctx, l, key) }()
	answer, err := via.service().Join(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err = cluster.FinishJoin(cfg, token, key, answer)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, cfg: cfg}
	h.connect()
	h.live()
	return h
}

// become does what a node's agent does when its record makes it a member.
func (h *host) become(via *host) {
	h.t.Helper()
	svc := via.service()
	err := h.keeper.Renew(h.t.Context(), func(ctx context.Context, csr []byte) ([]byte, error) {
		return svc.Renew(ctx, h.keeper.Identity(), csr)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	start, err := svc.MemberStart(h.t.Context(), h.keeper.Identity())
	if err != nil {
		h.t.Fatal(err)
	}
	h.peers = start.Peers
	h.run()
	h.ready()
}

func (h *host) record() api.Node {
	h.t.Helper()
	var n api.Node
	err := h.store.View(h.t.Context(), func(tx *state.Tx) (err error) {
		n, _, err = state.Nodes.Get(tx, h.cfg.Name)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// settle runs the leader's and the agents' loops until nothing changes.
func settle(t *testing.T, leader *host, hosts ...*host) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		did, err := leader.service().Rebalance(t.Context())
		if err != nil && !api.Is(err, api.Unavailable) {
			t.Fatal(err)
		}
		for _, h := range hosts {
			if h.member == nil && h.record().Member != api.MemberNone {
				h.become(leader)
				did = append(did, cluster.MemberChange{})
			}
		}
		done := err == nil && len(did) == 0
		for _, h := range hosts {
			done = done && h.record().Member != api.MemberLearner
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the members do not settle: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func voters(t *testing.T, h *host) (n int) {
	t.Helper()
	members, err := h.kv.Members().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Voter {
			n++
		}
	}
	return n
}

func set(h *host, key, value string) (int64, error) {
	return h.kv.Commit(h.t.Context(), state.Txn{Put: []state.Put{{Key: state.Root + "test/" + key, Value: []byte(value)}}})
}

func TestThreeMembers(t *testing.T) {
	one := initHost(t, "n1")
	two := join(t, one, "n2")
	settle(t, one, one, two)
	if v := voters(t, one); v != 1 || two.member != nil {
		t.Fatalf("%d voters in a cluster of two", v)
	}
	three := join(t, one, "n3")
	settle(t, one, one, two, three)
	if v := voters(t, one); v != 3 {
		t.Fatalf("%d voters in a cluster of three", v)
	}
	for _, h := range []*host{one, two, three} {
		if n := h.record(); n.Member != api.MemberVoter || !n.Control {
			t.Fatalf("record %+v", n)
		}
	}
	// Control nodes may write everything under their own names.
	if _, err := set(two, "a", "from two"); err != nil {
		t.Fatal(err)
	}
	// The client of n3 knew one endpoint when it joined and has learned the others.
	for deadline := time.Now().Add(time.Minute); len(three.kv.Client().Endpoints()) != 3; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("endpoints %v", three.kv.Client().Endpoints())
		}
	}

	one.member.Close()
	eventually(t, "one of three is down", func() error { _, err := set(three, "a", "1"); return err })
	items, _, err := three.kv.Get(t.Context(), state.Root+"test/a")
	if err != nil || string(items[0].Value) != "1" {
		t.Fatalf("%v, %v", items, err)
	}

	_, revision, err := three.kv.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	watch := three.kv.Watch(t.Context(), state.Root+"test/", revision)
	two.member.Close()
	if _, err := set(three, "a", "2"); !api.Is(err, api.Unavailable) {
		t.Fatalf("write without quorum: %v", err)
	}
	if _, _, err := three.kv.Get(t.Context(), state.Root+"test/a"); !api.Is(err, api.Unavailable) {
		t.Fatalf("read without quorum: %v", err)
	}
	// It must come back without any of the clients being restarted.
	one.run()
	one.ready()
	eventually(t, "two of three are back", func() error { _, err := set(three, "b", "3"); return err })
	eventually(t, "the first host's client", func() error { _, err := set(one, "c", "4"); return err })
	for {
		select {
		case b := <-watch:
			if b.Err != nil || b.Resync {
				t.Fatalf("watch over an outage: %+v", b)
			}
			if b.Changed[0].Key == state.Root+"test/c" {
				return
			}
		case <-time.After(time.Minute):
			t.Fatal("the watch did not come back")
		}
	}
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := f()
		if err == nil {
			return
		}
		if !api.Is(err, api.Unavailable) || time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestPlainNode checks what a node that is no control node may touch.
func TestPlainNode(t *testing.T) {
	one := initHost(t, "n1")
	two := join(t, one, "n2")
	put := func(key string) error {
		_, err := two.kv.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: key, Value: []byte("{}")}}})
		return err
	}
	if err := put(state.Alive.Key("n2")); err != nil {
		t.Errorf("its own heartbeat: %v", err)
	}
	for _, key := range []string{
		state.Alive.Key("n1"), state.Alive.Key("n22"), state.Nodes.Key("n2"), state.Names.Key("pg"), state.Assigned.Key("n2/x"),
		state.Volumes.Key("x"), state.Tokens.Key("x"), state.Users.Key("x"), state.Revoked.Key("x"), state.Secrets.Key("ca"), state.Issued.Key("node/n2"), state.Leaders + "controller",
	} {
		if err := put(key); !api.Is(err, api.Denied) {
			t.Errorf("write %s: %v", key, err)
		}
	}
	list := func(prefix string) error {
		_, err := two.kv.List(t.Context(), prefix, 0, func(state.Item) error { return nil })
		return err
	}
	for _, prefix := range []string{state.TheCluster.Prefix(), state.Nodes.Prefix(), state.Alive.Prefix(), state.Names.Prefix(), state.Assigned.Prefix() + "n2/", state.Revoked.Prefix()} {
		if err := list(prefix); err != nil {
			t.Errorf("read %s: %v", prefix, err)
		}
	}
	for _, prefix := range []string{state.Assigned.Prefix(), state.Assigned.Prefix() + "n1/", state.Assigned.Prefix() + "n22/", state.Volumes.Prefix(), state.Tokens.Prefix(), state.Users.Prefix(), state.Secrets.Prefix(), state.Issued.Prefix(), ""} {
		if err := list(prefix); !api.Is(err, api.Denied) && prefix != "" {
			t.Errorf("read %s: %v", prefix, err)
		}
		if prefix == "" {
			continue
		}
		select {
		case b := <-two.kv.Watch(t.Context(), prefix, 0):
			if !api.Is(b.Err, api.Denied) {
				t.Errorf("watch %s: %+v", prefix, b)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("watch %s: nothing", prefix)
		}
	}
	if err := two.kv.Users().Control(t.Context(), "n2", true); !api.Is(err, api.Denied) {
		t.Errorf("it made itself a control node: %v", err)
	}
	if err := two.kv.Members().Add(t.Context(), "https://127.0.0.1:1"); !api.Is(err, api.Denied) {
		t.Errorf("it added a member: %v", err)
	}
	// A user's certificate is none for the state store, whatever its name.
	r, err := auth.NewRequest("n1")
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := one.service().AddUser(t.Context(), "n1", api.Admin, r.CSR)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		t.Fatal(err)
	}
	user, err := auth.OpenBundle(bundle, one.keeper.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := etcd.Open(etcd.ClientConfig{Endpoints: one.cfg.Endpoints, TLS: user.ClientTLS(nil, nil), Timeout: time.Second, Sync: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if _, _, err := kv.Get(t.Context(), state.Nodes.Key("n1")); !api.Is(err, api.Denied) {
		t.Errorf("a user at the state store: %v", err)
	}
}

// TestRemovalCuts removes a node that is watching, among others that are.
func TestRemovalCuts(t *testing.T) {
	one := initHost(t, "n1")
	two := join(t, one, "n2")
	three := join(t, one, "n3")
	_, revision, err := one.kv.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	removed := two.kv.Watch(t.Context(), state.Names.Prefix(), revision)
	stays := three.kv.Watch(t.Context(), state.Names.Prefix(), revision)
	name := func(v string) {
		t.Helper()
		if err := one.store.Update(t.Context(), func(tx *state.Tx) error { return state.Names.Put(tx, "pg", v) }); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(c <-chan state.Batch) state.Batch {
		t.Helper()
		select {
		case b := <-c:
			return b
		case <-time.After(time.Minute):
			t.Fatal("the watch says nothing")
		}
		return state.Batch{}
	}
	name("before")
	for _, c := range []<-chan state.Batch{removed, stays} {
		if b := receive(c); len(b.Changed) != 1 || string(b.Changed[0].Value) != `"before"` {
			t.Fatalf("%+v", b)
		}
	}
	if err := one.service().RemoveNode(t.Context(), "n1", false); !api.Is(err, api.InUse) {
		t.Fatalf("a node removed itself: %v", err)
	}
	if err := two.service().RemoveNode(t.Context(), "n1", false); err == nil {
		t.Fatal("the only voter, and the right to remove nodes, went in one")
	}
	if err := one.service().RemoveNode(t.Context(), "n2", false); err != nil {
		t.Fatal(err)
	}
	// The watch of the removed node ends with the cause, not in silence.
	if b := receive(removed); !api.Is(b.Err, api.Denied) {
		t.Fatalf("the removed node's watch: %+v", b)
	}
	for i := range 20 {
		name(fmt.Sprint("after", i))
	}
	if b, ok := <-removed; ok {
		t.Fatalf("the removed node was told %+v", b)
	}
	for i := range 20 {
		if b := receive(stays); b.Err != nil || string(b.Changed[0].Value) != fmt.Sprintf("%q", fmt.Sprint("after", i)) {
			t.Fatalf("another node's watch missed something: %+v", b)
		}
	}
	again := two.dial()
	if _, _, err := again.Get(t.Context(), state.Names.Key("pg")); !api.Is(err, api.Denied) {
		t.Fatalf("the removed node came back: %v", err)
	}
	if err := one.service().RemoveNode(t.Context(), "n2", false); !api.Is(err, api.NotFound) {
		t.Fatalf("removed twice: %v", err)
	}
	// Its certificates are refused after a restart too, when nobody could be asked.
	one.member.Close()
	one.run()
	one.ready()
	again = two.dial()
	if _, _, err := again.Get(t.Context(), state.Names.Key("pg")); !api.Is(err, api.Denied) {
		t.Fatalf("the removed node came back after a restart: %v", err)
	}
	// The name is free again, for a host with a key of its own.
	if n, err := one.service().Nodes(t.Context()); err != nil || len(n) != 2 {
		t.Fatalf("%d nodes, %v", len(n), err)
	}
	join(t, one, "n2")
}

// TestVoterMoves drains the only voter of two nodes, then removes it.
func TestVoterMoves(t *testing.T) {
	one := initHost(t, "n1")
	two := join(t, one, "n2")
	yes := true
	if _, err := one.service().ChangeNode(t.Context(), "n1", cluster.NodeChange{Draining: &yes}); err != nil {
		t.Fatal(err)
	}
	// n1 gives up its own rights in the end, so n2 goes on once it is a voter.
	leader := one
	eventually(t, "the voter moves", func() error {
		if two.member == nil && two.record().Member != api.MemberNone {
			two.become(one)
			leader = two
		}
		_, err := leader.service().Rebalance(t.Context())
		if err != nil {
			return err
		}
		if n := two.record(); n.Member != api.MemberVoter || voters(t, two) != 1 {
			return &api.Error{Kind: api.Unavailable}
		}
		return nil
	})
	one.member.Close()
	eventually(t, "n2 alone", func() error { _, err := set(two, "a", "1"); return err })
	if err := two.service().RemoveNode(t.Context(), "n1", false); err != nil {
		t.Fatal(err)
	}
	nodes, err := two.service().Nodes(t.Context())
	if err != nil || len(nodes) != 1 || !slices.Equal([]string{nodes[0].Name}, []string{"n2"}) {
		t.Fatalf("%+v, %v", nodes, err)
	}
}

// A member that waits for others in vain can be stopped all the same.
func TestCloseBeforeReady(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("n1", w.identity("n1", true))
	m := w.start(cfg)
	if _, err := m.KV().Client().MemberAdd(t.Context(), []string{etcd.PeerURL("127.0.0.1", freePort(t))}); err != nil {
		t.Fatal(err) // from here it has no majority
	}
	m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- etcd.Serve(ctx, cfg) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it was ready without a majority")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
}
