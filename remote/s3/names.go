package s3

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// maxRef bounds what is read of a name's object.
const maxRef = 64 << 10

// probe tries out once which conditions the endpoint keeps: several write one
// key at once that must not be there, and one expects what is not so. Headers
// that are ignored are as bad as none.
func (s *Store) probe(ctx context.Context) (means, error) {
	const op = "try out conditions"
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.means != nil {
		return *s.means, nil
	}
	key := s.key("refs", ".probe-"+s.o.ID())
	errs := make([]error, 4)
	var g sync.WaitGroup
	for i := range errs {
		g.Go(func() { errs[i] = s.write(ctx, key, []byte{byte('a' + i)}, absent()) })
	}
	g.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !refused(err) && !unsupported(err):
			return means{}, s.fail(ctx, op, s.url, err)
		}
	}
	m := means{put: won == 1}
	if won == 0 { // the endpoint refuses conditions: is writing possible at all?
		if err := s.write(ctx, key, []byte("x"), minio.PutObjectOptions{}); err != nil {
			return m, s.fail(ctx, op, s.url, err)
		}
	}
	const wrong = "00000000000000000000000000000000"
	var o minio.PutObjectOptions
	o.SetMatchETag(wrong)
	if m.put {
		m.put = refused(s.write(ctx, key, []byte("y"), o))
	}
	if m.put {
		m.remove = refused(s.core.RemoveObject(context.WithValue(ctx, ifMatch{}, wrong), s.o.Bucket, key, minio.RemoveObjectOptions{}))
	}
	err := s.core.RemoveObject(ctx, s.o.Bucket, key, minio.RemoveObjectOptions{})
	if err != nil && code(err) != "NoSuchKey" && code(err) != "AccessDenied" { // a bucket that is only added to
		return m, s.fail(ctx, op, s.url, err)
	}
	if err := remote.Ended(ctx, op, s.url); err != nil {
		return m, err
	}
	if err := s.begin(ctx); err != nil {
		return m, s.fail(ctx, op, s.url, err)
	}
	s.means = &m
	return m, nil
}

// begin makes the prefix an image layout.
func (s *Store) begin(ctx context.Context) error {
	key := s.key(ocispec.ImageLayoutFile)
	_, err := s.core.StatObject(ctx, s.o.Bucket, key, minio.StatObjectOptions{})
	if err == nil {
		return nil
	}
	text, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return s.write(ctx, key, text, minio.PutObjectOptions{ContentType: "application/json"})
}

func absent() minio.PutObjectOptions {
	o := minio.PutObjectOptions{ContentType: "application/json"}
	o.SetMatchETagExcept("*")
	return o
}

// at is where a name is: its descriptor, and the ETag of its object. A removed
// name may have an empty object, where the endpoint cannot remove conditionally.
type at struct {
	ref  remote.Ref
	etag string // "" when there is no object
}

func (s *Store) readRef(ctx context.Context, name string) (at, error) {
	const op = "find name"
	r, info, err := s.get(ctx, s.key("refs", name), 0, -1)
	if err != nil {
		err = s.fail(ctx, op, name, err)
		if api.Is(err, api.NotFound) {
			err = nil
		}
		return at{}, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxRef))
	if err != nil {
		return at{}, s.fail(ctx, op, name, err)
	}
	a := at{remote.Ref{Name: name, Time: info.LastModified}, strings.Trim(info.ETag, `"`)}
	if len(text) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(text, &a.ref.Desc); err != nil || a.ref.Desc.Digest.Validate() != nil {
		return a, &api.Error{Kind: api.Damaged, Op: op, Object: name, Reason: s.url + " has it without a digest that can be read"}
	}
	return a, nil
}

