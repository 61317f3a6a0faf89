package dir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Everything below the pool's root is reached through descriptors and names
// that were checked: no path is ever followed through a symbolic link or out
// of the directory it began in, because what lies there may have come from
// another host.

// openBeneath opens a path relative to dir.
func openBeneath(dir int, path string, flags int) (int, error) {
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

func openDir(dir int, path string) (int, error) {
	return openBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

var errNotOurs = errors.New("not made by Drover")

func faccess(dir int, path string) error {
	fd, err := openBeneath(dir, path, unix.O_PATH|unix.O_NOFOLLOW)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// mkdirs makes the directories of a path, one below the other.
func mkdirs(dir int, names ...string) error {
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

func readNames(dir int, path string) ([]string, error) {
	fd, err := openDir(dir, path)
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
	fd, err := openBeneath(dir, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
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

func readJSON(dir int, path string, v any) error {
	data, err := readFile(dir, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// writeJSON replaces a file atomically, and durably when asked to.
func writeJSON(dir int, path string, v any, durable bool) error {
	data, err := jsonBytes(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := unix.Unlinkat(dir, tmp, 0); err != nil && err != unix.ENOENT {
		return err
	}
	fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
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
		err = unix.Renameat(dir, tmp, dir, path)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, tmp, 0)
		return err
	}
	if !durable {
		return nil
	}
	at := "."
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		at = path[:i]
	}
	d, err := openDir(dir, at)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	return unix.Fsync(d)
}

// checkID refuses volume ids and snapshot IDs that could not be a file's name.
func checkID(what, s string) error {
	ok := s != "" && len(s) <= api.MaxName && s[0] != '.' && s[0] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return &api.Error{Kind: api.Invalid, Op: "look up " + what, Object: fmt.Sprintf("%q", s), Reason: "not a valid id", Next: "use letters, digits, '_', '.' and '-', at most 128"}
	}
	return nil
}

// escape makes a branch name a file name: '~' is not allowed in branch names.
func escape(branch string) string { return strings.ReplaceAll(branch, "/", "~") }

// removeTree removes whatever is at a place in the pool's own directories:
// directories and files.
func removeTree(dir int, name string) error {
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
	names, err := readNames(dir, name)
	if err != nil {
		return err
	}
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		if err := removeTree(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
