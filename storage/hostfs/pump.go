package hostfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Pump is a stream that something else writes: the kernel, or a command.
// Read, Skip and Close are for one reader.
type Pump struct {
	r      *os.File
	ctx    context.Context //nolint:containedctx // the stream lives as long as its caller wishes
	cancel context.CancelFunc
	unhook func() bool
	once   sync.Once
	done   chan struct{}
	err    error // of produce; valid when done is closed
	fail   func(error) error
}

// NewPump begins a stream. produce writes it until it is whole or ctx has
// ended; it has ended itself when Close returns. What goes wrong is told
// through fail.
func NewPump(ctx context.Context, fail func(error) error, produce func(ctx context.Context, w *os.File) error) (*Pump, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// A large pipe lets writer and reader work side by side.
	_, _ = unix.FcntlInt(uintptr(ends[0]), unix.F_SETPIPE_SZ, 1<<20)
	// Not blocking, so that Close ends a Read that waits.
	_ = unix.SetNonblock(ends[0], true)
	p := &Pump{r: os.NewFile(uintptr(ends[0]), "stream"), done: make(chan struct{}), fail: fail}
	p.ctx, p.cancel = context.WithCancel(ctx)
	w := os.NewFile(uintptr(ends[1]), "stream")
	go func() {
		defer close(p.done)
		defer w.Close()
		p.err = produce(p.ctx, w)
	}()
	p.unhook = context.AfterFunc(ctx, p.shut)
	return p, nil
}

// shut ends reading: the producer notices at its next write.
func (p *Pump) shut() { p.once.Do(func() { p.r.Close() }) }

// Read implements io.Reader. The end of the pipe is the end of the stream only
// when the producer says that it wrote it all.
func (p *Pump) Read(buf []byte) (int, error) {
	n, err := p.r.Read(buf)
	if n > 0 || err == nil {
		return n, nil
	}
	if e := p.ctx.Err(); e != nil {
		return 0, p.fail(e)
	}
	if err != io.EOF {
		return 0, p.fail(err)
	}
	<-p.done
	if p.err != nil {
		return 0, p.fail(p.err)
	}
	return 0, io.EOF
}

// Skip reads and drops the beginning of the stream.
func (p *Pump) Skip(object string, n int64) error {
	had, err := io.CopyN(io.Discard, p, n)
	if err == io.EOF {
		return &api.Error{Kind: api.Invalid, Op: "send snapshot", Object: object, Reason: fmt.Sprintf("the stream has %d bytes and is to go on from %d", had, n), Next: "begin anew"}
	}
	return err
}

// Close implements io.Closer.
func (p *Pump) Close() error {
	p.unhook()
	p.cancel()
	p.shut()
	<-p.done
	return nil
}
