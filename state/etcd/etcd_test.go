package etcd_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state/etcd"
	"github.com/drover-data/drover/state/statetest"
)

// world is a cluster's CA and its nodes, in one process on loopback addresses.
type world struct {
	t  *testing.T
	ca *auth.CA
}

func newWorld(t *testing.T) *world {
	ca, err := auth.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ca: ca}
}

// identity makes a certificate for a node.
func (w *world) identity(name string, control bool) *auth.Keeper {
	w.t.Helper()
	r, err := auth.NewRequest(name)
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.ca.Sign(r.CSR, auth.Subject{Kind: auth.NodeKind, Name: name, Control: control, Addresses: []string{"127.0.0.1"}}, time.Now(), time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Join(w.t.TempDir(), "identity")
	if err := auth.WriteIdentity(dir, bundle, w.ca.PEM()); err != nil {
		w.t.Fatal(err)
	}
	k, err := auth.Open(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// freePort gives a port that nothing listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (w *world) config(name string, id *auth.Keeper) etcd.Config {
	w.t.Helper()
	return etcd.Config{
		Name: name, Dir: filepath.Join(w.t.TempDir(), "state"), Address: "127.0.0.1",
		ClientPort: freePort(w.t), PeerPort: freePort(w.t),
		Identity: id, ClusterID: "test", Tick: 20 * time.Millisecond, Election: 200 * time.Millisecond,
		NoSync: true, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
}

// start runs a member until the test ends, and waits until it answers.
func (w *world) start(cfg etcd.Config) *etcd.Member {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	m, err := etcd.Start(ctx, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.Close)
	if err := m.Ready(ctx); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) open(id *auth.Keeper, ports ...int) *etcd.KV {
	w.t.Helper()
	var endpoints []string
	for _, p := range ports {
		endpoints = append(endpoints, etcd.ClientURL("127.0.0.1", p))
	}
	kv, err := etcd.Open(etcd.ClientConfig{Endpoints: endpoints, TLS: id.ClientTLS(nil, auth.OnlyControl), Timeout: 2 * time.Second, Sync: time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = kv.Close() })
	return kv
}

func TestConformance(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("n1", w.identity("n1", true))
	m, err := etcd.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	kv := w.open(cfg.Identity, cfg.ClientPort)
	statetest.Run(t, func(t *testing.T) statetest.Harness {
		return statetest.Harness{
			KV:  kv,
			TTL: 2 * time.Second,
			Compact: func(t *testing.T) {
				_, rev, err := kv.Get(t.Context(), "x")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := kv.Client().Compact(t.Context(), rev); err != nil {
					t.Fatal(err)
				}
			},
			Break: func(t *testing.T) func() {
				m.Close()
				return func() {
					var err error
					if m, err = etcd.Start(context.WithoutCancel(t.Context()), cfg); err != nil {
						t.Fatal(err)
					}
					if err := m.Ready(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}
