// Package faulty wraps any storage backend so that a test can script what goes
// wrong: the nth call fails, the process "crashes" before or after a call took
// effect, a stream is cut after so many bytes, the pool is full, read-only or
// gone. By storage.As it has the optional capabilities of what it wraps. It
// knows the contract of package storage and no backend.
package faulty

import (
	"context"
	"slices"
	"sync"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Faults is the script; the zero value breaks nothing. Methods are named as in
// the contract ("CreateHead"), those of handles with their handle
// ("Receive.Write", "Receive.Commit", "Stage.Mark", "Send.Read").
type Faults struct {
	mu      sync.Mutex
	inner   storage.Backend // guarded by mu, as all below
	rules   []rule
	counts  map[string]int
	calls   []string
	crashed bool
	state   api.PoolState
	space   int64 // bytes that streams may still write; -1 without limit
	life    int   // grows with Restart: handles of an earlier life are dead
	decide  func(method string, after bool) error
}

type rule struct {
	method string // "" is any
	nth    int    // of that method, from 1
	after  bool   // the call takes effect first
	crash  bool
	kind   api.Kind
	bytes  int64 // for streams: let so many through before; -1 is no such rule
}

// Fail makes the nth call of method (from 1; "" counts all calls) return an
// error of kind, without effect.
func (f *Faults) Fail(method string, nth int, kind api.Kind) {
	f.add(rule{method: method, nth: nth, kind: kind, bytes: -1})
}

// FailAfter is Fail, but the call takes effect: only its answer is lost.
func (f *Faults) FailAfter(method string, nth int, kind api.Kind) {
	f.add(rule{method: method, nth: nth, kind: kind, after: true, bytes: -1})
}

// CrashBefore ends the process before the nth call of method took effect:
// everything fails from then on until Restart.
func (f *Faults) CrashBefore(method string, nth int) {
	f.add(rule{method: method, nth: nth, crash: true, bytes: -1})
}

// CrashAfter is CrashBefore after the call took effect.
func (f *Faults) CrashAfter(method string, nth int) {
	f.add(rule{method: method, nth: nth, crash: true, after: true, bytes: -1})
}

// Cut lets n more bytes through "Receive.Write" or "Send.Read" and then fails
// with kind, once.
func (f *Faults) Cut(method string, n int64, kind api.Kind) {
	f.add(rule{method: method, kind: kind, bytes: n})
}

// CrashAtByte is Cut with a crash.
func (f *Faults) CrashAtByte(method string, n int64) {
	f.add(rule{method: method, crash: true, bytes: n})
}

// Full lets n more bytes be written by streams; then they, and everything that
// needs space, are Exhausted. Negative: there is space again.
func (f *Faults) Full(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space = n
}

// State makes the pool read-only or gone; PoolReady ends it.
func (f *Faults) State(s api.PoolState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
}

// Restart ends a crash: inner is the same pool as a new process has it. All
// handles of before are dead. Rules that were not used up stay.
func (f *Faults) Restart(inner storage.Backend) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = false
	f.life++
	f.inner = inner
}

// Crashed tells whether a crash happened and Restart did not.
func (f *Faults) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// Calls lists all calls so far in order, so that a test can repeat a run with
// a fault at each of them.
func (f *Faults) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Reset forgets rules, counts and calls.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.counts, f.calls, f.state, f.space = nil, map[string]int{}, nil, "", -1
}

// Decide asks a function before each call, and again after it when it took
// effect: an error it returns becomes the call's. It is how a simulation
// injects its faults into several ports by one script. Reset keeps it.
func (f *Faults) Decide(decide func(method string, after bool) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decide = decide
}

func (f *Faults) ask(method string, after bool) error {
	f.mu.Lock()
	decide := f.decide
	f.mu.Unlock()
	if decide == nil {
		return nil
	}
	return decide(method, after)
}

func (f *Faults) add(r rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, r)
}

// what a call needs of the pool.
type need int

const (
	looks need = iota
	frees      // changes something, needs no space
	takes      // needs space
)

func errOf(k api.Kind, method, why string) error {
	return &api.Error{Kind: k, Op: method, Reason: why}
}

const dead = "the process crashed, as scripted"

