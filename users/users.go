// Package users finds who uses a file system tree: mounts of it in any mount
// namespace, and open files, working directories, roots, programs and mapped
// files of any process. It reads procfs only. It must not know what a volume
// is or what is done about its users.
package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// What says how a tree is used.
type What string

// The ways.
const (
	Mount   What = "mount"
	File    What = "open file"
	Cwd     What = "working directory"
	Root    What = "root directory"
	Program What = "program"
	Mapped  What = "mapped file"
)

// User is one use.
type User struct {
	PID         int    // for a mount: one process in the mount namespace that has it
	Comm        string // its name
	ContainerID string // "" when it is in none
	What        What
	Path        string // as the process sees it
	Writes      bool   // may write: open for writing, or mounted read-write
}

// Options bounds a scan.
type Options struct {
	Proc string // where procfs is mounted; default /proc
	// IgnoreMounts are mount points, in IgnoreNamespace, that are the asker's
	// own: where the head is mounted for its users.
	IgnoreMounts []string
	// IgnoreNamespace is the inode of the mount namespace for IgnoreMounts;
	// 0 means the asker's.
	IgnoreNamespace uint64
	// Skip are processes whose files the caller vouches for, such as init of a
	// sandbox that has more capabilities than the asker and so cannot be
	// looked at. Their mounts are looked at all the same.
	Skip []int
}

// Scan finds all users. A process that ends meanwhile uses nothing; anything
// else that cannot be read makes the answer Unknown, because it would not be
// proof that nobody is there.
func Scan(ctx context.Context, id storage.Identity, o Options) ([]User, error) {
	mounts, err := Mounts(ctx, id, o)
	if err != nil {
		return nil, err
	}
	files, err := Files(ctx, id, o)
	return append(mounts, files...), err
}

// Mounts is the cheap first stage: mounts only, one mountinfo for each mount
// namespace. While it finds any, the second stage need not be asked.
func Mounts(ctx context.Context, id storage.Identity, o Options) ([]User, error) {
	return scan(ctx, id, o, true, false)
}

// Files is the second stage: what processes hold open, whether or not a mount
// still shows it.
func Files(ctx context.Context, id storage.Identity, o Options) ([]User, error) {
	return scan(ctx, id, o, false, true)
}

