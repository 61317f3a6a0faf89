package engine

import (
	"context"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strconv"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// OffsetError says that bytes came for another place than where an upload goes on.
type OffsetError struct{ At int64 }

func (e *OffsetError) Error() string { return fmt.Sprintf("the upload goes on at byte %d", e.At) }

// sessionDir is where an upload on its way lies. Whoever changes it is alone: the
// caller sees to that.
func sessionDir(repository, id string) string {
	return path.Join(repositories, repository, "_uploads", id)
}

func sessionData(repository, id string) string { return sessionDir(repository, id) + "/data" }

// statePath holds the state of the digest after so many bytes, so that what has come
// is not read again.
func statePath(repository, id string, size int64) string {
	return path.Join(sessionDir(repository, id), "hashstates", "sha256", strconv.FormatInt(size, 10))
}

// writer opens an upload's data for more; one that has none yet is begun.
func (e *Engine) writer(ctx context.Context, repository, id string) (driver.FileWriter, error) {
	at := sessionData(repository, id)
	w, err := e.d.Writer(ctx, at, true)
	if absent(err) {
		w, err = e.d.Writer(ctx, at, false)
	}
	return w, err
}

// Size is how much of an upload has come.
func (e *Engine) Size(ctx context.Context, repository, id string) (int64, error) {
	const op = "look at upload"
	if e.local() {
		i, err := e.d.Stat(ctx, sessionData(repository, id))
		if absent(err) {
			return 0, nil
		}
		if err != nil {
			return 0, broken(op, id, err, hub.ErrUpload)
		}
		return i.Size(), nil
	}
	// Some drivers make what they are asked to go on with.
	if _, err := e.d.List(ctx, sessionDir(repository, id)); absent(err) {
		return 0, nil
	}
	w, err := e.d.Writer(ctx, sessionData(repository, id), true)
	if absent(err) {
		return 0, nil
	}
	if err != nil {
		return 0, broken(op, id, err, hub.ErrUpload)
	}
	n := w.Size()
	return n, broken(op, id, w.Close(), hub.ErrUpload)
}

// Append adds to an upload: at an offset, or (-1) where it ends. It gives the size
// then. What came before r failed is kept. An *OffsetError says where it goes on.
func (e *Engine) Append(ctx context.Context, repository, id string, offset int64, r io.Reader) (int64, error) {
	const op = "write upload"
	w, err := e.writer(ctx, repository, id)
	if err != nil {
		return 0, broken(op, id, err, hub.ErrUpload)
	}
	size := w.Size()
	if offset >= 0 && offset != size {
		return size, errors.Join(&OffsetError{size}, w.Close())
	}
	h, err := e.hash(ctx, repository, id, size)
	if err != nil {
		return size, errors.Join(err, w.Close())
	}
	n, failed, err := copyBoth(w, h, r)
	size += n
	if err := errors.Join(err, w.Close()); err != nil {
		return size, broken(op, id, err, hub.ErrUpload)
	}
	if n > 0 {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err == nil {
			err = e.d.PutContent(ctx, statePath(repository, id, size), state)
		}
		if err != nil {
			return size, broken(op, id, err, hub.ErrUpload)
		}
	}
	var known *api.Error
	if failed == nil || errors.As(failed, &known) {
		return size, failed
	}
	return size, &api.Error{Kind: api.Canceled, Op: op, Object: id, Reason: "the client's connection broke", Err: failed, Next: "go on with the upload"}
}

// copyBoth writes what comes to the storage, and what was written to the digest. It
// tells the reader's failure from the storage's.
func copyBoth(w io.Writer, h hash.Hash, r io.Reader) (n int64, failed, err error) {
	buffer := make([]byte, 256<<10)
	for {
		got, failed := r.Read(buffer)
		if got > 0 {
			if _, err := w.Write(buffer[:got]); err != nil {
				return n, nil, err
			}
			_, _ = h.Write(buffer[:got])
			n += int64(got)
		}
		if errors.Is(failed, io.EOF) {
			return n, nil, nil
		}
		if failed != nil {
			return n, failed, nil
		}
	}
}

// hash is what an upload's digest is at, after size bytes.
func (e *Engine) hash(ctx context.Context, repository, id string, size int64) (hash.Hash, error) {
	h := sha256.New()
	if size == 0 {
		return h, nil
	}
	state, err := e.d.GetContent(ctx, statePath(repository, id, size))
	if err == nil && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state) == nil {
		return h, nil
	}
	// The process ended while it wrote. What is there is read, where the storage gives it.
	h.Reset()
	r, err := e.d.Reader(ctx, sessionData(repository, id), 0)
	if err != nil {
		return nil, broken("go on with upload", id, err, hub.ErrUpload)
	}
	defer r.Close()
	n, err := io.Copy(h, r)
	if err == nil && n != size {
		err = &api.Error{Kind: api.NotFound, Op: "go on with upload", Object: id, Reason: "the storage does not give back what has come", Next: "begin anew", Err: hub.ErrUpload}
	}
	return h, broken("go on with upload", id, err, hub.ErrUpload)
}

// Check says how long an upload that has ended is, and that it has a digest: Damaged
// if not, and then it is gone.
func (e *Engine) Check(ctx context.Context, repository, id string, d digest.Digest) (int64, error) {
	const op = "end upload"
	w, err := e.writer(ctx, repository, id)
	if err != nil {
		return 0, broken(op, id, err, hub.ErrUpload)
	}
	size := w.Size()
	h, err := e.hash(ctx, repository, id, size)
	if err != nil {
		return size, errors.Join(err, w.Close())
	}
	if got := digest.NewDigest(digest.SHA256, h); got != d {
		wrong := &api.Error{Kind: api.Damaged, Op: op, Object: string(d), Reason: "what came does not have that digest", Next: "send it again"}
		_ = errors.Join(w.Close(), e.Cancel(ctx, repository, id)) // the sweep removes what stays
		return size, wrong
	}
	if err := errors.Join(w.Commit(ctx), w.Close()); err != nil {
		return size, broken(op, id, err, hub.ErrUpload)
	}
	return size, nil
}

// Store moves the bytes of an upload that was checked to where they stay, and ends it.
// What is there already stays, unless it is to be replaced or has another length.
func (e *Engine) Store(ctx context.Context, repository, id string, d digest.Digest, size int64, replace bool) error {
	const op = "end upload"
	there, err := e.d.Stat(ctx, blobPath(d))
	switch {
	case err == nil && !replace && there.Size() == size:
	case err != nil && !absent(err):
		return broken(op, id, err, hub.ErrUpload)
	case size == 0:
		err = e.d.PutContent(ctx, blobPath(d), nil)
	default:
		err = e.d.Move(ctx, sessionData(repository, id), blobPath(d))
	}
	if err != nil {
		return broken(op, id, err, hub.ErrUpload)
	}
	if err := e.Link(ctx, repository, nil, []digest.Digest{d}); err != nil {
		return err
	}
	return e.remove(ctx, op, sessionDir(repository, id))
}

// Cancel removes an upload; gone already is success.
func (e *Engine) Cancel(ctx context.Context, repository, id string) error {
	if !e.local() { // a bucket keeps what was not ended apart
		if w, err := e.d.Writer(ctx, sessionData(repository, id), true); err == nil {
			_ = errors.Join(w.Cancel(ctx), w.Close())
		}
	}
	return e.remove(ctx, "end upload", sessionDir(repository, id))
}
