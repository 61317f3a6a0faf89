//go:build lab

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/internal/powerloss"
	"github.com/drover-data/drover/lab"
)

// binary is drover as TestMain built it.
var binary string

func TestMain(m *testing.M) {
	powerloss.Main()
	if os.Getenv(dumpEnvironment) != "" {
		if err := dump(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "drover")
	build := exec.Command("go", "build", "-o", binary, "github.com/drover-data/drover/cmd/drover")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// world is a lab of one test.
type world struct {
	t      *testing.T
	lab    *lab.Lab
	binary string // what "drover" is on its hosts
}

// newWorld brings a lab up with a cluster and the small image.
func newWorld(t *testing.T, nodes int, pool string) *world {
	t.Helper()
	return newWorldOf(t, nodes, pool, binary)
}

func newWorldOf(t *testing.T, nodes int, pool, binary string) *world {
	t.Helper()
	w := newHosts(t, nodes)
	w.binary = binary
	w.cluster(lab.ClusterOptions{PoolSize: pool})
	return w
}

// newHosts brings a lab up without a cluster.
func newHosts(t *testing.T, nodes int) *world {
	t.Helper()
	name := fmt.Sprintf("e%d-%x", os.Getpid(), time.Now().UnixNano()&0xffffff)
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), name); err != nil {
			t.Errorf("lab down: %v", err)
		}
	})
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Dir: "/var/tmp/drover-" + name, Nodes: nodes, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, l, binary}
	t.Cleanup(func() {
		if t.Failed() {
			w.logs()
		}
	})
	return w
}

// cluster makes the hosts a cluster, with the small image.
func (w *world) cluster(o lab.ClusterOptions) {
	t, l := w.t, w.lab
	t.Helper()
	o.Binary, o.Verbose = w.binary, true
	nodes := len(l.Hosts())
	image, err := lab.BusyboxImage(t.Context(), "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartCluster(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := l.LoadImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if o.Apart {
		return // each has its pool
	}
	w.until("all nodes are known with their pools", func() error {
		out, err := w.try("node1", "drover", "node", "ls")
		if n := strings.Count(out, "default (ready)"); n != nodes {
			return fmt.Errorf("%d of %d pools: %v", n, nodes, err)
		}
		return nil
	})
}

// in is the same world for a part of the test.
func (w *world) in(t *testing.T) *world { return &world{t, w.lab, w.binary} }

// logs shows the end of the agents' logs of a test that failed.
func (w *world) logs() {
	for _, h := range w.lab.Hosts() {
		for _, service := range []string{"agent", "state"} {
			text, err := os.ReadFile(h.Log(service))
			if err != nil {
				w.t.Log(err)
				continue
			}
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			w.t.Logf("%s %s:\n%s", h.Name(), service, strings.Join(lines[max(0, len(lines)-150):], "\n"))
		}
	}
}

func (w *world) host(name string) *lab.Host {
	w.t.Helper()
	h, err := w.lab.Host(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// try runs a command in a host and gives everything it printed.
func (w *world) try(host string, args ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	if args[0] == "drover" {
		args = append([]string{w.binary}, args[1:]...)
	}
	var out, errs bytes.Buffer // two, because they are filled at the same time
	err := w.host(host).Run(ctx, lab.Cmd{Args: args, Stdout: &out, Stderr: &errs})
	return strings.TrimSpace(out.String() + errs.String()), err
}

// run is try for a command that must work.
func (w *world) run(host string, args ...string) string {
	w.t.Helper()
	out, err := w.try(host, args...)
	if err != nil {
		w.t.Fatalf("on %s: %s: %v\n%s", host, strings.Join(args, " "), err, out)
	}
	return out
}

// refused is try for a command that must fail, saying all of the words.
func (w *world) refused(host string, words []string, args ...string) {
	w.t.Helper()
	out, err := w.try(host, args...)
	if err == nil {
		w.t.Fatalf("on %s: %s: worked, and should be refused\n%s", host, strings.Join(args, " "), out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			w.t.Errorf("on %s: %s: does not say %q:\n%s", host, strings.Join(args, " "), word, out)
		}
	}
}

// until waits for something that comes by itself.
func (w *world) until(what string, check func() error) {
	w.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	err := errors.New("not looked yet")
	for time.Now().Before(deadline) {
		if err = check(); err == nil {
			return
		}
		select {
		case <-w.t.Context().Done():
			w.t.Fatal(w.t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	w.t.Fatalf("waited in vain until %s: %v", what, err)
}

const image = lab.BusyboxImageName

// busybox runs a command in a container that uses a volume.
func (w *world) busybox(host, volume, script string) string {
	w.t.Helper()
	return w.run(host, "docker", "run", "--rm", "--volume-driver", "drover", "-v", volume+":/d", image, "sh", "-c", script)
}

// equal compares what a command printed.
func (w *world) equal(got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Fatalf("got %q, want %q", got, want)
	}
}

// owner is the node that owns a volume, as another node knows it; "" while
// the state store does not answer.
func (w *world) owner(asked, volume string) string {
	w.t.Helper()
	out, err := w.try(asked, "drover", "volume", "ls")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == volume {
			return f[2]
		}
	}
	return ""
}
