package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// gone sweeps until nothing is left to do and says whose bytes are removed.
func (b *bench) gone() []digest.Digest {
	b.Helper()
	list, err := b.Repositories(ctx, root, "", 0)
	must(b, err)
	for _, r := range list {
		_, err := b.SweepRepository(ctx, r.Name, b.clock.now().Add(-hub.Grace))
		must(b, err)
	}
	_, err = b.MarkOrphans(ctx, 1000)
	must(b, err)
	orphans, err := b.Orphans(ctx)
	must(b, err)
	out := []digest.Digest{}
	for _, o := range orphans {
		must(b, b.Removed(ctx, o.Digest))
		out = append(out, o.Digest)
	}
	b.audit()
	return out
}

func sorted(list ...digest.Digest) []digest.Digest {
	slices.Sort(list)
	return list
}

func (b *bench) expect(want ...digest.Digest) {
	b.Helper()
	if got := b.gone(); !slices.Equal(got, append([]digest.Digest{}, sorted(want...)...)) {
		b.Errorf("gone are %v, want %v", got, want)
	}
}

func sweep(b *bench) {
	const repo = "alice/pg"
	x, y := b.blob(repo, "x"), b.blob(repo, "y")
	child := hub.Manifest{Digest: sum("child"), Size: 1, Blobs: []digest.Digest{x}}
	must(b, b.put(repo, "", child, Condition{}))
	ix := hub.Manifest{Digest: sum("ix"), Size: 1, Manifests: []digest.Digest{child.Digest}}
	must(b, b.put(repo, "ix", ix, Condition{}))
	signature := hub.Manifest{Digest: sum("signature"), Size: 1, Subject: child.Digest, Blobs: []digest.Digest{y}}
	must(b, b.put(repo, "", signature, Condition{}))
	lonely := hub.Manifest{Digest: sum("lonely"), Size: 1, Subject: sum("nobody"), Blobs: []digest.Digest{y}}
	must(b, b.put(repo, "", lonely, Condition{}))
	z := b.blob(repo, "z")
	held := sum("held")
	_, err := b.HoldBlob(ctx, repo, held, 4)
	must(b, err)
	b.expect()
	b.clock.add(hub.Grace - time.Hour)
	b.expect()
	if _, err := b.Blob(ctx, repo, z); err != nil { // it is asked for
		b.Fatal(err)
	}
	b.clock.add(2 * time.Hour)
	b.expect(lonely.Digest, held)
	if err := b.BlobStored(ctx, repo, held, ""); !api.Is(err, api.Unavailable) {
		b.Errorf("what took a day to store: %v", err)
	}
	if _, err := b.Blob(ctx, repo, z); err != nil {
		b.Error(err)
	}
	b.clock.add(2 * hub.Grace)
	b.expect(z)
	must(b, b.DeleteRef(ctx, repo, "ix", alice, hub.Write, Condition{}))
	b.expect() // who reads it now has the grace period
	b.clock.add(hub.Grace + time.Millisecond)
	b.expect(ix.Digest, child.Digest, signature.Digest, x, y)
	// What is marked is taken from everybody.
	w := b.blob(repo, "w")
	must(b, b.DeleteBlob(ctx, repo, w))
	if n, err := b.MarkOrphans(ctx, 10); n != 1 || err != nil {
		b.Fatal(n, err)
	}
	_, err = b.HoldBlob(ctx, repo, w, 1)
	kind(b, err, api.Unavailable, "being removed")
	if !errors.Is(err, ErrDeleting) {
		b.Errorf("%v", err)
	}
	_, err = b.HoldManifest(ctx, repo, hub.Manifest{Digest: w, Size: 1})
	kind(b, err, api.Unavailable, "being removed")
	must(b, b.Removed(ctx, w))
	b.blob(repo, "w")
	// Cycles through subjects do not keep themselves.
	one := hub.Manifest{Digest: sum("one"), Size: 1}
	two := hub.Manifest{Digest: sum("two"), Size: 1, Manifests: []digest.Digest{one.Digest}}
	three := hub.Manifest{Digest: sum("three"), Size: 1, Subject: one.Digest, Manifests: []digest.Digest{two.Digest}}
	for _, m := range []hub.Manifest{one, two, three} {
		must(b, b.put(repo, "", m, Condition{}))
	}
	b.clock.add(hub.Grace + time.Millisecond)
	b.expect(one.Digest, two.Digest, three.Digest, w)
	must(b, b.BeginSweep(ctx))
	if s, err := b.LastSweep(ctx); err != nil || s.Ended != nil || !s.Begun.Equal(b.clock.now()) {
		b.Errorf("%+v %v", s, err)
	}
	must(b, b.EndSweep(ctx, Figures{Blobs: 3}))
	if s, err := b.LastSweep(ctx); err != nil || s.Ended == nil || s.Blobs != 3 {
		b.Errorf("%+v %v", s, err)
	}
}

