//go:build root && long

package packaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover-data/drover/lab"
)

// debian is what the machine of the test is made of.
const debian = "systemd,systemd-sysv,dbus,docker.io,iptables,btrfs-progs,udev,iproute2,procps,ca-certificates,kmod"

// machine is a Debian with systemd as its init, in namespaces of its own.
type machine struct {
	t    *testing.T
	root string
	name string
	cmd  *exec.Cmd
	init int // systemd's process id outside
}

// newMachine unpacks a Debian and gives it, switched off. The Debian is kept between runs.
func newMachine(t *testing.T) *machine {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(cache, "drover", "debian-systemd-1.tar")
	if _, err := os.Stat(tar); errors.Is(err, fs.ErrNotExist) {
		makeDebian(t, tar)
	}
	// Not below the tests' own directory: Docker wants no tmpfs below its data.
	root, err := os.MkdirTemp("/var/tmp", "drover-systemd-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: root, name: filepath.Base(root)}
	t.Cleanup(m.remove)
	command(t, "tar", "-C", root, "-xf", tar)
	return m
}

func makeDebian(t *testing.T, tar string) {
	t.Helper()
	var sources bytes.Buffer
	files, err := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	if err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob("/etc/apt/sources.list*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, lists...) {
		if text, err := os.ReadFile(f); err == nil {
			sources.Write(append(text, "\n\n"...))
		}
	}
	if err := os.MkdirAll(filepath.Dir(tar), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := strings.TrimSuffix(tar, ".tar") + ".new.tar"
	cmd := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--include="+debian, "bookworm", tmp, "-")
	cmd.Stdin = &sources
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	if err := os.Rename(tmp, tar); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// boot switches the machine on and waits until systemd has started everything.
func (m *machine) boot() {
	m.t.Helper()
	m.cmd = exec.Command("testdata/boot.sh", m.root, m.name)
	var out bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &out, &out
	m.cmd.WaitDelay = 5 * time.Second
	// What the test starts ends with it, whatever happens to it.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("systemd runs", func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.cmd.Process.Pid, m.cmd.Process.Pid))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		if m.init, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.init)); err != nil || !strings.HasPrefix(string(line), "/sbin/init") {
			return fmt.Errorf("%q, %w", line, err)
		}
		_, err = m.try("systemctl", "is-active", "multi-user.target")
		return err
	})
}

// reboot shuts the machine down in order and boots it again.
func (m *machine) reboot() {
	m.t.Helper()
	_, _ = m.try("systemctl", "reboot") // it may not live to answer
	done := make(chan error, 1)
	go func() { done <- m.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		m.t.Fatal("it does not shut down")
	}
	m.cmd = nil
	m.boot()
}

