package faulty_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/faulty"
	"github.com/drover-data/drover/storage/memory"
)

var key = storage.HeadKey{Volume: "v", Branch: "main"}

// plain hides every optional capability.
type plain struct{ storage.Backend }

func TestCapabilities(t *testing.T) {
	b, _ := faulty.Wrap(memory.New(memory.Config{}))
	if _, ok := storage.As[storage.NativeStreams](b); !ok {
		t.Error("streams were lost")
	}
	if _, ok := storage.As[storage.Sizer](b); !ok {
		t.Error("Sizer was lost")
	}
	if _, ok := storage.As[storage.Sealer](b); ok {
		t.Error("Sealer was invented")
	}
	b, _ = faulty.Wrap(plain{memory.New(memory.Config{})})
	if _, ok := storage.As[storage.NativeStreams](b); ok {
		t.Error("streams were invented")
	}
}

// move is a little work that crosses most methods: it is repeated after every
// crash and must end well whatever happened before.
func move(t *testing.T, from *memory.Backend, to storage.Backend) error {
	ctx := t.Context()
	if _, err := to.Recover(ctx); err != nil {
		return err
	}
	n := to.(storage.NativeStreams)
	list, err := to.Snapshots(ctx, "v")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		r, err := n.Receive(ctx, storage.ReceiveSpec{Volume: "v", ID: "s1"}, n.Format())
		if err != nil {
			return err
		}
		defer r.Close()
		s, err := from.Send(ctx, storage.SendSpec{Volume: "v", ID: "s1", Offset: r.Offset()})
		if err != nil {
			return err
		}
		data, err := io.ReadAll(s)
		if err != nil {
			return err
		}
		for len(data) > 0 {
			k := min(len(data), 40)
			if _, err := r.Write(data[:k]); err != nil {
				return err
			}
			if _, err := r.Checkpoint(ctx); err != nil {
				return err
			}
			data = data[k:]
		}
		if _, err := r.Commit(ctx); err != nil {
			return err
		}
	}
	if _, err := to.CreateHead(ctx, storage.HeadSpec{Key: key, From: "s1"}); err != nil {
		return err
	}
	return to.SetNote(ctx, key, []byte("done"))
}

// TestEveryCall crashes before and after each call in turn.
func TestEveryCall(t *testing.T) {
	source := memory.New(memory.Config{Name: "a"})
	if _, err := source.CreateHead(t.Context(), storage.HeadSpec{Key: key}); err != nil {
		t.Fatal(err)
	}
	if err := source.Put(key, memory.Files{"x": "content", "y": string(bytes.Repeat([]byte("z"), 100))}); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Snapshot(t.Context(), key, "s1", nil); err != nil {
		t.Fatal(err)
	}
	b, f := faulty.Wrap(memory.New(memory.Config{Name: "b"}))
	if err := move(t, source, b); err != nil {
		t.Fatal(err)
	}
	calls := f.Calls()
	if len(calls) < 12 {
		t.Fatalf("only %q", calls)
	}
	for i := range calls {
		for _, after := range []bool{false, true} {
			pool := memory.New(memory.Config{Name: "b"})
			b, f := faulty.Wrap(pool)
			if after {
				f.CrashAfter("", i+1)
			} else {
				f.CrashBefore("", i+1)
			}
			if err := move(t, source, b); !api.Is(err, api.Unavailable) || !f.Crashed() {
				t.Fatalf("a crash at %s gave %v", calls[i], err)
			}
			if _, err := b.Heads(t.Context()); !api.Is(err, api.Unavailable) {
				t.Fatalf("after a crash Heads gave %v", err)
			}
			f.Restart(pool.Reopen())
			if err := move(t, source, b); err != nil {
				t.Fatalf("after a crash at %s (after: %v): %v", calls[i], after, err)
			}
			got, err := pool.Files(key)
			if err != nil || got["x"] != "content" || len(got) != 2 {
				t.Fatalf("after a crash at %s: %v, %v", calls[i], got, err)
			}
		}
	}
}

func TestStreamsAndStates(t *testing.T) {
	ctx := t.Context()
	b, f := faulty.Wrap(memory.New(memory.Config{}))
	n := b.(storage.NativeStreams)
	spec := storage.ReceiveSpec{Volume: "v", ID: "s1"}
	r, err := n.Receive(ctx, spec, n.Format())
	if err != nil {
		t.Fatal(err)
	}
	f.Cut("Receive.Write", 10, api.Unavailable)
	if k, err := r.Write(make([]byte, 6)); k != 6 || err != nil {
		t.Fatalf("%d, %v", k, err)
	}
	if k, err := r.Write(make([]byte, 6)); k != 4 || !api.Is(err, api.Unavailable) {
		t.Fatalf("%d, %v", k, err)
	}
	f.Full(3)
	if k, err := r.Write(make([]byte, 6)); k != 3 || !api.Is(err, api.Exhausted) {
		t.Fatalf("%d, %v", k, err)
	}
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: key}); !api.Is(err, api.Exhausted) {
		t.Fatal(err)
	}
	if i, _ := b.Info(ctx); i.State != api.PoolFull {
		t.Fatalf("%+v", i)
	}
	f.Full(-1)
	f.State(api.PoolReadOnly)
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: key}); !api.Is(err, api.ReadOnly) {
		t.Fatal(err)
	}
	f.State(api.PoolGone)
	if _, err := b.Head(ctx, key); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
	f.State(api.PoolReady)
	f.Fail("CreateHead", 3, api.Internal)
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: key}); !api.Is(err, api.Internal) {
		t.Fatal(err)
	}
	f.FailAfter("SetNote", 1, api.Unavailable)
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: key}); err != nil {
		t.Fatal(err)
	}
	if err := b.SetNote(ctx, key, []byte("kept")); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
	if h, err := b.Head(ctx, key); err != nil || string(h.Note) != "kept" {
		t.Fatalf("the call did not take effect: %+v, %v", h, err)
	}
}
