//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

// postgres starts a PostgreSQL on a volume and waits until it answers.
func (w *world) postgres(host, name, volume string, more ...string) {
	w.t.Helper()
	args := append([]string{"docker", "run", "-d", "--name", name, "--volume-driver", "drover", "-v", volume + ":/var/lib/postgresql/data"}, more...)
	w.run(host, append(args, lab.PostgresImageName)...)
	w.answers(host, name)
}

func (w *world) answers(host, name string) {
	w.t.Helper()
	w.until(name+" answers", func() error {
		out, err := w.try(host, "docker", "exec", name, "psql", "-U", "postgres", "-Atc", "select 1")
		if err != nil || out != "1" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

func (w *world) sql(host, name, query string) string {
	w.t.Helper()
	return w.run(host, "docker", "exec", name, "psql", "-U", "postgres", "-Atqc", query)
}

// status is what drover status says of a branch.
func (w *world) status(host, ref string) api.BranchStatus {
	w.t.Helper()
	var s api.BranchStatus
	if err := json.Unmarshal([]byte(w.run(host, "drover", "status", ref, "-o", "json")), &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// A database's history: committed as the application wants it, branched and
// mounted side by side, reset, undone, checked out, and moved with all of it.
func TestHistoryOfPostgreSQL(t *testing.T) {
	w := newWorld(t, 2, "4G")
	pg, err := lab.PostgresImage(t.Context(), "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.lab.LoadImage(t.Context(), pg); err != nil {
		t.Fatal(err)
	}
	const h = "node1"
	w.postgres(h, "db", "pg", "--label", "drover.hook=postgresql")
	w.sql(h, "db", "create table t (n int); insert into t select generate_series(1, 1000)")
	count := func(name string) string { t.Helper(); return w.sql(h, name, "select count(*) from t") }

	t.Run("commit", func(t *testing.T) {
		w := w.in(t)
		if out := w.run(h, "drover", "commit", "pg", "-m", "a thousand", "-d", "ticket=1"); !strings.Contains(out, "(application)") {
			t.Error(out)
		}
		w.run("node2", "drover", "tag", "pg", "v1") // any node can be asked
		w.refused(h, []string{"message is empty"}, "drover", "commit", "pg", "-m", " ")
		out := w.run("node2", "drover", "show", "pg@v1")
		for _, want := range []string{"a thousand", "application (postgresql in db)", "ticket=1", "tag: v1"} {
			if !strings.Contains(out, want) {
				t.Errorf("show does not say %q:\n%s", want, out)
			}
		}
	})
	t.Run("a hook that fails commits nothing and holds nobody", func(t *testing.T) {
		w := w.in(t)
		w.run(h, "drover", "volume", "hook", "pg", "--kind", "command", "--before", "touch /tmp/before; exit 3", "--after", "touch /tmp/after")
		w.refused(h, []string{"hook failed", "nothing was committed"}, "drover", "commit", "pg", "-m", "not this")
		w.run(h, "docker", "exec", "db", "test", "-e", "/tmp/after")
		w.run(h, "drover", "volume", "hook", "pg", "--kind", "command", "--before", "sleep 100", "--deadline", "1s")
		w.refused(h, []string{"hook failed"}, "drover", "commit", "pg", "-m", "nor this")
		w.run(h, "drover", "volume", "hook", "pg", "--none")
		if out := w.run(h, "drover", "log", "pg", "--oneline"); strings.Count(out, "\n") != 0 {
			t.Errorf("there is more than one commit:\n%s", out)
		}
		w.equal(count("db"), "1000")
	})
	t.Run("branch beside", func(t *testing.T) {
		w := w.in(t)
		w.run(h, "drover", "branch", "pg", "feature")
		w.postgres(h, "test", "pg@feature")
		w.equal(count("test"), "1000")
		w.sql(h, "test", "delete from t where n > 10")
		w.equal(count("test"), "10")
		w.equal(count("db"), "1000")
		w.run(h, "drover", "commit", "pg@feature", "-m", "ten")
	})
	t.Run("back and forth", func(t *testing.T) { historyGoesBack(t, w.in(t)) })
	t.Run("on another node", func(t *testing.T) { historyMoves(t, w.in(t)) })
}

// historyGoesBack resets, undoes and checks out.
func historyGoesBack(t *testing.T, w *world) {
	const h = "node1"
	count := func(name string) string { t.Helper(); return w.sql(h, name, "select count(*) from t") }
	t.Run("reset and undo", func(t *testing.T) {
		w := w.in(t)
		w.sql(h, "db", "insert into t values (-1)")
		if s := w.status(h, "pg"); !s.Dirty || len(s.Users) != 1 {
			t.Errorf("status: %+v", s)
		}
		w.refused(h, []string{"--hard"}, "drover", "reset", "pg", "v1")
		if out := w.run(h, "drover", "reset", "--hard", "pg", "v1"); !strings.Contains(out, "is in stash") {
			t.Error(out)
		}
		w.answers(h, "db")
		w.equal(count("db"), "1000")
		w.run(h, "drover", "undo", "pg")
		w.answers(h, "db")
		w.equal(count("db"), "1001")
		var list []api.Commit
		stashes := func() int {
			if err := json.Unmarshal([]byte(w.run(h, "drover", "stash", "list", "pg", "-o", "json")), &list); err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		n := stashes()
		if n == 0 {
			t.Fatal("there is no stash")
		}
		w.run(h, "drover", "stash", "drop", "pg", list[0].ID)
		if now := stashes(); now != n-1 {
			t.Errorf("%d stashes after one of %d was dropped", now, n)
		}
		w.run(h, "drover", "undo", "pg")
		if now := stashes(); now != n {
			t.Errorf("%d stashes after the drop was undone, there were %d", now, n)
		}
		w.refused(h, []string{"nothing of it can be undone"}, "drover", "undo", "pg")
		w.equal(count("db"), "1001")
		if out := w.run(h, "drover", "reflog", "pg"); !strings.Contains(out, "of reset") || !strings.Contains(out, "kept") {
			t.Error(out)
		}
		w.equal(count("test"), "10")
	})
	t.Run("checkout", func(t *testing.T) {
		w := w.in(t)
		// Two servers must not share one data directory, so the one that names
		// the branch goes first; something else that names it is left alone.
		w.run(h, "docker", "stop", "test")
		w.run(h, "docker", "rm", "test")
		w.run(h, "docker", "run", "-d", "--name", "pinned", "--volume-driver", "drover", "-v", "pg@feature:/d", image, "sleep", "1000")
		started := w.run(h, "docker", "inspect", "-f", "{{.State.StartedAt}}", "pinned")
		out := w.run(h, "drover", "checkout", "pg", "feature")
		if !strings.Contains(out, "restarted: db") || !strings.Contains(out, "stays in pg@main") {
			t.Error(out)
		}
		w.answers(h, "db")
		w.equal(count("db"), "10")
		w.equal(w.run(h, "docker", "inspect", "-f", "{{.State.StartedAt}}", "pinned"), started)
		w.run(h, "drover", "checkout", "pg", "main")
		w.answers(h, "db")
		w.equal(count("db"), "1001")
		w.equal(w.run(h, "docker", "inspect", "-f", "{{.State.StartedAt}}", "pinned"), started)
		w.run(h, "docker", "rm", "-f", "pinned")
	})
	t.Run("killed in the middle", func(t *testing.T) {
		w := w.in(t)
		w.sql(h, "db", "insert into t values (-2)")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = w.try(h, "drover", "reset", "--hard", "pg", "v1")
		}()
		w.until("the database is being stopped", func() error {
			if out, _ := w.try(h, "docker", "inspect", "-f", "{{.State.Running}}", "db"); out != "false" {
				return fmt.Errorf("it runs")
			}
			return nil
		})
		if err := w.host(h).Kill(t.Context(), "agent", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-done
		w.until("the agent answers", func() error { _, err := w.try(h, "drover", "status"); return err })
		w.answers(h, "db")
		w.until("the reset is through", func() error {
			if out, err := w.try(h, "docker", "exec", "db", "psql", "-U", "postgres", "-Atqc", "select count(*) from t"); err != nil || out != "1000" {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		w.run(h, "drover", "undo", "pg")
		w.answers(h, "db")
		w.equal(count("db"), "1002")
	})
}

// historyMoves goes on with that database: it moves with its history, and is
// committed together with a volume of another node.
func historyMoves(t *testing.T, w *world) {
	const h = "node1"
	t.Run("move with history", func(t *testing.T) {
		w := w.in(t)
		w.run(h, "drover", "commit", "pg", "-m", "before the move", "--consistency", "paused")
		logged := w.run(h, "drover", "log", "pg", "--oneline")
		reflog := strings.Count(w.run(h, "drover", "reflog", "pg"), "\n")
		w.run(h, "drover", "volume", "move", "pg", "node2")
		w.answers("node2", "db")
		w.equal(w.run("node2", "drover", "log", "pg", "--oneline"), logged)
		if n := strings.Count(w.run(h, "drover", "reflog", "pg"), "\n"); n != reflog {
			t.Errorf("%d lines of reflog, %d before", n, reflog)
		}
		w.run(h, "drover", "reset", "--hard", "pg", "v1")
		w.answers("node2", "db")
		w.equal(w.sql("node2", "db", "select count(*) from t"), "1000")
		w.run(h, "drover", "undo", "pg")
		w.answers("node2", "db")
		w.equal(w.sql("node2", "db", "select count(*) from t"), "1002")
		if out := w.run("node2", "drover", "log", "pg@feature", "--oneline"); !strings.Contains(out, "ten") {
			t.Errorf("the branch that stayed: %s", out)
		}
	})
	t.Run("several volumes", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "docker", "run", "-d", "--name", "app", "--volume-driver", "drover", "-v", "files:/d", image, "sh", "-c", "while true; do date >> /d/log; sleep 0.01; done")
		w.run("node1", "drover", "commit", "pg", "--with", "files", "-m", "both")
		var list []api.LoggedCommit
		groups := map[string]int{}
		for _, v := range []string{"pg", "files"} {
			if err := json.Unmarshal([]byte(w.run("node1", "drover", "log", v, "-n", "1", "-o", "json")), &list); err != nil {
				t.Fatal(err)
			}
			groups[list[0].Group]++
			if list[0].Message != "both" {
				t.Errorf("%s: %+v", v, list[0])
			}
		}
		if len(groups) != 1 || groups[""] != 0 {
			t.Errorf("groups: %v", groups)
		}
		w.equal(w.run("node1", "docker", "inspect", "-f", "{{.State.Status}}", "app"), "running")
		w.answers("node2", "db")
	})
	t.Run("delete, undo, rename", func(t *testing.T) {
		w := w.in(t)
		w.refused(h, []string{"current branch"}, "drover", "branch", "pg", "-d", "main")
		w.run(h, "drover", "branch", "pg", "-d", "feature")
		w.refused(h, []string{"no such branch"}, "drover", "status", "pg@feature")
		w.run(h, "drover", "undo", "pg@feature")
		w.run(h, "drover", "branch", "pg", "-m", "feature", "trial")
		w.postgres(h, "trial", "pg@trial")
		w.equal(w.sql(h, "trial", "select count(*) from t"), "10")
		w.refused(h, []string{"used by container trial"}, "drover", "branch", "pg", "-d", "trial")
	})
}
