package serve_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/internal/s3server"
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

var count atomic.Int64

// at says how a client reaches a repository.
func at(t testing.TB, s *hubserver.Server, repository, user, secret string) registry.Options {
	return registry.Options{Reference: s.Host + "/" + repository, Hub: true, Username: user, Password: secret, DockerConfig: filepath.Join(t.TempDir(), "config.json"), PageSize: 7}
}

func open(t testing.TB, o registry.Options) *registry.Store {
	t.Helper()
	s, err := registry.Open(o)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func content(n int, seed byte) ([]byte, ocispec.Descriptor) {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(n)}
}

func read(t testing.TB, s *registry.Store, d digest.Digest) []byte {
	t.Helper()
	r, err := s.Get(ctx, d)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return b
}

func conformance(t *testing.T, s *hubserver.Server, path func(digest.Digest) string) {
	secret := s.User(t, "alice", hub.Write)
	remotetest.Run(t, func(t *testing.T) remotetest.Place {
		at := at(t, s, "alice/r"+strings.Repeat("x", int(count.Add(1))), "alice", secret)
		return remotetest.Place{
			Open: func() remote.Store { return open(t, at) },
			Damage: func(d digest.Digest, body []byte) {
				if _, err := os.Stat(path(d)); err != nil {
					t.Fatal(err)
				}
				must(t, os.WriteFile(path(d), body, 0o600))
			},
			Large: 5 << 20,
		}
	})
	for line := range strings.Lines(s.Log()) {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, "a blob is damaged") {
			t.Error(line)
		}
	}
}

// TestConformance: the suite of remotes over a hub on a directory.
func TestConformance(t *testing.T) {
	s := hubserver.Start(t, serve.Options{})
	conformance(t, s, func(d digest.Digest) string { return hubserver.Path(s.Dir, d) })
}

// TestConformanceS3: the same over a bucket.
func TestConformanceS3(t *testing.T) {
	server := s3server.Start(t, "hub")
	t.Setenv("AWS_ACCESS_KEY_ID", s3server.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3server.Secret)
	s := hubserver.Start(t, serve.Options{Storage: "s3://hub/below/here?region=us-east-1&regionendpoint=" + server.URL + "&forcepathstyle=true&secure=false"})
	conformance(t, s, func(d digest.Digest) string {
		return hubserver.Path(filepath.Join(server.Dir, "hub", "below", "here"), d)
	})
}

// TestInfo: it says that it is a hub, and a registry does not pass for one.
func TestInfo(t *testing.T) {
	h := hubserver.Start(t, serve.Options{})
	s := open(t, at(t, h, "alice/pg", "alice", h.User(t, "alice", hub.Write)))
	must(t, s.Check(ctx, true))
	if i := s.Info(); !i.Atomic || i.Kind != "hub" || !i.Collects {
		t.Errorf("%+v", i)
	}
}

// TestDamageHeals: a flipped bit is found out, named, and healed by the next push.
func TestDamageHeals(t *testing.T) {
	h := hubserver.Start(t, serve.Options{})
	secret := h.User(t, "alice", hub.Write)
	s := open(t, at(t, h, "alice/pg", "alice", secret))
	body, desc := content(3<<20, 1)
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	flipped := bytes.Clone(body)
	flipped[len(body)/2] ^= 4
	h.Damage(t, desc.Digest, flipped)
	r, err := s.Get(ctx, desc.Digest)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		r.Close()
	}
	kind(t, err, api.Damaged, string(desc.Digest))
	list, err := h.Store.Damaged(ctx)
	must(t, err)
	if len(list) != 1 || list[0] != desc.Digest || !strings.Contains(h.Log(), "a blob is damaged") {
		t.Errorf("%v %s", list, h.Log())
	}
	_, err = s.Stat(ctx, desc.Digest)
	kind(t, err, api.NotFound, "")
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	if !bytes.Equal(read(t, s, desc.Digest), body) {
		t.Error("other bytes came back")
	}
	// One that is gone or short is found out when it is asked for.
	must(t, os.Remove(hubserver.Path(h.Dir, desc.Digest)))
	_, err = s.Stat(ctx, desc.Digest)
	kind(t, err, api.NotFound, "")
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	if !bytes.Equal(read(t, s, desc.Digest), body) {
		t.Error("other bytes came back")
	}
	// A storage that is out of sight is not an empty one.
	must(t, os.Rename(h.Dir, h.Dir+"-away"))
	c, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err = s.Stat(c, desc.Digest)
	kind(t, err, api.Unavailable, "")
	_, err = h.Collector.Sweep(ctx)
	kind(t, err, api.Unavailable, "mounted")
	must(t, os.Rename(h.Dir+"-away", h.Dir))
	if n, err := s.Stat(ctx, desc.Digest); n != desc.Size || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if list, err := h.Store.Damaged(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

// TestStorageOfAnother: a database and a storage belong together.
func TestStorageOfAnother(t *testing.T) {
	dir := t.TempDir()
	one := hubserver.Start(t, serve.Options{Storage: dir})
	_, err := serve.Open(ctx, serve.Options{Database: filepath.Join(t.TempDir(), "x.db"), Storage: dir})
	kind(t, err, api.Conflict, "another hub")
	db := filepath.Join(t.TempDir(), "y.db")
	two := hubserver.Start(t, serve.Options{Database: db})
	s := open(t, at(t, two, "alice/pg", "alice", two.User(t, "alice", hub.Write)))
	body, desc := content(100, 1)
	must(t, s.Put(ctx, desc, remote.Bytes(body), nil))
	_, err = serve.Open(ctx, serve.Options{Database: db, Storage: two.Dir})
	kind(t, err, api.InUse, "PostgreSQL for several")
	two.Stop()
	_, err = serve.Open(ctx, serve.Options{Database: db, Storage: filepath.Join(t.TempDir(), "nothing")})
	kind(t, err, api.Unavailable, "mounted")
	for _, bad := range []string{"ftp://x", "s3://", "relative/path:x", "file://host/x", ""} {
		_, err = serve.Open(ctx, serve.Options{Database: db, Storage: bad})
		if err == nil || (!api.Is(err, api.Invalid) && !api.Is(err, api.Unavailable)) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	_ = one
}
