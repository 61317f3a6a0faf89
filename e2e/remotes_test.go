//go:build lab

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/drover-data/drover/api"
)

// sync runs a push, pull or the like and gives what it did.
func (w *world) sync(host string, args ...string) api.Job {
	w.t.Helper()
	var j api.Job
	out := w.run(host, append(append([]string{"drover"}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &j); err != nil {
		w.t.Fatal(err, out)
	}
	return j
}

// Two volumes of one cluster stand for two clusters: they meet in the remote
// only.
func TestRemotes(t *testing.T) {
	w := newWorld(t, 2, "2G")
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	url := "file://" + filepath.Join(dir, "pg")

	w.busybox("node1", "pg", "echo one > /d/a; head -c 30000000 /dev/urandom > /d/big; mkdir /d/sub; ln -s ../a /d/sub/l; chown 7:8 /d/a; chmod 4750 /d/a")
	w.run("node1", "drover", "remote", "add", "pg", "origin", url)
	w.refused("node1", []string{"no commit yet", "drover commit"}, "drover", "push", "pg")
	w.refused("node1", []string{"no such directory"}, "drover", "remote", "add", "pg", "typo", "file:///var/tmp/not/there")
	w.refused("node1", []string{"does not belong into an address"}, "drover", "remote", "add", "pg", "secret", "https://me:pw@example.com/x")
	w.run("node1", "drover", "commit", "pg", "-m", "first")

	t.Run("push reads and sends what changed", func(t *testing.T) {
		w := w.in(t)
		if j := w.sync("node1", "push", "pg", "--dry-run"); j.Result.Changed < 30_000_000 || len(j.Result.Commits) != 1 {
			t.Errorf("dry run: %+v", j.Result)
		}
		if j := w.sync("node2", "push", "pg"); j.Node != "node1" || j.Sent < 30_000_000 {
			t.Errorf("first push: %+v", j)
		}
		w.busybox("node1", "pg", "echo two > /d/b")
		w.run("node1", "drover", "commit", "pg", "-m", "second")
		if j := w.sync("node1", "push", "pg"); j.Read > 1<<20 || j.Sent > 1<<16 {
			t.Errorf("second push: %+v", j)
		}
		if j := w.sync("node1", "push", "pg"); j.Result.Relation != "up-to-date" {
			t.Errorf("third push: %+v", j.Result)
		}
		w.run("node1", "drover", "verify", "pg")
	})
	t.Run("clone elsewhere", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "drover", "clone", url, "copy", "--node", "node2")
		w.equal(w.busybox("node2", "copy", "cat /d/a /d/b; stat -c '%a %u %g' /d/a; readlink /d/sub/l"), "one\ntwo\n4750 7 8\n../a")
		w.equal(w.busybox("node2", "copy", "md5sum /d/big"), w.busybox("node1", "pg", "md5sum /d/big"))
		w.refused("node1", []string{"there is a volume of that name"}, "drover", "clone", url, "copy")
		w.refused("node1", []string{"no branch nope", "but main", "--branch"}, "drover", "clone", url, "other", "--branch", "nope")
	})
	t.Run("pull what the other pushed", func(t *testing.T) {
		w := w.in(t)
		w.busybox("node2", "copy", "echo three > /d/b")
		w.run("node2", "drover", "commit", "copy", "-m", "third")
		w.sync("node2", "push", "copy")
		w.busybox("node1", "pg", "echo mine > /d/mine")
		j := w.sync("node1", "pull", "pg")
		if j.Result.Kept == "" || j.Got > 1<<16 {
			t.Errorf("pull: %+v", j)
		}
		w.equal(w.busybox("node1", "pg", "cat /d/b; ls /d"), "three\na\nb\nbig\nsub")
		w.run("node1", "drover", "undo", "pg")
		w.equal(w.busybox("node1", "pg", "cat /d/mine"), "mine")
		w.sync("node1", "pull", "pg")
	})
	t.Run("both go on", func(t *testing.T) {
		w := w.in(t)
		w.busybox("node1", "pg", "echo left > /d/c")
		w.run("node1", "drover", "commit", "pg", "-m", "left")
		w.busybox("node2", "copy", "echo right > /d/c")
		w.run("node2", "drover", "commit", "copy", "-m", "right")
		w.sync("node2", "push", "copy")
		w.refused("node1", []string{"diverged", "ours is at", "theirs at"}, "drover", "push", "pg")
		w.refused("node1", []string{"diverged"}, "drover", "pull", "pg")
		w.sync("node1", "push", "pg", "--branch-on-divergence", "left")
		w.sync("node1", "pull", "pg", "--branch-on-divergence", "right")
		w.equal(w.busybox("node1", "pg@right", "cat /d/c"), "right")
		w.equal(w.busybox("node1", "pg", "cat /d/c"), "left")
		if out := w.run("node1", "drover", "ls-remote", "pg"); !strings.Contains(out, "left") || !strings.Contains(out, "main") {
			t.Error(out)
		}
	})
	t.Run("an agent that is killed", func(t *testing.T) {
		w := w.in(t)
		w.busybox("node1", "pg", "head -c 60000000 /dev/urandom > /d/more")
		w.run("node1", "drover", "commit", "pg", "-m", "more")
		w.sync("node1", "push", "pg", "--to", "left", "--no-wait")
		if err := w.host("node1").Kill(t.Context(), "agent", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.until("the push is through", func() error {
			_, err := w.try("node1", "drover", "push", "pg", "--to", "left")
			return err
		})
		w.run("node1", "drover", "verify", "pg", "--branch", "left")
		w.run("node2", "drover", "clone", url, "again", "--branch", "left")
		w.equal(w.busybox("node2", "again", "md5sum /d/more"), w.busybox("node1", "pg", "md5sum /d/more"))
	})
	t.Run("damage", func(t *testing.T) {
		w := w.in(t)
		blobs, err := filepath.Glob(filepath.Join(dir, "pg", "blobs", "sha256", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range blobs {
			if st, err := os.Stat(path); err == nil && st.Size() > 1<<20 {
				if err := os.Truncate(path, st.Size()-1); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.refused("node2", []string{"digest"}, "drover", "clone", url, "damaged", "--branch", "left")
		w.refused("node2", []string{"no volume"}, "drover", "volume", "inspect", "damaged")
	})
}
