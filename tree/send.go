package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree/wire"
)

// version of the records inside a stream of this magic.
const version = 1

// encoder gathers records into blocks.
type encoder struct {
	w   io.Writer
	buf []byte
	sum hash.Hash
}

func newEncoder(w io.Writer) *encoder {
	return &encoder{w: w, buf: make([]byte, blockHead, blockFull+maxData+blockHead), sum: sha256.New()}
}

func (e *encoder) put(r *record) error {
	before := len(e.buf)
	e.buf = r.encode(e.buf)
	if len(e.buf)-before > maxBlock-blockFull {
		return &api.Error{Kind: api.Unsupported, Op: "send snapshot", Object: r.path, Reason: "its attributes are too large to travel"}
	}
	if len(e.buf) >= blockFull {
		return e.flush()
	}
	return nil
}

func (e *encoder) flush() error {
	if len(e.buf) == blockHead {
		return nil
	}
	wire.Seal(e.buf)
	e.sum.Write(e.buf[blockHead:])
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:blockHead]
	return err
}

// end closes the stream with the digest of all blocks before.
func (e *encoder) end() error {
	if err := e.flush(); err != nil {
		return err
	}
	if err := e.put(&record{op: opEnd, data: e.sum.Sum(nil)}); err != nil {
		return err
	}
	return e.flush()
}

// Streams makes and takes portable streams. Its zero value is ready.
type Streams struct{}

// Send gives the stream of a snapshot, on a base of the same backend if there
// is one, from an offset on. It is the same bytes each time.
func (Streams) Send(ctx context.Context, snapshot storage.Snapshot, base *storage.Snapshot, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &sending{cancel: cancel, id: snapshot.ID, done: make(chan struct{})}
	b, err := openView(snapshot.Dir, snapshot.Beside)
	if err != nil {
		cancel()
		return nil, sendError(snapshot.ID, err)
	}
	var a *view
	d := &differ{ctx: ctx, b: b}
	begin := record{op: opBegin, off: version}
	if base != nil {
		if a, err = openView(base.Dir, base.Beside); err != nil {
			b.close()
			cancel()
			return nil, sendError(snapshot.ID, err)
		}
		d.a, begin.target = a, base.ID
		if !base.Created.IsZero() {
			d.recent = base.Created.Add(-clockGrain).Unix()
		}
	}
	var w *io.PipeWriter
	s.r, w = io.Pipe()
	go func() {
		defer close(s.done)
		defer b.close()
		defer a.close()
		rest := &skipper{w: w, skip: offset}
		out := newEncoder(rest)
		d.out = out
		_, err := rest.Write([]byte(Magic))
		if err == nil {
			err = out.put(&begin)
		}
		if err == nil {
			err = d.run()
		}
		if err == nil {
			err = out.end()
		}
		if err == nil && rest.skip > 0 {
			err = &api.Error{Kind: api.Invalid, Op: "send snapshot", Object: s.id, Reason: "the stream is shorter than the offset it is to go on from", Next: "begin anew"}
		}
		w.CloseWithError(sendError(s.id, err))
	}()
	s.stop = context.AfterFunc(ctx, func() { w.CloseWithError(sendError(s.id, context.Cause(ctx))) })
	return s, nil
}

// sending is a stream being made.
type sending struct {
	r      *io.PipeReader
	cancel context.CancelFunc
	stop   func() bool
	id     string
	done   chan struct{}
}

func (s *sending) Read(p []byte) (int, error) { return s.r.Read(p) }

// Close ends the making, and waits until it has let go of the trees.
func (s *sending) Close() error {
	s.stop()
	s.cancel()
	s.r.Close()
	<-s.done
	return nil
}

// skipper leaves out the beginning.
type skipper struct {
	w    io.Writer
	skip int64
}

func (s *skipper) Write(p []byte) (int, error) {
	n := len(p)
	if s.skip >= int64(n) {
		s.skip -= int64(n)
		return n, nil
	}
	_, err := s.w.Write(p[s.skip:])
	s.skip = 0
	return n, err
}

// sendError makes an *api.Error of what went wrong; nil stays nil.
func sendError(object string, err error) error { return wrap("send snapshot", object, err) }

func wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	e := &api.Error{Kind: api.Internal, Op: op, Object: object, Err: err}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrClosedPipe):
		e.Kind = api.Canceled
	case errors.Is(err, unix.ENOSPC):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the pool is full", "free space, or choose another pool with --pool"
	case errors.Is(err, unix.EDQUOT):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the size limit is reached", "resize the volume"
	case errors.Is(err, unix.EROFS):
		e.Kind, e.Reason = api.ReadOnly, "the pool is read-only"
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTCONN):
		e.Kind, e.Next = api.Unavailable, "look at the pool's device and the kernel's log"
	case errors.Is(err, os.ErrPermission):
		e.Kind, e.Reason = api.Denied, "the kernel does not permit it"
	}
	return e
}
