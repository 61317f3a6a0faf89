// Package registry keeps commits in a repository of any OCI registry, by the
// distribution specification 1.1 alone: what is a branch of Drover is a tag
// there. It knows nothing of what the blobs mean.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Options say which repository, and how it is reached.
type Options struct {
	Reference string // host[:port]/path
	// Hub: it is one of Drover's own, which changes tags only from where they are
	// expected to be. That it says so itself is checked.
	Hub bool
	// Username and Password are a login that was given; when Username is empty
	// the Docker config and its credential helpers are asked, and nobody in
	// particular is the last resort.
	Username, Password string
	DockerConfig       string            // file; "" is where docker has it
	CertsDir           string            // "" is where docker has it
	From               string            // repository of the same registry whose blobs may be mounted
	Transport          http.RoundTripper // nil: one like http.DefaultTransport
	PageSize           int               // of lists; 0: 1000
}

// Store is a repository.
type Store struct {
	o    Options
	ref  oras.Reference
	auth *auth.Client
	idle func()

	mu     sync.Mutex
	scheme string                   // guarded by mu; "https" until a loopback registry was found to speak plain
	last   map[digest.Digest][]byte // guarded by mu; the manifest that was put last, to be named next
	hub    bool                     // guarded by mu; it has said that it is one
}

var _ remote.Store = (*Store)(nil)

const (
	maxManifest = 4 << 20 // what registries take, by the specification
	maxTries    = 6
	hubHeader   = "Drover-Hub" // that a hub sends with every answer
)

// Open makes a client; nothing is asked of the registry.
func Open(o Options) (*Store, error) {
	const op = "open remote"
	ref, err := oras.ParseReference(o.Reference)
	if err != nil || ref.Repository == "" {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: o.Reference, Reason: "not a repository of a registry", Err: err, Next: "give it as host/path, as in registry.example.com/team/pg"}
	}
	if ref.Reference != "" {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: o.Reference, Reason: "a remote is a repository without a tag", Next: "leave out :" + ref.Reference}
	}
	s := &Store{o: o, ref: ref, scheme: "https", last: map[digest.Digest][]byte{}}
	base := o.Transport
	if base == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = 16, 2*time.Minute
		dir := o.CertsDir
		if dir == "" {
			dir = CertsDir
		}
		if trust, err := Trust(dir, ref.Host()); err != nil {
			return nil, err
		} else if trust != nil {
			t.TLSClientConfig = trust
		}
		base, s.idle = t, t.CloseIdleConnections
	}
	s.auth = &auth.Client{
		Client: &http.Client{Transport: base, CheckRedirect: noDowngrade}, Cache: auth.NewCache(), ClientID: "drover",
		Header: http.Header{"User-Agent": {"drover"}}, Credential: s.credential,
	}
	return s, nil
}

// noDowngrade follows no answer out of TLS, but on this host.
func noDowngrade(r *http.Request, via []*http.Request) error {
	if r.URL.Scheme == "http" && via[0].URL.Scheme == "https" && !loopback(r.URL.Host) {
		return &api.Error{Kind: api.Denied, Op: "follow the registry", Object: r.URL.Host, Reason: "it leads from TLS to plain HTTP"}
	}
	return nil
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || (ip != nil && ip.IsLoopback())
}

// credential finds the login for a host: the registry, or where it sends us.
func (s *Store) credential(ctx context.Context, host string) (auth.Credential, error) {
	if s.o.Username != "" {
		if host != s.ref.Host() {
			return auth.EmptyCredential, nil
		}
		return auth.Credential{Username: s.o.Username, Password: s.o.Password}, nil
	}
	fail := func(err error) error {
		return &api.Error{Kind: api.Unauthenticated, Op: "find login", Object: host, Reason: "the Docker config or its credential helper does not give it", Err: err, Next: "docker login " + host}
	}
	var store *credentials.DynamicStore
	var err error
	if s.o.DockerConfig != "" {
		store, err = credentials.NewStore(s.o.DockerConfig, credentials.StoreOptions{})
	} else {
		store, err = credentials.NewStoreFromDocker(credentials.StoreOptions{})
	}
	if err != nil {
		return auth.EmptyCredential, fail(err)
	}
	c, err := credentials.Credential(store)(ctx, host)
	if err != nil {
		return auth.EmptyCredential, fail(err)
	}
	return c, nil
}

