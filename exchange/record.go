package exchange

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/tree/layer"
)

// Media and artifact types.
const (
	recordType  = "application/vnd.drover.record.v1+json"
	privateType = "application/vnd.drover.private.v1" // associated data of a record's sealed part
	commitType  = "application/vnd.drover.commit.v1"
	packsType   = "application/vnd.drover.packs.v1"
)

const recordFormat = 1

// Record is a commit as a remote keeps it.
type Record struct {
	Format int `json:"format"`
	api.Commit
	Content Content `json:"content"`
	Layers  []Layer `json:"layers"`
	Key     string  `json:"key,omitempty"`
	// Private is the sealed part of Commit: what is not needed for retention.
	Private []byte `json:"private,omitempty"`
}

// Content says what a commit's tree is.
type Content struct {
	Digest  string `json:"digest"`
	Bytes   int64  `json:"bytes"`
	Entries int64  `json:"entries"`
}

// Layer is one of a commit's layers.
type Layer struct {
	Index digest.Digest `json:"index"`
	Size  int64         `json:"size"`  // of the index, in bytes
	Level int           `json:"level"` // see repo.Merge
	Bytes int64         `json:"bytes"` // of the packs that it brought
}

// private is what only holders of the key read.
type private struct {
	Message string            `json:"message"`
	Author  string            `json:"author"`
	Labels  map[string]string `json:"labels,omitempty"`
	Hooks   []string          `json:"hooks,omitempty"`
}

// seal hides what need not be seen.
func (r *Record) seal(k Key) error {
	if k == nil {
		return nil
	}
	text, err := json.Marshal(private{r.Message, r.Author, r.Labels, r.Hooks})
	if err != nil {
		return err
	}
	r.Key, r.Private = k.ID(), k.Seal(privateType, text)
	r.Message, r.Author, r.Labels, r.Hooks = "", "", nil, nil
	return nil
}

func (r *Record) open(find func(id string) Key) error {
	if r.Key == "" {
		return nil
	}
	k := find(r.Key)
	if k == nil {
		return &api.Error{Kind: api.Denied, Op: "read commit", Object: short(r.ID), Reason: "it is sealed with the key " + r.Key + ", which is not here", Next: "drover remote key unlock brings it here"}
	}
	text, err := k.Open(privateType, r.Private)
	if err != nil {
		return err
	}
	var p private
	if err := json.Unmarshal(text, &p); err != nil {
		return damaged(short(r.ID), "its private part cannot be read")
	}
	r.Message, r.Author, r.Labels, r.Hooks, r.Private = p.Message, p.Author, p.Labels, p.Hooks, nil
	return nil
}

// Stored is a commit that a remote has.
type Stored struct {
	Record   Record
	Manifest ocispec.Descriptor
	packs    map[digest.Digest]int64 // sizes
}

// manifests makes the manifest of a commit, split where it would be too large.
// The last one is what names point to.
func manifests(record ocispec.Descriptor, layers []Layer, packs []layer.Pack, limit int64) ([]doc, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: commitType, Config: record,
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layer.IndexType, Digest: l.Index, Size: l.Size})
	}
	var list []ocispec.Descriptor
	for _, p := range packs {
		list = append(list, ocispec.Descriptor{MediaType: layer.PackType, Digest: ociDigest(p.Sum), Size: p.Size})
	}
	const perPack = 200 // bytes of a descriptor in JSON, with room to spare
	if int64(len(list)+len(layers))*perPack < min(limit, 3<<20) {
		m.Layers = append(m.Layers, list...)
		d, err := encode(m, ocispec.MediaTypeImageManifest)
		return []doc{d}, err
	}
	first, err := encode(m, ocispec.MediaTypeImageManifest)
	if err != nil {
		return nil, err
	}
	docs := []doc{first}
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, ArtifactType: commitType}
	for part := range slices.Chunk(list, int(min(limit, 3<<20)/perPack)) {
		d, err := encode(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			ArtifactType: packsType, Config: ocispec.DescriptorEmptyJSON, Layers: part,
		}, ocispec.MediaTypeImageManifest)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	for _, d := range docs {
		ix.Manifests = append(ix.Manifests, d.desc)
	}
	d, err := encode(ix, ocispec.MediaTypeImageIndex)
	return append(docs, d), err
}

