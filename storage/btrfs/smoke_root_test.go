//go:build root

package btrfs

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/loopfile"
)

func newPool(t testing.TB, size int64) *Backend {
	t.Helper()
	base := t.TempDir()
	cfg := loopfile.Config{File: filepath.Join(base, "pool.img"), Dir: filepath.Join(base, "pool"), Size: size}
	if err := loopfile.Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Dir: cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if err := loopfile.Detach(context.Background(), cfg); err != nil {
			t.Error(err)
		}
	})
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSmoke(t *testing.T) {
	a, b := newPool(t, 512<<20), newPool(t, 512<<20)
	ctx := t.Context()
	info, _ := a.Info(ctx)
	t.Logf("%+v %s", info, a.QuotaNote())
	h, err := a.CreateHead(ctx, storage.HeadSpec{Key: storage.HeadKey{Volume: "v", Branch: "main"}, Size: 100 << 20})
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(h.Dir+"/x", make([]byte, 3<<20), 0o644)
	s, err := a.Snapshot(ctx, h.Key, "s1", []byte("n"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	n, err := a.Estimate(ctx, storage.SendSpec{Volume: "v", ID: "s1"})
	t.Log(n, err)
	r, err := a.Send(ctx, storage.SendSpec{Volume: "v", ID: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	rc, err := b.Receive(ctx, storage.ReceiveSpec{Volume: "v", ID: "s1"}, a.Format())
	if err != nil {
		t.Fatal(err)
	}
	k, err := io.Copy(rc, r)
	t.Log(k, err)
	s2, err := rc.Commit(ctx)
	t.Logf("%+v %v", s2, err)
	if s2.Lineage != s.Lineage {
		t.Fatal("lineage")
	}
}
