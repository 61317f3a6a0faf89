package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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
			e.Setenv("HERE", socket)
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
		Heads:   map[string]api.Head{"main": {Node: "n1", Pool: "default", Epoch: 3, Ready: true}},
		Tags:    map[string]string{"v1": strings.Repeat("1", 40)},
		Remotes: map[string]api.Remote{"origin": {URL: "s3://backups/pg", Key: keyNow, Old: []string{keyOld}}},
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
	give("POST /v1/volumes/pg/labels", pg)
	give("POST /v1/volumes/pg/move", api.MovePlan{From: "n1", To: "n2", Pool: "default", Format: "btrfs-1", Bytes: 3 << 30, Users: []string{"db"}, Actions: []string{"check the target", "take a snapshot"}})
	give("DELETE /v1/volumes/pg", struct{}{})
	mux.HandleFunc("POST /v1/volumes/pg/resize", func(w http.ResponseWriter, r *http.Request) {
		var in api.Volume
		_ = json.NewDecoder(r.Body).Decode(&in)
		after := pg
		after.Size = in.Size
		_ = json.NewEncoder(w).Encode(after)
	})
	hooked := pg
	hooked.Name, hooked.Size = "hooked", 0
	hooked.Hook = &api.Hook{Kind: "command", Container: "db", Before: []string{"sh", "-c", "app freeze"}, Deadline: 10 * time.Second}
	hooked.Heads = map[string]api.Head{"main": pg.Heads["main"], "trial": {Node: "n2", Pool: "default", Epoch: 1, Ready: true, Move: &api.Move{ID: "m", To: "n1"}}}
	give("GET /v1/volumes/hooked", api.VolumeDetail{Volume: hooked, Status: map[string]api.HeadStatus{"main": {Used: 1 << 20, Sizes: "soft"}, "trial": {}}})
	give("DELETE /v1/volumes/hooked/move", hooked)
	give("POST /v1/nodes/n1", nodes[0])
	give("POST /v1/volumes/0123456789abcdef0123456789abcdef/move", api.MovePlan{Move: "m", From: "n1", To: "n2"})
	give("GET /v1/moves/m", api.MoveProgress{Volume: "pg", From: "n1", To: "n2", Phase: api.MoveDone, Round: 1, Sent: 1 << 20})
	running := 0
	mux.HandleFunc("GET /v1/volumes/moved", func(w http.ResponseWriter, _ *http.Request) {
		d := api.VolumeDetail{Volume: pg, Status: map[string]api.HeadStatus{"main": {}}}
		if running++; running > 2 {
			d.Status["main"] = api.HeadStatus{Users: []string{"container db"}}
		}
		_ = json.NewEncoder(w).Encode(d)
	})
	give("POST /v1/volumes/moved/move", api.MovePlan{Move: "m", From: "n1", To: "n2", Users: []string{"db"}})
	give("POST /v1/volumes/failed/move", api.MovePlan{Move: "m", From: "n1", To: "n2", Users: []string{"db"}})
	give("GET /v1/volumes/failed", api.VolumeDetail{Volume: pg, Status: map[string]api.HeadStatus{"main": {Alarm: "container db does not start"}}})
	give("GET /v1/users", []api.User(nil))
	give("DELETE /v1/users/ann", struct{}{})
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
	cannedRemotes(mux, at)
	history(mux, give, at)
	// Every kind of error, by name: drover volume inspect error-KIND.
	for i, k := range api.Kinds {
		mux.HandleFunc("GET /v1/volumes/error-"+string(k), func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest + i%2*100)
			_ = json.NewEncoder(w).Encode(api.Error{Kind: k, Op: "inspect volume", Object: "x", Reason: "it is a test", Next: "do this"})
		})
	}
	return mux
}