// Info is of remote.Store.
func (s *Store) Info() remote.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := remote.Info{Kind: "registry", URL: s.o.Reference, Collects: true, MaxManifest: maxManifest}
	if s.o.Hub {
		i.Kind, i.URL, i.Atomic = "hub", "hub://"+s.o.Reference, s.hub
	}
	return i
}

// Close is of remote.Store.
func (s *Store) Close() error {
	if s.idle != nil {
		s.idle()
	}
	return nil
}

// Check is of remote.Store.
func (s *Store) Check(ctx context.Context, write bool) error {
	const op = "use remote"
	a, err := s.ask(ctx, op, s.o.Reference, request{method: http.MethodGet, path: "tags/list?n=1"})
	if err == nil {
		a.Body.Close()
	}
	if err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	if s.o.Hub {
		s.mu.Lock()
		hub := s.hub
		s.mu.Unlock()
		if !hub {
			return &api.Error{Kind: api.Invalid, Op: op, Object: s.Info().URL, Reason: "there is a registry, but it is no hub of Drover", Next: "give it without hub://"}
		}
	}
	if !write {
		return nil
	}
	// An upload that is begun and let go shows the right to write.
	at, err := s.begin(ctx, op, s.o.Reference, "")
	if err != nil || at == nil {
		return err
	}
	s.letGo(ctx, at)
	return nil
}

// Stat is of remote.Store.
func (s *Store) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	if err := remote.CheckDigest(d); err != nil {
		return 0, err
	}
	a, err := s.ask(ctx, "find blob", string(d), request{method: http.MethodHead, path: "blobs/" + string(d)})
	if api.Is(err, api.NotFound) {
		// A manifest is a blob elsewhere.
		a, err = s.ask(ctx, "find blob", string(d), request{method: http.MethodHead, path: "manifests/" + string(d), header: accept})
	}
	if err != nil {
		return 0, err
	}
	a.Body.Close()
	if a.ContentLength < 0 {
		return 0, &api.Error{Kind: api.Unavailable, Op: "find blob", Object: string(d), Reason: "the registry does not say how long it is"}
	}
	return a.ContentLength, nil
}

// from opens a blob from an offset on; length < 0 is all that comes.
func (s *Store) from(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	const op = "read blob"
	r := request{method: http.MethodGet, path: "blobs/" + string(d), header: http.Header{}}
	switch {
	case length >= 0:
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	a, err := s.ask(ctx, op, string(d), r)
	var e *refusal
	if errors.As(err, &e) && e.status == http.StatusRequestedRangeNotSatisfiable {
		return io.NopCloser(bytes.NewReader(nil)), nil // it ends before
	}
	if err != nil {
		return nil, err
	}
	body := a.Body
	if a.StatusCode != http.StatusPartialContent && offset > 0 {
		// The registry gives all or nothing.
		if _, err := io.CopyN(io.Discard, body, offset); err != nil {
			body.Close()
			if errors.Is(err, io.EOF) {
				return io.NopCloser(bytes.NewReader(nil)), nil
			}
			return nil, s.broken(ctx, op, string(d), err)
		}
	}
	if length >= 0 {
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(body, length), body}, nil
	}
	return body, nil
}

// Get is of remote.Store.
func (s *Store) Get(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	if err := remote.CheckDigest(d); err != nil {
		return nil, err
	}
	r, err := remote.Resume(ctx, func(offset int64) (io.ReadCloser, error) { return s.from(ctx, d, offset, -1) })
	if err != nil {
		return nil, err
	}
	return remote.Verify(r, d), nil
}

