package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// runRoot holds what does not outlive a boot: state files, locks and sockets.
// Its name is short because a socket's path has at most 107 bytes.
const runRoot = "/run/drover-lab"

var labName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// record is the state file: everything Down needs to know.
type record struct {
	Name    string       `json:"name"`
	Boot    string       `json:"boot"` // boot id: pids of another boot mean nothing
	Dir     string       `json:"dir"`
	MadeDir bool         `json:"madeDir"` // Dir was not there before
	Subnet  string       `json:"subnet"`
	Switch  process      `json:"switch"`
	Hosts   []hostRecord `json:"hosts"`
	Docker  dockerRecord `json:"docker"`
	Created time.Time    `json:"created"`
}

type dockerRecord struct {
	Off         bool     `json:"off,omitempty"`
	LiveRestore bool     `json:"liveRestore,omitempty"`
	Args        []string `json:"args,omitempty"`
}

type hostRecord struct {
	Name     string    `json:"name"`
	Address  string    `json:"address"`
	Holder   process   `json:"holder"`
	Services []Service `json:"services,omitempty"`
}

func (r *record) host(name string) *hostRecord {
	for i := range r.Hosts {
		if r.Hosts[i].Name == name {
			return &r.Hosts[i]
		}
	}
	return nil
}

// runDir is for sockets; the same path is seen inside the hosts.
func (r *record) runDir() string { return filepath.Join(runRoot, r.Name) }

func (r *record) hostRun(host string) string { return filepath.Join(runRoot, r.Name, host) }

func (r *record) hostDir(host string) string { return filepath.Join(r.Dir, host) }

func (r *record) cgroup() string { return "drover-lab-" + r.Name }

func statePath(name string) string { return filepath.Join(runRoot, name, "state.json") }

func (r *record) save() error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(r.Name)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func load(name string) (*record, error) {
	data, err := os.ReadFile(statePath(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &api.Error{Kind: api.NotFound, Op: "open lab", Object: name, Reason: "there is no lab of that name", Next: "see drover lab ls; make one with drover lab up --name " + name}
	}
	if err != nil {
		return nil, &api.Error{Kind: api.Unknown, Op: "open lab", Object: name, Err: err}
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: "open lab", Object: name, Reason: "its state file cannot be read", Next: "look at " + statePath(name), Err: err}
	}
	return &r, nil
}

// List names the labs of this machine.
func List() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(runRoot, "*", "state.json"))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(paths))
	for _, p := range paths {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	sort.Strings(names)
	return names, nil
}

// lock keeps two processes from changing one lab at a time. The kernel lets
// go of it when its holder dies. unlock removes the file of a lab that is not
// there, whoever asked for it, while the lock is held: who waited for the lock
// finds then that it is on a removed file, and asks again.
func lock(name string) (unlock func(), err error) {
	if !labName.MatchString(name) {
		return nil, &api.Error{Kind: api.Invalid, Op: "open lab", Object: fmt.Sprintf("%q", name), Reason: "not a valid name", Next: "use at most 32 lower case letters, digits and '-'"}
	}
	if os.Geteuid() != 0 {
		return nil, &api.Error{Kind: api.Denied, Op: "open lab", Object: name, Reason: "namespaces and mounts need root", Next: "run it as root, for instance with sudo"}
	}
	fail := func(err error) (func(), error) {
		return nil, &api.Error{Kind: api.Internal, Op: "lock lab", Object: name, Err: err}
	}
	path := lockPath(name)
	for {
		// Not MkdirAll: it fails when the directory goes while it looks.
		if err := os.Mkdir(runRoot, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fail(err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // the last lab went just now, and took runRoot with it
		}
		if err != nil {
			return fail(err)
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			_ = f.Close()
			return fail(err)
		}
		// A lock on a removed file locks nobody out.
		var mine, there unix.Stat_t
		if unix.Fstat(int(f.Fd()), &mine) == nil && unix.Stat(path, &there) == nil && mine.Ino == there.Ino && mine.Dev == there.Dev {
			return func() {
				if _, err := os.Stat(statePath(name)); errors.Is(err, os.ErrNotExist) {
					_ = os.Remove(path)
					_ = os.Remove(runRoot) // when this was the last
				}
				_ = f.Close()
			}, nil
		}
		_ = f.Close()
	}
}

func lockPath(name string) string { return filepath.Join(runRoot, name+".lock") }

// process names a process safely against the reuse of its pid.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // start time, field 22 of /proc/PID/stat
}

func identify(pid int) (process, error) {
	start, err := startTime(pid)
	return process{PID: pid, Start: start}, err
}

func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command in parentheses may hold blanks and parentheses.
	s := string(data)
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return 0, fmt.Errorf("process %d: stat has no command", pid)
	}
	fields := strings.Fields(s[i+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: stat has %d fields", pid, len(fields))
	}
	var start uint64
	if _, err := fmt.Sscan(fields[19], &start); err != nil {
		return 0, err
	}
	return start, nil
}

// open gives a pidfd, or -1 when the process is gone.
func (p process) open() (int, error) {
	if p.PID <= 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH || err == unix.EINVAL {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("process %d: %w", p.PID, err)
	}
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		_ = unix.Close(fd)
		return -1, nil
	}
	if exited(fd, 0) {
		_ = unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

func (p process) alive() bool {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// exited waits until the process of a pidfd has ended. An init of a process
// namespace ends only after everything in the namespace has.
func exited(pidfd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		return n > 0
	}
}

// kill ends the process and returns when it is gone.
func (p process) kill() error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if !exited(fd, 60*time.Second) {
		return fmt.Errorf("process %d has not ended 60 s after SIGKILL", p.PID)
	}
	return nil
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
