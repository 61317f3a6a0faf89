// Package registryserver runs the distribution registry, the engine behind
// most registries, on a directory, for tests. A handler before it does what
// registries do on bad days.
package registryserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd" // logins by a file
	"github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // data in a directory
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/crypto/bcrypt"
)

// The logins that a server with Basic or Token knows.
const (
	Writer   = "writer"
	Reader   = "reader" // with Token only
	Password = "registry-password"
)

// Options say what kind of server it is.
type Options struct {
	Basic, Token, TLS, ReadOnly, NoDelete bool
	Dir                                   string // "" is a new one
}

// Server is one that runs until the test ends.
type Server struct {
	Host string // with its port
	Dir  string
	// Client trusts the server's certificate.
	Client *http.Client
	// Before sees each request first; one that it answers goes no further.
	Before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	// Tokens counts those that were given.
	Tokens atomic.Int64
	// Lifetime of tokens.
	Lifetime time.Duration
}

// Start runs a server.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{Dir: o.Dir, Lifetime: time.Hour}
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	var app, issuer http.Handler
	h := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.Before.Load(); f != nil && (*f)(w, r) {
			return
		}
		if r.URL.Path == "/token" {
			issuer.ServeHTTP(w, r)
			return
		}
		app.ServeHTTP(w, r)
	}))
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that are cut on purpose
	if o.TLS {
		h.StartTLS()
	} else {
		h.Start()
	}
	t.Cleanup(h.Close)
	s.Host = strings.TrimPrefix(strings.TrimPrefix(h.URL, "https://"), "http://")
	s.Client = h.Client()
	config := &configuration.Configuration{Version: configuration.CurrentVersion, Storage: configuration.Storage{
		"filesystem":  {"rootdirectory": s.Dir},
		"delete":      {"enabled": !o.NoDelete},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}, "readonly": map[any]any{"enabled": o.ReadOnly}},
	}}
	config.HTTP.Secret = "a secret of tests"
	config.Log.AccessLog.Disabled = true
	config.Log.Level = "fatal"
	switch {
	case o.Basic:
		config.Auth = configuration.Auth{"htpasswd": {"realm": "tests", "path": htpasswd(t)}}
	case o.Token:
		var cert string
		issuer, cert = s.issuer(t)
		config.Auth = configuration.Auth{"token": {"realm": h.URL + "/token", "service": "tests", "issuer": "tests", "rootcertbundle": cert}}
	}
	logrus.SetOutput(io.Discard)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	app = handlers.NewApp(ctx, config)
	return s
}

// Damage replaces a blob's bytes.
func (s *Server) Damage(t testing.TB, d digest.Digest, body []byte) {
	t.Helper()
	path := filepath.Join(s.Dir, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}

func htpasswd(t testing.TB) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(Writer+":"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// issuer gives tokens as registries' own servers do: who does not log in may
// read what lies below public/.
func (s *Server) issuer(t testing.TB) (http.Handler, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Tokens.Add(1)
		user, password, given := r.BasicAuth()
		if given && (password != Password || (user != Writer && user != Reader)) {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
			return
		}
		var access []map[string]any
		for _, scope := range r.URL.Query()["scope"] {
			for one := range strings.FieldsSeq(scope) {
				p := strings.SplitN(one, ":", 3)
				if len(p) < 3 {
					continue
				}
				actions := slices.DeleteFunc(strings.Split(p[2], ","), func(a string) bool {
					return user != Writer && (a != "pull" || (user == "" && !strings.HasPrefix(p[1], "public/")))
				})
				access = append(access, map[string]any{"type": p[0], "name": p[1], "actions": actions})
			}
		}
		now := time.Now()
		signed := sign(key, map[string]any{
			"iss": "tests", "sub": user, "aud": []string{"tests"}, "exp": now.Add(s.Lifetime).Unix(), "nbf": now.Add(-time.Minute).Unix(),
			"iat": now.Unix(), "jti": fmt.Sprint(now.UnixNano()), "access": access,
		})
		_ = json.NewEncoder(w).Encode(map[string]any{"token": signed, "expires_in": int(s.Lifetime.Seconds())})
	}), path
}

// sign makes a JSON Web Token (RFC 7519) with ES256.
func sign(key *ecdsa.PrivateKey, claims map[string]any) string {
	part := func(v any) string {
		text, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	text := part(map[string]any{"alg": "ES256", "typ": "JWT", "kid": token.GetJWKThumbprint(key.Public())}) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return ""
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(out)
}
