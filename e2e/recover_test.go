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

// The state of all members is lost, and comes back from a backup that knows
// nothing of a move, a new volume and a deletion since: everything is as the
// pools say, and the container that ran has not noticed.
func TestRecoverCluster(t *testing.T) {
	w := newWorld(t, 3, "1G")
	w.until("there are three voters", func() error {
		if out, err := w.try("node1", "drover", "node", "ls"); err != nil || strings.Count(out, "voter") != 3 {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.busybox("node1", "moved", "echo before > /d/f")
	w.busybox("node2", "gone", "echo gone > /d/f")
	w.busybox("node2", "busy", "echo busy > /d/f")
	w.run("node3", "docker", "run", "-d", "--name", "app", "--volume-driver", "drover", "-v", "app:/d", image, "sh", "-c", "while :; do date >> /d/log; sleep 1; done")
	pass, file := filepath.Join(w.host("node1").Dir(), "pass"), filepath.Join(w.host("node1").Dir(), "backup")
	if err := os.WriteFile(pass, []byte("a good long passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.refused("node1", []string{"the key of the cluster's CA", "--passphrase-file"}, "drover", "backup", file)
	w.run("node1", "drover", "backup", file, "--passphrase-file", pass)
	if out := w.run("node1", "drover", "backup", "--verify", file, "--passphrase-file", pass); !strings.Contains(out, "records and secrets are what was written") {
		t.Errorf("verify says %s", out)
	}
	w.refused("node1", []string{"nothing to recover", "--abandon-living"}, "drover", "recover", file, "--passphrase-file", pass)

	// What the backup does not know.
	w.equal(w.busybox("node2", "moved", "cat /d/f; echo after > /d/f"), "before")
	w.busybox("node3", "fresh", "echo fresh > /d/f")
	w.run("node1", "drover", "volume", "rm", "gone")
	w.until("the deletion is noted beside the data", func() error {
		_, err := w.try("node2", "sh", "-c", `cat /var/lib/drover/pools/default/heads/*/main/.drover/head | sed -n 's/.*"note":"\([^"]*\)".*/\1/p' | while read n; do echo "$n" | base64 -d; echo; done | grep '"name":"gone".*"deleted":'`)
		return err
	})

	pid := w.run("node3", "docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "app")
	for _, n := range []string{"node1", "node2", "node3"} {
		if err := w.host(n).StopService(t.Context(), "state"); err != nil {
			t.Fatal(err)
		}
		w.run(n, "rm", "-rf", "/var/lib/drover/state")
		if err := w.host(n).RestartService(t.Context(), "state"); err != nil {
			t.Fatal(err)
		}
	}
	w.refused("node1", []string{"passphrase"}, "drover", "recover", file)
	out := w.run("node1", "drover", "recover", "--dry-run", file, "--passphrase-file", pass)
	for _, line := range [][]string{{"moved", "node2", "moved since"}, {"fresh", "node3", "created since"}, {"gone", "node2", "deleted"}, {"app", "node3", "as in the backup"}} {
		if !hasLine(out, line...) {
			t.Errorf("the dry run does not say %v:\n%s", line, out)
		}
	}
	w.run("node1", "drover", "recover", file, "--passphrase-file", pass)
	w.until("the recovery is over", func() error {
		out, err := w.try("node2", "drover", "status")
		if err != nil || !strings.Contains(out, "incarnation 2") || strings.Contains(out, "recovery") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	for volume, node := range map[string]string{"moved": "node2", "fresh": "node3", "app": "node3", "busy": "node2"} {
		w.until(volume+" is known on "+node, func() error {
			if got := w.owner("node3", volume); got != node {
				return fmt.Errorf("it is on %q", got)
			}
			return nil
		})
	}
	if out := w.run("node1", "drover", "volume", "ls"); hasLine(out, "gone") {
		t.Errorf("the deleted volume is back:\n%s", out)
	}
	w.equal(w.run("node3", "docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "app"), pid)
	w.until("moved can be used where it is", func() error {
		out, err := w.try("node2", "docker", "run", "--rm", "--volume-driver", "drover", "-v", "moved:/d", image, "cat", "/d/f")
		if err != nil || out != "after" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.until("fresh can be used elsewhere", func() error {
		out, err := w.try("node1", "docker", "run", "--rm", "--volume-driver", "drover", "-v", "fresh:/d", image, "cat", "/d/f")
		if err != nil || out != "fresh" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.run("node1", "drover", "volume", "restore", "gone")
	w.equal(w.busybox("node1", "gone", "cat /d/f"), "gone")
	w.run("node1", "drover", "volume", "move", "app", "node1")
	w.until("the container runs on node1", func() error {
		if out := w.run("node1", "docker", "ps", "-q", "-f", "name=app"); out == "" {
			return errors.New("it does not")
		}
		return nil
	})
	w.until("there are three voters again", func() error {
		if out, err := w.try("node1", "drover", "node", "ls"); err != nil || strings.Count(out, "voter") != 3 {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	recoverWithout(w, file, pass)
}

// Once more, with a node that is switched off and a member of the lost state
// store that still runs: the others go on without the node, and what it has
// finds its place when it is back.
func recoverWithout(w *world, file, pass string) {
	w.run("node2", "drover", "backup", file, "--passphrase-file", pass)
	w.busybox("node1", "late", "echo late > /d/f; sync")
	if err := w.host("node1").PowerOff(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.host("node2").StopService(w.t.Context(), "state"); err != nil {
		w.t.Fatal(err)
	}
	w.run("node2", "rm", "-rf", "/var/lib/drover/state")
	if err := w.host("node2").RestartService(w.t.Context(), "state"); err != nil {
		w.t.Fatal(err)
	}
	w.run("node2", "drover", "recover", file, "--passphrase-file", pass)
	w.until("node1 is waited for", func() error {
		out, err := w.try("node3", "drover", "status")
		if err != nil || !strings.Contains(out, "incarnation 3") || !hasLine(out, "waiting for", "node1") || hasLine(out, "waiting for", "node3") || hasLine(out, "waiting for", "node2:") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.refused("node2", []string{"came back from a backup", "node1"}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "busy:/d", image, "cat", "/d/f")
	w.refused("node2", []string{"came back from a backup"}, "drover", "volume", "create", "another")
	w.refused("node2", []string{"not waited for"}, "drover", "recover", "--without", "node3")
	w.run("node2", "drover", "recover", "--without", "node1")
	w.until("the others go on", func() error {
		out, err := w.try("node2", "docker", "run", "--rm", "--volume-driver", "drover", "-v", "busy:/d", image, "cat", "/d/f")
		if err != nil || out != "busy" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.until("what node3's member had is set aside", func() error {
		_, err := w.try("node3", "sh", "-c", "ls -d /var/lib/drover/state.incarnation-2-*")
		return err
	})
	if owner := w.owner("node3", "app"); owner != "node1" {
		w.t.Errorf("app, of which node1 has said nothing, is on %q", owner)
	}
	w.refused("node3", []string{"node1", "empty twin"}, "docker", "run", "--rm", "--volume-driver", "drover", "-v", "late:/d", image, "cat", "/d/f")
	if err := w.host("node1").PowerOn(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for volume, want := range map[string]string{"late": "late", "fresh": "fresh"} {
		w.until(volume+" of the node that came back can be used elsewhere", func() error {
			out, err := w.try("node3", "docker", "run", "--rm", "--volume-driver", "drover", "-v", volume+":/d", image, "cat", "/d/f")
			if err != nil || out != want {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
	}
	w.until("node1 has set its member aside", func() error {
		_, err := w.try("node1", "sh", "-c", "ls -d /var/lib/drover/state.incarnation-2-*")
		return err
	})
}

// The first node is gone with the state store; a fresh host at another address
// takes over, and is followed.
func TestRecoverElsewhere(t *testing.T) {
	w := newWorld(t, 2, "1G")
	w.busybox("node2", "vol", "echo here > /d/f")
	two := w.host("node2")
	file, dir := filepath.Join(two.Dir(), "backup"), filepath.Join(two.Dir(), "fresh")
	w.run("node1", "drover", "backup", file, "--secrets-in-clear")
	if err := w.host("node1").PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	places := []string{"--data-dir", dir + "/data", "--run-dir", dir + "/run", "--plugin-dir", dir + "/plugins"}
	fresh := append([]string{"drover", "recover", file, "--no-start", "--name", "node3", "--advertise", two.Address(), "--api-port", "7533", "--state-port", "7534", "--peer-port", "7535"}, places...)
	w.run("node2", fresh...)
	for _, unit := range []string{"state", "agent"} {
		if err := two.StartService(t.Context(), lab.Service{Name: "fresh-" + unit, Args: append([]string{binary, unit}, places...), Restart: "always", Notify: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.until("node2 follows", func() error {
		out, err := w.try("node2", "drover", "recover", "--follow", two.Address()+":7533")
		if err != nil && !strings.Contains(out, "nothing to follow") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.until("only node1 is waited for", func() error {
		out, err := w.try("node2", "drover", "status")
		if err != nil || !strings.Contains(out, "incarnation 2") || !hasLine(out, "waiting for", "node1") || hasLine(out, "waiting for", "node2:") || hasLine(out, "waiting for", "node3:") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.run("node2", "drover", "recover", "--without", "node1", "--socket", dir+"/run/drover.sock")
	w.until("the volume can be used", func() error {
		out, err := w.try("node2", "docker", "run", "--rm", "--volume-driver", "drover", "-v", "vol:/d", image, "cat", "/d/f")
		if err != nil || out != "here" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// hasLine reports whether one line of a text has all of the words.
func hasLine(text string, words ...string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return true
		}
	}
	return false
}
