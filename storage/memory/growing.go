package memory

import (
	"context"
	"fmt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Growing is a pool on a host that may have more space. It wants to be twice
// as large when more than half of it is used.
type Growing struct {
	*Backend
	// Host says how large the pool can be now, in bytes.
	Host func() int64
}

var _ storage.Grower = (*Growing)(nil)

// Reopen gives the pool to a new process; see Backend.Reopen.
func (g *Growing) Reopen() *Growing { return &Growing{g.Backend.Reopen(), g.Host} }

// Growth implements storage.Grower.
func (g *Growing) Growth(ctx context.Context) (storage.Growth, error) {
	const op = "look at pool"
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	if err := begin(ctx, op, g.p.cfg.Name, g.there(op, g.p.cfg.Name)); err != nil {
		return storage.Growth{}, err
	}
	size := g.p.cfg.Capacity
	out := storage.Growth{Size: size, Want: size, Most: max(size, g.Host()), Limit: "the host has no more"}
	if g.used() > size/2 {
		out.Want = 2 * size
	}
	return out, nil
}

// Grow implements storage.Grower.
func (g *Growing) Grow(ctx context.Context, size int64) error {
	const op = "grow pool"
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	name := g.p.cfg.Name
	if err := begin(ctx, op, name, g.writable(op, name)); err != nil {
		return err
	}
	switch by := size - g.p.cfg.Capacity; {
	case by < 0:
		return fail(api.Invalid, op, name, fmt.Sprintf("it has %d bytes already", g.p.cfg.Capacity))
	case by > 0 && size > g.Host():
		return fail(api.Exhausted, op, name, "the host has not so much")
	}
	g.p.cfg.Capacity = size
	return nil
}
