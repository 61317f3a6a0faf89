package faulty

import (
	"context"
	"io"

	"github.com/drover-data/drover/storage"
)

// The optional capabilities, each as a part to be combined.
type (
	native    struct{ f *Faults }
	estimator struct{ f *Faults }
	sizer     struct{ f *Faults }
	sealer    struct{ f *Faults }
)

// combine gives core with exactly the wanted capabilities.
func combine(c core, n, e, z, s bool) storage.Backend {
	N, E, Z, S := native(c), estimator(c), sizer(c), sealer(c)
	bit := func(b bool, v int) int {
		if b {
			return v
		}
		return 0
	}
	switch bit(n, 1) | bit(e, 2) | bit(z, 4) | bit(s, 8) {
	case 1:
		return struct {
			core
			native
		}{c, N}
	case 2:
		return struct {
			core
			estimator
		}{c, E}
	case 3:
		return struct {
			core
			native
			estimator
		}{c, N, E}
	case 4:
		return struct {
			core
			sizer
		}{c, Z}
	case 5:
		return struct {
			core
			native
			sizer
		}{c, N, Z}
	case 6:
		return struct {
			core
			estimator
			sizer
		}{c, E, Z}
	case 7:
		return struct {
			core
			native
			estimator
			sizer
		}{c, N, E, Z}
	case 8:
		return struct {
			core
			sealer
		}{c, S}
	case 9:
		return struct {
			core
			native
			sealer
		}{c, N, S}
	case 10:
		return struct {
			core
			estimator
			sealer
		}{c, E, S}
	case 11:
		return struct {
			core
			native
			estimator
			sealer
		}{c, N, E, S}
	case 12:
		return struct {
			core
			sizer
			sealer
		}{c, Z, S}
	case 13:
		return struct {
			core
			native
			sizer
			sealer
		}{c, N, Z, S}
	case 14:
		return struct {
			core
			estimator
			sizer
			sealer
		}{c, E, Z, S}
	case 15:
		return struct {
			core
			native
			estimator
			sizer
			sealer
		}{c, N, E, Z, S}
	}
	return c
}

func (n native) streams() storage.NativeStreams {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	return n.f.inner.(storage.NativeStreams) //nolint:forcetypeassert // Wrap looked
}

// Format and Formats touch nothing and never fail.
func (n native) Format() string    { return n.streams().Format() }
func (n native) Formats() []string { return n.streams().Formats() }

func (n native) Send(ctx context.Context, spec storage.SendSpec) (io.ReadCloser, error) {
	r, err := call(n.f, "Send", looks, -1, func(b storage.Backend) (io.ReadCloser, error) {
		return b.(storage.NativeStreams).Send(ctx, spec) //nolint:forcetypeassert // Wrap looked
	})
	if err != nil {
		return nil, err
	}
	return &reader{r, n.f, n.f.now()}, nil
}

func (n native) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	r, err := call(n.f, "Receive", takes, -1, func(b storage.Backend) (storage.Receive, error) {
		return b.(storage.NativeStreams).Receive(ctx, spec, format) //nolint:forcetypeassert // Wrap looked
	})
	if err != nil {
		return nil, err
	}
	return &receive{r, n.f, n.f.now()}, nil
}

func (e estimator) Estimate(ctx context.Context, spec storage.SendSpec) (int64, error) {
	return call(e.f, "Estimate", looks, -1, func(b storage.Backend) (int64, error) {
		return b.(storage.Estimator).Estimate(ctx, spec) //nolint:forcetypeassert // Wrap looked
	})
}

func (z sizer) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	return do(z.f, "Resize", frees, -1, func(b storage.Backend) error {
		return b.(storage.Sizer).Resize(ctx, key, size) //nolint:forcetypeassert // Wrap looked
	})
}

func (s sealer) Seal(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	return call(s.f, "Seal", frees, -1, func(b storage.Backend) (storage.Snapshot, error) {
		return b.(storage.Sealer).Seal(ctx, key, id, note) //nolint:forcetypeassert // Wrap looked
	})
}

func (s sealer) Unseal(ctx context.Context, volume, id string, key storage.HeadKey) (storage.Head, error) {
	return call(s.f, "Unseal", frees, -1, func(b storage.Backend) (storage.Head, error) {
		return b.(storage.Sealer).Unseal(ctx, volume, id, key) //nolint:forcetypeassert // Wrap looked
	})
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
