package btrfs

import (
	"context"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Ground is what a pool's file system lies on where that can be made larger,
// together with the file system in it: loopfile.File is one.
type Ground interface {
	// Growth says how large the ground is, should and could be, given what is
	// used above it and whether the pool refuses data.
	Growth(ctx context.Context, used int64, full bool) (storage.Growth, error)
	// Grow is as in storage.Grower.
	Grow(ctx context.Context, size int64) error
}

// Growing is a pool on a ground that grows.
type Growing struct {
	*Backend
	ground Ground
}

var _ storage.Grower = (*Growing)(nil)

// On gives the pool the capability to grow with what it lies on.
func (b *Backend) On(g Ground) *Growing { return &Growing{b, g} }

// Growth implements storage.Grower. A pool can be full of metadata while there
// is room for data, so what the file system says decides as well.
func (g *Growing) Growth(ctx context.Context) (storage.Growth, error) {
	const op = "look at pool"
	p, err := g.pool()
	if err != nil {
		return storage.Growth{}, g.fail(op, g.cfg.Source, err)
	}
	s, err := p.measureSpace()
	if err != nil {
		return storage.Growth{}, g.fail(op, g.cfg.Source, err)
	}
	v := Judge(s)
	growth, err := g.ground.Growth(ctx, v.Used, v.State == api.PoolFull)
	if err != nil || v.State == api.PoolReadOnly {
		growth.Want, growth.Most = growth.Size, growth.Size // nothing can be done to it now
	}
	return growth, err
}

// Grow implements storage.Grower.
func (g *Growing) Grow(ctx context.Context, size int64) error {
	if _, err := g.pool(); err != nil {
		return g.fail("grow pool", g.cfg.Source, err)
	}
	return g.ground.Grow(ctx, size)
}
