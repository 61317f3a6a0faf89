//go:build root

package etcd_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
	"github.com/drover-data/drover/state/statetest"
)

// foreign is an etcd that others run: Debian's, in a process of its own, with
// a CA that is not Drover's.
type foreign struct {
	t   *testing.T
	w   *world
	url string
	dir string
	pid int
}

// newForeign starts one until the test ends.
func newForeign(t *testing.T) *foreign {
	t.Helper()
	f := &foreign{t: t, w: newWorld(t), dir: t.TempDir()}
	client, peer := freePort(t), freePort(t)
	f.url = fmt.Sprintf("https://127.0.0.1:%d", client)
	id := f.w.identity("server", false).Dir()
	pem, ca := filepath.Join(id, auth.IdentityFile), filepath.Join(id, auth.CAFile)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	c := exec.Command("etcd", "--name", "foreign", "--data-dir", filepath.Join(f.dir, "data"),
		"--listen-client-urls", f.url, "--advertise-client-urls", f.url, "--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL,
		"--initial-cluster", "foreign="+peerURL, "--client-cert-auth", "--cert-file", pem, "--key-file", pem, "--trusted-ca-file", ca, "--log-level", "error")
	log, err := os.Create(filepath.Join(f.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatalf("start etcd (package etcd-server): %v", err)
	}
	f.pid = c.Process.Pid
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("etcd:\n%s", text)
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := etcd.Check(t.Context(), f.config("admin", ""), true)
		if err == nil {
			return f
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// config is how a user of that etcd reaches it.
func (f *foreign) config(user, prefix string) etcd.ClientConfig {
	return etcd.ClientConfig{Endpoints: []string{f.url}, TLS: f.tls(f.w, user), Prefix: prefix, External: true, Sync: -1, Timeout: 5 * time.Second}
}

// tls is what files on disk would give: no name but the certificate's.
func (f *foreign) tls(w *world, user string) *tls.Config {
	k := w.identity(user, false)
	c := k.ClientTLS(nil, nil)
	c.VerifyConnection = nil
	return c
}

func (f *foreign) open(user, prefix string) *etcd.KV {
	f.t.Helper()
	kv, err := etcd.Open(f.config(user, prefix))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = kv.Close() })
	return kv
}

func (f *foreign) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestExternalConformance(t *testing.T) {
	f := newForeign(t)
	kv := f.open("admin", "drover/x/")
	statetest.Run(t, func(t *testing.T) statetest.Harness {
		return statetest.Harness{KV: kv, TTL: 2 * time.Second, Compact: func(t *testing.T) {
			_, rev, err := kv.Get(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Client().Compact(t.Context(), rev); err != nil {
				t.Fatal(err)
			}
		}, Break: func(t *testing.T) func() {
			f.must(syscall.Kill(f.pid, syscall.SIGSTOP))
			return func() { f.must(syscall.Kill(f.pid, syscall.SIGCONT)) }
		}}
	})
}

// Two clusters in one etcd do not see each other, nor what others keep there.
func TestExternalPrefixes(t *testing.T) {
	f := newForeign(t)
	a, b := f.open("admin", "drover/a/"), f.open("admin", "drover/b/")
	raw := f.open("admin", "")
	_, err := raw.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: "others", Value: []byte("1")}, {Key: state.Root + "nodes/x", Value: []byte("2")}}})
	f.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := b.Watch(ctx, state.Root, 0)
	_, err = a.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Root + "nodes/x", Value: []byte("a")}}})
	f.must(err)
	_, err = b.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Root + "nodes/x", Value: []byte("b")}}})
	f.must(err)
	if batch := <-changes; len(batch.Changed) != 1 || string(batch.Changed[0].Value) != "b" || batch.Changed[0].Key != state.Root+"nodes/x" {
		t.Errorf("b's watch saw %+v", batch)
	}
	for kv, want := range map[*etcd.KV]string{a: "a", b: "b"} {
		var got []string
		_, err := kv.List(t.Context(), state.Root, 0, func(it state.Item) error { got = append(got, it.Key+"="+string(it.Value)); return nil })
		f.must(err)
		if strings.Join(got, " ") != state.Root+"nodes/x="+want {
			t.Errorf("%s sees %v", want, got)
		}
	}
}

