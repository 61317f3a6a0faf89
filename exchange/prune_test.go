package exchange

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

func full() storage.Fidelity { return storage.Full() }

func TestDryRunCountsOnce(t *testing.T) {
	dir := t.TempDir()
	p, r := newPool(filepath.Join(dir, "pool")), open(dir, nil)
	write := func(name string, n int) func(string) {
		return func(d string) { must(t, os.WriteFile(filepath.Join(d, name), bytes.Repeat([]byte{1}, n), 0o600)) }
	}
	a := p.commit(t, 1, write("a", 10_000))
	b := p.commit(t, 2, write("b", 500), a)
	c := p.commit(t, 3, write("c", 70), b)
	out, err := r.Push(context.Background(), p, Push{Branch: "main", Tip: c, Graph: p.commits, DryRun: true})
	must(t, err)
	if out.Changed != 10_570 || !slices.Equal(out.Commits, []string{a, b, c}) {
		t.Errorf("%+v", out)
	}
}

func TestPruneKeepsAndTells(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 6)
	r := at(dir, nil)
	ctx := context.Background()
	long := strings.Repeat("a/very/long/name/", 12)
	for branch, tip := range map[string]string{"main": ids[5], long: ids[2]} {
		_, err := r.Push(ctx, p, Push{Branch: branch, Tip: tip, Graph: p.commits})
		must(t, err)
	}
	s, err := r.Find(ctx, ids[1])
	must(t, err)
	must(t, r.Store.SetRef(ctx, remote.TagPrefix+remote.Escape("v1.0"), s.Manifest, ""))
	// Something of somebody else in the same place.
	other := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"x","digest":"sha256:` + strings.Repeat("a", 64) + `","size":2},"layers":[]}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(other), Size: int64(len(other))}
	must(t, r.Store.PutManifest(ctx, desc, other))
	must(t, r.Store.SetRef(ctx, "latest", desc, ""))

	l, err := r.List(ctx, true)
	must(t, err)
	if len(l.Commits) != 6 || len(l.Branches) != 2 || len(l.Tags) != 1 || len(l.Damaged) != 0 || l.Tags[0].Name != "v1.0" || l.Tags[0].ID != ids[1] {
		t.Errorf("%+v", l)
	}
	names := []string{l.Branches[0].Name, l.Branches[1].Name}
	if !slices.Contains(names, "main") || !slices.Contains(names, long) {
		t.Errorf("branches: %q", names)
	}
	for _, c := range l.Commits {
		if c.Bytes == 0 || c.Stored == 0 || c.Message == "" {
			t.Errorf("%+v", c)
		}
	}

	dry, err := r.Prune(ctx, Prune{Keep: api.Keep{Last: 2}, DryRun: true})
	must(t, err)
	want := []string{ids[0], ids[3]}
	if !slices.Equal(dry.Dropped, want) || dry.Kept != 4 || dry.Blobs != 0 || dry.Waiting == 0 {
		t.Errorf("dry run: %+v", dry)
	}
	if len(allWholeBut(t, r)) != 6 {
		t.Error("the dry run removed something")
	}
	// Young blobs wait.
	out, err := r.Prune(ctx, Prune{Keep: api.Keep{Last: 2}})
	must(t, err)
	if !slices.Equal(out.Dropped, want) || out.Kept != 4 || out.Blobs != 0 || out.Waiting != dry.Waiting {
		t.Errorf("%+v", out)
	}
	// A day later they go.
	r.Now = func() time.Time { return time.Now().Add(remote.Grace + time.Hour) }
	out, err = r.Prune(ctx, Prune{})
	must(t, err)
	if len(out.Dropped) != 0 || out.Bytes != dry.Waiting || out.Blobs == 0 || out.Waiting != 0 {
		t.Errorf("%+v", out)
	}
	if len(allWholeBut(t, r)) != 4 {
		t.Error("something else went")
	}
	if _, err := r.Store.Stat(ctx, desc.Digest); err != nil {
		t.Errorf("somebody else's: %v", err)
	}
	// A name that cannot be followed: nothing is removed on a guess.
	_, err = r.Push(ctx, p, Push{Branch: "again", Tip: ids[0], Graph: p.commits})
	must(t, err)
	s, err = r.Find(ctx, ids[4])
	must(t, err)
	must(t, r.Store.(remote.Collector).Delete(ctx, s.Manifest.Digest))
	out, err = r.Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
	if err == nil || out.Blobs != 0 || len(out.Warnings) == 0 {
		t.Errorf("%+v %v", out, err)
	}
}

// allWholeBut passes over what is somebody else's.
func allWholeBut(t *testing.T, r *Remote) []string {
	t.Helper()
	ctx := context.Background()
	l, err := r.List(ctx, true)
	must(t, err)
	fresh := &Remote{Store: r.Store, Cache: t.TempDir(), Now: time.Now, Key: r.Key, Old: r.Old}
	var out []string
	for _, c := range l.Commits {
		s, err := fresh.Load(ctx, c.Digest)
		must(t, err)
		must(t, fresh.Verify(ctx, s))
		out = append(out, c.ID)
	}
	return out
}

