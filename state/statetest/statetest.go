// Package statetest is the conformance suite that every state.KV passes. It
// must not know how a store works; what a store can only be asked to do from
// outside (compact, go away) is given to it as functions.
package statetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Harness is a store under test.
type Harness struct {
	KV state.KV
	// Compact makes the store forget all but the present revision.
	Compact func(t *testing.T)
	// Break makes the store unreachable until restore is called.
	Break func(t *testing.T) (restore func())
	// TTL is the shortest lease the store grants.
	TTL time.Duration
}

// patience bounds waiting for what must happen.
const patience = 60 * time.Second

// Run checks a store; open gives an empty one each time, or the same with
// other keys in it: each test keeps to its own prefix.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for name, f := range map[string]func(*testing.T, Harness, string){
		"get":        testGet,
		"list":       testList,
		"commit":     testCommit,
		"atomic":     testAtomic,
		"watch":      testWatch,
		"watchEnds":  testWatchEnds,
		"resync":     testResync,
		"lease":      testLease,
		"leaseMoves": testLeaseMoves,
		"broken":     testBroken,
		"lead":       testLead,
		"concurrent": testConcurrent,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t), state.Root+"test/"+name+"/") })
	}
}

func ctxFor(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func put(t *testing.T, kv state.KV, key, value string) int64 {
	t.Helper()
	rev, err := kv.Commit(ctxFor(t), state.Txn{Put: []state.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

func remove(t *testing.T, kv state.KV, key string) int64 {
	t.Helper()
	rev, err := kv.Commit(ctxFor(t), state.Txn{Delete: []string{key}})
	if err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
	return rev
}

func next(t *testing.T, c <-chan state.Batch) state.Batch {
	t.Helper()
	select {
	case b, ok := <-c:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(patience):
		t.Fatal("the watch says nothing")
	}
	return state.Batch{}
}

func testGet(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	first := put(t, h.KV, p+"a", "1")
	second := put(t, h.KV, p+"b", "2")
	if second <= first {
		t.Fatalf("revisions %d, %d do not grow", first, second)
	}
	items, rev, err := h.KV.Get(ctx, p+"b", p+"none", p+"a")
	if err != nil {
		t.Fatal(err)
	}
	if rev < second || len(items) != 3 {
		t.Fatalf("revision %d, items %v", rev, items)
	}
	if items[0].Key != p+"b" || string(items[0].Value) != "2" || items[0].Mod != second {
		t.Errorf("b: %+v", items[0])
	}
	if items[1].Key != p+"none" || items[1].Mod != 0 || items[1].Value != nil {
		t.Errorf("absent key: %+v", items[1])
	}
	if string(items[2].Value) != "1" || items[2].Mod != first {
		t.Errorf("a: %+v", items[2])
	}
	var many []string
	for i := range 3 * state.MaxOps {
		many = append(many, fmt.Sprintf("%smany/%d", p, i))
	}
	put(t, h.KV, many[300], "x")
	items, _, err = h.KV.Get(ctx, many...)
	if err != nil || len(items) != len(many) || string(items[300].Value) != "x" || items[299].Mod != 0 {
		t.Fatalf("many keys: %v", err)
	}
}

func testList(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	const n = 2500 // more than one page of any store
	for i := 0; i < n; i += 100 {
		var txn state.Txn
		for j := i; j < i+100; j++ {
			txn.Put = append(txn.Put, state.Put{Key: fmt.Sprintf("%sk%05d", p, j), Value: fmt.Append(nil, j)})
		}
		if _, err := h.KV.Commit(ctx, txn); err != nil {
			t.Fatal(err)
		}
	}
	put(t, h.KV, p[:len(p)-1]+"0", "after the prefix")
	count, last := 0, ""
	rev, err := h.KV.List(ctx, p, 0, func(it state.Item) error {
		if it.Key <= last {
			return fmt.Errorf("%s after %s", it.Key, last)
		}
		if want := fmt.Sprintf("%d", count); string(it.Value) != want || it.Mod == 0 {
			return fmt.Errorf("%s has %q at %d", it.Key, it.Value, it.Mod)
		}
		count, last = count+1, it.Key
		return nil
	})
	if err != nil || count != n {
		t.Fatalf("%d of %d keys: %v", count, n, err)
	}
	remove(t, h.KV, p+"k00007")
	put(t, h.KV, p+"k00008", "changed")
	old := map[string]string{}
	got, err := h.KV.List(ctx, p, rev, func(it state.Item) error { old[it.Key] = string(it.Value); return nil })
	if err != nil || got != rev || len(old) != n || old[p+"k00007"] != "7" || old[p+"k00008"] != "8" {
		t.Fatalf("the old revision is not what it was: %d of %d, %v", len(old), n, err)
	}
	stop := fmt.Errorf("enough")
	if _, err := h.KV.List(ctx, p, 0, func(state.Item) error { return stop }); err != stop {
		t.Fatalf("the caller's error came back as %v", err)
	}
	h.Compact(t)
	if _, err := h.KV.List(ctx, p, rev, func(state.Item) error { return nil }); !api.Is(err, api.Conflict) {
		t.Fatalf("a forgotten revision: %v", err)
	}
}

func testCommit(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	a, b := p+"a", p+"b"
	rev, err := h.KV.Commit(ctx, state.Txn{If: []state.Cond{{Key: a}}, Put: []state.Put{{Key: a, Value: []byte("1")}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, cond := range map[string]state.Cond{
		"absent":          {Key: a},
		"older":           {Key: a, Mod: rev - 1},
		"newer":           {Key: a, Mod: rev + 1},
		"absent other":    {Key: b, Mod: rev},
		"absent any time": {Key: b, Mod: 1},
	} {
		_, err := h.KV.Commit(ctx, state.Txn{If: []state.Cond{cond}, Put: []state.Put{{Key: b, Value: []byte("x")}}})
		if !api.Is(err, api.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if items, _, _ := h.KV.Get(ctx, b); items[0].Mod != 0 {
		t.Error("a refused transaction left a key")
	}
	rev2, err := h.KV.Commit(ctx, state.Txn{If: []state.Cond{{Key: a, Mod: rev}, {Key: b}}, Put: []state.Put{{Key: b, Value: []byte("2")}}, Delete: []string{a}})
	if err != nil || rev2 <= rev {
		t.Fatalf("revision %d after %d: %v", rev2, rev, err)
	}
	items, _, err := h.KV.Get(ctx, a, b)
	if err != nil || items[0].Mod != 0 || items[1].Mod != rev2 {
		t.Fatalf("%+v, %v", items, err)
	}
	// A key that was deleted and made again is not the one from before.
	rev3 := put(t, h.KV, a, "again")
	if _, err := h.KV.Commit(ctx, state.Txn{If: []state.Cond{{Key: a, Mod: rev}}, Delete: []string{a}}); !api.Is(err, api.Conflict) {
		t.Errorf("condition on the first life of a key at %d, now %d: %v", rev, rev3, err)
	}
	if _, err := h.KV.Commit(ctx, state.Txn{Put: []state.Put{{Key: a, Value: nil}, {Key: a, Value: nil}}}); !api.Is(err, api.Invalid) {
		t.Errorf("one key twice: %v", err)
	}
	var big state.Txn
	for i := range state.MaxOps + 1 {
		big.Put = append(big.Put, state.Put{Key: fmt.Sprint(p, i)})
	}
	if _, err := h.KV.Commit(ctx, big); !api.Is(err, api.Invalid) {
		t.Errorf("too many changes: %v", err)
	}
}

func testAtomic(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	rev := put(t, h.KV, p+"start", "")
	var txn state.Txn
	for i := range 50 {
		txn.Put = append(txn.Put, state.Put{Key: fmt.Sprintf("%sk%d", p, i), Value: []byte("v")})
	}
	watch := h.KV.Watch(ctx, p, rev)
	want, err := h.KV.Commit(ctx, txn)
	if err != nil {
		t.Fatal(err)
	}
	b := next(t, watch)
	if b.Revision != want || len(b.Changed) != 50 {
		t.Fatalf("a transaction of 50 keys at %d came as %d changes at %d", want, len(b.Changed), b.Revision)
	}
}

func testWatch(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	rev := put(t, h.KV, p+"a", "0")
	first := put(t, h.KV, p+"a", "1") // before the watch begins, after its revision
	watch := h.KV.Watch(ctx, p, rev)
	put(t, h.KV, p[:len(p)-1]+"-other/a", "not mine")
	second := put(t, h.KV, p+"b", "2")
	third := remove(t, h.KV, p+"a")
	type change struct {
		rev   int64
		key   string
		value string
		mod   int64
	}
	for _, want := range []change{{first, "a", "1", first}, {second, "b", "2", second}, {third, "a", "", 0}} {
		b := next(t, watch)
		if b.Err != nil || b.Resync || b.Revision != want.rev || len(b.Changed) != 1 {
			t.Fatalf("%+v instead of %+v", b, want)
		}
		it := b.Changed[0]
		if it.Key != p+want.key || string(it.Value) != want.value || it.Mod != want.mod {
			t.Fatalf("%+v instead of %+v", it, want)
		}
	}
	const n = 200
	for i := range n {
		put(t, h.KV, p+"n", fmt.Sprint(i))
	}
	for i := range n {
		if b := next(t, watch); string(b.Changed[0].Value) != fmt.Sprint(i) {
			t.Fatalf("%s instead of %d", b.Changed[0].Value, i)
		}
	}
}

func testWatchEnds(t *testing.T, h Harness, p string) {
	rev := put(t, h.KV, p+"a", "0")
	ctx, cancel := context.WithCancel(t.Context())
	watch := h.KV.Watch(ctx, p, rev)
	put(t, h.KV, p+"a", "1")
	next(t, watch)
	cancel()
	for {
		select {
		case b, ok := <-watch:
			if !ok {
				return
			}
			if b.Err != nil || b.Resync {
				t.Fatalf("%+v at the end of a watch that was given up", b)
			}
		case <-time.After(patience):
			t.Fatal("the watch goes on after its context ended")
		}
	}
}

func testResync(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	rev := put(t, h.KV, p+"a", "0")
	for i := range 5 {
		put(t, h.KV, p+"a", fmt.Sprint(i))
	}
	h.Compact(t)
	watch := h.KV.Watch(ctx, p, rev)
	if b := next(t, watch); !b.Resync || b.Err != nil {
		t.Fatalf("%+v instead of a resync", b)
	}
	if b, ok := <-watch; ok {
		t.Fatalf("%+v after a resync", b)
	}
	now, err := h.KV.List(ctx, p, 0, func(state.Item) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	watch = h.KV.Watch(ctx, p, now)
	want := put(t, h.KV, p+"a", "new")
	if b := next(t, watch); b.Revision != want {
		t.Fatalf("%+v after the new list", b)
	}
}

func testLease(t *testing.T, h Harness, p string) {
	renewed, stop := context.WithCancel(t.Context())
	defer stop()
	lease, lost, err := h.KV.Lease(renewed, h.TTL)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := h.KV.Commit(ctxFor(t), state.Txn{Put: []state.Put{{Key: p + "a", Lease: lease}, {Key: p + "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * h.TTL) // longer than unrenewed keys last
	select {
	case <-lost:
		t.Fatal("a renewed lease was lost")
	default:
	}
	if items, _, err := h.KV.Get(ctxFor(t), p+"a"); err != nil || items[0].Mod != rev {
		t.Fatalf("the key of a renewed lease: %+v, %v", items, err)
	}
	watch := h.KV.Watch(ctxFor(t), p, rev)
	stop()
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatal("the holder was not told")
	}
	if b := next(t, watch); len(b.Changed) != 1 || b.Changed[0].Key != p+"a" || b.Changed[0].Mod != 0 {
		t.Fatalf("%+v instead of the end of the leased key", b)
	}
	if _, err := h.KV.Commit(ctxFor(t), state.Txn{Put: []state.Put{{Key: p + "a", Lease: lease}}}); !api.Is(err, api.Conflict) {
		t.Fatalf("put under a dead lease: %v", err)
	}
}

func testLeaseMoves(t *testing.T, h Harness, p string) {
	// A restarted process writes its key under a new lease; the end of the old
	// one must not take it away.
	old, stop := context.WithCancel(t.Context())
	defer stop()
	first, _, err := h.KV.Lease(old, h.TTL)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := h.KV.Lease(ctxFor(t), h.TTL)
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range []int64{first, second} {
		if _, err := h.KV.Commit(ctxFor(t), state.Txn{Put: []state.Put{{Key: p + "a", Lease: lease}}}); err != nil {
			t.Fatal(err)
		}
	}
	rev, err := h.KV.Commit(ctxFor(t), state.Txn{Put: []state.Put{{Key: p + "old", Lease: first}}})
	if err != nil {
		t.Fatal(err)
	}
	watch := h.KV.Watch(ctxFor(t), p, rev)
	stop()
	if b := next(t, watch); len(b.Changed) != 1 || b.Changed[0].Key != p+"old" {
		t.Fatalf("%+v when the old lease ended", b)
	}
	if items, _, err := h.KV.Get(ctxFor(t), p+"a"); err != nil || items[0].Mod == 0 {
		t.Fatalf("the key went with its former lease: %v", err)
	}
}

func testBroken(t *testing.T, h Harness, p string) {
	rev := put(t, h.KV, p+"a", "1")
	watch := h.KV.Watch(ctxFor(t), p, rev)
	restore := h.Break(t)
	// No deadline of the caller: the store itself must not hang.
	if _, _, err := h.KV.Get(t.Context(), p+"a"); !api.Is(err, api.Unavailable) {
		t.Errorf("get: %v", err)
	}
	if _, err := h.KV.List(t.Context(), p, 0, func(state.Item) error { return nil }); !api.Is(err, api.Unavailable) {
		t.Errorf("list: %v", err)
	}
	if _, err := h.KV.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: p + "a", Value: []byte("2")}}}); !api.Is(err, api.Unavailable) {
		t.Errorf("commit: %v", err)
	}
	if _, _, err := h.KV.Lease(t.Context(), h.TTL); !api.Is(err, api.Unavailable) {
		t.Errorf("lease: %v", err)
	}
	restore()
	for deadline := time.Now().Add(patience); ; {
		if _, _, err := h.KV.Get(t.Context(), p+"a"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("still broken: %v", err)
		}
	}
	want := put(t, h.KV, p+"a", "3")
	for {
		b := next(t, watch)
		if b.Err != nil || b.Resync {
			t.Fatalf("the watch did not survive: %+v", b)
		}
		if b.Revision == want {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := h.KV.Get(ctx, p+"a"); !api.Is(err, api.Canceled) {
		t.Errorf("a canceled get: %v", err)
	}
}

func testLead(t *testing.T, h Harness, p string) {
	ctx := ctxFor(t)
	election := p[len(state.Root):]
	leading := make(chan string)
	resign := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	leaders := 0
	for _, name := range []string{"one", "two"} {
		mine, cancel := context.WithCancel(ctx)
		resign[name] = cancel
		wg.Go(func() {
			_ = state.Lead(mine, h.KV, election, name, func(term context.Context) error {
				mu.Lock()
				leaders++
				if leaders > 1 {
					t.Error("two leaders")
				}
				mu.Unlock()
				leading <- name
				<-term.Done()
				mu.Lock()
				leaders--
				mu.Unlock()
				return nil
			})
		})
	}
	first := <-leading
	resign[first]()
	second := <-leading
	if second == first {
		t.Errorf("%s leads after it gave up", first)
	}
	resign[second]()
	wg.Wait()
}

func testConcurrent(t *testing.T, h Harness, p string) {
	store := state.New(h.KV)
	table := state.Names
	id := p[len(state.Root):] + "counter"
	const workers, times = 4, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range times {
				err := store.Update(ctxFor(t), func(tx *state.Tx) error {
					v, _, err := table.Get(tx, id)
					if err != nil && !api.Is(err, api.NotFound) {
						return err
					}
					return table.Put(tx, id, v+"x")
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	err := store.View(ctxFor(t), func(tx *state.Tx) error {
		v, _, err := table.Get(tx, id)
		if len(v) != workers*times {
			t.Errorf("%d of %d increments are there", len(v), workers*times)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
