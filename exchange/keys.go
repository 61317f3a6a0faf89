package exchange

import (
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

const (
	keyType    = "application/vnd.drover.key.v1" // of the manifest
	wrappedKey = "application/age"               // of its one layer
	maxWrapped = 1 << 20
)

// StoreKey keeps a wrapped key at the remote, so that whoever may open it needs
// nothing else. One that is there is replaced: it is the same key, wrapped for others.
func (r *Remote) StoreKey(ctx context.Context, k Key, wrapped []byte) error {
	release, err := r.lease(ctx)
	if err != nil {
		return err
	}
	defer release()
	layer := doc{ocispec.Descriptor{MediaType: wrappedKey, Digest: digest.FromBytes(wrapped), Size: int64(len(wrapped))}, wrapped}
	m, err := encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: keyType, Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer.desc},
	}, ocispec.MediaTypeImageManifest)
	if err != nil {
		return err
	}
	for _, d := range []doc{layer, {ocispec.DescriptorEmptyJSON, ocispec.DescriptorEmptyJSON.Data}} {
		if err := r.Store.Put(ctx, d.desc, remote.Bytes(d.body), nil); err != nil {
			return err
		}
	}
	if err := r.Store.PutManifest(ctx, m.desc, m.body); err != nil {
		return err
	}
	name := remote.KeyPrefix + k.ID()
	old, err := r.Store.Ref(ctx, name)
	if err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	return r.Store.SetRef(ctx, name, m.desc, old.Desc.Digest)
}

// StoredKeys lists the ids of the keys that the remote keeps.
func (r *Remote) StoredKeys(ctx context.Context) ([]string, error) {
	refs, err := r.Store.Refs(ctx, remote.KeyPrefix)
	var out []string
	for _, ref := range refs {
		out = append(out, strings.TrimPrefix(ref.Name, remote.KeyPrefix))
	}
	return out, err
}

// SealedWith is the id of the key that the newest commit of all branches is
// sealed with, "" when it is in clear. Without any branch, the one key that the
// remote keeps counts.
func (r *Remote) SealedWith(ctx context.Context) (string, error) {
	refs, err := r.refs(ctx, remote.BranchPrefix)
	if err != nil {
		return "", err
	}
	stored, err := r.stored(ctx, refs)
	if err != nil {
		return "", err
	}
	var newest *Record
	for _, s := range stored {
		if s.Stored != nil && s.err == nil && (newest == nil || s.Record.Time.After(newest.Time)) {
			newest = &s.Record
		}
	}
	if newest != nil {
		return newest.Key, nil
	}
	keys, err := r.StoredKeys(ctx)
	switch {
	case err != nil || len(keys) == 0:
		return "", err
	case len(keys) > 1:
		return "", &api.Error{Kind: api.Invalid, Op: "find key", Object: r.Store.Info().URL, Reason: "it keeps the keys " + strings.Join(keys, ", ") + ", and no branch that says which counts", Next: "choose one with --key"}
	}
	return keys[0], nil
}

// RemoveKey removes a wrapped key from the remote; gone already is success.
func (r *Remote) RemoveKey(ctx context.Context, id string) error {
	ref, err := r.Store.Ref(ctx, remote.KeyPrefix+id)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.Store.DeleteRef(ctx, ref.Name, ref.Desc.Digest)
}

// WrappedKey fetches a key that the remote keeps, for UnwrapKey.
func (r *Remote) WrappedKey(ctx context.Context, id string) ([]byte, error) {
	ref, err := r.Store.Ref(ctx, remote.KeyPrefix+id)
	if err != nil {
		return nil, err
	}
	_, text, err := r.Store.Manifest(ctx, ref.Desc.Digest)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if json.Unmarshal(text, &m) != nil || m.ArtifactType != keyType || len(m.Layers) != 1 || m.Layers[0].Size > maxWrapped {
		return nil, &api.Error{Kind: api.Damaged, Op: "read key", Object: id, Reason: "what the remote has under its name is no key"}
	}
	in, err := r.Store.Get(ctx, m.Layers[0].Digest)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(io.LimitReader(in, maxWrapped+1))
}
