package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// receive implements storage.Receive. zfs receive cannot go on where it was cut
// off, so a stream is spooled in the pool itself, and given to zfs receive when
// it is whole and found good.
type receive struct {
	in     *incoming
	size   int64 // of the spool
	base   uint64
	head   []byte // of the stream, until it is whole
	looked bool   // the header was compared with the base
	err    error  // the first error; it stays
}

// Receive implements storage.NativeStreams.
func (b *Backend) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	const op = "receive snapshot"
	object := spec.Volume + "@" + spec.ID
	if format != b.Format() {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("this pool takes streams of format %q and not %q", b.Format(), format)}
	}
	r := &receive{}
	err := b.beginIncoming(ctx, op, spec, format, func(in *incoming) error {
		r.in = in
		return r.open(op)
	})
	if err != nil {
		return nil, b.fail(op, object, err)
	}
	return r, nil
}

// open brings the spool back to what is known to be durable.
func (r *receive) open(op string) error {
	file := r.in.file
	if file.Base != "" {
		base, err := r.in.b.readSnapshot(op, file.Volume, file.Base)
		if err != nil {
			return err
		}
		if r.base, err = strconv.ParseUint(base.GUID, 10, 64); err != nil {
			return err
		}
	}
	var err error
	if r.in.spool, err = os.OpenFile(r.in.spoolPath(), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := r.in.spool.Truncate(file.Kept); err != nil {
		return err
	}
	if r.size, err = r.in.spool.Seek(file.Kept, io.SeekStart); err != nil {
		return err
	}
	r.head = make([]byte, min(r.size, headerSize))
	if _, err := r.in.spool.ReadAt(r.head, 0); err != nil && len(r.head) > 0 {
		return err
	}
	return hostfs.WriteJSONAt(r.in.specPath(), file)
}

func (r *receive) Offset() int64 { return r.in.file.Kept }

// Write implements io.Writer.
func (r *receive) Write(p []byte) (int, error) {
	if r.err == nil && r.in.closed {
		r.err = hostfs.Closed("receive snapshot", r.in.object())
	}
	if r.err != nil {
		return 0, r.err
	}
	if err := r.write(p); err != nil {
		r.err = r.refuse(err)
		return 0, r.err
	}
	return len(p), nil
}

func (r *receive) write(p []byte) error {
	if len(r.head) < headerSize {
		r.head = append(r.head, p[:min(len(p), headerSize-len(r.head))]...)
	}
	if len(r.head) == headerSize && !r.looked {
		h, err := parseHeader(r.head)
		if err == nil {
			err = r.compare(h)
		}
		if err != nil {
			return err
		}
		r.looked = true
	}
	n, err := r.in.spool.Write(p)
	r.size += int64(n)
	return err
}

// compare demands the base that the stream was made against.
func (r *receive) compare(h header) error {
	if h.base == r.base {
		return nil
	}
	what := fmt.Sprintf("the stream continues the snapshot of guid %d, and the base here, %q, has %d", h.base, r.in.file.Base, r.base)
	return &api.Error{Kind: api.Conflict, Op: "receive snapshot", Object: r.in.object(), Reason: what, Next: "send it by the portable stream, or in full"}
}

// refuse turns what is said of the stream into an *api.Error.
func (r *receive) refuse(err error) error {
	if errors.Is(err, errStream) {
		err = damaged(err.Error())
	}
	return r.in.b.fail("receive snapshot", r.in.object(), err)
}

// Checkpoint implements storage.Receive.
func (r *receive) Checkpoint(ctx context.Context) (int64, error) {
	const op = "keep what arrived"
	switch {
	case r.err != nil:
		return r.in.file.Kept, r.err
	case r.in.closed:
		return r.in.file.Kept, hostfs.Closed(op, r.in.object())
	case ctx.Err() != nil:
		return r.in.file.Kept, r.in.b.fail(op, r.in.object(), ctx.Err())
	}
	err := r.in.spool.Sync()
	if err == nil {
		next := r.in.file
		next.Kept = r.size
		if err = hostfs.WriteJSONAt(r.in.specPath(), next); err == nil {
			r.in.file = next
		}
	}
	return r.in.file.Kept, r.in.b.fail(op, r.in.object(), err)
}

// Commit implements storage.Receive. A stream that turns out to be bad is
// dropped: going on with it would never help.
func (r *receive) Commit(ctx context.Context) (storage.Snapshot, error) {
	if r.err == nil && r.in.closed {
		r.err = hostfs.Closed("receive snapshot", r.in.object())
	}
	if r.err != nil {
		return storage.Snapshot{}, r.err
	}
	s, err := r.commit(ctx)
	if err != nil {
		err = r.refuse(err)
		if api.Is(err, api.Damaged) || api.Is(err, api.Conflict) {
			r.err = err
			r.forget()
		}
	}
	return s, err
}

// forget makes the next Receive begin anew.
func (r *receive) forget() {
	if r.in.file.Kept > 0 {
		r.in.file.Kept = 0
		_ = hostfs.WriteJSONAt(r.in.specPath(), r.in.file) // otherwise it fails again, the same way
	}
}

func (r *receive) commit(ctx context.Context) (storage.Snapshot, error) {
	var none storage.Snapshot
	b, file := r.in.b, r.in.file
	h, steps, err := scan(io.NewSectionReader(r.in.spool, 0, r.size))
	if err == nil {
		err = r.compare(h)
	}
	if err != nil {
		return none, err
	}
	unlock, err := b.locks.Lock(ctx, file.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	f := snapFile{Volume: file.Volume, ID: file.ID, Note: file.Note}
	origin := ""
	if steps[0].from != 0 {
		base, err := b.readSnapshot("receive snapshot", file.Volume, file.Base)
		if err != nil {
			return none, err
		}
		if base.GUID != strconv.FormatUint(steps[0].from, 10) {
			return none, r.compare(header{base: steps[0].from})
		}
		origin = b.fullName(base)
	}
	for i, st := range steps {
		f.Tree = newName()
		name := b.treeName(f.Tree) + "@g-" + newName()
		if i == len(steps)-1 {
			name = b.fullName(f)
		}
		release, err := b.take(ctx, r.in.spool, st, origin, f.Tree, name)
		if err != nil {
			_ = b.sweep(context.WithoutCancel(ctx)) // what the earlier steps made
			return none, err
		}
		defer release()
		f.Created, origin = time.Unix(st.created, 0).UTC(), name
	}
	if err := b.identify(ctx, &f); err != nil {
		return none, err
	}
	if err := b.checkTree(f.Tree); err != nil {
		_ = b.destroyTree(context.WithoutCancel(ctx), f.Tree)
		return none, err
	}
	if err := b.publish(f); err != nil {
		return none, err
	}
	return r.in.published(ctx, f)
}

// take receives one zfs stream into a new data set, as the snapshot name.
//
// An incremental stream says of itself, or we have it say, that it continues
// another data set's snapshot. Otherwise ZFS (seen with pool version 23) looks
// for the data set that has the base and overwrites that, whatever name is given.
// What came of it is compared afterwards all the same.
func (b *Backend) take(ctx context.Context, spool io.ReaderAt, st step, origin, tree, name string) (release func(), err error) {
	letGo := b.hold(tree)
	letName := b.hold(name)
	release = func() { letGo(); letName() }
	defer func() {
		if err != nil {
			_ = b.destroyTree(context.WithoutCancel(ctx), tree)
			letGo()
			letName()
		}
	}()
	version, err := b.poolVersion(ctx)
	if err != nil {
		return release, err
	}
	args := []string{"receive", name}
	asClone := origin != "" && version != featureVersion
	if origin != "" && !asClone {
		args = []string{"receive", "-o", "origin=" + origin, name}
	}
	if _, err := b.zfs(ctx, st.reader(spool, asClone), args...); err != nil {
		return release, err
	}
	props, err := b.get(ctx, []string{"guid", "origin"}, b.treeName(tree), true)
	if err != nil {
		return release, err
	}
	got, from := props[name]["guid"], props[b.treeName(tree)]["origin"]
	if from == "-" {
		from = ""
	}
	if got != strconv.FormatUint(st.to, 10) {
		return release, fmt.Errorf("zfs receive made %s with guid %q and not %d", name, got, st.to)
	}
	if err := b.sameOrigin(ctx, from, origin); err != nil {
		return release, err
	}
	return release, b.mountDataset(ctx, b.treeName(tree))
}

// sameOrigin demands that a tree continues the snapshot it should, or a copy of
// it: ZFS chooses by guid among them.
func (b *Backend) sameOrigin(ctx context.Context, got, want string) error {
	if got == want {
		return nil
	}
	if got != "" && want != "" {
		guids := [2]string{}
		for i, n := range []string{got, want} {
			props, err := b.get(ctx, []string{"guid"}, n, false)
			if err != nil {
				return err
			}
			guids[i] = props[n]["guid"]
		}
		if guids[0] == guids[1] {
			return nil
		}
	}
	return fmt.Errorf("zfs receive continued %q and not %q", got, want)
}

// destroyTree destroys a tree that nothing was made from, with its snapshots.
func (b *Backend) destroyTree(ctx context.Context, tree string) error {
	err := b.destroy(ctx, "-r", b.treeName(tree))
	if errors.Is(err, errNoDataset) {
		return nil
	}
	return err
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
