package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Dir is a pool as a plain directory would be one: no native streams, no
// instant snapshots, but a head can be sealed. Backend is the same pool, for
// tests that reach into it.
type Dir struct {
	storage.Backend
	Pool *Backend
}

var (
	_ storage.Sizer  = (*Dir)(nil)
	_ storage.Sealer = (*Dir)(nil)
)

// NewDir makes an empty one.
func NewDir(cfg Config) *Dir {
	cfg.Slow = true
	return asDir(New(cfg))
}

func asDir(b *Backend) *Dir { return &Dir{b, b} }

// Reopen gives the pool to a new process; see Backend.Reopen.
func (d *Dir) Reopen() *Dir { return asDir(d.Pool.Reopen()) }

// Resize implements storage.Sizer.
func (d *Dir) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	return d.Pool.Resize(ctx, key, size)
}

// Seal implements storage.Sealer.
func (d *Dir) Seal(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "seal head"
	b := d.Pool
	if err := begin(ctx, op, key.String(), checkKey(key), checkID("snapshot", id), checkNote(note)); err != nil {
		return storage.Snapshot{}, err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if s, err := b.snapshot(op, key.Volume, id); err == nil {
		return s.show(), nil
	} else if !api.Is(err, api.NotFound) {
		return storage.Snapshot{}, err
	}
	h, err := b.head(op, key)
	if err != nil {
		return storage.Snapshot{}, err
	}
	if len(h.mounts) > 0 {
		return storage.Snapshot{}, fail(api.InUse, op, key.String(), "it is mounted")
	}
	if err := b.writable(op, key.String()); err != nil {
		return storage.Snapshot{}, err
	}
	s := b.publish(key.Volume, id, "", note, h.files)
	s.sealed = h
	delete(b.p.heads, key)
	return s.show(), nil
}

// Unseal implements storage.Sealer.
func (d *Dir) Unseal(ctx context.Context, volume, id string, key storage.HeadKey) (storage.Head, error) {
	const op = "unseal head"
	b := d.Pool
	if err := begin(ctx, op, key.String(), checkKey(key), checkID("snapshot", id)); err != nil {
		return storage.Head{}, err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if h, err := b.head(op, key); err == nil {
		return h.show(), nil
	} else if !api.Is(err, api.NotFound) {
		return storage.Head{}, err
	}
	s, err := b.snapshot(op, volume, id)
	if err != nil {
		return storage.Head{}, err
	}
	if s.sealed == nil {
		return storage.Head{}, fail(api.Invalid, op, volume+"@"+id, fmt.Sprintf("the snapshot was never the head %s", key))
	}
	if err := b.writable(op, key.String()); err != nil {
		return storage.Head{}, err
	}
	h := s.sealed
	h.Note = slices.Clone(h.Note)
	b.p.heads[key] = h
	delete(b.p.snapshots[volume], id)
	return h.show(), nil
}
