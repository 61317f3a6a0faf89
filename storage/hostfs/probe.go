package hostfs

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// Probe finds out what a file system keeps, and whether files can share their
// blocks, by trying it in the directory at/name, which is made and removed.
func Probe(at int, name string) (f storage.Fidelity, reflink bool, err error) {
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return f, false, err
	}
	defer func() {
		if e := RemoveTree(at, name, nil); err == nil {
			err = e
		}
	}()
	dir, err := OpenDir(at, name)
	if err != nil {
		return f, false, err
	}
	defer unix.Close(dir)
	const file = "Aa"
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, file)
	fd, err := unix.Openat(dir, file, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return f, false, err
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, make([]byte, 8192), 0); err != nil {
		return f, false, err
	}
	var st, other unix.Stat_t
	f.CaseSensitive = unix.Fstatat(dir, "aA", &other, 0) == unix.ENOENT
	_ = unix.Fchown(fd, 70001, 70002)
	f.Owners = unix.Fstat(fd, &st) == nil && st.Uid == 70001 && st.Gid == 70002
	_ = unix.Fchmod(fd, 0o6741)
	f.Modes = unix.Fstat(fd, &st) == nil && st.Mode&0o7777 == 0o6741
	f.TimeGrain, f.TimeMax = probeTimes(path)
	f.Xattrs = unix.Setxattr(path, "user.drover", []byte("x"), 0) == nil && unix.Setxattr(path, "trusted.drover", []byte("x"), 0) == nil
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	f.ACLs = unix.Setxattr(path, "system.posix_acl_access", acl, 0) == nil
	f.HardLinks = unix.Linkat(dir, file, dir, "hard", 0) == nil
	f.Symlinks = unix.Symlinkat("x", dir, "sym") == nil
	f.Devices = unix.Mknodat(dir, "null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) == nil && unix.Mknodat(dir, "loop", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))) == nil
	f.FIFOs = unix.Mknodat(dir, "fifo", unix.S_IFIFO|0o600, 0) == nil && unix.Mknodat(dir, "sock", unix.S_IFSOCK|0o600, 0) == nil
	f.Sparse = probeSparse(dir)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return f, false, err
	}
	f.NameBytes = int(fs.Namelen)
	clone, err := unix.Openat(dir, "clone", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return f, false, err
	}
	defer unix.Close(clone)
	return f, unix.IoctlFileClone(clone, fd) == nil, nil
}

// farFuture lies in the year 2445, which ext4 and XFS keep; what keeps that is
// said to have no limit. Package tree reads times behind it back.
const farFuture = 15_000_000_000

func probeTimes(path string) (grain time.Duration, last int64) {
	set := func(sec, nsec int64) (int64, int64, bool) {
		var st unix.Stat_t
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: nsec}}
		if unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0) != nil || unix.Stat(path, &st) != nil {
			return 0, 0, false
		}
		return st.Mtim.Sec, st.Mtim.Nsec, true
	}
	sec, nsec, ok := set(1_000_000_001, 123_456_789)
	switch {
	case !ok:
		return 0, 0
	case sec != 1_000_000_001:
		grain = 2 * time.Second
	case nsec == 0:
		grain = time.Second
	default:
		grain = time.Nanosecond
		for unit := int64(10); nsec%unit == 0; unit *= 10 {
			grain = time.Duration(unit)
		}
		if nsec == 123_456_700 {
			grain = 100
		}
	}
	for _, want := range []int64{farFuture, 1<<32 - 2, 1<<31 - 2} {
		if sec, _, ok = set(want, 0); ok && sec == want {
			if want == farFuture {
				return grain, 0
			}
			return grain, want
		}
	}
	return grain, 1<<31 - 2
}

func probeSparse(dir int) bool {
	fd, err := unix.Openat(dir, "sparse", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte("x"), 4<<20); err != nil {
		return false
	}
	// Holes must be punched and told again as well.
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	at, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	return err == nil && at > 0
}
