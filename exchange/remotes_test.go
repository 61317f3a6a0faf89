package exchange

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/internal/registryserver"
	"github.com/drover-data/drover/internal/s3server"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/registry"
	"github.com/drover-data/drover/remote/s3"
	"github.com/drover-data/drover/repo"
)

// narrow is a remote that takes but short manifests, so that packs are listed
// in further ones.
type narrow struct{ remote.Store }

func (n narrow) Info() remote.Info {
	i := n.Store.Info()
	i.MaxManifest = 1200
	return i
}

// TestRealServers: the whole way over a real registry and a real S3 server.
func TestRealServers(t *testing.T) {
	t.Run("registry", func(t *testing.T) {
		server := registryserver.Start(t, registryserver.Options{Token: true, TLS: true})
		wholeWay(t, func() remote.Store {
			s, err := registry.Open(registry.Options{Reference: server.Host + "/team/pg", Username: registryserver.Writer, Password: registryserver.Password, Transport: server.Client.Transport})
			must(t, err)
			return narrow{s}
		})
	})
	t.Run("hub", func(t *testing.T) {
		server := hubserver.Start(t, serve.Options{})
		secret := server.User(t, "alice", hub.Write)
		wholeWay(t, func() remote.Store {
			s, err := registry.Open(registry.Options{Reference: server.Host + "/alice/pg", Hub: true, Username: "alice", Password: secret})
			must(t, err)
			return narrow{s}
		})
	})
	t.Run("s3", func(t *testing.T) {
		server := s3server.Start(t, "backups")
		wholeWay(t, func() remote.Store {
			s, err := s3.Open(s3.Options{
				Bucket: "backups", Prefix: "pg", Endpoint: server.URL, Region: "us-east-1", Access: s3server.Access, Secret: s3server.Secret,
				Now: time.Now, ID: func() string { return fmt.Sprint("id-", serial.Add(1)) },
			})
			must(t, err)
			return s
		})
	})
}

func wholeWay(t *testing.T, openStore func() remote.Store) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 10)
	ctx := context.Background()
	here := func(cache string) *Remote {
		s := openStore()
		t.Cleanup(func() { _ = s.Close() })
		return &Remote{Store: s, Cache: filepath.Join(dir, cache), Now: time.Now}
	}
	r := here("cache")
	must(t, r.Store.Check(ctx, true))
	for _, i := range []int{0, 6, 9} {
		out, err := r.Push(ctx, p, Push{Branch: "main", Tip: ids[i], Graph: p.commits})
		must(t, err)
		if out.Relation != repo.FastForward || (out.Warning == "") != r.Store.Info().Atomic {
			t.Errorf("%+v", out)
		}
	}
	other := here("other")
	for _, i := range []int{9, 3} {
		out := filepath.Join(dir, "out", ids[i])
		other.get(t, newPool(dir), ids[i], out)
		same(t, p.path(ids[i]), out)
	}
	l, err := other.List(ctx)
	must(t, err)
	if len(l.Commits) != 10 || len(l.Branches) != 1 || l.Branches[0].Commit != ids[9] || len(l.Damaged) != 0 {
		t.Errorf("%+v", l)
	}
	late := here("late")
	late.Now = func() time.Time { return time.Now().Add(remote.Grace + time.Hour) }
	out, err := late.Prune(ctx, Prune{Keep: api.Keep{Last: 3}})
	must(t, err)
	if !slices.Equal(out.Dropped, ids[:7]) || out.Kept != 3 || (out.Blobs > 0) == out.Collects {
		t.Errorf("%+v", out)
	}
	fresh, fanned := here("fresh"), 0
	for _, id := range ids[7:] {
		s, err := fresh.Find(ctx, id)
		must(t, err)
		must(t, fresh.Verify(ctx, s))
		if s.Manifest.MediaType == ocispec.MediaTypeImageIndex {
			fanned++
		}
	}
	if _, short := fresh.Store.(narrow); short != (fanned > 0) {
		t.Errorf("%d commits have their packs in further manifests", fanned)
	}
	if _, err := fresh.Find(ctx, ids[0]); !api.Is(err, api.NotFound) {
		t.Errorf("%v", err)
	}
}
