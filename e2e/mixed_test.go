//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/drover-data/drover/lab"
)

// fleet is what binary each host runs.
type fleet struct {
	dir      string
	launcher string
	built    map[string]string // by version
}

// newFleet builds this version, the next one (which speaks this one too and
// writes fields into every record that this one does not know) and one that
// speaks this one no more, all from this tree.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{dir: t.TempDir(), built: map[string]string{}}
	for version, tags := range map[string]string{"v1.0.0": "", "v1.1.0": "drover_next", "v3.0.0": "drover_far"} {
		f.built[version] = filepath.Join(f.dir, "drover-"+version)
		build := exec.CommandContext(t.Context(), "go", "build", "-tags", tags, "-ldflags", "-X main.version="+version, "-o", f.built[version], "github.com/drover-data/drover/cmd/drover")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", version, err, out)
		}
	}
	f.launcher = filepath.Join(f.dir, "drover")
	script := fmt.Sprintf("#!/bin/sh\nexec %s/on-$(hostname) \"$@\"\n", f.dir)
	if err := os.WriteFile(f.launcher, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

// install puts a version on a host; it is run from the next start on.
func (f *fleet) install(t *testing.T, host, version string) {
	t.Helper()
	link := filepath.Join(f.dir, "on-"+host)
	if err := os.Symlink(f.built[version], link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
}

// upgrade installs a version and restarts the units, as the package does.
func (w *world) upgrade(f *fleet, host, version string) {
	w.t.Helper()
	f.install(w.t, host, version)
	for _, unit := range []string{"state", "agent"} {
		err := w.host(host).Kill(w.t.Context(), unit, syscall.SIGTERM)
		if err != nil && !strings.Contains(err.Error(), "does not run") { // it is between two starts
			w.t.Fatal(err)
		}
	}
}

// runs waits until a host's agent runs a version, as another host sees it.
func (w *world) runs(asked, host, version string) {
	w.t.Helper()
	w.until(host+" runs "+version, func() error {
		out, err := w.try(asked, "drover", "node", "inspect", host)
		if err != nil || !strings.Contains(out, version) || !strings.Contains(out, "online") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return w.voters(3)
	})
}

// records gives the state store's records as they are written, by key.
func (w *world) records(host string) map[string]string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	var out, errs strings.Builder
	if err := w.host(host).Run(w.t.Context(), lab.Cmd{Args: []string{self}, Env: []string{dumpEnvironment + "=1"}, Stdout: &out, Stderr: &errs}); err != nil {
		w.t.Fatalf("%v: %s", err, errs.String())
	}
	records := map[string]string{}
	for line := range strings.Lines(out.String()) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		records[key] = value
	}
	return records
}

// carries checks that a volume's record, and its copy for each node that it
// concerns, still has what the newer version wrote.
func (w *world) carries(volume string) {
	w.t.Helper()
	n := 0
	for key, value := range w.records("node1") {
		if !strings.Contains(value, strconv.Quote(volume)) || !(strings.Contains(key, "/volumes/") || strings.Contains(key, "/assigned/")) {
			continue
		}
		n++
		if strings.Count(value, `"next":{"of":"version 2"}`) != 2 { // of the record and of its head
			w.t.Errorf("%s lost what the newer version wrote: %s", key, value)
		}
	}
	if n < 2 {
		w.t.Errorf("%d records of %s were found", n, volume)
	}
}

// counter is a container that writes numbers to a volume, one after the other,
// each flushed before the next.
const counter = `i=0; while :; do i=$((i+1)); echo $i >> /d/numbers; sync /d/numbers; echo $i; sleep 0.05; done`

