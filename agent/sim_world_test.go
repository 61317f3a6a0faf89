package agent_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/faulty"
	poolmemory "github.com/drover-data/drover/storage/memory"
)

// world is a cluster in this process: hosts that outlive their agents, pools
// that outlive both, one state store, and a network that can be cut anywhere.
type world struct {
	t     *testing.T
	dir   string
	kv    *state.Memory
	store *state.Store // without faults: what is true
	truth *ledger.Service

	mu          sync.Mutex
	rng         *rand.Rand // guarded by mu
	hosts       map[string]*host
	ids         int                    // guarded by mu
	cut         map[string]bool        // guarded by mu; "a|b" between hosts, "a|store"
	faults      faults                 // guarded by mu
	lines       map[string]contentLine // guarded by mu; volume@branch -> what was acknowledged in its head
	commits     map[string]madeCommit  // guarded by mu; what a commit has to hold, by id
	records     int                    // guarded by mu; ever written
	history     []string               // guarded by mu
	broken      []string               // guarded by mu; invariants that did not hold
	late        []string               // guarded by mu; see unsettled
	sql         *sqlServer             // guarded by mu; what sessions in containers speak to
	withHistory bool                   // users commit, branch and reset too
	quiet       bool                   // guarded by mu; containers write less often
	wire        int64                  // guarded by mu; a connection breaks after so many bytes; 0: none
}

// faults are what goes wrong at the ports' calls.
type faults struct {
	count int // of calls so far
	names []string
	// at gives what happens at a call; nil is nothing. after: the call took effect.
	at func(n int, call string, after bool) fault
}

type fault struct {
	crash string // host whose agent ends
	kind  api.Kind
}

type host struct {
	w      *world
	name   string
	dir    string
	pools  map[string]*poolmemory.Backend // the real things, by name
	slow   map[string]bool
	docker *docker
	// incarnation of the cluster that the agent has seen when it starts; report
	// is where it tells what its pools hold.
	incarnation uint64
	report      func(ctx context.Context, r ledger.Report) error

	mu   sync.Mutex
	life *life // guarded by mu; nil while no agent runs
}

// life is one process of an agent.
type life struct {
	h     *host
	a     *agent.Agent
	end   context.CancelFunc
	alive context.Context //nolint:containedctx // of the process
	over  chan struct{}
	mu    sync.Mutex
	dead  bool               // guarded by mu
	conns map[io.Closer]bool // guarded by mu
}

func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// fail notes a broken invariant.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *world) rand(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) newID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids++
	return fmt.Sprintf("%032x", w.ids)
}

// truthHook sets a volume's hook.
func (w *world) truthHook(id string, hook *api.Hook) error {
	_, err := w.truth.Change(context.Background(), id, ledger.Change{Hook: &ledger.SetHook{Hook: hook}})
	return err
}

func pair(a, b string) string { return min(a, b) + "|" + max(a, b) }

func (w *world) isCut(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[pair(a, b)]
}

func (w *world) setCut(a, b string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[pair(a, b)] = cut
}

// point is where something may go wrong: before and after each call of a port.
func (l *life) point(call string, after bool) error {
	if l.isDead() {
		return gone(call)
	}
	w := l.h.w
	call = l.h.name + " " + call
	w.mu.Lock()
	if !after {
		w.faults.count++
		w.faults.names = append(w.faults.names, call)
	}
	var f fault
	if w.faults.at != nil {
		f = w.faults.at(w.faults.count, call, after)
	}
	w.mu.Unlock()
	if f.crash != "" {
		w.logf("crash of %s at %s (after: %v)", f.crash, call, after)
		w.hosts[f.crash].kill()
		if f.crash == l.h.name {
			return gone(call)
		}
	}
	if f.kind != "" {
		w.logf("%s at %s (after: %v)", f.kind, call, after)
		return &api.Error{Kind: f.kind, Op: call, Reason: "as the simulation wants it"}
	}
	return nil
}

func gone(call string) error {
	return &api.Error{Kind: api.Unavailable, Op: call, Reason: "the agent was killed"}
}

func (l *life) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// through runs a call of a port between its two points.
func through[T any](l *life, call string, f func() (T, error)) (T, error) {
	var zero T
	if err := l.point(call, false); err != nil {
		return zero, err
	}
	v, err := f()
	if err != nil {
		return v, err
	}
	if err := l.point(call, true); err != nil {
		return zero, err
	}
	return v, nil
}

