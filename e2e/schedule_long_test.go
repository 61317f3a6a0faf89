//go:build lab && long

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

// A schedule commits what changed, pushes it, prunes, and goes on after the
// volume has moved. A minute is the shortest there is, so this takes a few.
func TestSchedule(t *testing.T) {
	w := newWorld(t, 2, "1G")
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.busybox("node1", "vol", "echo 1 > /d/f")
	w.run("node1", "drover", "remote", "add", "vol", "backup", "file://"+filepath.Join(dir, "vol"))
	w.refused("node1", []string{"no remote nowhere"}, "drover", "schedule", "set", "vol", "s", "--every", "1m", "--push", "nowhere")
	w.run("node1", "drover", "schedule", "set", "vol", "often", "--every", "1m", "--commit", "--push", "backup", "--keep-last", "1", "--remote-keep-last", "1", "--check-image", lab.BusyboxImageName, "--check-cmd", "test -s /data/f")
	commits := func() (list []api.Commit) {
		t.Helper()
		if err := json.Unmarshal([]byte(w.run("node1", "drover", "log", "vol", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	pushed := func() error {
		list := commits()
		out, err := w.try("node1", "drover", "ls-remote", "vol", "backup")
		if err != nil || len(list) == 0 || !strings.Contains(out, list[0].ID[:12]) {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	}
	w.until("the first run has committed and pushed", pushed)
	w.run("node1", "drover", "volume", "move", "vol", "node2")
	w.busybox("node2", "vol", "echo 2 > /d/f")
	first := commits()[0].ID
	w.until("the next run, on the other node, has committed, pushed and pruned", func() error {
		list := commits()
		if list[0].ID == first || len(list) != 1 {
			return fmt.Errorf("%+v", list)
		}
		return pushed()
	})
	if out := w.run("node2", "drover", "events", "-o", "json"); !strings.Contains(out, "passed its check") {
		t.Errorf("no check has passed: %s", out)
	}
	if l, _ := w.lsRemote("node1", "vol", "--commits"); len(l.Commits) != 1 {
		t.Errorf("the remote keeps %d commits", len(l.Commits))
	}
	w.run("node1", "drover", "schedule", "rm", "vol", "often")
}
