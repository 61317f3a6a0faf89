// Package agent is what runs on every node: it observes the heads that the
// cluster assigns to the node, asks package plan what to do, does it, and
// serves Docker's plugin and other nodes meanwhile. It knows neither Docker's
// wire format nor HTTP nor etcd.
package agent

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/transfer"
)

// Ledger is where records change: the service itself on a control node, a
// client of one on every other. Calls are made in this node's name.
type Ledger interface {
	Volume(ctx context.Context, ref string) (api.Volume, error)
	Create(ctx context.Context, c ledger.Create) (api.Volume, error)
	RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error)
	CancelMove(ctx context.Context, id, branch, move string) (api.Volume, error)
	Hand(ctx context.Context, id, branch string, o ledger.HandOver) (api.Volume, error)
	Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error)
	Settled(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error)
	Returned(ctx context.Context, id, branch, node string) (api.Volume, error)
	Resize(ctx context.Context, id string, size int64) (api.Volume, error)
	Delete(ctx context.Context, id, by string) (api.Volume, error)
	BeginPurge(ctx context.Context, id string) (api.Volume, error)
	Forget(ctx context.Context, id, branch, node string, epoch uint64) error
	Change(ctx context.Context, id string, c ledger.Change) (api.Volume, error)
}

// Users finds who uses a head: processes with an open file or a mount of it.
type Users interface {
	Find(ctx context.Context, id storage.Identity) ([]User, error)
}

// User is one holder of a head, as the kernel shows it.
type User struct {
	PID       int    `json:"pid"`
	Command   string `json:"command"`
	Container string `json:"container,omitempty"` // id, when it is known
	What      string `json:"what"`                // "mount", "open file", …
	Path      string `json:"path"`
}

// Config is what an agent needs to know of itself.
type Config struct {
	Node    string
	Cluster string // id
	// Incarnation of the cluster that this node has seen; 0: there is only one.
	Incarnation uint64
	DataDir     string
	// VolatileDir is emptied by a reboot: mount references are kept there.
	VolatileDir string
	// MountWait is how long Docker's Mount waits for a head that is moving here.
	MountWait time.Duration
	// PeerWait bounds each question to another node while Docker waits.
	PeerWait time.Duration
	// SweepEvery is how often snapshots are looked for whose volume is gone.
	SweepEvery time.Duration
	// PID is this process as the kernel's users are numbered, so that the agent
	// is not taken for a user of a volume; 0 is nobody.
	PID int
}

// Deps are the ports of an agent.
type Deps struct {
	Store    *state.Store
	Ledger   Ledger
	Peers    peer.Agents
	Engine   container.Engine
	Users    Users
	Portable transfer.Portable
	Remotes  Remotes
	// Mounted says whether something is mounted at a path; nil asks the kernel.
	Mounted func(path string) (bool, error)
	// Open opens the backend of a pool, making what it lies on when make is
	// set and it is not there. It has been recovered when it is returned.
	Open func(ctx context.Context, p api.AddPool, make bool) (storage.Backend, error)
	// Report tells a control node what this node's pools hold, after the
	// cluster came back from a backup.
	Report func(ctx context.Context, r ledger.Report) error
	Events *events.Log
	Log    *slog.Logger
	Now    func() time.Time
	NewID  func() string
}

// Agent is one node's agent.
type Agent struct {
	cfg   Config
	deps  Deps
	index *index
	refs  *refs
	// Target takes the sessions of other nodes' agents.
	Target *transfer.Target

	mu    sync.Mutex
	pools map[string]*pool  // guarded by mu; by name
	heads map[headKey]*head // guarded by mu
	left  map[headKey]*head // guarded by mu; those that end
	names map[string]string // guarded by mu; volume names of the whole cluster -> id, as last fetched
	fetch time.Time         // guarded by mu; when names was fetched
	// copying are the volumes that just begin as copies.
	copying map[string]bool     // guarded by mu; by id
	holds   map[string]*hold    // guarded by mu; for commits of several volumes, by token
	stray   map[string][]string // guarded by mu; branches of which the pools held a head at the start, by volume
	notes   notes
	read    map[string]int // guarded by mu; snapshots that are just read, by ID
	jobs    jobs
	cloning map[string]bool // guarded by mu; ids of volumes that arrive from a remote and have no record yet
	fresh   bool            // guarded by mu; the records were read from the store since the start
	onHold  string          // guarded by mu; why nothing new may be mounted or removed; "": it may
	moves   moves
	// PoolsChanged is sent to when what Pools says has changed much.
	PoolsChanged chan struct{}
	keysWanted   chan struct{}   // wakes followKeys
	trials       map[string]bool // guarded by mu; ids of those that run
	group        *errgroup.Group
	ctx          context.Context // of Run
}

