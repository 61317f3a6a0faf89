package serve

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/registry"
	"github.com/drover-data/drover/remote/remotetest"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t testing.TB, err error, want api.Kind, says string) {
	t.Helper()
	if api.KindOf(err) != want || (err != nil && !strings.Contains(err.Error(), says)) {
		t.Fatalf("%q %v, want %q %q", api.KindOf(err), err, want, says)
	}
}

var operator = hub.Identity{User: "operator", Root: true, Most: hub.Admin}

// process is a hub that answers on a port of its own.
type process struct {
	*Server
	Host string
	http *httptest.Server
	// Before sees each request first; one that it answers goes no further.
	Before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	log    *lines
}

// lines are what a hub logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, o Options) *process {
	t.Helper()
	p := &process{log: &lines{}}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(p.log, nil))
	}
	var err error
	p.Server, err = Open(ctx, o)
	must(t, err)
	p.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := p.Before.Load(); f != nil && (*f)(w, r) {
			return
		}
		p.Registry.ServeHTTP(w, r)
	}))
	p.http.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that are cut on purpose
	p.http.Start()
	t.Cleanup(func() {
		p.http.CloseClientConnections()
		p.http.Close()
		_ = p.Close()
	})
	p.Host = strings.TrimPrefix(p.http.URL, "http://")
	return p
}

// directory is a hub on a directory.
func directory(t testing.TB) (Options, string) {
	dir := t.TempDir()
	return Options{Database: filepath.Join(dir, "hub.db"), Storage: filepath.Join(dir, "storage")}, filepath.Join(dir, "storage")
}

// user makes a user with a token.
func (p *process) user(t testing.TB, name string) string {
	t.Helper()
	err := p.Store.CreateUser(ctx, operator, hub.User{Name: name})
	if err != nil && !api.Is(err, api.Exists) {
		t.Fatal(err)
	}
	_, secret, err := p.Store.CreateToken(ctx, operator, hub.Token{User: name, Label: "tests", Most: hub.Admin})
	must(t, err)
	return secret
}

var count atomic.Int64

// at says how a client reaches a repository.
func (p *process) at(t testing.TB, repository, user, secret string) registry.Options {
	return registry.Options{Reference: p.Host + "/" + repository, Hub: true, Username: user, Password: secret, DockerConfig: filepath.Join(t.TempDir(), "config.json"), PageSize: 7}
}

func open(t testing.TB, o registry.Options) *registry.Store {
	t.Helper()
	s, err := registry.Open(o)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// damage replaces what is stored under a digest in a directory.
func damage(t testing.TB, dir string, d digest.Digest, body []byte) {
	t.Helper()
	path := filepath.Join(dir, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(path, body, 0o600))
}

func TestConformance(t *testing.T) {
	o, dir := directory(t)
	p := start(t, o)
	secret := p.user(t, "alice")
	remotetest.Run(t, func(t *testing.T) remotetest.Place {
		at := p.at(t, "alice/r"+strings.Repeat("x", int(count.Add(1))), "alice", secret)
		return remotetest.Place{
			Open:   func() remote.Store { return open(t, at) },
			Damage: func(d digest.Digest, body []byte) { damage(t, dir, d, body) },
			Large:  5 << 20,
		}
	})
	if text := p.log.String(); strings.Contains(text, "level=ERROR") && !strings.Contains(text, "damaged") {
		t.Error(text)
	}
}

var _ = time.Now