func newWorld(t *testing.T, seed uint64, nodes int, slow func(host, pool string) bool) *world {
	w := &world{
		t: t, dir: simDir(t), kv: state.NewMemory(), rng: rand.New(rand.NewPCG(seed, 7)),
		hosts: map[string]*host{}, cut: map[string]bool{}, lines: map[string]contentLine{}, commits: map[string]madeCommit{},
	}
	w.store = state.New(w.kv)
	w.truth = &ledger.Service{Store: w.store, Now: time.Now, NewID: w.newID, Grace: 10 * time.Minute}
	for i := range nodes {
		name := string(rune('a' + i))
		h := &host{w: w, name: name, dir: filepath.Join(w.dir, name), pools: map[string]*poolmemory.Backend{}, slow: map[string]bool{}}
		w.hosts[name] = h
		h.addPool("default", slow(name, "default"))
		h.addPool("second", slow(name, "second"))
		h.docker = newDocker(h)
		err := w.store.Update(t.Context(), func(tx *state.Tx) error {
			if err := state.Nodes.Put(tx, name, api.Node{Name: name}); err != nil {
				return err
			}
			return state.Alive.Put(tx, name, api.NodeStatus{Online: true, Pools: []api.Pool{{Name: "default"}, {Name: "second"}}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range w.names() {
		w.hosts[name].start()
	}
	return w
}

// simDir is a directory in memory where there is one: the agents' indexes
// wait for the disk at each change.
func simDir(t *testing.T) string {
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(base, "drover-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (w *world) names() []string { return slices.Sorted(maps.Keys(w.hosts)) }

func (h *host) addPool(name string, slow bool) {
	h.pools[name] = poolmemory.New(poolmemory.Config{Name: h.name + "-" + name, Capacity: 1 << 30, Slow: slow, Now: time.Now})
	h.slow[name] = slow
}

// open is what the agent opens a pool with.
func (l *life) open(_ context.Context, p api.AddPool, _ bool) (storage.Backend, error) {
	pool := l.h.pools[p.Name]
	if pool == nil {
		return nil, &api.Error{Kind: api.NotFound, Op: "open pool", Object: p.Name}
	}
	var inner storage.Backend = pool.Reopen()
	if l.h.slow[p.Name] {
		inner = &poolmemory.Dir{Backend: inner, Pool: inner.(*poolmemory.Backend)}
	}
	seen := watched{inner, l, p.Name}
	b, f := faulty.Wrap(&watchedNative{seen})
	if l.h.slow[p.Name] {
		b, f = faulty.Wrap(&watchedDir{seen})
	}
	f.Decide(func(method string, after bool) error {
		switch method {
		case "Info", "Head", "Snapshots", "Identity", "Close", "Recover", "Heads": // they change nothing; dead is dead all the same
			if l.isDead() {
				return gone(method)
			}
			return nil
		}
		err := l.point("storage "+p.Name+" "+method, after)
		if after && !l.isDead() && (method == "Receive" || method == "Stage" || method == "Send") {
			return nil // a handle within the process cannot be lost on its way
		}
		return err
	})
	return b, nil
}

func (h *host) current() *life {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life
}

// start starts the agent.
func (h *host) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life != nil {
		return
	}
	l := &life{h: h, over: make(chan struct{}), conns: map[io.Closer]bool{}}
	quiet := slog.New(slog.NewTextHandler(logWriter{h.w, h.name}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
	a, err := agent.New(agent.Config{
		Node: h.name, Cluster: "sim", Incarnation: h.incarnation, DataDir: filepath.Join(h.dir, "data"), VolatileDir: filepath.Join(h.dir, "run"),
	}, agent.Deps{
		Report: h.report,
		Store:  state.New(&storeView{h.w.kv, l}), Ledger: &books{h.w, l}, Peers: &network{h.w, l}, Engine: &engine{h.docker, l},
		Users: &kernel{h}, Portable: &portable{h}, Mounted: h.mounted, Open: l.open,
		Events: events.New(h.name, slog.New(slog.DiscardHandler), time.Now), Log: quiet, Now: time.Now, NewID: h.w.newID,
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	l.a = a
	ctx, end := context.WithCancel(context.Background())
	l.alive, l.end = ctx, end
	h.life = l
	h.w.logf("%s: agent starts", h.name)
	go func() {
		defer close(l.over)
		if err := a.Run(ctx); err != nil && !l.isDead() {
			h.w.fail("the agent of %s ended: %v", h.name, err)
		}
	}()
	go l.addPools(ctx)
}

// addPools is the user who adds the pools once.
func (l *life) addPools(ctx context.Context) {
	for !l.isDead() {
		time.Sleep(20 * time.Millisecond)
		missing := 0
		for _, name := range slices.Sorted(maps.Keys(l.h.pools)) {
			if slices.ContainsFunc(l.a.Pools(), func(p api.Pool) bool { return p.Name == name }) {
				continue
			}
			missing++
			_, _ = l.a.AddPool(ctx, api.AddPool{Name: name, Kind: "memory"})
		}
		if missing == 0 {
			return
		}
	}
}

// kill ends the agent as kill -9 does. It may be called from within the agent.
func (h *host) kill() {
	h.mu.Lock()
	l := h.life
	h.life = nil
	h.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	l.dead = true
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	l.end()
	for c := range conns {
		c.Close()
	}
	l.a.Crash()
}

// reboot ends the host's agent, containers and mounts.
func (h *host) reboot() {
	h.w.logf("%s: reboot", h.name)
	old := h.current()
	h.kill()
	h.docker.powerOff()
	if old != nil {
		<-old.over
	}
	for _, p := range h.pools {
		p.Reboot()
	}
	os.RemoveAll(filepath.Join(h.dir, "run"))
	h.start()
	h.docker.boot()
}

// mounted is the kernel's word on the host's own mounts.
func (h *host) mounted(path string) (bool, error) {
	_, _, ok := h.mountAt(path)
	return ok, nil
}

func (h *host) mountAt(path string) (pool string, key storage.HeadKey, ok bool) {
	for _, name := range slices.Sorted(maps.Keys(h.pools)) {
		p := h.pools[name]
		for _, k := range p.Keys() {
			if slices.Contains(p.Mounted(k), path) {
				return name, k, true
			}
		}
	}
	return "", storage.HeadKey{}, false
}

type logWriter struct {
	w    *world
	node string
}

func (l logWriter) Write(p []byte) (int, error) {
	l.w.logf("%s: %s", l.node, p[:len(p)-1])
	return len(p), nil
}