// history is what that agent says of the volume's history: three commits on
// main, of which feature leaves the first.
func history(mux *http.ServeMux, give func(string, any), at time.Time) {
	id := func(c string) string { return strings.Repeat(c, 40) }
	first := api.Commit{ID: id("1"), Branch: "main", Message: "first\n\nand more of it", Author: "ann", Time: at, Consistency: api.ConsistencyCrash, Labels: map[string]string{"ticket": "7"}, Parents: []string{id("0")}}
	second := api.Commit{ID: id("2"), Branch: "main", Message: "second", Author: "ann", Time: at.Add(time.Hour), Consistency: api.ConsistencyApplication, Hooks: []string{"postgresql in db"}, Parents: []string{first.ID}}
	other := api.Commit{ID: id("3"), Branch: "feature", Message: "other", Author: "bob", Time: at.Add(2 * time.Hour), Consistency: api.ConsistencyPaused, Parents: []string{first.ID}}
	merged := api.Commit{ID: id("4"), Branch: "main", Message: "joined", Author: "bob", Time: at.Add(3 * time.Hour), Consistency: api.ConsistencyCrash, Parents: []string{second.ID, other.ID}}
	mux.HandleFunc("GET /v1/volumes/pg/commits", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		list := []api.LoggedCommit{{Commit: second, Refs: []string{"main"}}, {Commit: first, Refs: []string{"tag: v1"}, Missing: []string{id("0")}}}
		switch {
		case q.Get("at") == "empty":
			list = []api.LoggedCommit{}
		case q.Get("at") == "nothing":
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(api.Error{Kind: api.NotFound, Op: "find commit", Object: "pg@nothing", Reason: "the volume has no branch, tag or commit of that name"})
			return
		case q.Get("at") == "merged":
			list = append([]api.LoggedCommit{{Commit: merged}, {Commit: other, Refs: []string{"feature"}}}, list...)
		case q.Get("all") == "true":
			list = append([]api.LoggedCommit{{Commit: other, Refs: []string{"feature"}}}, list...)
		case q.Get("limit") == "1" && q.Get("at") == "~1":
			list = list[1:]
		case q.Get("limit") == "1":
			list = list[:1]
		}
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("POST /v1/volumes/pg/commits", func(w http.ResponseWriter, r *http.Request) {
		var in api.MakeCommit
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c := second
		c.Message, c.Labels = in.Message, in.Labels
		if in.Consistency != "" {
			c.Consistency = in.Consistency
		}
		if in.Branch == "" {
			in.Branch = "main"
		}
		out := []api.Committed{{Volume: "pg", Branch: in.Branch, Commit: c}}
		for _, more := range in.With {
			out = append(out, api.Committed{Volume: more, Branch: "main", Commit: c})
		}
		_ = json.NewEncoder(w).Encode(out)
	})
	give("GET /v1/volumes/pg/branches", []api.Branch{
		{Name: "feature", Commit: other.ID, Node: "n1", Ready: true, Tip: &api.Tip{Op: "commit", By: "bob", At: at}},
		{Name: "main", Current: true, Commit: second.ID, Node: "n1", Ready: true, Tip: &api.Tip{Op: "reset", By: "ann", At: at}},
		{Name: "old", Commit: first.ID, Node: "n1", Deleted: at, Purge: at.Add(24 * time.Hour)},
	})
	mux.HandleFunc("POST /v1/volumes/pg/branches", func(w http.ResponseWriter, r *http.Request) {
		var in api.MakeBranch
		_ = json.NewDecoder(r.Body).Decode(&in)
		b := api.Branch{Name: in.Name, Commit: second.ID, Node: "n1"}
		if in.From != "" {
			b.Commit = in.From
		}
		if in.Expire != 0 {
			b.Node = "n1 for " + in.Expire.String()
		}
		_ = json.NewEncoder(w).Encode(b)
	})
	give("POST /v1/volumes/pg/branches/rename", api.Volume{})
	give("POST /v1/volumes/pg/branches/expire", api.Volume{})
	mux.HandleFunc("DELETE /v1/volumes/pg/branches", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Dropped{Branch: r.URL.Query().Get("name"), Commit: other.ID, Kept: id("5"), Purge: at})
	})
	mux.HandleFunc("POST /v1/volumes/pg/checkout", func(w http.ResponseWriter, r *http.Request) {
		var in api.Checkout
		_ = json.NewDecoder(r.Body).Decode(&in)
		_ = json.NewEncoder(w).Encode(api.CheckedOut{Volume: "pg", From: "main", To: in.Branch, Dirty: true, Restart: []string{"db"}})
	})
	mux.HandleFunc("POST /v1/volumes/pg/reset", func(w http.ResponseWriter, r *http.Request) {
		var in api.ResetBranch
		_ = json.NewDecoder(r.Body).Decode(&in)
		_ = json.NewEncoder(w).Encode(api.Moved{Volume: "pg", Branch: "main", Op: "reset to " + in.To, From: second.ID, To: first.ID, Kept: id("5")})
	})
	mux.HandleFunc("POST /v1/volumes/pg/stash", func(w http.ResponseWriter, r *http.Request) {
		var in api.StashChanges
		_ = json.NewDecoder(r.Body).Decode(&in)
		m := api.Moved{Volume: "pg", Branch: "main", Op: "stash", To: second.ID, Kept: id("5")}
		if in.Pop {
			m = api.Moved{Volume: "pg", Branch: "main", Op: "stash pop", To: second.ID, Note: id("5")}
		}
		_ = json.NewEncoder(w).Encode(m)
	})
	give("GET /v1/volumes/pg/stash", []api.Commit{{ID: id("5"), Message: "half of it", Stash: "stash", Time: at, Parents: []string{second.ID}}})
	give("POST /v1/volumes/pg/undo", api.Moved{Volume: "pg", Branch: "main", Op: "undo", To: first.ID, Note: "of commit; the content stays as it is"})
	give("GET /v1/volumes/pg/reflog", []api.RefLogEntry{
		{Branch: "main", To: first.ID, Tip: api.Tip{Op: "commit", By: "ann", At: at, Note: "first"}},
		{Branch: "main", To: second.ID, Tip: api.Tip{Op: "reset", From: first.ID, Kept: id("5"), By: "ann", At: at}},
	})
	mux.HandleFunc("GET /v1/volumes/pg/status", func(w http.ResponseWriter, r *http.Request) {
		s := api.BranchStatus{Volume: "pg", Branch: "main", Current: true, Commit: &second, Tip: second.ID, Node: "n1", Users: []string{"container db"}, Stashes: 1, Dirty: true, Sure: true}
		if r.URL.Query().Get("branch") == "feature" {
			s = api.BranchStatus{Volume: "pg", Branch: "feature", Node: "n1", Sure: true}
		}
		_ = json.NewEncoder(w).Encode(s)
	})
	give("POST /v1/volumes/pg/tags", api.Volume{Tags: map[string]string{"v1": first.ID, "v2": second.ID}})
	give("DELETE /v1/volumes/pg/tags", api.Volume{})
	give("POST /v1/volumes/pg/hook", api.Volume{})
}
