package store

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func blobs(b *bench) {
	d := sum("x")
	_, err := b.Blob(ctx, "alice/none", d)
	kind(b, err, api.NotFound, "not there")
	if !errors.Is(err, hub.ErrRepository) {
		b.Errorf("%v", err)
	}
	missing := func(repo string) {
		b.Helper()
		if _, err := b.Blob(ctx, repo, d); !errors.Is(err, hub.ErrBlob) {
			b.Errorf("%v", err)
		}
	}
	missing("alice/pg")
	_, err = b.HoldBlob(ctx, "alice/pg", d, 1)
	must(b, err)
	missing("alice/pg") // its bytes are on their way
	must(b, b.CreateRepository(ctx, alice, hub.Repository{Name: "alice/other"}))
	if err := b.Mount(ctx, "alice/other", "alice/pg", d); !errors.Is(err, hub.ErrBlob) {
		b.Errorf("%v", err)
	}
	must(b, b.BeginUpload(ctx, "alice/pg", "u1"))
	must(b, b.BlobStored(ctx, "alice/pg", d, "u1"))
	if err := b.RenewUpload(ctx, "alice/pg", "u1"); !errors.Is(err, hub.ErrUpload) {
		b.Errorf("%v", err)
	}
	if n, err := b.Blob(ctx, "alice/pg", d); n != 1 || err != nil {
		b.Errorf("%d %v", n, err)
	}
	missing("alice/other")
	must(b, b.Mount(ctx, "alice/other", "alice/pg", d))
	must(b, b.Mount(ctx, "alice/other", "alice/pg", d))
	must(b, b.DeleteBlob(ctx, "alice/pg", d))
	missing("alice/pg")
	if err := b.DeleteBlob(ctx, "alice/pg", d); !errors.Is(err, hub.ErrBlob) {
		b.Errorf("%v", err)
	}
	if n, err := b.Blob(ctx, "alice/other", d); n != 1 || err != nil {
		b.Errorf("%d %v", n, err)
	}
	// What is damaged is not there until it was replaced.
	must(b, b.Damage(ctx, d))
	missing("alice/other")
	if list, err := b.Damaged(ctx); err != nil || !slices.Equal(list, []digest.Digest{d}) {
		b.Errorf("%v %v", list, err)
	}
	if err := b.Mount(ctx, "alice/pg", "alice/other", d); !errors.Is(err, hub.ErrBlob) {
		b.Errorf("%v", err)
	}
	replace, err := b.HoldBlob(ctx, "alice/pg", d, 1)
	must(b, err)
	if !replace {
		b.Error("it is not replaced")
	}
	must(b, b.BlobStored(ctx, "alice/pg", d, ""))
	if n, err := b.Blob(ctx, "alice/other", d); n != 1 || err != nil {
		b.Errorf("%d %v", n, err)
	}
	// Uploads are of one repository, and go on.
	must(b, b.BeginUpload(ctx, "alice/pg", "u2"))
	if err := b.RenewUpload(ctx, "alice/other", "u2"); !errors.Is(err, hub.ErrUpload) {
		b.Errorf("%v", err)
	}
	b.clock.add(time.Hour)
	must(b, b.RenewUpload(ctx, "alice/pg", "u2"))
	if list, err := b.StaleUploads(ctx, b.clock.now()); err != nil || len(list) != 0 {
		b.Errorf("%v %v", list, err)
	}
	if list, err := b.StaleUploads(ctx, b.clock.now().Add(1e6)); err != nil || !slices.Equal(list, []Upload{{"u2", "alice/pg"}}) {
		b.Errorf("%v %v", list, err)
	}
	must(b, b.EndUpload(ctx, "u2"))
	must(b, b.EndUpload(ctx, "u2"))
}

