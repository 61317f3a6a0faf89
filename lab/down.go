package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Down removes a lab with everything in it. It works from any process, after
// a crash of the one that made it, and again when it was interrupted. Gone
// already is success.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.name) }

// Down removes a lab by name.
func Down(_ context.Context, name string) error {
	if name == "" {
		name = "lab"
	}
	unlock, err := lock(name)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := load(name)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	l := &Lab{name: name, rec: rec}
	if err := l.down(); err != nil {
		return &api.Error{Kind: api.Internal, Op: "remove lab", Object: name, Next: "mend the cause and repeat drover lab down " + name, Err: err}
	}
	return nil
}

// down removes everything; the state file goes last. The caller holds the lock.
func (l *Lab) down() error {
	if l.rec == nil {
		return nil // failed before anything was made
	}
	rec := l.snapshot()
	var errs []error
	if rec.Boot == bootID() {
		errs = append(errs, thaw(rec.cgroup()))
		for i := range rec.Hosts {
			errs = append(errs, rec.Hosts[i].Holder.kill())
		}
		errs = append(errs, rec.Switch.kill())
	}
	errs = append(errs, detachBelow(rec.Dir), removeCgroup(rec.cgroup()))
	if err := errors.Join(errs...); err != nil {
		return err // the directories stay while somebody may use them
	}
	for i := range rec.Hosts {
		if err := os.RemoveAll(rec.hostDir(rec.Hosts[i].Name)); err != nil {
			return err
		}
	}
	if rec.MadeDir {
		// Whatever others put beside the hosts' directories stays theirs.
		if err := os.Remove(rec.Dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		if parent := filepath.Dir(rec.Dir); parent == "/var/tmp/drover-lab" {
			_ = os.Remove(parent) // when this was the last lab
		}
	}
	return os.RemoveAll(rec.runDir()) // unlock removes the lock's file
}

// powerOff ends a host and what the kernel would forget with a real one's
// power: loop devices on its files and cgroups. The caller holds the lock.
func powerOff(rec *record, name string) error {
	host := rec.host(name)
	if host == nil {
		return fmt.Errorf("no host %s", name)
	}
	if err := thaw(rec.cgroup() + "/" + name); err != nil {
		return err
	}
	if err := host.Holder.kill(); err != nil {
		return err
	}
	if err := unplug(rec.Switch, name); err != nil {
		return err
	}
	if err := detachBelow(rec.hostDir(name)); err != nil {
		return err
	}
	if err := removeCgroup(rec.cgroup() + "/" + name); err != nil {
		return err
	}
	return clearRun(rec.hostRun(name))
}

func clearRun(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// detachBelow unmounts what is mounted below dir in this namespace and
// detaches loop devices whose files lie there.
func detachBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint == dir || !within(i.Mountpoint, dir), false
	})
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for wait := 2 * time.Millisecond; ; wait *= 2 {
		left, err := detachLoops(dir)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("loop devices %s stay attached to files below %s", strings.Join(left, ", "), dir)
		}
		time.Sleep(wait) // the kernel lets go of a file system after its last mount went, and says so to nobody
	}
}

// detachLoops asks each loop device on a file below dir to let go, and names
// those that have not yet.
func detachLoops(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var left []string
	for _, path := range files {
		backing, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		file := strings.TrimSuffix(strings.TrimSuffix(string(backing), "\n"), " (deleted)")
		if !within(file, dir) {
			continue
		}
		device := "/dev/" + splitPath(path)[2]
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", device, err)
		}
		_, err = unix.IoctlRetInt(fd, unix.LOOP_CLR_FD)
		_ = unix.Close(fd)
		if err != nil && err != unix.ENXIO && err != unix.EBUSY {
			return nil, fmt.Errorf("detach %s: %w", device, err)
		}
		if _, err := os.Stat(path); err == nil {
			left = append(left, device)
		}
	}
	return left, nil
}
