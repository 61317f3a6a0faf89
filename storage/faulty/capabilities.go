package faulty

import (
	"context"
	"io"

	"github.com/drover-data/drover/storage"
)

// Every optional capability: storage.As asks what is wrapped which of them it has.

// able gives the capability of what is wrapped.
func able[T any](b storage.Backend) T {
	c, _ := storage.As[T](b)
	return c
}

// Wrapped implements storage.Wrapper.
func (c core) Wrapped() storage.Backend {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	return c.f.inner
}

// Format and Formats touch nothing and never fail.
func (c core) Format() string    { return able[storage.NativeStreams](c.Wrapped()).Format() }
func (c core) Formats() []string { return able[storage.NativeStreams](c.Wrapped()).Formats() }

func (c core) Send(ctx context.Context, spec storage.SendSpec) (io.ReadCloser, error) {
	r, err := call(c.f, "Send", looks, -1, func(b storage.Backend) (io.ReadCloser, error) {
		return able[storage.NativeStreams](b).Send(ctx, spec)
	})
	if err != nil {
		return nil, err
	}
	return &reader{r, c.f, c.f.now()}, nil
}

func (c core) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	r, err := call(c.f, "Receive", takes, -1, func(b storage.Backend) (storage.Receive, error) {
		return able[storage.NativeStreams](b).Receive(ctx, spec, format)
	})
	if err != nil {
		return nil, err
	}
	return &receive{r, c.f, c.f.now()}, nil
}

func (c core) Estimate(ctx context.Context, spec storage.SendSpec) (int64, error) {
	return call(c.f, "Estimate", looks, -1, func(b storage.Backend) (int64, error) {
		return able[storage.Estimator](b).Estimate(ctx, spec)
	})
}

func (c core) Changes(ctx context.Context, volume, base, id string, each func(storage.Change) error) error {
	return do(c.f, "Changes", looks, -1, func(b storage.Backend) error {
		return able[storage.Differ](b).Changes(ctx, volume, base, id, each)
	})
}

func (c core) Dirty(ctx context.Context, key storage.HeadKey, id string) (bool, error) {
	return call(c.f, "Dirty", looks, -1, func(b storage.Backend) (bool, error) {
		return able[storage.Differ](b).Dirty(ctx, key, id)
	})
}

func (c core) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	return do(c.f, "Resize", frees, -1, func(b storage.Backend) error {
		return able[storage.Sizer](b).Resize(ctx, key, size)
	})
}

func (c core) Seal(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	return call(c.f, "Seal", frees, -1, func(b storage.Backend) (storage.Snapshot, error) {
		return able[storage.Sealer](b).Seal(ctx, key, id, note)
	})
}

func (c core) Unseal(ctx context.Context, volume, id string, key storage.HeadKey) (storage.Head, error) {
	return call(c.f, "Unseal", frees, -1, func(b storage.Backend) (storage.Head, error) {
		return able[storage.Sealer](b).Unseal(ctx, volume, id, key)
	})
}

func (c core) Growth(ctx context.Context) (storage.Growth, error) {
	return call(c.f, "Growth", looks, -1, func(b storage.Backend) (storage.Growth, error) { return able[storage.Grower](b).Growth(ctx) })
}

func (c core) Grow(ctx context.Context, size int64) error {
	return do(c.f, "Grow", frees, -1, func(b storage.Backend) error { return able[storage.Grower](b).Grow(ctx, size) })
}

// reader is a stream that is being sent.
type reader struct {
	r    io.ReadCloser
	f    *Faults
	life int
}

func (r *reader) Read(p []byte) (int, error) {
	if _, _, err := r.f.enter("Send.Read", looks, r.life); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	ok, cut := r.f.allow("Send.Read", n, false)
	if cut != nil {
		return ok, cut
	}
	return n, err
}

func (r *reader) Close() error { return r.r.Close() }

// receive is a stream that arrives.
type receive struct {
	storage.Receive
	f    *Faults
	life int
}

func (r *receive) Write(p []byte) (int, error) {
	_, after, err := r.f.enter("Receive.Write", takes, r.life)
	if err != nil {
		return 0, err
	}
	ok, cut := r.f.allow("Receive.Write", len(p), true)
	n, err := r.Receive.Write(p[:ok])
	if err == nil {
		err = cut
	}
	if err = r.f.leave(err, after); err == nil {
		err = r.f.ask("Receive.Write", true)
	}
	return n, err
}

func (r *receive) Checkpoint(ctx context.Context) (int64, error) {
	return call(r.f, "Receive.Checkpoint", takes, r.life, func(storage.Backend) (int64, error) { return r.Receive.Checkpoint(ctx) })
}

func (r *receive) Commit(ctx context.Context) (storage.Snapshot, error) {
	return call(r.f, "Receive.Commit", takes, r.life, func(storage.Backend) (storage.Snapshot, error) { return r.Receive.Commit(ctx) })
}

func (r *receive) Abort(ctx context.Context) error {
	return do(r.f, "Receive.Abort", frees, r.life, func(storage.Backend) error { return r.Receive.Abort(ctx) })
}

// Close of a crashed process closes nothing.
func (r *receive) Close() error {
	if r.f.Crashed() || r.life != r.f.now() {
		return nil
	}
	return r.Receive.Close()
}
