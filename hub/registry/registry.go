// Package registry is the hub's OCI face: the distribution specification 1.1 before the
// database, which decides, and the engine, which keeps bytes. It adds what makes it a hub:
// names change only from where they are expected to be (If-Match, If-None-Match on
// PUT and DELETE of a tag). It knows neither SQL nor storage drivers.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/engine"
	"github.com/drover-data/drover/hub/store"
)

// Header is sent with every answer: it says that this is a hub.
const Header = "Drover-Hub"

// Options are what a handler asks.
type Options struct {
	Store  *store.Store
	Engine *engine.Engine
	Gate   hub.Gate // nil: Store
	// Secret signs logins; every process of the hub has the same.
	Secret []byte
	// Owner is whose storage it is (engine.Claim).
	Owner string
	// URL is how clients reach the hub; "": as they asked.
	URL string
	// ReadOnly refuses writes while it says so; nil: never.
	ReadOnly func() bool
	// Redirect has clients read blobs from the storage itself, where it can do that.
	Redirect bool
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger     // nil: none
	// Observe is told of every request; nil: nobody.
	Observe func(Observation)
}

// Observation is a request that was answered.
type Observation struct {
	Method string
	What   string // base, token, catalog, tags, manifest, blob, upload, referrers
	Status int
	Took   time.Duration
	In     int64 // bytes that came, of uploads and manifests
	Out    int64
}

// Handler answers /v2/.
type Handler struct {
	o        Options
	sessions sessions
}

// New makes a handler.
func New(o Options) *Handler {
	if o.Gate == nil {
		o.Gate = o.Store
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ReadOnly == nil {
		o.ReadOnly = func() bool { return false }
	}
	return &Handler{o: o, sessions: sessions{all: map[string]*session{}}}
}

var kindNames = [...]string{"other", "base", "token", "catalog", "tags", "manifest", "blob", "upload", "upload", "referrers"}

// ServeHTTP answers what is below /v2/.
func (h *Handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	begun := h.o.Now()
	w := &counter{ResponseWriter: rw}
	in := &reader{ReadCloser: r.Body}
	r.Body = in
	w.Header().Set(Header, "1")
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	at := parsePath(r.URL.Path)
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox") // whatever people push, it is no page of the hub
	if h.o.Observe != nil {
		defer func() {
			h.o.Observe(Observation{r.Method, kindNames[at.kind], w.status, h.o.Now().Sub(begun), in.n, w.n})
		}()
	}
	err := h.serve(w, r, at)
	if err != nil {
		no := refuse(err)
		if no.status >= 500 && no.status != http.StatusInsufficientStorage && !api.Is(err, api.Canceled) && !errors.Is(err, context.Canceled) {
			h.o.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		if w.status != 0 { // only breaking it off tells
			panic(http.ErrAbortHandler)
		}
		if api.Is(err, api.Canceled) { // what is left of the request would be taken for the next
			w.Header().Set("Connection", "close")
		}
		no.write(w)
	}
}

// counter remembers what was answered.
type counter struct {
	http.ResponseWriter
	status int
	n      int64

	mu          sync.Mutex
	asked       bool // guarded by mu; somebody else wants what this request is at
	reading     bool // guarded by mu; bytes of an upload are waited for
	interrupted bool // guarded by mu; nothing more is read from the connection
}

// read runs what reads the request's body, which interrupt ends.
func (c *counter) read(f func() error) error {
	c.mu.Lock()
	c.reading = true
	if c.asked {
		c.cut()
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reading = false
	}()
	return f()
}

// interrupt has the reading of the request's body end with an error. The connection
// is of no use after this request then; where nothing is read it stays.
func (c *counter) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	if c.reading {
		c.cut()
	}
}

// cut ends what is read. The caller holds mu.
func (c *counter) cut() {
	c.interrupted = true
	_ = http.NewResponseController(c.ResponseWriter).SetReadDeadline(time.Unix(1, 0))
}

func (c *counter) spoilt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.interrupted
}

func (c *counter) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	if c.spoilt() {
		c.Header().Set("Connection", "close")
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

type reader struct {
	io.ReadCloser
	n int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n += int64(n)
	return n, err
}

// request is one that is allowed.
type request struct {
	h     *Handler
	w     *counter
	r     *http.Request
	at    route
	who   hub.Identity
	right hub.Right
}

func (h *Handler) serve(w *counter, r *http.Request, at route) error {
	if at.kind == nothing {
		return &refusal{404, "NOT_FOUND", "there is nothing here", 0}
	}
	if at.kind == token {
		return h.giveToken(w, r)
	}
	if bad := at.check(); bad != nil {
		return bad
	}
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	need := hub.Read
	if !reading || at.kind == upload {
		need = hub.Write
	}
	who, right, err := h.allow(w, r, at, need)
	if err != nil {
		return err
	}
	if !reading && h.o.ReadOnly() {
		return &refusal{405, "UNSUPPORTED", "the hub is in read-only mode", 0}
	}
	q := &request{h, w, r, at, who, right}
	type way struct {
		kind   kind
		method string
	}
	method := r.Method
	do := map[way]func(context.Context) error{
		{base, "GET"}: q.hello, {base, "HEAD"}: q.hello,
		{catalog, "GET"}: q.catalog, {tags, "GET"}: q.tags, {referrers, "GET"}: q.referrers,
		{manifest, "GET"}: q.getManifest, {manifest, "HEAD"}: q.getManifest, {manifest, "PUT"}: q.putManifest, {manifest, "DELETE"}: q.deleteManifest,
		{blob, "GET"}: q.getBlob, {blob, "HEAD"}: q.headBlob, {blob, "DELETE"}: q.deleteBlob,
		{uploads, "POST"}: q.beginUpload,
		{upload, "GET"}:   q.uploadStatus, {upload, "PATCH"}: q.patchUpload, {upload, "PUT"}: q.putUpload, {upload, "DELETE"}: q.cancelUpload,
	}[way{at.kind, method}]
	if do == nil {
		return &refusal{405, "UNSUPPORTED", "this cannot be done here", 0}
	}
	return do(r.Context())
}

func (q *request) hello(context.Context) error {
	return answer(q.w, http.StatusOK, "application/json", struct{}{})
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, media string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_, _ = w.Write(text) // who has gone need not be told
	return nil
}

// mirrorTime is how long a request writes names to the storage: there may be many
// links to write first, in a fork.
const mirrorTime = 5 * time.Second

// mirror writes a name to the storage. What fails is done later by the collector.
func (q *request) mirror(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mirrorTime)
	defer cancel()
	err := q.h.o.Store.Mirror(ctx, q.at.repository, name, q.h.o.Engine.Mirror)
	if err != nil {
		q.h.o.Log.Warn("a name is written to the storage later", "repository", q.at.repository, "name", name, "error", err)
	}
}
