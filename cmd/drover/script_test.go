package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/drover-data/drover/api"
)

// TestMain lets scripts call drover as a stranger would.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"drover": main})
}

// TestScripts runs testdata/script. Each script has an agent of its own to
// talk to at $DROVER_SOCKET, which gives fixed answers; "nobody" is a socket
// where nobody answers.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// A socket's path has to be short.
			dir, err := os.MkdirTemp("", "drover-")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			socket := filepath.Join(dir, "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				return err
			}
			server := &http.Server{Handler: canned(), ReadHeaderTimeout: time.Second}
			go func() { _ = server.Serve(l) }()
			e.Defer(func() { server.Close() })
			e.Setenv("DROVER_SOCKET", socket)
			e.Setenv("NOBODY", filepath.Join(dir, "nobody"))
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs drover and wants an exit code: exits 2 volume create a/b.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARG...")
	}
	err := ts.Exec("drover", args[1:]...)
	got := "0"
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		got = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		got = err.Error()
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// canned is an agent with one volume on one of two nodes.
func canned() http.Handler {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pg := api.Volume{
		ID: "0123456789abcdef0123456789abcdef", Name: "pg", Branch: "main", Created: at, Size: 10 << 30, Labels: map[string]string{"app": "shop"},
		Heads: map[string]api.Head{"main": {Node: "n1", Pool: "default", Epoch: 3, Ready: true}},
	}
	pools := []api.Pool{{Name: "default", Node: "n1", Kind: "btrfs", State: api.PoolReady, Capacity: 100 << 30, Used: 40 << 30, Free: 60 << 30, Sizes: "hard", Snapshot: "atomic", Source: "/data", Grows: true, Room: 200 << 30}}
	held := api.Pool{Name: "held", Node: "n2", Kind: "btrfs", State: api.PoolReady, Grows: true, Held: "the host keeps 20480 MiB free", Sizes: "soft", Snapshot: "atomic"}
	nodes := []api.Node{
		{Name: "n1", Address: "10.0.0.1:7433", Member: api.MemberVoter, Status: api.NodeStatus{Online: true, Software: "v1", Pools: pools}},
		{Name: "n2", Address: "10.0.0.2:7433", Member: api.MemberNone, Status: api.NodeStatus{Seen: at, Software: "v1"}},
	}
	mux := http.NewServeMux()
	give := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	give("GET /v1/volumes", []api.Volume{pg})
	give("GET /v1/volumes/pg", api.VolumeDetail{Volume: pg, Status: map[string]api.HeadStatus{"main": {Used: 3 << 30, Size: 10 << 30, Sizes: "hard", Users: []string{"container db"}}}})
	give("GET /v1/volumes/far", api.VolumeDetail{Volume: pg, Unknown: map[string]string{"main": "unknown since 2026-01-02 03:04:05 UTC: no answer"}})
	give("POST /v1/volumes/pg/resize", pg)
	give("POST /v1/volumes/pg/labels", pg)
	give("POST /v1/volumes/pg/move", api.MovePlan{From: "n1", To: "n2", Pool: "default", Format: "btrfs-1", Bytes: 3 << 30, Users: []string{"db"}, Actions: []string{"check the target", "take a snapshot"}})
	give("GET /v1/pools", append(pools, held))
	give("POST /v1/pools/default/grow", pools[0])
	give("GET /v1/nodes", nodes)
	give("GET /v1/status", api.ClusterStatus{Cluster: api.Cluster{Name: "test", ID: "fedcba9876543210"}, Node: "n1", Version: "v1", State: "healthy", Nodes: nodes, Volumes: 1})
	give("GET /v1/events", []api.Event{{ID: "1-1", Time: at, Node: "n1", Level: "info", Type: "volume.created", Message: "volume pg is ready on n1", Trace: "t"}})
	mux.HandleFunc("POST /v1/volumes", func(w http.ResponseWriter, r *http.Request) {
		var in api.CreateVolume
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if err := api.CheckVolumeName(in.Name); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(err)
			return
		}
		_ = json.NewEncoder(w).Encode(api.Volume{Name: in.Name, Size: in.Size, Labels: in.Labels})
	})
	cannedLooking(mux)
	// Every kind of error, by name: drover volume inspect error-KIND.
	for i, k := range api.Kinds {
		mux.HandleFunc("GET /v1/volumes/error-"+string(k), func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest + i%2*100)
			_ = json.NewEncoder(w).Encode(api.Error{Kind: k, Op: "inspect volume", Object: "x", Reason: "it is a test", Next: "do this"})
		})
	}
	return mux
}
