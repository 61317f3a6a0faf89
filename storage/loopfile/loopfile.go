// Package loopfile makes and keeps the default pool's place: a btrfs on a file
// of the host's file system, attached as a loop device. It knows files, loop
// devices and mounts, and nothing of what is kept inside (package btrfs does).
//
// The file's space is really reserved: a sparse one would promise what the
// host's file system may not have when it is needed, and the file system inside
// would fail in the middle of a write.
package loopfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/durable"
)

// Config says what should be.
type Config struct {
	File string // absolute path of the file
	Dir  string // absolute path of the mount point
	Size int64  // bytes; a file that is larger already stays so
}

const noCopyOnWrite = 0x00800000 // FS_NOCOW_FL of linux/fs.h

// MinSize is the smallest pool: btrfs itself wants a little over 100 MiB.
const MinSize = 256 << 20

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var problems []string
	if !filepath.IsAbs(c.File) {
		problems = append(problems, "File is not an absolute path")
	}
	if !filepath.IsAbs(c.Dir) {
		problems = append(problems, "Dir is not an absolute path")
	}
	if c.Size < MinSize {
		problems = append(problems, fmt.Sprintf("Size is below %d MiB", MinSize>>20))
	}
	if len(problems) == 0 {
		return nil
	}
	return &api.Error{Kind: api.Invalid, Op: "make pool file", Object: c.File, Reason: strings.Join(problems, "; ")}
}

// Ensure makes the file, a file system in it, attaches and mounts it: whatever
// of that is missing. A file that holds anything is never formatted. A growth
// that was interrupted is finished.
func Ensure(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	const op = "make pool file"
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fail(op, cfg.Dir, err)
	}
	dir, err := filepath.EvalSymlinks(cfg.Dir)
	if err != nil {
		return fail(op, cfg.Dir, err)
	}
	if err := create(ctx, cfg); err != nil {
		return fail(op, cfg.File, err)
	}
	if err := mount(cfg, dir); err != nil {
		return err
	}
	return settle(cfg)
}

// mount attaches the file and mounts it at dir, if it is not.
func mount(cfg Config, dir string) error {
	const op = "mount pool file"
	if m, err := mountAt(dir); err != nil {
		return fail(op, cfg.Dir, err)
	} else if m != nil {
		if deviceBacks(m.Source, cfg.File) {
			return nil
		}
		return &api.Error{Kind: api.Exists, Op: op, Object: cfg.Dir, Reason: fmt.Sprintf("%s is mounted there, not %s", m.Source, cfg.File), Next: "unmount it, or give another directory"}
	}
	dev, err := attach(cfg.File)
	if err != nil {
		return fail(op, cfg.File, err)
	}
	defer dev.Close()
	// The device detaches itself when the mount, its last user, is gone.
	if err := unix.Mount(dev.Name(), dir, "btrfs", unix.MS_NOATIME, ""); err != nil {
		return fail(op, cfg.File, err)
	}
	return nil
}

// create makes the file with a file system. Both are made under another name
// first, so that a file of the right name is complete.
func create(ctx context.Context, cfg Config) error {
	if st, err := os.Stat(cfg.File); err == nil {
		if !st.Mode().IsRegular() {
			return &api.Error{Kind: api.Invalid, Op: "make pool file", Object: cfg.File, Reason: "it is not a regular file"}
		}
		return checkContent(cfg.File)
	} else if !os.IsNotExist(err) {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(cfg.File), 0o700); err != nil {
		return err
	}
	tmp := cfg.File + ".new"
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = reserve(f, 0, cfg.Size)
	if err == nil {
		err = format(ctx, tmp)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, cfg.File)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return durable.SyncDir(filepath.Dir(cfg.File))
}

// reserve takes the file's space from the host, or fails with nothing taken.
func reserve(f *os.File, old, size int64) error {
	// Without this a host whose file system copies on write would promise the
	// space twice. It works on empty files only and is not known everywhere.
	if old == 0 {
		if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
			_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|noCopyOnWrite)
		}
	}
	var err error
	for {
		if err = unix.Fallocate(int(f.Fd()), 0, old, size-old); err != unix.EINTR {
			break
		}
	}
	if err == nil {
		return nil
	}
	_ = f.Truncate(old)
	if err == unix.EOPNOTSUPP {
		return &api.Error{Kind: api.Unsupported, Op: "reserve space", Object: f.Name(), Reason: "the host's file system cannot reserve space for a file", Next: "put the pool's file on ext4, XFS or btrfs"}
	}
	return err
}

