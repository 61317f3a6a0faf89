package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// Target receives snapshots into this node's pools.
type Target struct {
	// Pool looks up a pool of this node.
	Pool func(name string) (storage.Backend, error)
	// Permit says whether that peer may bring that snapshot now.
	Permit   func(ctx context.Context, peer string, offer Offer) error
	Portable Portable
	// Interval is how many bytes lie between two checkpoints; 0 is 32 MiB.
	Interval int64
	// Watch is told what arrives: before anything is made on the pool, after
	// each acknowledgement, and at the end. It may be nil.
	Watch func(Arrival)

	mu       sync.Mutex
	sessions map[string]*session // guarded by mu; by volume and snapshot
}

// Arrival is the state of a snapshot that is arriving.
type Arrival struct {
	Offer    Offer
	Peer     string
	Received int64
	Durable  int64
	Done     bool
}

type session struct {
	cancel context.CancelCauseFunc
	ended  chan struct{}
}

const defaultInterval = 32 << 20

// Serve runs one session on a connection from peer and closes it.
func (t *Target) Serve(ctx context.Context, conn net.Conn, peer string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err := t.serve(ctx, cancel, conn, peer)
	if err != nil && ctx.Err() == nil {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		writeJSON(conn, frameError, asError(err))
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func (t *Target) serve(ctx context.Context, cancel context.CancelCauseFunc, conn net.Conn, peer string) error {
	conn.SetDeadline(time.Now().Add(stall))
	reader := bufio.NewReaderSize(conn, 64<<10)
	kind, payload, err := readFrame(reader, nil)
	if err != nil {
		return err
	}
	if kind != frameOffer {
		return damaged(fmt.Sprintf("frame type %d where an offer should be", kind))
	}
	var offer Offer
	if err := decode(payload, &offer); err != nil {
		return err
	}
	if offer.Protocol, err = common(offer); err != nil {
		return err
	}
	if err := t.Permit(ctx, peer, offer); err != nil {
		return err
	}
	backend, err := t.Pool(offer.Pool)
	if err != nil {
		return err
	}
	leave, err := t.enter(ctx, cancel, offer)
	if err != nil {
		return err
	}
	defer leave()
	return t.receive(ctx, conn, reader, backend, offer, peer)
}

// enter makes this the only session for the snapshot: an earlier one is a
// connection whose end has not noticed that it is broken.
func (t *Target) enter(ctx context.Context, cancel context.CancelCauseFunc, offer Offer) (leave func(), err error) {
	key := offer.Volume + "/" + offer.Snapshot
	mine := &session{cancel: cancel, ended: make(chan struct{})}
	for {
		t.mu.Lock()
		if t.sessions == nil {
			t.sessions = map[string]*session{}
		}
		other := t.sessions[key]
		if other == nil {
			t.sessions[key] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.sessions, key)
				t.mu.Unlock()
				close(mine.ended)
			}, nil
		}
		t.mu.Unlock()
		other.cancel(&api.Error{Kind: api.Unavailable, Op: "receive snapshot", Object: offer.Snapshot, Reason: "a newer session took over"})
		select {
		case <-other.ended:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// End ends the session for a snapshot, if there is one, and waits for it.
func (t *Target) End(ctx context.Context, volume, snapshot string) error {
	t.mu.Lock()
	s := t.sessions[volume+"/"+snapshot]
	t.mu.Unlock()
	if s == nil {
		return nil
	}
	s.cancel(&api.Error{Kind: api.Unavailable, Op: "receive snapshot", Object: snapshot, Reason: "nobody waits for it any more"})
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *Target) receive(ctx context.Context, conn net.Conn, reader *bufio.Reader, backend storage.Backend, offer Offer, peer string) error {
	side, err := Holds(ctx, backend, offer.Volume)
	if err != nil {
		return err
	}
	route := repo.Negotiate(offer.Snapshot, offer.Source, side)
	if route.Have {
		if err := writeJSON(conn, frameAnswer, Answer{Protocol: offer.Protocol, Route: route}); err != nil {
			return err
		}
		return t.finish(conn, offer, peer, copyOf(side, offer.Snapshot))
	}
	info, err := backend.Info(ctx)
	if err != nil {
		return err
	}
	if err := fits(offer, info, route); err != nil {
		return err
	}
	w := &writer{interval: t.Interval, conn: conn}
	if w.interval == 0 {
		w.interval = defaultInterval
	}
	if t.Watch != nil {
		w.watch = func() {
			t.Watch(Arrival{Offer: offer, Peer: peer, Received: w.received.Load(), Durable: w.durable.Load()})
		}
		// Told before anything is made on the pool, so that whoever clears up
		// after a transfer that was given up knows of it.
		w.watch()
	}
	// Opening may copy a base, committing may wait for the disk: the source
	// hears something all the time.
	endBeat := w.keepAlive()
	defer endBeat()
	in, err := t.openReceive(ctx, backend, info, offer, route)
	if err != nil {
		return err
	}
	defer in.Close()
	offset := in.Offset()
	w.in = in
	w.received.Store(offset)
	w.durable.Store(offset)
	if err := w.answer(Answer{Protocol: offer.Protocol, Route: route, Offset: offset}); err != nil {
		return err
	}
	if err := w.run(ctx, reader); err != nil {
		return err
	}
	snapshot, err := in.Commit(ctx)
	if err != nil {
		return err
	}
	endBeat()
	return t.finish(conn, offer, peer, repo.Copy{ID: snapshot.ID, Lineage: snapshot.Lineage, Order: snapshot.Order})
}

func (t *Target) finish(conn net.Conn, offer Offer, peer string, c repo.Copy) error {
	if t.Watch != nil {
		t.Watch(Arrival{Offer: offer, Peer: peer, Done: true})
	}
	conn.SetWriteDeadline(time.Now().Add(stall))
	return writeJSON(conn, frameDone, Done{Copy: c})
}

func copyOf(side repo.Side, id string) repo.Copy {
	for _, c := range side.Copies {
		if c.ID == id {
			return c
		}
	}
	return repo.Copy{ID: id}
}

// fits refuses what the pool cannot take before any of it is sent.
func fits(offer Offer, info storage.Info, route repo.Route) error {
	const op = "receive snapshot"
	object := "pool " + offer.Pool
	switch info.State {
	case api.PoolFull:
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: "the pool is full: " + info.Reason, Next: "free space, or choose another pool with --pool"}
	case api.PoolReadOnly:
		return &api.Error{Kind: api.ReadOnly, Op: op, Object: object, Reason: "the pool is read-only: " + info.Reason}
	case api.PoolGone:
		return &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the pool is not there: " + info.Reason}
	}
	if route.Base == "" && offer.Size > info.Free {
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: fmt.Sprintf("%d bytes are to come and %d are free", offer.Size, info.Free), Next: "free space, or choose another pool with --pool"}
	}
	if lost := offer.Fidelity.Lost(info.Fidelity); len(lost) > 0 && !offer.AllowLoss {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: info.Kind + " does not keep " + strings.Join(lost, ", "), Next: "choose another pool, or pass --allow-loss: what it cannot keep is then stored beside the data and restored by the next move"}
	}
	return nil
}

