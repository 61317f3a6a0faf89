package state

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/drover-data/drover/api"
)

// Memory is a KV in this process: for tests and simulations. It uses only
// channels, timers and one mutex, so that it is deterministic inside a
// testing/synctest bubble. The zero value is not usable; see NewMemory.
type Memory struct {
	mu        sync.Mutex // guards everything below
	revision  int64
	compacted int64
	keys      *btree.BTreeG[*memoryKey]
	log       []Batch       // one batch per revision after compacted
	changed   chan struct{} // closed and replaced whenever a watcher has to look
	down      string        // why nothing answers; "" when it does
	held      bool          // watches wait though operations are answered
	leases    map[int64]*memoryLease
	lastLease int64
}

type memoryKey struct {
	name     string
	versions []memoryVersion // ascending
}

type memoryVersion struct {
	mod   int64
	value []byte
	gone  bool
	lease int64
}

type memoryLease struct {
	lost  chan struct{}
	ended bool // no longer renewed
	timer *time.Timer
}

// NewMemory gives an empty store.
func NewMemory() *Memory {
	return &Memory{
		revision: 1,
		keys:     btree.NewG(32, func(a, b *memoryKey) bool { return a.name < b.name }),
		changed:  make(chan struct{}),
		leases:   map[int64]*memoryLease{},
	}
}

// Break makes every operation fail as Unavailable for the reason, and holds
// watches back, until it is called with "".
func (m *Memory) Break(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = reason
	m.wake()
}

// Behind runs f with the store answering again, but watches still held back:
// for changes that somebody else made on the other side of a partition.
func (m *Memory) Behind(f func()) {
	m.mu.Lock()
	down := m.down
	m.down, m.held = "", true
	m.mu.Unlock()
	f()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down, m.held = down, false
	m.wake()
}

// Compact forgets what was before the present revision, as a real store does
// from time to time: watches that are behind have to read anew.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compacted = m.revision
	m.log = nil
	var empty []*memoryKey
	m.keys.Ascend(func(k *memoryKey) bool {
		k.versions = k.versions[len(k.versions)-1:]
		if k.versions[0].gone {
			empty = append(empty, k)
		}
		return true
	})
	for _, k := range empty {
		m.keys.Delete(k)
	}
	m.wake()
}

// Expire ends a lease as if its holder had not renewed it in time.
func (m *Memory) Expire(lease int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire(lease)
}

func (m *Memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// check is called with mu held.
func (m *Memory) check(ctx context.Context, op, object string) error {
	if err := ctx.Err(); err != nil {
		return ended(ctx, op, object)
	}
	if m.down != "" {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: m.down, Next: "try again"}
	}
	return nil
}

// ended is the error for an operation whose context is over.
func ended(ctx context.Context, op, object string) error {
	return &api.Error{Kind: api.Canceled, Op: op, Object: object, Err: context.Cause(ctx)}
}

func (k *memoryKey) at(revision int64) (memoryVersion, bool) {
	for i := len(k.versions) - 1; i >= 0; i-- {
		if v := k.versions[i]; v.mod <= revision {
			return v, !v.gone
		}
	}
	return memoryVersion{}, false
}

func (m *Memory) now(key string) (memoryVersion, bool) {
	k, ok := m.keys.Get(&memoryKey{name: key})
	if !ok {
		return memoryVersion{}, false
	}
	return k.at(m.revision)
}

// Get implements KV.
func (m *Memory) Get(ctx context.Context, keys ...string) ([]Item, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, "read state", strings.Join(keys, " ")); err != nil {
		return nil, 0, err
	}
	items := make([]Item, len(keys))
	for i, key := range keys {
		items[i].Key = key
		if v, ok := m.now(key); ok {
			items[i].Value, items[i].Mod = slices.Clone(v.value), v.mod
		}
	}
	return items, m.revision, nil
}

// List implements KV.
func (m *Memory) List(ctx context.Context, prefix string, revision int64, each func(Item) error) (int64, error) {
	items, revision, err := m.list(ctx, prefix, revision)
	if err != nil {
		return 0, err
	}
	for _, it := range items {
		if err := each(it); err != nil {
			return 0, err
		}
	}
	return revision, nil
}

func (m *Memory) list(ctx context.Context, prefix string, revision int64) ([]Item, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, "list state", prefix); err != nil {
		return nil, 0, err
	}
	switch {
	case revision == 0:
		revision = m.revision
	case revision < m.compacted:
		return nil, 0, Compacted(prefix, revision)
	case revision > m.revision:
		return nil, 0, &api.Error{Kind: api.Invalid, Op: "list state", Object: prefix, Reason: "the revision lies in the future"}
	}
	var items []Item
	m.keys.AscendGreaterOrEqual(&memoryKey{name: prefix}, func(k *memoryKey) bool {
		if !strings.HasPrefix(k.name, prefix) {
			return false
		}
		if v, ok := k.at(revision); ok {
			items = append(items, Item{Key: k.name, Value: slices.Clone(v.value), Mod: v.mod})
		}
		return true
	})
	return items, revision, nil
}