// format runs mkfs.btrfs, the one external tool. It refuses by itself what
// holds a file system already.
func format(ctx context.Context, file string) error {
	path, err := exec.LookPath("mkfs.btrfs")
	if err != nil {
		return &api.Error{Kind: api.Unsupported, Op: "make file system", Object: file, Reason: "mkfs.btrfs is not installed", Next: "install the package btrfs-progs"}
	}
	out, err := exec.CommandContext(ctx, path, "-q", "--label", "drover", "--metadata", "dup", file).CombinedOutput()
	if err != nil {
		return &api.Error{Kind: api.Internal, Op: "make file system", Object: file, Reason: strings.TrimSpace(string(out)), Err: err}
	}
	return nil
}

// checkContent refuses a file that is there and does not hold a btrfs.
func checkContent(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [8]byte
	_, err = f.ReadAt(magic[:], 0x10040) // in the first super block
	if err != nil || string(magic[:]) != "_BHRfS_M" {
		return &api.Error{Kind: api.Damaged, Op: "open pool file", Object: file, Reason: "the file is there and holds no btrfs; it is left as it is", Next: "restore it, or move it away to begin with an empty pool"}
	}
	return nil
}

// attach gives the loop device of the file, making one if there is none.
func attach(file string) (*os.File, error) {
	if dev, err := findLoop(file); err != nil || dev != nil {
		return dev, err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, &api.Error{Kind: api.Unsupported, Op: "attach pool file", Object: file, Reason: "there are no loop devices here", Next: "load the kernel module loop", Err: err}
	}
	defer control.Close()
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	const tries = 64 // others take loop devices at the same time
	for range tries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		dev, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		err = configure(dev, back, file)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY {
			return nil, err
		}
	}
	return nil, unix.EBUSY
}

// openLoop opens /dev/loopN and makes the node where no udev does.
func openLoop(n int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", n)
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if !os.IsNotExist(err) {
		return dev, err
	}
	const loopMajor = 7
	if err := unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && err != unix.EEXIST {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

// configure binds the device to the file, past the host's page cache where
// the host's file system allows that: otherwise every byte is cached twice.
func configure(dev, back *os.File, file string) error {
	cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 4096}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file)
	err := unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
	if err == unix.EINVAL {
		cfg.Size = 0
		cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
	}
	return err
}

// findLoop gives the device that the file is attached to, nil when none is.
func findLoop(file string) (*os.File, error) {
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, path := range all {
		n := 0
		if _, err := fmt.Sscanf(path, "/sys/block/loop%d/", &n); err != nil {
			continue
		}
		dev, err := openLoop(n)
		if err != nil {
			continue
		}
		if backs(dev, file) {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}

// backs reports whether the loop device stands on the file. Device and inode
// decide: the path that the kernel shows is of whoever attached it, and means
// another file in another mount namespace.
func backs(dev *os.File, file string) bool {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil {
		return false
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return false
	}
	return info.Device == st.Dev && info.Inode == st.Ino
}

// deviceBacks is the same for a device by its name, as mounts show it.
func deviceBacks(name, file string) bool {
	dev, err := os.Open(name)
	if err != nil {
		return false
	}
	defer dev.Close()
	return backs(dev, file)
}

// mountAt is what is mounted at dir, nil when nothing is.
func mountAt(dir string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], nil
}

// Detach unmounts the pool; its device goes with it. Not mounted is success,
// busy is InUse.
func Detach(_ context.Context, cfg Config) error {
	const op = "detach pool file"
	dir, err := filepath.EvalSymlinks(cfg.Dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fail(op, cfg.Dir, err)
	}
	m, err := mountAt(dir)
	if err != nil || m == nil {
		return fail(op, cfg.Dir, err)
	}
	if !deviceBacks(m.Source, cfg.File) {
		return &api.Error{Kind: api.Conflict, Op: op, Object: cfg.Dir, Reason: fmt.Sprintf("%s is mounted there, not %s", m.Source, cfg.File)}
	}
	err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		return &api.Error{Kind: api.InUse, Op: op, Object: cfg.Dir, Reason: "volumes of the pool are still in use", Next: "stop their users first", Err: err}
	}
	return fail(op, cfg.Dir, err)
}

// fail turns a system's error into an *api.Error.
func fail(op, object string, err error) error {
	var known *api.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	e := &api.Error{Kind: api.Internal, Op: op, Object: object, Err: err}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the host's file system has not enough space for it", "give a smaller size or free space"
	case errors.Is(err, unix.EROFS):
		e.Kind = api.ReadOnly
	case errors.Is(err, os.ErrNotExist):
		e.Kind = api.NotFound
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EPERM):
		e.Kind, e.Next = api.Denied, "run as root"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Kind = api.Canceled
	}
	return e
}
