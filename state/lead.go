package state

import (
	"context"
	"time"

	"github.com/drover-data/drover/api"
)

// Leaders is where elections are held: one key for each, with the name of the
// leader, under the leader's lease.
const Leaders = Root + "leaders/"

// LeaseTTL is how long a node or a leader may be silent before others notice.
const LeaseTTL = 10 * time.Second

// Lead takes part in the election as the candidate and runs f whenever, and
// only while, it has won: f's context ends when the lease is lost. Lead
// returns when ctx ends, when the permission is gone, or with f's error; when
// f returns nil, the candidate stands again. At the end it gives up the lead,
// so that the next one need not wait for the lease.
//
// The lease bounds the time in which two leaders may overlap but a stalled
// process can overstep it, so whatever f decides must be committed by
// compare-and-swap all the same.
func Lead(ctx context.Context, kv KV, election, candidate string, f func(context.Context) error) error {
	key := Leaders + election
	for {
		err := leadOnce(ctx, kv, key, candidate, f)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !api.Is(err, api.Unavailable) && !api.Is(err, api.Conflict):
			return err
		case err != nil && !sleep(ctx, time.Second):
			return context.Cause(ctx)
		}
	}
}

func leadOnce(ctx context.Context, kv KV, key, candidate string, f func(context.Context) error) error {
	if err := untilFree(ctx, kv, key); err != nil {
		return err
	}
	term, stop := context.WithCancel(ctx)
	defer stop()
	lease, lost, err := kv.Lease(term, LeaseTTL)
	if err != nil {
		return err
	}
	mod, err := kv.Commit(ctx, Txn{If: []Cond{{Key: key}}, Put: []Put{{Key: key, Value: []byte(candidate), Lease: lease}}})
	if api.Is(err, api.Conflict) {
		return nil // another was faster; look again
	}
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-lost:
			stop()
		case <-term.Done():
		}
	}()
	err = f(term)
	stop()
	<-done
	resign(ctx, kv, key, mod)
	return err
}

// resign deletes the key if it is still this term's; when that fails the
// lease's end does it.
func resign(ctx context.Context, kv KV, key string, mod int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, _ = kv.Commit(ctx, Txn{If: []Cond{{Key: key, Mod: mod}}, Delete: []string{key}})
}

// untilFree waits until nobody leads.
func untilFree(ctx context.Context, kv KV, key string) error {
	items, revision, err := kv.Get(ctx, key)
	if err != nil || items[0].Mod == 0 {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for batch := range kv.Watch(ctx, key, revision) {
		if batch.Err != nil {
			return batch.Err
		}
		if batch.Resync {
			return nil
		}
		for _, it := range batch.Changed {
			if it.Key == key && it.Mod == 0 {
				return nil
			}
		}
	}
	return nil
}
