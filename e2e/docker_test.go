//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// A volume is usable on any host, moves where its container starts, and is
// refused where that would take it from somebody.
func TestVolumeFollowsContainer(t *testing.T) {
	w := newWorld(t, 3, "2G")
	w.run("node1", "docker", "volume", "create", "-d", "drover", "vol", "-o", "size=1G")
	w.busybox("node1", "vol", "echo hello > /d/f")
	w.equal(w.busybox("node2", "vol", "cat /d/f"), "hello")
	w.equal(w.owner("node3", "vol"), "node2")

	t.Run("used elsewhere", func(t *testing.T) {
		w := w.in(t)
		w.run("node2", "docker", "run", "-d", "--name", "holder", "--volume-driver", "drover", "-v", "vol:/d", image, "sleep", "1000")
		w.refused("node3", []string{"used on node2", "holder", "drover volume move vol node3"}, "docker", "run", "--rm", "-v", "vol:/d", image, "true")
		w.refused("node1", []string{"used on node2", "holder"}, "docker", "volume", "rm", "vol")
		w.refused("node1", []string{"used by container holder"}, "drover", "volume", "move", "vol", "node1", "--refuse-users")
		w.equal(w.owner("node1", "vol"), "node2")
	})
	t.Run("unknown names and options", func(t *testing.T) {
		w := w.in(t)
		w.refused("node3", []string{"no branch"}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "vol@typo:/d", image, "true")
		w.refused("node3", []string{`"sizes"`, "valid options"}, "docker", "volume", "create", "-d", "drover", "x", "-o", "sizes=1G")
		w.refused("node3", []string{"already on node2"}, "drover", "volume", "move", "vol", "node2")
		w.refused("node3", []string{"nowhere"}, "drover", "volume", "move", "vol", "nowhere")
		if out := w.run("node3", "docker", "volume", "ls", "-q", "-f", "driver=local"); out != "" {
			t.Errorf("Docker made volumes of its own: %s", out)
		}
	})
	t.Run("move with its container", func(t *testing.T) {
		w := w.in(t)
		out := w.run("node1", "drover", "volume", "move", "vol", "node3", "--stop-timeout", "1s")
		if !strings.Contains(out, "vol is on node3") {
			t.Error(out)
		}
		w.until("the container runs on node3", func() error {
			if out, err := w.try("node3", "docker", "inspect", "-f", "{{.State.Running}}", "holder"); err != nil || out != "true" {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		w.equal(w.run("node3", "docker", "exec", "holder", "cat", "/d/f"), "hello")
		w.equal(w.run("node2", "docker", "inspect", "-f", "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}", "holder"), "false no")
		// The original does not pull the volume back, not even once the other has stopped.
		w.run("node3", "docker", "stop", "-t", "0", "holder")
		w.refused("node2", []string{"moved to node3", "holder"}, "docker", "start", "holder")
		w.run("node2", "docker", "rm", "holder")
		w.equal(w.busybox("node2", "vol", "cat /d/f"), "hello")
		w.run("node3", "docker", "rm", "holder")
	})
	t.Run("delete and restore", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "docker", "volume", "rm", "vol")
		w.refused("node1", []string{"no volume of that name"}, "drover", "volume", "inspect", "vol")
		w.run("node1", "drover", "volume", "create", "vol") // the name is free at once
		w.refused("node1", []string{"exists"}, "drover", "volume", "restore", "vol")
		w.run("node1", "drover", "volume", "restore", "vol", "--as", "old")
		w.equal(w.busybox("node3", "old", "cat /d/f"), "hello")
		w.run("node3", "drover", "volume", "rm", "old")
		w.refused("node3", []string{"cannot be undone"}, "drover", "volume", "purge", "old")
		w.run("node3", "drover", "volume", "purge", "old", "--yes")
		w.until("nothing is left of it", func() error {
			if out, err := w.try("node3", "drover", "volume", "ls", "--deleted", "-q"); err != nil || out != "" {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
	})
	t.Run("copy", func(t *testing.T) {
		w := w.in(t)
		w.busybox("node1", "vol", "echo one > /d/f")
		w.run("node1", "drover", "volume", "create", "twin", "--from", "vol")
		w.busybox("node1", "vol", "echo two > /d/f")
		w.equal(w.busybox("node2", "twin", "cat /d/f"), "one")
		w.equal(w.busybox("node3", "vol", "cat /d/f"), "two")
	})
}

// What runs goes on through a restart of the agent, of Docker, of the host.
func TestRestarts(t *testing.T) {
	w := newWorld(t, 3, "2G")
	w.run("node2", "docker", "run", "-d", "--name", "app", "--restart", "always", "--volume-driver", "drover", "-v", "vol:/d", image,
		"sh", "-c", "while true; do date +%s%N >> /d/log; sleep 0.05; done")
	lines := func() int {
		t.Helper()
		n := 0
		if _, err := fmt.Sscan(w.run("node2", "docker", "exec", "app", "sh", "-c", "wc -l < /d/log"), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	grows := func(what string) {
		t.Helper()
		before := 0
		w.until(what+": the container answers", func() error {
			out, err := w.try("node2", "docker", "exec", "app", "sh", "-c", "wc -l < /d/log")
			if err == nil {
				_, err = fmt.Sscan(out, &before)
			}
			return err
		})
		w.until(what+": the container writes", func() error {
			if lines() <= before {
				return errors.New("no new lines")
			}
			return nil
		})
	}
	grows("begin")

	t.Run("agent killed", func(t *testing.T) {
		w := w.in(t)
		if err := w.host("node2").Kill(t.Context(), "agent", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		grows("agent killed")
		w.until("the agent answers again", func() error { _, err := w.try("node2", "drover", "status"); return err })
		w.refused("node1", []string{"used on node2", "app"}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "vol:/d", image, "true")
		w.run("node2", "docker", "restart", "-t", "0", "app")
		grows("container restarted")
	})
	t.Run("Docker killed", func(t *testing.T) {
		w := w.in(t)
		if err := w.host("node2").Kill(t.Context(), "dockerd", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.until("Docker answers", func() error { _, err := w.try("node2", "docker", "info"); return err })
		grows("Docker killed")
	})
	t.Run("host rebooted", func(t *testing.T) {
		w := w.in(t)
		before := lines()
		if err := w.host("node2").PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.refused("node1", []string{"node2", "does not answer"}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "vol:/d", image, "true")
		if out := w.run("node1", "docker", "volume", "ls", "-q", "-f", "driver=local"); out != "" {
			t.Errorf("Docker made volumes of its own: %s", out)
		}
		if err := w.host("node2").PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		grows("host rebooted")
		if after := lines(); after < before {
			t.Errorf("%d lines before, %d after", before, after)
		}
	})
	t.Run("no quorum", func(t *testing.T) {
		w := w.in(t)
		for _, n := range []string{"node1", "node3"} {
			if err := w.host(n).PowerOff(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		grows("no quorum")
		w.run("node2", "docker", "restart", "-t", "0", "app")
		grows("restarted without quorum")
		w.refused("node2", []string{"cannot be known"}, "docker", "volume", "create", "-d", "drover", "fresh")
		for _, n := range []string{"node1", "node3"} {
			if err := w.host(n).PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.until("there is a quorum again", func() error { _, err := w.try("node2", "drover", "status"); return err })
		w.run("node2", "docker", "volume", "create", "-d", "drover", "fresh")
	})
}
