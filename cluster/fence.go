package cluster

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Fence is a state store of which nothing is believed before it has been seen
// to hold the incarnation of the cluster that this node has seen. An earlier
// one is refused, whatever it says; a later one is reported, and refused too:
// what this node remembers is not of it.
type Fence struct {
	kv      state.KV
	cluster string
	number  uint64

	later chan uint64 // takes the number of a later incarnation, once
	once  sync.Once

	mu     sync.Mutex
	passed bool  // guarded by mu
	err    error // guarded by mu; why it is refused
}

var _ state.KV = (*Fence)(nil)

// NewFence guards kv for a node that has seen incarnation number of the
// cluster with that id; number 0 takes the first one that it finds.
func NewFence(kv state.KV, id string, number uint64) *Fence {
	return &Fence{kv: kv, cluster: id, number: number, later: make(chan uint64, 1)}
}

// Later gives the number of a later incarnation when the store holds one.
func (f *Fence) Later() <-chan uint64 { return f.later }

// Look takes what the store says of its cluster now.
func (f *Fence) Look(c api.Cluster) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.number == 0 {
		f.number = c.Incarnation
	}
	f.passed, f.err = false, nil
	switch {
	case c.ID != f.cluster:
		f.err = &api.Error{Kind: api.Denied, Op: "reach the state store", Object: f.cluster, Reason: "it holds cluster " + c.ID, Next: "see config.json in the data directory: its endpoints are those of another cluster"}
	case c.Incarnation < f.number:
		f.err = EarlierIncarnation(c.Incarnation, f.number)
	case c.Incarnation > f.number:
		f.once.Do(func() { f.later <- c.Incarnation })
		f.err = &api.Error{Kind: api.Unavailable, Op: "reach the state store", Reason: "the cluster was recovered from a backup; this node is just going over to it"}
	default:
		f.passed = true
	}
	return f.err
}

func (f *Fence) pass(ctx context.Context) error {
	f.mu.Lock()
	passed, err := f.passed, f.err
	f.mu.Unlock()
	if passed || api.Is(err, api.Denied) {
		return err
	}
	items, _, err := f.kv.Get(ctx, state.TheCluster.Key("cluster"))
	if err != nil {
		return err
	}
	if items[0].Mod == 0 {
		return &api.Error{Kind: api.Unavailable, Op: "reach the state store", Reason: "it holds no cluster yet", Next: "it is being set up; if that does not end, see the log of drover-agent on the node that made the cluster"}
	}
	var c api.Cluster
	if err := json.Unmarshal(items[0].Value, &c); err != nil {
		return &api.Error{Kind: api.Damaged, Op: "reach the state store", Object: items[0].Key, Err: err}
	}
	return f.Look(c)
}

// Get implements state.KV.
func (f *Fence) Get(ctx context.Context, keys ...string) ([]state.Item, int64, error) {
	if err := f.pass(ctx); err != nil {
		return nil, 0, err
	}
	return f.kv.Get(ctx, keys...)
}

// List implements state.KV.
func (f *Fence) List(ctx context.Context, prefix string, revision int64, each func(state.Item) error) (int64, error) {
	if err := f.pass(ctx); err != nil {
		return 0, err
	}
	return f.kv.List(ctx, prefix, revision, each)
}

// Commit implements state.KV.
func (f *Fence) Commit(ctx context.Context, txn state.Txn) (int64, error) {
	if err := f.pass(ctx); err != nil {
		return 0, err
	}
	return f.kv.Commit(ctx, txn)
}

// Watch implements state.KV: whoever watches has listed before.
func (f *Fence) Watch(ctx context.Context, prefix string, after int64) <-chan state.Batch {
	return f.kv.Watch(ctx, prefix, after)
}

// Lease implements state.KV.
func (f *Fence) Lease(ctx context.Context, ttl time.Duration) (int64, <-chan struct{}, error) {
	if err := f.pass(ctx); err != nil {
		return 0, nil, err
	}
	return f.kv.Lease(ctx, ttl)
}
