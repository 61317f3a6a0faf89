//go:build root

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/node"
	"github.com/drover-data/drover/trace"
)

// freePorts gives ports that nobody has just now.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// realNode runs both units of a one-node cluster in this process.
type realNode struct {
	cfg     node.Config
	address string
	log     *safeBuffer
}

func startNode(t *testing.T) *realNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "drover-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := freePorts(t, 3)
	cfg, err := cluster.Init(t.Context(), cluster.InitConfig{
		ClusterName: "test", Now: time.Now(),
		Node: cluster.Config{
			Name: "n1", Address: "127.0.0.1", DataDir: filepath.Join(dir, "data"), Candidate: true,
			Ports: cluster.Ports{API: p[0], State: p[1], Peer: p[2]},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &realNode{address: cfg.APIAddress(), log: &safeBuffer{}}
	ready := make(chan struct{})
	r.cfg = node.Config{
		DataDir: cfg.DataDir, RunDir: filepath.Join(dir, "run"), PluginDir: filepath.Join(dir, "plugins"), Docker: "unix://" + dir + "/docker.sock",
		Version: "test", Log: slog.New(trace.Logs(slog.NewTextHandler(r.log, nil))), Ready: func() { close(ready) },
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- node.State(ctx, r.cfg) }()
	go func() { ended <- node.Agent(ctx, r.cfg) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-ended; err != nil && ctx.Err() == nil {
				t.Errorf("a unit ended: %v", err)
			}
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("a unit ended: %v", err)
	}
	if err := awaitAgent(ctx, r.cfg.Socket(), time.Minute); err != nil {
		t.Fatal(err)
	}
	return r
}

// drover runs a command line in this process.
func drover(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(trace.With(t.Context(), trace.New()))
	return out.String(), err
}

func TestRemoteAPI(t *testing.T) {
	n := startNode(t)
	dir := t.TempDir()
	local := func(args ...string) string {
		t.Helper()
		out, err := drover(t, append(args, "--socket", n.cfg.Socket())...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	far := func(cert string, args ...string) (string, error) {
		t.Helper()
		return drover(t, append(args, "--host", "https://"+n.address, "--cert", cert)...)
	}
	certs := map[string]string{}
	for _, role := range []string{"viewer", "operator", "admin"} {
		certs[role] = filepath.Join(dir, role+".pem")
		local("user", "add", "my-"+role, "--role", role, "--out", certs[role])
		if st, err := os.Stat(certs[role]); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the file of %s: %v %v", role, st.Mode(), err)
		}
	}
	// look, change volumes (nobody has a pool here, so creating fails later
	// than at the door), manage the cluster
	for role, may := range map[string][3]bool{"viewer": {true, false, false}, "operator": {true, true, false}, "admin": {true, true, true}} {
		for i, args := range [][]string{{"node", "ls"}, {"volume", "create", "pg"}, {"node", "token"}} {
			out, err := far(certs[role], args...)
			if denied := api.Is(err, api.Denied); denied == may[i] {
				t.Errorf("%s, %v: %v\n%s", role, args, err, out)
			}
		}
	}
	out, err := far(certs["viewer"], "status", "-o", "json")
	var s api.ClusterStatus
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Node != "n1" || s.State != "healthy" {
		t.Errorf("status: %v %s", err, out)
	}
	if out, err := far(certs["viewer"], "volume", "ls"); err != nil || !strings.Contains(out, "NAME") {
		t.Errorf("%v %s", err, out)
	}
	t.Run("wrong ways", func(t *testing.T) { wrongWays(t, n, certs["viewer"], far) })
	t.Run("one trace", func(t *testing.T) { oneTrace(t, n, certs["operator"]) })
	t.Run("metrics", func(t *testing.T) { measured(t, n, certs["viewer"]) })
	t.Run("completion", func(t *testing.T) {
		t.Setenv("DROVER_HOST", n.address)
		t.Setenv("DROVER_CERT", certs["viewer"])
		for _, args := range [][]string{{"node", "drain", ""}, {"volume", "move", "pg", ""}, {"events", "--node", ""}} {
			if out, err := drover(t, append([]string{"__complete"}, args...)...); err != nil || !strings.HasPrefix(out, "n1\n") {
				t.Errorf("%v completes to %q (%v)", args, out, err)
			}
		}
	})
	local("user", "rm", "my-operator")
	patience, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // the agent follows the list of revoked keys
		_, err := far(certs["operator"], "node", "ls")
		if api.Is(err, api.Unauthenticated) {
			break
		}
		if patience.Err() != nil {
			t.Fatalf("a removed user goes on: %v", err)
		}
	}
	if _, err := far(certs["viewer"], "node", "ls"); err != nil {
		t.Errorf("another user's removal shut out: %v", err)
	}
}

func wrongWays(t *testing.T, n *realNode, cert string, far func(string, ...string) (string, error)) {
	if _, err := drover(t, "status", "--host", n.address); !api.Is(err, api.Unauthenticated) || !strings.Contains(err.Error(), "drover user add") {
		t.Errorf("without a certificate: %v", err)
	}
	if _, err := drover(t, "status", "--host", "http://"+n.address, "--cert", cert); !api.Is(err, api.Invalid) {
		t.Errorf("in clear: %v", err)
	}
	broken := filepath.Join(t.TempDir(), "broken.pem")
	if err := os.WriteFile(broken, []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := far(broken, "status"); !api.Is(err, api.Unauthenticated) {
		t.Errorf("with a broken file: %v", err)
	}
	_, port, err := net.SplitHostPort(n.address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := drover(t, "status", "--host", "localhost:"+port, "--cert", cert); !api.Is(err, api.Unauthenticated) || !strings.Contains(err.Error(), "drover node ls") {
		t.Errorf("under a name that the certificate lacks: %v", err)
	}
	if _, err := drover(t, "status", "--host", fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0]), "--cert", cert); !api.Is(err, api.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
	other := startNode(t)
	if _, err := drover(t, "status", "--host", other.address, "--cert", cert); !api.Is(err, api.Unauthenticated) {
		t.Errorf("another cluster: %v", err)
	}
}

// oneTrace looks for the id that the command began in the node's log.
func oneTrace(t *testing.T, n *realNode, cert string) {
	tr := trace.New()
	root := rootCommand()
	root.SetArgs([]string{"volume", "label", "none", "a=b", "--host", n.address, "--cert", cert})
	root.SetErr(&bytes.Buffer{})
	if err := root.ExecuteContext(trace.With(t.Context(), tr)); !api.Is(err, api.NotFound) {
		t.Fatalf("got %v", err)
	}
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "label-volume") && strings.Contains(line, "trace="+tr.ID) && strings.Contains(line, "user my-operator") {
			return
		}
	}
	t.Errorf("trace %s is not in the audit log", tr.ID)
}

func measured(t *testing.T, n *realNode, cert string) {
	address, err := hostAddress(n.address)
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := userIdentity(cert)
	if err != nil {
		t.Fatal(err)
	}
	get := func(c *http.Client) (int, string) {
		t.Helper()
		r, err := c.Get("https://" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	config := keeper.ClientTLS(nil, nil, "http/1.1")
	code, text := get(&http.Client{Transport: &http.Transport{TLSClientConfig: config}})
	for _, want := range []string{"drover_state_store_up 1", `drover_build_info{node="n1",version="test"} 1`, "drover_certificate_expiry_timestamp_seconds", "drover_api_request_seconds_count"} {
		if code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%d: %q is missing", code, want)
		}
	}
	nobody := config.Clone()
	nobody.GetClientCertificate = nil
	if code, text := get(&http.Client{Transport: &http.Transport{TLSClientConfig: nobody}}); code != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d %s", code, text)
	}
}
