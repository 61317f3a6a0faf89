//go:build lab

package lab

import (
	"testing"
	"time"
)

func TestPostgresImage(t *testing.T) {
	l := up(t, Options{Nodes: 2})
	ctx, ok := t.Context(), must(t)
	image := ok(PostgresImage(ctx, "", t.Output()))
	begin := time.Now()
	if err := l.LoadImage(ctx, image); err != nil {
		t.Fatal(err)
	}
	t.Logf("loaded into two hosts in %s", time.Since(begin))
	h := l.Hosts()[0]
	ids := ok(h.Docker(ctx, "images", "-q", "--no-trunc", PostgresImageName))
	if other := ok(l.Hosts()[1].Docker(ctx, "images", "-q", "--no-trunc", PostgresImageName)); ids != other || ids == "" {
		t.Errorf("the image is %s here and %s there", ids, other)
	}
	run := func() {
		ok(h.Docker(ctx, "run", "-d", "--name", "pg", "-v", h.Dir()+"/pg:/var/lib/postgresql/data", "-p", "5432:5432", PostgresImageName))
		ok(h.Docker(ctx, "exec", "pg", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do pg_isready -q -h 127.0.0.1 && exit 0; sleep 1; done; exit 1"))
	}
	run()
	ok(h.Docker(ctx, "exec", "pg", "psql", "-U", "postgres", "-c", "create table t as select 42 as n"))
	ok(h.Docker(ctx, "stop", "pg"))
	if got := ok(h.Docker(ctx, "inspect", "-f", "{{.State.ExitCode}}", "pg")); got != "0" {
		t.Errorf("a fast shutdown ends with exit code %s:\n%s", got, ok(h.Docker(ctx, "logs", "pg")))
	}
	ok(h.Docker(ctx, "rm", "pg"))
	run()
	// A client on the other host, from the image as well: TCP and trust work.
	got := ok(l.Hosts()[1].Docker(ctx, "run", "--rm", PostgresImageName, "psql", "-h", h.Address(), "-U", "postgres", "-Atc", "select n from t"))
	if got != "42" {
		t.Errorf("got %q", got)
	}
	ok(h.Docker(ctx, "rm", "-f", "pg"))
}
