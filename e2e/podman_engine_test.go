//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/lab"
)

// TestPodmanIsTheEngine gives the agents Podman's own socket in place of
// Docker's: a container of Podman moves with its volume.
func TestPodmanIsTheEngine(t *testing.T) {
	launcher := filepath.Join(t.TempDir(), "drover")
	script := fmt.Sprintf(`#!/bin/sh
[ "$1" = agent ] && set -- "$@" --docker unix:///run/podman/podman.sock
exec %s "$@"
`, binary)
	if err := os.WriteFile(launcher, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorldOf(t, 2, "1G", launcher)
	for _, host := range []string{"node1", "node2"} {
		w.podman(host)
		s := lab.Service{Name: "podman", Args: []string{"sh", "-c", "mkdir -p /run/podman; exec podman system service --time 0 unix:///run/podman/podman.sock"}, Restart: "always"}
		if err := w.host(host).StartService(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	w.run("node1", "podman", "volume", "create", "--driver", "drover", "vol")
	w.run("node1", "podman", "run", "-d", "--name", "app", "--network=none", "-v", "vol:/d", podmanImage, "sh", "-c", "echo start >> /d/starts; trap exit TERM; while :; do sleep 0.1; done")
	w.until("the agent knows who uses it", func() error {
		if out, err := w.try("node1", "drover", "volume", "inspect", "vol"); err != nil || !strings.Contains(out, "container app") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.run("node1", "drover", "volume", "move", "vol", "node2")
	w.until("it runs where its volume is", func() error {
		out, err := w.try("node2", "podman", "exec", "app", "cat", "/d/starts")
		if err != nil || len(strings.Fields(out)) != 2 {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if out := w.run("node1", "podman", "ps", "-q"); out != "" {
		t.Error(errors.New("it still runs on node1, too"))
	}
}
