package registry

import (
	"strings"
	"testing"

	"github.com/drover-data/drover/hub"
)

func TestPaths(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for path, want := range map[string]route{
		"/v2/": {kind: base}, "/v2/token": {kind: token}, "/v2/_catalog": {kind: catalog},
		"/v2/a/b/tags/list":                 {tags, "a/b", "list"},
		"/v2/a/b/manifests/v1":              {manifest, "a/b", "v1"},
		"/v2/a/manifests/b/manifests/x":     {manifest, "a/manifests/b", "x"},
		"/v2/a/b/blobs/" + d:                {blob, "a/b", d},
		"/v2/a/b/blobs/uploads/":            {uploads, "a/b", ""},
		"/v2/a/b/blobs/uploads":             {uploads, "a/b", ""},
		"/v2/a/b/blobs/uploads/x":           {upload, "a/b", "x"},
		"/v2/a/blobs/uploads/blobs/uploads": {uploads, "a/blobs/uploads", ""},
		"/v2/a/b/referrers/" + d:            {referrers, "a/b", d},
		"/v2":                               {}, "/": {}, "": {}, "/v1/a": {}, "/v2/a": {}, "/v2//": {}, "/v2/a/b/tags/lists": {reference: ""},
	} {
		if got := parsePath(path); got.kind != want.kind || (got.kind != nothing && got != want) {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

// FuzzPath: whatever a path is, what passes is a repository's name and a reference as they
// may be, and put together they are the path again.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/uploads/", "/v2/a/b/manifests/x", "/v2/a/../b/tags/list", "/v2/_catalog", "/v2/a/b/blobs/sha256:" + strings.Repeat("0", 64), "/v2/a/b/blobs/uploads/" + strings.Repeat("0", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r := parsePath(path)
		if r.kind == nothing || r.check() != nil || r.kind < tags {
			return
		}
		if hub.CheckRepository(r.repository) != nil || strings.Contains(r.repository, "..") || strings.ContainsAny(r.reference, "/\\ \x00") {
			t.Fatalf("%q: %+v", path, r)
		}
		middle := map[kind]string{tags: "tags", manifest: "manifests", blob: "blobs", uploads: "blobs/uploads", upload: "blobs/uploads", referrers: "referrers"}[r.kind]
		if again := "/v2/" + r.repository + "/" + middle + "/" + r.reference; strings.TrimSuffix(again, "/") != strings.TrimSuffix(path, "/") {
			t.Fatalf("%q became %q", path, again)
		}
	})
}
