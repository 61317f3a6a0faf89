//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/drover-data/drover/lab"
)

// podmanSettings make Podman work in a lab host: there is no systemd, and its
// root file system is an overlay already.
const podmanSettings = `mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<X
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.volume_plugins]
drover = "/run/docker/plugins/drover.sock"
X
cat >/etc/containers/storage.conf <<X
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
X
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
`

// podman sets Podman up on a host, with the small image.
func (w *world) podman(host string) {
	w.t.Helper()
	tar, err := lab.BusyboxImage(w.t.Context(), "", w.t.Output())
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(host, "sh", "-c", podmanSettings)
	w.run(host, "podman", "load", "-q", "-i", tar)
}

const podmanImage = "localhost/" + lab.BusyboxImageName

// TestPodman uses volumes with Podman: made, shared with Docker, under a name
// without '@', in use, and while their data is still on the way.
func TestPodman(t *testing.T) {
	w := newWorld(t, 2, "2G")
	w.podman("node1")
	in := func(volume, script string) []string {
		return []string{"podman", "run", "--rm", "--network=none", "-v", volume + ":/d", podmanImage, "sh", "-c", script}
	}

	t.Run("create, use, remove", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "podman", "volume", "create", "--driver", "drover", "--opt", "size=64M", "pg")
		if out := w.run("node2", "drover", "volume", "inspect", "pg"); !strings.Contains(out, "64 MiB") || !strings.Contains(out, "node1") {
			t.Errorf("the cluster knows it as:\n%s", out)
		}
		if out := w.run("node1", "podman", "volume", "ls"); !strings.Contains(out, "drover") || !strings.Contains(out, "pg") {
			t.Errorf("podman volume ls:\n%s", out)
		}
		w.equal(w.run("node1", "podman", "volume", "inspect", "-f", "{{.Driver}} {{.Status.node}}", "pg"), "drover node1")
		w.run("node1", in("pg", "echo podman > /d/f")...)
		w.equal(w.busybox("node1", "pg", "cat /d/f"), "podman")
		w.refused("node1", []string{`option "nonsense" is unknown`}, "podman", "volume", "create", "--driver", "drover", "--opt", "nonsense=1", "other")

		w.run("node1", "podman", "volume", "create", "--driver", "drover", "gone")
		w.run("node1", "podman", "volume", "rm", "gone")
		w.run("node1", "drover", "volume", "restore", "gone")
	})
	t.Run("a name without @", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "podman", "volume", "create", "--driver", "drover", "pg..main")
		w.equal(w.run("node1", "podman", "volume", "inspect", "-f", "{{.Name}}", "pg..main"), "pg..main")
		w.equal(w.run("node1", in("pg..main", "cat /d/f")...), "podman")
		w.refused("node1", []string{"no branch of that name"}, "podman", "volume", "create", "--driver", "drover", "pg..typo")
		// Removing the name leaves the volume.
		w.run("node1", "podman", "volume", "rm", "pg..main")
		w.equal(w.run("node1", in("pg", "cat /d/f")...), "podman")
	})
	t.Run("in use", func(t *testing.T) {
		w := w.in(t)
		id := w.run("node1", "podman", "run", "-d", "--network=none", "-v", "pg:/d", podmanImage, "sleep", "1000")
		w.refused("node1", []string{"used on node1", id[:12]}, "drover", "volume", "rm", "pg")
		w.refused("node2", []string{"used on node1", id[:12]}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "pg:/d", image, "true")
		w.run("node1", "podman", "rm", "-f", "-t", "0", id)
		w.equal(w.busybox("node2", "pg", "cat /d/f"), "podman")
	})
	t.Run("made elsewhere, and large", func(t *testing.T) {
		w := w.in(t)
		sum := w.filled("node2", "large", 160)
		w.until("podman volume reload finds it", func() error {
			w.run("node1", "podman", "volume", "reload")
			if out := w.run("node1", "podman", "volume", "ls", "-q"); !strings.Contains(out, "large") {
				return errors.New(out)
			}
			return nil
		})
		// At 10 MB a second it does not arrive within Podman's patience; our
		// answer comes before that ends.
		w.run("node2", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "80mbit", "burst", "256kb", "latency", "50ms")
		w.refused("node1", []string{"moving here"}, in("large", "true")...)
		w.run("node2", "tc", "qdisc", "del", "dev", "eth0", "root")
		w.until("it has arrived", func() error {
			if owner := w.owner("node1", "large"); owner != "node1" {
				return fmt.Errorf("it is on %q", owner)
			}
			return nil
		})
		w.until("it can be used", func() error {
			out, err := w.try("node1", in("large", "md5sum < /d/data")...)
			if err == nil && out != sum {
				err = errors.New("it holds other data")
			}
			return err
		})
	})
}
