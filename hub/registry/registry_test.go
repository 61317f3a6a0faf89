package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/registry"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// caller asks a hub as somebody.
type caller struct {
	t            testing.TB
	h            *hubserver.Server
	user, secret string
}

// reply is what came back.
type reply struct {
	*http.Response
	body []byte
}

func (r reply) code() string {
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(r.body, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return e.Errors[0].Code
}

type head map[string]string

func (c caller) do(method, path string, h head, body []byte) reply {
	c.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = "http://" + c.h.Host + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	must(c.t, err)
	for k, v := range h {
		req.Header.Set(k, v)
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.secret)
	}
	a, err := http.DefaultTransport.RoundTrip(req)
	must(c.t, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	must(c.t, err)
	if a.Header.Get(registry.Header) == "" {
		c.t.Errorf("%s %s does not say that it is a hub", method, path)
	}
	return reply{a, text}
}

// want asks and holds the answer's status and code.
func (c caller) want(status int, code, method, path string, h head, body []byte) reply {
	c.t.Helper()
	r := c.do(method, path, h, body)
	if r.StatusCode != status || r.code() != code {
		c.t.Fatalf("%s %s: %d %s, want %d %s", method, path, r.StatusCode, r.body, status, code)
	}
	return r
}

func start(t testing.TB, o serve.Options) (*hubserver.Server, caller) {
	h := hubserver.Start(t, o)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.Log())
		}
	})
	return h, caller{t, h, "alice", h.User(t, "alice", hub.Admin)}
}

// blob uploads one in a single request.
func (c caller) blob(repo, text string) ocispec.Descriptor {
	c.t.Helper()
	d := digest.FromString(text)
	c.want(201, "", "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), nil, []byte(text))
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(text))}
}

func (c caller) image(repo, tag, text string, change func(*ocispec.Manifest)) (digest.Digest, []byte) {
	c.t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c.blob(repo, "config "+text), Layers: []ocispec.Descriptor{c.blob(repo, text)}}
	m.SchemaVersion, m.Config.MediaType = 2, "application/vnd.test.config"
	if change != nil {
		change(&m)
	}
	body, err := json.Marshal(m)
	must(c.t, err)
	d := digest.FromBytes(body)
	if tag == "" {
		tag = string(d)
	}
	r := c.want(201, "", "PUT", "/v2/"+repo+"/manifests/"+tag, head{"Content-Type": m.MediaType}, body)
	if r.Header.Get("Docker-Content-Digest") != string(d) || r.Header.Get("Location") != "/v2/"+repo+"/manifests/"+tag {
		c.t.Errorf("%v", r.Header)
	}
	return d, body
}

