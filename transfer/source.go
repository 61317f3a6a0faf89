package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// Portable makes and takes portable streams from and to directories.
type Portable interface {
	// Send gives the portable stream of a snapshot, on base if there is one,
	// from an offset on.
	Send(ctx context.Context, snapshot storage.Snapshot, base *storage.Snapshot, offset int64) (io.ReadCloser, error)
	// Receive fills a stage from the stream. lossy permits what the store of
	// that fidelity cannot keep to be written beside the data.
	Receive(ctx context.Context, stage storage.Stage, keeps storage.Fidelity, lossy bool) (storage.Receive, error)
}

// Job is one snapshot to be brought to a target.
type Job struct {
	Offer
	Limit *rate.Limiter // bytes a second; nil is no limit
}

// Progress is what a source knows while it sends.
type Progress struct {
	Route    repo.Route
	Sent     int64  // stream bytes that crossed the wire, repeated ones included
	Resent   int64  // of them, bytes sent a second time
	Durable  int64  // offset the target holds durably
	Waiting  string // what is waited for, "" while it runs
	Attempts int
}

// Result is what a finished transfer was.
type Result struct {
	Progress
	Copy repo.Copy // the snapshot as the target holds it
	Took time.Duration
}

// Source sends snapshots of one pool.
type Source struct {
	Backend  storage.Backend
	Portable Portable
	// Dial connects to the target's node.
	Dial func(ctx context.Context) (net.Conn, error)
	// Watch is told of progress, several times a second and at each change of
	// what is waited for. It may be nil.
	Watch func(Progress)
	// Block is how many stream bytes go into one frame; 0 is 1 MiB, the most.
	Block int
}

// pauses between attempts
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	// stall is how long the other side may be silent.
	stall = 20 * time.Second
	beat  = 5 * time.Second
)

