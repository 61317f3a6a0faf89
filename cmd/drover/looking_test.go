package main

import (
	"encoding/json"
	"net/http"

	"github.com/drover-data/drover/api"
)

// cannedLooking answers what looks into the past.
func cannedLooking(mux *http.ServeMux) {
	const commit, kept = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"
	give := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	refuse := func(w http.ResponseWriter, e api.Error) {
		w.WriteHeader(http.StatusBadRequest)
		give(w, e)
	}
	mux.HandleFunc("GET /v1/volumes/pg/diff", func(w http.ResponseWriter, _ *http.Request) {
		give(w, api.Diff{Volume: "pg", From: commit, Node: "n1", Changes: []api.PathChange{
			{Path: "app.conf", What: "modified", Was: "file", Is: "file", OldSize: 4, Size: 6, Bytes: 6, Owner: "0:0 > 26:26"},
			{Path: "base", What: "type", Was: "dir", Is: "file", Size: 24 << 10, Bytes: 24 << 10},
			{Path: "dd", What: "removed", Was: "dir", OldSize: 5 << 10, Entries: 3},
			{Path: "with space", What: "added", Is: "file", Size: 1 << 20, Bytes: 4 << 10},
			{Path: "link", What: "modified", Was: "symlink", Is: "symlink", Target: api.EscapePath("to \x1b")},
			{Path: api.EscapePath("odd\n\xff"), What: "metadata", Was: "file", Is: "file", OldSize: 3, Size: 3, Mode: "0644 > 0600"},
		}, Totals: api.DiffTotals{Added: 1, Removed: 1, Modified: 2, Metadata: 1, Type: 1, Bytes: 28 << 10, Gone: 5 << 10}})
	})
	mux.HandleFunc("GET /v1/volumes/far/diff", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, api.Error{Kind: api.NotFound, Op: "find commit", Object: "far", Reason: "no pool of n1 holds it"})
	})
	mux.HandleFunc("GET /v1/volumes/pg/file", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("path") == "short":
			give(w, api.FilePart{Commit: commit, Size: 7})
		case q.Get("path") != "data/big":
			refuse(w, api.Error{Kind: api.Invalid, Op: "read file", Object: q.Get("path"), Reason: "not a path inside a volume"})
		case q.Get("offset") == "0" && q.Get("at") == "main~1":
			give(w, api.FilePart{Commit: commit, Size: 19, Data: []byte("part one, ")})
		case q.Get("offset") == "10" && q.Get("at") == commit:
			give(w, api.FilePart{Commit: commit, Size: 19, Data: []byte("part two\n")})
		default:
			refuse(w, api.Error{Kind: api.Internal, Op: "read file", Reason: "not what comes next: " + r.URL.String()})
		}
	})
	mux.HandleFunc("POST /v1/volumes/pg/revert-file", func(w http.ResponseWriter, r *http.Request) {
		var in api.RevertFile
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			refuse(w, api.Error{Kind: api.Invalid, Op: "revert file", Err: err})
			return
		}
		if in.Path == "used" && !in.Force {
			refuse(w, api.Error{Kind: api.InUse, Op: "revert file", Object: "pg@main", Reason: "it is used by container db", Next: "stop them first, or add --force"})
			return
		}
		give(w, api.Reverted{Volume: "pg", Branch: "main", Path: in.Path, From: commit, Size: 6, Kept: kept})
	})
	mux.HandleFunc("GET /v1/volumes/pg/place", func(w http.ResponseWriter, r *http.Request) {
		p := api.Place{Volume: "pg", Commit: commit, Node: "n1", Pool: "default", Dir: "/"}
		if r.URL.Query().Get("at") == "far" {
			p.Node = "n2"
		}
		give(w, p)
	})
}
