package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"fmt"
	"hash"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// mark is the note that is kept with the stage at each checkpoint.
type mark struct {
	Offset int64  `json:"offset"` // of the first block that is not applied
	Digest []byte `json:"digest"` // state of the digest up to there
}

// Receive fills a stage from a stream. keeps is what the stage's store can
// keep; what it cannot is refused by name or, with lossy, written beside.
func (Streams) Receive(_ context.Context, stage storage.Stage, keeps storage.Fidelity, lossy bool) (storage.Receive, error) {
	r := &receiving{stage: stage, sum: sha256.New()}
	var m mark
	if note := stage.Marked(); len(note) > 0 && json.Unmarshal(note, &m) == nil {
		if err := r.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(m.Digest); err == nil && m.Offset > 0 {
			r.offset = m.Offset
		} else {
			r.sum.Reset()
		}
	}
	r.next = r.offset
	root, err := openRoot(stage.Dir())
	if err == nil {
		r.to = &applier{root: root, keeps: keeps, lossy: lossy, besideDir: stage.Beside(), parent: -1, file: -1}
		r.to.exact = exact(keeps)
		if r.to.side, err = openBeside(stage.Beside(), true, false); err != nil {
			unix.Close(root)
		}
	}
	if err != nil {
		_ = stage.Close()
		return nil, wrap("receive snapshot", "", err)
	}
	return r, nil
}

// exact reports whether a store keeps all that a stream can carry.
func exact(f storage.Fidelity) bool {
	return len(storage.Full().Lost(f)) == 0
}

// receiving implements storage.Receive.
type receiving struct {
	stage  storage.Stage
	to     *applier
	sum    hash.Hash
	buf    []byte
	offset int64 // kept durably
	next   int64 // of the first byte not applied
	ended  bool
	closed bool
	// poisoned: what was kept does not belong to this stream, or the stream is
	// not the same each time; going on from there would fail again.
	poisoned bool
	err      error // sticks
}

func (r *receiving) Offset() int64 { return r.offset }

// Write takes bytes of the stream; blocks are applied as they are complete.
func (r *receiving) Write(p []byte) (int, error) {
	if r.closed {
		return 0, closedError()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := len(p)
	r.buf = append(r.buf, p...)
	used, err := r.apply()
	r.next += int64(used)
	r.buf = r.buf[:copy(r.buf, r.buf[used:])]
	if err != nil {
		r.err = wrap("receive snapshot", "", err)
		r.poisoned = r.poisoned || r.offset > 0 && api.Is(r.err, api.Damaged)
		return 0, r.err
	}
	return n, nil
}

func (r *receiving) apply() (used int, err error) {
	if r.next == 0 {
		if n := min(len(r.buf), len(Magic)); !bytes.Equal(r.buf[:n], []byte(Magic)[:n]) {
			return 0, damaged("it does not begin as one")
		}
		if len(r.buf) < len(Magic) {
			return 0, nil
		}
		used = len(Magic)
	}
	for {
		rest := r.buf[used:]
		if r.ended && len(rest) > 0 {
			return used, damaged("something follows its end")
		}
		payload, n, need, err := splitBlock(rest)
		if err != nil || need > 0 {
			return used, err
		}
		if err := r.block(payload); err != nil {
			return used, err
		}
		used += n
	}
}

func (r *receiving) block(payload []byte) error {
	d := newDecoder(payload)
	first := r.next <= int64(len(Magic)) && !r.to.begun && r.offset == 0
	var rec record
	for d.next(&rec) {
		switch rec.op {
		case opBegin:
			if !first || r.to.begun {
				return damaged("it begins twice")
			}
			if rec.off != version {
				return &api.Error{Kind: api.Unsupported, Op: "receive snapshot", Reason: fmt.Sprintf("the portable stream has version %d, this node knows %d", rec.off, version), Next: "upgrade this node"}
			}
			r.to.begun = true
		case opEnd:
			if !bytes.Equal(rec.data, r.sum.Sum(nil)) {
				r.poisoned = true
				return damaged("it does not have the digest it says")
			}
			r.ended = true
		default:
			if first && !r.to.begun {
				return damaged("it does not say what it is")
			}
			if err := r.to.apply(&rec); err != nil {
				return err
			}
		}
	}
	if d.err() != nil {
		return d.err()
	}
	if !r.ended {
		r.sum.Write(payload)
	}
	return nil
}

// Checkpoint makes the blocks applied so far durable. The end is not kept, so
// that it is seen again.
func (r *receiving) Checkpoint(ctx context.Context) (int64, error) {
	if r.closed {
		return r.offset, closedError()
	}
	if r.err != nil || r.ended || r.next == r.offset || r.next <= int64(len(Magic)) {
		return r.offset, nil
	}
	if err := r.to.flush(); err != nil {
		return r.offset, wrap("receive snapshot", "", err)
	}
	state, err := r.sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return r.offset, err
	}
	note, err := json.Marshal(mark{r.next, state})
	if err != nil {
		return r.offset, err
	}
	if err := r.stage.Mark(ctx, note); err != nil {
		return r.offset, err
	}
	r.offset = r.next
	return r.offset, nil
}

// Commit publishes the snapshot after the whole stream was applied. Metadata
// of directories comes last in the stream, so nothing has touched them since.
func (r *receiving) Commit(ctx context.Context) (storage.Snapshot, error) {
	switch {
	case r.closed:
		return storage.Snapshot{}, closedError()
	case r.err != nil:
		return storage.Snapshot{}, r.err
	case !r.ended || len(r.buf) > 0:
		return storage.Snapshot{}, damaged("it is cut")
	}
	if err := r.to.flush(); err != nil {
		return storage.Snapshot{}, wrap("receive snapshot", "", err)
	}
	r.to.close()
	s, err := r.stage.Commit(ctx)
	if err == nil {
		err = r.stage.Close()
	}
	r.closed = true
	return s, err
}

func (r *receiving) Abort(ctx context.Context) error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.to.close()
	err := r.stage.Abort(ctx)
	_ = r.stage.Close()
	return err
}

func (r *receiving) Close() error {
	if r.closed {
		return nil
	}
	if r.poisoned {
		return r.Abort(context.Background())
	}
	r.closed = true
	r.to.close()
	return r.stage.Close()
}

func closedError() error {
	return &api.Error{Kind: api.Invalid, Op: "receive snapshot", Reason: "this handle was closed"}
}
