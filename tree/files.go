package tree

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Every path is reached from a descriptor of the tree's root, one checked
// component after the other: no symbolic link is ever followed.

const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openat2(dir int, path string, flags int) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for {
		fd, err := unix.Openat2(dir, path, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// pathPiece is the longest path handed to the kernel at once.
const pathPiece = 3000

// openDir opens a directory below root, however deep it lies; "" is root.
func openDir(root int, path string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	if path == "" {
		return openat2(root, ".", flags)
	}
	at := root
	for {
		piece := path
		if len(path) > pathPiece {
			i := strings.LastIndexByte(path[:pathPiece], '/')
			if i <= 0 {
				i = strings.IndexByte(path, '/')
			}
			if i > 0 {
				piece = path[:i]
			}
		}
		fd, err := openat2(at, piece, flags)
		if at != root {
			unix.Close(at)
		}
		if err != nil || len(piece) == len(path) {
			return fd, err
		}
		at, path = fd, path[len(piece)+1:]
	}
}

// openRoot opens the directory a tree lies in.
func openRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// splitPath gives the directory and the name.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// at names an entry for calls that take no descriptor. The last component is
// not followed by the calls it is used with.
func at(dir int, name string) string {
	if name == "" {
		name = "."
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
}

// carried: the attributes that travel. Others, such as security.selinux,
// belong to the host.
func carried(name string) bool {
	if strings.HasPrefix(name, "trusted.SGI_ACL_") {
		return false // XFS shows its access lists once more under these names
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || name == "security.capability" || isACL(name)
}

func isACL(name string) bool {
	return name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// readXattrs reads the attributes that travel, sorted.
func readXattrs(dir int, name string) ([]Xattr, error) {
	path := at(dir, name)
	var names []byte
	for size := 1024; ; size = 64 << 10 {
		names = make([]byte, size)
		n, err := unix.Llistxattr(path, names)
		if err == unix.ERANGE && size < 64<<10 {
			continue
		}
		if unsupported(err) {
			return nil, nil
		}
		if err != nil {
			return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
		}
		names = names[:n]
		break
	}
	if len(names) == 0 {
		return nil, nil
	}
	var list []Xattr
	for n := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if !carried(n) {
			continue
		}
		value, err := readXattr(path, n)
		if err == unix.ENODATA || unsupported(err) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + n, Path: name, Err: err}
		}
		list = append(list, Xattr{n, value})
	}
	slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func readXattr(path, name string) ([]byte, error) {
	for size := 256; ; size = 64 << 10 {
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(path, name, buf)
		if err == unix.ERANGE && size < 64<<10 {
			continue
		}
		return buf[:max(n, 0)], err
	}
}

func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// flagBits are the inode flags that travel, as statx and FS_IOC_SETFLAGS name
// them; both use the same numbers.
const flagBits = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND | unix.STATX_ATTR_NODUMP

// entry is what one look at a name gives.
type entry struct {
	mode         uint32
	ino, nlink   uint64
	size         int64
	rdev         uint64
	uid, gid     uint32
	mtime, ctime unix.StatxTimestamp
	flags        uint64
	// Of an entry that exists beside the data only:
	beside *besideEntry
}

func (e *entry) kind() uint32 { return e.mode & unix.S_IFMT }
func (e *entry) isDir() bool  { return e.kind() == unix.S_IFDIR }
func (e *entry) isReg() bool  { return e.kind() == unix.S_IFREG }

func statAt(dir int, name string) (*entry, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return &entry{
		mode: uint32(st.Mode), ino: st.Ino, nlink: uint64(st.Nlink), size: int64(st.Size), uid: st.Uid, gid: st.Gid,
		rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), mtime: st.Mtime, ctime: st.Ctime, flags: st.Attributes & flagBits,
	}, nil
}

func (e *entry) meta(dir int, name string) (Meta, error) {
	x, err := readXattrs(dir, name)
	return Meta{Mode: e.mode, UID: e.uid, GID: e.gid, Sec: e.mtime.Sec, Nsec: e.mtime.Nsec, Xattrs: x}, err
}

// openFile opens a regular file, and nothing else.
func openFile(dir int, name string, flags int) (int, error) {
	e, err := statAt(dir, name)
	if err != nil {
		return -1, err
	}
	if !e.isReg() {
		return -1, fmt.Errorf("%s is not a file", name)
	}
	fd, err := openat2(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// extent is a range of a file.
type extent struct{ from, to int64 }

// nextData gives the next range at or behind off that is not a hole; from is
// size when there is none. Where holes are not reported all is data.
func nextData(fd int, off, size int64) (extent, error) {
	if off >= size {
		return extent{size, size}, nil
	}
	from, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return extent{size, size}, nil
	case err == unix.EINVAL || unsupported(err):
		return extent{off, size}, nil
	case err != nil:
		return extent{}, err
	}
	to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
	if err != nil {
		return extent{}, err
	}
	return extent{min(from, size), min(to, size)}, nil
}

// readFull reads what is there, which is all of buf except at the file's end.
func readFull(fd int, buf []byte, off int64) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := unix.Pread(fd, buf[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

// SplitPath cuts a path into the directory it is in and its last name.
func SplitPath(path string) (dir, name string) { return splitPath(path) }

// Below reports whether a path lies in the directory dir, at any depth; all
// but the root itself lie below the root "".
func Below(path, dir string) bool {
	if dir == "" {
		return path != ""
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Order compares two paths in tree order: name by name, names by their bytes,
// a directory before what is in it.
func Order(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// ValidPath reports whether p names an entry inside a tree: names that are not
// empty, "." or "..", joined by single slashes.
func ValidPath(p string) bool { return len(p) <= maxPath && validPath(p) }
