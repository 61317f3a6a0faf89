package dir

import (
	"context"
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

// place is how mountinfo names a path of the pool: the device of the file
// system and the path inside it.
type place struct{ device, root string }

// locate finds the mount that shows the pool, the last one on top, and from
// it how mountinfo would name rel.
func (b *Backend) locate(mounts []*mountinfo.Info, rel string) (place, error) {
	dir, err := filepath.EvalSymlinks(b.cfg.Dir)
	if err != nil {
		return place{}, fmt.Errorf("%w: %w", errNotThere, err)
	}
	var best *mountinfo.Info
	for _, m := range mounts {
		if within(dir, m.Mountpoint) && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	if best == nil {
		return place{}, fmt.Errorf("%w: no mount shows %s", errNotThere, dir)
	}
	inside, err := filepath.Rel(best.Mountpoint, dir)
	if err != nil {
		return place{}, err
	}
	return place{fmt.Sprintf("%d:%d", best.Major, best.Minor), path.Join(best.Root, inside, rel)}, nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

func (p place) shows(m *mountinfo.Info) bool {
	return fmt.Sprintf("%d:%d", m.Major, m.Minor) == p.device && within(m.Root, p.root)
}

// mountsOf lists where a place of the pool is mounted.
func (b *Backend) mountsOf(rel string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	at, err := b.locate(mounts, rel)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, m := range mounts {
		if at.shows(m) {
			list = append(list, m.Mountpoint)
		}
	}
	return list, nil
}

// Identity implements storage.Backend.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (storage.Identity, error) {
	const op = "identify head"
	if err := checkKey(key); err != nil {
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
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	at, err := b.locate(mounts, headPath(key))
	if err != nil {
		return storage.Identity{}, b.fail(op, key.String(), err)
	}
	return storage.Identity{MountDevice: at.device, Root: at.root + "/" + dataDir}, nil
}

// Mount implements storage.Backend: a bind mount of the head's data, which
// spreads as the mount that target lies on does.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	if err := checkKey(key); err != nil {
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
	top, at, err := b.topMount(headPath(key)+"/"+dataDir, target)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	if top != nil {
		if at.shows(top) && top.Root == at.root {
			return nil
		}
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: fmt.Sprintf("%s is mounted at %s", top.Source, target), Next: "unmount that first"}
	}
	data, err := openDir(fd, dataDir)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unix.Close(data)
	return b.fail(op, key.String(), unix.Mount(fmt.Sprintf("/proc/self/fd/%d", data), target, "", unix.MS_BIND, ""))
}

// topMount gives what is mounted at target, if anything, and how mountinfo
// would name rel.
func (b *Backend) topMount(rel, target string) (*mountinfo.Info, place, error) {
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return nil, place{}, &api.Error{Kind: api.Invalid, Op: "look at mount point", Object: target, Err: err, Next: "give an existing directory"}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, place{}, err
	}
	at, err := b.locate(mounts, rel)
	if err != nil {
		return nil, place{}, err
	}
	var top *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == real {
			top = m
		}
	}
	return top, at, nil
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	if err := checkKey(key); err != nil {
		return err
	}
	_, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	if _, err := os.Lstat(target); os.IsNotExist(err) {
		return nil
	}
	top, at, err := b.topMount(headPath(key)+"/"+dataDir, target)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	if top == nil || !at.shows(top) {
		return nil
	}
	err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "something still uses " + target, Next: "stop the processes that have files open there", Err: err}
	}
	return b.fail(op, key.String(), err)
}

// nested lists what a snapshot of the head would leave out: file
// systems mounted inside any of its mounts that this process sees.
func (b *Backend) nested(key storage.HeadKey) ([]string, error) {
	var list []string
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	at, err := b.locate(mounts, headPath(key)+"/"+dataDir)
	if err != nil {
		return nil, err
	}
	direct, err := filepath.EvalSymlinks(b.dirPath(headPath(key), dataDir))
	if err != nil {
		return nil, err
	}
	shown := map[int]string{} // mounts of the head, and where in it they begin
	for _, m := range mounts {
		if at.shows(m) {
			shown[m.ID] = strings.TrimPrefix(strings.TrimPrefix(m.Root, at.root), "/")
		}
	}
	for _, m := range mounts {
		if begin, ok := shown[m.Parent]; ok {
			if _, again := shown[m.ID]; again {
				continue // mounted on top of itself
			}
			for _, outer := range mounts {
				if outer.ID == m.Parent && m.Mountpoint != outer.Mountpoint {
					list = append(list, path.Join(begin, strings.TrimPrefix(m.Mountpoint, outer.Mountpoint+"/")))
				}
			}
		} else if m.Mountpoint != direct && within(m.Mountpoint, direct) {
			list = append(list, strings.TrimPrefix(m.Mountpoint, direct+"/"))
		}
	}
	return list, nil
}
