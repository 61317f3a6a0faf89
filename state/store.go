// Package state is the cluster's memory as typed tables over a small key-value
// port: View reads at one moment, Update changes by compare-and-swap with
// retry, Watch follows a table. What is kept is bounded for each volume;
// histories live in pools and remotes. The package knows no etcd (state/etcd)
// and makes no decision (package ledger).
package state

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
)

// Store is the typed face of a KV.
type Store struct {
	kv KV
}

// New gives the tables kept in kv.
func New(kv KV) *Store { return &Store{kv: kv} }

// KV gives the port behind the store, for leases.
func (s *Store) KV() KV { return s.kv }

// Tx reads and, in Update, changes tables. All that it read must still be so
// when it commits. It is for one goroutine.
type Tx struct {
	ctx  context.Context
	kv   KV
	read map[string]Item
	put  map[string]Put
	del  map[string]bool
}

// View runs f for reading. Each key read is current at some moment during f;
// for a condition over several keys use Update.
func (s *Store) View(ctx context.Context, f func(*Tx) error) error {
	return f(newTx(ctx, s.kv))
}

// attempts bounds how often Update tries against competitors.
const attempts = 20

// Update runs f and commits what it changed if nothing that it read changed
// meanwhile; otherwise it runs f again. f must therefore have no effect but
// on tx. An error of f is returned as it is, and nothing is changed.
// An Unavailable error means that the change may or may not have happened.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	for attempt := range attempts {
		tx := newTx(ctx, s.kv)
		if err := f(tx); err != nil {
			return err
		}
		err := tx.commit()
		if !api.Is(err, api.Conflict) {
			return err
		}
		pause := time.Duration(rand.Int64N(int64(time.Millisecond) << min(attempt, 6)))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return &api.Error{Kind: api.Conflict, Op: "change the cluster's state", Reason: fmt.Sprintf("others changed the same records %d times meanwhile", attempts), Next: "try again"}
}

func newTx(ctx context.Context, kv KV) *Tx {
	return &Tx{ctx: ctx, kv: kv, read: map[string]Item{}, put: map[string]Put{}, del: map[string]bool{}}
}

func (tx *Tx) get(key string) (Item, error) {
	if p, ok := tx.put[key]; ok {
		return Item{Key: key, Value: p.Value, Mod: -1}, nil
	}
	if tx.del[key] {
		return Item{Key: key}, nil
	}
	if it, ok := tx.read[key]; ok {
		return it, nil
	}
	items, _, err := tx.kv.Get(tx.ctx, key)
	if err != nil {
		return Item{}, err
	}
	tx.read[key] = items[0]
	return items[0], nil
}

func (tx *Tx) commit() error {
	if len(tx.put) == 0 && len(tx.del) == 0 {
		return nil
	}
	var txn Txn
	for _, it := range tx.read {
		txn.If = append(txn.If, Cond{Key: it.Key, Mod: it.Mod})
	}
	for _, p := range tx.put {
		txn.Put = append(txn.Put, p)
	}
	for k := range tx.del {
		txn.Delete = append(txn.Delete, k)
	}
	slices.SortFunc(txn.If, func(a, b Cond) int { return compare(a.Key, b.Key) })
	slices.SortFunc(txn.Put, func(a, b Put) int { return compare(a.Key, b.Key) })
	slices.Sort(txn.Delete)
	_, err := tx.kv.Commit(tx.ctx, txn)
	return err
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Table is one kind of record under one prefix.
type Table[T any] struct {
	prefix string
	what   string // for errors: "volume"
}

// Key is where a record lies.
func (t Table[T]) Key(id string) string { return t.prefix + id }

// Prefix is where all records lie.
func (t Table[T]) Prefix() string { return t.prefix }

// Get reads a record; NotFound when it is not there. The revision is that of
// its last change, -1 when this transaction itself changed it.
func (t Table[T]) Get(tx *Tx, id string) (T, int64, error) {
	var v T
	it, err := tx.get(t.prefix + id)
	if err != nil {
		return v, 0, err
	}
	if it.Mod == 0 {
		return v, 0, &api.Error{Kind: api.NotFound, Op: "look up " + t.what, Object: id, Reason: "there is none of that name"}
	}
	v, err = t.decode(it)
	return v, it.Mod, err
}

// Put writes a record. What a newer version wrote into the record that was read
// (fields that T does not have) stays in it.
func (t Table[T]) Put(tx *Tx, id string, v T) error { return t.PutLeased(tx, id, v, 0) }

// PutLeased writes a record that goes when the lease ends.
func (t Table[T]) PutLeased(tx *Tx, id string, v T, lease int64) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	key := t.prefix + id
	old := tx.read[key].Value
	if p, ok := tx.put[key]; ok {
		old = p.Value
	}
	if old != nil && !tx.del[key] {
		value = carry(old, value, reflect.TypeFor[T]())
	}
	delete(tx.del, key)
	tx.put[key] = Put{Key: key, Value: stamp(value), Lease: lease}
	return nil
}