func TestKeysChange(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 3)
	ctx := context.Background()
	secrets := [][]byte{bytes.Repeat([]byte{1}, KeySize), bytes.Repeat([]byte{2}, KeySize)}
	var keys []Key
	for _, s := range secrets {
		k, err := NewKey(s)
		must(t, err)
		keys = append(keys, k)
	}
	r := at(dir, nil)
	push := func(i int) {
		t.Helper()
		_, err := r.Push(ctx, p, Push{Branch: "main", Tip: ids[i], Graph: p.commits})
		must(t, err)
	}
	push(0) // in clear
	r.Key = keys[0]
	push(1)
	wrapped, err := WrapKey(secrets[0], nil, "a passphrase")
	must(t, err)
	must(t, r.StoreKey(ctx, keys[0], wrapped))
	r.Key, r.Old = keys[1], keys[:1]
	push(2)
	// Whoever has both reads everything, on what is near as well.
	for i, id := range ids {
		out := filepath.Join(dir, "out", id)
		near := newPool(p.dir)
		if i > 0 {
			near.commits[ids[i-1]] = p.commits[ids[i-1]]
		}
		r.get(t, near, id, out)
		same(t, p.path(id), out)
		s, err := r.Find(ctx, id)
		must(t, err)
		if s.Record.Message == "" || s.Record.Key != keyID([]Key{nil, keys[0], keys[1]}[i]) {
			t.Errorf("%d: %+v", i, s.Record)
		}
		must(t, r.Verify(ctx, s))
	}
	// Who knows of no key pushes nothing in clear beside it.
	clear := at(dir, nil)
	more := p.commit(t, 99, func(string) {}, ids[2])
	if _, err := clear.Push(ctx, p, Push{Branch: "main", Tip: more, Graph: p.commits}); !api.Is(err, api.Denied) || !strings.Contains(err.Error(), keys[1].ID()) || !strings.Contains(err.Error(), "unlock") {
		t.Errorf("in clear: %v", err)
	}
	delete(p.commits, more)
	// Whoever has but the new one is told which is missing.
	young := at(dir, nil)
	young.Cache, young.Key = filepath.Join(dir, "young"), keys[1]
	if _, err := young.Find(ctx, ids[1]); !api.Is(err, api.Denied) || !strings.Contains(err.Error(), keys[0].ID()) {
		t.Errorf("%v", err)
	}
	if id, err := young.SealedWith(ctx); err != nil || id != keys[1].ID() {
		t.Errorf("sealed with %q, %v", id, err)
	}
	stored, err := young.StoredKeys(ctx)
	must(t, err)
	if !slices.Equal(stored, []string{keys[0].ID()}) {
		t.Errorf("keys: %v", stored)
	}
	got, err := young.WrappedKey(ctx, keys[0].ID())
	must(t, err)
	secret, err := UnwrapKey(got, "", "a passphrase")
	must(t, err)
	if !bytes.Equal(secret, secrets[0]) {
		t.Error("another key came back")
	}
	if _, err := young.WrappedKey(ctx, keys[1].ID()); !api.Is(err, api.NotFound) {
		t.Errorf("%v", err)
	}
	// Wrapped anew; a retention without any key keeps it and all branches.
	wrapped, err = WrapKey(secrets[0], nil, "another passphrase")
	must(t, err)
	must(t, r.StoreKey(ctx, keys[0], wrapped))
	nobody := at(dir, nil)
	nobody.Now = func() time.Time { return time.Now().Add(remote.Grace + time.Hour) }
	l, err := nobody.List(ctx, true)
	must(t, err)
	if len(l.Commits) != 3 || len(l.Branches) != 1 || len(l.Damaged) != 0 {
		t.Errorf("%+v", l)
	}
	out, err := nobody.Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
	must(t, err)
	if !slices.Equal(out.Dropped, ids[:2]) || out.Blobs == 0 {
		t.Errorf("%+v", out)
	}
	got, err = young.WrappedKey(ctx, keys[0].ID())
	must(t, err)
	if _, err = UnwrapKey(got, "", "another passphrase"); err != nil {
		t.Error(err)
	}
	if have := allWholeBut(t, r); !slices.Equal(have, ids[2:]) {
		t.Errorf("%v", have)
	}
	must(t, nobody.RemoveKey(ctx, keys[0].ID()))
	must(t, nobody.RemoveKey(ctx, keys[0].ID()))
	if _, err := young.WrappedKey(ctx, keys[0].ID()); !api.Is(err, api.NotFound) {
		t.Errorf("%v", err)
	}
}

// Whoever has lost a key goes on with another: what is sealed with the lost one
// still has its ids and parents.
func TestPushOverALostKey(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 3)
	ctx := context.Background()
	r := at(dir, nil)
	for i, id := range ids {
		k, err := NewKey(bytes.Repeat([]byte{byte(i)}, KeySize))
		must(t, err)
		r.Key = k
		out, err := r.Push(ctx, p, Push{Branch: "main", Tip: id, Graph: p.commits})
		must(t, err)
		if out.Relation != repo.FastForward {
			t.Errorf("%+v", out)
		}
	}
	s, err := r.Find(ctx, ids[2])
	must(t, err)
	must(t, r.Verify(ctx, s))
	g, err := r.History(ctx, nil, s)
	must(t, err)
	if len(g) != 3 {
		t.Errorf("%d commits are known of three", len(g))
	}
}