// Compacted is the error for a revision that a store has forgotten.
func Compacted(prefix string, revision int64) error {
	return &api.Error{Kind: api.Conflict, Op: "list state", Object: prefix, Reason: "the store has forgotten that revision", Next: "read again at the present one"}
}

// Commit implements KV.
func (m *Memory) Commit(ctx context.Context, txn Txn) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	object := txn.Object()
	if err := m.check(ctx, "change state", object); err != nil {
		return 0, err
	}
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	for _, c := range txn.If {
		v, ok := m.now(c.Key)
		if !ok {
			v.mod = 0
		}
		if v.mod != c.Mod {
			return 0, &api.Error{Kind: api.Conflict, Op: "change state", Object: c.Key, Reason: "it changed meanwhile", Next: "read again and decide again"}
		}
	}
	for _, p := range txn.Put {
		if l := m.leases[p.Lease]; p.Lease != 0 && l == nil {
			return 0, LeaseGone(p.Key)
		}
	}
	m.apply(txn)
	return m.revision, nil
}

// LeaseGone is the error for a put under a lease that has ended.
func LeaseGone(key string) error {
	return &api.Error{Kind: api.Conflict, Op: "change state", Object: key, Reason: "the lease has ended", Next: "take a new lease"}
}

// apply writes under the next revision if anything changes; called with mu held.
func (m *Memory) apply(txn Txn) {
	next := m.revision + 1
	batch := Batch{Revision: next}
	for _, p := range txn.Put {
		k, ok := m.keys.Get(&memoryKey{name: p.Key})
		if !ok {
			k = &memoryKey{name: p.Key}
			m.keys.ReplaceOrInsert(k)
		}
		value := slices.Clone(p.Value)
		k.versions = append(k.versions, memoryVersion{mod: next, value: value, lease: p.Lease})
		batch.Changed = append(batch.Changed, Item{Key: p.Key, Value: value, Mod: next})
	}
	for _, key := range txn.Delete {
		if _, ok := m.now(key); !ok {
			continue
		}
		k, _ := m.keys.Get(&memoryKey{name: key})
		k.versions = append(k.versions, memoryVersion{mod: next, gone: true})
		batch.Changed = append(batch.Changed, Item{Key: key})
	}
	if len(batch.Changed) == 0 {
		return
	}
	m.revision = next
	m.log = append(m.log, batch)
	m.wake()
}

// Watch implements KV.
func (m *Memory) Watch(ctx context.Context, prefix string, after int64) <-chan Batch {
	out := make(chan Batch)
	go func() {
		defer close(out)
		for {
			batches, seen, wait := m.since(prefix, after)
			for _, b := range batches {
				select {
				case out <- b:
				case <-ctx.Done():
					return
				}
				if b.Resync {
					return
				}
			}
			after = seen
			select {
			case <-wait:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// since gives what changed under prefix after a revision, up to which
// revision that is, and a channel that closes when there may be more.
func (m *Memory) since(prefix string, after int64) ([]Batch, int64, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != "" || m.held {
		return nil, after, m.changed
	}
	if after < m.compacted {
		return []Batch{{Revision: m.revision, Resync: true}}, m.revision, m.changed
	}
	var out []Batch
	// One batch per revision, so the place in the log can be computed.
	start := len(m.log) - int(max(0, min(m.revision-after, int64(len(m.log)))))
	for _, b := range m.log[start:] {
		var mine []Item
		for _, it := range b.Changed {
			if strings.HasPrefix(it.Key, prefix) {
				it.Value = slices.Clone(it.Value)
				mine = append(mine, it)
			}
		}
		if len(mine) > 0 {
			out = append(out, Batch{Revision: b.Revision, Changed: mine})
		}
	}
	return out, max(after, m.revision), m.changed
}

// Lease implements KV. The lease is renewed, in no time, until ctx ends; its
// keys go ttl later, or when Expire says so.
func (m *Memory) Lease(ctx context.Context, ttl time.Duration) (int64, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx, "take a lease", ""); err != nil {
		return 0, nil, err
	}
	m.lastLease++
	id := m.lastLease
	l := &memoryLease{lost: make(chan struct{})}
	m.leases[id] = l
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.leases[id] == nil || l.ended {
			return
		}
		l.ended = true
		close(l.lost)
		l.timer = time.AfterFunc(ttl, func() { m.Expire(id) })
	})
	return id, l.lost, nil
}

// expire is called with mu held.
func (m *Memory) expire(id int64) {
	l := m.leases[id]
	if l == nil {
		return
	}
	delete(m.leases, id)
	if !l.ended {
		l.ended = true
		close(l.lost)
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	var txn Txn
	m.keys.Ascend(func(k *memoryKey) bool {
		if v, ok := k.at(m.revision); ok && v.lease == id {
			txn.Delete = append(txn.Delete, k.name)
		}
		return true
	})
	m.apply(txn)
}
