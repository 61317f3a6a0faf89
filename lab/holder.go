package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostCommand is the first argument with which a program that uses this
// package starts itself again as the holder of a host. Its main function (in
// tests TestMain) must then hand over:
//
//	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
//		os.Exit(lab.HostMain(os.Args[2:]))
//	}
const HostCommand = "lab-host"

// Descriptors that the maker gives a holder.
const (
	reportFD = 3 // the holder writes "ok" or why it could not
)

// holderConfig is what a holder reads from its standard input. It does
// nothing before: when the maker dies before it has written down the holder's
// pid, the holder sees the end of its input and ends.
type holderConfig struct {
	Lab      string    `json:"lab"`
	Name     string    `json:"name"`
	Address  string    `json:"address"` // with prefix length
	Dir      string    `json:"dir"`
	Run      string    `json:"run"`
	Keep     []string  `json:"keep"`  // paths that must stay reachable
	Hosts    string    `json:"hosts"` // content of /etc/hosts
	Services []Service `json:"services"`
}

// HostMain is the program of a holder; see HostCommand. It returns the exit
// status.
func HostMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "this command is part of drover lab and not for use by hand")
		return 2
	}
	report := os.NewFile(reportFD, "report")
	unix.CloseOnExec(reportFD)
	var err error
	switch args[0] {
	case "switch":
		err = runSwitch(report)
	case "host":
		err = runHost(report)
	default:
		err = fmt.Errorf("unknown part %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(report, err)
		return 1
	}
	return 0
}

// waitForConfig reads the maker's go-ahead.
func waitForConfig() (holderConfig, error) {
	var c holderConfig
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return c, fmt.Errorf("no configuration: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return c, err
	}
	defer null.Close()
	return c, unix.Dup3(int(null.Fd()), 0, 0)
}

// outlive swallows the signals that a terminal or a session's end sends. They
// are caught, not ignored: programs inherit what is ignored.
func outlive() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
}

// runSwitch holds the namespace of the switch: a bridge, and nothing else.
func runSwitch(report io.WriteCloser) error {
	outlive()
	if _, err := waitForConfig(); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	fmt.Fprintln(report, "ok")
	_ = report.Close()
	select {}
}

// runHost is init of a host.
func runHost(report io.WriteCloser) error {
	outlive()
	c, err := waitForConfig()
	if err != nil {
		return err
	}
	for _, step := range []func(holderConfig) error{privateMounts, privateRun, privateProc, privateSys, privateTrees, identity, ownNetwork} {
		if err := step(c); err != nil {
			return err
		}
	}
	s := newSupervisor(c)
	go s.reap()
	if err := s.listen(filepath.Join(c.Run, "control.sock")); err != nil {
		return err
	}
	if err := s.startAll(c.Services); err != nil {
		return err
	}
	fmt.Fprintln(report, "ok")
	_ = report.Close()
	select {}
}

// trees are directories of an ordinary system that may be file systems of
// their own; a host sees them. Anything else that is mounted is let go of, so
// that a lab keeps nobody's file system busy.
var trees = []string{"/", "/usr", "/etc", "/var", "/var/lib", "/var/tmp", "/var/cache", "/opt", "/home", "/root", "/tmp", "/srv", "/boot"}

func privateMounts(c holderConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		point := mounts[i].Mountpoint
		if slices.Contains(trees, point) || within(point, "/dev") || within(point, "/proc") || within(point, "/sys") {
			continue
		}
		if slices.ContainsFunc(c.Keep, func(path string) bool { return within(path, point) }) {
			continue
		}
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("let go of %s: %w", point, err)
		}
	}
	return nil
}

// privateRun gives the host an empty /run in which only the directory with its
// sockets is shared with the machine.
func privateRun(c holderConfig) error {
	fd, err := unix.Open(c.Run, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", c.Run, err)
	}
	defer unix.Close(fd)
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"/run/lock", "/run/docker/plugins", c.Run} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), c.Run, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("share %s: %w", c.Run, err)
	}
	return ownBinary()
}

// binDir is first in the host's PATH and holds the binary that made the lab.
const binDir = "/run/bin"

func ownBinary() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Mkdir(binDir, 0o755); err != nil {
		return err
	}
	return os.Symlink(self, filepath.Join(binDir, "drover"))
}

func privateProc(holderConfig) error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// privateSys shows the host's own network devices in /sys. The cgroups, which
// Docker looks for there, are moved over.
func privateSys(holderConfig) error {
	const aside = "/run/cgroup"
	if err := os.Mkdir(aside, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep cgroups: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount(aside, "/sys/fs/cgroup", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("keep cgroups: %w", err)
	}
	return os.Remove(aside)
}

// privateTrees lays a layer of the host's own over directories that programs
// write to at fixed places. It outlives a power cycle.
func privateTrees(c holderConfig) error {
	for _, tree := range []string{"/etc", "/var/lib"} {
		layer := filepath.Join(c.Dir, "layers", strings.ReplaceAll(tree[1:], "/", "-"))
		upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
		for _, dir := range []string{upper, work} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", tree, escapeOverlay(upper), escapeOverlay(work))
		if err := unix.Mount("overlay", tree, "overlay", 0, options); err != nil {
			return fmt.Errorf("overlay on %s: %w (the lab's directory must lie on a file system such as ext4, xfs or btrfs)", tree, err)
		}
	}
	// What is heavy or wants a real file system below it goes past the layer.
	for _, dir := range []string{"/var/lib/drover", "/var/lib/docker"} {
		source := filepath.Join(c.Dir, filepath.Base(dir))
		for _, d := range []string{source, dir} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				return err
			}
		}
		if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

var overlayEscaper = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)

func escapeOverlay(path string) string { return overlayEscaper.Replace(path) }

func identity(c holderConfig) error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// Removed first, because either may be a link out of the layer.
	for path, content := range map[string]string{"/etc/hostname": c.Name + "\n", "/etc/hosts": c.Hosts} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	// The machine's own settings of Docker do not apply to a lab host, those
	// made inside it do.
	const settings = "/etc/docker/daemon.json"
	if _, err := os.Stat(filepath.Join(c.Dir, "layers/etc/upper/docker/daemon.json")); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(settings), 0o755); err != nil {
			return err
		}
		return os.WriteFile(settings, []byte("{}\n"), 0o644)
	}
	return nil
}

func ownNetwork(c holderConfig) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	eth, err := netlink.LinkByName(hostLink)
	if err != nil {
		return fmt.Errorf("set up %s: %w", hostLink, err)
	}
	addr, err := netlink.ParseAddr(c.Address)
	if err == nil {
		err = netlink.AddrAdd(eth, addr)
	}
	if err == nil {
		err = netlink.LinkSetUp(eth)
	}
	if err != nil {
		return fmt.Errorf("set up %s: %w", hostLink, err)
	}
	return nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