// remove switches it off and removes all of it.
func (m *machine) remove() {
	if m.cmd != nil {
		_ = syscall.Kill(m.init, syscall.SIGKILL)
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	}
	// Cgroups go from the innermost on, once the last process has gone.
	for range 50 {
		var dirs []string
		for _, top := range append([]string{"/sys/fs/cgroup/" + m.name}, glob("/sys/fs/cgroup/*/"+m.name)...) {
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
		}
		for _, dir := range slices.Backward(dirs) {
			_ = os.Remove(dir)
		}
		if len(dirs) == 0 && os.RemoveAll(m.root) == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.t.Errorf("%s is not gone", m.root)
}

func glob(pattern string) []string {
	list, _ := filepath.Glob(pattern)
	return list
}

// try runs a command in the machine.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	args = append([]string{"-t", strconv.Itoa(m.init), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}, args...)
	out, err := exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (m *machine) until(what string, check func() error) {
	m.t.Helper()
	var err error
	for range 900 {
		if err = check(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.t.Fatalf("waited in vain until %s: %v", what, err)
}

// show gives a property of a unit.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "-P", property, unit)
}

func (m *machine) number(unit, property string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.show(unit, property))
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// install copies a package into the machine and installs it.
func (m *machine) install(deb string) {
	m.t.Helper()
	command(m.t, "cp", deb, filepath.Join(m.root, "root", "drover.deb"))
	m.run("dpkg", "-i", "/root/drover.deb")
}

// purge removes the package and looks for what it leaves.
func (m *machine) purge() {
	m.t.Helper()
	m.run("dpkg", "--purge", "drover")
	if out, err := m.try("systemctl", "list-unit-files", "drover*", "--no-legend"); err == nil && out != "" {
		m.t.Errorf("units are left:\n%s", out)
	}
	if out, err := m.try("pgrep", "-a", "-x", "drover"); err == nil {
		m.t.Errorf("it still runs: %s", out)
	}
	if out, err := m.try("sh", "-c", "ls /usr/bin/drover /usr/lib/systemd/system/drover* /etc/systemd/system/*/drover* 2>/dev/null"); err == nil || out != "" {
		m.t.Errorf("files are left:\n%s", out)
	}
	if out := m.run("ls", "/var/lib/drover/pools/default.img"); out == "" {
		m.t.Error("the volumes are gone")
	}
}

// packages builds the Debian package of this tree in two versions.
func packages(t *testing.T, versions ...string) (debs []string) {
	t.Helper()
	tmp := t.TempDir()
	nfpm := filepath.Join(tmp, "nfpm")
	command(t, "go", "build", "-C", "../tools", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	for _, v := range versions {
		binary, out := filepath.Join(tmp, v, "drover"), filepath.Join(tmp, v, "deb")
		command(t, "go", "build", "-buildvcs=false", "-ldflags", "-X main.version="+v, "-o", binary, "github.com/drover-data/drover/cmd/drover")
		command(t, "../../packaging/deb.sh", binary, nfpm, v, "amd64", out)
		debs = append(debs, glob(out+"/*.deb")...)
	}
	if len(debs) != len(versions) {
		t.Fatalf("built %v", debs)
	}
	return debs
}

const counting = "i=0; while :; do i=$((i+1)); echo $i >>/d/numbers; sleep 0.1; done"

// TestDebianUnderSystemd installs the package in a Debian with systemd and
// Docker, and lives with it: init, restart, upgrade, reboot, purge.
func TestDebianUnderSystemd(t *testing.T) {
	image, err := lab.BusyboxImage(t.Context(), "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	debs := packages(t, "v1.0.0", "v1.1.0")
	m := newMachine(t)
	m.boot()
	const agent, state, docker = "drover-agent.service", "drover-state.service", "docker.service"
	active := func(unit string) func() error {
		return func() error { _, err := m.try("systemctl", "is-active", unit); return err }
	}
	m.until("Docker runs", active(docker))

	m.install(debs[0])
	for _, unit := range []string{agent, state} {
		if got, _ := m.try("systemctl", "is-enabled", unit); got != "disabled" {
			t.Errorf("before the host belongs to a cluster, %s is %s", unit, got)
		}
	}
	out := m.run("drover", "init", "--name", "debian", "--advertise", "10.98.0.1", "--pool-size", "512M")
	if !strings.Contains(out, "ready") {
		t.Errorf("drover init says:\n%s", out)
	}
	for _, unit := range []string{agent, state} {
		if got := m.run("systemctl", "is-enabled", unit) + " " + m.run("systemctl", "is-active", unit); got != "enabled active" {
			t.Errorf("after drover init, %s is %s", unit, got)
		}
	}
	if got := m.run("stat", "-c", "%G %a", "/run/drover/drover.sock"); got != "drover 660" {
		t.Errorf("the API's socket is of %s", got)
	}
	command(t, "cp", image, filepath.Join(m.root, "root", "image.tar"))
	m.run("docker", "load", "-q", "-i", "/root/image.tar")
	m.run("docker", "run", "-d", "--name", "app", "--restart", "always", "--volume-driver", "drover", "-v", "vol:/d", lab.BusyboxImageName, "sh", "-c", counting)
	numbers := func() int {
		t.Helper()
		return strings.Count(m.run("docker", "exec", "app", "cat", "/d/numbers"), "\n")
	}
	started := func() string {
		return m.run("docker", "inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", "app")
	}
	first := started()
	// goesOn checks that the same container goes on writing to the same volume.
	goesOn := func() {
		t.Helper()
		before := numbers()
		m.until("the container writes on", func() error {
			if numbers() <= before {
				return errors.New("it does not")
			}
			return nil
		})
		if now := started(); now != first {
			t.Errorf("the container was started anew: %s, before %s", now, first)
		}
		m.until("the volume can be looked at", func() error {
			out, err := m.try("drover", "volume", "inspect", "vol")
			if err != nil || !strings.Contains(out, "container app") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	goesOn()

	pids := func() [3]int {
		return [3]int{m.number(agent, "MainPID"), m.number(state, "MainPID"), m.number(docker, "MainPID")}
	}
	before := pids()
	m.run("systemctl", "restart", agent)
	if now := pids(); now[0] == before[0] || now[1] != before[1] || now[2] != before[2] {
		t.Errorf("restarting the agent: processes of agent, state and Docker were %v, are %v", before, now)
	}
	goesOn()

	before = pids()
	m.install(debs[1])
	m.until("the new version answers", func() error {
		if out, err := m.try("drover", "status"); err != nil || !strings.Contains(out, "v1.1.0") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if now := pids(); now[0] == before[0] || now[1] == before[1] || now[2] != before[2] {
		t.Errorf("the upgrade: processes of agent, state and Docker were %v, are %v", before, now)
	}
	goesOn()

	kept := numbers()
	m.reboot()
	m.until("Docker runs", active(docker))
	ready, begun := m.number(agent, "ActiveEnterTimestampMonotonic"), m.number(docker, "ExecMainStartTimestampMonotonic")
	if ready == 0 || begun < ready {
		t.Errorf("Docker was begun at %d µs, the agent was ready at %d", begun, ready)
	}
	m.until("the container runs again", func() error {
		out, err := m.try("docker", "inspect", "-f", "{{.State.Running}}", "app")
		if err != nil || out != "true" {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if n := numbers(); n < kept {
		t.Errorf("%d of %d lines are there after the reboot", n, kept)
	}
	first = started()
	goesOn()

	m.purge()
	if n := numbers(); n == 0 {
		t.Error("the container lost its volume")
	}
}
