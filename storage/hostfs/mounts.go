package hostfs

import (
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

// Mounts is one look at what is mounted where this process sees it.
type Mounts []*mountinfo.Info

// LookAtMounts asks the kernel.
func LookAtMounts() (Mounts, error) { return mountinfo.GetMounts(nil) }

// Place is how mountinfo names a directory: the device of its file system and
// the path inside that.
type Place struct {
	Device string // major:minor
	Root   string
}

// Below is a place in a place.
func (p Place) Below(rel string) Place { return Place{p.Device, path.Join(p.Root, rel)} }

// Shows reports whether a mount shows the place or a part of it.
func (p Place) Shows(m *mountinfo.Info) bool { return device(m) == p.Device && within(m.Root, p.Root) }

func device(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// Locate finds the mount that shows the directory dir, the last one on top.
func (all Mounts) Locate(dir string) (Place, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Place{}, fmt.Errorf("%w: %w", ErrNotThere, err)
	}
	var best *mountinfo.Info
	for _, m := range all {
		if within(real, m.Mountpoint) && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	if best == nil {
		return Place{}, fmt.Errorf("%w: no mount shows %s", ErrNotThere, real)
	}
	inside, err := filepath.Rel(best.Mountpoint, real)
	if err != nil {
		return Place{}, err
	}
	return Place{device(best), path.Join(best.Root, inside)}, nil
}

// Find looks at the mounts, and at how they name rel in the directory dir.
func Find(dir, rel string) (Mounts, Place, error) {
	all, err := LookAtMounts()
	if err != nil {
		return nil, Place{}, err
	}
	at, err := all.Locate(dir)
	if err != nil {
		return nil, Place{}, err
	}
	return all, at.Below(rel), nil
}

// At finds what is mounted at the directory dir itself; ErrNotThere when
// nothing is.
func (all Mounts) At(dir string) (Place, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Place{}, err
	}
	top := all.top(real)
	if top == nil {
		return Place{}, fmt.Errorf("%w: nothing is mounted at %s", ErrNotThere, real)
	}
	return Place{device(top), top.Root}, nil
}

func (all Mounts) top(real string) (top *mountinfo.Info) {
	for _, m := range all {
		if m.Mountpoint == real {
			top = m
		}
	}
	return top
}

// Of lists the mount points that show the place or a part of it.
func (all Mounts) Of(p Place) (list []string) {
	for _, m := range all {
		if p.Shows(m) {
			list = append(list, m.Mountpoint)
		}
	}
	return list
}

// Unused refuses a head of which these are the mounts.
func Unused(op string, key storage.HeadKey, mounts []string) error {
	if len(mounts) == 0 {
		return nil
	}
	return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "it is mounted at " + mounts[0], Next: "stop its users, then unmount it"}
}

// Nested lists the file systems mounted inside a head's data, which lies at p
// and is dir in the pool: inside any of its mounts, or directly.
func (all Mounts) Nested(p Place, dir string) (list []string, err error) {
	direct, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	shown := map[int]string{} // mounts of the head, and where in it they begin
	for _, m := range all {
		if p.Shows(m) {
			shown[m.ID] = strings.TrimPrefix(strings.TrimPrefix(m.Root, p.Root), "/")
		}
	}
	for _, m := range all {
		if begin, ok := shown[m.Parent]; ok {
			if _, again := shown[m.ID]; again {
				continue // mounted on top of itself
			}
			for _, outer := range all {
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

// Bind mounts a head's data, which lies at p and is open as dir, at target. It
// spreads as the mount that target lies on does. Mounted there already is success.
func Bind(op string, key storage.HeadKey, p Place, dir int, target string) error {
	top, err := topAt(target)
	if err != nil {
		return err
	}
	if top == nil {
		return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", dir), target, "", unix.MS_BIND, "")
	}
	if device(top) == p.Device && top.Root == p.Root {
		return nil
	}
	return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: fmt.Sprintf("%s is mounted at %s", top.Source, target), Next: "unmount that first"}
}

// Unbind undoes Bind; what else is mounted at target stays.
func Unbind(op string, key storage.HeadKey, p Place, target string) error {
	top, err := topAt(target)
	if err != nil || top == nil || !p.Shows(top) {
		return err
	}
	err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "something still uses " + target, Next: "stop the processes that have files open there", Err: err}
	}
	return err
}

// NoTarget reports that there is nothing at target, so nothing to unmount.
func NoTarget(target string) bool {
	_, err := os.Lstat(target)
	return errors.Is(err, os.ErrNotExist)
}

// topAt gives what is mounted at target, nil when nothing is.
func topAt(target string) (*mountinfo.Info, error) {
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: "look at mount point", Object: target, Err: err, Next: "give an existing directory"}
	}
	all, err := LookAtMounts()
	if err != nil {
		return nil, err
	}
	return all.top(real), nil
}

// For pools in which heads lie at HeadPath below the directory pool:

// FindHead looks at the mounts, and how they name a head's data.
func FindHead(pool string, key storage.HeadKey) (Mounts, Place, error) {
	return Find(pool, HeadPath(key)+"/"+DataDir)
}

// MountHead is storage.Backend's Mount of a head that is open as fd.
func MountHead(op, pool string, key storage.HeadKey, fd int, target string) error {
	_, at, err := FindHead(pool, key)
	if err != nil {
		return err
	}
	data, err := OpenDir(fd, DataDir)
	if err != nil {
		return err
	}
	defer unix.Close(data)
	return Bind(op, key, at, data, target)
}

// UnmountHead is storage.Backend's Unmount.
func UnmountHead(op, pool string, key storage.HeadKey, target string) error {
	if NoTarget(target) {
		return nil
	}
	_, at, err := FindHead(pool, key)
	if err != nil {
		return err
	}
	return Unbind(op, key, at, target)
}

// UnusedHead refuses a head any part of which is mounted.
func UnusedHead(op, pool string, key storage.HeadKey) error {
	mounts, at, err := Find(pool, HeadPath(key))
	if err != nil {
		return err
	}
	return Unused(op, key, mounts.Of(at))
}
