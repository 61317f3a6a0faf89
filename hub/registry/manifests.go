package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
	"github.com/drover-data/drover/remote"
)

func (q *request) getManifest(ctx context.Context) error {
	f, err := q.h.o.Store.Manifest(ctx, q.at.repository, q.at.reference)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Content-Type", f.Media)
	h.Set("Docker-Content-Digest", string(f.Digest))
	h.Set("ETag", `"`+string(f.Digest)+`"`)
	if match := q.r.Header.Get("If-None-Match"); match != "" && strings.Contains(match, `"`+string(f.Digest)+`"`) {
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Length", fmt.Sprint(f.Size))
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	body, err := q.h.read(ctx, f.Digest)
	if err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusOK)
	_, _ = q.w.Write(body)
	return nil
}

// read gives a manifest or record, checked.
func (h *Handler) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	text, err := h.o.Engine.Read(ctx, d, max(hub.MaxManifest, hub.MaxRecord))
	if api.Is(err, api.Damaged) || errors.Is(err, hub.ErrBlob) {
		return nil, h.damaged(ctx, d)
	}
	return text, err
}

// condition reads If-Match and If-None-Match of a change of a tag.
func (q *request) condition() (c store.Condition, err error) {
	bad := &refusal{400, "UNSUPPORTED", "conditions are If-None-Match: * and If-Match: \"sha256:…\", for tags", 0}
	match, none := q.r.Header.Get("If-Match"), q.r.Header.Get("If-None-Match")
	if match == "" && none == "" {
		return c, nil
	}
	if strings.Contains(q.at.reference, ":") || (none != "" && none != "*") {
		return c, bad
	}
	c.Absent = none == "*"
	if match != "" {
		c.At = digest.Digest(strings.TrimSuffix(strings.TrimPrefix(match, `"`), `"`))
		if remote.CheckDigest(c.At) != nil {
			return c, bad
		}
	}
	return c, nil
}

func (q *request) putManifest(ctx context.Context) error {
	st, repo, reference := q.h.o.Store, q.at.repository, q.at.reference
	condition, err := q.condition()
	if err != nil {
		return err
	}
	tag := reference
	if strings.Contains(reference, ":") {
		tag = ""
	}
	body, err := q.manifestBody()
	if err != nil {
		return err
	}
	m, err := hub.ParseManifest(q.r.Header.Get("Content-Type"), body)
	if err != nil {
		return err
	}
	if tag == "" && string(m.Digest) != reference {
		return &refusal{400, "DIGEST_INVALID", "what came does not have that digest", 0}
	}
	if err := st.EnsureRepository(ctx, q.who, repo); err != nil {
		return err
	}
	if tag != "" { // before anything is kept; the transaction looks again
		now, err := st.Manifest(ctx, repo, tag)
		if err != nil && !errors.Is(err, hub.ErrManifest) {
			return err
		}
		if err := condition.Check(tag, now.Digest); err != nil {
			return err
		}
	}
	if m.Commit, err = q.commit(ctx, m); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	there, err := st.HoldManifest(ctx, repo, m.Manifest)
	if err != nil {
		return err
	}
	if !there {
		if err := q.h.o.Engine.Put(ctx, m.Digest, body, true); err != nil {
			return err
		}
	}
	err = st.PutManifest(ctx, store.Put{Repository: repo, By: q.who, Right: q.right, Manifest: m.Manifest, Tag: tag, If: condition})
	if err != nil {
		return err
	}
	if tag != "" {
		q.mirror(ctx, tag)
	}
	h := q.w.Header()
	h.Set("Location", "/v2/"+repo+"/manifests/"+reference)
	h.Set("Docker-Content-Digest", string(m.Digest))
	h.Set("ETag", `"`+string(m.Digest)+`"`)
	if m.Subject != "" {
		h.Set("OCI-Subject", string(m.Subject))
	}
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

func (q *request) manifestBody() ([]byte, error) {
	large := &refusal{413, "SIZE_INVALID", fmt.Sprintf("a manifest has at most %d bytes", hub.MaxManifest), 0}
	if q.r.ContentLength > hub.MaxManifest {
		return nil, large
	}
	body, err := io.ReadAll(io.LimitReader(q.r.Body, hub.MaxManifest+1))
	if err != nil {
		return nil, &api.Error{Kind: api.Canceled, Op: "read manifest", Reason: "the client's connection broke", Err: err}
	}
	if len(body) > hub.MaxManifest {
		return nil, large
	}
	return body, nil
}

// commit finds what the record of a commit says; nil for what is none that can be read.
func (q *request) commit(ctx context.Context, m hub.Parsed) (*hub.Commit, error) {
	switch {
	case m.Record != "":
		size, _, err := q.h.o.Store.Look(ctx, q.at.repository, m.Record)
		if errors.Is(err, hub.ErrBlob) {
			return nil, &api.Error{Kind: api.NotFound, Op: "put manifest", Object: string(m.Record), Reason: "the manifest names it, and it is not in this repository", Next: "push it first", Err: hub.ErrPart}
		}
		if err != nil {
			return nil, err
		}
		if size > hub.MaxRecord {
			return nil, nil
		}
		text, err := q.h.read(ctx, m.Record)
		if err != nil {
			return nil, err
		}
		c, err := hub.ParseRecord(text)
		if err != nil { // a registry keeps it all the same; no protected branch follows it
			return nil, nil
		}
		return c, nil
	case m.First != "":
		return q.h.o.Store.CommitOf(ctx, q.at.repository, m.First)
	}
	return nil, nil
}

func (q *request) deleteManifest(ctx context.Context) error {
	st, repo, reference := q.h.o.Store, q.at.repository, q.at.reference
	condition, err := q.condition()
	if err != nil {
		return err
	}
	if strings.Contains(reference, ":") {
		err = st.DeleteManifest(ctx, repo, digest.Digest(reference), q.who, q.right)
	} else if err = st.DeleteRef(ctx, repo, reference, q.who, q.right, condition); err == nil {
		q.mirror(ctx, reference)
	}
	if err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
