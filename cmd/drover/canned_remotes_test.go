package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
)

const (
	keyNow = "0123456789abcdef"
	keyOld = "fedcba9876543210"
)

// cannedRemotes is what the agent of the scripts says of remotes. pg has origin,
// which is sealed, opened by "open sesame, please".
func cannedRemotes(mux *http.ServeMux, at time.Time) {
	fail := func(w http.ResponseWriter, status int, e api.Error) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(e)
	}
	give := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	keys := []api.RemoteKey{
		{ID: keyNow, Use: "current", Here: true, Wrapped: "passphrase"},
		{ID: keyOld, Use: "old", Fault: "use key " + keyOld + ": its file has 31 bytes, a key has 32"},
	}
	const path = "/v1/volumes/pg/remotes/{remote}/keys"
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("remote") == "clear" {
			give(w, []api.RemoteKey{})
			return
		}
		give(w, keys)
	})
	made := func(w http.ResponseWriter, r *http.Request) {
		var in api.SealKey
		_ = json.NewDecoder(r.Body).Decode(&in)
		k := api.RemoteKey{ID: keyNow, Use: "current", Here: true, Wrapped: "passphrase"}
		switch {
		case len(in.Recipients) > 0:
			k.Wrapped = "age identity"
		case in.Passphrase != "open sesame, please":
			fail(w, http.StatusBadRequest, api.Error{Kind: api.Invalid, Op: "wrap key", Reason: "a passphrase of fewer than 12 characters can be guessed"})
			return
		}
		if in.Rotate {
			k.Warning = "what was pushed before stays sealed with the key " + keyOld + " until retention drops it: keep that too"
		}
		give(w, k)
	}
	mux.HandleFunc("POST "+path, made)
	mux.HandleFunc("POST "+path+"/wrap", made)
	mux.HandleFunc("POST "+path+"/unlock", func(w http.ResponseWriter, r *http.Request) {
		var in api.OpenKey
		_ = json.NewDecoder(r.Body).Decode(&in)
		if in.Passphrase != "open sesame, please" && in.Identity == "" && !strings.Contains(in.Copy, "DROVER-REMOTE-KEY-1") {
			fail(w, http.StatusUnauthorized, api.Error{Kind: api.Unauthenticated, Op: "open key", Object: keyNow, Reason: "the passphrase is wrong"})
			return
		}
		give(w, keys)
	})
	mux.HandleFunc("POST "+path+"/export", func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Query().Get("key")
		if id == "" {
			id = keyNow
		}
		give(w, api.KeyCopy{ID: id, Volume: "pg", Remote: "origin", URL: "s3://backups/pg", Copy: "DROVER-REMOTE-KEY-1 " + id + " AAAA-BBBB"})
	})
	mux.HandleFunc("DELETE "+path+"/{key}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("force") == "" {
			fail(w, http.StatusConflict, api.Error{Kind: api.InUse, Op: "remove key", Object: r.PathValue("key"), Reason: "3 commits at origin are sealed with it: nobody could read them any more"})
			return
		}
		give(w, struct{}{})
	})
	cannedJobs(mux, at)
	mux.HandleFunc("GET /v1/volumes/pg/remotes/{remote}/refs", func(w http.ResponseWriter, r *http.Request) {
		l := api.RemoteListing{Remote: "origin", URL: "s3://backups/pg", Keys: keys, Refs: []api.RemoteRef{
			{Kind: "branch", Name: "main", Commit: strings.Repeat("2", 40), Message: "second\n\nand more", Time: at, Bytes: 3 << 30, Stored: 1 << 30, Sealed: keyNow},
			{Kind: "tag", Name: "v1", Commit: strings.Repeat("1", 40), Time: at, Bytes: 2 << 30, Stored: 1 << 29, Sealed: keyOld},
		}, Damaged: []api.Damage{{Name: "b-old", Reason: "its manifest cannot be read"}}}
		if r.URL.Query().Get("commits") != "" {
			l.Commits = []api.RemoteRef{{Kind: "commit", Commit: strings.Repeat("2", 40), Message: "second", Time: at}}
		}
		if r.PathValue("remote") == "empty" {
			l = api.RemoteListing{Remote: "empty", URL: "file:///x", Refs: []api.RemoteRef{}}
		}
		give(w, l)
	})
	mux.HandleFunc("POST /v1/volumes/pg/remotes", func(w http.ResponseWriter, r *http.Request) {
		var in api.NameRemote
		_ = json.NewDecoder(r.Body).Decode(&in)
		to := api.Remote{URL: in.URL}
		if strings.Contains(in.URL, "sealed") {
			if in.Open == (api.OpenKey{}) {
				fail(w, http.StatusForbidden, api.Error{Kind: api.Denied, Op: "use remote", Object: in.URL, Reason: "it is sealed with the key " + keyNow + ", which n1 does not have; the remote keeps it wrapped with a passphrase", Next: "give --passphrase-file, or --recovery-file"})
				return
			}
			to.Key = keyNow
		}
		give(w, api.Volume{Name: "pg", Remotes: map[string]api.Remote{in.Name: to}})
	})
}