// moves are the finished ones.
type moves struct {
	mu    sync.Mutex
	byID  map[string]api.MoveProgress // guarded by mu
	order []string                    // guarded by mu; oldest first
}

type headKey struct{ volume, branch string }

// New opens the agent's durable index. Pools of earlier starts are opened by Run.
func New(cfg Config, deps Deps) (*Agent, error) {
	if cfg.MountWait == 0 {
		cfg.MountWait = 4 * time.Second
	}
	if deps.Mounted == nil {
		deps.Mounted = mountpointMounted
	}
	if cfg.SweepEvery == 0 {
		cfg.SweepEvery = time.Hour
	}
	if cfg.PeerWait == 0 {
		cfg.PeerWait = 1500 * time.Millisecond
	}
	ix, err := openIndex(filepath.Join(cfg.DataDir, "agent", "index.db"))
	if err != nil {
		return nil, err
	}
	rf, err := openRefs(filepath.Join(cfg.VolatileDir, "refs"))
	if err != nil {
		ix.close()
		return nil, err
	}
	a := &Agent{
		cfg: cfg, deps: deps, index: ix, refs: rf,
		PoolsChanged: make(chan struct{}, 1), keysWanted: make(chan struct{}, 1),
		pools: map[string]*pool{}, heads: map[headKey]*head{}, left: map[headKey]*head{}, trials: map[string]bool{}, copying: map[string]bool{}, cloning: map[string]bool{}, holds: map[string]*hold{}, names: map[string]string{},
	}
	if err := a.holdIfBehind(); err != nil {
		ix.close()
		return nil, err
	}
	a.Target = &transfer.Target{Pool: a.backend, Permit: a.permit, Portable: deps.Portable, Watch: a.arrived}
	return a, nil
}

// Run works until ctx ends. What is mounted stays mounted.
func (a *Agent) Run(ctx context.Context) error {
	defer a.index.close()
	defer a.closePools()
	group, ctx := errgroup.WithContext(ctx)
	a.group, a.ctx = group, ctx
	if err := a.openPools(ctx); err != nil {
		return err
	}
	if err := a.findStrays(ctx); err != nil {
		return err
	}
	if err := a.load(); err != nil {
		return err
	}
	if err := a.releaseHeld(); err != nil {
		return err
	}
	group.Go(func() error {
		if err := a.comeBack(ctx); err != nil {
			return err
		}
		return a.follow(ctx)
	})
	group.Go(func() error { return a.watchEngine(ctx) })
	group.Go(func() error { return a.watchPools(ctx) })
	group.Go(func() error { a.sweepNowAndThen(ctx); return nil })
	group.Go(func() error { a.followSchedules(ctx); return nil })
	group.Go(func() error { a.followKeys(ctx); return nil })
	group.Go(func() error { a.endTrials(ctx); return nil })
	return group.Wait()
}

// load starts the heads that were known when the agent last ran, so that they
// can be used while the store does not answer.
func (a *Agent) load() error {
	records, err := a.index.volumes()
	if err != nil {
		return err
	}
	names, err := a.index.names()
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.names = names
	a.mu.Unlock()
	for _, v := range records {
		a.take(v, false)
	}
	return nil
}