// doc is a manifest, index or record with its descriptor.
type doc struct {
	desc ocispec.Descriptor
	body []byte
}

func encode(v any, mediaType string) (doc, error) {
	b, err := json.Marshal(v)
	return doc{ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b}, err
}

// maxRecord bounds what is read of a record.
const maxRecord = 4 << 20

// Load reads what a name or digest of a commit points to.
func (r *Remote) Load(ctx context.Context, d digest.Digest) (*Stored, error) {
	desc, text, err := r.Store.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	s := &Stored{Manifest: desc, packs: map[digest.Digest]int64{}}
	var main ocispec.Manifest
	switch desc.MediaType {
	case ocispec.MediaTypeImageManifest:
		if err := json.Unmarshal(text, &main); err != nil {
			return nil, damaged(string(d), "its manifest cannot be read")
		}
	case ocispec.MediaTypeImageIndex:
		if main, err = r.fanned(ctx, d, text, s); err != nil {
			return nil, err
		}
	default:
		return nil, notACommit(string(d))
	}
	if main.ArtifactType != commitType || main.Config.MediaType != recordType {
		return nil, notACommit(string(d))
	}
	for _, l := range main.Layers {
		if l.MediaType == layer.PackType {
			s.packs[l.Digest] = l.Size
		}
	}
	return s, r.record(ctx, main.Config, s)
}

func notACommit(object string) error {
	return &api.Error{Kind: api.Invalid, Op: "read commit", Object: object, Reason: "the remote has something else under this name, not a commit of Drover", Next: "use another repository"}
}

// fanned reads a commit whose packs are listed in further manifests.
func (r *Remote) fanned(ctx context.Context, d digest.Digest, text []byte, s *Stored) (main ocispec.Manifest, err error) {
	var ix ocispec.Index
	if json.Unmarshal(text, &ix) != nil || ix.ArtifactType != commitType || len(ix.Manifests) == 0 || len(ix.Manifests) > 10_000 {
		return main, notACommit(string(d))
	}
	for i, md := range ix.Manifests {
		_, text, err := r.Store.Manifest(ctx, md.Digest)
		if err != nil {
			return main, err
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(text, &m); err != nil {
			return main, damaged(string(d), "a manifest of its packs cannot be read")
		}
		if i == 0 {
			main = m
			continue
		}
		for _, l := range m.Layers {
			s.packs[l.Digest] = l.Size
		}
	}
	return main, nil
}

func (r *Remote) record(ctx context.Context, desc ocispec.Descriptor, s *Stored) error {
	if desc.Size > maxRecord {
		return damaged(string(desc.Digest), "its record is too long")
	}
	in, err := r.Store.Get(ctx, desc.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxRecord+1))
	if err != nil {
		return err
	}
	rec := &s.Record
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(rec); err != nil {
		return damaged(string(desc.Digest), "its record cannot be read")
	}
	switch {
	case rec.Format > recordFormat:
		return &api.Error{Kind: api.Unsupported, Op: "read commit", Object: short(rec.ID), Reason: fmt.Sprintf("it has format %d, this version knows %d", rec.Format, recordFormat), Next: "upgrade Drover on this node"}
	case rec.Format < 1 || !api.IsCommitID(rec.ID) || len(rec.Layers) == 0:
		return damaged(string(desc.Digest), "its record is not one of a commit")
	}
	for _, p := range rec.Parents {
		if !api.IsCommitID(p) || p == rec.ID {
			return damaged(short(rec.ID), "a parent of it is not a commit")
		}
	}
	return rec.open(r.find)
}

// Find looks a commit up by its id.
func (r *Remote) Find(ctx context.Context, id string) (*Stored, error) {
	ref, err := r.Store.Ref(ctx, remote.CommitPrefix+id)
	if err != nil {
		return nil, err
	}
	s, err := r.Load(ctx, ref.Desc.Digest)
	if err == nil && s.Record.ID != id {
		err = damaged(short(id), "the remote has commit "+short(s.Record.ID)+" in its place")
	}
	return s, err
}

// Branch gives what a branch points to; nil when there is no such branch.
func (r *Remote) Branch(ctx context.Context, name string) (*Stored, error) {
	ref, err := r.Store.Ref(ctx, remote.BranchPrefix+remote.Escape(name))
	if api.Is(err, api.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return r.Load(ctx, ref.Desc.Digest)
}