func manifests(b *bench) {
	const repo = "alice/pg"
	m := hub.Manifest{Digest: sum("m"), Media: "application/x", Size: 5, Artifact: "art", Blobs: []digest.Digest{sum("b1")}}
	err := b.put(repo, "v1", m, Condition{})
	kind(b, err, api.NotFound, "push it first")
	if !errors.Is(err, hub.ErrPart) {
		b.Errorf("%v", err)
	}
	_, err = b.Manifest(ctx, repo, string(m.Digest))
	if !errors.Is(err, hub.ErrManifest) {
		b.Errorf("%v: it was refused, and is there", err)
	}
	b.blob(repo, "b1")
	must(b, b.put(repo, "v1", m, Condition{Absent: true}))
	kind(b, b.put(repo, "v1", m, Condition{Absent: true}), api.Conflict, "somebody else")
	m2 := hub.Manifest{Digest: sum("m2"), Media: "application/x", Size: 6, Artifact: "other", Subject: m.Digest, Annotations: map[string]string{"a": "ü"}}
	kind(b, b.put(repo, "v1", m2, Condition{At: m2.Digest}), api.Conflict, string(m.Digest))
	kind(b, b.put(repo, "new", m2, Condition{At: m.Digest}), api.Conflict, "nothing")
	must(b, b.put(repo, "v1", m2, Condition{At: m.Digest}))
	ix := hub.Manifest{Digest: sum("ix"), Media: "index", Size: 7, Manifests: []digest.Digest{m.Digest, sum("none")}}
	if err := b.put(repo, "", ix, Condition{}); !errors.Is(err, hub.ErrPart) {
		b.Errorf("%v", err)
	}
	ix.Manifests = ix.Manifests[:1]
	must(b, b.put(repo, "ix", ix, Condition{}))
	f, err := b.Manifest(ctx, repo, "v1")
	must(b, err)
	if f.Digest != m2.Digest || f.Media != m2.Media || f.Size != 6 {
		b.Errorf("%+v", f)
	}
	refs, err := b.Refs(ctx, repo, "", 0)
	must(b, err)
	if len(refs) != 2 || refs[0].Name != "ix" || refs[1].Name != "v1" {
		b.Errorf("%+v", refs)
	}
	if refs, err = b.Refs(ctx, repo, "ix", 1); err != nil || len(refs) != 1 || refs[0].Name != "v1" {
		b.Errorf("%+v %v", refs, err)
	}
	for artifact, n := range map[string]int{"": 1, "other": 1, "art": 0} {
		list, err := b.Referrers(ctx, repo, m.Digest, artifact, "", 10)
		must(b, err)
		if len(list) != n || (n == 1 && (list[0].Digest != m2.Digest || list[0].Annotations["a"] != "ü")) {
			b.Errorf("%q: %+v", artifact, list)
		}
	}
	kind(b, b.DeleteBlob(ctx, repo, sum("b1")), api.InUse, "manifest")
	kind(b, b.DeleteManifest(ctx, repo, m.Digest, alice, hub.Admin), api.InUse, "index")
	must(b, b.DeleteManifest(ctx, repo, ix.Digest, alice, hub.Admin))
	must(b, b.DeleteManifest(ctx, repo, m.Digest, alice, hub.Admin))
	must(b, b.DeleteBlob(ctx, repo, sum("b1")))
	kind(b, b.DeleteRef(ctx, repo, "v1", alice, hub.Write, Condition{At: m.Digest}), api.Conflict, "somebody else")
	must(b, b.DeleteRef(ctx, repo, "v1", alice, hub.Write, Condition{At: m2.Digest}))
	if err := b.DeleteRef(ctx, repo, "v1", alice, hub.Write, Condition{}); !errors.Is(err, hub.ErrManifest) {
		b.Errorf("%v", err)
	}
}

