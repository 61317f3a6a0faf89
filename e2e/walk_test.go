//go:build lab

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/internal/s3server"
	"github.com/drover-data/drover/lab"
)

// serveIn lets the programs of a host reach a server of the machine: at the
// address that it listens at in the host's network.
func serveIn(t *testing.T, h *lab.Host, address, server string) {
	t.Helper()
	listening := make(chan net.Listener, 1)
	failed := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine: no other runs in that network.
		runtime.LockOSThread()
		ns, err := os.Open("/proc/" + strconv.Itoa(h.PID()) + "/ns/net")
		if err != nil {
			failed <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			failed <- err
			return
		}
		listening <- l
	}()
	var l net.Listener
	select {
	case err := <-failed:
		t.Fatal(err)
	case l = <-listening:
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); _ = out.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
}

// The walk of docs/remotes.md: a live database goes sealed to a bucket, what is
// there is restored and checked, and another cluster, which shares nothing with
// the first but the passphrase, goes on with it.
func TestDatabaseToAnotherCluster(t *testing.T) {
	s3 := s3server.Start(t, "backups")
	w := newHosts(t, 2)
	w.cluster(lab.ClusterOptions{PoolSize: "3G", Apart: true, Env: []string{"AWS_ACCESS_KEY_ID=" + s3server.Access, "AWS_SECRET_ACCESS_KEY=" + s3server.Secret}})
	pg, err := lab.PostgresImage(t.Context(), "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.lab.LoadImage(t.Context(), pg); err != nil {
		t.Fatal(err)
	}
	const endpoint = "127.0.0.1:9000"
	for _, h := range w.lab.Hosts() {
		serveIn(t, h, endpoint, strings.TrimPrefix(s3.URL, "http://"))
	}
	url := "s3://backups/pg?endpoint=http://" + endpoint + "&region=us-east-1"
	dir := t.TempDir()
	pass := filepath.Join(dir, "pass")
	if err := os.WriteFile(pass, []byte(phrase1), 0o600); err != nil {
		t.Fatal(err)
	}

	w.postgres("node1", "db", "pg", "--label", "drover.hook=postgresql")
	w.sql("node1", "db", "create table orders (n int); insert into orders select generate_series(1, 20000)")
	// It goes on being written to.
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = w.try("node1", "docker", "exec", "db", "psql", "-U", "postgres", "-Atqc", "insert into orders select generate_series(1, 100)")
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-over })

	w.run("node1", "drover", "remote", "add", "pg", "backup", url)
	w.run("node1", "drover", "remote", "key", "new", "pg", "backup", "--passphrase-file", pass)
	before := w.orders("node1", "db")
	w.run("node1", "drover", "commit", "pg", "-m", "nightly")
	after := w.orders("node1", "db")
	w.run("node1", "drover", "push", "pg", "backup")
	const check = `exec setpriv --reuid=postgres --regid=postgres --init-groups sh -c 'pg_ctl -w -l /tmp/log start >/dev/null && psql -U postgres -Atc "select count(*) from orders"'`
	out := w.run("node1", "drover", "verify", "pg", "backup", "--check-image", lab.PostgresImageName, "--check-path", "/var/lib/postgresql/data", "--check-cmd", check)
	if n, err := strconv.Atoi(out[strings.LastIndexByte(out, '\n')+1:]); err != nil || n < before || n > after {
		t.Errorf("the check counts %d, between %d and %d were committed: %v\n%s", n, before, after, err, out)
	}

	// The other cluster.
	clone := []string{"drover", "clone", url, "pg"}
	w.refused("node2", []string{"wrapped with a passphrase"}, clone...)
	w.run("node2", append(clone, "--passphrase-file", pass)...)
	w.postgres("node2", "db", "pg")
	if n := w.orders("node2", "db"); n < before || n > after {
		t.Errorf("%d orders are restored, between %d and %d were committed", n, before, after)
	}
	// It follows what is pushed later; what it wrote itself is put aside.
	w.sql("node2", "db", "drop table orders")
	w.sql("node1", "db", "create table later ()")
	w.run("node1", "drover", "commit", "pg", "-m", "later")
	w.run("node1", "drover", "push", "pg", "backup")
	if j := w.sync("node2", "pull", "pg"); j.Result.Kept == "" {
		t.Errorf("%+v", j.Result)
	}
	w.answers("node2", "db")
	w.equal(w.sql("node2", "db", "select count(*) from later"), "0")
	if n := w.orders("node2", "db"); n < after {
		t.Errorf("%d orders are there, %d were", n, after)
	}
	w.nowhere([]string{"generate_series", "nightly"}, s3.Dir)
}

// orders counts them.
func (w *world) orders(host, name string) int {
	w.t.Helper()
	n, err := strconv.Atoi(w.sql(host, name, "select count(*) from orders"))
	if err != nil {
		w.t.Fatal(fmt.Errorf("count: %w", err))
	}
	return n
}