// counted gives the last number that the counter has acknowledged.
func (w *world) counted(host string) int {
	w.t.Helper()
	n, err := strconv.Atoi(w.run(host, "docker", "logs", "--tail", "1", "counter"))
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// goesOn waits until the counter has written more, and checks that it is the
// same process all the time.
func (w *world) goesOn(host, started string) {
	w.t.Helper()
	from := w.counted(host)
	w.until("the counter goes on", func() error {
		if n := w.counted(host); n < from+3 {
			return fmt.Errorf("it is at %d", n)
		}
		return nil
	})
	w.equal(w.run(host, "docker", "inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", "counter"), started)
}

// TestUpgradeNodeByNode: three nodes are upgraded one after the other, under a
// container that writes. In between, both versions change the same records and
// move volumes between each other.
func TestUpgradeNodeByNode(t *testing.T) {
	f := newFleet(t)
	for _, host := range []string{"node1", "node2", "node3"} {
		f.install(t, host, "v1.0.0")
	}
	w := newWorldOf(t, 3, "1G", f.launcher)
	w.until("there are three voters", func() error { return w.voters(3) })
	w.run("node1", "docker", "run", "-d", "--name", "counter", "--volume-driver", "drover", "-v", "vol:/d", image, "sh", "-c", counter)
	started := w.run("node1", "docker", "inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", "counter")
	old := w.filled("node1", "old", 20)

	w.upgrade(f, "node3", "v1.1.0")
	w.runs("node1", "node3", "v1.1.0")
	w.goesOn("node1", started)
	if out, _ := w.try("node1", "drover", "doctor"); !strings.Contains(out, "v1.1.0") || !strings.Contains(out, "v1.0.0") {
		t.Errorf("drover doctor does not name the versions:\n%s", out)
	}

	t.Run("records of the newer version", func(t *testing.T) {
		w := w.in(t)
		sum := w.filled("node3", "new", 20)
		w.carries("new")
		// The older nodes change the record that the newer one has written.
		w.run("node1", "drover", "volume", "move", "new", "node1")
		w.carries("new")
		w.run("node2", "drover", "volume", "move", "new", "node2")
		w.carries("new")
		w.equal(w.busybox("node2", "new", "md5sum < /d/data"), sum)
		w.run("node3", "drover", "volume", "move", "new", "node3")
		w.equal(w.busybox("node3", "new", "md5sum < /d/data"), sum)
		w.carries("new")
	})
	t.Run("volumes of the older version", func(t *testing.T) {
		w := w.in(t)
		w.run("node3", "drover", "volume", "move", "old", "node3")
		w.equal(w.busybox("node3", "old", "md5sum < /d/data"), old)
		w.run("node1", "drover", "volume", "move", "old", "node1")
		w.equal(w.busybox("node1", "old", "md5sum < /d/data"), old)
	})
	t.Run("a version too far", func(t *testing.T) {
		w := w.in(t)
		// A node that is a member already: its agent says why it does not start.
		w.upgrade(f, "node2", "v3.0.0")
		w.until("its agent has said why", func() error {
			text, err := os.ReadFile(w.host("node2").Log("agent"))
			if err != nil {
				return err
			}
			for _, word := range []string{"speaks version 3", "Drover v1.", "to a version that speaks both"} {
				if !strings.Contains(string(text), word) {
					return errors.New("it does not say " + word)
				}
			}
			return nil
		})
		// One that wants to join.
		token := w.run("node1", "drover", "node", "token")
		w.refused("node2", []string{"version 3", "version 1", "upgrade"}, "drover", "join", token, "--no-start", "--name", "other", "--data-dir", "/var/lib/other", "--api-port", "7533", "--state-port", "7534", "--peer-port", "7535")
		w.upgrade(f, "node2", "v1.1.0")
		w.runs("node1", "node2", "v1.1.0")
	})
	w.goesOn("node1", started)

	w.upgrade(f, "node1", "v1.1.0")
	w.runs("node2", "node1", "v1.1.0")
	w.goesOn("node1", started)
	w.run("node2", "drover", "volume", "move", "vol", "node2")
	w.until("the counter runs where its volume is", func() error {
		out, err := w.try("node2", "docker", "inspect", "-f", "{{.State.Running}}", "counter")
		if err != nil || out != "true" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.carries("vol")
	// It began to count anew on node2; what was acknowledged on node1 is there.
	last := w.counted("node1")
	numbers := strings.Fields(w.run("node2", "docker", "exec", "counter", "cat", "/d/numbers"))
	for i := range last {
		if i >= len(numbers) || numbers[i] != strconv.Itoa(i+1) {
			t.Fatalf("of %d acknowledged numbers, number %d is missing", last, i+1)
		}
	}
}
