package dir

import (
	"context"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Identity implements storage.Backend.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (id storage.Identity, err error) {
	err = b.onHead(ctx, "identify head", key, func(_ *pool, _ int) error {
		_, at, err := hostfs.FindHead(b.cfg.Dir, key)
		id = storage.Identity{MountDevice: at.Device, Root: at.Root}
		return err
	})
	return id, err
}

// Mount implements storage.Backend: a bind mount of the head's data, which
// spreads as the mount that target lies on does.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	return b.onHead(ctx, op, key, func(_ *pool, fd int) error { return hostfs.MountHead(op, b.cfg.Dir, key, fd, target) })
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	return b.onKey(ctx, op, key, func(*pool) error { return hostfs.UnmountHead(op, b.cfg.Dir, key, target) })
}

// nested lists what a snapshot of the head would leave out: file systems
// mounted inside any of its mounts that this process sees.
func (b *Backend) nested(key storage.HeadKey) ([]string, error) {
	mounts, at, err := hostfs.FindHead(b.cfg.Dir, key)
	if err != nil {
		return nil, err
	}
	return mounts.Nested(at, b.dirPath(hostfs.HeadPath(key), hostfs.DataDir))
}
