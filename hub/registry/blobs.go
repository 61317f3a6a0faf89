package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/engine"
)

// damaged notes that what is stored under a digest is not what it says, or gone; not
// when the whole storage is.
func (h *Handler) damaged(ctx context.Context, d digest.Digest) error {
	ctx = context.WithoutCancel(ctx)
	if err := h.o.Engine.Claim(ctx, h.o.Owner, false); err != nil {
		return err
	}
	h.o.Log.Error("a blob is damaged: the next push of it replaces it", "digest", d)
	if err := h.o.Store.Damage(ctx, d); err != nil {
		return err
	}
	return &api.Error{Kind: api.Damaged, Op: "read blob", Object: string(d), Reason: "what is stored does not have that digest", Next: "push it again"}
}

// stored looks whether as many bytes are stored as there should be.
func (h *Handler) stored(ctx context.Context, d digest.Digest, size int64) error {
	n, err := h.o.Engine.Stat(ctx, d)
	if err == nil && n == size {
		return nil
	}
	if err == nil || errors.Is(err, hub.ErrBlob) {
		return h.damaged(ctx, d)
	}
	return err
}

func (q *request) headBlob(ctx context.Context) error {
	d := digest.Digest(q.at.reference)
	var size int64
	var err error
	if q.right >= hub.Write && !q.h.o.ReadOnly() { // who may push may count on the answer
		size, err = q.h.o.Store.Blob(ctx, q.at.repository, d)
	} else {
		size, _, err = q.h.o.Store.Look(ctx, q.at.repository, d)
	}
	if err != nil {
		return err
	}
	if err := q.h.stored(ctx, d, size); err != nil {
		if api.Is(err, api.Damaged) { // it is to be pushed again
			return &refusal{404, "BLOB_UNKNOWN", err.Error(), 0}
		}
		return err
	}
	q.blobHeader(d)
	q.w.Header().Set("Content-Length", fmt.Sprint(size))
	q.w.Header().Set("Accept-Ranges", "bytes")
	q.w.WriteHeader(http.StatusOK)
	return nil
}

func (q *request) blobHeader(d digest.Digest) {
	h := q.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
}

func (q *request) getBlob(ctx context.Context) error {
	d := digest.Digest(q.at.reference)
	size, ok, err := q.h.o.Store.Look(ctx, q.at.repository, d)
	if err != nil {
		return err
	}
	if !ok {
		return &api.Error{Kind: api.Damaged, Op: "read blob", Object: string(d), Reason: "what is stored does not have that digest", Next: "push it again"}
	}
	if err := q.h.stored(ctx, d, size); err != nil {
		return err
	}
	if q.h.o.Redirect {
		if to, err := q.h.o.Engine.Redirect(q.r, d); err == nil && to != "" {
			q.w.Header().Set("Docker-Content-Digest", string(d))
			q.w.Header().Set("Location", to)
			q.w.WriteHeader(http.StatusTemporaryRedirect)
			return nil
		}
	}
	q.blobHeader(d)
	in := &content{ctx: ctx, engine: q.h.o.Engine, d: d, size: size, sum: sha256.New()}
	defer in.close()
	http.ServeContent(q.w, q.r, "", time.Time{}, in)
	if in.wrong {
		return q.h.damaged(ctx, d)
	}
	if in.failed != nil && ctx.Err() == nil {
		return in.failed
	}
	return nil
}

// content is a blob from wherever it is asked for. Read from its beginning to its end
// it is checked, and the last bytes of what is wrong are not given.
type content struct {
	ctx    context.Context
	engine *engine.Engine
	d      digest.Digest
	size   int64
	at     int64

	in     io.ReadCloser // at the offset at
	sum    hash.Hash
	summed int64 // bytes from the beginning in sum; -1: some were passed over
	wrong  bool
	failed error
}

var errWrong = errors.New("what is stored does not have its digest")

// Seek is of io.Seeker.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return c.at, errors.New("before the beginning")
	}
	if offset != c.at {
		c.close()
		c.at = offset
	}
	return offset, nil
}

// Read is of io.Reader.
func (c *content) Read(p []byte) (int, error) {
	if c.at >= c.size {
		return 0, io.EOF
	}
	if c.in == nil {
		in, err := c.engine.Open(c.ctx, c.d, c.at)
		if err != nil {
			c.failed = err
			return 0, err
		}
		c.in = in
	}
	n, err := c.in.Read(p[:min(int64(len(p)), c.size-c.at)])
	if c.summed == c.at {
		_, _ = c.sum.Write(p[:n])
		c.summed += int64(n)
	}
	c.at += int64(n)
	if c.summed == c.size && n > 0 && digest.NewDigest(digest.SHA256, c.sum) != c.d {
		c.wrong = true
		return 0, errWrong
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.failed = err
	}
	return n, err
}

func (c *content) close() {
	if c.in != nil {
		_ = c.in.Close()
		c.in = nil
	}
}

func (q *request) deleteBlob(ctx context.Context) error {
	if err := q.h.o.Store.DeleteBlob(ctx, q.at.repository, digest.Digest(q.at.reference)); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