// enter is the beginning of a call. It gives the backend to call and what to
// do afterwards: an error to return although the call took effect.
func (f *Faults) enter(method string, n need, life int) (inner storage.Backend, after error, err error) {
	if err := f.ask(method, false); err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed || life >= 0 && life != f.life {
		return nil, nil, errOf(api.Unavailable, method, dead)
	}
	f.counts[method]++
	f.calls = append(f.calls, method)
	for i, r := range f.rules {
		if r.bytes >= 0 || r.method != "" && r.method != method {
			continue
		}
		count := f.counts[method]
		if r.method == "" {
			count = len(f.calls)
		}
		if count != r.nth {
			continue
		}
		f.rules = slices.Delete(f.rules, i, i+1)
		return f.inner, f.break1(r, method, r.after), f.break1(r, method, !r.after)
	}
	switch {
	case f.state == api.PoolGone && method != "Info" && method != "Close":
		err = errOf(api.Unavailable, method, "the pool is gone, as scripted")
	case f.state == api.PoolReadOnly && n != looks:
		err = errOf(api.ReadOnly, method, "the pool is read-only, as scripted")
	case n == takes && f.space == 0:
		err = errOf(api.Exhausted, method, "the pool is full, as scripted")
	}
	return f.inner, nil, err
}

// break1 applies a rule if it is its time. The crash of a call that takes
// effect comes when it has, in leave.
func (f *Faults) break1(r rule, method string, now bool) error {
	if !now {
		return nil
	}
	if !r.crash {
		return errOf(r.kind, method, "as scripted")
	}
	if !r.after {
		f.crashed = true
	}
	return crash{errOf(api.Unavailable, method, dead)}
}

// crash is an error that ends the process when the call is over.
type crash struct{ error }

func (c crash) Unwrap() error { return c.error }

// leave is the end of a call that took effect.
func (f *Faults) leave(err, after error) error {
	if c, ok := after.(crash); ok { //nolint:errorlint // made here, never wrapped
		f.mu.Lock()
		f.crashed = true
		f.mu.Unlock()
		return c
	}
	if err != nil {
		return err
	}
	return after
}

// allow says how many of n bytes of a stream get through and what comes then.
func (f *Faults) allow(method string, n int, writes bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if writes && f.space >= 0 {
		if int64(n) > f.space {
			n = int(f.space)
			f.space = 0
			return n, errOf(api.Exhausted, method, "the pool is full, as scripted")
		}
		f.space -= int64(n)
	}
	for i := range f.rules {
		r := &f.rules[i]
		if r.bytes < 0 || r.method != method {
			continue
		}
		if int64(n) < r.bytes || n == 0 {
			r.bytes -= int64(n)
			continue
		}
		hit := *r
		f.rules = slices.Delete(f.rules, i, i+1)
		if hit.crash {
			f.crashed = true
			return int(hit.bytes), errOf(api.Unavailable, method, dead)
		}
		return int(hit.bytes), errOf(hit.kind, method, "as scripted")
	}
	return n, nil
}

func (f *Faults) now() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.life
}

// call runs one method.
func call[T any](f *Faults, method string, n need, life int, run func(storage.Backend) (T, error)) (T, error) {
	var zero T
	inner, after, err := f.enter(method, n, life)
	if err != nil {
		return zero, err
	}
	v, err := run(inner)
	if err = f.leave(err, after); err == nil {
		err = f.ask(method, true)
	}
	if err != nil {
		return zero, err
	}
	return v, nil
}

func do(f *Faults, method string, n need, life int, run func(storage.Backend) error) error {
	_, err := call(f, method, n, life, func(b storage.Backend) (struct{}, error) { return struct{}{}, run(b) })
	return err
}

// Wrap gives the backend with faults, and their script. By storage.As the
// result has the optional capabilities that inner has, and no others.
func Wrap(inner storage.Backend) (storage.Backend, *Faults) {
	f := &Faults{inner: inner, counts: map[string]int{}, space: -1}
	return core{f}, f
}

type core struct{ f *Faults }

func (c core) Info(ctx context.Context) (storage.Info, error) {
	i, err := call(c.f, "Info", looks, -1, func(b storage.Backend) (storage.Info, error) { return b.Info(ctx) })
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	switch {
	case err != nil:
	case c.f.state != "" && c.f.state != api.PoolReady:
		i.State, i.Reason, i.Free = c.f.state, "as scripted", 0
	case c.f.space == 0:
		i.State, i.Reason, i.Free = api.PoolFull, "as scripted", 0
	}
	return i, err
}