func rulesHold(b *bench) {
	const repo = "alice/pg"
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Protected: []string{"main", "release/*"}}))
	a, err := b.commit(repo, "c-"+commitID("a"), "a")
	must(b, err)
	_, err = b.commit(repo, "b-main", "a")
	must(b, err)
	_, err = b.commit(repo, "", "b", "a")
	must(b, err)
	_, err = b.commit(repo, "", "c", "b", "other")
	must(b, err)
	_, err = b.commit(repo, "b-main", "c", "b", "other")
	must(b, err) // over b, whose record alone says so
	_, err = b.commit(repo, "b-main", "d", "a")
	kind(b, err, api.Denied, `rule "main"`)
	_, err = b.commit(repo, "b-main", "a")
	kind(b, err, api.Denied, `rule "main"`)
	_, err = b.commit(repo, "b-free", "d", "a")
	must(b, err)
	_, err = b.commit(repo, "b-free", "a")
	must(b, err)
	_, err = b.commit(repo, "b-release_2f1", "d", "a")
	must(b, err)
	_, err = b.commit(repo, "b-release_2f1", "c", "b", "other")
	kind(b, err, api.Denied, `rule "release/*"`)
	// What is no commit does not come after one.
	must(b, b.put(repo, "b-release_2f2", hub.Manifest{Digest: sum("image"), Media: "m", Size: 1}, Condition{}))
	_, err = b.commit(repo, "b-release_2f2", "a")
	kind(b, err, api.Denied, "release")
	kind(b, b.put(repo, "b-main", hub.Manifest{Digest: sum("image"), Media: "m", Size: 1}, Condition{}), api.Denied, "main")
	// The same commit with another past.
	m := hub.Manifest{Digest: sum("forged"), Media: "m", Size: 1, Commit: &hub.Commit{ID: commitID("d"), Parents: []string{commitID("c")}}}
	kind(b, b.put(repo, "b-main", m, Condition{}), api.Denied, "other parents")
	// Names of commits stay, and stand for what they say.
	_, err = b.commit(repo, "c-"+commitID("a"), "b", "a")
	kind(b, err, api.Denied, "never moves")
	_, err = b.commit(repo, "c-"+commitID("zzz"), "b", "a")
	kind(b, err, api.Denied, "this is commit")
	kind(b, b.DeleteRef(ctx, repo, "b-main", alice, hub.Admin, Condition{}), api.Denied, "protected")
	kind(b, b.DeleteRef(ctx, repo, "c-"+commitID("a"), alice, hub.Write, Condition{}), api.Denied, "history of b-")
	kind(b, b.DeleteManifest(ctx, repo, a, alice, hub.Write), api.Denied, "protected")
	must(b, b.DeleteRef(ctx, repo, "b-free", alice, hub.Write, Condition{}))
	must(b, b.DeleteRef(ctx, repo, "c-"+commitID("a"), alice, hub.Admin, Condition{}))
	c, err := b.CommitOf(ctx, repo, sum("manifest c"))
	if err != nil || c == nil || c.ID != commitID("c") || !slices.Equal(c.Parents, []string{commitID("b"), commitID("other")}) {
		b.Errorf("%+v %v", c, err)
	}
	if c, err := b.CommitOf(ctx, repo, sum("image")); c != nil || err != nil {
		b.Errorf("%+v %v", c, err)
	}
}

func quota(b *bench) {
	const repo = "alice/pg"
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Quota: 100}))
	b.blob(repo, strings.Repeat("a", 60))
	_, err := b.HoldBlob(ctx, repo, sum("big"), 41)
	kind(b, err, api.Exhausted, "quota of the repository")
	kind(b, b.Room(ctx, repo, 41), api.Exhausted, "quota")
	must(b, b.Room(ctx, repo, 40))
	b.blob(repo, strings.Repeat("a", 60)) // costs nothing
	_, err = b.HoldManifest(ctx, repo, hub.Manifest{Digest: sum("m"), Size: 41})
	kind(b, err, api.Exhausted, "quota")
	must(b, b.SetNamespace(ctx, root, hub.Namespace{Name: "alice", Owner: "alice", Quota: 70}))
	must(b, b.CreateRepository(ctx, alice, hub.Repository{Name: "alice/two"}))
	_, err = b.HoldBlob(ctx, "alice/two", sum("big"), 5<<32)
	kind(b, err, api.Exhausted, "quota of the namespace")
	if err := b.Mount(ctx, "alice/two", repo, sum(strings.Repeat("a", 60))); !api.Is(err, api.Exhausted) {
		b.Errorf("%v", err)
	}
	kind(b, b.Fork(ctx, alice, repo, hub.Repository{Name: "alice/fork"}), api.Exhausted, "namespace")
	if _, err := b.Repository(ctx, "alice/fork"); !api.Is(err, api.NotFound) {
		b.Errorf("%v", err)
	}
	// A quota below what is there forbids more, and nothing else.
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Quota: 1}))
	b.blob(repo, strings.Repeat("a", 60))
	must(b, b.DeleteBlob(ctx, repo, sum(strings.Repeat("a", 60))))
}