func TestUploads(t *testing.T) {
	_, c := start(t, serve.Options{})
	const repo = "/v2/alice/pg"
	text := []byte(strings.Repeat("0123456789", 300_000))
	d := digest.FromBytes(text)
	// Chunks in order, with what came between them asked for.
	r := c.want(202, "", "POST", repo+"/blobs/uploads/", nil, nil)
	at := r.Header.Get("Location")
	if !strings.HasPrefix(at, repo+"/blobs/uploads/") || r.Header.Get("Range") != "0-0" {
		t.Errorf("%v", r.Header)
	}
	if r = c.want(204, "", "GET", at, nil, nil); r.Header.Get("Range") != "" {
		t.Errorf("%v", r.Header)
	}
	const n = 1_200_000
	if r = c.want(202, "", "PATCH", at, head{"Content-Range": fmt.Sprintf("0-%d", n-1)}, text[:n]); r.Header.Get("Range") != fmt.Sprintf("0-%d", n-1) {
		t.Errorf("%v", r.Header)
	}
	r = c.want(416, "BLOB_UPLOAD_INVALID", "PATCH", at, head{"Content-Range": "5-14"}, text[5:15])
	if r.Header.Get("Range") != fmt.Sprintf("0-%d", n-1) || r.Header.Get("Location") != at {
		t.Errorf("%v", r.Header)
	}
	for _, bad := range []string{"x", "9-5", "0-1", "1-99999999999999999999"} {
		c.want(416, "BLOB_UPLOAD_INVALID", "PATCH", at, head{"Content-Range": bad}, text[:10])
	}
	c.want(404, "", "HEAD", repo+"/blobs/"+string(d), nil, nil)
	c.want(202, "", "PATCH", at, nil, text[n:2*n]) // without saying where: at its end
	c.want(400, "DIGEST_INVALID", "PUT", at+"?digest=sha256:x", nil, nil)
	c.want(400, "DIGEST_INVALID", "PUT", at+"?digest=sha512:"+strings.Repeat("a", 128), nil, nil)
	r = c.want(201, "", "PUT", at+"?digest="+string(d), head{"Content-Range": fmt.Sprintf("%d-%d", 2*n, len(text)-1)}, text[2*n:])
	if r.Header.Get("Location") != repo+"/blobs/"+string(d) || r.Header.Get("Docker-Content-Digest") != string(d) {
		t.Errorf("%v", r.Header)
	}
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", at, nil, text[:1])
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", at, nil, nil)
	if r = c.want(200, "", "GET", repo+"/blobs/"+string(d), nil, nil); !bytes.Equal(r.body, text) || r.ContentLength != int64(len(text)) {
		t.Error("other bytes came back")
	}
	if r = c.want(206, "", "GET", repo+"/blobs/"+string(d), head{"Range": "bytes=1000001-1000004"}, nil); string(r.body) != "1234" {
		t.Errorf("%s", r.body)
	}
	c.do("GET", repo+"/blobs/"+string(d), head{"Range": "bytes=9000000-"}, nil)
	// In one piece, small and large, with a wrong digest and without any bytes.
	c.blob("alice/pg", "small")
	c.blob("alice/pg", "")
	c.want(400, "DIGEST_INVALID", "POST", repo+"/blobs/uploads/?digest="+string(d), nil, []byte("other"))
	c.want(400, "DIGEST_INVALID", "POST", repo+"/blobs/uploads/?digest="+string(digest.FromString("x")), nil, text)
	c.want(404, "", "HEAD", repo+"/blobs/"+string(digest.FromString("x")), nil, nil)
	at = c.want(202, "", "POST", repo+"/blobs/uploads/", nil, nil).Header.Get("Location")
	c.want(202, "", "PATCH", at, nil, text)
	c.want(400, "DIGEST_INVALID", "PUT", at+"?digest="+string(digest.FromString("x")), nil, nil)
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", at, nil, nil)
	at = c.want(202, "", "POST", repo+"/blobs/uploads/", nil, nil).Header.Get("Location")
	c.want(202, "", "PATCH", at, nil, text[:7])
	c.want(204, "", "DELETE", at, nil, nil)
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "DELETE", at, nil, nil)
	// An upload is of its repository.
	at = c.want(202, "", "POST", repo+"/blobs/uploads/", nil, nil).Header.Get("Location")
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", strings.Replace(at, "/pg/", "/other/", 1), nil, nil)
	// What is in another repository is not here, but can be mounted.
	c.want(404, "NAME_UNKNOWN", "GET", "/v2/alice/two/blobs/"+string(d), nil, nil)
	c.want(201, "", "POST", "/v2/alice/two/blobs/uploads/?mount="+string(d)+"&from=alice/pg", nil, nil)
	c.want(200, "", "HEAD", "/v2/alice/two/blobs/"+string(d), nil, nil)
	c.want(202, "", "POST", "/v2/alice/two/blobs/uploads/?mount="+string(digest.FromString("none"))+"&from=alice/pg", nil, nil)
	c.want(202, "", "POST", "/v2/alice/two/blobs/uploads/?mount="+string(d)+"&from=nobody/x", nil, nil)
	c.want(202, "", "DELETE", "/v2/alice/two/blobs/"+string(d), nil, nil)
	c.want(404, "BLOB_UNKNOWN", "DELETE", "/v2/alice/two/blobs/"+string(d), nil, nil)
}