// What is wrong with an etcd, or with what was given for it, is said at once.
func TestExternalRefusals(t *testing.T) {
	f := newForeign(t)
	other := newWorld(t)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	f.must(err)
	defer plain.Close()
	go func() {
		for {
			conn, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	port := strings.TrimPrefix(f.url, "https://127.0.0.1:")
	for _, c := range []struct {
		name   string
		change func(*etcd.ClientConfig)
		kind   api.Kind
		says   string
	}{
		{"wrong CA", func(c *etcd.ClientConfig) { c.TLS = f.tls(other, "admin") }, api.Unauthenticated, "--etcd-ca"},
		{"a certificate of another CA", func(c *etcd.ClientConfig) {
			wrong := f.tls(other, "admin")
			c.TLS = c.TLS.Clone()
			c.TLS.GetClientCertificate = wrong.GetClientCertificate
		}, api.Unauthenticated, "--etcd-cert"},
		{"no certificate", func(c *etcd.ClientConfig) { c.TLS = c.TLS.Clone(); c.TLS.GetClientCertificate = nil }, api.Unauthenticated, "--etcd-cert"},
		{"another name", func(c *etcd.ClientConfig) { c.Endpoints = []string{"https://localhost:" + port} }, api.Unauthenticated, "not for that address"},
		{"nothing there", func(c *etcd.ClientConfig) { c.Endpoints = []string{fmt.Sprintf("https://127.0.0.1:%d", freePort(t))} }, api.Unavailable, "nothing answers"},
		{"no TLS there", func(c *etcd.ClientConfig) { c.Endpoints = []string{"https://" + plain.Addr().String()} }, api.Invalid, "does not speak TLS"},
		{"in clear", func(c *etcd.ClientConfig) { c.Endpoints = []string{"http://127.0.0.1:" + port} }, api.Invalid, "not an https URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := f.config("admin", "drover/x/")
			c.change(&cfg)
			if _, err := etcd.Check(t.Context(), cfg, true); !api.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s and %q", err, c.kind, c.says)
			}
		})
	}
	cfg := f.config("admin", "drover/x/")
	dead := fmt.Sprintf("https://127.0.0.1:%d", freePort(t))
	cfg.Endpoints = append(cfg.Endpoints, dead)
	if silent, err := etcd.Check(t.Context(), cfg, true); err != nil || len(silent) != 1 || silent[0] != dead {
		t.Errorf("with one of two endpoints silent: %v, %v", silent, err)
	}
}

// Where that etcd has users, a node needs its rights below the prefix only, and
// is told which when they are missing.
func TestExternalUsers(t *testing.T) {
	f := newForeign(t)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{f.url}, TLS: f.tls(f.w, "admin"), DialTimeout: 5 * time.Second})
	f.must(err)
	defer admin.Close()
	const prefix = "drover/prod/"
	role := func(name string, grants ...etcd.Grant) {
		_, err := admin.RoleAdd(t.Context(), name)
		f.must(err)
		for _, g := range grants {
			kind := clientv3.PermissionType(clientv3.PermRead)
			if g.Write {
				kind = clientv3.PermissionType(clientv3.PermReadWrite)
			}
			_, err := admin.RoleGrantPermission(t.Context(), name, prefix+g.Key, clientv3.GetPrefixRangeEnd(prefix+g.Key), kind)
			f.must(err)
		}
		_, err = admin.UserAddWithOptions(t.Context(), name, "", &clientv3.UserAddOptions{NoPassword: true})
		f.must(err)
		_, err = admin.UserGrantRole(t.Context(), name, name)
		f.must(err)
	}
	role("root")
	_, err = admin.UserAddWithOptions(t.Context(), "admin", "", &clientv3.UserAddOptions{NoPassword: true})
	f.must(err)
	_, err = admin.UserGrantRole(t.Context(), "admin", "root")
	f.must(err)
	role("control", etcd.Grant{Key: "", Write: true})
	role("worker", etcd.Grants("worker")...)
	role("nobody")
	_, err = admin.AuthEnable(t.Context())
	f.must(err)

	_, err = etcd.Check(t.Context(), f.config("control", prefix), true)
	f.must(err)
	_, err = etcd.Check(t.Context(), f.config("worker", prefix), false)
	f.must(err)
	for user, write := range map[string]bool{"worker": true, "nobody": false} {
		if _, err := etcd.Check(t.Context(), f.config(user, prefix), write); !api.Is(err, api.Denied) || !strings.Contains(err.Error(), "docs/external-etcd.md") || !strings.Contains(err.Error(), prefix) {
			t.Errorf("%s: %v", user, err)
		}
	}
	if _, err := etcd.Check(t.Context(), f.config("control", "drover/other/"), true); !api.Is(err, api.Denied) {
		t.Errorf("another cluster's keys: %v", err)
	}
	worker := f.open("worker", prefix)
	lease, _, err := worker.Lease(t.Context(), state.LeaseTTL)
	f.must(err)
	_, err = worker.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Alive.Key("worker"), Value: []byte("{}"), Lease: lease}}})
	f.must(err)
	if _, err := worker.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Nodes.Key("worker"), Value: []byte("{}")}}}); !api.Is(err, api.Denied) {
		t.Errorf("a worker may write records: %v", err)
	}
	if _, _, err := worker.Get(t.Context(), state.Secrets.Key("ca")); !api.Is(err, api.Denied) {
		t.Errorf("a worker may read the CA's key: %v", err)
	}
}
