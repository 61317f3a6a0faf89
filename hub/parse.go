package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// What docs/format/remote.md calls them.
const (
	commitType = "application/vnd.drover.commit.v1"
	recordType = "application/vnd.drover.record.v1+json"
	// MaxRecord bounds what is read of a record.
	MaxRecord = 4 << 20
)

// MaxManifest is what registries take at least, by the specification.
const MaxManifest = 4 << 20

var validMedia = regexp.MustCompile(`^application/[a-z0-9][a-z0-9!#$&^_.+-]{0,200}$`)

type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	URLs      []string      `json:"urls"`
}

// document is a manifest or an index of OCI or Docker.
type document struct {
	SchemaVersion *int              `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Blobs         []descriptor      `json:"blobs"` // of the artifact manifest that OCI 1.1 dropped
	Manifests     []descriptor      `json:"manifests"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// Parsed is a manifest, and where its commit is read if it is one of Drover's.
type Parsed struct {
	Manifest
	Record digest.Digest // a blob
	First  digest.Digest // a manifest: of an index
}

// ParseManifest reads a manifest as it was sent with a media type.
func ParseManifest(media string, body []byte) (Parsed, error) {
	bad := func(format string, a ...any) (Parsed, error) {
		return Parsed{}, &api.Error{Kind: api.Invalid, Op: "read manifest", Reason: fmt.Sprintf(format, a...)}
	}
	media, _, _ = strings.Cut(media, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	var doc document
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) {
		return bad("it is not a JSON object")
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return bad("it is not JSON as manifests are: %v", err)
	}
	if media == "" || media == "application/json" || media == "application/octet-stream" {
		media = doc.MediaType
	}
	switch {
	case !validMedia.MatchString(media): // they are served as they came: none of them is a page
		return bad("%.100q is not a media type of a manifest", media)
	case doc.MediaType != "" && doc.MediaType != media:
		return bad("it says that it is %.100q and was sent as %.100q", doc.MediaType, media)
	case doc.SchemaVersion != nil && *doc.SchemaVersion != 2:
		return bad("its schema has version %d, and 2 is taken", *doc.SchemaVersion)
	case len(doc.Manifests) > 0 && (doc.Config != nil || len(doc.Layers) > 0 || len(doc.Blobs) > 0):
		return bad("it is an index and a manifest at once") // CVE-2021-41190
	}
	out := Parsed{Manifest: Manifest{Digest: digest.FromBytes(body), Media: media, Size: int64(len(body)), Artifact: doc.ArtifactType, Annotations: doc.Annotations}}
	add := func(list *[]digest.Digest, what descriptor) error {
		if remote.CheckDigest(what.Digest) != nil || what.Size < 0 {
			return &api.Error{Kind: api.Invalid, Op: "read manifest", Reason: fmt.Sprintf("a descriptor of it has no SHA-256 digest or size: %.100q", string(what.Digest))}
		}
		*list = append(*list, what.Digest)
		return nil
	}
	blobs := append(slices.Clone(doc.Layers), doc.Blobs...)
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
		if out.Artifact == "" {
			out.Artifact = doc.Config.MediaType
		}
	}
	for _, b := range blobs {
		if len(b.URLs) > 0 && (strings.Contains(b.MediaType, "foreign") || strings.Contains(b.MediaType, "nondistributable")) {
			continue // it is elsewhere
		}
		if err := add(&out.Blobs, b); err != nil {
			return Parsed{}, err
		}
	}
	for _, m := range doc.Manifests {
		if err := add(&out.Manifests, m); err != nil {
			return Parsed{}, err
		}
	}
	if doc.Subject != nil {
		var subject []digest.Digest
		if err := add(&subject, *doc.Subject); err != nil {
			return Parsed{}, err
		}
		out.Subject = subject[0]
	}
	if doc.ArtifactType == commitType {
		switch {
		case doc.Config != nil && doc.Config.MediaType == recordType:
			out.Record = doc.Config.Digest
		case len(doc.Manifests) > 0:
			out.First = doc.Manifests[0].Digest
		}
	}
	slices.Sort(out.Blobs)
	out.Blobs = slices.Compact(out.Blobs)
	slices.Sort(out.Manifests)
	out.Manifests = slices.Compact(out.Manifests)
	return out, nil
}

// ParseRecord reads of a commit's record what the graph needs.
func ParseRecord(text []byte) (*Commit, error) {
	var r struct {
		Format  int       `json:"format"`
		ID      string    `json:"id"`
		Parents []string  `json:"parents"`
		Time    time.Time `json:"time"`
	}
	bad := &api.Error{Kind: api.Invalid, Op: "read commit", Reason: "its record is not one of a commit"}
	if json.Unmarshal(text, &r) != nil || !api.IsCommitID(r.ID) || len(r.Parents) > 1000 || r.Format < 1 {
		return nil, bad
	}
	for i, p := range r.Parents {
		if !api.IsCommitID(p) || p == r.ID || slices.Contains(r.Parents[:i], p) {
			return nil, bad
		}
	}
	if y := r.Time.Year(); y < 1 || y > 9999 {
		return nil, bad
	}
	return &Commit{ID: r.ID, Parents: r.Parents, Time: r.Time}, nil
}
