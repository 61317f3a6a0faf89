package serve_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/internal/registryserver"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/registry"
)

func commitID(name string) string { return digest.FromString(name).Encoded()[:40] }

// push makes a commit with one pack and points a branch to it, from where it is.
func push(t testing.TB, s *registry.Store, branch, name string, expect digest.Digest, parents ...string) (ocispec.Descriptor, error) {
	t.Helper()
	record := map[string]any{"format": 1, "id": commitID(name), "time": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	var ids []string
	for _, p := range parents {
		ids = append(ids, commitID(p))
	}
	record["parents"] = ids
	blob := func(media string, text []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(text), Size: int64(len(text))}
		must(t, s.Put(ctx, d, remote.Bytes(text), nil))
		return d
	}
	text, err := json.Marshal(record)
	must(t, err)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.drover.commit.v1",
		Config: blob("application/vnd.drover.record.v1+json", text), Layers: []ocispec.Descriptor{blob("application/vnd.drover.pack.v1", []byte("pack of "+name))},
	}
	body, err := json.Marshal(m)
	must(t, err)
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := s.PutManifest(ctx, d, body); err != nil {
		return d, err
	}
	if err := s.SetRef(ctx, "c-"+commitID(name), d, ""); err != nil {
		return d, err
	}
	return d, s.SetRef(ctx, "b-"+branch, d, expect)
}

// readable holds that a registry gives a branch and all that it names.
func readable(t testing.TB, s *registry.Store, branch string, want digest.Digest) {
	t.Helper()
	ref, err := s.Ref(ctx, "b-"+branch)
	must(t, err)
	if ref.Desc.Digest != want {
		t.Fatalf("%s is at %s, not at %s", branch, ref.Desc.Digest, want)
	}
	_, text, err := s.Manifest(ctx, want)
	must(t, err)
	var m ocispec.Manifest
	must(t, json.Unmarshal(text, &m))
	for _, d := range append(m.Layers, m.Config) {
		if got := read(t, s, d.Digest); digest.FromBytes(got) != d.Digest {
			t.Fatalf("%s is damaged", d.Digest)
		}
	}
}

