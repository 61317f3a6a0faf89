//go:build lab

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/drover-data/drover/lab"
)

// What was pushed is restored into a scratch volume, and a command says whether
// it is good. Nothing of that stays, whatever happens.
func TestRestoreCheck(t *testing.T) {
	w := newWorld(t, 2, "1G")
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.busybox("node2", "pg", "echo good > /d/f; chown 7:8 /d/f; head -c 3000000 /dev/urandom > /d/big")
	w.run("node1", "drover", "commit", "pg", "-m", "one")
	w.run("node1", "drover", "remote", "add", "pg", "origin", "file://"+filepath.Join(dir, "pg"))
	w.run("node1", "drover", "push", "pg")
	content := func() string { return w.run("node2", "find", "/var/lib/drover/pools/default", "-maxdepth", "4") }
	checks := func() string {
		return w.run("node2", "docker", "ps", "-a", "--filter", "name=drover-check", "--format", "{{.Names}}")
	}
	before := content()
	verify := func(command string, more ...string) []string {
		return append([]string{"drover", "verify", "pg", "--check-image", lab.BusyboxImageName, "--check-cmd", command}, more...)
	}
	for _, part := range []struct {
		name, command, path string
		says                []string // of a failure
		more                []string
	}{
		{name: "good", command: `grep good /data/f && test "$(stat -c %u:%g /data/f)" = 7:8 && echo it is fine`},
		{name: "elsewhere in the container", command: "grep good /a/b/f", more: []string{"--check-path", "/a/b"}},
		{name: "no network", command: `test "$(ls /sys/class/net)" = lo`},
		{name: "it may write", command: "echo bad > /data/f; rm /data/big"},
		{name: "not changed by the last one", command: "grep good /data/f && test -s /data/big"},
		{name: "bad", command: "echo a row is missing; exit 3", says: []string{"exit code 3", "a row is missing", "clone"}},
		{name: "too slow", command: "sleep 600", more: []string{"--check-deadline", "1s"}, says: []string{"did not end within 1s", "--check-deadline"}},
		{name: "no such image", command: "true", more: []string{"--check-image", "not-there:1"}, says: []string{"does not have the image", "docker save"}},
	} {
		t.Run(part.name, func(t *testing.T) {
			w := w.in(t)
			if part.says != nil {
				w.refused("node1", part.says, verify(part.command, part.more...)...)
			} else if out := w.run("node1", verify(part.command, part.more...)...); part.name == "good" && !strings.Contains(out, "it is fine") {
				t.Error(out)
			}
			w.equal(content(), before)
			w.equal(checks(), "")
		})
	}
	events := w.run("node2", "drover", "events", "-o", "json")
	for _, want := range []string{"volume.checked", "volume.check-failed", "a row is missing"} {
		if !strings.Contains(events, want) {
			t.Errorf("the events do not have %q", want)
		}
	}
	if out := w.run("node2", "curl", "-s", "--unix-socket", "/run/drover/drover.sock", "http://drover/metrics"); !strings.Contains(out, `drover_events_total{level="error",type="volume.check-failed"} 3`) {
		t.Error(out)
	}
	t.Run("an agent that is killed", func(t *testing.T) {
		w := w.in(t)
		ended := make(chan error, 1)
		go func() {
			_, err := w.try("node2", verify("sleep 600")...)
			ended <- err
		}()
		w.until("the check runs", func() error {
			if out := w.run("node2", "docker", "ps", "--filter", "name=drover-check", "--format", "{{.Names}}"); out == "" {
				return fmt.Errorf("no container yet")
			}
			return nil
		})
		if content() == before {
			t.Error("the scratch volume is not seen in the pool: the test could not tell that it is gone")
		}
		if err := w.host("node2").Kill(t.Context(), "agent", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Error("the command says that all is well")
		}
		w.until("container and scratch volume are gone", func() error {
			if got := checks(); got != "" {
				return fmt.Errorf("containers: %s", got)
			}
			if got := content(); got != before {
				return fmt.Errorf("the pool holds %s", got)
			}
			return nil
		})
		w.run("node1", verify("grep good /data/f")...)
	})
}
