package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/btrfs/sendstream"
	"github.com/drover-data/drover/storage/hostfs"
)

// applier does to a tree what the commands of a send stream say. It trusts
// nothing: names are resolved below the tree and through no symbolic link, and
// only regular files are ever opened for writing (a stream can make a device
// node and then "write" to it).
type applier struct {
	tree   int
	base   int // descriptor of the base, -1 without
	baseID UUID
	self   UUID // as the stream names itself: clones within the tree
	// The object the last command was about: most commands concern the same
	// one as the one before.
	cur struct {
		path []byte
		fd   int // O_PATH, -1 when none is held
		w    int // the same file for writing, -1
		mode uint32
	}
}

func (a *applier) reset(tree int) {
	if a.cur.path == nil { // first use
		a.base, a.cur.fd, a.cur.w = -1, -1, -1
		a.cur.path = make([]byte, 0, unix.PathMax)
	}
	a.tree = tree
}

// forget closes the held object, after anything that changes names.
func (a *applier) forget() error {
	var err error
	if a.cur.w >= 0 {
		err = unix.Close(a.cur.w)
	}
	if a.cur.fd >= 0 {
		unix.Close(a.cur.fd)
	}
	a.cur.fd, a.cur.w = -1, -1
	return err
}

// flush lets go of what is held; the kernel has all data then.
func (a *applier) flush() error { return a.forget() }

func (a *applier) close() {
	_ = a.forget()
	if a.base >= 0 {
		unix.Close(a.base)
		a.base = -1
	}
}

