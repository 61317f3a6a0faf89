package lab

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Service is a program that a host runs.
type Service struct {
	Name string   `json:"name"`
	Args []string `json:"args"` // the command; see Env for what is replaced
	// Env is added to a small fixed environment. In Args and Env, ${LAB},
	// ${NODE}, ${ADDRESS} and ${DIR} stand for the lab's and the host's name,
	// the host's address, and the directory with its data.
	Env []string `json:"env,omitempty"`
	// Restart is "no", "on-failure" (the default) or "always".
	Restart string `json:"restart,omitempty"`
	// BeforeDocker starts it before Docker's daemon. Services start in this
	// order: those, Docker, the others as listed.
	BeforeDocker bool `json:"beforeDocker,omitempty"`
	// Notify: it is up when it says READY=1 to $NOTIFY_SOCKET, as under
	// systemd, and the next one waits for that. Otherwise it is up at once.
	Notify bool `json:"notify,omitempty"`
	// Files is its limit of open files; 0 leaves the machine's.
	Files uint64 `json:"files,omitempty"`
}

// ServiceStatus is how a service is.
type ServiceStatus struct {
	Name     string `json:"name"`
	Running  bool   `json:"running"`
	Ready    bool   `json:"ready"`
	PID      int    `json:"pid,omitempty"`  // inside the host
	Last     string `json:"last,omitempty"` // how it ended last
	Restarts int    `json:"restarts"`
}

const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
	maxDelay     = 2 * time.Second
)

// supervisor starts programs inside a host and is the only one that waits for
// children, its own as well as those that lost their parent.
type supervisor struct {
	host holderConfig

	mu       sync.Mutex
	children map[int]func(syscall.WaitStatus) // called once, without mu
	services map[string]*service
}

type service struct {
	def Service

	// Guarded by supervisor.mu.
	pid      int
	ready    bool
	wanted   bool
	last     string
	restarts int
	delay    time.Duration
	retry    *time.Timer
	changed  chan struct{} // closed at each change
}

func (s *service) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func newSupervisor(c holderConfig) *supervisor {
	return &supervisor{host: c, children: map[int]func(syscall.WaitStatus){}, services: map[string]*service{}}
}

// reap waits for every child there ever is.
func (s *supervisor) reap() {
	// A child that outlives all others: Wait4 never fails for want of children,
	// so that no signal and no polling is needed.
	anchor, err := syscall.ForkExec("/bin/sleep", []string{"holder", "infinity"}, &syscall.ProcAttr{Env: []string{}, Files: []uintptr{0, 0, 0}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-host:", err)
		os.Exit(1)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid == anchor {
			os.Exit(1) // somebody in the host killed the anchor: power off
		}
		s.mu.Lock()
		done := s.children[pid]
		delete(s.children, pid)
		s.mu.Unlock()
		if done != nil {
			done(status)
		}
	}
}

// start runs a program; done is called when it ends. Starting and registering
// are one step for reap.
func (s *supervisor) start(args, env []string, dir string, files []*os.File, attr syscall.SysProcAttr, done func(syscall.WaitStatus)) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startLocked(args, env, dir, files, attr, done)
}

func (s *supervisor) startLocked(args, env []string, dir string, files []*os.File, attr syscall.SysProcAttr, done func(syscall.WaitStatus)) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("no command given")
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	if dir == "" {
		dir = "/"
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Dir: dir, Env: env, Files: fds, Sys: &attr})
	if err != nil {
		return 0, err
	}
	s.children[pid] = done
	return pid, nil
}

// environment is what every program in the host gets, before its own.
func (s *supervisor) environment(extra []string) []string {
	env := []string{
		"PATH=" + binDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "DROVER_LAB=" + s.host.Lab, "DROVER_LAB_NODE=" + s.host.Name,
	}
	return append(env, s.expandAll(extra)...)
}

