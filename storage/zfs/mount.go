package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// own gives the mount that ZFS made of a tree, and all mounts.
func (b *Backend) own(tree string) (*mountinfo.Info, []*mountinfo.Info, error) {
	dir, err := filepath.EvalSymlinks(b.treeDir(tree))
	if err != nil {
		return nil, nil, err
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, nil, err
	}
	var own *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == dir {
			own = m
		}
	}
	if own == nil {
		return nil, nil, fmt.Errorf("%w: nothing is mounted at %s", errNotThere, dir)
	}
	return own, mounts, nil
}

func sameDevice(a, b *mountinfo.Info) bool { return a.Major == b.Major && a.Minor == b.Minor }

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// mountsOf lists where else than at its own place a tree is mounted.
func (b *Backend) mountsOf(tree string) ([]string, error) {
	own, mounts, err := b.own(tree)
	if errors.Is(err, errNotThere) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for _, m := range mounts {
		// A copy of the whole mount is ZFS's own, seen through a shared mount above.
		if sameDevice(m, own) && m.ID != own.ID && m.Root != own.Root {
			list = append(list, m.Mountpoint)
		}
	}
	return list, nil
}

// Identity implements storage.Backend: every tree is a file system of its own.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (storage.Identity, error) {
	const op = "identify head"
	if err := checkKey(key); err != nil {
		return storage.Identity{}, err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	defer unlock()
	id, err := b.identity(ctx, op, key)
	return id, b.fail(op, key.String(), err)
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
	own, _, err := b.own(f.Tree)
	if err != nil {
		return none, err
	}
	var st unix.Stat_t
	if err := unix.Stat(b.treeDir(f.Tree), &st); err != nil {
		return none, err
	}
	return storage.Identity{
		Devices:     []uint64{st.Dev},
		MountDevice: fmt.Sprintf("%d:%d", own.Major, own.Minor), Root: path.Join(own.Root, dataDir),
	}, nil
}

// Mount implements storage.Backend: a bind mount of the head's data.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	if err := checkKey(key); err != nil {
		return err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	return b.fail(op, key.String(), b.mount(ctx, op, key, target))
}

func (b *Backend) mount(ctx context.Context, op string, key storage.HeadKey, target string) error {
	f, err := b.readHead(op, key)
	if err != nil {
		return err
	}
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return err
	}
	top, own, err := b.topMount(f.Tree, target)
	if err != nil {
		return err
	}
	if top != nil {
		if sameDevice(top, own) && top.Root == path.Join(own.Root, dataDir) {
			return nil
		}
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: fmt.Sprintf("%s is mounted at %s", top.Source, target), Next: "unmount that first"}
	}
	data, err := unix.Open(filepath.Join(b.treeDir(f.Tree), dataDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(data)
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", data), target, "", unix.MS_BIND, "")
}

// topMount gives what is mounted at target, if anything, and the tree's own mount.
func (b *Backend) topMount(tree, target string) (top, own *mountinfo.Info, err error) {
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return nil, nil, &api.Error{Kind: api.Invalid, Op: "look at mount point", Object: target, Err: err, Next: "give an existing directory"}
	}
	own, mounts, err := b.own(tree)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range mounts {
		if m.Mountpoint == real {
			top = m
		}
	}
	return top, own, nil
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	if err := checkKey(key); err != nil {
		return err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	return b.fail(op, key.String(), b.unmount(ctx, op, key, target))
}

func (b *Backend) unmount(ctx context.Context, op string, key storage.HeadKey, target string) error {
	if _, err := os.Lstat(target); os.IsNotExist(err) {
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
	top, own, err := b.topMount(f.Tree, target)
	if err != nil {
		return err
	}
	if top == nil || !sameDevice(top, own) {
		return nil
	}
	err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "something still uses " + target, Next: "stop the processes that have files open there", Err: err}
	}
	return err
}

// nested lists the file systems mounted inside a head, in any of its mounts
// that this process sees: a snapshot would leave them out.
func (b *Backend) nested(tree string) ([]string, error) {
	own, mounts, err := b.own(tree)
	if err != nil {
		return nil, err
	}
	root := path.Join(own.Root, dataDir)
	shown := map[int]*mountinfo.Info{}
	for _, m := range mounts {
		if sameDevice(m, own) && (within(m.Root, root) || m.ID == own.ID) {
			shown[m.ID] = m
		}
	}
	var list []string
	for _, m := range mounts {
		outer := shown[m.Parent]
		if outer == nil || shown[m.ID] != nil || m.Mountpoint == outer.Mountpoint {
			continue
		}
		inside := path.Join(outer.Root, strings.TrimPrefix(m.Mountpoint, outer.Mountpoint))
		if within(inside, root) {
			list = append(list, strings.TrimPrefix(strings.TrimPrefix(inside, root), "/"))
		}
	}
	return list, nil
}
