// Package memory is a storage backend that keeps trees of files in memory. It
// has no directories, no goroutines and no clock of its own, so that whole
// clusters can be simulated with it; tests reach the content by Files and Put.
// It knows nothing of other backends.
//
// A Backend is one process's view of a pool; Reopen is what the next process
// sees after the first was killed: what was not made durable is gone.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Config is how a pool should be.
type Config struct {
	Name     string           // what the user calls it, and the beginning of its lineages; "memory"
	Capacity int64            // bytes; 1 TiB
	Now      func() time.Time // the time; always the epoch when nil
	// Flavour is part of the native format's name: two pools of different
	// Flavour do not understand each other's streams.
	Flavour string
	// Slow says that snapshots are neither instant nor atomic, as on a file
	// system without them; see Dir.
	Slow bool
}

// Files is a tree's content by path.
type Files = map[string]string

// pool is what outlives a process.
type pool struct {
	mu        sync.Mutex // guards all below and everything reached from it
	cfg       Config
	heads     map[storage.HeadKey]*head
	snapshots map[string]map[string]*snapshot // by volume and ID
	partials  map[string]*partial             // by "volume/id": what can go on
	strange   []string
	state     api.PoolState
	serial    uint64
}

type head struct {
	storage.Head
	files  Files
	mounts map[string]bool
	open   bool
}

type snapshot struct {
	storage.Snapshot
	files  Files
	sealed *head // the head that it was, where it was sealed
}

// partial is an arrival as far as it is durable.
type partial struct {
	spec   storage.ReceiveSpec
	format string
	files  Files  // of a stage
	note   []byte // of a stage's last Mark
	data   []byte // of a stream
}

// Backend implements storage.Backend, storage.NativeStreams,
// storage.Estimator and storage.Sizer.
type Backend struct {
	p    *pool
	busy map[string]bool // guarded by p.mu: arrivals with an open handle
}

var (
	_ storage.Backend       = (*Backend)(nil)
	_ storage.NativeStreams = (*Backend)(nil)
	_ storage.Estimator     = (*Backend)(nil)
	_ storage.Sizer         = (*Backend)(nil)
)

// New makes an empty pool.
func New(cfg Config) *Backend {
	if cfg.Name == "" {
		cfg.Name = "memory"
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = 1 << 40
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return time.Unix(0, 0).UTC() }
	}
	return &Backend{&pool{
		cfg: cfg, heads: map[storage.HeadKey]*head{}, snapshots: map[string]map[string]*snapshot{},
		partials: map[string]*partial{}, state: api.PoolReady,
	}, map[string]bool{}}
}

// Reopen gives the pool to a new process. Handles of the old one must not be
// used any more. Mounts outlive processes and stay.
func (b *Backend) Reopen() *Backend { return &Backend{b.p, map[string]bool{}} }

// Reboot ends all mounts, as a restart of the host does.
func (b *Backend) Reboot() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	for _, h := range b.p.heads {
		clear(h.mounts)
		h.open = false
	}
}

// SetCapacity changes how much the pool can hold.
func (b *Backend) SetCapacity(n int64) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.cfg.Capacity = n
}

// SetState makes the pool gone, read-only, full or ready.
func (b *Backend) SetState(s api.PoolState) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.state = s
}

// AddStrange puts something into the pool that is not ours.
func (b *Backend) AddStrange(path string) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.strange = append(b.p.strange, path)
	slices.Sort(b.p.strange)
}

// Put writes files into a head, as its users would, and fails as their writes
// would.
func (b *Backend) Put(key storage.HeadKey, files Files) error {
	const op = "write"
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	h, err := b.head(op, key)
	if err != nil {
		return err
	}
	after := maps.Clone(h.files)
	maps.Copy(after, files)
	if h.Size > 0 && size(after) > h.Size {
		return fail(api.Exhausted, op, key.String(), "the size limit is reached")
	}
	if err := b.room(op, key.String(), size(files)); err != nil {
		return err
	}
	h.files = after
	return nil
}

// Files gives a head's content.
func (b *Backend) Files(key storage.HeadKey) (Files, error) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	h, err := b.head("read", key)
	if err != nil {
		return nil, err
	}
	return maps.Clone(h.files), nil
}

// SnapshotFiles gives a snapshot's content.
func (b *Backend) SnapshotFiles(volume, id string) (Files, error) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	s, err := b.snapshot("read", volume, id)
	if err != nil {
		return nil, err
	}
	return maps.Clone(s.files), nil
}

// SetOpen says that somebody has a file of the head open, so that Unmount is
// refused.
func (b *Backend) SetOpen(key storage.HeadKey, open bool) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if h := b.p.heads[key]; h != nil {
		h.open = open
	}
}