// Send brings the job's snapshot to the target and returns when it is durable
// there. It tries again after breaks until ctx ends.
func (s *Source) Send(ctx context.Context, job Job) (Result, error) {
	started := time.Now()
	var p Progress
	reached := int64(0) // highest offset ever sent
	pause := firstPause
	for {
		before := p.Sent
		p.Attempts++
		done, err := s.attempt(ctx, job, &p, &reached)
		if err == nil {
			return Result{Progress: p, Copy: done.Copy, Took: time.Since(started)}, nil
		}
		if ctx.Err() != nil {
			return Result{Progress: p}, &api.Error{Kind: api.Canceled, Op: "send snapshot", Object: job.Snapshot, Err: context.Cause(ctx)}
		}
		if !passing(err) {
			return Result{Progress: p}, err
		}
		if p.Sent > before {
			pause = firstPause
		}
		p.Waiting = fmt.Sprintf("the connection to the target: %v", err)
		s.tell(p)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func (s *Source) tell(p Progress) {
	if s.Watch != nil {
		s.Watch(p)
	}
}

// attempt runs one session.
func (s *Source) attempt(ctx context.Context, job Job, p *Progress, reached *int64) (Done, error) {
	conn, err := s.Dial(ctx)
	if err != nil {
		return Done{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	side, err := Holds(ctx, s.Backend, job.Volume)
	if err != nil {
		return Done{}, err
	}
	job.Protocol, job.Oldest, job.Source = api.Speaks().Newest, api.Speaks().Oldest, side
	conn.SetDeadline(time.Now().Add(stall))
	if err := writeJSON(conn, frameOffer, job.Offer); err != nil {
		return Done{}, err
	}
	reader := bufio.NewReader(conn)
	answer, err := readAnswer(conn, reader)
	if err != nil {
		return Done{}, err
	}
	p.Route, p.Durable, p.Waiting = answer.Route, answer.Offset, ""
	if *reached > answer.Offset {
		p.Resent += *reached - answer.Offset
	}
	s.tell(*p)
	if answer.Route.Have {
		return readDone(reader)
	}
	return s.pump(ctx, job, conn, reader, answer, p, reached)
}

// readAnswer waits for the answer; a target that has to prepare a lot
// acknowledges nothing, but regularly, meanwhile.
func readAnswer(conn net.Conn, r io.Reader) (Answer, error) {
	for {
		conn.SetReadDeadline(time.Now().Add(stall))
		t, payload, err := readFrame(r, nil)
		if err != nil {
			return Answer{}, err
		}
		switch t {
		case frameAck:
			continue
		case frameError:
			return Answer{}, remote(payload)
		case frameAnswer:
			var a Answer
			if err := decode(payload, &a); err != nil {
				return a, err
			}
			if a.Protocol < api.Speaks().Oldest || a.Protocol > api.Speaks().Newest || a.Offset < 0 {
				return a, damaged(fmt.Sprintf("an answer of protocol %d with offset %d", a.Protocol, a.Offset))
			}
			return a, nil
		}
		return Answer{}, damaged(fmt.Sprintf("frame type %d where an answer should be", t))
	}
}

// beating runs f, which may take long, and sends pings meanwhile.
func beating(conn net.Conn, f func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				if ping(conn) != nil {
					return // the next use of the connection tells
				}
			}
		}
	}()
	f()
	close(stop)
	<-ended
}

func ping(conn net.Conn) error {
	conn.SetWriteDeadline(time.Now().Add(stall))
	return writeFrame(conn, framePing, nil)
}

func readDone(r io.Reader) (Done, error) {
	t, payload, err := readFrame(r, nil)
	if err != nil {
		return Done{}, err
	}
	switch t {
	case frameError:
		return Done{}, remote(payload)
	case frameDone:
		var d Done
		return d, decode(payload, &d)
	}
	return Done{}, damaged(fmt.Sprintf("frame type %d where the end should be", t))
}

// open makes the stream that the target asked for.
func (s *Source) open(ctx context.Context, offer Offer, a Answer) (io.ReadCloser, error) {
	if a.Route.Format != repo.Portable {
		native, ok := storage.As[storage.NativeStreams](s.Backend)
		if !ok {
			return nil, damaged("the target asks for a stream that was not offered")
		}
		return native.Send(ctx, storage.SendSpec{Volume: offer.Volume, ID: offer.Snapshot, Base: a.Route.Base, Format: a.Route.Format, Offset: a.Offset})
	}
	snapshots, err := s.Backend.Snapshots(ctx, offer.Volume)
	if err != nil {
		return nil, err
	}
	var want, base *storage.Snapshot
	for i := range snapshots {
		switch snapshots[i].ID {
		case offer.Snapshot:
			want = &snapshots[i]
		case a.Route.Base:
			base = &snapshots[i]
		}
	}
	if want == nil || (base == nil && a.Route.Base != "") {
		return nil, &api.Error{Kind: api.NotFound, Op: "send snapshot", Object: offer.Snapshot, Reason: "it, or its base, was removed meanwhile"}
	}
	if s.Portable == nil {
		return nil, noPortable()
	}
	return s.Portable.Send(ctx, *want, base, a.Offset)
}

func noPortable() error {
	return &api.Error{Kind: api.Unsupported, Op: "transfer snapshot", Reason: "the two pools share no native stream, and this node was built without the portable one"}
}

// pump sends the stream while it reads acknowledgements.
func (s *Source) pump(ctx context.Context, job Job, conn net.Conn, reader *bufio.Reader, answer Answer, p *Progress, reached *int64) (Done, error) {
	offset := answer.Offset
	group, ctx := errgroup.WithContext(ctx)
	var sent, durable atomic.Int64
	sent.Store(offset)
	durable.Store(offset)
	var done Done
	finished := make(chan struct{})
	group.Go(func() error {
		defer close(finished)
		d, err := readAcks(conn, reader, &durable)
		done = d
		if err != nil {
			conn.Close()
		}
		return err
	})
	group.Go(func() error {
		err := s.sendAll(ctx, job, conn, answer, &sent)
		if err != nil {
			// The target's own word on what went wrong says more than the
			// broken pipe that follows from it.
			select {
			case <-finished:
			case <-time.After(time.Second):
				conn.Close()
			}
		}
		return err
	})
	base, resent := p.Sent, p.Resent
	update := func() {
		p.Sent = base + sent.Load() - offset
		p.Durable, p.Resent = durable.Load(), resent
		*reached = max(*reached, sent.Load())
		s.tell(*p)
	}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	over := make(chan error, 1)
	go func() { over <- group.Wait() }()
	for {
		select {
		case err := <-over:
			update()
			return done, err
		case <-ticker.C:
			update()
		}
	}
}

// sendAll opens the stream that the target asked for and sends it.
func (s *Source) sendAll(ctx context.Context, job Job, conn net.Conn, answer Answer, sent *atomic.Int64) error {
	var stream io.ReadCloser
	var err error
	beating(conn, func() { stream, err = s.open(ctx, job.Offer, answer) })
	if err != nil {
		writeJSON(conn, frameError, asError(err))
		return err
	}
	defer stream.Close()
	return s.sendStream(ctx, job, conn, stream, sent)
}

func readAcks(conn net.Conn, reader *bufio.Reader, durable *atomic.Int64) (Done, error) {
	for {
		conn.SetReadDeadline(time.Now().Add(stall))
		t, payload, err := readFrame(reader, nil)
		if err != nil {
			return Done{}, unexpected(err)
		}
		switch t {
		case frameAck:
			if len(payload) != 16 {
				return Done{}, damaged("an acknowledgement of wrong length")
			}
			durable.Store(int64(binary.BigEndian.Uint64(payload[8:])))
		case frameDone:
			var d Done
			return d, decode(payload, &d)
		case frameError:
			return Done{}, remote(payload)
		default:
			return Done{}, damaged(fmt.Sprintf("frame type %d where an acknowledgement should be", t))
		}
	}
}

// block is a frame under construction: header, offset, stream bytes.
type block struct {
	buf []byte
	n   int // stream bytes
}

const blockHead = headerSize + 8

// sendStream reads ahead in one goroutine and writes frames in this one.
func (s *Source) sendStream(ctx context.Context, job Job, conn net.Conn, stream io.Reader, sent *atomic.Int64) error {
	const ahead = 8
	free, full := make(chan block, ahead), make(chan block, ahead)
	for range ahead {
		free <- block{} // allocated when it is first needed: many streams are short
	}
	size := s.Block
	if size <= 0 || size > blockSize {
		size = blockSize
	}
	var readErr error
	go func() {
		defer close(full)
		for {
			var b block
			select {
			case <-ctx.Done():
				return
			case b = <-free:
			}
			if b.buf == nil {
				b.buf = make([]byte, blockHead+size)
			}
			n, err := io.ReadFull(stream, b.buf[blockHead:])
			b.n = n
			if n > 0 {
				full <- b
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return
			}
			if err != nil {
				readErr = err
				return
			}
		}
	}()
	idle := time.NewTicker(beat)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-idle.C:
			if err := ping(conn); err != nil {
				return err
			}
		case b, more := <-full:
			if !more {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if readErr != nil {
					writeJSON(conn, frameError, asError(readErr))
					return readErr
				}
				conn.SetWriteDeadline(time.Now().Add(stall))
				return writeFrame(conn, frameEnd, binary.BigEndian.AppendUint64(nil, uint64(sent.Load())))
			}
			if job.Limit != nil {
				if err := waitN(ctx, job.Limit, b.n, conn, idle); err != nil {
					return err
				}
			}
			clear(b.buf[:headerSize])
			b.buf[0] = byte(frameData)
			binary.BigEndian.PutUint32(b.buf[4:], uint32(b.n+8))
			binary.BigEndian.PutUint64(b.buf[headerSize:], uint64(sent.Load()))
			conn.SetWriteDeadline(time.Now().Add(stall))
			if _, err := conn.Write(b.buf[:blockHead+b.n]); err != nil {
				return err
			}
			sent.Add(int64(b.n))
			free <- b
			idle.Reset(beat)
		}
	}
}