func (t *Target) openReceive(ctx context.Context, backend storage.Backend, info storage.Info, offer Offer, route repo.Route) (storage.Receive, error) {
	spec := storage.ReceiveSpec{Volume: offer.Volume, ID: offer.Snapshot, Base: route.Base, Size: offer.Size, Note: offer.Note, Stream: offer.Stream}
	if route.Format != repo.Portable {
		native, ok := storage.As[storage.NativeStreams](backend)
		if !ok {
			return nil, damaged("a native stream was chosen for a pool that has none")
		}
		return native.Receive(ctx, spec, route.Format)
	}
	if t.Portable == nil {
		return nil, noPortable()
	}
	stage, err := backend.Stage(ctx, spec)
	if err != nil {
		return nil, err
	}
	return t.Portable.Receive(ctx, stage, info.Fidelity, offer.AllowLoss)
}

// writer takes data frames to a receive, with a checkpoint every interval.
type writer struct {
	in                storage.Receive
	interval          int64
	received, durable atomic.Int64
	watch             func()

	mu   sync.Mutex
	conn net.Conn // writing is guarded by mu
}

func (w *writer) answer(a Answer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.SetWriteDeadline(time.Now().Add(stall))
	return writeJSON(w.conn, frameAnswer, a)
}

// ack tells the source what arrived.
func (w *writer) ack() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.SetWriteDeadline(time.Now().Add(stall))
	return writeFrame(w.conn, frameAck, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(w.received.Load())), uint64(w.durable.Load())))
}