func (s *supervisor) expandAll(in []string) []string {
	address, _, _ := strings.Cut(s.host.Address, "/")
	r := strings.NewReplacer("${LAB}", s.host.Lab, "${NODE}", s.host.Name, "${ADDRESS}", address, "${DIR}", s.host.Dir)
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = r.Replace(v)
	}
	return out
}

// startAll brings the host up, in order.
func (s *supervisor) startAll(services []Service) error {
	for _, def := range services {
		if err := s.startService(def); err != nil {
			return err
		}
	}
	return nil
}

// startService starts a service, or starts it anew with another definition
// when it does not run, and returns when it is up.
func (s *supervisor) startService(def Service) error {
	s.mu.Lock()
	sv := s.services[def.Name]
	switch {
	case sv == nil:
		sv = &service{def: def, changed: make(chan struct{})}
		s.services[def.Name] = sv
	case sv.pid != 0:
		s.mu.Unlock()
		return fmt.Errorf("service %s already runs", def.Name)
	default:
		sv.def = def
	}
	sv.wanted, sv.delay = true, 0
	if sv.retry != nil {
		sv.retry.Stop()
	}
	err := s.launch(sv)
	if err != nil {
		sv.wanted = false
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("start service %s: %w", def.Name, err)
	}
	return s.waitReady(sv)
}

func (s *supervisor) waitReady(sv *service) error {
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		ready, pid, last, wanted, changed := sv.ready, sv.pid, sv.last, sv.wanted, sv.changed
		s.mu.Unlock()
		if ready {
			return nil
		}
		if pid == 0 && (last != "" || !wanted) {
			return fmt.Errorf("service %s ended before it was ready: %s\n%s", sv.def.Name, last, logTail(s.logPath(sv.def.Name)))
		}
		select {
		case <-changed:
		case <-timeout.C:
			return fmt.Errorf("service %s is not ready after %s\n%s", sv.def.Name, readyTimeout, logTail(s.logPath(sv.def.Name)))
		}
	}
}

func (s *supervisor) logPath(name string) string {
	return filepath.Join(s.host.Dir, "log", name+".log")
}

// launch starts a service's program. The caller holds mu.
func (s *supervisor) launch(sv *service) error {
	if err := os.MkdirAll(filepath.Join(s.host.Dir, "log"), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(s.logPath(sv.def.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	env := s.environment(sv.def.Env)
	sv.ready, sv.last = !sv.def.Notify, ""
	var listener *net.UnixConn
	if sv.def.Notify {
		path := filepath.Join("/run", "notify-"+sv.def.Name)
		_ = os.Remove(path)
		listener, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return err
		}
		env = append(env, "NOTIFY_SOCKET="+path)
	}
	pid, err := s.startLocked(s.expandAll(sv.def.Args), env, "/", []*os.File{null, log, log}, syscall.SysProcAttr{Setsid: true}, func(status syscall.WaitStatus) {
		if listener != nil {
			_ = listener.Close()
		}
		s.ended(sv, status)
	})
	if err != nil {
		if listener != nil {
			_ = listener.Close()
		}
		return err
	}
	if sv.def.Files != 0 {
		limit := unix.Rlimit{Cur: sv.def.Files, Max: sv.def.Files}
		_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
	}
	sv.pid = pid
	sv.notify()
	if listener != nil {
		go s.hear(sv, pid, listener)
	}
	return nil
}

// hear waits for the program's READY=1.
func (s *supervisor) hear(sv *service, pid int, c *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if !slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			continue
		}
		s.mu.Lock()
		if sv.pid == pid {
			sv.ready, sv.delay = true, 0
			sv.notify()
		}
		s.mu.Unlock()
	}
}

