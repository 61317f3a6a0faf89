package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchies gives the mount points of all cgroup file systems: one on a
// machine with cgroup v2, one a controller on others.
func hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points, nil
}

// joinCgroup makes group in every hierarchy and puts a process into it.
func joinCgroup(group string, pid int) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	for _, point := range points {
		dir := filepath.Join(point, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := inheritCPUSet(point, group); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// inheritCPUSet fills in what a new group of the version 1 cpuset controller
// leaves empty and without which no process may enter it.
func inheritCPUSet(point, group string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(point, name))
		if err != nil {
			return nil // another controller, or version 2
		}
		dir := point
		for _, part := range splitPath(group) {
			dir = filepath.Join(dir, part)
			path := filepath.Join(dir, name)
			have, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(bytes.TrimSpace(have)) > 0 {
				value = have
				continue
			}
			if err := os.WriteFile(path, bytes.TrimSpace(value), 0); err != nil {
				return fmt.Errorf("set up cgroup: %w", err)
			}
		}
	}
	return nil
}

// thaw lets frozen processes of a group and all below it go on, such as those of
// paused containers: until then not even SIGKILL ends them.
func thaw(group string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	for _, point := range points {
		err := filepath.WalkDir(filepath.Join(point, group), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil || d.IsDir():
				return err
			}
			on, off := "THAWED", "FREEZING FROZEN" // version 1
			switch d.Name() {
			case "freezer.state":
			case "cgroup.freeze":
				on, off = "0", "1"
			default:
				return nil
			}
			if now, err := os.ReadFile(path); err != nil || !strings.Contains(off, strings.TrimSpace(string(now))) {
				return nil
			}
			if err := os.WriteFile(path, []byte(on), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("thaw cgroup: %w", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes a group and all below it, once their processes ended.
func removeCgroup(group string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range points {
		errs = append(errs, removeCgroupDir(filepath.Join(point, group)))
	}
	return errors.Join(errs...)
}

func removeCgroupDir(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := removeEmptyCgroup(dirs[i]); err != nil {
			return err
		}
	}
	return nil
}

// removeEmptyCgroup retries while the kernel still says busy: version 1 has
// no event for the end of a dying task's membership.
func removeEmptyCgroup(dir string) error {
	deadline := time.Now().Add(5 * time.Second)
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(wait)
	}
}
