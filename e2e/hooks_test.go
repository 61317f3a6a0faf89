//go:build lab

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/drover-data/drover/lab"
)

// Commits of a MariaDB and a Redis at work, as their hooks make them.
func TestHooksOfDatabases(t *testing.T) {
	w := newWorld(t, 1, "4G")
	tar, err := lab.DatabasesImage(t.Context(), "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.lab.LoadImage(t.Context(), tar); err != nil {
		t.Fatal(err)
	}
	t.Run("mariadb", func(t *testing.T) { hookOfMariaDB(t, w.in(t)) })
	t.Run("redis", func(t *testing.T) { hookOfRedis(t, w.in(t)) })
}

// server starts one of the image's servers and waits until it answers.
func (w *world) server(name, volume, command string, ask []string, more ...string) {
	w.t.Helper()
	args := append([]string{"docker", "run", "-d", "--name", name, "--volume-driver", "drover", "-v", volume + ":/var/lib/data"}, more...)
	w.run("node1", append(args, lab.DatabasesImageName, command)...)
	w.until(name+" answers", func() error {
		out, err := w.try("node1", append([]string{"docker", "exec", name}, ask...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// A table that does not recover by itself tells whether its server had closed
// it when the snapshot was made.
func hookOfMariaDB(t *testing.T, w *world) {
	const h = "node1"
	w.server("maria", "my", "mariadbd", []string{"mysql", "-e", "select 1"}, "--label", "drover.hook=mysql")
	sql := func(name, text string) string {
		t.Helper()
		return w.run(h, "docker", "exec", name, "mysql", "-BNe", text)
	}
	sql("maria", "create database d; create table d.t (n int primary key) engine=myisam; create table d.u (n int primary key) engine=innodb")
	const writer = `i=0; while :; do i=$((i+1)); mysql -e "insert into d.t values ($i); insert into d.u values ($i)" || exit; done`
	w.run(h, "docker", "exec", "-d", "maria", "sh", "-c", writer)
	w.until("something is written", func() error {
		if out := sql("maria", "select count(*) > 5 from d.t"); out != "1" {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	for i := range 3 {
		before := sql("maria", "select max(n) from d.t")
		if out := w.run(h, "drover", "commit", "my", "-m", fmt.Sprint("at work ", i)); !strings.Contains(out, "(application)") {
			t.Error(out)
		}
		branch := fmt.Sprint("b", i)
		w.run(h, "drover", "branch", "my", branch)
		w.server(branch, "my@"+branch, "mariadbd", []string{"mysql", "-e", "select 1"})
		if out := sql(branch, "check table d.t fast"); strings.Contains(out, "properly") || !strings.Contains(out, "status\t") {
			t.Errorf("the snapshot was made while the table was open: %s", out)
		}
		// One statement may lie between the two, no more: both were locked at once.
		if out := sql(branch, fmt.Sprintf("select (select max(n) from d.t) - (select max(n) from d.u) in (0, 1) and (select max(n) from d.t) >= %s", before)); out != "1" {
			t.Errorf("the tables do not belong together: %s", out)
		}
		w.run(h, "docker", "rm", "-f", branch)
	}
	// The lock is gone: the writer goes on.
	at := sql("maria", "select max(n) from d.t")
	w.until("the writer goes on", func() error {
		if out := sql("maria", "select max(n) > "+at+" from d.t"); out != "1" {
			return fmt.Errorf("it stands at %s", at)
		}
		return nil
	})
	// Without its hook the same server leaves the table open.
	w.run(h, "drover", "commit", "my", "-m", "asleep", "--consistency", "paused")
	w.run(h, "drover", "branch", "my", "asleep")
	w.server("asleep", "my@asleep", "mariadbd", []string{"mysql", "-e", "select 1"})
	if out := sql("asleep", "check table d.t fast"); !strings.Contains(out, "properly") {
		t.Errorf("the table was closed without a hook, so what was seen with one says nothing: %s", out)
	}
	w.run(h, "docker", "rm", "-f", "asleep")
	w.run(h, "drover", "volume", "hook", "my", "--kind", "mysql", "--user", "nobody-of-that-name")
	w.refused(h, []string{"mysql hook failed", "nothing was committed", "Access denied"}, "drover", "commit", "my", "-m", "not this")
	w.run(h, "docker", "rm", "-f", "maria")
}

func hookOfRedis(t *testing.T, w *world) {
	const h = "node1"
	w.server("redis", "keys", "redis-server", []string{"redis-cli", "ping"}, "--label", "drover.hook=redis")
	w.run(h, "docker", "exec", "redis", "sh", "-c", "for i in $(seq 500); do echo set k$i $i; done | redis-cli >/dev/null")
	if out := w.run(h, "drover", "commit", "keys", "-m", "five hundred"); !strings.Contains(out, "(application)") {
		t.Error(out)
	}
	w.run(h, "docker", "exec", "redis", "redis-cli", "set", "later", "1")
	w.run(h, "drover", "branch", "keys", "copy")
	w.server("copy", "keys@copy", "redis-server", []string{"redis-cli", "ping"})
	w.equal(w.run(h, "docker", "exec", "copy", "redis-cli", "dbsize"), "500")
	w.equal(w.run(h, "docker", "exec", "copy", "redis-cli", "get", "k499"), "499")
	w.run(h, "docker", "rm", "-f", "copy")
	w.run(h, "docker", "exec", "redis", "redis-cli", "config", "set", "requirepass", "secret")
	w.refused(h, []string{"redis hook failed", "nothing was committed", "NOAUTH"}, "drover", "commit", "keys", "-m", "not this")
	// It cannot be asked while it is paused: the commit says what it is. The lab
	// goes down with it all the same.
	w.run(h, "docker", "pause", "redis")
	if out := w.run(h, "drover", "commit", "keys", "-m", "asleep"); strings.Contains(out, "(application)") {
		t.Error(out)
	}
}