// ended decides whether a service that ended is started again.
func (s *supervisor) ended(sv *service, status syscall.WaitStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sv.pid, sv.ready, sv.last = 0, false, describe(status)
	defer sv.notify()
	policy := sv.def.Restart
	again := sv.wanted && (policy == "always" || policy != "no" && status != 0)
	if !again {
		sv.wanted = false
		return
	}
	sv.retry = time.AfterFunc(sv.delay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !sv.wanted || sv.pid != 0 {
			return
		}
		sv.restarts++
		if err := s.launch(sv); err != nil {
			sv.last, sv.wanted = err.Error(), false
			sv.notify()
		}
	})
	sv.delay = min(max(2*sv.delay, 50*time.Millisecond), maxDelay)
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// stopService ends a service and keeps it stopped.
func (s *supervisor) stopService(name string) error {
	s.mu.Lock()
	sv := s.services[name]
	if sv == nil {
		s.mu.Unlock()
		return errNoService
	}
	sv.wanted = false
	if sv.retry != nil {
		sv.retry.Stop()
	}
	if sv.pid != 0 {
		_ = syscall.Kill(sv.pid, syscall.SIGTERM)
	}
	s.mu.Unlock()
	kill := time.AfterFunc(stopTimeout, func() { _ = s.signalService(name, syscall.SIGKILL) })
	defer kill.Stop()
	for {
		s.mu.Lock()
		pid, changed := sv.pid, sv.changed
		s.mu.Unlock()
		if pid == 0 {
			return nil
		}
		<-changed
	}
}

func (s *supervisor) signalService(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sv := s.services[name]
	if sv == nil {
		return errNoService
	}
	if sv.pid == 0 {
		return fmt.Errorf("service %s does not run", name)
	}
	return syscall.Kill(sv.pid, sig)
}

func (s *supervisor) list() []ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []ServiceStatus
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		sv := s.services[name]
		all = append(all, ServiceStatus{Name: name, Running: sv.pid != 0, Ready: sv.pid != 0 && sv.ready, PID: sv.pid, Last: sv.last, Restarts: sv.restarts})
	}
	return all
}

var errNoService = errors.New("the host has no such service")

// logTail gives the end of a log for an error's text.
func logTail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// listen serves the control socket.
func (s *supervisor) listen(path string) error {
	_ = os.Remove(path)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return nil
}

func (s *supervisor) serve(c *net.UnixConn) {
	defer c.Close()
	var q request
	files, err := receiveMessage(c, &q)
	defer closeAll(files)
	if err != nil {
		return
	}
	var r reply
	switch q.Op {
	case "exec":
		s.exec(c, q, files)
		return
	case "start":
		err = s.startService(q.Service)
	case "stop":
		err = s.stopService(q.Service.Name)
	case "signal":
		err = s.signalService(q.Service.Name, syscall.Signal(q.Signal))
	case "list":
		r.Services = s.list()
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	if err != nil {
		r.Error, r.Missing = err.Error(), errors.Is(err, errNoService) || errors.Is(err, exec.ErrNotFound)
	}
	_ = sendMessage(c, r)
}

// exec runs a command for a caller, with the caller's own files as its
// standard ones, and kills it when the caller hangs up.
func (s *supervisor) exec(c *net.UnixConn, q request, files []*os.File) {
	if len(files) != 3 {
		_ = sendMessage(c, reply{Error: "an exec request needs three files"})
		return
	}
	attr := syscall.SysProcAttr{Setsid: true, Setctty: q.TTY, Ctty: 0}
	ended := make(chan syscall.WaitStatus, 1)
	pid, err := s.start(q.Args, s.environment(q.Env), q.Dir, files, attr, func(status syscall.WaitStatus) { ended <- status })
	if err != nil {
		missing := errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist)
		_ = sendMessage(c, reply{Error: err.Error(), Missing: missing})
		return
	}
	closeAll(files)
	hungUp := make(chan struct{})
	go func() {
		// The caller sends nothing more: whatever comes is the end.
		_, _ = c.Read(make([]byte, 1))
		close(hungUp)
	}()
	select {
	case status := <-ended:
		code := status.ExitStatus()
		if status.Signaled() {
			code = 128 + int(status.Signal())
		}
		_ = sendMessage(c, reply{Exit: code})
	case <-hungUp:
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-ended
	}
}
