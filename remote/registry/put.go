package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// monolithic is how long a blob may be that is sent in one request with its digest.
const monolithic = 1 << 20

// Put is of remote.Store. A longer blob is streamed; when the connection breaks
// and the registry says how much it has got, it goes on there, otherwise from
// the beginning.
func (s *Store) Put(ctx context.Context, desc ocispec.Descriptor, content remote.Content, sent func(int64)) error {
	const op = "write blob"
	d := desc.Digest
	if err := remote.CheckDigest(d); err != nil {
		return err
	}
	for try := 1; ; try++ {
		// Also after a try whose last answer was lost.
		a, err := s.ask(ctx, op, string(d), request{method: http.MethodHead, path: "blobs/" + string(d)})
		if err == nil {
			a.Body.Close()
			if a.ContentLength == desc.Size {
				return nil
			}
		} else if !api.Is(err, api.NotFound) {
			return err
		}
		again, err := s.upload(ctx, desc, content, sent)
		if err == nil || !again || try >= maxTries {
			return err
		}
		pause, _ := wait(err, try)
		if err := remote.Pause(ctx, pause); err != nil {
			return err
		}
	}
}

// begin starts an upload; nil when the blob could be mounted from elsewhere.
func (s *Store) begin(ctx context.Context, op, object string, d digest.Digest) (*url.URL, error) {
	path := "blobs/uploads/"
	if d != "" && s.o.From != "" {
		path += "?" + url.Values{"mount": {string(d)}, "from": {s.o.From}}.Encode()
	}
	a, err := s.ask(ctx, op, object, request{method: http.MethodPost, path: path, write: true})
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	if a.StatusCode == http.StatusCreated {
		return nil, nil
	}
	return s.location(a, op, object)
}

// location is where an upload goes on. A registry behind a proxy may not know
// that it is reached by TLS.
func (s *Store) location(a *http.Response, op, object string) (*url.URL, error) {
	u, err := a.Location()
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: s.ref.Host() + " does not say where the upload goes", Err: err}
	}
	if u.Scheme == "http" && a.Request.URL.Scheme == "https" {
		if u.Hostname() != a.Request.URL.Hostname() {
			return nil, noDowngrade(&http.Request{URL: u}, []*http.Request{a.Request})
		}
		u.Scheme, u.Host = "https", a.Request.URL.Host
	}
	return u, nil
}

// letGo ends an upload that is not needed. The registry does so itself, later.
func (s *Store) letGo(ctx context.Context, at *url.URL) {
	if a, err := s.ask(context.WithoutCancel(ctx), "end upload", "", request{method: http.MethodDelete, at: at, write: true, once: true}); err == nil {
		a.Body.Close()
	}
}

// upload sends a blob. again says that another upload may succeed.
func (s *Store) upload(ctx context.Context, desc ocispec.Descriptor, content remote.Content, sent func(int64)) (again bool, err error) {
	const op = "write blob"
	name := string(desc.Digest)
	at, err := s.begin(ctx, op, name, desc.Digest)
	if err != nil || at == nil {
		return false, err
	}
	src := &source{ctx: ctx, content: content, desc: desc, sent: sent}
	if desc.Size > monolithic {
		if at, err = s.stream(ctx, at, src); err != nil {
			if failed := src.failed(); failed != nil {
				s.letGo(ctx, at)
				return false, failed
			}
			return retry(ctx, err), err
		}
	}
	q := at.Query()
	q.Set("digest", name)
	last := *at
	last.RawQuery = q.Encode()
	r := request{method: http.MethodPut, at: &last, write: true, header: http.Header{"Content-Type": {"application/octet-stream"}}}
	if desc.Size <= monolithic {
		r.body, r.size, r.once = src.from(0), desc.Size, true
	} else {
		r.body = remote.Bytes(nil)
	}
	if desc.Size == 0 { // nothing is sent, so nothing is looked at
		err = src.checkEmpty()
	}
	if err == nil {
		var a *http.Response
		if a, err = s.ask(ctx, op, name, r); err == nil {
			a.Body.Close()
			return false, nil
		}
	}
	if failed := src.failed(); failed != nil {
		s.letGo(ctx, at)
		return false, failed
	}
	return retry(ctx, err), err
}

// retry says whether another upload may succeed. A quota or a disk that is full stays so.
func retry(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (api.Is(err, api.Unavailable) || limited(err) || api.Is(err, api.NotFound))
}

