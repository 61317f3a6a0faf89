package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover-data/drover/api"
)

// Options says what lab to make. The zero value is three hosts with Docker,
// named "lab".
type Options struct {
	// Name tells labs of one machine apart. Default "lab".
	Name string
	// Dir gets the hosts' data, in one directory each. It must lie on a file
	// system that can be the upper layer of an overlay, outside /run, /etc and
	// /var/lib. Default /var/tmp/drover-lab/NAME. Down removes what the lab made.
	Dir string
	// Nodes is the number of hosts, node1 to nodeN: 1 to 200, default 3.
	Nodes int
	// Services run in every host, besides Docker's daemon ("dockerd").
	Services []Service
	// NoDocker leaves Docker's daemon out.
	NoDocker bool
	// LiveRestore lets containers survive a restart of Docker's daemon.
	LiveRestore bool
	// DockerArgs are more arguments for Docker's daemon.
	DockerArgs []string
	// Progress is told in plain lines what happens. Default: nobody.
	Progress io.Writer
}

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Dir == "" {
		o.Dir = filepath.Join("/var/tmp/drover-lab", o.Name)
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	var problems []error
	if o.Nodes < 1 || o.Nodes > 200 {
		problems = append(problems, fmt.Errorf("%d hosts are asked for, 1 to 200 are possible", o.Nodes))
	}
	dir, err := filepath.Abs(o.Dir)
	if err == nil {
		o.Dir = dir
	}
	for _, bad := range []string{"/run", "/etc", "/var/lib", "/proc", "/sys", "/dev"} {
		if within(o.Dir, bad) {
			problems = append(problems, fmt.Errorf("the directory %s lies in %s, of which every host has its own", o.Dir, bad))
		}
	}
	if o.Dir == "/" {
		problems = append(problems, errors.New("the directory is /"))
	}
	names := map[string]bool{dockerService: true}
	for _, s := range o.Services {
		problems = append(problems, s.check())
		if names[s.Name] {
			problems = append(problems, fmt.Errorf("the service name %q is taken", s.Name))
		}
		names[s.Name] = true
	}
	if err := errors.Join(problems...); err != nil {
		return &api.Error{Kind: api.Invalid, Op: "make lab", Object: o.Name, Err: err}
	}
	return nil
}

func (s Service) check() error {
	if !labName.MatchString(s.Name) {
		return fmt.Errorf("service %q: not a valid name", s.Name)
	}
	if len(s.Args) == 0 {
		return fmt.Errorf("service %s: no command", s.Name)
	}
	if !slices.Contains([]string{"", "no", "on-failure", "always"}, s.Restart) {
		return fmt.Errorf("service %s: unknown restart policy %q; there are no, on-failure and always", s.Name, s.Restart)
	}
	return nil
}

// Lab is several hosts on this machine. Its methods may be called from
// several goroutines and processes.
type Lab struct {
	name     string
	progress io.Writer

	mu  sync.Mutex
	rec *record
}

const dockerService = "dockerd"

// Up makes a lab and returns when its hosts are up and their services ready.
// When it fails nothing is left.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	unlock, err := lock(o.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := load(o.Name); err == nil {
		return nil, &api.Error{Kind: api.Exists, Op: "make lab", Object: o.Name, Reason: "there is one of that name", Next: "use it, or remove it with drover lab down " + o.Name}
	}
	packages := []string{"nftables"}
	if !o.NoDocker {
		packages = append(packages, "docker.io", "iptables")
	}
	if err := Require(ctx, o.Progress, packages...); err != nil {
		return nil, err
	}
	l := &Lab{name: o.Name, progress: o.Progress}
	if err := l.make(ctx, o); err != nil {
		tail := ""
		if down := l.down(); down != nil {
			tail = "; cleaning up failed as well: " + down.Error()
		}
		return nil, &api.Error{Kind: kindOr(err, api.Internal), Op: "make lab", Object: o.Name, Reason: strings.TrimPrefix(tail, "; "), Err: err}
	}
	return l, nil
}

