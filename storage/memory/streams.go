package memory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"maps"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// The stream "memory-1": strings, each behind its length of four bytes, in the
// order magic, lineage, base's lineage; then records of a letter ("+" path
// content, "-" path) in the order of paths; then "." and the SHA-256 of
// everything before.

const magic = "drover memory stream 1"

// Format implements storage.NativeStreams.
func (b *Backend) Format() string { return "memory-1" + b.p.cfg.Flavour }

// Formats implements storage.NativeStreams.
func (b *Backend) Formats() []string { return []string{b.Format()} }

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// Send implements storage.NativeStreams.
func (b *Backend) Send(ctx context.Context, spec storage.SendSpec) (io.ReadCloser, error) {
	const op = "send snapshot"
	if spec.SizeOnly {
		return nil, fail(api.Unsupported, op, spec.Volume+"@"+spec.ID, "there are no streams without data here; use Estimate")
	}
	data, err := b.encode(ctx, op, spec)
	if err != nil {
		return nil, err
	}
	if spec.Offset < 0 || spec.Offset > int64(len(data)) {
		return nil, fail(api.Invalid, op, spec.Volume+"@"+spec.ID, "the stream is shorter than the offset")
	}
	return io.NopCloser(bytes.NewReader(data[spec.Offset:])), nil
}

// Estimate implements storage.Estimator.
func (b *Backend) Estimate(ctx context.Context, spec storage.SendSpec) (int64, error) {
	data, err := b.encode(ctx, "estimate stream", spec)
	return int64(len(data)), err
}

func (b *Backend) encode(ctx context.Context, op string, spec storage.SendSpec) ([]byte, error) {
	object := spec.Volume + "@" + spec.ID
	if err := begin(ctx, op, object, checkID("volume", spec.Volume), checkID("snapshot", spec.ID)); err != nil {
		return nil, err
	}
	if spec.Format != "" && spec.Format != b.Format() {
		return nil, fail(api.Unsupported, op, object, "it does not send format "+spec.Format)
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	s, err := b.snapshot(op, spec.Volume, spec.ID)
	if err != nil {
		return nil, err
	}
	base, lineage := Files{}, ""
	if spec.Base != "" {
		o, err := b.snapshot(op, spec.Volume, spec.Base)
		if err != nil {
			return nil, err
		}
		base, lineage = o.files, o.Lineage
	}
	out := appendString(appendString(appendString(nil, magic), s.Lineage), lineage)
	for _, path := range slices.Sorted(maps.Keys(base)) {
		if _, ok := s.files[path]; !ok {
			out = appendString(append(out, '-'), path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		if old, ok := base[path]; !ok || old != s.files[path] {
			out = appendString(appendString(append(out, '+'), path), s.files[path])
		}
	}
	sum := sha256.Sum256(append(out, '.'))
	return append(append(out, '.'), sum[:]...), nil
}

// decode is the inverse of encode: it applies a stream to base.
func decode(data []byte, base Files, baseLineage string) (lineage string, files Files, err error) {
	bad := func(reason string) (string, Files, error) {
		return "", nil, fail(api.Damaged, "receive snapshot", "", reason)
	}
	if len(data) < sha256.Size {
		return bad("the stream ends early")
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		return bad("the stream is cut or damaged")
	}
	next := func() (string, bool) {
		if len(body) < 4 {
			return "", false
		}
		n := int64(binary.BigEndian.Uint32(body))
		if n > int64(len(body)-4) {
			return "", false
		}
		s := string(body[4 : 4+n])
		body = body[4+n:]
		return s, true
	}
	m, ok1 := next()
	lineage, ok2 := next()
	on, ok3 := next()
	if !ok1 || !ok2 || !ok3 || m != magic || lineage == "" {
		return bad("it is no memory stream")
	}
	if on != baseLineage {
		return "", nil, fail(api.Conflict, "receive snapshot", "", "the stream builds on lineage "+on+", the base is of "+baseLineage)
	}
	files = maps.Clone(base)
	for len(body) > 0 {
		kind := body[0]
		body = body[1:]
		if kind == '.' {
			if len(body) > 0 {
				return bad("there are bytes behind its end")
			}
			return lineage, files, nil
		}
		path, ok := next()
		if !ok {
			return bad("a cut record")
		}
		switch kind {
		case '-':
			delete(files, path)
		case '+':
			text, ok := next()
			if !ok {
				return bad("a cut record")
			}
			files[path] = text
		default:
			return bad("an unknown record")
		}
	}
	return bad("the stream ends early")
}

// receive implements storage.Receive.
type receive struct {
	b      *Backend
	spec   storage.ReceiveSpec
	data   []byte
	kept   int64
	closed bool
}

// Receive implements storage.NativeStreams.
func (b *Backend) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	const op = "receive snapshot"
	if format != b.Format() {
		return nil, fail(api.Unsupported, op, spec.Volume+"@"+spec.ID, "it does not take format "+format)
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	q, err := b.enter(ctx, op, spec, format)
	if err != nil {
		return nil, err
	}
	r := &receive{b: b, spec: spec}
	if q != nil {
		r.data = slices.Clone(q.data)
		r.kept = int64(len(q.data))
	}
	return r, nil
}

func (r *receive) key() string { return r.spec.Volume + "/" + r.spec.ID }

func (r *receive) object() string { return r.spec.Volume + "@" + r.spec.ID }

func (r *receive) Offset() int64 { return r.kept }

func (r *receive) ready(ctx context.Context, op string, n int) error {
	if r.closed {
		return fail(api.Invalid, op, r.object(), "this handle was closed")
	}
	return begin(ctx, op, r.object(), r.b.there(op, r.object()), r.b.room(op, r.object(), int64(n)))
}

func (r *receive) Write(p []byte) (int, error) {
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	if err := r.ready(context.Background(), "receive snapshot", len(r.data)+len(p)-int(r.kept)); err != nil {
		return 0, err
	}
	r.data = append(r.data, p...)
	return len(p), nil
}

func (r *receive) Checkpoint(ctx context.Context) (int64, error) {
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	if err := r.ready(ctx, "keep received part", 0); err != nil {
		return r.kept, err
	}
	if len(r.data) > 0 {
		r.kept = int64(len(r.data))
		r.b.p.partials[r.key()] = &partial{spec: r.spec, format: r.b.Format(), data: slices.Clone(r.data)}
	}
	return r.kept, nil
}

func (r *receive) Commit(ctx context.Context) (storage.Snapshot, error) {
	const op = "commit received snapshot"
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	if err := r.ready(ctx, op, 0); err != nil {
		return storage.Snapshot{}, err
	}
	base, lineage := Files{}, ""
	if r.spec.Base != "" {
		o, err := r.b.snapshot(op, r.spec.Volume, r.spec.Base)
		if err != nil {
			return storage.Snapshot{}, err
		}
		base, lineage = o.files, o.Lineage
	}
	name, files, err := decode(r.data, base, lineage)
	if err != nil {
		return storage.Snapshot{}, err
	}
	r.end(true)
	return r.b.publish(r.spec.Volume, r.spec.ID, name, r.spec.Note, files).show(), nil
}

func (r *receive) end(drop bool) {
	if r.closed {
		return
	}
	r.closed = true
	delete(r.b.busy, r.key())
	if drop {
		delete(r.b.p.partials, r.key())
	}
}

func (r *receive) Abort(context.Context) error {
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	if err := r.b.there("abort receive", r.object()); err != nil {
		return err
	}
	r.end(true)
	return nil
}

func (r *receive) Close() error {
	r.b.p.mu.Lock()
	defer r.b.p.mu.Unlock()
	r.end(false)
	return nil
}