// TestComeBack: a client whose connection hangs comes back while its first request
// still waits, and goes on.
func TestComeBack(t *testing.T) {
	_, c := start(t, serve.Options{})
	const repo = "/v2/alice/pg"
	text := []byte(strings.Repeat("x", 2<<20))
	at := c.want(202, "", "POST", repo+"/blobs/uploads/", nil, nil).Header.Get("Location")
	in, out := io.Pipe()
	first := make(chan struct{})
	go func() {
		defer close(first)
		req, _ := http.NewRequestWithContext(ctx, "PATCH", "http://"+c.h.Host+at, in)
		req.SetBasicAuth(c.user, c.secret)
		if a, err := http.DefaultTransport.RoundTrip(req); err == nil {
			a.Body.Close()
		}
	}()
	_, err := out.Write(text[:1<<20])
	must(t, err)
	for range 1000 { // until it has come
		if list, _ := filepath.Glob(filepath.Join(c.h.Dir, "docker/registry/v2/repositories/alice/pg/_uploads/*/data")); len(list) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	// No more comes on that connection.
	r := c.want(204, "", "GET", at, nil, nil)
	var got int
	_, err = fmt.Sscanf(r.Header.Get("Range"), "0-%d", &got)
	if r.Header.Get("Range") != "" && err != nil {
		t.Fatal(r.Header)
	}
	if r.Header.Get("Range") != "" {
		got++
	}
	c.want(202, "", "PATCH", at, head{"Content-Range": fmt.Sprintf("%d-%d", got, len(text)-1)}, text[got:])
	c.want(201, "", "PUT", at+"?digest="+string(digest.FromBytes(text)), nil, nil)
	_ = out.CloseWithError(io.ErrUnexpectedEOF)
	<-first
}

func TestManifests(t *testing.T) {
	_, c := start(t, serve.Options{})
	const repo = "/v2/alice/pg"
	d, body := c.image("alice/pg", "v1", "one", nil)
	for _, ref := range []string{"v1", string(d)} {
		r := c.want(200, "", "GET", repo+"/manifests/"+ref, nil, nil)
		if !bytes.Equal(r.body, body) || r.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest || r.Header.Get("Docker-Content-Digest") != string(d) {
			t.Errorf("%s %v", r.body, r.Header)
		}
		if r = c.want(200, "", "HEAD", repo+"/manifests/"+ref, nil, nil); r.ContentLength != int64(len(body)) || len(r.body) != 0 {
			t.Errorf("%d", r.ContentLength)
		}
		c.want(304, "", "GET", repo+"/manifests/"+ref, head{"If-None-Match": `"` + string(d) + `"`}, nil)
	}
	c.want(404, "MANIFEST_UNKNOWN", "GET", repo+"/manifests/none", nil, nil)
	c.want(404, "BLOB_UNKNOWN", "GET", repo+"/blobs/"+string(d), nil, nil)
	put := func(status int, code, ref, media, text string) {
		t.Helper()
		c.want(status, code, "PUT", repo+"/manifests/"+ref, head{"Content-Type": media}, []byte(text))
	}
	none := digest.FromString("none")
	const oci, index, docker = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.v2+json"
	put(400, "MANIFEST_INVALID", "x", oci, "")
	put(400, "MANIFEST_INVALID", "x", oci, "[]")
	put(400, "MANIFEST_INVALID", "x", oci, `{"schemaVersion":1}`)
	put(400, "MANIFEST_INVALID", "x", "", `{"schemaVersion":2}`)
	put(400, "MANIFEST_INVALID", "x", index, string(body))
	put(400, "MANIFEST_INVALID", "x", oci, `{"layers":[{"digest":"sha256:xx"}]}`)
	put(400, "MANIFEST_INVALID", "x", oci, `{"layers":[],"config":{"digest":"`+string(none)+`","size":1},"manifests":[{"digest":"`+string(none)+`"}]}`)
	put(404, "MANIFEST_BLOB_UNKNOWN", "x", oci, `{"layers":[{"digest":"`+string(none)+`"}]}`)
	put(404, "MANIFEST_BLOB_UNKNOWN", "x", index, `{"manifests":[{"digest":"`+string(none)+`"}]}`)
	put(400, "DIGEST_INVALID", string(none), oci, string(body))
	put(400, "TAG_INVALID", "-x", oci, string(body))
	put(413, "SIZE_INVALID", "x", oci, `{"annotations":{"a":"`+strings.Repeat("x", 4<<20)+`"}}`)
	c.want(404, "MANIFEST_UNKNOWN", "GET", repo+"/manifests/x", nil, nil)
	// What Docker pushes, layers that are elsewhere, and an index of it.
	text := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":%q,"size":3},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":9,"urls":["https://example.com"]}]}`,
		docker, c.blob("alice/pg", "cfg").Digest, none)
	put(201, "", "docker", docker, text)
	put(201, "", "list", "application/vnd.docker.distribution.manifest.list.v2+json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":1}]}`, digest.FromString(text)))
	put(201, "", "odd", "application/vnd.example+json; charset=utf-8", `{"odd":true}`)
	if r := c.want(200, "", "GET", repo+"/manifests/odd", nil, nil); r.Header.Get("Content-Type") != "application/vnd.example+json" {
		t.Errorf("%v", r.Header)
	}
	// Names.
	r := c.want(200, "", "GET", repo+"/tags/list", nil, nil)
	if got := strings.TrimSpace(string(r.body)); got != `{"name":"alice/pg","tags":["docker","list","odd","v1"]}` {
		t.Error(got)
	}
	var names []string
	for next := repo + "/tags/list?n=3"; next != ""; {
		r := c.want(200, "", "GET", next, nil, nil)
		var l struct{ Tags []string }
		must(t, json.Unmarshal(r.body, &l))
		names = append(names, l.Tags...)
		next, _, _ = strings.Cut(strings.TrimPrefix(r.Header.Get("Link"), "<"), ">")
	}
	if !slices.Equal(names, []string{"docker", "list", "odd", "v1"}) {
		t.Error(names)
	}
	if r := c.want(200, "", "GET", repo+"/tags/list?n=0", nil, nil); !strings.Contains(string(r.body), `"tags":[]`) {
		t.Errorf("%s", r.body)
	}
	if r := c.want(200, "", "GET", repo+"/tags/list?n=2&last=list", nil, nil); !strings.Contains(string(r.body), `"tags":["odd","v1"]`) || r.Header.Get("Link") != "" {
		t.Errorf("%s %v", r.body, r.Header)
	}
	c.want(400, "PAGINATION_NUMBER_INVALID", "GET", repo+"/tags/list?n=-1", nil, nil)
	c.want(404, "NAME_UNKNOWN", "GET", "/v2/alice/none/tags/list", nil, nil)
	c.want(202, "", "DELETE", repo+"/manifests/v1", nil, nil)
	c.want(404, "MANIFEST_UNKNOWN", "DELETE", repo+"/manifests/v1", nil, nil)
	c.want(200, "", "GET", repo+"/manifests/"+string(d), nil, nil)
	c.want(409, "IN_USE", "DELETE", repo+"/manifests/"+string(digest.FromString(text)), nil, nil)
	c.want(202, "", "DELETE", repo+"/manifests/"+string(d), nil, nil)
	c.want(404, "MANIFEST_UNKNOWN", "GET", repo+"/manifests/"+string(d), nil, nil)
	c.want(405, "UNSUPPORTED", "POST", repo+"/manifests/v1", nil, nil)
	c.want(404, "NOT_FOUND", "GET", "/v2/alice/pg/what/is", nil, nil)
	c.want(400, "NAME_INVALID", "GET", "/v2/alice/tags/list", nil, nil)
	c.want(400, "NAME_INVALID", "GET", "/v2/alice/UP/tags/list", nil, nil)
}

