package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/internal/registryserver"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/remotetest"
)

var count atomic.Int64

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func options(t testing.TB, s *registryserver.Server) Options {
	return Options{Reference: fmt.Sprint(s.Host, "/public/repo", count.Add(1)), Transport: s.Client.Transport, DockerConfig: filepath.Join(t.TempDir(), "config.json"), PageSize: 7}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]registryserver.Options{
		"plain":     {},
		"token tls": {Token: true, TLS: true},
		"no delete": {NoDelete: true, Basic: true, TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := registryserver.Start(t, o)
			remotetest.Run(t, func(t *testing.T) remotetest.Place {
				at := options(t, server)
				if o.Basic || o.Token {
					at.Username, at.Password = registryserver.Writer, registryserver.Password
				}
				return remotetest.Place{
					Open:   func() remote.Store { return open(t, at) },
					Damage: func(d digest.Digest, body []byte) { server.Damage(t, d, body) },
					Large:  5 << 20, NoDelete: o.NoDelete,
				}
			})
		})
	}
}

func content(n int, seed byte) ([]byte, ocispec.Descriptor) {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(n)}
}

func manifest(t testing.TB, s *Store, text string) ocispec.Descriptor {
	t.Helper()
	ctx := context.Background()
	config := ocispec.Descriptor{MediaType: "application/vnd.drover.record.v1+json", Digest: digest.FromString(text), Size: int64(len(text))}
	must(t, s.Put(ctx, config, remote.Bytes([]byte(text)), nil))
	body, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.drover.commit.v1", Config: config, Layers: []ocispec.Descriptor{config}})
	must(t, err)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))}
	must(t, s.PutManifest(ctx, d, body))
	return d
}

func read(t testing.TB, s *Store, d digest.Digest) []byte {
	t.Helper()
	r, err := s.Get(context.Background(), d)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return b
}

// TestBadDays: rate limits, servers that fail and connections that break in the
// middle, each way.
func TestBadDays(t *testing.T) {
	server := registryserver.Start(t, registryserver.Options{})
	s := open(t, options(t, server))
	ctx := context.Background()
	body, desc := content(9<<20, 1)
	must(t, s.Check(ctx, true))
	var n, cut atomic.Int64
	f := func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPatch && cut.Add(1) <= 2:
			_, _ = io.CopyN(io.Discard, r.Body, 3<<20)
			panic(http.ErrAbortHandler)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256") && r.Header.Get("Range") == "":
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/3])
			panic(http.ErrAbortHandler)
		case n.Add(1)%3 == 0:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}[n.Load()%2])
			return true
		}
		return false
	}
	server.Before.Store(&f)
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	d := manifest(t, s, "x")
	must(t, s.SetRef(ctx, "b-main", d, ""))
	if !bytes.Equal(read(t, s, desc.Digest), body) {
		t.Error("other bytes came back")
	}
	if cut.Load() < 3 {
		t.Errorf("%d uploads", cut.Load())
	}
}