// TestStorageAlone: a stock registry serves what is in the storage, forks included, and a
// new database is built from it.
func TestStorageAlone(t *testing.T) {
	h := hubserver.Start(t, serve.Options{})
	secret := h.User(t, "alice", hub.Write)
	s := open(t, at(t, h, "alice/pg", "alice", secret))
	one, err := push(t, s, "main", "one", "")
	must(t, err)
	two, err := push(t, s, "main", "two", one.Digest, "one")
	must(t, err)
	must(t, h.Store.Fork(ctx, hubserver.Operator, "alice/pg", hub.Repository{Name: "alice/fork"}))
	must(t, h.Store.Fork(ctx, hubserver.Operator, "alice/pg", hub.Repository{Name: "alice/pg/below"}))
	must(t, h.Collector.Flush(ctx))

	stock := registryserver.Start(t, registryserver.Options{Dir: h.Dir, ReadOnly: true})
	foreign := func(repository string) *registry.Store {
		return open(t, registry.Options{Reference: stock.Host + "/" + repository, DockerConfig: filepath.Join(t.TempDir(), "x")})
	}
	for _, r := range []string{"alice/pg", "alice/fork", "alice/pg/below"} {
		readable(t, foreign(r), "main", two.Digest)
	}
	// The parent goes; what lies below it and its fork stay.
	must(t, s.DeleteRef(ctx, "b-main", two.Digest))
	_, err = foreign("alice/pg").Ref(ctx, "b-main")
	kind(t, err, api.NotFound, "")
	must(t, h.Store.DeleteRepository(ctx, hubserver.Operator, "alice/pg"))
	must(t, h.Collector.Flush(ctx))
	_, err = foreign("alice/pg").Ref(ctx, "c-"+commitID("one"))
	kind(t, err, api.NotFound, "")
	_, err = h.Collector.Sweep(ctx)
	must(t, err)
	for _, r := range []string{"alice/fork", "alice/pg/below"} {
		readable(t, foreign(r), "main", two.Digest)
		readable(t, open(t, at(t, h, r, "alice", secret)), "main", two.Digest)
	}
	h.Stop()

	// The database is lost.
	fresh := filepath.Join(t.TempDir(), "fresh.db")
	out, err := serve.Rebuild(ctx, serve.Options{Database: fresh, Storage: h.Dir})
	must(t, err)
	if out.Repositories != 2 || out.Names != 6 || len(out.Warnings) != 0 {
		t.Errorf("%+v", out)
	}
	_, err = serve.Rebuild(ctx, serve.Options{Database: fresh, Storage: h.Dir})
	kind(t, err, api.Exists, "empty one")
	again := hubserver.Start(t, serve.Options{Database: fresh, Storage: h.Dir})
	secret = again.User(t, "alice", hub.Admin)
	must(t, again.Store.SetNamespace(ctx, hubserver.Operator, hub.Namespace{Name: "alice", Owner: "alice"}))
	must(t, again.Store.SetRepository(ctx, hubserver.Operator, hub.Repository{Name: "alice/fork", Protected: []string{"main"}}))
	f := open(t, at(t, again, "alice/fork", "alice", secret))
	readable(t, f, "main", two.Digest)
	refs, err := f.Refs(ctx, "")
	must(t, err)
	if len(refs) != 3 {
		t.Errorf("%v", refs)
	}
	// The graph is there again.
	three, err := push(t, f, "main", "three", two.Digest, "two")
	must(t, err)
	_, err = push(t, f, "main", "other", three.Digest, "one")
	kind(t, err, api.Denied, `rule "main"`)
	readable(t, f, "main", three.Digest)
	_, err = again.Collector.Sweep(ctx)
	must(t, err)
	readable(t, f, "main", three.Digest)
}

// TestRules: what a hub refuses reaches the user in its words.
func TestRules(t *testing.T) {
	h := hubserver.Start(t, serve.Options{})
	s := open(t, at(t, h, "alice/pg", "alice", h.User(t, "alice", hub.Write)))
	one, err := push(t, s, "main", "one", "")
	must(t, err)
	must(t, h.Store.SetRepository(ctx, hubserver.Operator, hub.Repository{Name: "alice/pg", Protected: []string{"main"}, Quota: 1 << 20}))
	two, err := push(t, s, "main", "two", one.Digest, "one")
	must(t, err)
	_, err = push(t, s, "main", "rewritten", two.Digest, "one")
	kind(t, err, api.Denied, `protected by the rule "main"`)
	_, err = push(t, s, "main", "late", one.Digest, "one")
	kind(t, err, api.Conflict, "somebody else")
	kind(t, s.DeleteRef(ctx, "b-main", two.Digest), api.Denied, "protected")
	kind(t, s.DeleteRef(ctx, "c-"+commitID("one"), one.Digest), api.Denied, "history")
	body, desc := content(2<<20, 1)
	begun := time.Now()
	kind(t, s.Put(ctx, desc, remote.Bytes(body), nil), api.Exhausted, "quota")
	if took := time.Since(begun); took > 10*time.Second { // it is not tried again and again
		t.Errorf("it took %s", took)
	}
	events, err := h.Store.Events(ctx, "alice/pg", 0, 100)
	must(t, err)
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.Kind+" "+e.Details["name"])
	}
	slices.Reverse(kinds)
	c := func(name string) string { return "ref.create c-" + commitID(name) }
	want := []string{"repo.create ", c("one"), "ref.create b-main", "repo.change ", c("two"), "ref.move b-main", c("rewritten"), c("late")}
	if !slices.Equal(kinds, want) {
		t.Errorf("%s", strings.Join(kinds, "\n"))
	}
	if e := events[2]; e.User != "alice" || e.Token == "" || fmt.Sprint(e.Details["commit"]) != commitID("two") {
		t.Errorf("%+v", e)
	}
}