// follow keeps the node's own part of the records.
func (a *Agent) follow(ctx context.Context) error {
	prefix := a.cfg.Node + "/"
	err := state.Assigned.Follow(ctx, a.deps.Store, prefix,
		func(all map[string]api.Volume) {
			known := map[string]bool{}
			for key, v := range all {
				known[key[len(prefix):]] = true
				a.take(v, true)
			}
			a.mu.Lock()
			a.fresh = true
			var lost []*head
			for key, h := range a.heads {
				if !known[key.volume] {
					lost = append(lost, h)
				}
			}
			a.mu.Unlock()
			for _, h := range lost {
				a.drop(h.key.volume)
			}
		},
		func(c state.Change[api.Volume]) {
			if c.Gone {
				a.drop(c.ID[len(prefix):])
				return
			}
			a.take(c.Value, true)
		})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// take hands a record to its heads.
func (a *Agent) take(v api.Volume, fresh bool) {
	if fresh && a.later(v) {
		return
	}
	if fresh {
		if err := a.index.putVolume(v); err != nil {
			a.deps.Log.Error("cannot keep the record of a volume", "volume", v.Name, "error", err)
		}
	}
	a.mu.Lock()
	if v.Deleted == nil {
		a.names[v.Name] = v.ID
	} else if a.names[v.Name] == v.ID {
		delete(a.names, v.Name)
	}
	var mine []*head
	for _, branch := range a.branches(v) {
		key := headKey{v.ID, branch}
		h := a.heads[key]
		if h == nil {
			h = newHead(a, key)
			if before := a.left[key]; before != nil {
				h.after = before.done
			}
			a.heads[key] = h
			if a.group != nil {
				done := h.done
				a.group.Go(func() error { h.run(a.ctx, done); return nil })
			}
		}
		mine = append(mine, h)
	}
	a.mu.Unlock()
	for _, h := range mine {
		h.setRecord(v, fresh)
	}
	a.wantKeys(v)
}

// tell hands a record to the heads that are there, without keeping it for a
// restart: that waits for the disk, and the watch does it a moment later.
func (a *Agent) tell(v api.Volume) {
	a.mu.Lock()
	var mine []*head
	for key, h := range a.heads {
		if key.volume == v.ID {
			mine = append(mine, h)
		}
	}
	a.mu.Unlock()
	for _, h := range mine {
		h.setRecord(v, true)
	}
}

// branches lists the branches of a volume that this node has to do with, by
// its record or because a head of one is here that the record does not have.
// mu is held.
func (a *Agent) branches(v api.Volume) []string {
	list := append(slices.Collect(maps.Keys(v.Heads)), a.stray[v.ID]...)
	delete(a.stray, v.ID)
	for key := range a.heads {
		if key.volume == v.ID {
			list = append(list, key.branch)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// findStrays remembers what heads the pools hold, for those of which no
// record tells.
func (a *Agent) findStrays(ctx context.Context) error {
	found, err := a.strays(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stray = found
	return err
}

// later reports whether a later record of the volume than v is known.
func (a *Agent) later(v api.Volume) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, h := range a.heads {
		if key.volume == v.ID {
			known, fresh, _ := h.state()
			return fresh && known.Version > v.Version
		}
	}
	return false
}

// drop lets go of a volume that does not concern this node any more: its heads
// end, then what nobody needs of it here is cleared away. A volume that comes
// back meanwhile waits for that.
func (a *Agent) drop(volume string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, h := range a.heads {
		if key.volume != volume {
			continue
		}
		delete(a.heads, key)
		h.end()
		ended := h.done
		h.done = make(chan struct{})
		a.left[key] = h
		a.group.Go(func() error {
			defer close(h.done)
			select {
			case <-ended:
				h.leave(a.ctx)
			case <-a.ctx.Done():
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.left[key] == h {
				delete(a.left, key)
			}
			return nil
		})
	}
}

// forgetHead lets go of a head that neither the record nor a pool has.
func (a *Agent) forgetHead(h *head) {
	for _, bucket := range [][]byte{bucketPrepared, bucketWaiting, bucketJournal, bucketWork} {
		if err := remove(a.index, bucket, h.id()); err != nil {
			return // the next look tries again
		}
	}
	if err := a.refs.forget(h.key); err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.heads[h.key] == h {
		delete(a.heads, h.key)
		h.end()
	}
}

// head looks up a head that concerns this node.
func (a *Agent) head(volume, branch string) *head {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heads[headKey{volume, branch}]
}

// kickAll lets every head look again.
func (a *Agent) kickAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.heads {
		h.kick()
	}
}

// watchEngine lets heads look again when a container changes.
func (a *Agent) watchEngine(ctx context.Context) error {
	err := a.deps.Engine.Watch(ctx, func(string) { a.kickUsed() })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// kickUsed lets the heads look again for which containers matter now.
func (a *Agent) kickUsed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.heads {
		if h.cares() {
			h.kick()
		}
	}
}

func (a *Agent) event(typ, level string, v api.Volume, branch, message string, data map[string]string) {
	object := v.Name
	if branch != "" && branch != api.MainBranch {
		object += "@" + branch
	}
	trace := ""
	if m := v.Heads[branch].Move; m != nil {
		trace = m.Trace
	}
	a.deps.Events.Add(api.Event{Type: typ, Level: level, Object: object, Message: message, Trace: trace, Data: data})
}
