//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/lab"
)

// foreignCA signs for an etcd that is not Drover's.
type foreignCA struct {
	w  *world
	ca *auth.CA
}

// give writes a certificate and the CA's into a host's /root.
func (f foreignCA) give(host *lab.Host, name string) {
	f.w.t.Helper()
	r, err := auth.NewRequest(name)
	if err != nil {
		f.w.t.Fatal(err)
	}
	chain, err := f.ca.Sign(r.CSR, auth.Subject{Kind: auth.NodeKind, Name: name, Addresses: []string{host.Address()}}, time.Now(), time.Hour)
	if err != nil {
		f.w.t.Fatal(err)
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		f.w.t.Fatal(err)
	}
	for file, text := range map[string][]byte{name + ".pem": bundle, "etcd-ca.pem": f.ca.PEM()} {
		if err := os.WriteFile(filepath.Join(host.Dir(), file), text, 0o600); err != nil {
			f.w.t.Fatal(err)
		}
	}
}

// Two clusters keep their state in one etcd that others run; the same things
// work, and what is wrong with it is said by init and join.
func TestExternalEtcd(t *testing.T) {
	w := newHosts(t, 3)
	ca, err := auth.NewCA("foreign", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := foreignCA{w, ca}
	one := w.host("node1")
	f.give(one, "etcd")
	url := "https://" + one.Address() + ":2379"
	pem := func(h *lab.Host, name string) string { return filepath.Join(h.Dir(), name+".pem") }
	server := lab.Service{Name: "etcd", Restart: "always", Args: []string{
		"/usr/bin/etcd", "--name", "foreign", "--data-dir", filepath.Join(one.Dir(), "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url,
		"--client-cert-auth", "--cert-file", pem(one, "etcd"), "--key-file", pem(one, "etcd"), "--trusted-ca-file", pem(one, "etcd-ca"),
	}}
	if err := one.StartService(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	for _, h := range w.lab.Hosts() {
		f.give(h, h.Name())
	}
	flags := func(h *lab.Host) []string {
		return []string{"--etcd-endpoints", url, "--etcd-ca", pem(h, "etcd-ca"), "--etcd-cert", pem(h, h.Name()), "--etcd-key", pem(h, h.Name())}
	}
	wrong := func(change ...string) []string {
		return append(append([]string{"drover", "init", "--no-start", "--name", "x", "--advertise", one.Address()}, flags(one)...), change...)
	}
	other, err := auth.NewCA("other", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pem(one, "other-ca"), other.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	w.until("that etcd answers, and is not who it should be", func() error {
		out, err := w.try("node1", wrong("--etcd-ca", pem(one, "other-ca"))...)
		if err == nil || !strings.Contains(out, "give that etcd's CA with --etcd-ca") {
			return errors.New(out)
		}
		return nil
	})
	w.refused("node1", []string{"none.pem"}, wrong("--etcd-cert", pem(one, "none"))...)
	if out, err := w.try("node1", "drover", "status"); err == nil {
		t.Errorf("a refused init left a node:\n%s", out)
	}

	w.cluster(lab.ClusterOptions{PoolSize: "1G", External: flags})
	w.busybox("node1", "vol", "echo here > /d/f")
	w.equal(w.busybox("node3", "vol", "cat /d/f"), "here")
	second := append([]string{"drover", "init", "--name", "second", "--no-start", "--advertise", one.Address(), "--cluster-name", "second", "--data-dir", "/var/lib/second", "--api-port", "7533"}, flags(one)...)
	w.run("node1", second...)
	w.refused("node2", []string{"--etcd-endpoints"}, "drover", "join", w.run("node1", "drover", "node", "token"), "--no-start", "--name", "late", "--data-dir", "/var/lib/late", "--api-port", "7533", "--state-port", "7534", "--peer-port", "7535")

	// The store goes and comes: what runs keeps running.
	w.run("node2", "docker", "run", "-d", "--name", "app", "--volume-driver", "drover", "-v", "app:/d", image, "sleep", "1000")
	if err := one.StopService(t.Context(), "etcd"); err != nil {
		t.Fatal(err)
	}
	w.refused("node2", []string{"external etcd"}, "drover", "status")
	w.run("node2", "docker", "exec", "app", "touch", "/d/f")
	if err := one.StartService(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	w.until("the cluster is healthy again", func() error {
		if out, err := w.try("node2", "drover", "status"); err != nil {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	// Its state comes back from a backup, in place of what was there.
	w.run("node1", "drover", "backup", filepath.Join(one.Dir(), "backup"), "--secrets-in-clear")
	w.busybox("node3", "fresh", "echo fresh > /d/f")
	w.run("node1", "drover", "recover", filepath.Join(one.Dir(), "backup"), "--abandon-living")
	w.until("the recovery is over", func() error {
		out, err := w.try("node3", "drover", "status")
		if err != nil || !strings.Contains(out, "incarnation 2") || strings.Contains(out, "recovery") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.until("what was made after the backup is back", func() error {
		out, err := w.try("node2", "docker", "run", "--rm", "--volume-driver", "drover", "-v", "fresh:/d", image, "cat", "/d/f")
		if err != nil || out != "fresh" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}
