package layout

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/remotetest"
)

func ids() func() string {
	var n atomic.Int64
	return func() string { return fmt.Sprint("id-", n.Add(1)) }
}

func TestConformance(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remotetest.Place {
		dir, id := filepath.Join(t.TempDir(), "remote"), ids()
		return remotetest.Place{
			Open: func() remote.Store { return Open(dir, time.Now, id) },
			Damage: func(d digest.Digest, body []byte) {
				if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Encoded()), body, 0o600); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// TestIndex: other OCI tools find every name, also after a crash between name
// and index.
func TestIndex(t *testing.T) {
	dir := t.TempDir()
	s := Open(filepath.Join(dir, "r"), time.Now, ids())
	ctx := context.Background()
	put := func(text string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(text), Size: int64(len(text))}
		if err := s.PutManifest(ctx, d, []byte(text)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := put(`{"mediaType":"a"}`), put(`{"mediaType":"b"}`)
	set := func(name string, d ocispec.Descriptor, expect digest.Digest) {
		if err := s.SetRef(ctx, name, d, expect); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want map[string]digest.Digest) {
		t.Helper()
		var ix ocispec.Index
		text, err := os.ReadFile(filepath.Join(dir, "r/index.json"))
		if err == nil {
			err = json.Unmarshal(text, &ix)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(ix.Manifests) != len(want) {
			t.Fatalf("index: %s", text)
		}
		for _, m := range ix.Manifests {
			if n := m.Annotations[ocispec.AnnotationRefName]; want[n] != m.Digest {
				t.Errorf("%s is %s", n, m.Digest)
			}
		}
	}
	set("b-x", a, "")
	set("b-y", a, "")
	set("b-x", b, a.Digest)
	check(map[string]digest.Digest{"b-x": b.Digest, "b-y": a.Digest})
	if err := os.Remove(filepath.Join(dir, "r/index.json")); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRef(ctx, "b-y", a.Digest); err != nil {
		t.Fatal(err)
	}
	check(map[string]digest.Digest{"b-x": b.Digest})
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	check := func(path string, write bool) api.Kind {
		return api.KindOf(Open(path, time.Now, ids()).Check(ctx, write))
	}
	other := filepath.Join(dir, "photos")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(other, "holiday.jpg")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		path  string
		write bool
		want  api.Kind
	}{
		{filepath.Join(dir, "new"), true, ""},
		{filepath.Join(dir, "new"), false, api.NotFound},
		{filepath.Join(dir, "not/there"), true, api.NotFound},
		{other, true, api.Invalid},
		{file, true, api.Invalid},
	} {
		if got := check(x.path, x.write); got != x.want {
			t.Errorf("%s: %q, want %q", x.path, got, x.want)
		}
	}
}

// TestStaleMarks: what was left behind holds up neither uploads nor collections.
func TestStaleMarks(t *testing.T) {
	dir := t.TempDir()
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	step := time.Duration(0) // by which each look at the clock moves it
	s := Open(dir, func() time.Time { return time.Unix(0, now.Add(int64(step))) }, ids())
	ctx := context.Background()
	if _, err := s.Lease(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(ctx); !api.Is(err, api.InUse) {
		t.Fatal(err)
	}
	now.Add(int64(remote.Grace + time.Hour))
	if _, err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Leases(ctx); err != nil || len(l) != 0 {
		t.Errorf("leases: %v %v", l, err)
	}
	step = 30 * time.Second
	release, err := s.Lease(ctx) // the collection's mark does not change
	if err != nil {
		t.Fatal(err)
	}
	if err := release(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := s.Collect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.End(ctx); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Marks(ctx); err != nil || len(l) != 0 {
		t.Errorf("marks: %v %v", l, err)
	}
}
