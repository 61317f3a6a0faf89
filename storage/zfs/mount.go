package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// locate looks at the mounts, and how they name the data of a tree, which ZFS
// mounts at its own place.
func (b *Backend) locate(tree string) (hostfs.Mounts, hostfs.Place, error) {
	mounts, err := hostfs.LookAtMounts()
	if err != nil {
		return nil, hostfs.Place{}, err
	}
	own, err := mounts.At(b.treeDir(tree))
	return mounts, own.Below(hostfs.DataDir), err
}

// mountsOf lists where else than at its own place a tree is mounted. A copy of
// the whole mount is ZFS's own, seen through a shared mount above.
func (b *Backend) mountsOf(tree string) ([]string, error) {
	mounts, at, err := b.locate(tree)
	if errors.Is(err, hostfs.ErrNotThere) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return mounts.Of(at), nil
}

// Identity implements storage.Backend: every tree is a file system of its own.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (id storage.Identity, err error) {
	const op = "identify head"
	err = b.onKey(ctx, op, key, func() (err error) {
		id, err = b.identity(ctx, op, key)
		return err
	})
	return id, err
}

func (b *Backend) identity(ctx context.Context, op string, key storage.HeadKey) (storage.Identity, error) {
	var none storage.Identity
	f, err := b.readHead(op, key)
	if err != nil {
		return none, err
	}
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return none, err
	}
	_, at, err := b.locate(f.Tree)
	if err != nil {
		return none, err
	}
	var st unix.Stat_t
	if err := unix.Stat(b.treeDir(f.Tree), &st); err != nil {
		return none, err
	}
	return storage.Identity{Devices: []uint64{st.Dev}, MountDevice: at.Device, Root: at.Root}, nil
}

// Mount implements storage.Backend: a bind mount of the head's data.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	return b.onKey(ctx, op, key, func() error { return b.mount(ctx, op, key, target) })
}

func (b *Backend) mount(ctx context.Context, op string, key storage.HeadKey, target string) error {
	f, err := b.readHead(op, key)
	if err != nil {
		return err
	}
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return err
	}
	_, at, err := b.locate(f.Tree)
	if err != nil {
		return err
	}
	data, err := unix.Open(filepath.Join(b.treeDir(f.Tree), hostfs.DataDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(data)
	return hostfs.Bind(op, key, at, data, target)
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	return b.onKey(ctx, op, key, func() error { return b.unmount(ctx, op, key, target) })
}

func (b *Backend) unmount(ctx context.Context, op string, key storage.HeadKey, target string) error {
	if hostfs.NoTarget(target) {
		return nil
	}
	f, err := b.readHead(op, key)
	if api.Is(err, api.NotFound) {
		return nil // a mounted head is never destroyed
	}
	if err != nil {
		return err
	}
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return err
	}
	_, at, err := b.locate(f.Tree)
	if err != nil {
		return err
	}
	return hostfs.Unbind(op, key, at, target)
}

// nested lists the file systems mounted inside a head, in any of its mounts
// that this process sees: a snapshot would leave them out.
func (b *Backend) nested(tree string) ([]string, error) {
	mounts, at, err := b.locate(tree)
	if err != nil {
		return nil, err
	}
	return mounts.Nested(at, filepath.Join(b.treeDir(tree), hostfs.DataDir))
}