// stream sends a blob's bytes, and says where the upload is ended.
func (s *Store) stream(ctx context.Context, at *url.URL, src *source) (*url.URL, error) {
	const op = "write blob"
	name := string(src.desc.Digest)
	for offset, tries := int64(0), 0; ; tries++ {
		h := http.Header{"Content-Type": {"application/octet-stream"}}
		if offset > 0 {
			h.Set("Content-Range", fmt.Sprintf("%d-%d", offset, src.desc.Size-1))
		}
		a, err := s.ask(ctx, op, name, request{method: http.MethodPatch, at: at, write: true, once: true, header: h, body: src.from(offset), size: src.desc.Size - offset})
		if err == nil {
			defer a.Body.Close()
			return s.location(a, op, name)
		}
		if src.failed() != nil || tries >= maxTries || !retry(ctx, err) {
			return at, err
		}
		got, next := s.got(ctx, at)
		if got <= offset || got > src.desc.Size || next == nil {
			return at, err // from the beginning
		}
		if offset, at = got, next; offset == src.desc.Size {
			return at, nil
		}
	}
}

// got asks how much of an upload has come.
func (s *Store) got(ctx context.Context, at *url.URL) (int64, *url.URL) {
	a, err := s.ask(ctx, "write blob", "", request{method: http.MethodGet, at: at, write: true, once: true})
	if err != nil {
		return 0, nil
	}
	defer a.Body.Close()
	_, end, ok := strings.Cut(strings.TrimPrefix(a.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(end, 10, 64)
	if !ok || err != nil {
		return 0, nil
	}
	next, err := s.location(a, "write blob", "")
	if err != nil {
		return 0, nil
	}
	return n + 1, next
}

// source is what is sent, checked on its way. A failure of its own is kept apart
// from one of the connection, which is what the HTTP client reports.
type source struct {
	ctx     context.Context
	content remote.Content
	desc    ocispec.Descriptor
	sent    func(int64)

	mu  sync.Mutex
	err error // guarded by mu: the HTTP client reads until after it has answered
}

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *source) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	return err
}

// from opens the source at an offset; what comes before is read again, for the digest.
func (s *source) from(offset int64) remote.Content {
	return func() (io.ReadCloser, error) {
		r, err := s.content()
		if err != nil {
			return nil, s.fail(err)
		}
		c := &checked{src: s, r: r, sum: s.desc.Digest.Verifier(), told: offset}
		if _, err := io.CopyN(io.Discard, c, offset); err != nil {
			r.Close()
			return nil, err
		}
		return c, nil
	}
}

func (s *source) checkEmpty() error {
	r, err := s.from(0)()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// checked gives the last byte only when all of them were right.
type checked struct {
	src  *source
	r    io.ReadCloser
	sum  digest.Verifier
	n    int64
	told int64 // bytes before this are not told of
}

func (c *checked) Close() error { return c.r.Close() }

func (c *checked) Read(p []byte) (int, error) {
	if err := c.src.failed(); err != nil {
		return 0, err
	}
	if err := c.src.ctx.Err(); err != nil {
		return 0, err
	}
	left := c.src.desc.Size - c.n
	if int64(len(p)) > left {
		p = p[:left]
	}
	if left == 0 {
		return c.end(0)
	}
	n, err := c.r.Read(p)
	_, _ = c.sum.Write(p[:n])
	c.n += int64(n)
	if c.n == c.src.desc.Size {
		return c.end(n)
	}
	if errors.Is(err, io.EOF) {
		return 0, c.src.fail(wrongContent(c.src.desc))
	}
	if err != nil {
		return 0, c.src.fail(err)
	}
	c.tell()
	return n, nil
}

// end looks at the digest, and that nothing comes after.
func (c *checked) end(n int) (int, error) {
	more, err := io.CopyN(io.Discard, c.r, 1)
	if more > 0 || !c.sum.Verified() {
		return 0, c.src.fail(wrongContent(c.src.desc))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, c.src.fail(err)
	}
	c.tell()
	return n, io.EOF
}

func (c *checked) tell() {
	if c.src.sent != nil && c.n > c.told {
		c.src.sent(c.n - c.told)
		c.told = c.n
	}
}

func wrongContent(desc ocispec.Descriptor) error {
	return &api.Error{Kind: api.Damaged, Op: "write blob", Object: string(desc.Digest), Reason: "what was to be written does not have that digest"}
}