// TestResume: a registry that says how much of an upload it has got gets the rest.
func TestResume(t *testing.T) {
	server := registryserver.Start(t, registryserver.Options{})
	s := open(t, options(t, server))
	ctx := context.Background()
	body, desc := content(6<<20, 2)
	var got bytes.Buffer
	var wire atomic.Int64
	done := false
	f := func(w http.ResponseWriter, r *http.Request) bool {
		here := "/v2/" + s.ref.Repository + "/blobs/uploads/1"
		answer := func(status int) bool {
			w.Header().Set("Location", here)
			w.Header().Set("Range", fmt.Sprintf("0-%d", got.Len()-1))
			w.WriteHeader(status)
			return true
		}
		switch r.Method {
		case http.MethodPost:
			return answer(http.StatusAccepted)
		case http.MethodPatch:
			if h := r.Header.Get("Content-Range"); h != "" && !strings.HasPrefix(h, fmt.Sprint(got.Len(), "-")) {
				t.Errorf("it goes on at %s, %d are here", h, got.Len())
			}
			n, _ := io.CopyN(&got, r.Body, 2<<20)
			wire.Add(n)
			if n == 2<<20 && got.Len() < len(body) {
				panic(http.ErrAbortHandler)
			}
			return answer(http.StatusAccepted)
		case http.MethodGet:
			return answer(http.StatusNoContent)
		case http.MethodPut:
			done = true
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	}
	server.Before.Store(&f)
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	if !done || !bytes.Equal(got.Bytes(), body) || wire.Load() != int64(len(body)) {
		t.Errorf("%d bytes of %d came, %d went", got.Len(), len(body), wire.Load())
	}
}

func TestMount(t *testing.T) {
	server := registryserver.Start(t, registryserver.Options{})
	ctx := context.Background()
	o := options(t, server)
	body, desc := content(2<<20, 3)
	must(t, open(t, o).Put(ctx, desc, remote.Bytes(body), nil))
	other := options(t, server)
	_, other.From, _ = strings.Cut(o.Reference, "/")
	var sent atomic.Int64
	s := open(t, other)
	must(t, s.Put(ctx, desc, remote.Bytes(body), func(n int64) { sent.Add(n) }))
	if sent.Load() != 0 || !bytes.Equal(read(t, s, desc.Digest), body) {
		t.Errorf("%d bytes went", sent.Load())
	}
}

// TestRights: who may do what, and what those who may not are told.
func TestRights(t *testing.T) {
	ctx := context.Background()
	tokens := registryserver.Start(t, registryserver.Options{Token: true, TLS: true})
	basic := registryserver.Start(t, registryserver.Options{Basic: true, TLS: true})
	frozen := registryserver.Start(t, registryserver.Options{ReadOnly: true})
	login := func(user, password string) func(*Options) {
		return func(o *Options) { o.Username, o.Password = user, password }
	}
	private := func(o *Options) { o.Reference = strings.Replace(o.Reference, "/public/", "/private/", 1) }
	for _, x := range []struct {
		name   string
		server *registryserver.Server
		change []func(*Options)
		write  bool
		want   api.Kind
		says   string
	}{
		{"anybody reads public", tokens, nil, false, "", ""},
		{"nobody writes public", tokens, nil, true, api.Unauthenticated, "docker login"},
		{"anybody reads private", tokens, []func(*Options){private}, false, api.Unauthenticated, "docker login"},
		{"reader reads private", tokens, []func(*Options){private, login(registryserver.Reader, registryserver.Password)}, false, "", ""},
		{"reader writes", tokens, []func(*Options){login(registryserver.Reader, registryserver.Password)}, true, api.Unauthenticated, "login"},
		{"writer writes", tokens, []func(*Options){private, login(registryserver.Writer, registryserver.Password)}, true, "", ""},
		{"wrong password", tokens, []func(*Options){login(registryserver.Writer, "other")}, true, api.Unauthenticated, "login"},
		{"basic without login", basic, nil, false, api.Unauthenticated, "docker login"},
		{"basic, wrong password", basic, []func(*Options){login(registryserver.Writer, "other")}, false, api.Unauthenticated, "login"},
		{"basic", basic, []func(*Options){login(registryserver.Writer, registryserver.Password)}, true, "", ""},
		{"read-only reads", frozen, nil, false, "", ""},
		{"read-only writes", frozen, nil, true, api.ReadOnly, "read-only"},
		{"certificate", tokens, []func(*Options){func(o *Options) {
			o.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
		}}, false, api.Unavailable, "certificate"},
		{"a registry is no hub", frozen, []func(*Options){func(o *Options) { o.Hub = true }}, false, api.Invalid, "no hub"},
	} {
		t.Run(x.name, func(t *testing.T) {
			o := options(t, x.server)
			for _, c := range x.change {
				c(&o)
			}
			err := open(t, o).Check(ctx, x.write)
			if api.KindOf(err) != x.want || (err != nil && !strings.Contains(err.Error(), x.says)) {
				t.Errorf("%q %v", api.KindOf(err), err)
			}
			if err != nil && strings.Contains(err.Error(), registryserver.Password) {
				t.Errorf("%v has the password", err)
			}
		})
	}
}

// TestDockerLogin: logins are found where docker keeps them.
func TestDockerLogin(t *testing.T) {
	ctx := context.Background()
	server := registryserver.Start(t, registryserver.Options{Basic: true, TLS: true})
	o := options(t, server)
	pair := base64.StdEncoding.EncodeToString([]byte(registryserver.Writer + ":" + registryserver.Password))
	must(t, os.WriteFile(o.DockerConfig, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, server.Host, pair), 0o600))
	must(t, open(t, o).Check(ctx, true))
	// A credential helper, as docker-credential-… programs speak.
	bin := t.TempDir()
	helper := fmt.Sprintf("#!/bin/sh\nread host\n[ \"$1\" = get ] && [ \"$host\" = %s ] && echo '{\"ServerURL\":\"x\",\"Username\":\"%s\",\"Secret\":\"%s\"}'\n", server.Host, registryserver.Writer, registryserver.Password)
	must(t, os.WriteFile(filepath.Join(bin, "docker-credential-tests"), []byte(helper), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	must(t, os.WriteFile(o.DockerConfig, []byte(`{"credsStore":"tests"}`), 0o600))
	must(t, open(t, o).Check(ctx, true))
	must(t, os.WriteFile(o.DockerConfig, []byte(`{"credsStore":"not-there"}`), 0o600))
	if err := open(t, o).Check(ctx, true); !api.Is(err, api.Unauthenticated) {
		t.Errorf("%q %v", api.KindOf(err), err)
	}
	must(t, os.WriteFile(o.DockerConfig, []byte(`{"broken`), 0o600))
	if err := open(t, o).Check(ctx, true); !api.Is(err, api.Unauthenticated) {
		t.Errorf("%q %v", api.KindOf(err), err)
	}
}

// TestRefusals of registries that are not at hand.
func TestRefusals(t *testing.T) {
	server := registryserver.Start(t, registryserver.Options{})
	ctx := context.Background()
	for _, x := range []struct {
		status int
		body   string
		want   api.Kind
	}{
		{403, `{"errors":[{"code":"DENIED","message":"quota"}]}`, api.Denied},
		{401, ``, api.Unauthenticated},
		{404, `<html>nginx</html>`, api.Invalid},
		{404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, ""},
		{400, `{"errors":[{"code":"NAME_INVALID"}]}`, api.Invalid},
		{507, ``, api.Exhausted},
		{413, ``, api.Invalid},
	} {
		f := func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(x.status)
			_, _ = io.WriteString(w, x.body)
			return true
		}
		server.Before.Store(&f)
		if err := open(t, options(t, server)).Check(ctx, false); api.KindOf(err) != x.want {
			t.Errorf("%d %s: %q %v", x.status, x.body, api.KindOf(err), err)
		}
	}
}

func TestOpen(t *testing.T) {
	for _, bad := range []string{"", "host", "host/", "host/UPPER", "host/a:tag", "host/a@sha256:" + strings.Repeat("a", 64), "https://host/a", "ho st/a", "user:secret@host/a"} {
		if _, err := Open(Options{Reference: bad}); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for host, want := range map[string]bool{"localhost:5000": true, "127.0.0.1": true, "127.9.9.9:1": true, "[::1]:5000": true, "10.0.0.1:5000": false, "registry.example.com": false, "localhost.example.com": false} {
		if loopback(host) != want {
			t.Errorf("loopback %s", host)
		}
	}
}

func TestHub(t *testing.T) {
	server := hubserver.Start(t, serve.Options{})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(server.Log())
		}
	})
	secret := server.User(t, "alice", hub.Write)
	options := func() Options {
		return Options{Reference: fmt.Sprint(server.Host, "/alice/repo", count.Add(1)), Hub: true, Username: "alice", Password: secret, PageSize: 7}
	}
	remotetest.Run(t, func(t *testing.T) remotetest.Place {
		at := options()
		return remotetest.Place{
			Open:   func() remote.Store { return open(t, at) },
			Damage: func(d digest.Digest, body []byte) { server.Damage(t, d, body) },
		}
	})
	s := open(t, options())
	must(t, s.Check(context.Background(), true))
	if i := s.Info(); !i.Atomic || i.Kind != "hub" {
		t.Errorf("%+v", i)
	}
}
