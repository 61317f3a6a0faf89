//go:build root

package zfs

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// TestCut cancels calls at any moment, which leaves the pool as a crash would,
// and then repeats them: everything comes out as if nothing had happened, and
// when all is destroyed nothing is left.
func TestCut(t *testing.T) {
	b, far := newPool(t), newPool(t)
	reopen := func() {
		next, err := New(b.cfg)
		must(t, err)
		_, err = next.Recover(t.Context())
		must(t, err)
		b = next
	}
	// cut runs f, cancelled after some time, until it succeeds.
	cut := func(what string, f func(context.Context) error) {
		t.Helper()
		for try := range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+try*5+rand.IntN(20))*time.Millisecond)
			if try > 8 {
				cancel()
				ctx, cancel = context.WithCancel(t.Context())
			}
			err := f(ctx)
			cancel()
			if err == nil {
				return
			}
			if !api.Is(err, api.Canceled) {
				t.Fatalf("%s, cut: %v (%s)", what, err, api.KindOf(err))
			}
			reopen()
		}
		t.Fatalf("%s never succeeded", what)
	}
	from := ""
	for round := range 4 {
		text := fmt.Sprint("round ", round)
		cut("CreateHead", func(ctx context.Context) error {
			h, err := b.CreateHead(ctx, storage.HeadSpec{Key: mainHead, From: from})
			if err == nil {
				err = os.WriteFile(filepath.Join(h.Dir, "f"), []byte(text), 0o600)
			}
			return err
		})
		id := fmt.Sprint("s", round)
		cut("Snapshot", func(ctx context.Context) error {
			_, err := b.Snapshot(ctx, mainHead, id, []byte(text))
			return err
		})
		cut("Send and Receive", func(ctx context.Context) error {
			r, err := b.Send(ctx, storage.SendSpec{Volume: "v", ID: id, Base: from})
			if err != nil {
				return err
			}
			defer r.Close()
			in, err := far.Receive(ctx, storage.ReceiveSpec{Volume: "v", ID: id, Base: from}, far.Format())
			if api.Is(err, api.Exists) {
				return nil // the snapshot was published and the answer cut
			}
			if err != nil {
				return err
			}
			defer in.Close()
			if _, err := io.CopyN(io.Discard, r, in.Offset()); err != nil {
				return err
			}
			if _, err := io.Copy(in, r); err != nil {
				return err
			}
			if _, err := in.Checkpoint(ctx); err != nil {
				return err
			}
			_, err = in.Commit(ctx)
			return err
		})
		list, err := far.Snapshots(t.Context(), "v")
		must(t, err)
		if len(list) != round+1 {
			t.Fatalf("round %d: %d snapshots arrived", round, len(list))
		}
		wantFile(t, list[round].Dir, "f", text)
		cut("DestroyHead", func(ctx context.Context) error { return b.DestroyHead(ctx, mainHead) })
		from = id
	}
	for _, p := range []*Backend{b, far} {
		for round := range 4 {
			cut("DestroySnapshot", func(ctx context.Context) error { return p.DestroySnapshot(ctx, "v", fmt.Sprint("s", round)) })
		}
		c, err := p.Recover(t.Context())
		must(t, err)
		if len(c.Heads)+len(c.Snapshots)+len(c.Partial)+len(c.Strange) > 0 {
			t.Errorf("everything was destroyed, and there is %+v", c)
		}
		if names := left(t, p); len(names) > 0 {
			t.Errorf("everything was destroyed, and there are %q", names)
		}
	}
}

// TestChurn lists while volumes come and go.
func TestChurn(t *testing.T) {
	b := newPool(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg, lists sync.WaitGroup
	for range 2 {
		lists.Go(func() {
			for ctx.Err() == nil {
				if _, err := b.Heads(ctx); err != nil && !api.Is(err, api.Canceled) {
					t.Errorf("Heads: %v", err)
				}
				if _, err := b.Snapshots(ctx, ""); err != nil && !api.Is(err, api.Canceled) {
					t.Errorf("Snapshots: %v", err)
				}
			}
		})
	}
	for i := range 3 {
		wg.Go(func() {
			key := storage.HeadKey{Volume: fmt.Sprint("v", i), Branch: api.MainBranch}
			for range 3 {
				for _, f := range []func() error{
					func() error { _, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: key}); return err },
					func() error { _, err := b.Snapshot(t.Context(), key, "s", nil); return err },
					func() error { return b.DestroyHead(t.Context(), key) },
					func() error { return b.DestroySnapshot(t.Context(), key.Volume, "s") },
				} {
					if err := f(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	stop()
	lists.Wait()
	must(t, b.sweep(t.Context()))
	if names := left(t, b); len(names) > 0 {
		t.Errorf("everything was destroyed, and there are %q", names)
	}
}