// PutCopy writes a copy of a record that this transaction has put into from,
// with the fields of it that this version does not know.
func (t Table[T]) PutCopy(tx *Tx, id string, from Table[T], fromID string) error {
	p, ok := tx.put[from.prefix+fromID]
	if !ok {
		return &api.Error{Kind: api.Internal, Op: "copy " + t.what, Object: fromID, Reason: "this transaction did not write it"}
	}
	key := t.prefix + id
	delete(tx.del, key)
	tx.put[key] = Put{Key: key, Value: p.Value}
	return nil
}

// Delete removes a record.
func (t Table[T]) Delete(tx *Tx, id string) {
	key := t.prefix + id
	delete(tx.put, key)
	tx.del[key] = true
}

func (t Table[T]) decode(it Item) (T, error) {
	var v T
	if err := json.Unmarshal(it.Value, &v); err != nil {
		return v, &api.Error{Kind: api.Damaged, Op: "read the cluster's state", Object: it.Key, Err: err, Next: "a newer version of Drover may have written it; see drover doctor"}
	}
	return v, nil
}

// All reads every record whose id begins with prefix, in order, at one
// revision, which it returns.
func (t Table[T]) All(ctx context.Context, s *Store, prefix string, each func(id string, v T, mod int64) error) (int64, error) {
	return s.kv.List(ctx, t.prefix+prefix, 0, func(it Item) error {
		v, err := t.decode(it)
		if err != nil {
			return err
		}
		return each(it.Key[len(t.prefix):], v, it.Mod)
	})
}

// Change is one record that changed; Gone when it was deleted.
type Change[T any] struct {
	ID       string
	Value    T
	Gone     bool
	Revision int64
}

// Follow gives every record whose id begins with prefix, then every change,
// for ever: first reset(all) with the complete table, then change for each
// change; reset again whenever changes may have been missed. It returns when
// ctx ends or the permission is gone. Both functions are called from one goroutine.
func (t Table[T]) Follow(ctx context.Context, s *Store, prefix string, reset func(all map[string]T), change func(Change[T])) error {
	for {
		all := map[string]T{}
		revision, err := t.All(ctx, s, prefix, func(id string, v T, _ int64) error {
			all[id] = v
			return nil
		})
		if err != nil {
			if ctx.Err() != nil || api.Is(err, api.Denied) || api.Is(err, api.Damaged) {
				return err
			}
			if !sleep(ctx, time.Second) {
				return context.Cause(ctx)
			}
			continue
		}
		reset(all)
		if err := t.follow(ctx, s, prefix, revision, change); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// follow returns nil when the table has to be read anew.
func (t Table[T]) follow(ctx context.Context, s *Store, prefix string, revision int64, change func(Change[T])) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for batch := range s.kv.Watch(ctx, t.prefix+prefix, revision) {
		if batch.Err != nil {
			return batch.Err
		}
		if batch.Resync {
			return nil
		}
		for _, it := range batch.Changed {
			c := Change[T]{ID: it.Key[len(t.prefix):], Gone: it.Mod == 0, Revision: batch.Revision}
			if !c.Gone {
				v, err := t.decode(it)
				if err != nil {
					return err
				}
				c.Value = v
			}
			change(c)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
