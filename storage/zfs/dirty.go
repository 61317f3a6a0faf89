package zfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"os"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

var _ storage.Differ = (*Backend)(nil)

// Dirty implements storage.Differ: a snapshot is made for a moment, and the
// stream from the other one to it is read until its first record of a change. A
// tree holds nothing but content, so every record is one.
func (b *Backend) Dirty(ctx context.Context, key storage.HeadKey, id string) (dirty bool, err error) {
	const op = "look whether the head is dirty"
	if err := checkID("snapshot", id); err != nil {
		return false, err
	}
	err = b.onKey(ctx, op, key, func() (err error) {
		dirty, err = b.dirty(ctx, op, key, id)
		return err
	})
	if api.Is(err, api.Exhausted) {
		err = &api.Error{Kind: api.Unsupported, Op: op, Object: key.String(), Reason: "the pool is too full to look", Next: "free space", Err: err}
	}
	return dirty, err
}

func (b *Backend) dirty(ctx context.Context, op string, key storage.HeadKey, id string) (dirty bool, err error) {
	h, err := b.readHead(op, key)
	if err != nil {
		return false, err
	}
	base, err := b.readSnapshot(op, key.Volume, id)
	if err != nil {
		return false, err
	}
	if err := b.mountTree(ctx, h.Tree); err != nil {
		return false, err
	}
	if err := b.flush(h.Tree); err != nil {
		return false, err
	}
	now, release, err := b.takeSnapshot(ctx, key.Volume, "look-"+newName(), h.Tree, nil)
	if err != nil {
		return false, err
	}
	defer release()
	defer func() {
		if e := b.retire(context.WithoutCancel(ctx), now); err == nil {
			err = e
		}
	}()
	way, err := b.way(ctx, base, now)
	if err != nil {
		return false, err
	}
	if way == nil {
		return false, &api.Error{Kind: api.Unsupported, Op: op, Object: key.String(), Reason: "the snapshot is not one that the head came from", Next: "compare the two"}
	}
	for _, st := range way {
		if dirty, err = b.changes(ctx, key.String(), st); dirty || err != nil {
			return dirty, err
		}
	}
	return false, nil
}

// changes reports whether one zfs stream has a record of a change.
func (b *Backend) changes(ctx context.Context, object string, st sendStep) (bool, error) {
	s, err := hostfs.NewPump(ctx, func(err error) error { return b.fail("look whether the head is dirty", object, err) }, func(ctx context.Context, w *os.File) error {
		return sendOne(ctx, w, st)
	})
	if err != nil {
		return false, err
	}
	defer s.Close()
	return hasChange(s)
}

// hasChange reads a zfs stream up to its first record that changes something.
func hasChange(r io.Reader) (bool, error) {
	in := &counting{r: bufio.NewReaderSize(r, recordSize)}
	var rec [recordSize]byte
	for first := true; ; first = false {
		if err := in.full(rec[:]); err != nil {
			return false, err
		}
		switch kind := binary.LittleEndian.Uint32(rec[:]); {
		case first != (kind == recordBegin):
			return false, bad("it does not begin as a zfs stream does")
		case kind == recordEnd:
			return false, nil
		case kind != recordBegin:
			return true, nil
		}
		n, err := payloadSize(rec[:])
		if err != nil {
			return false, err
		}
		if _, err := io.CopyN(io.Discard, in.r, int64(n)); err != nil {
			return false, bad("it ends in its first record")
		}
	}
}
