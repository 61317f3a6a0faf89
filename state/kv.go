package state

import (
	"context"
	"time"
)

// KV is the small port behind the store: what Drover needs of etcd, and no
// more. Keys are paths without a leading slash. Errors are *api.Error:
// Conflict when a condition of Commit did not hold, Unavailable when the
// outcome is not known or the store does not answer, Denied when this
// identity may not touch a key.
type KV interface {
	// Get reads several keys at one revision; a key that is not there has
	// Item.Mod 0.
	Get(ctx context.Context, keys ...string) ([]Item, int64, error)
	// List reads all keys with the prefix in order at one revision, in pages
	// the caller does not see. revision 0 is now.
	List(ctx context.Context, prefix string, revision int64, each func(Item) error) (int64, error)
	// Commit applies all of the changes or none, and gives the new revision.
	// Unavailable means that it may or may not have happened.
	Commit(ctx context.Context, txn Txn) (int64, error)
	// Watch gives all changes under prefix after revision, in order, batch by
	// batch. It reconnects by itself and ends only with ctx, when the
	// permission is gone (a last batch with Err), or when the revision was
	// compacted (a last batch with Resync): then List and Watch anew.
	Watch(ctx context.Context, prefix string, after int64) <-chan Batch
	// Lease keeps keys written with it only as long as this process renews it.
	// lost is closed when it could not be renewed in time.
	Lease(ctx context.Context, ttl time.Duration) (id int64, lost <-chan struct{}, err error)
}

// Item is one key.
type Item struct {
	Key   string
	Value []byte
	Mod   int64 // revision of its last change; 0: not there
}

// Txn is a set of conditions and changes.
type Txn struct {
	If     []Cond
	Put    []Put
	Delete []string
}

// Cond holds when the key's last change was at Mod; Mod 0: the key is absent.
type Cond struct {
	Key string
	Mod int64
}

// Put writes a key, bound to a lease unless Lease is 0.
type Put struct {
	Key   string
	Value []byte
	Lease int64
}

// Batch is what changed in one revision.
type Batch struct {
	Revision int64
	Changed  []Item // Mod 0: deleted
	Resync   bool
	Err      error
}
