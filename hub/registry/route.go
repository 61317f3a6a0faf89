package registry

import (
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/remote"
)

// kind is what a path is about.
type kind int

const (
	nothing kind = iota
	base
	token
	catalog
	tags
	manifest
	blob
	uploads // where they begin
	upload
	referrers
)

// route is what a path says.
type route struct {
	kind       kind
	repository string
	reference  string // a tag, a digest, or an upload's id
}

var uploadID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// parsePath reads a path below /v2/ from its end, because names have slashes. What a
// repository is called is checked, and the reference in part: see checkReference.
func parsePath(path string) route {
	path, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case !ok:
		return route{}
	case path == "":
		return route{kind: base}
	case path == "token":
		return route{kind: token}
	case path == "_catalog":
		return route{kind: catalog}
	}
	parts := strings.Split(path, "/")
	n := len(parts)
	if n < 3 {
		return route{}
	}
	r := route{reference: parts[n-1]}
	name := parts[:n-2]
	switch {
	case parts[n-2] == "tags" && r.reference == "list":
		r.kind = tags
	case parts[n-2] == "manifests":
		r.kind = manifest
	case parts[n-2] == "referrers":
		r.kind = referrers
	case parts[n-2] == "uploads" && n > 3 && parts[n-3] == "blobs":
		r.kind, name = upload, parts[:n-3]
		if r.reference == "" {
			r.kind = uploads
		}
	case parts[n-2] == "blobs":
		r.kind = blob
		if r.reference == "uploads" { // some leave out the last slash
			r.kind, r.reference = uploads, ""
		}
	default:
		return route{}
	}
	r.repository = strings.Join(name, "/")
	return r
}

// check refuses names and references that cannot be.
func (r route) check() *refusal {
	if r.repository != "" || r.kind >= tags {
		if err := hub.CheckRepository(r.repository); err != nil {
			return &refusal{400, "NAME_INVALID", err.Error(), 0}
		}
	}
	switch r.kind {
	case blob, referrers:
		if _, bad := parseDigest(r.reference); bad != nil {
			return bad
		}
	case manifest:
		if strings.Contains(r.reference, ":") {
			_, bad := parseDigest(r.reference)
			return bad
		}
		if remote.CheckName(r.reference) != nil {
			return &refusal{400, "TAG_INVALID", "not a tag", 0}
		}
	case upload:
		if !uploadID.MatchString(r.reference) {
			return &refusal{404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload", 0}
		}
	}
	return nil
}

func parseDigest(text string) (digest.Digest, *refusal) {
	d := digest.Digest(text)
	if remote.CheckDigest(d) != nil {
		return "", &refusal{400, "DIGEST_INVALID", "not a SHA-256 digest", 0}
	}
	return d, nil
}
