package registry

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxPage       = 10_000
	referrersPage = 100
)

// page reads how much of a list is asked for, and what it comes after.
func (q *request) page() (n int, last string, err error) {
	query := q.r.URL.Query()
	n, last = maxPage, query.Get("last")
	if text := query.Get("n"); text != "" {
		n, err = strconv.Atoi(text)
		if err != nil || n < 0 {
			return 0, "", &refusal{400, "PAGINATION_NUMBER_INVALID", "n is the number of entries on a page", 0}
		}
	}
	return min(n, maxPage), last, nil
}

// next tells where a list goes on (RFC 8288).
func (q *request) next(last string, n int) {
	query := q.r.URL.Query()
	query.Set("last", last)
	if n > 0 {
		query.Set("n", strconv.Itoa(n))
	}
	u := url.URL{Path: q.r.URL.Path, RawQuery: query.Encode()}
	q.w.Header().Set("Link", "<"+u.String()+`>; rel="next"`)
}

func (q *request) tags(ctx context.Context) error {
	n, last, err := q.page()
	if err != nil {
		return err
	}
	list, err := q.h.o.Store.Refs(ctx, q.at.repository, last, n+1)
	if err != nil {
		return err
	}
	names := []string{}
	for i, f := range list {
		if i < n {
			names = append(names, f.Name)
		}
	}
	if len(list) > n && n > 0 {
		q.next(names[n-1], n)
	}
	return answer(q.w, http.StatusOK, "application/json", map[string]any{"name": q.at.repository, "tags": names})
}

func (q *request) catalog(ctx context.Context) error {
	n, last, err := q.page()
	if err != nil {
		return err
	}
	list, err := q.h.o.Store.Repositories(ctx, q.who, last, n+1)
	if err != nil {
		return err
	}
	names := []string{}
	for i, r := range list {
		if i < n {
			names = append(names, r.Name)
		}
	}
	if len(list) > n && n > 0 {
		q.next(names[n-1], n)
	}
	return answer(q.w, http.StatusOK, "application/json", map[string]any{"repositories": names})
}

func (q *request) referrers(ctx context.Context) error {
	query := q.r.URL.Query()
	artifact := query.Get("artifactType")
	list, err := q.h.o.Store.Referrers(ctx, q.at.repository, digest.Digest(q.at.reference), artifact, query.Get("last"), referrersPage+1)
	if err != nil {
		return err
	}
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for i, m := range list {
		if i == referrersPage {
			q.next(string(list[i-1].Digest), 0)
			break
		}
		ix.Manifests = append(ix.Manifests, ocispec.Descriptor{MediaType: m.Media, Digest: m.Digest, Size: m.Size, ArtifactType: m.Artifact, Annotations: m.Annotations})
	}
	if artifact != "" {
		q.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return answer(q.w, http.StatusOK, ocispec.MediaTypeImageIndex, ix)
}