// GetRange is of remote.Store.
func (s *Store) GetRange(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	if err := remote.CheckDigest(d); err != nil {
		return nil, err
	}
	if offset < 0 || length < 0 {
		return nil, &api.Error{Kind: api.Invalid, Op: "read blob", Object: string(d), Reason: "there is nothing before its beginning"}
	}
	none := io.NopCloser(bytes.NewReader(nil))
	if length == 0 {
		_, err := s.Stat(ctx, d)
		return none, err
	}
	return remote.Resume(ctx, func(done int64) (io.ReadCloser, error) {
		if done >= length {
			return none, nil
		}
		return s.from(ctx, d, offset+done, length-done)
	})
}

var accept = http.Header{"Accept": {ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex}}

// Manifest is of remote.Store.
func (s *Store) Manifest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, []byte, error) {
	if err := remote.CheckDigest(d); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	_, text, err := s.manifest(ctx, "read manifest", string(d))
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return remote.ParseManifest(d, text)
}

func (s *Store) manifest(ctx context.Context, op, reference string) (*http.Response, []byte, error) {
	a, err := s.ask(ctx, op, reference, request{method: http.MethodGet, path: "manifests/" + reference, header: accept})
	if err != nil {
		return nil, nil, err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, 2*maxManifest))
	if err != nil {
		return nil, nil, s.broken(ctx, op, reference, err)
	}
	return a, text, nil
}

// PutManifest is of remote.Store.
func (s *Store) PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte) error {
	const op = "write manifest"
	if err := remote.CheckDigest(desc.Digest); err != nil {
		return err
	}
	if digest.FromBytes(body) != desc.Digest {
		return &api.Error{Kind: api.Damaged, Op: op, Object: string(desc.Digest), Reason: "what was to be written does not have that digest"}
	}
	if err := s.putManifest(ctx, op, string(desc.Digest), desc, body, nil); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = map[digest.Digest][]byte{desc.Digest: body}
	return nil
}

func (s *Store) putManifest(ctx context.Context, op, reference string, desc ocispec.Descriptor, body []byte, header http.Header) error {
	h := http.Header{"Content-Type": {desc.MediaType}}
	for k, v := range header {
		h[k] = v
	}
	a, err := s.ask(ctx, op, reference, request{
		method: http.MethodPut, path: "manifests/" + reference, header: h, write: true,
		size: int64(len(body)), body: remote.Bytes(body),
	})
	if err != nil {
		return err
	}
	a.Body.Close()
	if got := a.Header.Get("Docker-Content-Digest"); got != "" && got != string(desc.Digest) {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: reference, Reason: "the registry has made another manifest of it: " + got, Next: "use a registry that keeps OCI manifests as they are"}
	}
	return nil
}

// Ref is of remote.Store.
func (s *Store) Ref(ctx context.Context, name string) (remote.Ref, error) {
	const op = "find name"
	if err := remote.CheckName(name); err != nil {
		return remote.Ref{}, err
	}
	a, err := s.ask(ctx, op, name, request{method: http.MethodHead, path: "manifests/" + name, header: accept})
	if err != nil {
		return remote.Ref{}, err
	}
	a.Body.Close()
	r := remote.Ref{Name: name, Desc: ocispec.Descriptor{MediaType: a.Header.Get("Content-Type"), Digest: digest.Digest(a.Header.Get("Docker-Content-Digest")), Size: a.ContentLength}}
	if r.Desc.Digest == "" || r.Desc.Size < 0 { // it need not say so to HEAD
		a, text, err := s.manifest(ctx, op, name)
		if err != nil {
			return remote.Ref{}, err
		}
		r.Desc = ocispec.Descriptor{MediaType: a.Header.Get("Content-Type"), Digest: digest.FromBytes(text), Size: int64(len(text))}
	}
	if remote.CheckDigest(r.Desc.Digest) != nil {
		return r, &api.Error{Kind: api.Damaged, Op: op, Object: name, Reason: "the registry gives no digest for it that can be read"}
	}
	return r, nil
}

