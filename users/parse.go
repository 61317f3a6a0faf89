package users

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mapping is one line of maps.
type mapping struct {
	rang   string // as map_files names it
	device string // major:minor
	path   string
	writes bool
	shared bool
}

// parseMap reads a line of /proc/PID/maps; false for memory without a file.
func parseMap(line []byte) (mapping, bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	// range perms offset device inode path, the path after blanks
	var f [5]string
	rest := line
	for i := range f {
		rest = bytes.TrimLeft(rest, " ")
		before, after, found := bytes.Cut(rest, []byte(" "))
		if !found {
			return mapping{}, false
		}
		f[i], rest = string(before), after
	}
	major, minor, ok := strings.Cut(f[3], ":")
	if !ok || f[4] == "0" || len(f[1]) != 4 {
		return mapping{}, false
	}
	ma, err1 := strconv.ParseUint(major, 16, 32)
	mi, err2 := strconv.ParseUint(minor, 16, 32)
	from, to, ok := strings.Cut(f[0], "-")
	if err1 != nil || err2 != nil || !ok {
		return mapping{}, false
	}
	// maps pads addresses with zeros, map_files does not.
	trim := func(s string) string {
		if s = strings.TrimLeft(s, "0"); s == "" {
			return "0"
		}
		return s
	}
	return mapping{
		rang: trim(from) + "-" + trim(to), device: fmt.Sprintf("%d:%d", ma, mi), path: strings.TrimLeft(string(rest), " "),
		writes: f[1][1] == 'w', shared: f[1][3] == 's',
	}, true
}

// writable reads the flags of fdinfo. What cannot be read counts as writing.
func writable(fdinfo []byte) bool {
	for line := range bytes.Lines(fdinfo) {
		value, ok := bytes.CutPrefix(line, []byte("flags:"))
		if !ok {
			continue
		}
		flags, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 8, 64)
		if err != nil {
			return true
		}
		return flags&unix.O_ACCMODE != unix.O_RDONLY
	}
	return true
}

// mountID reads the mount's id of fdinfo; 0 when there is none.
func mountID(fdinfo []byte) int {
	for line := range bytes.Lines(fdinfo) {
		if value, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			id, _ := strconv.Atoi(string(bytes.TrimSpace(value)))
			return id
		}
	}
	return 0
}

// containerID finds the 64 hexadecimal digits with which Docker, Podman and
// containerd name a container's cgroup.
func containerID(cgroup string) string {
	for part := range strings.FieldsFuncSeq(cgroup, func(r rune) bool { return strings.ContainsRune("/\n:.-", r) }) {
		if len(part) == 64 && strings.Trim(part, "0123456789abcdef") == "" {
			return part
		}
	}
	return ""
}

func parseNamespace(link string) (uint64, error) {
	digits, ok := strings.CutPrefix(link, "mnt:[")
	if !ok || !strings.HasSuffix(digits, "]") {
		return 0, fmt.Errorf("%q is no mount namespace", link)
	}
	return strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
}

func formatDevice(dev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}

func formatMountDevice(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// within reports whether path is root or below it.
func within(path, root string) bool {
	return path == root || root == "/" || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
}

// below decides for a file on a shared device whether it lies below the
// identity's root. The link's text is the path as the process sees it, in its
// mount namespace; the mount it lies on says where in the device that is. A
// file whose mount cannot be found (detached, or unlinked beyond recognition)
// counts as inside: the answer must never miss a user.
func (s *scanner) below(link, path string) (bool, error) {
	pidDir := processDir(s.o.Proc, link)
	data, err := os.ReadFile(pidDir + "/mountinfo")
	if err != nil {
		return false, err
	}
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(data), nil)
	if err != nil {
		return false, err
	}
	path = strings.TrimSuffix(path, " (deleted)")
	root, err := os.Readlink(pidDir + "/root")
	if err != nil {
		return false, err
	}
	// A path is told relative to the asker's root, mount points to the
	// process's: both agree unless it lives in a chroot.
	if root != "/" && within(path, root) {
		path = "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
	}
	// For a descriptor the kernel names the mount itself; one that mountinfo
	// does not list is detached, and its paths mean nothing here.
	mount := 0
	if dir, fd, ok := strings.Cut(link, "/fd/"); ok {
		info, err := os.ReadFile(dir + "/fdinfo/" + fd)
		if err != nil {
			return false, err
		}
		if mount = mountID(info); mount == 0 {
			return true, nil
		}
	}
	best := -1
	for i, m := range infos {
		if mount != 0 && m.ID != mount {
			continue
		}
		if within(path, m.Mountpoint) && (best < 0 || len(m.Mountpoint) >= len(infos[best].Mountpoint)) {
			best = i
		}
	}
	if best < 0 || formatMountDevice(infos[best]) != s.id.MountDevice {
		return true, nil
	}
	m := infos[best]
	rel := strings.TrimPrefix(strings.TrimPrefix(path, m.Mountpoint), "/")
	return within(filepath.Join(m.Root, rel), s.id.Root), nil
}

// processDir is the directory of the process that a link in procfs belongs to.
func processDir(proc, link string) string {
	pid, _, _ := strings.Cut(strings.TrimPrefix(link, proc+"/"), "/")
	return proc + "/" + pid
}
