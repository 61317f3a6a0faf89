package btrfs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs/sendstream"
	"github.com/drover-data/drover/storage/hostfs"
)

// receive implements storage.Receive: it applies a send stream command by
// command. `btrfs receive` cannot go on where it was cut off; this can, because
// a command's effect depends on nothing but the tree and the stream.
type receive struct {
	in      *incoming
	a       applier
	version uint32
	applied int64  // stream offset behind the last command applied
	rest    []byte // the beginning of a command that has not arrived whole
	ended   bool   // END was seen
	err     error  // the first error; it stays
	cmd     sendstream.Command
}

// Receive implements storage.NativeStreams.
func (b *Backend) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	const op = "receive snapshot"
	object := spec.Volume + "@" + spec.ID
	if _, ok := versionOf(format); !ok {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("a btrfs pool does not take streams of format %q", format)}
	}
	in, err := b.beginIncoming(ctx, op, spec, format)
	if err != nil {
		return nil, b.fail(op, object, err)
	}
	r := &receive{in: in, version: in.meta.Version, applied: in.mark}
	r.a.reset(in.tree)
	in.also = r.a.close
	if in.tree >= 0 {
		if err := r.openBase(); err != nil {
			in.letGo()
			return nil, b.fail(op, object, err)
		}
	}
	return r, nil
}

func (r *receive) Offset() int64 { return r.in.mark }

// Write implements io.Writer.
func (r *receive) Write(p []byte) (int, error) {
	if r.err == nil && r.in.closed {
		r.err = hostfs.Closed("receive snapshot", r.in.object())
	}
	if r.err != nil {
		return 0, r.err
	}
	if err := r.write(p); err != nil {
		if errors.Is(err, sendstream.ErrStream) {
			err = damaged(err.Error())
		}
		r.err = r.in.b.fail("receive snapshot", r.in.object(), err)
		return 0, r.err
	}
	return len(p), nil
}