// waitN takes n bytes from a limiter whose burst may be smaller, and keeps the
// connection alive while the limit makes it wait.
func waitN(ctx context.Context, l *rate.Limiter, n int, conn net.Conn, idle *time.Ticker) error {
	for n > 0 {
		k := min(n, l.Burst())
		r := l.ReserveN(time.Now(), k)
		if !r.OK() {
			return &api.Error{Kind: api.Invalid, Op: "limit bandwidth", Reason: "the limit lets nothing through"}
		}
		enough := time.NewTimer(r.Delay())
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				enough.Stop()
				return context.Cause(ctx)
			case <-enough.C:
				waiting = false
			case <-idle.C:
				if err := ping(conn); err != nil {
					enough.Stop()
					return err
				}
			}
		}
		n -= k
	}
	return nil
}

func asError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return &api.Error{Kind: api.Internal, Op: "transfer snapshot", Reason: err.Error()}
}

// Holds tells what a pool holds of a volume, for negotiation.
func Holds(ctx context.Context, b storage.Backend, volume string) (repo.Side, error) {
	snapshots, err := b.Snapshots(ctx, volume)
	if err != nil {
		return repo.Side{}, err
	}
	side := repo.Side{Copies: make([]repo.Copy, 0, len(snapshots))}
	for _, s := range snapshots {
		side.Copies = append(side.Copies, repo.Copy{ID: s.ID, Lineage: s.Lineage, Order: s.Order})
	}
	if n, ok := storage.As[storage.NativeStreams](b); ok {
		side.Formats = n.Formats()
	}
	return side, nil
}
