//go:build lab

package docker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

func TestAgainstDocker(t *testing.T) {
	name := fmt.Sprintf("p%d", os.Getpid())
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Dir: "/var/tmp/drover-test-" + name, Nodes: 1, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	image, err := lab.BusyboxImage(t.Context(), "", t.Output())
	if err == nil {
		err = l.LoadImage(t.Context(), image)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := l.Hosts()[0]
	v := newMemoryVolumes(filepath.Join(h.Dir(), "volumes"))
	listener, err := Listen(fmt.Sprintf("/proc/%d/root/run/docker/plugins/drover.sock", h.PID()))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: New(v)}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })

	docker := func(args ...string) string {
		t.Helper()
		out, err := h.Docker(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := h.Docker(t.Context(), args...)
		var exit *lab.ExitError
		if !errors.As(err, &exit) || !strings.Contains(exit.Output, want) {
			t.Errorf("docker %v: %s %v, want %q", args, out, err, want)
		}
	}
	mounted := func(name string) int {
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.mounts[name])
	}
	count := func(call string) int {
		v.mu.Lock()
		defer v.mu.Unlock()
		n := 0
		for _, c := range v.calls {
			if c == call {
				n++
			}
		}
		return n
	}
	equal := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}

	docker("volume", "create", "-d", "drover", "-o", "size=1G", "-o", "label.team=db", "pg")
	equal("size", v.all["pg"].Size, int64(1<<30))
	refused(`option "sise" is unknown (valid options are size=10G`, "volume", "create", "-d", "drover", "-o", "sise=1G", "x")
	equal("inspect", docker("volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{.Scope}} {{.Status.size}}", "pg"), "pg drover global 1.073741824e+09")
	equal("ls", docker("volume", "ls", "-q", "-f", "driver=drover"), "pg")

	docker("run", "--rm", "--volume-driver", "drover", "-v", "pg:/data", lab.BusyboxImageName, "sh", "-c", "echo hello >/data/f")
	equal("mounts after a run", mounted("pg"), 0)
	equal("content", docker("run", "--rm", "-v", "pg:/data", lab.BusyboxImageName, "cat", "/data/f"), "hello")
	docker("run", "--rm", "--volume-driver", "drover", "-v", "pg@feature:/data", lab.BusyboxImageName, "touch", "/data/x")
	refused("volume pg has no branch typo (its branches are main, feature)", "run", "--rm", "--volume-driver", "drover", "-v", "pg@typo:/data", lab.BusyboxImageName, "true")
	equal("twins", docker("volume", "ls", "-q", "-f", "driver=local"), "")

	// Two users at once have two ids; copying mounts as well.
	before := count("Mount pg")
	docker("run", "-d", "--name", "user-a", "-v", "pg:/data", lab.BusyboxImageName, "sleep", "1000")
	docker("run", "-d", "--name", "user-b", "-v", "pg:/data", lab.BusyboxImageName, "sleep", "1000")
	equal("mounts with two users", mounted("pg"), 2)
	docker("create", "--name", "user-c", "-v", "pg:/data", lab.BusyboxImageName, "true")
	docker("cp", "user-c:/data/f", "/tmp/copied-"+name)
	t.Cleanup(func() { _ = os.Remove("/tmp/copied-" + name) })
	if n := count("Mount pg") - before; n < 3 {
		t.Errorf("docker cp made no Mount of its own: %d", n)
	}
	equal("mounts after docker cp", mounted("pg"), 2)
	refused("volume is in use", "volume", "rm", "pg")

	// A crash of the daemon: containers are lost without live-restore, the
	// ids stay until somebody reconciles them.
	if err := h.Kill(t.Context(), "dockerd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, err := h.Docker(t.Context(), "info"); err != nil; _, err = h.Docker(t.Context(), "info") {
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 100000})
	}
	docker("rm", "-f", "user-a", "user-b", "user-c")

	v.mu.Lock()
	v.fail = &api.Error{Kind: api.InUse, Op: "mount volume", Object: "pg", Reason: "it is used on node2 by container shop-db", Next: "move it with its users: drover volume move pg node1 --with-users"}
	v.mu.Unlock()
	refused("mount volume pg: it is used on node2 by container shop-db (move it with its users: drover volume move pg node1 --with-users)", "run", "--rm", "-v", "pg:/data", lab.BusyboxImageName, "true")
	docker("container", "prune", "-f")
	docker("volume", "rm", "pg", "pg@feature")
	equal("ls after rm", docker("volume", "ls", "-q"), "")
	v.mu.Lock()
	defer v.mu.Unlock()
	if !slices.Contains(v.calls, "Remove pg") {
		t.Error("Docker sent no Remove")
	}
}