// Mounted lists where a head is mounted.
func (b *Backend) Mounted(key storage.HeadKey) []string {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if h := b.p.heads[key]; h != nil {
		return slices.Sorted(maps.Keys(h.mounts))
	}
	return nil
}

func fail(k api.Kind, op, object, reason string) error {
	return &api.Error{Kind: k, Op: op, Object: object, Reason: reason}
}

func size(f Files) int64 {
	var n int64
	for path, text := range f {
		n += int64(len(path) + len(text))
	}
	return n
}

// there is checked first by everything.
func (b *Backend) there(op, object string) error {
	if b.p.state == api.PoolGone {
		return fail(api.Unavailable, op, object, "the pool "+b.p.cfg.Name+" is gone")
	}
	return nil
}

// room is checked by everything that adds data.
func (b *Backend) room(op, object string, n int64) error {
	switch {
	case b.p.state == api.PoolReadOnly:
		return fail(api.ReadOnly, op, object, "the pool "+b.p.cfg.Name+" is read-only")
	case b.p.state == api.PoolFull, b.used()+n > b.p.cfg.Capacity:
		return fail(api.Exhausted, op, object, "the pool "+b.p.cfg.Name+" is full")
	}
	return nil
}

func (b *Backend) writable(op, object string) error {
	if err := b.there(op, object); err != nil {
		return err
	}
	if b.p.state == api.PoolReadOnly {
		return fail(api.ReadOnly, op, object, "the pool "+b.p.cfg.Name+" is read-only")
	}
	return nil
}

func (b *Backend) used() int64 {
	var n int64
	for _, h := range b.p.heads {
		n += size(h.files)
	}
	for _, v := range b.p.snapshots {
		for _, s := range v {
			n += size(s.files)
		}
	}
	for _, q := range b.p.partials {
		n += int64(len(q.data)) + size(q.files)
	}
	return n
}

// begin checks what every call checks.
func begin(ctx context.Context, op, object string, checks ...error) error {
	if err := errors.Join(checks...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &api.Error{Kind: api.Canceled, Op: op, Object: object, Err: err}
	}
	return nil
}

func checkID(what, s string) error {
	ok := s != "" && len(s) <= api.MaxName && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	})
	if !ok {
		return fail(api.Invalid, "look up "+what, fmt.Sprintf("%q", s), "not a valid id")
	}
	return nil
}

func checkKey(k storage.HeadKey) error {
	return errors.Join(checkID("volume", k.Volume), api.CheckBranchName(k.Branch))
}

const maxNote = 64 << 10

func checkNote(n []byte) error {
	if len(n) > maxNote {
		return fail(api.Invalid, "write note", "", "the note is longer than 64 KiB")
	}
	return nil
}

func (b *Backend) head(op string, key storage.HeadKey) (*head, error) {
	if err := b.there(op, key.String()); err != nil {
		return nil, err
	}
	if h := b.p.heads[key]; h != nil {
		return h, nil
	}
	return nil, fail(api.NotFound, op, key.String(), "there is no such head")
}

func (b *Backend) snapshot(op, volume, id string) (*snapshot, error) {
	if err := b.there(op, volume+"@"+id); err != nil {
		return nil, err
	}
	if s := b.p.snapshots[volume][id]; s != nil {
		return s, nil
	}
	return nil, fail(api.NotFound, op, volume+"@"+id, "there is no such snapshot")
}

func (h *head) show() storage.Head {
	o := h.Head
	o.Used, o.Note = size(h.files), slices.Clone(h.Note)
	return o
}

func (s *snapshot) show() storage.Snapshot {
	o := s.Snapshot
	o.Used, o.Note = size(s.files), slices.Clone(s.Note)
	return o
}

// publish makes a snapshot of files.
func (b *Backend) publish(volume, id, lineage string, note []byte, files Files) *snapshot {
	b.p.serial++
	if lineage == "" {
		lineage = fmt.Sprintf("%s-%d", b.p.cfg.Name, b.p.serial)
	}
	s := &snapshot{storage.Snapshot{
		ID: id, Volume: volume, Lineage: lineage, Order: b.p.serial, Created: b.p.cfg.Now(), Note: slices.Clone(note),
	}, maps.Clone(files), nil}
	if b.p.snapshots[volume] == nil {
		b.p.snapshots[volume] = map[string]*snapshot{}
	}
	b.p.snapshots[volume][id] = s
	return s
}

func sorted[T any, K cmp.Ordered](list []T, by func(T) K) []T {
	slices.SortFunc(list, func(x, y T) int { return cmp.Compare(by(x), by(y)) })
	return list
}

// Keys lists the heads of the pool, whatever its state.
func (b *Backend) Keys() []storage.HeadKey {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	keys := slices.Collect(maps.Keys(b.p.heads))
	slices.SortFunc(keys, func(x, y storage.HeadKey) int { return strings.Compare(x.String(), y.String()) })
	return keys
}
