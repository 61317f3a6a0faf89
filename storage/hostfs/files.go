package hostfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Everything below the pool's root is reached through descriptors and names
// that were checked: no path is ever followed through a symbolic link or out
// of the directory it began in, because what lies there may have come from
// another host.

// OpenBeneath opens a path relative to dir.
func OpenBeneath(dir int, path string, flags int) (int, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, path, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// OpenDir opens a directory for reading.
func OpenDir(dir int, path string) (int, error) {
	return OpenBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// Access gives nil when something is at path, whatever it is.
func Access(dir int, path string) error {
	fd, err := OpenBeneath(dir, path, unix.O_PATH|unix.O_NOFOLLOW)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// MakeDirs makes the directories of a path, one below the other.
func MakeDirs(dir int, names ...string) error {
	path := ""
	for _, n := range names {
		path += n
		if err := unix.Mkdirat(dir, path, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
		path += "/"
	}
	return nil
}

// Names lists a directory.
func Names(dir int, path string) ([]string, error) {
	fd, err := OpenDir(dir, path)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return f.Readdirnames(-1)
}

// maxMeta bounds our own small files: a note of 64 KiB in base64 and the rest.
const maxMeta = 256 << 10

// readFile reads a small regular file.
func readFile(dir int, path string) ([]byte, error) {
	fd, err := OpenBeneath(dir, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxMeta {
		return nil, fmt.Errorf("%s is not a file of Drover's", path)
	}
	return io.ReadAll(io.LimitReader(f, maxMeta))
}

// ReadJSON reads a small file of Drover's.
func ReadJSON(dir int, path string, v any) error {
	data, err := readFile(dir, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// WriteJSON replaces a file atomically, and durably when asked to. The new
// content is always a new inode: an incremental stream then never builds on
// the old one, which may differ between hosts.
func WriteJSON(dir int, path string, v any, durable bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	at, name, err := OpenParent(dir, path)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	tmp := name + ".new"
	if err := unix.Unlinkat(at, tmp, 0); err != nil && err != unix.ENOENT {
		return err
	}
	fd, err := unix.Openat(at, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = unix.Renameat(at, tmp, at, name)
	}
	if err != nil {
		_ = unix.Unlinkat(at, tmp, 0)
		return err
	}
	if !durable {
		return nil
	}
	return unix.Fsync(at)
}

// OpenParent opens the directory of a path's last component.
func OpenParent(dir int, path string) (int, string, error) {
	i := strings.LastIndexByte(path, '/')
	base := path[i+1:]
	if base == "" || base == "." || base == ".." {
		return -1, "", unix.EINVAL
	}
	at := "."
	if i > 0 {
		at = path[:i]
	}
	fd, err := OpenDir(dir, at)
	return fd, base, err
}

// RemoveTree removes whatever is at a place in the pool's own directories. A
// backend that has more than directories and files there looks at each with
// special, which says whether it has removed it; nil looks at nothing.
func RemoveTree(dir int, name string, special func(dir int, name string, st *unix.Stat_t) (bool, error)) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlinkat(dir, name, 0)
	}
	if special != nil {
		if done, err := special(dir, name, &st); done || err != nil {
			return err
		}
	}
	names, err := Names(dir, name)
	if err != nil {
		return err
	}
	fd, err := OpenDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		if err := RemoveTree(fd, n, special); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// Measure sums what files take, each file once. What goes away meanwhile takes nothing.
func Measure(dir string) (int64, error) {
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != dir {
				return nil
			}
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if st.Nlink > 1 && !e.IsDir() {
				if seen[st.Ino] {
					return nil
				}
				seen[st.Ino] = true
			}
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// ReadJSONAt is ReadJSON for backends that work with paths.
func ReadJSONAt(path string, v any) error {
	return in(path, func(dir int, name string) error { return ReadJSON(dir, name, v) })
}

// WriteJSONAt is WriteJSON for backends that work with paths; it is durable.
func WriteJSONAt(path string, v any) error {
	return in(path, func(dir int, name string) error { return WriteJSON(dir, name, v, true) })
}

func in(path string, f func(dir int, name string) error) error {
	dir, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(dir, filepath.Base(path))
}

// SyncDir makes the names of a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// MakeTree makes the directories of an empty tree in dir, as a volume should
// look: the process's umask does not decide that.
func MakeTree(dir int) error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{DataDir, 0o755}, {OwnDir, 0o700}, {BesideDir, 0o700}} {
		if err := unix.Mkdirat(dir, d.name, d.mode); err != nil && err != unix.EEXIST {
			return err
		}
		if err := unix.Fchmodat(dir, d.name, d.mode, 0); err != nil {
			return err
		}
	}
	return nil
}

// Marker is the file that says that a directory is a pool.
const Marker = "drover-pool.json"

const poolFormat = 1

type markerFile struct {
	Format int `json:"format"`
}

// WriteMarker makes the directory a pool.
func WriteMarker(root int) error {
	return WriteJSON(root, Marker, markerFile{Format: poolFormat}, true)
}

// CheckMarker looks whether the directory is a pool of a format that is known.
func CheckMarker(root int, dir string) error {
	var m markerFile
	switch err := ReadJSON(root, Marker, &m); {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %s has no %s: %w", ErrNotThere, dir, Marker, err)
	case err != nil:
		return err
	case m.Format != poolFormat:
		return &api.Error{Kind: api.Unsupported, Op: "open pool", Object: dir, Reason: fmt.Sprintf("its format is %d, this version knows %d", m.Format, poolFormat), Next: "upgrade Drover on this node"}
	}
	return nil
}