func TestConditions(t *testing.T) {
	_, c := start(t, serve.Options{})
	const repo = "/v2/alice/pg/manifests/"
	one, body := c.image("alice/pg", "", "one", nil)
	two, other := c.image("alice/pg", "", "two", nil)
	put := func(status int, code, ref string, h head, text []byte) {
		t.Helper()
		h["Content-Type"] = ocispec.MediaTypeImageManifest
		c.want(status, code, "PUT", repo+ref, h, text)
	}
	match := func(d digest.Digest) head { return head{"If-Match": `"` + string(d) + `"`} }
	put(412, "PRECONDITION_FAILED", "b-main", match(one), body)
	put(201, "", "b-main", head{"If-None-Match": "*"}, body)
	put(412, "PRECONDITION_FAILED", "b-main", head{"If-None-Match": "*"}, body)
	put(412, "PRECONDITION_FAILED", "b-main", match(two), other)
	put(201, "", "b-main", match(one), other)
	put(400, "UNSUPPORTED", "b-main", head{"If-Match": `"junk"`}, other)
	put(400, "UNSUPPORTED", "b-main", head{"If-None-Match": `"x"`}, other)
	put(400, "UNSUPPORTED", string(one), match(one), body)
	c.want(412, "PRECONDITION_FAILED", "DELETE", repo+"b-main", match(one), nil)
	c.want(202, "", "DELETE", repo+"b-main", match(two), nil)
	// Of many at once one wins.
	var wg sync.WaitGroup
	var won atomic.Int64
	for i := range 8 {
		_, text := c.image("alice/pg", "", fmt.Sprint("many ", i), nil)
		wg.Go(func() {
			switch r := c.do("PUT", repo+"b-new", head{"If-None-Match": "*", "Content-Type": ocispec.MediaTypeImageManifest}, text); r.StatusCode {
			case 201:
				won.Add(1)
			case 412:
			default:
				t.Errorf("%d %s", r.StatusCode, r.body)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
}

func TestReferrers(t *testing.T) {
	_, c := start(t, serve.Options{})
	subject, body := c.image("alice/pg", "v1", "one", nil)
	list := func(query string) (ocispec.Index, http.Header) {
		t.Helper()
		r := c.want(200, "", "GET", "/v2/alice/pg/referrers/"+query, nil, nil)
		var ix ocispec.Index
		must(t, json.Unmarshal(r.body, &ix))
		if r.Header.Get("Content-Type") != ocispec.MediaTypeImageIndex || ix.MediaType != ocispec.MediaTypeImageIndex || ix.SchemaVersion != 2 || ix.Manifests == nil {
			t.Errorf("%s %v", r.body, r.Header)
		}
		return ix, r.Header
	}
	if ix, _ := list(string(subject)); len(ix.Manifests) != 0 {
		t.Errorf("%+v", ix)
	}
	about := func(artifact string) func(*ocispec.Manifest) {
		return func(m *ocispec.Manifest) {
			m.ArtifactType, m.Annotations = artifact, map[string]string{"of": "one"}
			m.Subject = &ocispec.Descriptor{MediaType: m.MediaType, Digest: subject, Size: int64(len(body))}
		}
	}
	signature, _ := c.image("alice/pg", "", "signature", about("application/vnd.signature"))
	c.image("alice/pg", "", "sbom", about(""))
	m, _ := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: c.blob("alice/pg", "{}"), Subject: &ocispec.Descriptor{MediaType: "x/y", Digest: digest.FromString("later"), Size: 1}})
	r := c.want(201, "", "PUT", "/v2/alice/pg/manifests/early", head{"Content-Type": ocispec.MediaTypeImageManifest}, m)
	if r.Header.Get("OCI-Subject") != string(digest.FromString("later")) {
		t.Errorf("%v", r.Header)
	}
	if ix, _ := list(string(digest.FromString("later"))); len(ix.Manifests) != 1 {
		t.Errorf("%+v", ix)
	}
	ix, _ := list(string(subject))
	if len(ix.Manifests) != 2 {
		t.Fatalf("%+v", ix)
	}
	for _, x := range ix.Manifests {
		want := "application/vnd.test.config"
		if x.Digest == signature {
			want = "application/vnd.signature"
		}
		if x.ArtifactType != want || x.Annotations["of"] != "one" || x.MediaType != ocispec.MediaTypeImageManifest || x.Size == 0 {
			t.Errorf("%+v", x)
		}
	}
	ix, h := list(string(subject) + "?artifactType=application/vnd.signature")
	if len(ix.Manifests) != 1 || ix.Manifests[0].Digest != signature || h.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("%+v %v", ix, h)
	}
	for i := range 101 {
		c.image("alice/pg", "", fmt.Sprint("more ", i), about("application/vnd.more"))
	}
	seen := map[digest.Digest]bool{}
	for next := string(subject); next != ""; {
		ix, h := list(next)
		for _, x := range ix.Manifests {
			seen[x.Digest] = true
		}
		link, _, _ := strings.Cut(strings.TrimPrefix(h.Get("Link"), "</v2/alice/pg/referrers/"), ">")
		next = link
	}
	if len(seen) != 103 {
		t.Errorf("%d referrers", len(seen))
	}
	c.want(400, "DIGEST_INVALID", "GET", "/v2/alice/pg/referrers/x", nil, nil)
}

// TestRights: who may do what, and what the others are told.
func TestRights(t *testing.T) {
	var frozen atomic.Bool
	var now atomic.Int64
	now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Unix())
	h, alice := start(t, serve.Options{ReadOnly: frozen.Load, Now: func() time.Time { return time.Unix(now.Load(), 0) }})
	bob := caller{t, h, "bob", h.User(t, "bob", hub.Admin)}
	reader := caller{t, h, "alice", h.User(t, "alice", hub.Read)}
	nobody := caller{t: t, h: h}
	d, body := alice.image("alice/pg", "v1", "one", nil)
	alice.image("alice/open", "v1", "one", nil)
	must(t, h.Store.SetRepository(ctx, hubserver.Operator, hub.Repository{Name: "alice/open", Public: true}))
	const tags, put = "/v2/alice/pg/tags/list", "/v2/alice/pg/manifests/v2"
	as := head{"Content-Type": ocispec.MediaTypeImageManifest}

	alice.want(200, "", "GET", "/v2/", nil, nil)
	r := nobody.want(401, "UNAUTHORIZED", "GET", "/v2/", nil, nil)
	if want := `Bearer realm="http://` + h.Host + `/v2/token",service="drover-hub"`; r.Header.Get("WWW-Authenticate") != want {
		t.Errorf("%v", r.Header)
	}
	reader.want(200, "", "GET", tags, nil, nil)
	reader.want(403, "DENIED", "PUT", put, as, body)
	reader.want(403, "DENIED", "DELETE", "/v2/alice/pg/manifests/v1", nil, nil)
	reader.want(403, "DENIED", "POST", "/v2/alice/pg/blobs/uploads/", nil, nil)
	// What may not be seen answers as what is not there.
	for _, repo := range []string{"alice/pg", "alice/none", "nowhere/pg"} {
		bob.want(404, "NAME_UNKNOWN", "GET", "/v2/"+repo+"/tags/list", nil, nil)
		bob.want(404, "NAME_UNKNOWN", "GET", "/v2/"+repo+"/manifests/v1", nil, nil)
		bob.want(404, "NAME_UNKNOWN", "POST", "/v2/"+repo+"/blobs/uploads/", nil, nil)
		r := nobody.want(401, "UNAUTHORIZED", "GET", "/v2/"+repo+"/manifests/v1", nil, nil)
		if !strings.Contains(r.Header.Get("WWW-Authenticate"), `scope="repository:`+repo+`:pull"`) {
			t.Errorf("%v", r.Header)
		}
	}
	bob.want(202, "", "POST", "/v2/bob/x/blobs/uploads/?mount="+string(digest.FromString("one"))+"&from=alice/pg", nil, nil)
	bob.want(404, "", "HEAD", "/v2/bob/x/blobs/"+string(digest.FromString("one")), nil, nil)
	bob.want(201, "", "POST", "/v2/bob/x/blobs/uploads/?mount="+string(digest.FromString("one"))+"&from=alice/open", nil, nil)
	nobody.want(200, "", "GET", "/v2/alice/open/tags/list", nil, nil)
	nobody.want(200, "", "GET", "/v2/alice/open/manifests/v1", nil, nil)
	nobody.want(401, "UNAUTHORIZED", "PUT", "/v2/alice/open/manifests/v1", as, body)
	bob.want(403, "DENIED", "PUT", "/v2/alice/open/manifests/v1", as, body)
	for _, x := range []struct {
		c    caller
		want string
	}{{alice, `["alice/open","alice/pg"]`}, {bob, `["alice/open","bob/x"]`}, {reader, `["alice/open","alice/pg"]`}} {
		if r := x.c.want(200, "", "GET", "/v2/_catalog", nil, nil); strings.TrimSpace(string(r.body)) != `{"repositories":`+x.want+`}` {
			t.Errorf("%s: %s", x.c.user, r.body)
		}
	}
	if r := alice.want(200, "", "GET", "/v2/_catalog?n=1", nil, nil); !strings.Contains(string(r.body), `["alice/open"]`) || !strings.Contains(r.Header.Get("Link"), "last=alice%2Fopen") {
		t.Errorf("%s %v", r.body, r.Header)
	}
	// As Docker does it: a login is changed for a token.
	token := func(c caller) string {
		t.Helper()
		r := c.want(200, "", "GET", "/v2/token?service=drover-hub&scope=repository:alice/pg:pull,push", nil, nil)
		var x struct {
			Token   string `json:"token"`
			Expires int    `json:"expires_in"`
		}
		must(t, json.Unmarshal(r.body, &x))
		if x.Token == "" || x.Expires < 60 || strings.Contains(string(r.body), c.secret) && c.secret != "" {
			t.Errorf("%s", r.body)
		}
		return x.Token
	}
	with := func(text string) head { return head{"Authorization": "Bearer " + text} }
	mine, none := token(alice), token(nobody)
	nobody.want(200, "", "GET", tags, with(mine), nil)
	nobody.want(200, "", "GET", "/v2/", with(none), nil)
	nobody.want(200, "", "GET", "/v2/alice/open/tags/list", with(none), nil)
	nobody.want(401, "UNAUTHORIZED", "GET", tags, with(none), nil)
	if r := nobody.want(200, "", "GET", "/v2/_catalog", with(none), nil); strings.TrimSpace(string(r.body)) != `{"repositories":["alice/open"]}` {
		t.Errorf("%s", r.body)
	}
	for _, bad := range []string{"", "x", mine + "x", strings.Replace(mine, ".", "A.", 1), "." + strings.SplitN(mine, ".", 2)[1]} {
		nobody.want(401, "UNAUTHORIZED", "GET", tags, with(bad), nil)
	}
	nobody.want(401, "UNAUTHORIZED", "GET", tags, head{"Authorization": "Digest x"}, nil)
	wrong := caller{t, h, "alice", "wrong"}
	wrong.want(401, "UNAUTHORIZED", "GET", "/v2/token", nil, nil)
	wrong.want(401, "UNAUTHORIZED", "GET", "/v2/alice/open/tags/list", nil, nil)
	alice.want(405, "UNSUPPORTED", "POST", "/v2/token", nil, nil)
	// What is revoked ends at once, also for those who have changed it for a token.
	list, err := h.Store.Tokens(ctx, "alice")
	must(t, err)
	must(t, h.Store.DeleteToken(ctx, hubserver.Operator, "alice", list[0].ID))
	for _, k := range list[1:] {
		must(t, h.Store.DeleteToken(ctx, hubserver.Operator, "alice", k.ID))
	}
	alice.want(401, "UNAUTHORIZED", "GET", tags, nil, nil)
	nobody.want(401, "UNAUTHORIZED", "GET", tags, with(mine), nil)
	alice.secret = h.User(t, "alice", hub.Admin)
	mine = token(alice)
	now.Add(299)
	nobody.want(200, "", "GET", tags, with(mine), nil)
	now.Add(2)
	nobody.want(401, "UNAUTHORIZED", "GET", tags, with(mine), nil)
	// Read-only.
	frozen.Store(true)
	alice.want(405, "UNSUPPORTED", "PUT", put, as, body)
	alice.want(405, "UNSUPPORTED", "POST", "/v2/alice/pg/blobs/uploads/", nil, nil)
	alice.want(405, "UNSUPPORTED", "DELETE", "/v2/alice/pg/manifests/v1", nil, nil)
	alice.want(200, "", "GET", "/v2/alice/pg/manifests/"+string(d), nil, nil)
	alice.want(200, "", "HEAD", "/v2/alice/pg/blobs/"+string(digest.FromString("one")), nil, nil)
	bob.want(404, "NAME_UNKNOWN", "DELETE", "/v2/alice/pg/manifests/v1", nil, nil)
}

