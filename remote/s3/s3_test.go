package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/signer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/s3server"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/remotetest"
)

var count atomic.Int64

func options(s *s3server.Server) Options {
	return Options{
		Bucket: "backups", Prefix: fmt.Sprint("team/", count.Add(1)), Endpoint: s.URL, Region: "us-east-1", Access: s3server.Access, Secret: s3server.Secret,
		Now: time.Now, ID: func() string { return fmt.Sprint("id-", count.Add(1)) }, PartSize: 5 << 20, PageSize: 7,
	}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	server := s3server.Start(t, "backups")
	place := func(t *testing.T) remotetest.Place {
		o := options(server)
		return remotetest.Place{
			Open: func() remote.Store {
				s, err := Open(o)
				must(t, err)
				return s
			},
			Damage: func(d digest.Digest, body []byte) {
				// As somebody else who may write there.
				s := open(t, o)
				must(t, s.write(context.Background(), s.key("blobs/sha256", d.Encoded()), body, absentNot()))
			},
			Large: 5<<20*2 + 12345,
		}
	}
	t.Run("conditional", func(t *testing.T) {
		remotetest.Run(t, place)
		s := open(t, options(server))
		must(t, s.Check(context.Background(), true))
		if m := *s.means; !m.put || !m.remove || !s.Info().Atomic {
			t.Errorf("the server was seen to do %+v", m)
		}
	})
	t.Run("no conditional delete", func(t *testing.T) {
		strip(server, func(r *http.Request) bool { return r.Method == http.MethodDelete })
		defer server.Before.Store(nil)
		remotetest.Run(t, place)
		s := open(t, options(server))
		must(t, s.Check(context.Background(), true))
		if m := *s.means; !m.put || m.remove {
			t.Errorf("the server was seen to do %+v", m)
		}
	})
	t.Run("conditions ignored", func(t *testing.T) {
		strip(server, func(*http.Request) bool { return true })
		defer server.Before.Store(nil)
		remotetest.Run(t, place)
		s := open(t, options(server))
		must(t, s.Check(context.Background(), true))
		if s.Info().Atomic {
			t.Error("an endpoint that ignores conditions counts as atomic")
		}
	})
}

// strip makes an endpoint that does not know conditions on writes.
func strip(s *s3server.Server, which func(*http.Request) bool) {
	f := func(_ http.ResponseWriter, r *http.Request) bool {
		had := r.Header.Get("If-Match") + r.Header.Get("If-None-Match")
		if had == "" || r.Method == http.MethodGet || !which(r) {
			return false
		}
		r.Header.Del("If-Match")
		r.Header.Del("If-None-Match")
		if r.Method == http.MethodPut { // there they were signed
			signed := signer.SignV4(*r, s3server.Access, s3server.Secret, "", "us-east-1")
			r.Header = signed.Header
		}
		return false
	}
	s.Before.Store(&f)
}

