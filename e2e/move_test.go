//go:build lab

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// filled makes a volume with megabytes of data that does not compress, and
// gives its checksum.
func (w *world) filled(host, volume string, mb int) string {
	w.t.Helper()
	return w.busybox(host, volume, fmt.Sprintf("dd if=/dev/urandom of=/d/data bs=1M count=%d 2>/dev/null; sync; md5sum < /d/data", mb))
}

// slowly begins a move that takes some seconds, in the background of the test.
func (w *world) slowly(asked, volume, to string) {
	w.t.Helper()
	w.run(asked, "drover", "volume", "move", volume, to, "--no-wait", "--bandwidth", "40M")
	w.until("the move is on its way", func() error {
		out, err := w.try(asked, "drover", "volume", "inspect", volume)
		if err != nil || !(strings.Contains(out, "copying") || strings.Contains(out, to+", pool")) {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// Whatever ends in the middle of a move: one owner has all of the data in the
// end, and the move takes place by itself once everybody is back.
func TestMoveSurvives(t *testing.T) {
	w := newWorld(t, 3, "3G")
	w.until("there are three voters", func() error { return w.voters(3) })
	sum := w.filled("node1", "vol", 200)
	from, to := "node1", "node2"
	for _, fault := range []struct {
		name string
		make func(t *testing.T, from, to string)
	}{
		{"source agent killed", func(t *testing.T, from, _ string) { kill(t, w, from, "agent") }},
		{"target agent killed", func(t *testing.T, _, to string) { kill(t, w, to, "agent") }},
		{"state members killed", func(t *testing.T, from, to string) {
			for _, h := range []string{from, to, "node3"} {
				kill(t, w, h, "state")
			}
		}},
		{"link cut", func(t *testing.T, from, to string) {
			if err := w.lab.Partition(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			wait(t.Context(), 3*time.Second)
			if err := w.lab.Heal(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
		}},
		{"target's plug pulled", func(t *testing.T, _, to string) {
			if err := w.host(to).PowerOff(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.host(to).PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{"source's plug pulled", func(t *testing.T, from, _ string) {
			if err := w.host(from).PowerOff(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.host(from).PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			w := w.in(t)
			// Something new, so that there is something to send.
			w.busybox(from, "vol", "dd if=/dev/urandom of=/d/more bs=1M count=120 2>/dev/null; sync")
			more := w.busybox(from, "vol", "md5sum < /d/more")
			w.slowly("node3", "vol", to)
			fault.make(t, from, to)
			w.moved(from, to, sum+"\n"+more)
		})
		from, to = to, from
	}
}

// moved waits until volume vol is on a host with the content whose sums are
// given, and the former owner has cleared up.
func (w *world) moved(from, to, sums string) {
	w.t.Helper()
	w.until("the volume is on "+to, func() error {
		if owner := w.owner("node3", "vol"); owner != to {
			return fmt.Errorf("it is on %q", owner)
		}
		return nil
	})
	w.until("it can be used there", func() error {
		out, err := w.try(to, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "vol:/d", image, "sh", "-c", "md5sum < /d/data; md5sum < /d/more")
		if err != nil {
			return fmt.Errorf("%v: %s", err, out)
		}
		w.equal(out, sums)
		return nil
	})
	w.until("the former owner has cleared up", func() error {
		out, err := w.try(from, "sh", "-c", "ls -A /var/lib/drover/pools/default/heads/*/ /var/lib/drover/pools/default/incoming 2>/dev/null | grep -v ':$' | grep .")
		if err == nil {
			return errors.New(out)
		}
		return nil
	})
}

func kill(t *testing.T, w *world, host, service string) {
	t.Helper()
	if err := w.host(host).Kill(t.Context(), service, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A container started where a large volume is not fails with what is going
// on, and is started by the agent when the data has arrived.
func TestMountWaitsForData(t *testing.T) {
	w := newWorld(t, 2, "6G")
	sum := w.filled("node1", "big", 2500)
	out, err := w.try("node2", "docker", "run", "-d", "--name", "reader", "--volume-driver", "drover", "-v", "big:/d", image, "sh", "-c", "md5sum < /d/data; sleep 1000")
	if err == nil {
		t.Log("the data was there within the time Docker waits")
	} else if !strings.Contains(out, "moving here") {
		t.Fatalf("the error does not tell what is going on:\n%s", out)
	}
	w.until("the container runs", func() error {
		if got := w.run("node2", "docker", "inspect", "-f", "{{.State.Running}} {{.State.Error}}", "reader"); !strings.HasPrefix(got, "true") {
			return errors.New(got)
		}
		return nil
	})
	w.until("it has read all", func() error {
		if got := w.run("node2", "docker", "logs", "reader"); got != sum {
			return fmt.Errorf("got %q, want %q", got, sum)
		}
		return nil
	})
}

// A move that is cancelled leaves everything as it was.
func TestCancelMove(t *testing.T) {
	w := newWorld(t, 2, "2G")
	sum := w.filled("node1", "vol", 150)
	w.run("node1", "docker", "run", "-d", "--name", "app", "--restart", "always", "--volume-driver", "drover", "-v", "vol:/d", image, "sleep", "1000")
	w.slowly("node2", "vol", "node2")
	w.refused("node1", []string{"used on node1 by container app"}, "drover", "volume", "rm", "vol")
	w.run("node2", "drover", "volume", "move", "--cancel", "vol")
	w.until("it stays", func() error {
		if out, err := w.try("node1", "drover", "volume", "ls"); err != nil || !strings.Contains(out, "ready") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.equal(w.run("node1", "docker", "exec", "app", "sh", "-c", "md5sum < /d/data"), sum)
	w.equal(w.run("node1", "docker", "inspect", "-f", "{{.RestartCount}} {{.HostConfig.RestartPolicy.Name}}", "app"), "0 always")
	w.until("nothing is left at the target", func() error {
		if out, err := w.try("node2", "find", "/var/lib/drover/pools/default/incoming", "/var/lib/drover/pools/default/heads", "-mindepth", "2"); err != nil || out != "" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}