func (r *receive) write(p []byte) error {
	for len(r.rest) > 0 && len(p) > 0 {
		n, err := r.unit(r.rest)
		if err != nil {
			return err
		}
		if have := len(r.rest); have < n {
			take := min(n-have, len(p))
			r.rest, p = append(r.rest, p[:take]...), p[take:]
			if n, err = r.unit(r.rest); err != nil {
				return err
			}
		}
		if len(r.rest) == n {
			if err := r.step(r.rest); err != nil {
				return err
			}
			r.rest = r.rest[:0]
		}
	}
	for len(p) > 0 {
		n, err := r.unit(p)
		if err != nil {
			return err
		}
		if len(p) < n {
			r.rest = append(r.rest, p...)
			return nil
		}
		if err := r.step(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// unit is the length of the header or command that begins with b or, when b is
// too short to tell, how much is needed to tell.
func (r *receive) unit(b []byte) (int, error) {
	switch {
	case r.ended:
		return 0, damaged("there are bytes behind its end")
	case r.version == 0:
		return sendstream.HeaderSize, nil
	case len(b) < sendstream.CommandSize:
		return sendstream.CommandSize, nil
	}
	return sendstream.Length(b)
}

// step applies the header or one command.
func (r *receive) step(b []byte) error {
	if err := r.take(b); err != nil {
		return err
	}
	// A mark never lies behind the end command: whoever goes on must see it.
	if !r.ended {
		r.applied += int64(len(b))
	}
	return nil
}

func (r *receive) take(b []byte) error {
	if r.version == 0 {
		v, err := sendstream.ParseHeader(b)
		if err != nil {
			return err
		}
		if limit, _ := versionOf(r.in.meta.Format); v > limit {
			return damaged(fmt.Sprintf("it has protocol version %d and was announced as %s", v, r.in.meta.Format))
		}
		r.version, r.in.meta.Version = v, v
		return nil
	}
	if err := r.cmd.Parse(b, r.version); err != nil {
		return err
	}
	switch r.cmd.Op {
	case sendstream.Subvol, sendstream.Snapshot:
		return r.begin()
	case sendstream.End:
		r.ended = true
		return r.a.flush()
	}
	if r.in.tree < 0 {
		return damaged(fmt.Sprintf("a %s command comes before it said what it holds", r.cmd.Op))
	}
	return r.a.apply(&r.cmd)
}

// begin makes the tree as the first command says.
func (r *receive) begin() error {
	in := r.in
	if in.tree >= 0 {
		return damaged("it says twice what it holds")
	}
	id, err := r.cmd.ID(sendstream.UUID)
	if err != nil {
		return err
	}
	transid, err := r.cmd.Uint(sendstream.CTransid)
	if err != nil {
		return err
	}
	in.meta.UUID, in.meta.Transid = id, transid
	if r.cmd.Op == sendstream.Subvol {
		if in.meta.Base != "" {
			return &api.Error{Kind: api.Conflict, Op: "receive snapshot", Object: in.object(), Reason: "a full stream came where changes against " + in.meta.Base + " were announced", Next: "send against that base, or announce none"}
		}
		if err := subvolCreate(in.dir, "tree"); err != nil {
			return err
		}
	} else {
		base, err := r.cmd.ID(sendstream.CloneUUID)
		if err != nil {
			return err
		}
		if err := r.openBase(); err != nil {
			return err
		}
		if r.a.base < 0 || UUID(base) != r.a.baseID {
			return &api.Error{Kind: api.Conflict, Op: "receive snapshot", Object: in.object(), Reason: fmt.Sprintf("the stream builds on lineage %s, and base %q is not of it", UUID(base), in.meta.Base), Next: "send against a snapshot that both pools hold of one lineage"}
		}
		if err := snapCreate(in.dir, "tree", r.a.base, false); err != nil {
			return err
		}
	}
	if in.tree, err = openSubvol(in.dir, "tree"); err != nil {
		return err
	}
	r.a.reset(in.tree)
	r.a.self = in.meta.UUID
	return hostfs.WriteJSON(in.dir, "spec.json", in.meta, true)
}

// openBase opens the base for snapshots and clones of it.
func (r *receive) openBase() error {
	r.a.self = r.in.meta.UUID
	if r.in.meta.Base == "" || r.a.base >= 0 {
		return nil
	}
	fd, err := openSubvol(r.in.p.root, hostfs.SnapshotPath(r.in.meta.Volume, r.in.meta.Base))
	if err == unix.ENOENT {
		return hostfs.NoSnapshot("receive snapshot", r.in.meta.Volume, r.in.meta.Base, r.in.b.cfg.Source)
	}
	if err != nil {
		return err
	}
	info, err := getSubvolInfo(fd)
	if err != nil {
		unix.Close(fd)
		return err
	}
	r.a.base, r.a.baseID = fd, info.lineage()
	return nil
}

// Checkpoint implements storage.Receive.
func (r *receive) Checkpoint(ctx context.Context) (int64, error) {
	const op = "keep received part"
	if r.in.closed {
		return r.in.mark, hostfs.Closed(op, r.in.object())
	}
	if r.err != nil {
		return r.in.mark, r.err
	}
	if err := ctx.Err(); err != nil {
		return r.in.mark, r.in.b.fail(op, r.in.object(), err)
	}
	if r.in.tree < 0 || r.applied == r.in.mark {
		return r.in.mark, nil
	}
	err := r.a.flush()
	if err == nil {
		err = r.in.keep(r.applied)
	}
	if err != nil {
		r.err = r.in.b.fail(op, r.in.object(), err)
		return r.in.mark, r.err
	}
	return r.in.mark, nil
}

// Commit implements storage.Receive.
func (r *receive) Commit(ctx context.Context) (storage.Snapshot, error) {
	const op = "commit received snapshot"
	switch {
	case r.in.closed:
		return storage.Snapshot{}, hostfs.Closed(op, r.in.object())
	case r.err != nil:
		return storage.Snapshot{}, r.err
	case !r.ended:
		return storage.Snapshot{}, r.in.b.fail(op, r.in.object(), damaged("the stream ends before its end mark"))
	case ctx.Err() != nil:
		return storage.Snapshot{}, r.in.b.fail(op, r.in.object(), ctx.Err())
	}
	s, err := r.in.finish(ctx, op, func() error {
		r.a.close()
		return setReceived(r.in.tree, r.in.meta.UUID, r.in.meta.Transid)
	})
	return s, r.in.b.fail(op, r.in.object(), err)
}

// Abort implements storage.Receive.
func (r *receive) Abort(ctx context.Context) error {
	return r.in.b.fail("abort receive", r.in.object(), r.in.abort(ctx))
}

// Close implements storage.Receive.
func (r *receive) Close() error {
	r.in.letGo()
	return nil
}