// Refs is of remote.Store. Digests are not given: they would cost a call each.
func (s *Store) Refs(ctx context.Context, prefix string) ([]remote.Ref, error) {
	const op = "list names"
	n := s.o.PageSize
	if n == 0 {
		n = 1000
	}
	var out []remote.Ref
	seen := map[string]bool{}
	for next := "tags/list?n=" + strconv.Itoa(n); next != ""; {
		if seen[next] {
			return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: s.o.Reference, Reason: "the registry's pages lead in a circle"}
		}
		seen[next] = true
		a, err := s.ask(ctx, op, s.o.Reference, request{method: http.MethodGet, path: next})
		if api.Is(err, api.NotFound) {
			return out, nil // a repository is there from its first manifest on
		}
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		err = json.NewDecoder(io.LimitReader(a.Body, 64<<20)).Decode(&page)
		a.Body.Close()
		if err != nil {
			return nil, s.broken(ctx, op, s.o.Reference, err)
		}
		for _, t := range page.Tags {
			if strings.HasPrefix(t, prefix) {
				out = append(out, remote.Ref{Name: t})
			}
		}
		next = nextPage(a)
	}
	slices.SortFunc(out, func(a, b remote.Ref) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b remote.Ref) bool { return a.Name == b.Name }), nil
}

// nextPage is where the list goes on (RFC 5988): only the query counts, so that
// a proxy's other host or path does no harm.
func nextPage(a *http.Response) string {
	for _, link := range a.Header.Values("Link") {
		target, params, _ := strings.Cut(link, ";")
		u, err := url.Parse(strings.Trim(strings.TrimSpace(target), "<>"))
		if err == nil && strings.Contains(params, "next") && u.RawQuery != "" {
			return "tags/list?" + u.RawQuery
		}
	}
	return ""
}

// SetRef is of remote.Store.
func (s *Store) SetRef(ctx context.Context, name string, desc ocispec.Descriptor, expect digest.Digest) error {
	const op = "move name"
	now, err := s.Ref(ctx, name)
	if err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	if now.Desc.Digest == desc.Digest {
		return nil
	}
	if now.Desc.Digest != expect {
		return remote.Moved(name, now.Desc.Digest, expect)
	}
	s.mu.Lock()
	body := s.last[desc.Digest]
	s.mu.Unlock()
	if body == nil {
		d, text, err := s.Manifest(ctx, desc.Digest)
		if err != nil {
			return err
		}
		body, desc.MediaType = text, d.MediaType
	}
	err = s.putManifest(ctx, op, name, desc, body, s.condition(expect))
	return s.moved(ctx, err, name, desc.Digest, expect)
}

// condition is what hubs understand, and other registries pass over.
func (s *Store) condition(expect digest.Digest) http.Header {
	switch {
	case !s.o.Hub:
		return nil
	case expect == "":
		return http.Header{"If-None-Match": {"*"}}
	}
	return http.Header{"If-Match": {`"` + string(expect) + `"`}}
}

// moved says where a name is for which a condition was not so. A request whose
// answer was lost and that was repeated is refused as well.
func (s *Store) moved(ctx context.Context, err error, name string, to, expect digest.Digest) error {
	var e *refusal
	if !errors.As(err, &e) || e.status != http.StatusPreconditionFailed {
		return err
	}
	now, err := s.Ref(ctx, name)
	if err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	if now.Desc.Digest == to {
		return nil
	}
	return remote.Moved(name, now.Desc.Digest, expect)
}

// DeleteRef is of remote.Store. It removes a tag, never a manifest: other tags
// may point to it.
func (s *Store) DeleteRef(ctx context.Context, name string, expect digest.Digest) error {
	const op = "remove name"
	now, err := s.Ref(ctx, name)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if now.Desc.Digest != expect {
		return remote.Moved(name, now.Desc.Digest, expect)
	}
	a, err := s.ask(ctx, op, name, request{method: http.MethodDelete, path: "manifests/" + name, header: s.condition(expect), remove: true})
	var e *refusal
	switch {
	case err == nil:
		a.Body.Close()
		return nil
	case api.Is(err, api.NotFound):
		return nil
	case errors.As(err, &e) && (e.status == http.StatusMethodNotAllowed || e.status == http.StatusBadRequest):
		return &api.Error{Kind: api.Unsupported, Op: op, Object: name, Reason: "the registry removes no tags", Next: "allow deletion in the registry's configuration, or remove the tag there"}
	}
	return s.moved(ctx, err, name, "", expect)
}
