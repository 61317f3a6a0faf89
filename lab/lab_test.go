//go:build lab

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"github.com/drover-data/drover/api"
)

// up makes a lab for a test. Its directory is not t.TempDir's, which may be a
// tmpfs or too deep.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	o.Name = name(t)
	o.Dir = "/var/tmp/drover-test-" + o.Name
	o.Progress = t.Output()
	t.Cleanup(func() {
		if err := Down(context.Background(), o.Name); err != nil {
			t.Errorf("down: %v", err)
		}
		nothingLeft(t, o.Name, o.Dir)
	})
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func name(t *testing.T) string { return fmt.Sprintf("t%d-%x", os.Getpid(), len(t.Name())) }

func must(t *testing.T) func(string, error) string {
	return func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestThreeHosts(t *testing.T) {
	service := Service{Name: "beat", Args: []string{"sh", "-c", "echo $WHO ${NODE}; exec sleep 1000"}, Env: []string{"WHO=${LAB}"}, Restart: "always"}
	l := up(t, Options{Nodes: 3, Services: []Service{service}})
	ctx, ok := t.Context(), must(t)
	image := ok(BusyboxImage(ctx, "", t.Output()))
	if err := l.LoadImage(ctx, image); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		for _, peer := range l.Hosts() {
			ok(h.Exec(ctx, "busybox", "ping", "-c1", "-W2", peer.Name()))
		}
		if got := ok(h.Docker(ctx, "run", "--rm", BusyboxImageName, "hostname")); got == h.Name() || got == "" {
			t.Errorf("a container's host name is %q", got)
		}
		if got := ok(h.Exec(ctx, "hostname")); got != h.Name() {
			t.Errorf("%s calls itself %q", h.Name(), got)
		}
		log, err := os.ReadFile(h.Log("beat"))
		if want := l.Name() + " " + h.Name() + "\n"; err != nil || string(log) != want {
			t.Errorf("the service's log is %q (%v), want %q", log, err, want)
		}
	}
	t.Run("containers reach each other's published ports", func(t *testing.T) { containerNetwork(t, l) })
	t.Run("services", func(t *testing.T) { services(t, l.Hosts()[0]) })
	t.Run("power", func(t *testing.T) { power(t, l) })
	t.Run("partition", func(t *testing.T) { partition(t, l) })
	t.Run("exec", func(t *testing.T) { execution(t, l.Hosts()[0]) })
}

func containerNetwork(t *testing.T, l *Lab) {
	ctx, ok := t.Context(), must(t)
	a, b := l.Hosts()[0], l.Hosts()[1]
	ok(a.Docker(ctx, "run", "-d", "--name", "web", "-p", "8080:80", BusyboxImageName, "sh", "-c", "mkdir /www && echo hello >/www/index.html && httpd -f -h /www"))
	// Not with busybox: Debian's static wget ends with a segmentation fault.
	get := `exec 3<>/dev/tcp/` + a.Address() + `/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && tail -n1 <&3`
	got := ok(b.Exec(ctx, "bash", "-c", "for i in 1 2 3 4 5 6 7 8 9; do ( "+get+" ) && exit 0; sleep 0.2; done; exit 1"))
	if got != "hello" {
		t.Errorf("got %q", got)
	}
	ok(a.Docker(ctx, "rm", "-f", "web"))
}

func services(t *testing.T, h *Host) {
	ctx := t.Context()
	find := func(name string) ServiceStatus {
		all, err := h.Services(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Name == name {
				return s
			}
		}
		t.Fatalf("no service %s in %v", name, all)
		return ServiceStatus{}
	}
	if err := h.Kill(ctx, "dockerd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// A second start waits until the one that restarts by itself is ready or
	// says that it runs already; either way it is back.
	for {
		if s := find("dockerd"); s.Ready && s.Restarts == 1 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 20000})
	}
	must(t)(h.Docker(ctx, "info"))
	if err := h.StopService(ctx, "beat"); err != nil {
		t.Fatal(err)
	}
	if find("beat").Running {
		t.Error("a stopped service runs")
	}
	if err := h.StartService(ctx, Service{Name: "beat"}); err != nil || !find("beat").Running {
		t.Errorf("start: %v", err)
	}
	if err := h.StartService(ctx, Service{Name: "nobody"}); !api.Is(err, api.NotFound) {
		t.Errorf("an unknown service: %v", err)
	}
}

func power(t *testing.T, l *Lab) {
	ctx, ok := t.Context(), must(t)
	h := l.Hosts()[1]
	ok(h.Docker(ctx, "run", "-d", "--name", "always", "--restart=always", BusyboxImageName, "sleep", "1000"))
	ok(h.Exec(ctx, "sh", "-c", "truncate -s 64M "+h.Dir()+"/pool.img && mkfs.ext4 -q "+h.Dir()+"/pool.img && mkdir -p /mnt/pool && mount -o loop "+h.Dir()+"/pool.img /mnt/pool && echo kept >/var/lib/kept"))
	if err := h.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.PowerOff(ctx); err != nil {
		t.Fatalf("again: %v", err)
	}
	if h.On() {
		t.Fatal("it is on")
	}
	if left, err := detachLoops(h.Dir()); err != nil || len(left) > 0 {
		t.Fatalf("loop devices outlive the power: %v %v", left, err)
	}
	if _, err := h.Exec(ctx, "true"); !api.Is(err, api.Unavailable) {
		t.Fatalf("a command in a host that is off: %v", err)
	}
	if _, err := l.Hosts()[0].Exec(ctx, "busybox", "ping", "-c1", "-W1", h.Address()); err == nil {
		t.Fatal("a host that is off answers")
	}
	if err := h.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	ok(l.Hosts()[0].Exec(ctx, "busybox", "ping", "-c1", "-W2", h.Address()))
	if got := ok(h.Docker(ctx, "inspect", "-f", "{{.State.Running}}", "always")); got != "true" {
		t.Errorf("the container with restart=always runs: %s", got)
	}
	if got := ok(h.Exec(ctx, "cat", "/var/lib/kept")); got != "kept" {
		t.Errorf("/var/lib forgot: %q", got)
	}
}