func (c core) Recover(ctx context.Context) (storage.Content, error) {
	return call(c.f, "Recover", looks, -1, func(b storage.Backend) (storage.Content, error) { return b.Recover(ctx) })
}

func (c core) CreateHead(ctx context.Context, spec storage.HeadSpec) (storage.Head, error) {
	return call(c.f, "CreateHead", takes, -1, func(b storage.Backend) (storage.Head, error) { return b.CreateHead(ctx, spec) })
}

func (c core) Head(ctx context.Context, key storage.HeadKey) (storage.Head, error) {
	return call(c.f, "Head", looks, -1, func(b storage.Backend) (storage.Head, error) { return b.Head(ctx, key) })
}

func (c core) Heads(ctx context.Context) ([]storage.Head, error) {
	return call(c.f, "Heads", looks, -1, func(b storage.Backend) ([]storage.Head, error) { return b.Heads(ctx) })
}

func (c core) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	return do(c.f, "SetNote", takes, -1, func(b storage.Backend) error { return b.SetNote(ctx, key, note) })
}

func (c core) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	return do(c.f, "DestroyHead", frees, -1, func(b storage.Backend) error { return b.DestroyHead(ctx, key) })
}

func (c core) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	return do(c.f, "Mount", looks, -1, func(b storage.Backend) error { return b.Mount(ctx, key, target) })
}

func (c core) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	return do(c.f, "Unmount", looks, -1, func(b storage.Backend) error { return b.Unmount(ctx, key, target) })
}

func (c core) Identity(ctx context.Context, key storage.HeadKey) (storage.Identity, error) {
	return call(c.f, "Identity", looks, -1, func(b storage.Backend) (storage.Identity, error) { return b.Identity(ctx, key) })
}

func (c core) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	return call(c.f, "Snapshot", takes, -1, func(b storage.Backend) (storage.Snapshot, error) { return b.Snapshot(ctx, key, id, note) })
}

func (c core) Snapshots(ctx context.Context, volume string) ([]storage.Snapshot, error) {
	return call(c.f, "Snapshots", looks, -1, func(b storage.Backend) ([]storage.Snapshot, error) { return b.Snapshots(ctx, volume) })
}

func (c core) DestroySnapshot(ctx context.Context, volume, id string) error {
	return do(c.f, "DestroySnapshot", frees, -1, func(b storage.Backend) error { return b.DestroySnapshot(ctx, volume, id) })
}

func (c core) Stage(ctx context.Context, spec storage.ReceiveSpec) (storage.Stage, error) {
	s, err := call(c.f, "Stage", takes, -1, func(b storage.Backend) (storage.Stage, error) { return b.Stage(ctx, spec) })
	if err != nil {
		return nil, err
	}
	return &Stage{s, c.f, c.f.now()}, nil
}

func (c core) Close() error {
	return do(c.f, "Close", looks, -1, func(b storage.Backend) error { return b.Close() })
}

// Stage is a stage with faults.
type Stage struct {
	storage.Stage // the wrapped one, for helpers that know its type
	f             *Faults
	life          int
}

// Mark implements storage.Stage.
func (s *Stage) Mark(ctx context.Context, note []byte) error {
	return do(s.f, "Stage.Mark", takes, s.life, func(storage.Backend) error { return s.Stage.Mark(ctx, note) })
}

// Commit implements storage.Stage.
func (s *Stage) Commit(ctx context.Context) (storage.Snapshot, error) {
	return call(s.f, "Stage.Commit", takes, s.life, func(storage.Backend) (storage.Snapshot, error) { return s.Stage.Commit(ctx) })
}

// Abort implements storage.Stage.
func (s *Stage) Abort(ctx context.Context) error {
	return do(s.f, "Stage.Abort", frees, s.life, func(storage.Backend) error { return s.Stage.Abort(ctx) })
}

// Close implements storage.Stage. A crashed process closes nothing.
func (s *Stage) Close() error {
	if s.f.Crashed() || s.life != s.f.now() {
		return nil
	}
	return s.Stage.Close()
}
