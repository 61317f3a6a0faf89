package remote

import (
	"context"
	"errors"
	"io"
	"time"
)

// maxReopens bounds how often a reader is opened again without a byte more.
const maxReopens = 5

// Resume reads what open gives from an offset on, and goes on where it was when
// the connection breaks.
func Resume(ctx context.Context, open func(offset int64) (io.ReadCloser, error)) (io.ReadCloser, error) {
	r, err := open(0)
	if err != nil {
		return nil, err
	}
	return &resuming{ctx: ctx, open: open, r: r}, nil
}

type resuming struct {
	ctx   context.Context
	open  func(int64) (io.ReadCloser, error)
	r     io.ReadCloser
	at    int64
	tries int
}

func (r *resuming) Read(p []byte) (int, error) {
	for {
		n, err := r.r.Read(p)
		r.at += int64(n)
		if n > 0 {
			r.tries = 0
		}
		if err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
		if n > 0 {
			return n, nil // the next read meets the break again
		}
		if ended := Ended(r.ctx, "read blob", ""); ended != nil {
			return 0, ended
		}
		if r.tries++; r.tries > maxReopens {
			return 0, err
		}
		if wait := Pause(r.ctx, time.Duration(r.tries)*100*time.Millisecond); wait != nil {
			return 0, wait
		}
		again, err := r.open(r.at)
		if err != nil {
			return 0, err
		}
		_ = r.r.Close()
		r.r = again
	}
}

func (r *resuming) Close() error { return r.r.Close() }

// Pause waits before something is tried again: nothing tells of the moment at
// which a remote would succeed.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return Ended(ctx, "wait for the remote", "")
	case <-time.After(d):
		return nil
	}
}
