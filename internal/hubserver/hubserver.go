// Package hubserver runs a hub, for tests. A handler before it does what servers do on
// bad days.
package hubserver

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

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
)

// Operator may do everything.
var Operator = hub.Identity{User: "operator", Root: true, Most: hub.Admin}

// Server is one process of a hub, that runs until the test ends.
type Server struct {
	*serve.Server
	Host string // with its port
	Dir  string // its storage, when it is a directory
	// Before sees each request first; one that it answers goes no further.
	Before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	http   *httptest.Server
	log    lines
	once   sync.Once
}

// lines are what a hub logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Start runs a hub. Without a storage it is a directory, without a database a file.
func Start(t testing.TB, o serve.Options) *Server {
	t.Helper()
	if o.Storage == "" {
		o.Storage = filepath.Join(t.TempDir(), "storage")
	}
	if o.Database == "" {
		o.Database = filepath.Join(t.TempDir(), "hub.db")
	}
	s := &Server{}
	if filepath.IsAbs(o.Storage) {
		s.Dir = o.Storage
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(&s.log, nil))
	}
	var err error
	if s.Server, err = serve.Open(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.Before.Load(); f != nil && (*f)(w, r) {
			return
		}
		s.Registry.ServeHTTP(w, r)
	}))
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that are cut on purpose
	s.http.Start()
	t.Cleanup(s.Stop)
	s.Host = strings.TrimPrefix(s.http.URL, "http://")
	return s
}

// Stop ends it before the test does.
func (s *Server) Stop() {
	s.once.Do(func() {
		s.http.CloseClientConnections()
		s.http.Close()
		_ = s.Close()
	})
}

// Log is what it has logged.
func (s *Server) Log() string {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.b.String()
}

// User makes a user, unless there is one, and a token for them with at most a right.
func (s *Server) User(t testing.TB, name string, most hub.Right) string {
	t.Helper()
	ctx := context.Background()
	err := s.Store.CreateUser(ctx, Operator, hub.User{Name: name})
	if err != nil && !api.Is(err, api.Exists) {
		t.Fatal(err)
	}
	_, secret, err := s.Store.CreateToken(ctx, Operator, hub.Token{User: name, Label: "tests", Most: most})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Path is where the bytes of a digest lie in a directory.
func Path(dir string, d digest.Digest) string {
	return filepath.Join(dir, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")
}

// Damage replaces a blob's bytes.
func (s *Server) Damage(t testing.TB, d digest.Digest, body []byte) {
	t.Helper()
	path := Path(s.Dir, d)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}