// object holds the thing that path names.
func (a *applier) object(path []byte) error {
	if a.cur.fd >= 0 && bytes.Equal(path, a.cur.path) {
		return nil
	}
	if err := a.forget(); err != nil {
		return err
	}
	name := string(path)
	if name == "" {
		name = "."
	}
	fd, err := hostfs.OpenBeneath(a.tree, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	a.cur.path = append(a.cur.path[:0], path...)
	a.cur.fd, a.cur.mode = fd, st.Mode
	return nil
}

// file holds the regular file that path names, for reading and writing.
func (a *applier) file(path []byte) (int, error) {
	if err := a.object(path); err != nil {
		return -1, err
	}
	if a.cur.w < 0 {
		w, err := reopen(a.cur.fd, a.cur.mode, unix.O_RDWR)
		if err != nil {
			return -1, err
		}
		a.cur.w = w
	}
	return a.cur.w, nil
}

// reopen opens the regular file behind an O_PATH descriptor.
func reopen(fd int, mode uint32, flags int) (int, error) {
	if mode&unix.S_IFMT != unix.S_IFREG {
		return -1, errNotRegular
	}
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}

var errNotRegular = errors.New("not a regular file")

// parent opens the directory of a path and gives the last name.
func (a *applier) parent(path []byte) (int, string, func(), error) {
	if bytes.IndexByte(path, '/') < 0 {
		name := string(path)
		if name == "" || name == "." || name == ".." {
			return -1, "", nil, unix.EINVAL
		}
		return a.tree, name, func() {}, nil
	}
	fd, name, err := hostfs.OpenParent(a.tree, string(path))
	if err != nil {
		return -1, "", nil, err
	}
	return fd, name, func() { unix.Close(fd) }, nil
}

// apply does one command. What the kernel refuses about the tree itself means
// that the stream does not fit it.
func (a *applier) apply(c *sendstream.Command) error {
	err := a.do(c)
	if err == nil || errors.Is(err, sendstream.ErrStream) {
		return err
	}
	for _, e := range []error{
		unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG,
		unix.ENODATA, unix.ERANGE, unix.E2BIG, unix.EOPNOTSUPP, unix.EFBIG, unix.EMLINK, unix.ETXTBSY, unix.EOVERFLOW, unix.EPERM,
		unix.EACCES, errNotRegular,
	} {
		if errors.Is(err, e) {
			path, _ := c.Bytes(sendstream.Path)
			return damaged(fmt.Sprintf("%s %q does not fit what was received before: %v", c.Op, path, err))
		}
	}
	return fmt.Errorf("%s: %w", c.Op, err)
}

func (a *applier) do(c *sendstream.Command) error {
	path, err := c.Bytes(sendstream.Path)
	if err != nil {
		return err
	}
	switch c.Op {
	case sendstream.Write:
		return a.write(c, path)
	case sendstream.Clone:
		return a.clone(c, path)
	case sendstream.Mkfile, sendstream.Mkdir, sendstream.Mknod, sendstream.Mkfifo, sendstream.Mksock, sendstream.Symlink:
		return a.make(c, path)
	case sendstream.Rename, sendstream.Link, sendstream.Unlink, sendstream.Rmdir:
		return a.name(c, path)
	case sendstream.SetXattr, sendstream.RemoveXattr:
		return a.xattr(c, path)
	case sendstream.Truncate:
		size, err := c.Uint(sendstream.Size)
		if err != nil {
			return err
		}
		w, err := a.file(path)
		if err != nil {
			return err
		}
		return setSize(w, int64(size))
	case sendstream.Chmod, sendstream.Chown, sendstream.Utimes:
		return a.attributes(c, path)
	case sendstream.Fallocate:
		return a.fallocate(c, path)
	case sendstream.FileAttr:
		// Inode flags are not among what this pool keeps (storage.Fidelity):
		// an immutable file could not be changed by the next stream.
		return nil
	}
	return damaged(fmt.Sprintf("a %s command has no place in it", c.Op))
}

func (a *applier) write(c *sendstream.Command, path []byte) error {
	off, err := c.Uint(sendstream.FileOffset)
	if err != nil {
		return err
	}
	data, err := c.Bytes(sendstream.Data)
	if err != nil {
		return err
	}
	w, err := a.file(path)
	if err != nil {
		return err
	}
	if a.base >= 0 && len(data) > 0 {
		done, err := makeHole(w, int64(off), data)
		if done || err != nil {
			return err
		}
	}
	for len(data) > 0 {
		n, err := unix.Pwrite(w, data, int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+uint64(n)
	}
	return nil
}

func (a *applier) clone(c *sendstream.Command, path []byte) error {
	id, err := c.ID(sendstream.CloneUUID)
	if err != nil {
		return err
	}
	from, err := c.Bytes(sendstream.ClonePath)
	if err != nil {
		return err
	}
	var r unix.FileCloneRange
	for _, f := range []struct {
		attr sendstream.Attr
		to   *uint64
	}{{sendstream.FileOffset, &r.Dest_offset}, {sendstream.CloneOffset, &r.Src_offset}, {sendstream.CloneLen, &r.Src_length}} {
		if *f.to, err = c.Uint(f.attr); err != nil {
			return err
		}
	}
	dir := a.tree
	if UUID(id) != a.self {
		if a.base < 0 || UUID(id) != a.baseID {
			return damaged(fmt.Sprintf("it shares data with lineage %s, which is neither itself nor its base", UUID(id)))
		}
		dir = a.base
	}
	p, err := hostfs.OpenBeneath(dir, string(from), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(p)
	var st unix.Stat_t
	if err := unix.Fstat(p, &st); err != nil {
		return err
	}
	src, err := reopen(p, st.Mode, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	w, err := a.file(path)
	if err != nil {
		return err
	}
	r.Src_fd = int64(src)
	return unix.IoctlFileCloneRange(w, &r)
}

func (a *applier) make(c *sendstream.Command, path []byte) error {
	dir, name, done, err := a.parent(path)
	if err != nil {
		return err
	}
	defer done()
	switch c.Op {
	case sendstream.Mkdir:
		return unix.Mkdirat(dir, name, 0o700)
	case sendstream.Symlink:
		to, err := c.Bytes(sendstream.PathLink)
		if err != nil {
			return err
		}
		return unix.Symlinkat(string(to), dir, name)
	case sendstream.Mkfile:
		return unix.Mknodat(dir, name, unix.S_IFREG|0o600, 0)
	}
	mode, err := c.Uint(sendstream.Mode)
	if err != nil {
		return err
	}
	rdev, err := c.Uint(sendstream.Rdev)
	if err != nil {
		return err
	}
	kind := uint32(mode) & unix.S_IFMT
	switch kind {
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return damaged(fmt.Sprintf("a node of mode %o", mode))
	}
	return unix.Mknodat(dir, name, uint32(mode)&(unix.S_IFMT|0o7777), int(rdev))
}

func (a *applier) name(c *sendstream.Command, path []byte) error {
	if err := a.forget(); err != nil {
		return err
	}
	dir, name, done, err := a.parent(path)
	if err != nil {
		return err
	}
	defer done()
	switch c.Op {
	case sendstream.Unlink:
		return unix.Unlinkat(dir, name, 0)
	case sendstream.Rmdir:
		return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	attr := sendstream.PathTo
	if c.Op == sendstream.Link {
		attr = sendstream.PathLink
	}
	other, err := c.Bytes(attr)
	if err != nil {
		return err
	}
	dir2, name2, done2, err := a.parent(other)
	if err != nil {
		return err
	}
	defer done2()
	if c.Op == sendstream.Link {
		return unix.Linkat(dir2, name2, dir, name, 0)
	}
	return unix.Renameat(dir, name, dir2, name2)
}

func (a *applier) attributes(c *sendstream.Command, path []byte) error {
	if err := a.object(path); err != nil {
		return err
	}
	switch c.Op {
	case sendstream.Chmod:
		mode, err := c.Uint(sendstream.Mode)
		if err != nil {
			return err
		}
		if a.cur.mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.ELOOP
		}
		return unix.Chmod(a.procPath(), uint32(mode)&0o7777)
	case sendstream.Chown:
		uid, err := c.Uint(sendstream.UID)
		if err != nil {
			return err
		}
		gid, err := c.Uint(sendstream.GID)
		if err != nil {
			return err
		}
		return unix.Fchownat(a.cur.fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
	}
	var ts [2]unix.Timespec
	for i, attr := range []sendstream.Attr{sendstream.ATime, sendstream.MTime} {
		sec, nsec, err := c.Time(attr)
		if err != nil {
			return err
		}
		if nsec < 0 || nsec > 999999999 { // larger values would mean "now" or "leave"
			return unix.EINVAL
		}
		ts[i] = unix.Timespec{Sec: sec, Nsec: nsec}
	}
	return utimensatEmpty(a.cur.fd, &ts)
}

// utimensatEmpty sets the times of what an O_PATH descriptor stands for, a
// symbolic link too.
func utimensatEmpty(fd int, ts *[2]unix.Timespec) error {
	var empty [1]byte
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(ts)), unix.AT_EMPTY_PATH, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (a *applier) procPath() string { return fmt.Sprintf("/proc/self/fd/%d", a.cur.fd) }

func (a *applier) xattr(c *sendstream.Command, path []byte) error {
	name, err := c.Bytes(sendstream.XattrName)
	if err != nil {
		return err
	}
	if err := a.object(path); err != nil {
		return err
	}
	if c.Op == sendstream.RemoveXattr {
		return unix.Removexattr(a.procPath(), string(name))
	}
	data, err := c.Bytes(sendstream.XattrData)
	if err != nil {
		return err
	}
	return unix.Setxattr(a.procPath(), string(name), data, 0)
}

func (a *applier) fallocate(c *sendstream.Command, path []byte) error {
	mode, err := c.Uint(sendstream.FallocateMode)
	if err != nil {
		return err
	}
	off, err := c.Uint(sendstream.FileOffset)
	if err != nil {
		return err
	}
	size, err := c.Uint(sendstream.Size)
	if err != nil {
		return err
	}
	if mode&^(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE) != 0 {
		return unix.EINVAL
	}
	w, err := a.file(path)
	if err != nil {
		return err
	}
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 && off < math.MaxInt64/2 && size < math.MaxInt64/2 {
		return punch(w, int64(off), int64(size))
	}
	return unix.Fallocate(w, uint32(mode), int64(off), int64(size))
}
