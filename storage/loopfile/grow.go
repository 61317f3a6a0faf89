package loopfile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// File is a pool's file as something that can grow.
type File struct {
	Config Config
	Policy Policy

	mu sync.Mutex // one growth after the other
}

// Growth says how large the file is, should and could be, given what is used
// inside and whether the pool in it refuses data.
func (f *File) Growth(_ context.Context, used int64, full bool) (storage.Growth, error) {
	const op = "look at pool file"
	st, err := os.Stat(f.Config.File)
	if err != nil {
		return storage.Growth{}, fail(op, f.Config.File, err)
	}
	var host unix.Statfs_t
	if err := unix.Statfs(f.Config.File, &host); err != nil {
		return storage.Growth{}, fail(op, f.Config.File, err)
	}
	capacity := int64(host.Blocks) * host.Bsize
	d := f.Policy.Decide(Look{FileSize: st.Size(), Used: used, Full: full, HostCapacity: capacity, HostFree: int64(host.Bavail) * host.Bsize})
	limit := fmt.Sprintf("the host keeps %d MiB free on the file system of %s", f.Policy.keep(capacity)>>20, filepath.Dir(f.Config.File))
	if f.Policy.MaxSize > 0 && d.Most >= f.Policy.MaxSize>>20<<20 {
		limit = fmt.Sprintf("%s may have %d MiB", f.Config.File, f.Policy.MaxSize>>20)
	}
	return storage.Growth{Size: st.Size(), Want: d.Want, Most: d.Most, Limit: limit}, nil
}

// Grow makes the file, its device and the file system larger, while in use.
// Smaller than it is is Invalid; the same again finishes what was interrupted.
// The size is rounded up to whole MiB.
func (f *File) Grow(_ context.Context, to int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	const op = "grow pool file"
	name := f.Config.File
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fail(op, name, err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return fail(op, name, err)
	}
	if to < st.Size() {
		return &api.Error{Kind: api.Invalid, Op: op, Object: name, Reason: fmt.Sprintf("it has %d MiB already, more than %d MiB", st.Size()>>20, to>>20), Next: "give a larger size; a pool does not shrink"}
	}
	const mib = 1 << 20
	if to = (to + mib - 1) / mib * mib; to > st.Size() {
		// Before any space is taken: what is to grow must be there.
		if err := mounted(f.Config); err != nil {
			return err
		}
		if err := reserve(file, st.Size(), to); err != nil {
			return fail(op, name, err)
		}
		if err := file.Sync(); err != nil {
			return fail(op, name, err)
		}
	}
	return settle(f.Config)
}

// mounted refuses a pool that is not at its place.
func mounted(cfg Config) error {
	const op = "grow pool file"
	dir, err := filepath.EvalSymlinks(cfg.Dir)
	if err != nil {
		return fail(op, cfg.Dir, err)
	}
	m, err := mountAt(dir)
	if err != nil {
		return fail(op, cfg.Dir, err)
	}
	if m == nil || !deviceBacks(m.Source, cfg.File) {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: cfg.File, Reason: "it is not mounted at " + cfg.Dir, Next: "start the agent on this node"}
	}
	return nil
}

// settle lets the device and the file system take all of the file.
func settle(cfg Config) error {
	const op = "grow pool file"
	if err := mounted(cfg); err != nil {
		return err
	}
	st, err := os.Stat(cfg.File)
	if err != nil {
		return fail(op, cfg.File, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Dir, &fs); err != nil {
		return fail(op, cfg.Dir, err)
	}
	if int64(fs.Blocks)*fs.Bsize >= st.Size() {
		return nil
	}
	dev, err := findLoop(cfg.File)
	if err != nil {
		return fail(op, cfg.File, err)
	}
	if dev == nil {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: cfg.File, Reason: "it is not attached", Next: "start the agent on this node"}
	}
	defer dev.Close()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fail(op, cfg.File, err)
	}
	return fail(op, cfg.File, resize(cfg.Dir))
}

// resize lets the mounted file system take all of its device.
func resize(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.BTRFS_SUPER_MAGIC {
		return &api.Error{Kind: api.Unavailable, Op: "grow pool file", Object: dir, Reason: "the pool is not mounted there"}
	}
	const resizeNumber = 0x50009403 // _IOW(0x94, 3, struct btrfs_ioctl_vol_args)
	var args struct {
		fd   int64
		name [4088]byte
	}
	copy(args.name[:], "max")
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), resizeNumber, uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return errno
	}
	return nil
}