func kindOr(err error, k api.Kind) api.Kind {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) {
		return api.Canceled
	}
	return k
}

func (l *Lab) make(ctx context.Context, o Options) error {
	subnet, err := freeSubnet()
	if err != nil {
		return err
	}
	_, statErr := os.Stat(o.Dir)
	rec := &record{
		Name: o.Name, Boot: bootID(), Dir: o.Dir, MadeDir: errors.Is(statErr, os.ErrNotExist), Subnet: subnet.String(), Created: time.Now().UTC(),
		Docker: dockerRecord{Off: o.NoDocker, LiveRestore: o.LiveRestore, Args: o.DockerArgs},
	}
	for i := range o.Nodes {
		rec.Hosts = append(rec.Hosts, hostRecord{Name: fmt.Sprintf("node%d", i+1), Address: hostAddress(subnet, i+1), Services: o.Services})
	}
	l.rec = rec
	if err := os.MkdirAll(rec.runDir(), 0o700); err != nil {
		return err
	}
	if err := rec.save(); err != nil {
		return err
	}
	for i := range rec.Hosts {
		for _, dir := range []string{rec.hostRun(rec.Hosts[i].Name), rec.hostDir(rec.Hosts[i].Name)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
	}
	if err := l.startSwitch(); err != nil {
		return err
	}
	errs := make([]error, len(rec.Hosts))
	var wg sync.WaitGroup
	for i := range rec.Hosts {
		wg.Go(func() { errs[i] = l.powerOn(ctx, rec.Hosts[i].Name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Open gives a lab that is there.
func Open(name string) (*Lab, error) {
	if name == "" {
		name = "lab"
	}
	rec, err := load(name)
	if err != nil {
		return nil, err
	}
	if rec.Boot != bootID() {
		return nil, &api.Error{Kind: api.Unavailable, Op: "open lab", Object: name, Reason: "the machine was started anew since it was made", Next: "remove it with drover lab down " + name}
	}
	return &Lab{name: name, progress: io.Discard, rec: rec}, nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.name }

// Dir is where the hosts' data lies.
func (l *Lab) Dir() string { return l.snapshot().Dir }

// Hosts gives all hosts in order.
func (l *Lab) Hosts() []*Host {
	var hosts []*Host
	for _, h := range l.snapshot().Hosts {
		hosts = append(hosts, &Host{lab: l, name: h.Name, address: h.Address})
	}
	return hosts
}

// Host gives one by name, "node1" for instance.
func (l *Lab) Host(name string) (*Host, error) {
	for _, h := range l.Hosts() {
		if h.name == name {
			return h, nil
		}
	}
	return nil, &api.Error{Kind: api.NotFound, Op: "find host", Object: name, Reason: "lab " + l.name + " has no such host", Next: "see drover lab ls"}
}

func (l *Lab) snapshot() record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := *l.rec
	r.Hosts = slices.Clone(r.Hosts)
	return r
}

// change changes the state file; l.rec follows it.
func (l *Lab) change(f func(*record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.rec)
	return l.rec.save()
}

// reload reads what another process may have changed. The caller holds the
// lab's lock.
func (l *Lab) reload() error {
	rec, err := load(l.name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec = rec
	return nil
}

// startHolder starts a holder, which waits for its configuration. recorded is
// called with its identity first: only what is written down may go on.
func startHolder(part string, flags uintptr, cgroup string, recorded func(process) error) (*holder, error) {
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdinR.Close(), stdinW.Close())
	}
	cmd := exec.Command("/proc/self/exe", HostCommand, part)
	cmd.Env = []string{"PATH=" + binDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2"}
	cmd.Dir = "/"
	cmd.Stdin = stdinR
	cmd.ExtraFiles = []*os.File{reportW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: flags}
	err = cmd.Start()
	_ = stdinR.Close()
	_ = reportW.Close()
	h := &holder{in: stdinW, report: reportR}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("start the holder of a %s: %w", part, err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while this process lives
	h.pid = cmd.Process.Pid
	proc, err := identify(h.pid)
	if err == nil {
		err = recorded(proc)
	}
	if err == nil {
		err = joinCgroup(cgroup, h.pid)
	}
	if err != nil {
		h.close() // the holder ends by itself
		return nil, err
	}
	return h, nil
}

type holder struct {
	pid    int
	in     *os.File
	report *os.File
}

func (h *holder) close() {
	_ = h.in.Close()
	_ = h.report.Close()
}

// begin sends the configuration and waits for the report.
func (h *holder) begin(ctx context.Context, c holderConfig) error {
	defer h.close()
	if err := json.NewEncoder(h.in).Encode(c); err != nil {
		return err
	}
	_ = h.in.Close()
	stop := context.AfterFunc(ctx, func() { _ = h.report.SetReadDeadline(time.Now()) })
	defer stop()
	out, err := io.ReadAll(bufio.NewReader(h.report))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if text := strings.TrimSpace(string(out)); err != nil || text != "ok" {
		if text == "" {
			text = "it ended without a word"
		}
		return errors.Join(errors.New(text), err)
	}
	return nil
}

func (l *Lab) startSwitch() error {
	rec := l.snapshot()
	h, err := startHolder("switch", syscall.CLONE_NEWNET, rec.cgroup()+"/switch", func(p process) error {
		return l.change(func(r *record) { r.Switch = p })
	})
	if err != nil {
		return err
	}
	if err := h.begin(context.Background(), holderConfig{Lab: l.name}); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	return nil
}

const hostFlags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// powerOn starts a host that is off. The caller holds the lab's lock.
func (l *Lab) powerOn(ctx context.Context, name string) error {
	rec := l.snapshot()
	host := rec.host(name)
	if host == nil {
		return fmt.Errorf("no host %s", name)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h, err := startHolder("host", hostFlags, rec.cgroup()+"/"+name+"/host", func(p process) error {
		return l.change(func(r *record) { r.host(name).Holder = p })
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	prefix, err := plug(rec.Switch.PID, h.pid, name, host.Address, rec.Subnet)
	if err != nil {
		h.close()
		return fmt.Errorf("%s: %w", name, err)
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	for _, other := range rec.Hosts {
		fmt.Fprintf(&hosts, "%s %s\n", other.Address, other.Name)
	}
	cfg := holderConfig{
		Lab: l.name, Name: name, Address: host.Address + prefix, Dir: rec.hostDir(name), Run: rec.hostRun(name),
		Keep: []string{rec.Dir, self}, Hosts: hosts.String(), Services: hostServices(&rec, host),
	}
	if err := h.begin(ctx, cfg); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(l.progress, "%s is up at %s\n", name, host.Address)
	return nil
}

// hostServices puts a host's services in the order of their start.
func hostServices(rec *record, host *hostRecord) []Service {
	var before, after []Service
	for _, s := range host.Services {
		if s.BeforeDocker {
			before = append(before, s)
		} else {
			after = append(after, s)
		}
	}
	if !rec.Docker.Off {
		before = append(before, dockerd(rec, host.Name))
	}
	return append(before, after...)
}

func dockerd(rec *record, host string) Service {
	args := []string{
		"dockerd", "--data-root=/var/lib/docker", "--exec-root=/run/docker", "--pidfile=/run/docker.pid",
		"--host=unix:///run/docker.sock", "--host=unix://" + filepath.Join(rec.hostRun(host), "docker.sock"),
		"--cgroup-parent=/" + rec.cgroup() + "/" + host + "/docker", "--exec-opt=native.cgroupdriver=cgroupfs",
		"--shutdown-timeout=5",
	}
	if rec.Docker.LiveRestore {
		args = append(args, "--live-restore")
	}
	return Service{Name: dockerService, Args: append(args, rec.Docker.Args...), Restart: "always", Notify: true, Files: 1 << 20}
}