func partition(t *testing.T, l *Lab) {
	ctx, ok := t.Context(), must(t)
	a, b, c := l.Hosts()[0], l.Hosts()[1], l.Hosts()[2]
	ok(a.Docker(ctx, "run", "--rm", BusyboxImageName, "ping", "-c1", "-W2", b.Address()))
	for range 2 { // repeating changes nothing
		if err := l.Partition(ctx, a.Name(), b.Name()); err != nil {
			t.Fatal(err)
		}
	}
	for _, pair := range [][2]*Host{{a, b}, {b, a}} {
		if _, err := pair[0].Exec(ctx, "busybox", "ping", "-c1", "-W1", pair[1].Address()); err == nil {
			t.Errorf("%s reaches %s", pair[0].Name(), pair[1].Name())
		}
		ok(pair[0].Exec(ctx, "busybox", "ping", "-c1", "-W2", c.Address()))
	}
	if out, err := a.Docker(ctx, "run", "--rm", BusyboxImageName, "ping", "-c1", "-W1", b.Address()); err == nil {
		t.Errorf("a container crosses the partition: %s", out)
	}
	for range 2 {
		if err := l.Heal(ctx, a.Name(), b.Name()); err != nil {
			t.Fatal(err)
		}
	}
	ok(a.Exec(ctx, "busybox", "ping", "-c1", "-W2", b.Address()))
}

func execution(t *testing.T, h *Host) {
	var out strings.Builder
	err := h.Run(t.Context(), Cmd{Args: []string{"sh", "-c", "cat; echo $X >&2; exit 7"}, Env: []string{"X=err"}, Stdin: strings.NewReader("in"), Stdout: &out})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 7 || exit.Output != "err" || out.String() != "in" {
		t.Errorf("got %v, output %q", err, out.String())
	}
	if _, err := h.Exec(t.Context(), "no-such-command"); !api.Is(err, api.NotFound) {
		t.Errorf("a missing command: %v", err)
	}
	// Canceling ends the command in the host.
	ctx, cancel := context.WithCancel(t.Context())
	r, w, _ := os.Pipe()
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, Cmd{Args: []string{"sh", "-c", "echo on; exec sleep 9876"}, Stdout: w}) }()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !api.Is(err, api.Canceled) {
		t.Errorf("got %v", err)
	}
	_ = w.Close()
	_, _ = r.Read(make([]byte, 1)) // returns when the killed command's end is closed
	_ = r.Close()
	if out, _ := h.Exec(t.Context(), "busybox", "pgrep", "-f", "sleep 9876"); out != "" {
		t.Errorf("the command goes on: %s", out)
	}
}

func TestDownAfterTheMakerWasKilled(t *testing.T) {
	lab, dir := name(t), "/var/tmp/drover-test-"+name(t)
	t.Cleanup(func() { _ = Down(context.Background(), lab) })
	cmd := exec.Command("/proc/self/exe", makerCommand, lab, dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%q %v", line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	l, err := Open(lab)
	if err != nil {
		t.Fatal(err)
	}
	h := l.Hosts()[0]
	must(t)(h.Docker(t.Context(), "info")) // it lives on
	if err := h.Run(t.Context(), Cmd{Args: []string{"sh", "-c", "truncate -s 64M " + h.Dir() + "/x.img; losetup -f " + h.Dir() + "/x.img"}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Down(t.Context(), lab); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, lab, dir)
	}
}

func TestKilledAtAnyMoment(t *testing.T) {
	// The maker is killed while it makes the lab, at moments that differ from
	// run to run: whatever was made, Down removes it.
	for i := range 6 {
		lab := fmt.Sprintf("%s-%d", name(t), i)
		dir := "/var/tmp/drover-test-" + lab
		cmd := exec.Command("/proc/self/exe", makerCommand, lab, dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: int64(20000 + i*40000)})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := Down(t.Context(), lab); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, lab, dir)
	}
}

// nothingLeft looks for everything a lab consists of.
func nothingLeft(t *testing.T, lab, dir string) {
	t.Helper()
	for _, path := range []string{dir, filepath.Join(runRoot, lab)} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if within(m.Mountpoint, dir) || within(m.Mountpoint, filepath.Join(runRoot, lab)) {
			t.Errorf("mount %s is left", m.Mountpoint)
		}
	}
	points, _ := hierarchies()
	for _, p := range points {
		if left, _ := filepath.Glob(filepath.Join(p, "drover-lab-"+lab)); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	if left, err := detachLoops(dir); err != nil || len(left) > 0 {
		t.Errorf("loop devices are left: %v %v", left, err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		env, _ := os.ReadFile(p + "/environ")
		line, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(env), "DROVER_LAB="+lab+"\x00") || strings.Contains(string(line), runRoot+"/"+lab+"/") {
			t.Errorf("process %s is left: %q", p, line)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "node") || l.Attrs().Name == bridgeName {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
}
