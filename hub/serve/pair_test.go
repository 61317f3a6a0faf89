//go:build root

package serve_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/internal/postgres"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/remotetest"
)

// TestPair: two processes are one hub, on one PostgreSQL and one storage.
func TestPair(t *testing.T) {
	server := postgres.Start(t)
	dir := filepath.Join(t.TempDir(), "storage")
	o := serve.Options{Database: server.Database(t), Storage: dir}
	pair := [2]*hubserver.Server{hubserver.Start(t, o), hubserver.Start(t, o)}
	secret := pair[0].User(t, "alice", hub.Admin)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(pair[0].Log(), pair[1].Log())
		}
	})

	t.Run("conformance", func(t *testing.T) {
		remotetest.Run(t, func(t *testing.T) remotetest.Place {
			name, n := fmt.Sprint("alice/suite", count.Add(1)), atomic.Int64{}
			return remotetest.Place{
				Open: func() remote.Store {
					return open(t, at(t, pair[n.Add(1)%2], name, "alice", secret))
				},
				Damage: func(d digest.Digest, body []byte) { pair[0].Damage(t, d, body) },
			}
		})
	})

	t.Run("two pushers", func(t *testing.T) {
		s := open(t, at(t, pair[0], "alice/race", "alice", secret))
		head, err := push(t, s, "main", "base", "")
		must(t, err)
		must(t, pair[1].Store.SetRepository(ctx, hubserver.Operator, hub.Repository{Name: "alice/race", Protected: []string{"*"}}))
		last := "base"
		for round := range 10 {
			var wg sync.WaitGroup
			var done [2]ocispec.Descriptor
			var failed [2]error
			for i := range pair {
				name := fmt.Sprint("round ", round, " of ", i)
				mine := open(t, at(t, pair[i], "alice/race", "alice", secret))
				wg.Go(func() { done[i], failed[i] = push(t, mine, "main", name, head.Digest, last) })
			}
			wg.Wait()
			won := 0
			if failed[0] != nil {
				won = 1
			}
			if failed[won] != nil || !api.Is(failed[1-won], api.Conflict) {
				t.Fatalf("round %d: %v", round, failed)
			}
			head, last = done[won], fmt.Sprint("round ", round, " of ", won)
			readable(t, open(t, at(t, pair[1-won], "alice/race", "alice", secret)), "main", head.Digest)
		}
	})

	t.Run("an upload goes on at the other", func(t *testing.T) { elsewhere(t, pair, secret) })
	t.Run("one sweeps", func(t *testing.T) {
		lock, err := pair[0].Store.SweepLock(ctx)
		must(t, err)
		_, err = pair[1].Collector.Sweep(ctx)
		kind(t, err, api.InUse, "another process")
		lock.Release()
		_, err = pair[1].Collector.Sweep(ctx)
		must(t, err)
	})

	t.Run("one dies while it sweeps", func(t *testing.T) { diesSweeping(t, o, pair, secret) })
}

// elsewhere: an upload that began at one process goes on at the other.
func elsewhere(t *testing.T, pair [2]*hubserver.Server, secret string) {
	ask := func(i int, method, path string, body io.Reader, h ...string) (int, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+pair[i].Host+path, body)
		must(t, err)
		req.SetBasicAuth("alice", secret)
		for j := 0; j+1 < len(h); j += 2 {
			req.Header.Set(h[j], h[j+1])
		}
		a, err := http.DefaultTransport.RoundTrip(req)
		must(t, err)
		a.Body.Close()
		return a.StatusCode, a.Header
	}
	body, desc := content(3<<20, 4)
	_, h := ask(0, "POST", "/v2/alice/pg/blobs/uploads/", nil)
	session := h.Get("Location")
	for i := range 3 {
		if code, _ := ask((i+1)%2, "PATCH", session, bytes.NewReader(body[i<<20:(i+1)<<20]), "Content-Range", fmt.Sprintf("%d-%d", i<<20, (i+1)<<20-1)); code != 202 {
			t.Fatalf("part %d: %d", i, code)
		}
	}
	if code, _ := ask(0, "PUT", session+"?digest="+string(desc.Digest), nil); code != 201 {
		t.Fatal(code)
	}
	if !bytes.Equal(read(t, open(t, at(t, pair[1], "alice/pg", "alice", secret)), desc.Digest), body) {
		t.Error("other bytes came back")
	}
	// While one of them is at it the other keeps away: bytes of both would be mixed.
	_, h = ask(0, "POST", "/v2/alice/pg/blobs/uploads/", nil)
	session = h.Get("Location")
	in, out := io.Pipe()
	ended := make(chan int)
	go func() {
		code, _ := ask(0, "PATCH", session, in)
		ended <- code
	}()
	_, err := out.Write(body[:1<<20])
	must(t, err)
	for range 1000 { // until it has come: who is first is not the question
		if list, _ := filepath.Glob(filepath.Join(pair[0].Dir, "docker/registry/v2/repositories/alice/pg/_uploads", filepath.Base(session), "data")); len(list) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for range 1000 {
		if code, _ := ask(1, "PATCH", session, bytes.NewReader(nil)); code == 503 {
			err = nil
			break
		}
		err = fmt.Errorf("both are at one upload")
		time.Sleep(5 * time.Millisecond)
	}
	must(t, err)
	must(t, out.Close())
	if code := <-ended; code != 202 {
		t.Fatal(code)
	}
	if code, _ := ask(1, "PUT", session+"?digest="+string(digest.FromBytes(body[:1<<20])), nil); code != 201 {
		t.Fatal(code)
	}
}

// diesSweeping: what a process had marked that died is taken up by the other.
func diesSweeping(t *testing.T, o serve.Options, pair [2]*hubserver.Server, secret string) {
	dir := o.Storage
	v := newVictim(t, o)
	v.key, v.shift = secret, 26*time.Hour
	s := open(t, at(t, pair[0], "alice/swept", "alice", secret))
	head, err := push(t, s, "main", "kept", "")
	must(t, err)
	for i := range 100 {
		text := []byte(fmt.Sprint("garbage ", i))
		must(t, s.Put(ctx, ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}, remote.Bytes(text), nil))
	}
	before := len(stored(t, dir))
	must(t, v.start())
	c, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for len(stored(t, dir)) >= before {
		// Its first sweep may have come too early for what is younger than an hour.
		must(t, c.Err())
	}
	v.kill()
	// What it had marked is not kept from anybody for longer than until the next sweep.
	for err := error(nil); ; {
		if _, err = pair[1].Collector.Sweep(c); err == nil {
			break
		}
		if !api.Is(err, api.InUse) { // PostgreSQL has not seen yet that it is dead
			t.Fatal(err)
		}
	}
	orphans, err := pair[0].Store.Orphans(ctx)
	must(t, err)
	if len(orphans) != 0 {
		t.Errorf("%d are still marked", len(orphans))
	}
	readable(t, s, "main", head.Digest)
	for i := range 100 {
		text := []byte(fmt.Sprint("garbage ", i))
		must(t, s.Put(ctx, ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}, remote.Bytes(text), nil))
	}
}