// Ref is of remote.Store.
func (s *Store) Ref(ctx context.Context, name string) (remote.Ref, error) {
	const op = "find name"
	if err := remote.CheckName(name); err != nil {
		return remote.Ref{}, err
	}
	if err := remote.Ended(ctx, op, name); err != nil {
		return remote.Ref{}, err
	}
	a, err := s.readRef(ctx, name)
	if err == nil && a.ref.Desc.Digest == "" {
		err = &api.Error{Kind: api.NotFound, Op: op, Object: name, Reason: s.url + " does not have it"}
	}
	return a.ref, err
}

// change moves a name from where it is expected. A request whose answer was
// lost is repeated by the library and then refused, because the name is where we
// put it: so it is looked at after every refusal.
func (s *Store) change(ctx context.Context, op, name string, to, expect digest.Digest, do func(at, means) error) error {
	if err := remote.CheckName(name); err != nil {
		return err
	}
	if err := remote.Ended(ctx, op, name); err != nil {
		return err
	}
	can, err := s.probe(ctx)
	if err != nil {
		return err
	}
	for range maxTries {
		now, err := s.readRef(ctx, name)
		if err != nil {
			return err
		}
		if now.ref.Desc.Digest == to {
			return nil
		}
		if now.ref.Desc.Digest != expect {
			return remote.Moved(name, now.ref.Desc.Digest, expect)
		}
		err = do(now, can)
		if err == nil && can.put {
			return nil
		}
		if err != nil && !refused(err) {
			return s.fail(ctx, op, name, err)
		}
		if err == nil { // without conditions: at least look
			after, err := s.readRef(ctx, name)
			if err == nil && after.ref.Desc.Digest != to {
				err = remote.Moved(name, after.ref.Desc.Digest, to)
			}
			return err
		}
	}
	return &api.Error{Kind: api.Unavailable, Op: op, Object: name, Reason: s.url + " goes on refusing although nothing has changed", Next: "try again"}
}

// SetRef is of remote.Store.
func (s *Store) SetRef(ctx context.Context, name string, desc ocispec.Descriptor, expect digest.Digest) error {
	checked := false
	return s.change(ctx, "move name", name, desc.Digest, expect, func(now at, can means) error {
		if !checked {
			if _, err := s.Stat(ctx, desc.Digest); err != nil {
				return err // nothing points at what is not there
			}
			checked = true
		}
		text, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		o := minio.PutObjectOptions{ContentType: "application/json"}
		switch {
		case can.put && now.etag != "":
			o.SetMatchETag(now.etag)
		case can.put:
			o = absent()
		}
		return s.write(ctx, s.key("refs", name), text, o)
	})
}

// DeleteRef is of remote.Store. Where the endpoint removes nothing
// conditionally, an empty object takes the name's place.
func (s *Store) DeleteRef(ctx context.Context, name string, expect digest.Digest) error {
	return s.change(ctx, "remove name", name, "", expect, func(now at, can means) error {
		key := s.key("refs", name)
		var o minio.PutObjectOptions
		switch {
		case can.remove:
			err := s.core.RemoveObject(context.WithValue(ctx, ifMatch{}, now.etag), s.o.Bucket, key, minio.RemoveObjectOptions{})
			if code(err) == "NoSuchKey" {
				return nil
			}
			return err
		case can.put:
			o.SetMatchETag(now.etag)
			return s.write(ctx, key, nil, o)
		}
		return s.core.RemoveObject(ctx, s.o.Bucket, key, minio.RemoveObjectOptions{})
	})
}

// refused says that a condition was not so.
func refused(err error) bool {
	var e minio.ErrorResponse
	return errors.As(err, &e) && (e.StatusCode == 412 || e.Code == "PreconditionFailed" || e.Code == "ConditionalRequestConflict" || (e.StatusCode == 409 && e.Code == "OperationAborted"))
}

func unsupported(err error) bool {
	var e minio.ErrorResponse
	return errors.As(err, &e) && (e.StatusCode == 501 || e.Code == "NotImplemented" || e.Code == "InvalidArgument")
}
