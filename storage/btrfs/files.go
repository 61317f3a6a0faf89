package btrfs

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/hostfs"
)

// openSubvol opens the root of a subvolume and refuses anything else.
func openSubvol(dir int, path string) (int, error) {
	fd, err := hostfs.OpenDir(dir, path)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Ino != firstInode {
		unix.Close(fd)
		return -1, errNotSubvol
	}
	return fd, nil
}

var errNotSubvol = errors.New("not a subvolume")

// destroySubvol removes the subvolume name in directory dir with all
// subvolumes inside it. Not there is success.
func destroySubvol(dir int, name string) error {
	fd, err := hostfs.OpenDir(dir, name)
	switch {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return err
	}
	inner, err := children(fd)
	for _, c := range inner {
		if err != nil {
			break
		}
		parent, base, e := hostfs.OpenParent(fd, c.Path)
		if e == nil {
			e = destroySubvol(parent, base)
			unix.Close(parent)
		}
		err = e
	}
	unix.Close(fd)
	if err != nil {
		return err
	}
	if err := snapDestroy(dir, name); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// removeTree removes whatever is at a place in the pool's own directories:
// subvolumes, directories and files.
func removeTree(dir int, name string) error {
	return hostfs.RemoveTree(dir, name, func(dir int, name string, st *unix.Stat_t) (bool, error) {
		if st.Ino != firstInode {
			return false, nil
		}
		return true, destroySubvol(dir, name)
	})
}
