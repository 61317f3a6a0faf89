package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Linux is the host this runs on.
type Linux struct {
	// PluginSocket is where Docker finds the volume plugin.
	PluginSocket string
}

var _ Host = Linux{}

// Kernel implements Host.
func (Linux) Kernel() (release string, fileSystems []string, loop bool) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	text, _ := os.ReadFile("/proc/filesystems") // nothing is read: nothing is there
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 0 {
			fileSystems = append(fileSystems, f[len(f)-1])
		}
	}
	// A module that can be loaded is as good: mounting loads it.
	found, _ := filepath.Glob("/lib/modules/" + release + "/kernel/fs/btrfs/btrfs.ko*")
	if len(found) > 0 && !slices.Contains(fileSystems, "btrfs") {
		fileSystems = append(fileSystems, "btrfs")
	}
	_, err := os.Stat("/dev/loop-control")
	return release, fileSystems, err == nil
}

// Tool implements Host.
func (Linux) Tool(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		// Users' PATH often leaves these out, where the agent's has them.
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return filepath.Join(dir, name)
			}
		}
		return ""
	}
	return path
}

// Space implements Host, of the nearest directory that is there.
func (Linux) Space(dir string) (free, size int64, err error) {
	var s unix.Statfs_t
	for {
		err = unix.Statfs(dir, &s)
		if !errors.Is(err, unix.ENOENT) || dir == "/" || dir == "." {
			break
		}
		dir = filepath.Dir(dir)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, err
}

// Taken implements Host.
func (Linux) Taken(port int) string {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err.Error()
	}
	_ = l.Close()
	return ""
}

// Reach implements Host.
func (Linux) Reach(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

// Plugin implements Host: it calls the plugin as Docker does.
func (l Linux) Plugin(ctx context.Context) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.PluginSocket)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/Plugin.Activate", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err != nil {
		return err
	}
	var what struct{ Implements []string }
	if answer.StatusCode != http.StatusOK || json.Unmarshal(text, &what) != nil || !slices.Contains(what.Implements, "VolumeDriver") {
		return fmt.Errorf("%s answers %s: %s", l.PluginSocket, answer.Status, bytes.TrimSpace(text))
	}
	return nil
}

// Empty implements Host.
func (Linux) Empty(dir string) (bool, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Mounts implements Host.
func (Linux) Mounts(dir string) ([]string, error) {
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range list {
		if m.Mountpoint != dir {
			out = append(out, m.Mountpoint)
		}
	}
	return out, nil
}

// Loops implements Host.
func (Linux) Loops(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		if file, deleted := strings.CutSuffix(strings.TrimSpace(string(text)), " (deleted)"); deleted && strings.HasPrefix(file, dir+"/") {
			out = append(out, file)
		}
	}
	return out, nil
}
