package dir

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Identity implements storage.Backend.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (storage.Identity, error) {
	const op = "identify head"
	if err := hostfs.CheckKey(key); err != nil {
		return storage.Identity{}, err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	defer unlock()
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	defer unix.Close(fd)
	_, at, err := hostfs.Find(b.cfg.Dir, hostfs.HeadPath(key)+"/"+hostfs.DataDir)
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	return storage.Identity{MountDevice: at.Device, Root: at.Root}, nil
}

// Mount implements storage.Backend: a bind mount of the head's data, which
// spreads as the mount that target lies on does.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	if err := hostfs.CheckKey(key); err != nil {
		return err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unix.Close(fd)
	_, at, err := hostfs.Find(b.cfg.Dir, hostfs.HeadPath(key)+"/"+hostfs.DataDir)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	data, err := hostfs.OpenDir(fd, hostfs.DataDir)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unix.Close(data)
	return b.fail(op, key.String(), hostfs.Bind(op, key, at, data, target))
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	if err := hostfs.CheckKey(key); err != nil {
		return err
	}
	_, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	if hostfs.NoTarget(target) {
		return nil
	}
	_, at, err := hostfs.Find(b.cfg.Dir, hostfs.HeadPath(key)+"/"+hostfs.DataDir)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	return b.fail(op, key.String(), hostfs.Unbind(op, key, at, target))
}

// nested lists what a snapshot of the head would leave out: file systems
// mounted inside any of its mounts that this process sees.
func (b *Backend) nested(key storage.HeadKey) ([]string, error) {
	mounts, at, err := hostfs.Find(b.cfg.Dir, hostfs.HeadPath(key)+"/"+hostfs.DataDir)
	if err != nil {
		return nil, err
	}
	return mounts.Nested(at, b.dirPath(hostfs.HeadPath(key), hostfs.DataDir))
}