func TestResume(t *testing.T) {
	server := s3server.Start(t, "backups")
	s := open(t, options(server))
	ctx := context.Background()
	body := make([]byte, 23<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(body)
	desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(body), Size: int64(len(body))}
	// The source breaks in the fourth of five parts.
	broken := errors.New("the power went")
	var sent atomic.Int64
	tell := func(n int64) { sent.Add(n) }
	err := s.Put(ctx, desc, func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(body[:17<<20]), failing{broken})), nil
	}, tell)
	if !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	if sent.Load() != 15<<20 {
		t.Fatalf("%d bytes went before", sent.Load())
	}
	sent.Store(0)
	must(t, s.Put(ctx, desc, remote.Bytes(body), tell))
	if sent.Load() != 8<<20 {
		t.Errorf("%d bytes went again", sent.Load())
	}
	r, err := s.Get(ctx, desc.Digest)
	must(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Error("other bytes came back")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestBadDays: what passes is tried again, connections that break in the middle
// included.
func TestBadDays(t *testing.T) {
	server := s3server.Start(t, "backups")
	s := open(t, options(server))
	ctx := context.Background()
	body := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(body)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))}
	var n atomic.Int64
	f := func(w http.ResponseWriter, r *http.Request) bool {
		if n.Add(1)%3 == 0 {
			return false
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			// Half of what is wanted, and then nothing.
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			if r.Header.Get("Range") == "" {
				_, _ = w.Write(body[:len(body)/2])
			}
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>`)
		return true
	}
	server.Before.Store(&f)
	must(t, s.Check(ctx, true))
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	must(t, s.SetRef(ctx, "b-main", desc, ""))
	r, err := s.Get(ctx, desc.Digest)
	must(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Error("other bytes came back")
	}
}

// TestLostAnswer: a conditional write that was done, but whose answer was lost, is a success.
func TestLostAnswer(t *testing.T) {
	server := s3server.Start(t, "backups")
	s := open(t, options(server))
	ctx := context.Background()
	put := func(text string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: "x", Digest: digest.FromString(text), Size: int64(len(text))}
		must(t, s.PutManifest(ctx, d, []byte(text)))
		return d
	}
	a, b := put("a"), put("b")
	must(t, s.Check(ctx, true))
	var lost atomic.Bool
	f := func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || lost.Swap(true) {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		again, _ := http.NewRequestWithContext(r.Context(), r.Method, server.URL+r.URL.RequestURI(), bytes.NewReader(body))
		again.Header, again.Host = r.Header.Clone(), r.Host
		if resp, err := http.DefaultClient.Do(again); err == nil {
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the first write: %s", resp.Status)
			}
			resp.Body.Close()
		}
		panic(http.ErrAbortHandler)
	}
	server.Before.Store(&f)
	must(t, s.SetRef(ctx, "b-main", a, ""))
	lost.Store(false)
	must(t, s.SetRef(ctx, "b-main", b, a.Digest))
	if r, err := s.Ref(ctx, "b-main"); err != nil || r.Desc.Digest != b.Digest {
		t.Errorf("%+v %v", r, err)
	}
}

func TestErrors(t *testing.T) {
	server := s3server.Start(t, "backups")
	answer := func(status int, code string) {
		f := func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, code)
			return true
		}
		server.Before.Store(&f)
	}
	for _, x := range []struct {
		name   string
		change func(*Options)
		status int
		code   string
		want   api.Kind
		says   string
	}{
		{"secret", func(o *Options) { o.Secret = "other" }, 0, "", api.Unauthenticated, "AWS_SECRET_ACCESS_KEY"},
		{"key", func(o *Options) { o.Access = "nobody" }, 0, "", api.Unauthenticated, "AWS_ACCESS_KEY_ID"},
		{"bucket", func(o *Options) { o.Bucket = "other" }, 0, "", api.NotFound, "no bucket other"},
		{"nobody there", func(o *Options) { o.Endpoint = "http://127.0.0.1:1" }, 0, "", api.Unavailable, "endpoint"},
		{"token", nil, 400, "InvalidToken", api.Unauthenticated, "token"},
		{"clock", nil, 403, "RequestTimeTooSkewed", api.Unauthenticated, "clock"},
		{"rights", nil, 403, "AccessDenied", api.Denied, "s3:PutObject"},
		{"quota", nil, 403, "QuotaExceeded", api.Exhausted, "full"},
		{"region", nil, 400, "AuthorizationHeaderMalformed", api.Invalid, "region"},
	} {
		t.Run(x.name, func(t *testing.T) {
			defer server.Before.Store(nil)
			o := options(server)
			if x.change != nil {
				x.change(&o)
			}
			if x.code != "" {
				answer(x.status, x.code)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			err := open(t, o).Check(ctx, true)
			if !api.Is(err, x.want) || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%q %v", api.KindOf(err), err)
			}
			if strings.Contains(err.Error(), s3server.Secret) {
				t.Errorf("%v has the secret", err)
			}
		})
	}
}

// TestCredentials come from where AWS's own tools look for them.
func TestCredentials(t *testing.T) {
	server := s3server.Start(t, "backups")
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	o := options(server)
	o.Access, o.Secret, o.Endpoint, o.Region = "", "", "", ""
	t.Setenv("AWS_ENDPOINT_URL", server.URL)
	t.Setenv("AWS_REGION", "us-east-1")
	ctx := context.Background()
	t.Run("variables", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", s3server.Access)
		t.Setenv("AWS_SECRET_ACCESS_KEY", s3server.Secret)
		must(t, open(t, o).Check(ctx, true))
	})
	t.Run("profile", func(t *testing.T) {
		must(t, os.MkdirAll(filepath.Join(home, ".aws"), 0o700))
		text := fmt.Sprintf("[default]\naws_access_key_id = x\naws_secret_access_key = y\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3server.Access, s3server.Secret)
		must(t, os.WriteFile(filepath.Join(home, ".aws/credentials"), []byte(text), 0o600))
		t.Setenv("AWS_PROFILE", "backup")
		must(t, open(t, o).Check(ctx, true))
	})
}

// absentNot writes whatever is there.
func absentNot() (o minio.PutObjectOptions) { return o }