func retention(b *bench) {
	const repo = "alice/pg"
	for i := range 5 {
		id, parent := fmt.Sprint(i), fmt.Sprint(i-1)
		_, err := b.commit(repo, "c-"+commitID(id), id, parent)
		must(b, err)
		b.clock.add(time.Hour)
	}
	_, err := b.commit(repo, "b-main", "2", "1")
	must(b, err)
	_, err = b.commit(repo, "b-main", "4", "3")
	must(b, err)
	_, err = b.commit(repo, "t-kept", "0", "-1")
	must(b, err)
	last := func(n int) func(api.Keep, []api.Commit, map[string]bool, time.Time) map[string]bool {
		return func(k api.Keep, list []api.Commit, stay map[string]bool, _ time.Time) map[string]bool {
			if len(list) == 0 || k.Last != 1 {
				b.Errorf("%v %v", k, list)
			}
			return map[string]bool{list[0].ID: n > 0}
		}
	}
	if n, err := b.Retain(ctx, repo, b.clock.now().Add(-hub.Grace), nil); n != 0 || err != nil {
		b.Fatal(n, err) // there is no policy
	}
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Keep: &api.Keep{Last: 1}}))
	if n, err := b.Retain(ctx, repo, b.clock.now().Add(-hub.Grace), last(0)); n != 0 || err != nil {
		b.Fatal(n, err) // all of them are young
	}
	b.clock.add(hub.Grace)
	if n, err := b.Retain(ctx, repo, b.clock.now().Add(-hub.Grace), last(0)); n != 3 || err != nil {
		b.Fatal(n, err)
	}
	refs, err := b.Refs(ctx, repo, "", 0)
	must(b, err)
	for _, f := range refs {
		if hub.CommitOf(f.Name) != "" && f.Name != "c-"+commitID("4") && f.Name != "c-"+commitID("0") {
			b.Errorf("%s stays", f.Name)
		}
	}
	// What is gone still says what comes after what.
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Protected: []string{"*"}}))
	b.clock.add(2 * hub.Grace)
	b.gone()
	_, err = b.commit(repo, "b-main", "5", "4")
	must(b, err)
	_, err = b.commit(repo, "b-main", "6", "3")
	kind(b, err, api.Denied, "forward")
	if n, err := b.Retain(ctx, "alice/none", b.clock.now(), nil); n != 0 || err != nil {
		b.Error(n, err)
	}
}

func fork(b *bench) {
	const from = "alice/pg"
	_, err := b.commit(from, "b-main", "a")
	must(b, err)
	d, err := b.commit(from, "b-main", "b", "a")
	must(b, err)
	pending := sum("pending")
	_, err = b.HoldBlob(ctx, from, pending, 1)
	must(b, err)
	kind(b, b.Fork(ctx, alice, "alice/none", hub.Repository{Name: "alice/x"}), api.NotFound, "alice/none")
	must(b, b.Fork(ctx, alice, from, hub.Repository{Name: "bob/pg", Protected: []string{"main"}}))
	kind(b, b.Fork(ctx, alice, from, hub.Repository{Name: "bob/pg"}), api.Exists, "bob/pg")
	r, err := b.Repository(ctx, "bob/pg")
	must(b, err)
	if r.Forked != from || r.Used != 32 {
		b.Errorf("%+v", r)
	}
	b.audit()
	must(b, b.DeleteRepository(ctx, alice, from))
	if _, err := b.Repository(ctx, from); !errors.Is(err, hub.ErrRepository) {
		b.Errorf("%v", err)
	}
	b.clock.add(2 * hub.Grace)
	b.expect(sum("manifest a"), sum("blob a"), pending)
	if f, err := b.Manifest(ctx, "bob/pg", "b-main"); err != nil || f.Digest != d {
		b.Errorf("%+v %v", f, err)
	}
	if _, err := b.Blob(ctx, "bob/pg", sum("blob b")); err != nil {
		b.Error(err)
	}
	// The fork has the graph, and rules of its own.
	_, err = b.commit("bob/pg", "b-main", "c", "b")
	must(b, err)
	_, err = b.commit("bob/pg", "b-main", "x", "a")
	kind(b, err, api.Denied, "main")
	must(b, b.DeleteRepository(ctx, alice, "bob/pg"))
	b.expect(d, sum("blob b"), sum("manifest c"), sum("blob c"), sum("manifest x"), sum("blob x"))
}
