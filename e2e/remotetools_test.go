//go:build lab

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

// lsRemote is what drover ls-remote says.
func (w *world) lsRemote(host, volume string, more ...string) (l api.RemoteListing, names map[string]string) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.run(host, append([]string{"drover", "ls-remote", volume, "-o", "json"}, more...)...)), &l); err != nil {
		w.t.Fatal(err)
	}
	names = map[string]string{}
	for _, r := range l.Refs {
		names[r.Kind+" "+r.Name] = r.Message
	}
	return l, names
}

// What is beside pushing branches: tags, lists, retention at the remote.
func TestRemoteTools(t *testing.T) {
	w := newWorld(t, 2, "1G")
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	url := "file://" + filepath.Join(dir, "pg")
	commit := func(host, volume, message string) {
		t.Helper()
		w.busybox(host, volume, "echo "+message+" > /d/f")
		w.run(host, "drover", "commit", volume, "-m", message)
	}
	for _, m := range []string{"one", "two", "three"} {
		commit("node1", "pg", m)
	}
	w.run("node1", "drover", "tag", "pg", "first", "main~2")
	w.run("node1", "drover", "tag", "pg", "v3", "main")
	w.run("node1", "drover", "remote", "add", "pg", "backup", url)

	t.Run("tags", func(t *testing.T) {
		w := w.in(t)
		// Alone, by the word for a branch.
		if j := w.sync("node2", "push", "pg@first"); j.Result.Branch != "" || len(j.Result.Tags) != 1 || len(j.Result.Commits) != 1 {
			t.Errorf("%+v", j.Result)
		}
		w.refused("node1", []string{"no tag nope"}, "drover", "push", "pg", "backup", "nope")
		if j := w.sync("node1", "push", "pg", "--tags"); j.Result.Branch != "main" || len(j.Result.Tags) != 1 || len(j.Result.Commits) != 2 {
			t.Errorf("%+v", j.Result)
		}
		if _, names := w.lsRemote("node2", "pg"); len(names) != 3 || names["branch main"] != "three" || names["tag first"] != "one" || names["tag v3"] != "three" {
			t.Errorf("%v", names)
		}
		// Those of what is here come along; the others when they are asked for.
		w.run("node2", "drover", "clone", url, "copy", "--node", "node2")
		if out := w.run("node2", "drover", "tag", "copy"); !strings.Contains(out, "v3") || strings.Contains(out, "first") {
			t.Error(out)
		}
		if j := w.sync("node2", "fetch", "copy", "--tags"); len(j.Result.Tags) != 1 || j.Result.Tags[0].Name != "first" {
			t.Errorf("%+v", j.Result)
		}
		w.equal(w.run("node2", "drover", "cat", "copy@first:f"), "one")
		// One name for two commits.
		w.run("node2", "drover", "tag", "copy", "v3", "first", "--force")
		w.refused("node2", []string{"for other commits", "v3 (there", "--force"}, "drover", "push", "copy", "--tags")
		w.refused("node2", []string{"name other commits", "v3 (here", "--force"}, "drover", "fetch", "copy", "--tags")
		if j := w.sync("node2", "fetch", "copy"); !strings.Contains(j.Result.Warning, "v3 (here") {
			t.Errorf("%+v", j.Result)
		}
		w.sync("node2", "push", "copy", "origin", "v3", "--force")
		if _, names := w.lsRemote("node1", "pg"); names["tag v3"] != "one" {
			t.Errorf("%v", names)
		}
		w.sync("node1", "fetch", "pg", "--tags", "--force")
		w.equal(w.run("node1", "drover", "cat", "pg@v3:f"), "one")
	})
	t.Run("retention", func(t *testing.T) {
		w := w.in(t)
		prune := func(more ...string) *api.RemotePruned {
			t.Helper()
			return w.sync("node2", append([]string{"prune", "pg", "--remote", "backup"}, more...)...).Result.Pruned
		}
		if p := prune(); p.Kept != 3 || len(p.Dropped) != 0 {
			t.Errorf("without a rule: %+v", p)
		}
		if p := prune("--keep-last", "1", "--dry-run"); p.Kept != 2 || len(p.Dropped) != 1 {
			t.Errorf("dry run: %+v", p)
		}
		if l, _ := w.lsRemote("node1", "pg", "--commits"); len(l.Commits) != 3 || len(l.Damaged) != 0 {
			t.Errorf("%+v", l)
		}
		if p := prune("--keep-last", "1"); p.Kept != 2 || len(p.Dropped) != 1 {
			t.Errorf("%+v", p)
		}
		if l, _ := w.lsRemote("node1", "pg", "--commits"); len(l.Commits) != 2 {
			t.Errorf("%+v", l)
		}
		w.run("node1", "drover", "verify", "pg")
		w.run("node1", "drover", "clone", url, "tagged", "--tags")
		w.equal(w.run("node1", "drover", "cat", "tagged@first:f"), "one")
	})
	t.Run("damage is listed", func(t *testing.T) {
		w := w.in(t)
		path := filepath.Join(dir, "pg", "refs", "b-main")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var d struct{ Digest string }
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "pg", "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:")), 20); err != nil {
			t.Fatal(err)
		}
		l, names := w.lsRemote("node1", "pg")
		if len(l.Damaged) != 1 || l.Damaged[0].Name != "b-main" || names["tag first"] != "one" {
			t.Errorf("%+v", l)
		}
	})
}