func TestQuotaAndRules(t *testing.T) {
	h, c := start(t, serve.Options{})
	c.image("alice/pg", "v1", "one", nil)
	must(t, h.Store.SetRepository(ctx, hubserver.Operator, hub.Repository{Name: "alice/pg", Quota: 3 << 20, Protected: []string{"main"}}))
	big := bytes.Repeat([]byte("y"), 4<<20)
	d := string(digest.FromBytes(big))
	c.want(507, "QUOTA_EXCEEDED", "POST", "/v2/alice/pg/blobs/uploads/?digest="+d, nil, big)
	at := c.want(202, "", "POST", "/v2/alice/pg/blobs/uploads/", nil, nil).Header.Get("Location")
	c.want(507, "QUOTA_EXCEEDED", "PATCH", at, nil, big)
	for i := range 2 { // without saying how much comes
		c.want(202, "", "PATCH", at, nil, big[i*2<<20:(i+1)*2<<20])
	}
	c.want(507, "QUOTA_EXCEEDED", "PUT", at+"?digest="+d, nil, nil)
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", at, nil, nil)
	_, body := c.image("alice/pg", "b-main", "two", nil)
	_, other := c.image("alice/pg", "", "three", nil)
	r := c.want(403, "DENIED", "PUT", "/v2/alice/pg/manifests/b-main", head{"Content-Type": ocispec.MediaTypeImageManifest}, other)
	if !strings.Contains(string(r.body), `rule \"main\"`) {
		t.Errorf("%s", r.body)
	}
	c.want(201, "", "PUT", "/v2/alice/pg/manifests/b-main", head{"Content-Type": ocispec.MediaTypeImageManifest}, body)
	c.want(403, "DENIED", "DELETE", "/v2/alice/pg/manifests/b-main", nil, nil)
}

// TestObserve: what was asked is counted.
func TestObserve(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]registry.Observation{}
	_, c := start(t, serve.Options{Observe: func(o registry.Observation) {
		mu.Lock()
		defer mu.Unlock()
		seen[fmt.Sprint(o.Method, o.What, o.Status)] = o
	}})
	c.image("alice/pg", "v1", "one", nil)
	c.want(200, "", "GET", "/v2/alice/pg/blobs/"+string(digest.FromString("one")), nil, nil)
	c.want(404, "", "HEAD", "/v2/alice/pg/manifests/none", nil, nil)
	mu.Lock()
	defer mu.Unlock()
	if seen["POSTupload201"].In == 0 || seen["GETblob200"].Out != 3 || seen["PUTmanifest201"].In == 0 || seen["HEADmanifest404"].Status != 404 {
		t.Errorf("%+v", seen)
	}
}