func scan(ctx context.Context, id storage.Identity, o Options, mounts, files bool) ([]User, error) {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	fail := func(err error) error {
		if ctx.Err() != nil {
			return &api.Error{Kind: api.Canceled, Op: "look for users", Object: id.Root, Err: ctx.Err()}
		}
		return &api.Error{Kind: api.Unknown, Op: "look for users", Object: id.Root, Reason: "not every process could be looked at", Err: err}
	}
	s := &scanner{id: id, o: o, seen: map[uint64]bool{}}
	if id.MountDevice == "" && len(id.Devices) == 0 {
		return nil, fail(errors.New("the identity names no device"))
	}
	own, err := s.namespace("self")
	if err == nil && o.IgnoreNamespace == 0 {
		s.o.IgnoreNamespace = own
	}
	dir, err := os.Open(o.Proc)
	if err != nil {
		return nil, fail(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fail(err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if ctx.Err() != nil {
			return nil, fail(ctx.Err())
		}
		if err := s.process(pid, name, mounts, files); err != nil && !gone(err) {
			return nil, fail(fmt.Errorf("process %d: %w", pid, err))
		}
	}
	return s.found, nil
}

// gone: the process ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

type scanner struct {
	id    storage.Identity
	o     Options
	seen  map[uint64]bool // mount namespaces
	found []User

	big        []byte   // see readAll
	mapDevices [][]byte // as maps writes them
	buf        [4096]byte
}

func (s *scanner) add(u User, name string) {
	comm, _ := os.ReadFile(s.o.Proc + "/" + name + "/comm")
	u.Comm = strings.TrimSuffix(string(comm), "\n")
	if cgroup, err := os.ReadFile(s.o.Proc + "/" + name + "/cgroup"); err == nil {
		u.ContainerID = containerID(string(cgroup))
	}
	if !slices.Contains(s.found, u) {
		s.found = append(s.found, u)
	}
}

func (s *scanner) namespace(name string) (uint64, error) {
	n, err := unix.Readlink(s.o.Proc+"/"+name+"/ns/mnt", s.buf[:])
	if err != nil {
		return 0, err
	}
	return parseNamespace(string(s.buf[:n]))
}

// sameAsOwn finds out by content whether a process that may not be looked at
// has the asker's mount namespace: the ids of mounts are unique in the kernel.
// 0 when not.
func (s *scanner) sameAsOwn(base string) (uint64, error) {
	theirs, err := os.ReadFile(base + "/mountinfo")
	if err != nil {
		return 0, err
	}
	own, err := os.ReadFile(s.o.Proc + "/self/mountinfo")
	if err != nil || !bytes.Equal(own, theirs) {
		return 0, err
	}
	return s.namespace("self")
}

func (s *scanner) process(pid int, name string, mounts, files bool) error {
	base := s.o.Proc + "/" + name
	// Kernel threads have no program and share init's namespace. A zombie has
	// neither; the scan skips both at the price of one call.
	n, err := unix.Readlink(base+"/exe", s.buf[:])
	if err == unix.EACCES && slices.Contains(s.o.Skip, pid) {
		files, err = false, nil
	}
	if err == unix.ENOENT || err == unix.ESRCH {
		if kernel, err := s.kernelThread(base); err != nil || kernel {
			return err
		}
	} else if err != nil {
		return &os.PathError{Op: "readlink", Path: base + "/exe", Err: err}
	}
	exe := string(s.buf[:max(n, 0)])
	if mounts {
		ns, err := s.namespace(name)
		if err == unix.EACCES {
			ns, err = s.sameAsOwn(base)
		}
		if err != nil {
			return err
		}
		if ns == 0 || !s.seen[ns] { // of a namespace without a number, nothing is known
			data, err := os.ReadFile(base + "/mountinfo")
			if err != nil {
				return err
			}
			if err := s.mounts(pid, name, ns, data); err != nil {
				return err
			}
			s.seen[ns] = true
		}
	}
	if !files {
		return nil
	}
	// One thread of a process may have its own descriptors and directories
	// (unshare CLONE_FILES, CLONE_FS); they are looked at too.
	if err := s.task(pid, name, base, exe); err != nil {
		return err
	}
	return s.threads(pid, name, base, exe)
}

// kernelThread tells a kernel thread, or a dead process, from one whose
// program has gone: the flags in its stat.
func (s *scanner) kernelThread(base string) (bool, error) {
	data, err := os.ReadFile(base + "/stat")
	if err != nil {
		return false, err
	}
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 7 {
		return false, errors.New(base + "/stat is malformed")
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return false, err
	}
	const kthread = 0x00200000 // PF_KTHREAD
	return flags&kthread != 0 || fields[0] == "Z" || fields[0] == "X", nil
}

// threads looks at threads other than the first whose file tables differ. The
// kernel tells by kcmp; where it cannot, all are looked at.
func (s *scanner) threads(pid int, name, base, exe string) error {
	var st unix.Stat_t
	if err := unix.Stat(base+"/task", &st); err != nil {
		return err
	}
	if st.Nlink == 3 {
		return nil // procfs counts threads there: only the first
	}
	dir, err := os.Open(base + "/task")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, tid := range names {
		if tid == name {
			continue
		}
		n, err := strconv.Atoi(tid)
		if err != nil || s.o.Proc == "/proc" && sameTables(pid, n) {
			continue
		}
		if err := s.task(pid, name, base+"/task/"+tid, exe); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

func sameTables(a, b int) bool {
	const kcmpFiles, kcmpFS = 2, 3
	for _, what := range []uintptr{kcmpFiles, kcmpFS} {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), what, 0, 0, 0)
		if errno != 0 || r != 0 {
			return false
		}
	}
	return true
}

func (s *scanner) task(pid int, name, base, exe string) error {
	for _, l := range []struct {
		file string
		what What
	}{{"cwd", Cwd}, {"root", Root}, {"exe", Program}} {
		path, ok, err := s.inside(base + "/" + l.file)
		if err != nil && !gone(err) {
			return err
		}
		if ok {
			if l.what == Program && path == "" {
				path = exe
			}
			s.add(User{PID: pid, What: l.what, Path: path}, name)
		}
	}
	if err := s.openFiles(pid, name, base); err != nil {
		return err
	}
	return s.maps(pid, name, base)
}

// inside reports whether the file behind a link of procfs is in the tree.
func (s *scanner) inside(link string) (string, bool, error) {
	if len(s.id.Devices) > 0 {
		var st unix.Stat_t
		if err := unix.Stat(link, &st); err != nil {
			return "", false, err
		}
		if !slices.Contains(s.id.Devices, st.Dev) {
			return "", false, nil
		}
		n, err := unix.Readlink(link, s.buf[:])
		return string(s.buf[:max(n, 0)]), err == nil, err
	}
	// Other data lies on the same device: the file's path inside that device
	// decides, which the kernel tells through the mount it was opened by.
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return "", false, err
	}
	if formatDevice(st.Dev) != s.id.MountDevice {
		return "", false, nil
	}
	n, err := unix.Readlink(link, s.buf[:])
	if err != nil {
		return "", false, err
	}
	path := string(s.buf[:n])
	below, err := s.below(link, path)
	return path, below, err
}

func (s *scanner) openFiles(pid int, name, base string) error {
	dir, err := os.Open(base + "/fd")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, fd := range names {
		path, ok, err := s.inside(base + "/fd/" + fd)
		if err != nil {
			if gone(err) {
				continue // closed meanwhile
			}
			return err
		}
		if !ok {
			continue
		}
		info, _ := os.ReadFile(base + "/fdinfo/" + fd)
		s.add(User{PID: pid, What: File, Path: path, Writes: writable(info)}, name)
	}
	return nil
}

// readAll reads into a buffer that the next call reuses.
func (s *scanner) readAll(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n := 0
	for {
		if len(s.big)-n < 8192 {
			s.big = append(s.big, make([]byte, 64<<10)...)
		}
		m, err := unix.Read(fd, s.big[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			return s.big[:n], err
		}
		n += m
	}
}

// maps finds files that are mapped though no descriptor is open any more.
func (s *scanner) maps(pid int, name, base string) error {
	data, err := s.readAll(base + "/maps")
	if err != nil {
		return err
	}
	if !s.mapsMention(data) {
		return nil // the common case, without parsing
	}
	last := ""
	for line := range bytes.Lines(data) {
		m, ok := parseMap(line)
		if !ok || m.path == last && m.path != "" {
			continue
		}
		// Which device the line names differs from st_dev on btrfs; the file
		// itself, through map_files, does not.
		path, ok, err := s.inside(base + "/map_files/" + m.rang)
		if err != nil && !gone(err) {
			return err
		}
		if err == nil && ok {
			s.add(User{PID: pid, What: Mapped, Path: path, Writes: m.shared && m.writes}, name)
		}
		if !m.writes {
			last = m.path
		}
	}
	return nil
}

// mapsMention reports whether a device of the tree occurs in maps, which names
// the file system's own device where stat names the subvolume's.
func (s *scanner) mapsMention(maps []byte) bool {
	if s.mapDevices == nil {
		var major, minor uint32
		if _, err := fmt.Sscanf(s.id.MountDevice, "%d:%d", &major, &minor); err == nil {
			s.mapDevices = append(s.mapDevices, fmt.Appendf(nil, " %02x:%02x ", major, minor))
		}
		for _, d := range s.id.Devices {
			s.mapDevices = append(s.mapDevices, fmt.Appendf(nil, " %02x:%02x ", unix.Major(d), unix.Minor(d)))
		}
	}
	return slices.ContainsFunc(s.mapDevices, func(d []byte) bool { return bytes.Contains(maps, d) })
}

// mounts finds mounts of the tree in one namespace.
func (s *scanner) mounts(pid int, name string, ns uint64, data []byte) error {
	if !bytes.Contains(data, []byte(" "+s.id.MountDevice+" ")) {
		return nil // the common case, without parsing
	}
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(data), nil)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, m := range infos {
		if formatMountDevice(m) != s.id.MountDevice || !within(m.Root, s.id.Root) {
			continue
		}
		if ns == s.o.IgnoreNamespace && slices.Contains(s.o.IgnoreMounts, m.Mountpoint) {
			continue
		}
		writes := !slices.Contains(strings.Split(m.Options, ","), "ro") && !slices.Contains(strings.Split(m.VFSOptions, ","), "ro")
		s.add(User{PID: pid, What: Mount, Path: m.Mountpoint, Writes: writes}, name)
	}
	return nil
}
