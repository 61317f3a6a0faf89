package tree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// applier changes a tree as records say. Every record can be applied again
// after later ones were: an interrupted arrival goes on from its last mark.
type applier struct {
	root      int
	keeps     storage.Fidelity
	exact     bool // keeps everything: nothing need be read back
	lossy     bool
	begun     bool
	besideDir string
	side      *beside // nil while nothing lies beside

	parentPath string // of the descriptor in parent, -1 for none
	parent     int
	filePath   string // of the descriptor in file, -1 for none
	file       int
}

func (a *applier) close() {
	a.leave()
	a.side.close()
	a.side = nil
	if a.root >= 0 {
		unix.Close(a.root)
		a.root = -1
	}
}

// leave lets go of what is open.
func (a *applier) leave() {
	if a.parent >= 0 {
		unix.Close(a.parent)
		a.parent = -1
	}
	a.leaveFile()
}

func (a *applier) leaveFile() {
	if a.file >= 0 {
		unix.Close(a.file)
		a.file = -1
	}
}

func (a *applier) flush() error {
	a.leave()
	return a.side.commit()
}

// apply does one record; a flag of the base that forbids it is taken away.
func (a *applier) apply(r *record) error {
	err := a.do(r)
	if errors.Is(err, unix.EPERM) && a.keeps.Flags && r.path != "" && r.op != opFlags {
		dir, _ := splitPath(r.path)
		a.leave()
		if a.setFlags(dir, 0) == nil {
			_ = a.setFlags(r.path, 0)
			err = a.do(r)
		}
	}
	var known *api.Error
	if err != nil && !errors.As(err, &known) {
		err = fmt.Errorf("%.300q: %w", r.path, err)
	}
	return err
}

func (a *applier) do(r *record) error {
	if r.op == opData || r.op == opHole || r.op == opChange {
		return a.write(r)
	}
	a.leaveFile()
	switch r.op {
	case opUnflag, opFlags:
		if !a.keeps.Flags {
			return nil
		}
		return a.setFlags(r.path, uint32(r.size))
	case opMeta:
		return a.meta(r)
	}
	dir, name, err := a.in(r.path)
	if err != nil {
		if r.op == opDelete && errors.Is(err, unix.ENOENT) {
			return a.side.forget(r.path, true)
		}
		return err
	}
	if r.op == opDir {
		if e, err := statAt(dir, name); err == nil && e.isDir() {
			return nil
		}
	}
	if err := a.clear(dir, name, r); err != nil {
		return err
	}
	switch r.op {
	case opDir:
		return unix.Mkdirat(dir, name, 0o700)
	case opFile:
		return a.create(dir, name, r)
	case opLink:
		return a.link(dir, name, r)
	case opSymlink:
		if !a.keeps.Symlinks {
			return a.only(r, "symbolic links")
		}
		return unix.Symlinkat(r.target, dir, name)
	case opNode:
		return a.node(dir, name, r)
	}
	return nil
}

// clear removes what is at a name.
func (a *applier) clear(dir int, name string, r *record) error {
	a.leaveFile()
	e, err := statAt(dir, name)
	if err == nil && e.isDir() {
		a.leaveBelow(r.path)
		if dir, name, err = a.in(r.path); err != nil {
			return err
		}
	}
	if err := removeAll(dir, name); err != nil {
		return err
	}
	return a.side.forget(r.path, true)
}

func (a *applier) leaveBelow(path string) {
	if a.parent >= 0 && (a.parentPath == path || strings.HasPrefix(a.parentPath, path+"/")) {
		unix.Close(a.parent)
		a.parent = -1
	}
}

// in opens the directory a path's last name is in.
func (a *applier) in(path string) (dir int, name string, err error) {
	at, name := splitPath(path)
	if a.parent >= 0 && a.parentPath == at {
		return a.parent, name, nil
	}
	fd, err := openDir(a.root, at)
	if err != nil {
		return -1, name, err
	}
	if a.parent >= 0 {
		unix.Close(a.parent)
	}
	a.parent, a.parentPath = fd, at
	return fd, name, nil
}

func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	first := err
	fd, err := openat2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return first
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func (a *applier) create(dir int, name string, r *record) error {
	fd, err := openat2create(dir, name)
	if err != nil {
		return err
	}
	a.file, a.filePath = fd, r.path
	return unix.Ftruncate(fd, r.size)
}