// keepAlive acknowledges regularly, so that a slow disk is not taken for a
// broken connection, until the returned function is called.
func (w *writer) keepAlive() (end func()) {
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
				if w.ack() != nil {
					return
				}
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-ended })
}

// chunk is one data frame's stream bytes on their way to the pool.
type chunk struct {
	buf    []byte
	offset int64
	end    bool
}

// run reads frames ahead in one goroutine and writes to the pool in this one.
func (w *writer) run(ctx context.Context, reader *bufio.Reader) error {
	const ahead = 8
	free, full := make(chan []byte, ahead), make(chan chunk, ahead)
	for range ahead {
		free <- nil // allocated when it is first needed: many streams are short
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var readErr error
	go func() {
		defer close(full)
		readErr = readChunks(ctx, w.conn, reader, free, full)
	}()
	for c := range full {
		received := w.received.Load()
		switch {
		case c.offset != received && c.end:
			return damaged(fmt.Sprintf("the stream ends at %d, %d were received", c.offset, received))
		case c.offset != received:
			return damaged(fmt.Sprintf("data for offset %d came where %d was expected", c.offset, received))
		case c.end:
			return nil
		}
		if err := w.take(ctx, c.buf[8:]); err != nil {
			return err
		}
		free <- c.buf
	}
	// What arrived before a break is worth keeping: the next session goes on there.
	if readErr != nil && w.received.Load() > w.durable.Load() {
		if _, err := w.in.Checkpoint(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("%w (and what had arrived could not be kept: %v)", readErr, err)
		}
	}
	return readErr
}

// take writes stream bytes to the pool.
func (w *writer) take(ctx context.Context, data []byte) error {
	if _, err := w.in.Write(data); err != nil {
		return err
	}
	if w.received.Add(int64(len(data)))-w.durable.Load() < w.interval {
		return nil
	}
	durable, err := w.in.Checkpoint(ctx)
	if err != nil {
		return err
	}
	w.durable.Store(durable)
	if w.watch != nil {
		w.watch()
	}
	return w.ack()
}

func readChunks(ctx context.Context, conn net.Conn, reader *bufio.Reader, free chan []byte, full chan<- chunk) error {
	for {
		conn.SetReadDeadline(time.Now().Add(stall))
		kind, n, err := readHeader(reader)
		if err != nil {
			return unexpected(err)
		}
		var buf []byte
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case buf = <-free:
		}
		if n > blockSize+8 {
			return damaged(fmt.Sprintf("a frame of %d bytes, at most %d are taken", n, blockSize+8))
		}
		if n > cap(buf) {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(reader, buf); err != nil {
			return unexpected(err)
		}
		switch kind {
		case framePing:
			free <- buf[:cap(buf)]
		case frameError:
			return remote(buf)
		case frameData, frameEnd:
			if n < 8 || (kind == frameEnd && n != 8) {
				return damaged("a frame without its offset")
			}
			full <- chunk{buf: buf, offset: int64(binary.BigEndian.Uint64(buf)), end: kind == frameEnd}
			if kind == frameEnd {
				return nil
			}
		default:
			return damaged(fmt.Sprintf("frame type %d where data should be", kind))
		}
	}
}
