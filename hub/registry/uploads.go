package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/engine"
)

const (
	// atOnce is how much is kept in memory instead of in a session.
	atOnce = 1 << 20
	// roomEvery is after how many bytes the quota is looked at again.
	roomEvery = 64 << 20
)

// sessions are the uploads that this process is at. A client whose connection broke
// comes back while its first request still waits for bytes: that one gives way.
type sessions struct {
	mu  sync.Mutex
	all map[string]*session // guarded by mu
}

type session struct {
	interrupt func()
	done      chan struct{}
}

// take makes the caller the only one at an upload, in this process and others.
func (h *Handler) take(ctx context.Context, id string, interrupt func()) (context.Context, func(), error) {
	mine := &session{interrupt, make(chan struct{})}
	s := &h.sessions
	for {
		s.mu.Lock()
		other := s.all[id]
		if other == nil {
			s.all[id] = mine
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		other.interrupt()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	leave := func() {
		s.mu.Lock()
		delete(s.all, id)
		s.mu.Unlock()
		close(mine.done)
	}
	held, release, err := h.o.Store.Exclusive(ctx, "upload "+id)
	if err != nil {
		leave()
		return nil, nil, err
	}
	return held, func() { release(); leave() }, nil
}

// body is what a client sends to an upload: it is interrupted when the client comes
// again, or another process may; it renews the upload, and looks at the quota.
type body struct {
	q     *request
	ctx   context.Context
	in    io.Reader
	n     int64
	room  int64 // looked at when so many have come
	renew time.Time
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.in.Read(p)
	b.n += int64(n)
	st, now := b.q.h.o.Store, b.q.h.o.Now()
	if b.n >= b.room {
		b.room = b.n + roomEvery
		if err := st.Room(b.ctx, b.q.at.repository, b.n); err != nil {
			return n, err
		}
	}
	if now.Sub(b.renew) > 5*time.Minute {
		b.renew = now
		if err := st.RenewUpload(b.ctx, b.q.at.repository, b.q.at.reference); err != nil {
			return n, err
		}
	}
	return n, err
}

func (q *request) uploadHeader(id string, size int64) {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.at.repository+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-UUID", id)
	if size > 0 { // there is no way to say that nothing has come
		h.Set("Range", fmt.Sprintf("0-%d", size-1))
	}
}

func (q *request) beginUpload(ctx context.Context) error {
	st, repo, query := q.h.o.Store, q.at.repository, q.r.URL.Query()
	if err := st.EnsureRepository(ctx, q.who, repo); err != nil {
		return err
	}
	if mount, from := query.Get("mount"), query.Get("from"); mount != "" {
		d, bad := parseDigest(mount)
		if bad != nil {
			return bad
		}
		done, err := q.mount(ctx, from, d)
		if err != nil || done {
			return err
		}
	}
	if err := st.Room(ctx, repo, max(0, q.r.ContentLength)); err != nil {
		return err
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	if err := st.BeginUpload(ctx, repo, id); err != nil {
		return err
	}
	if query.Get("digest") != "" { // all of it at once
		q.at.reference = id
		return q.putUpload(ctx)
	}
	q.uploadHeader(id, 0)
	q.w.Header().Set("Range", "0-0")
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount takes a blob from another repository that the client may read.
func (q *request) mount(ctx context.Context, from string, d digest.Digest) (bool, error) {
	if hub.CheckRepository(from) != nil {
		return false, nil
	}
	right, err := q.h.o.Gate.Right(ctx, q.who, from)
	if err != nil {
		return false, err
	}
	if right < hub.Read {
		return false, nil
	}
	size, ok, err := q.h.o.Store.Look(ctx, from, d)
	if err == nil && ok {
		err = q.h.stored(ctx, d, size)
	}
	if err == nil && ok {
		err = q.h.o.Store.Mount(ctx, q.at.repository, from, d)
	}
	switch {
	case api.Is(err, api.NotFound), api.Is(err, api.Damaged), err == nil && !ok:
		return false, nil
	case err != nil:
		return false, err
	}
	q.created(d)
	return true, nil
}

func (q *request) created(d digest.Digest) {
	q.w.Header().Set("Location", "/v2/"+q.at.repository+"/blobs/"+string(d))
	q.w.Header().Set("Docker-Content-Digest", string(d))
	q.w.WriteHeader(http.StatusCreated)
}

// alone takes the upload of the request, which must be known.
func (q *request) alone(ctx context.Context) (context.Context, func(), error) {
	id := q.at.reference
	held, release, err := q.h.take(ctx, id, q.w.interrupt)
	if err != nil {
		return nil, nil, err
	}
	if err := q.h.o.Store.RenewUpload(held, q.at.repository, id); err != nil {
		release()
		return nil, nil, err
	}
	stop := context.AfterFunc(held, q.w.interrupt) // when the lock is lost
	return held, func() { stop(); release() }, nil
}

func (q *request) uploadStatus(ctx context.Context) error {
	held, release, err := q.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	size, err := q.h.o.Engine.Size(held, q.at.repository, q.at.reference)
	if err != nil {
		return err
	}
	q.uploadHeader(q.at.reference, size)
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

var contentRange = regexp.MustCompile(`^(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?$`)

// offset is where the bytes of a request belong; -1 when it does not say so.
func offset(r *http.Request) (int64, *refusal) {
	head := r.Header.Get("Content-Range")
	if head == "" {
		return -1, nil
	}
	m := contentRange.FindStringSubmatch(head)
	bad := &refusal{416, "BLOB_UPLOAD_INVALID", "Content-Range cannot be read, or does not fit the length", 0}
	if m == nil {
		return 0, bad
	}
	first, err1 := strconv.ParseInt(m[1], 10, 64)
	last, err2 := strconv.ParseInt(m[2], 10, 64)
	if err1 != nil || err2 != nil || last < first || (r.ContentLength >= 0 && last-first+1 != r.ContentLength) {
		return 0, bad
	}
	return first, nil
}

// receive adds a request's body to its upload.
func (q *request) receive(held context.Context) (int64, error) {
	at, bad := offset(q.r)
	if bad != nil {
		return 0, bad
	}
	repo, id, now := q.at.repository, q.at.reference, q.h.o.Now()
	if n := q.r.ContentLength; n > 0 {
		if err := q.h.o.Store.Room(held, repo, n); err != nil {
			return 0, err
		}
	}
	in := &body{q: q, ctx: held, in: q.r.Body, room: roomEvery, renew: now}
	var size int64
	err := q.w.read(func() (err error) {
		size, err = q.h.o.Engine.Append(context.WithoutCancel(held), repo, id, at, in)
		return err
	})
	var other *engine.OffsetError
	if errors.As(err, &other) {
		q.uploadHeader(id, other.At)
		return size, &refusal{416, "BLOB_UPLOAD_INVALID", other.Error(), 0}
	}
	return size, err
}

func (q *request) patchUpload(ctx context.Context) error {
	held, release, err := q.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	size, err := q.receive(held)
	if err != nil {
		return err
	}
	q.uploadHeader(q.at.reference, size)
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (q *request) cancelUpload(ctx context.Context) error {
	held, release, err := q.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := q.drop(held); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// drop ends an upload that leads to nothing.
func (q *request) drop(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if err := q.h.o.Engine.Cancel(ctx, q.at.repository, q.at.reference); err != nil {
		return err
	}
	return q.h.o.Store.EndUpload(ctx, q.at.reference)
}

func (q *request) putUpload(ctx context.Context) error {
	d, bad := parseDigest(q.r.URL.Query().Get("digest"))
	if bad != nil {
		return bad
	}
	held, release, err := q.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	size, err := q.h.o.Engine.Size(held, q.at.repository, q.at.reference)
	if err != nil {
		return err
	}
	n := q.r.ContentLength
	switch {
	case size == 0 && n > 0 && n <= atOnce:
		err = q.small(held, d)
	case n != 0:
		if _, err := q.receive(held); err != nil {
			return err
		}
		err = q.finish(context.WithoutCancel(held), d)
	case size == 0:
		err = q.again(context.WithoutCancel(held), d)
	default:
		err = q.finish(context.WithoutCancel(held), d)
	}
	if api.Is(err, api.Damaged) {
		_ = q.drop(held)
		return &refusal{400, "DIGEST_INVALID", err.Error(), 0}
	}
	if api.Is(err, api.Exhausted) {
		_ = q.drop(held)
	}
	if err != nil {
		return err
	}
	q.created(d)
	return nil
}

// small takes a blob that came in one piece.
func (q *request) small(held context.Context, d digest.Digest) error {
	if at, bad := offset(q.r); bad != nil || at > 0 {
		return &refusal{416, "BLOB_UPLOAD_INVALID", "the upload is at its beginning", 0}
	}
	var text []byte
	err := q.w.read(func() (err error) {
		text, err = io.ReadAll(io.LimitReader(q.r.Body, atOnce+1))
		return err
	})
	if err != nil {
		return &api.Error{Kind: api.Canceled, Op: "end upload", Object: q.at.reference, Reason: "the client's connection broke", Err: err}
	}
	if int64(len(text)) != q.r.ContentLength || digest.FromBytes(text) != d {
		return &api.Error{Kind: api.Damaged, Op: "end upload", Object: string(d), Reason: "what came does not have that digest"}
	}
	ctx := context.WithoutCancel(held)
	replace, err := q.h.o.Store.HoldBlob(ctx, q.at.repository, d, int64(len(text)))
	if err != nil {
		return err
	}
	if err := q.h.o.Engine.Put(ctx, d, text, replace); err != nil {
		return err
	}
	if err := q.h.o.Engine.Link(ctx, q.at.repository, nil, []digest.Digest{d}); err != nil {
		return err
	}
	return q.h.o.Store.BlobStored(ctx, q.at.repository, d, q.at.reference)
}

// finish takes a blob whose bytes have come. First it is checked, then the database is
// told, then the bytes go where they stay, then it is there: whatever a crash leaves out
// of that, a sweep or the next try puts right.
func (q *request) finish(ctx context.Context, d digest.Digest) error {
	e, st, repo, id := q.h.o.Engine, q.h.o.Store, q.at.repository, q.at.reference
	size, err := e.Check(ctx, repo, id, d)
	if err != nil {
		return err
	}
	replace, err := st.HoldBlob(ctx, repo, d, size)
	if err != nil {
		return err
	}
	if err := e.Store(ctx, repo, id, d, size, replace); err != nil {
		return err
	}
	return st.BlobStored(ctx, repo, d, id)
}

// again ends an upload without bytes: an empty blob, or one for which this was asked
// before, and the process ended between the last two steps.
func (q *request) again(ctx context.Context, d digest.Digest) error {
	size, held, err := q.h.o.Store.Held(ctx, q.at.repository, d)
	if err != nil {
		return err
	}
	if held && size > 0 {
		if n, err := q.h.o.Engine.Stat(ctx, d); err == nil && n == size {
			if _, err := q.h.o.Store.HoldBlob(ctx, q.at.repository, d, size); err != nil {
				return err
			}
			if err := q.h.o.Engine.Link(ctx, q.at.repository, nil, []digest.Digest{d}); err != nil {
				return err
			}
			return q.h.o.Store.BlobStored(ctx, q.at.repository, d, q.at.reference)
		}
	}
	return q.finish(ctx, d)
}
