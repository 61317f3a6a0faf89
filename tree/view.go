package tree

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// view is a tree as it is to be sent: the directory, and what lies beside it.
type view struct {
	root  int
	side  *beside
	links bool // files with several names may have one here only
}

func openView(dir, besideDir string) (*view, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	side, err := openBeside(besideDir, false, false)
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	return &view{root: root, side: side, links: side.hasLinks()}, nil
}

func (v *view) close() {
	if v != nil {
		v.side.close()
		unix.Close(v.root)
	}
}

// folder is a directory of a view. Its descriptor is given back while
// subdirectories are looked at, so that depth does not cost descriptors.
type folder struct {
	v    *view
	path string
	fd   int
}

func (v *view) folder(path string) *folder { return &folder{v: v, path: path, fd: -1} }

func (f *folder) open() (int, error) {
	if f.fd >= 0 {
		return f.fd, nil
	}
	fd, err := openDir(f.v.root, f.path)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	f.fd = fd
	return fd, nil
}

func (f *folder) close() {
	if f != nil && f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// names lists the directory, sorted.
func (f *folder) names() ([]string, error) {
	if f == nil {
		return nil, nil
	}
	fd, err := openDir(f.v.root, f.path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	d := os.NewFile(uintptr(fd), f.path)
	list, err := d.Readdirnames(-1)
	d.Close()
	list = append(list, f.v.side.names(f.path)...)
	slices.Sort(list)
	return slices.Compact(list), err
}

// look gives an entry; nil when it is not there.
func (f *folder) look(name string) (*entry, error) {
	fd, err := f.open()
	if err != nil {
		return nil, err
	}
	e, err := statAt(fd, name)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return e, err
	}
	b, err := f.v.side.only(join(f.path, name))
	if b == nil || err != nil {
		return nil, err
	}
	if b.make.op != opLink {
		return &entry{mode: b.meta.Mode, nlink: 1, rdev: uint64(b.make.size), uid: b.meta.UID, gid: b.meta.GID, beside: b}, nil
	}
	dir, base := splitPath(b.make.target)
	g := f.v.folder(dir)
	defer g.close()
	if fd, err = g.open(); err == nil {
		if e, err = statAt(fd, base); err == nil && !e.isDir() {
			e.beside = b
			return e, nil
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || err == nil {
		return nil, nil // the file it named has gone
	}
	return nil, err
}

// meta gives what the entry has, or had before a store could not keep it.
func (f *folder) meta(name string, e *entry) (Meta, error) {
	if e.beside != nil {
		return e.beside.meta, nil
	}
	fd, err := f.open()
	if err != nil {
		return Meta{}, err
	}
	now, err := e.meta(fd, name)
	if err != nil {
		return now, err
	}
	kept, full, ok, err := f.v.side.kept(join(f.path, name))
	if !ok || err != nil {
		return now, err
	}
	return merge(now, kept, full), nil
}

// target reads a symbolic link.
func (f *folder) target(name string, e *entry) (string, error) {
	if e.beside != nil {
		return e.beside.make.target, nil
	}
	fd, err := f.open()
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}