func openat2create(dir int, name string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o600, Resolve: resolve}
	for {
		fd, err := unix.Openat2(dir, name, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// write changes a file's content.
func (a *applier) write(r *record) error {
	if a.file < 0 || a.filePath != r.path {
		a.leaveFile()
		dir, name, err := a.in(r.path)
		if err != nil {
			return err
		}
		fd, err := openFile(dir, name, unix.O_RDWR)
		if err != nil {
			return err
		}
		a.file, a.filePath = fd, r.path
	}
	switch r.op {
	case opChange:
		return unix.Ftruncate(a.file, r.size)
	case opHole:
		return a.punch(r.off, r.size)
	}
	for data, off := r.data, r.off; len(data) > 0; {
		n, err := unix.Pwrite(a.file, data, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// punch makes a range a hole, or zeros where that cannot be.
func (a *applier) punch(off, size int64) error {
	if size == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(a.file, &st); err != nil {
		return err
	}
	whole := size
	if off+size >= st.Size && off+size < max63-maxData {
		whole += maxData // the last block, which the end lies in, as a whole
	}
	err := unix.Fallocate(a.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, whole)
	if !unsupported(err) {
		return err
	}
	zeros := make([]byte, maxData)
	for end := min(off+size, st.Size); off < end; {
		n, err := unix.Pwrite(a.file, zeros[:min(end-off, maxData)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func (a *applier) link(dir int, name string, r *record) error {
	if !a.keeps.HardLinks {
		return a.only(r, "hard links")
	}
	at, base := splitPath(r.target)
	from, err := openDir(a.root, at)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	e, err := statAt(from, base)
	if err == nil && e.isDir() {
		return damaged("a hard link to a directory")
	}
	if errors.Is(err, unix.ENOENT) {
		// The file exists beside only; so does its other name.
		first, e := a.side.only(r.target)
		if e == nil && first != nil {
			first.make.path = r.path
			return a.side.putOnly(r.path, *first)
		}
	}
	if err != nil {
		return err
	}
	return unix.Linkat(from, base, dir, name, 0)
}

func (a *applier) node(dir int, name string, r *record) error {
	switch r.meta.Mode {
	case unix.S_IFIFO, unix.S_IFSOCK:
		if !a.keeps.FIFOs {
			return a.only(r, "FIFOs and sockets")
		}
		r.size = 0
	case unix.S_IFBLK, unix.S_IFCHR:
		if !a.keeps.Devices {
			return a.only(r, "device nodes")
		}
		if os.Geteuid() != 0 {
			return &api.Error{Kind: api.Denied, Op: "receive snapshot", Object: r.path, Reason: "only root makes device nodes"}
		}
	default:
		return damaged(fmt.Sprintf("a node of type %o", r.meta.Mode))
	}
	return unix.Mknodat(dir, name, r.meta.Mode|0o600, int(r.size))
}

// refuse names what the store cannot keep.
func refuse(path string, what ...string) error {
	return &api.Error{
		Kind: api.Unsupported, Op: "receive snapshot", Object: fmt.Sprintf("%.300q", path),
		Reason: "the pool does not keep its " + strings.Join(what, ", "), Next: "choose another pool, or pass --allow-loss: what it cannot keep is then stored beside the data",
	}
}

// needSide opens the memory beside the data, or refuses.
func (a *applier) needSide(path string, what ...string) error {
	if !a.lossy || a.besideDir == "" {
		return refuse(path, what...)
	}
	if a.side != nil {
		return nil
	}
	var err error
	a.side, err = openBeside(a.besideDir, true, true)
	return err
}

// only remembers an entry that cannot be made.
func (a *applier) only(r *record, what string) error {
	if err := a.needSide(r.path, what); err != nil {
		return err
	}
	return a.side.putOnly(r.path, besideEntry{make: *r, meta: r.meta})
}

// meta gives an entry its metadata.
func (a *applier) meta(r *record) error {
	dir, name, err := a.in(r.path)
	if err != nil {
		return err
	}
	e, err := statAt(dir, name)
	if errors.Is(err, unix.ENOENT) && a.side != nil {
		b, e := a.side.only(r.path)
		if e == nil && b != nil {
			b.meta = r.meta
			return a.side.putOnly(r.path, *b)
		}
	}
	if err != nil {
		return err
	}
	if e.kind() != r.meta.Mode&unix.S_IFMT {
		return damaged(fmt.Sprintf("%.200q is of another type than it says", r.path))
	}
	lost, err := a.setMeta(dir, name, e, r.meta)
	if err != nil {
		return err
	}
	if a.exact && len(lost) == 0 && r.meta.Sec > -1<<31 && r.meta.Sec < 1<<33 { // ext4 and XFS cut others without a word
		if a.side == nil {
			return nil
		}
		return a.side.forget(r.path, false)
	}
	now, err := statAt(dir, name)
	if err != nil {
		return err
	}
	have, err := now.meta(dir, name)
	if err != nil {
		return err
	}
	if have.equal(r.meta) {
		return a.side.forget(r.path, false)
	}
	if err := a.needSide(r.path, missing(have, r.meta)...); err != nil {
		return err
	}
	return a.side.putKept(r.path, have, r.meta)
}

// missing names what differs.
func missing(have, want Meta) []string {
	var list []string
	if have.UID != want.UID || have.GID != want.GID {
		list = append(list, "owner")
	}
	if have.Mode != want.Mode {
		list = append(list, "permissions")
	}
	if have.Sec != want.Sec || have.Nsec != want.Nsec {
		list = append(list, fmt.Sprintf("time %s", time.Unix(want.Sec, int64(want.Nsec)).UTC().Format(time.RFC3339Nano)))
	}
	for _, x := range want.Xattrs {
		if !slices.ContainsFunc(have.Xattrs, func(y Xattr) bool { return y.Name == x.Name && bytes.Equal(x.Value, y.Value) }) {
			list = append(list, "attribute "+x.Name)
		}
	}
	for _, x := range have.Xattrs {
		if !slices.ContainsFunc(want.Xattrs, func(y Xattr) bool { return y.Name == x.Name }) {
			list = append(list, "lack of attribute "+x.Name)
		}
	}
	return list
}

// setMeta sets what can be set. A change of owner takes set-id bits and
// capabilities away, an access list sets mode bits, and everything sets times:
// hence the order.
func (a *applier) setMeta(dir int, name string, e *entry, m Meta) (lost []string, err error) {
	if a.keeps.Owners && (e.uid != m.UID || e.gid != m.GID) {
		if err := unix.Fchownat(dir, name, int(m.UID), int(m.GID), unix.AT_SYMLINK_NOFOLLOW|emptyPath(name)); err != nil {
			return nil, fmt.Errorf("set owner: %w", err)
		}
	}
	if lost, err = a.setXattrs(dir, name, m.Xattrs); err != nil {
		return lost, err
	}
	if a.keeps.Modes && e.kind() != unix.S_IFLNK {
		if err := unix.Chmod(at(dir, name), m.Mode&0o7777); err != nil {
			return lost, fmt.Errorf("set permissions: %w", err)
		}
	}
	if a.keeps.TimeGrain == 0 {
		return lost, nil
	}
	sec, nsec := m.Sec, int64(m.Nsec)
	if a.keeps.TimeMax != 0 && sec > a.keeps.TimeMax {
		sec, nsec = a.keeps.TimeMax, 0
	}
	if g := int64(a.keeps.TimeGrain); g > 1 {
		nsec -= nsec % min(g, 1e9)
		if g > 1e9 {
			sec -= sec % (g / 1e9)
		}
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at(dir, name), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return lost, fmt.Errorf("set time: %w", err)
	}
	return lost, nil
}

func emptyPath(name string) int {
	if name == "" {
		return unix.AT_EMPTY_PATH
	}
	return 0
}

func (a *applier) setXattrs(dir int, name string, want []Xattr) (lost []string, err error) {
	have, err := readXattrs(dir, name)
	if err != nil {
		return nil, err
	}
	if sameXattrs(have, want) {
		return nil, nil
	}
	path := at(dir, name)
	for _, x := range have {
		if !slices.ContainsFunc(want, func(y Xattr) bool { return y.Name == x.Name }) {
			if err := unix.Lremovexattr(path, x.Name); err != nil && err != unix.ENODATA {
				return nil, fmt.Errorf("remove attribute %s: %w", x.Name, err)
			}
		}
	}
	for _, x := range want {
		if isACL(x.Name) && !a.keeps.ACLs || !isACL(x.Name) && !a.keeps.Xattrs {
			lost = append(lost, x.Name)
			continue
		}
		if slices.ContainsFunc(have, func(y Xattr) bool { return y.Name == x.Name && bytes.Equal(x.Value, y.Value) }) {
			continue
		}
		err := unix.Lsetxattr(path, x.Name, x.Value, 0)
		if unsupported(err) || err == unix.E2BIG {
			lost = append(lost, x.Name)
		} else if err != nil {
			return nil, fmt.Errorf("set attribute %s: %w", x.Name, err)
		}
	}
	return lost, nil
}

// setFlags sets the inode flags that travel.
func (a *applier) setFlags(path string, flags uint32) error {
	dir, name, err := a.in(path)
	if err != nil {
		return err
	}
	e, err := statAt(dir, name)
	if err != nil {
		return err
	}
	if !e.isReg() && !e.isDir() {
		return nil
	}
	if name == "" {
		name = "."
	}
	fd, err := openat2(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	was, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	now := was&^flagBits | flags&flagBits
	if now == was {
		return nil
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now))
}
