package collect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/engine"
	"github.com/drover-data/drover/hub/store"
)

// Rebuilt is what a rebuild found.
type Rebuilt struct {
	Repositories int      `json:"repositories"`
	Names        int      `json:"names"`
	Manifests    int      `json:"manifests"`
	Warnings     []string `json:"warnings"`
}

// builder reads one repository back.
type builder struct {
	st   *store.Store
	e    *engine.Engine
	repo string
	done map[digest.Digest]*hub.Parsed // manifests that are in the database
	out  *Rebuilt
}

// Rebuild fills an empty database from the names that are written in a storage, and
// gives it to that database. Users, rights, rules and the activity are not in a
// storage: namespaces belong to the operators afterwards. What cannot be read is
// named and left out; nothing is removed but uploads on their way.
func Rebuild(ctx context.Context, st *store.Store, e *engine.Engine, owner string) (Rebuilt, error) {
	out := Rebuilt{Warnings: []string{}}
	empty, err := st.Empty(ctx)
	if err != nil {
		return out, err
	}
	if !empty {
		return out, &api.Error{Kind: api.Exists, Op: "rebuild", Reason: "the database knows of repositories already", Next: "give an empty one"}
	}
	names := map[string]map[string]digest.Digest{}
	err = e.Names(ctx, func(repository, name string, d digest.Digest) error {
		if names[repository] == nil {
			names[repository] = map[string]digest.Digest{}
		}
		names[repository][name] = d
		return nil
	})
	if err != nil {
		return out, err
	}
	for _, repository := range sortedKeys(names) {
		b := &builder{st, e, repository, map[digest.Digest]*hub.Parsed{}, &out}
		if err := b.repository(ctx, names[repository]); err != nil {
			return out, err
		}
	}
	var left [][2]string
	if err := e.Uploads(ctx, func(repository, id string) error { left = append(left, [2]string{repository, id}); return nil }); err != nil {
		return out, err
	}
	for _, u := range left {
		if err := e.Cancel(ctx, u[0], u[1]); err != nil {
			return out, err
		}
	}
	return out, e.Reclaim(ctx, owner)
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (b *builder) warn(what string, err error) {
	b.out.Warnings = append(b.out.Warnings, fmt.Sprintf("%s %s: %v", b.repo, what, err))
}

// passing says that an error is about what is stored, and not about storing.
func passing(err error) bool {
	return api.Is(err, api.NotFound) || api.Is(err, api.Damaged) || api.Is(err, api.Invalid) || api.Is(err, api.Denied)
}

func (b *builder) repository(ctx context.Context, names map[string]digest.Digest) error {
	if err := hub.CheckRepository(b.repo); err != nil {
		b.warn("is left out", err)
		return nil
	}
	err := b.st.CreateNamespace(ctx, hub.Identity{}, hub.Namespace{Name: hub.NamespaceOf(b.repo)})
	if err != nil && !api.Is(err, api.Exists) {
		return err
	}
	if err := b.st.EnsureRepository(ctx, hub.Identity{}, b.repo); err != nil {
		return err
	}
	b.out.Repositories++
	for _, name := range sortedKeys(names) {
		err := b.name(ctx, name, names[name])
		switch {
		case err == nil:
			b.out.Names++
		case passing(err):
			b.warn(name, err)
		default:
			return err
		}
	}
	return nil
}

func (b *builder) name(ctx context.Context, name string, d digest.Digest) error {
	if d == "" {
		return &api.Error{Kind: api.Damaged, Op: "read name", Reason: "it cannot be read"}
	}
	m, err := b.manifest(ctx, d, 0)
	if err != nil {
		return err
	}
	return b.st.PutManifest(ctx, store.Put{Repository: b.repo, Right: hub.Admin, Manifest: m.Manifest, Tag: name})
}

// manifest brings one and what it names into the database.
func (b *builder) manifest(ctx context.Context, d digest.Digest, depth int) (*hub.Parsed, error) {
	if m := b.done[d]; m != nil {
		return m, nil
	}
	if depth > 32 {
		return nil, &api.Error{Kind: api.Damaged, Op: "read manifest", Object: string(d), Reason: "indexes name each other too deep"}
	}
	text, err := b.e.Read(ctx, d, hub.MaxManifest)
	if err != nil {
		return nil, err
	}
	m, err := hub.ParseManifest("", text)
	if err != nil { // it does not say itself what it is: by what it has
		media := "application/vnd.oci.image.manifest.v1+json"
		if strings.Contains(string(text), `"manifests"`) {
			media = "application/vnd.oci.image.index.v1+json"
		}
		if m, err = hub.ParseManifest(media, text); err != nil {
			return nil, err
		}
	}
	for _, child := range m.Manifests {
		if _, err := b.manifest(ctx, child, depth+1); err != nil {
			return nil, err
		}
	}
	for _, blob := range m.Blobs {
		size, err := b.e.Stat(ctx, blob)
		if err != nil {
			return nil, err
		}
		if _, err := b.st.HoldBlob(ctx, b.repo, blob, size); err != nil {
			return nil, err
		}
		if err := b.st.BlobStored(ctx, b.repo, blob, ""); err != nil {
			return nil, err
		}
	}
	switch {
	case m.Record != "":
		text, err := b.e.Read(ctx, m.Record, hub.MaxRecord)
		if err != nil {
			return nil, err
		}
		if c, err := hub.ParseRecord(text); err == nil {
			m.Commit = c
		}
	case m.First != "" && b.done[m.First] != nil:
		m.Commit = b.done[m.First].Commit
	}
	if _, err := b.st.HoldManifest(ctx, b.repo, m.Manifest); err != nil {
		return nil, err
	}
	err = b.st.PutManifest(ctx, store.Put{Repository: b.repo, Right: hub.Admin, Manifest: m.Manifest})
	if err != nil && !errors.Is(err, hub.ErrPart) {
		return nil, err
	}
	b.done[d] = &m
	b.out.Manifests++
	return &m, err
}