// cannedJobs begins jobs that are over when they are asked for.
func cannedJobs(mux *http.ServeMux, at time.Time) {
	done := map[string]api.Job{}
	begin := func(w http.ResponseWriter, j api.Job) {
		j.ID, j.Node, j.Volume, j.Remote, j.Started, j.Ended, j.Phase = j.Kind, "n1", "pg", "origin", at, at.Add(time.Second), "done"
		done[j.ID] = j
		_ = json.NewEncoder(w).Encode(j)
	}
	mux.HandleFunc("GET /v1/jobs/{job}", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(done[r.PathValue("job")])
	})
	mux.HandleFunc("POST /v1/volumes/pg/verify", func(w http.ResponseWriter, r *http.Request) {
		var in api.VerifyRemote
		_ = json.NewDecoder(r.Body).Decode(&in)
		j := api.Job{Kind: "verify", Got: 5 << 20, Result: &api.Synced{Branch: "main", To: strings.Repeat("2", 40)}}
		if c := in.Check; c != nil {
			if c.Image == "bad" {
				j.Result, j.Err = nil, &api.Error{Kind: api.Damaged, Op: "check", Object: c.Image, Reason: "the command ended with exit code 3: a row is missing"}
			} else {
				j.Result.Checked = strings.Join(c.Command, "|") + " at " + c.Path + " for " + c.Deadline.String()
			}
		}
		begin(w, j)
	})
	mux.HandleFunc("PUT /v1/volumes/pg/schedules/{name}", func(w http.ResponseWriter, r *http.Request) {
		var in api.Schedule
		_ = json.NewDecoder(r.Body).Decode(&in)
		_ = json.NewEncoder(w).Encode(api.Volume{Name: "pg", Schedules: map[string]api.Schedule{r.PathValue("name"): in}})
	})
	mux.HandleFunc("POST /v1/volumes/pg/push", func(w http.ResponseWriter, r *http.Request) {
		var in api.StartPush
		_ = json.NewDecoder(r.Body).Decode(&in)
		out := &api.Synced{Relation: "fast-forward", Branch: "main", To: strings.Repeat("2", 40), Commits: []string{strings.Repeat("2", 40)}, DryRun: in.DryRun, Changed: 4096}
		if len(in.Tags) > 0 {
			out = &api.Synced{Relation: "up-to-date", DryRun: in.DryRun}
		}
		if in.AllTags {
			in.Tags = []string{"v1"}
		}
		for _, t := range in.Tags {
			made := api.MovedTag{Name: t, Commit: strings.Repeat("1", 40)}
			if in.Force {
				made.Was = strings.Repeat("3", 40)
			}
			out.Tags = append(out.Tags, made)
		}
		begin(w, api.Job{Kind: "push", Result: out})
	})
	mux.HandleFunc("POST /v1/volumes/pg/remotes/{remote}/prune", func(w http.ResponseWriter, r *http.Request) {
		var in api.PruneCommits
		_ = json.NewDecoder(r.Body).Decode(&in)
		p := &api.RemotePruned{Kept: 3, Dropped: []string{}, Collects: r.PathValue("remote") == "registry"}
		if in.Keep.Daily > 0 {
			p.Dropped, p.Blobs, p.Bytes, p.Waiting = []string{strings.Repeat("1", 40)}, 2, 5<<20, 1<<20
		}
		begin(w, api.Job{Kind: "prune", Result: &api.Synced{DryRun: in.DryRun, Pruned: p}})
	})
}
