package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/minio/minio-go/v7"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// partsAtOnce of one blob are on their way.
const partsAtOnce = 3

// Put is of remote.Store. A blob larger than a part is sent in parts, several
// at once; one that broke off goes on with the parts that are missing.
func (s *Store) Put(ctx context.Context, desc ocispec.Descriptor, content remote.Content, sent func(int64)) error {
	const op = "write blob"
	key, err := s.blob(ctx, desc.Digest)
	if err != nil {
		return err
	}
	name := string(desc.Digest)
	have, err := s.core.StatObject(ctx, s.o.Bucket, key, minio.StatObjectOptions{})
	if err == nil && have.Size == desc.Size {
		return nil
	}
	if err != nil {
		if err := s.fail(ctx, op, name, err); !api.Is(err, api.NotFound) {
			return err
		}
	}
	if sent == nil {
		sent = func(int64) {}
	}
	r, err := content()
	if err != nil {
		return err
	}
	defer r.Close()
	if desc.Size <= s.o.PartSize {
		body, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
		if err != nil {
			return err
		}
		if int64(len(body)) != desc.Size || desc.Digest.Algorithm().FromBytes(body) != desc.Digest {
			return wrongContent(name)
		}
		if err := s.write(ctx, key, body, minio.PutObjectOptions{ContentType: desc.MediaType}); err != nil {
			return s.fail(ctx, op, name, err)
		}
		sent(desc.Size)
		return nil
	}
	u := &upload{s: s, key: key, desc: desc, sent: sent, sum: sha256.New()}
	err = u.run(ctx, r)
	var e minio.ErrorResponse
	if errors.As(err, &e) && e.Code == "NoSuchUpload" {
		// Somebody who sends the same has ended it: then it is there.
		if have, err2 := s.core.StatObject(ctx, s.o.Bucket, key, minio.StatObjectOptions{}); err2 == nil && have.Size == desc.Size {
			return nil
		}
	}
	return s.fail(ctx, op, name, err)
}

func wrongContent(name string) error {
	return &api.Error{Kind: api.Damaged, Op: "write blob", Object: name, Reason: "what was to be written does not have that digest"}
}

// upload is a blob on its way in parts.
type upload struct {
	s    *Store
	key  string
	desc ocispec.Descriptor
	sent func(int64)
	id   string
	have map[int]minio.ObjectPart // that are there from an earlier try
	sum  hash.Hash                // of all that was read
}

func (u *upload) run(ctx context.Context, r io.Reader) error {
	if err := u.begin(ctx); err != nil {
		return err
	}
	size := u.s.o.PartSize
	count := int((u.desc.Size + size - 1) / size)
	done := make([]minio.CompletePart, count)
	g, sending := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	random, _ := r.(io.ReaderAt)
	var readErr error
	for i := range count {
		if sending.Err() != nil {
			break
		}
		off := int64(i) * size
		n := min(size, u.desc.Size-off)
		var body io.ReadSeeker
		if body, readErr = u.part(r, random, off, n); readErr != nil {
			break
		}
		etag, sha, err := u.hash(body)
		if readErr = err; err != nil {
			break
		}
		done[i] = minio.CompletePart{PartNumber: i + 1, ETag: etag}
		if old := u.have[i+1]; old.Size == n && strings.Trim(old.ETag, `"`) == etag {
			continue
		}
		g.Go(func() error {
			p, err := u.s.core.PutObjectPart(sending, u.s.o.Bucket, u.key, u.id, i+1, body, n, minio.PutObjectPartOptions{Sha256Hex: sha, DisableContentSha256: true})
			if err == nil {
				done[i].ETag = p.ETag
				u.sent(n)
			}
			return err
		})
	}
	err := g.Wait()
	if readErr != nil {
		// The reading ended it; parts that were sent are good for the next try.
		return readErr
	}
	if err != nil {
		return err
	}
	if more, _ := io.CopyN(io.Discard, tail(r, random, u.desc.Size), 1); more > 0 || hex.EncodeToString(u.sum.Sum(nil)) != u.desc.Digest.Encoded() {
		_ = u.s.core.AbortMultipartUpload(context.WithoutCancel(ctx), u.s.o.Bucket, u.key, u.id)
		return wrongContent(string(u.desc.Digest))
	}
	if err := remote.Ended(ctx, "write blob", string(u.desc.Digest)); err != nil {
		return err
	}
	_, err = u.s.core.CompleteMultipartUpload(ctx, u.s.o.Bucket, u.key, u.id, done, minio.PutObjectOptions{})
	return err
}

// tail is what comes after a blob's end.
func tail(r io.Reader, random io.ReaderAt, size int64) io.Reader {
	if random != nil {
		return io.NewSectionReader(random, size, 1)
	}
	return r
}

// part is the bytes of one, in memory only where they cannot be read again.
func (u *upload) part(r io.Reader, random io.ReaderAt, off, n int64) (io.ReadSeeker, error) {
	if random != nil {
		return io.NewSectionReader(random, off, n), nil
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = wrongContent(string(u.desc.Digest))
		}
		return nil, err
	}
	return bytes.NewReader(body), nil
}

// hash reads a part and goes back to its beginning. The MD5 is what endpoints
// use as a part's ETag: it tells a part that is there already.
func (u *upload) hash(body io.ReadSeeker) (etag, sha string, err error) {
	one, sum := sha256.New(), md5.New()
	n, err := io.Copy(io.MultiWriter(one, sum, u.sum), body)
	if err != nil {
		return "", "", err
	}
	if want, _ := body.Seek(0, io.SeekEnd); n != want {
		return "", "", wrongContent(string(u.desc.Digest))
	}
	_, err = body.Seek(0, io.SeekStart)
	return hex.EncodeToString(sum.Sum(nil)), hex.EncodeToString(one.Sum(nil)), err
}

// begin goes on with an upload that broke off, or starts one.
func (u *upload) begin(ctx context.Context) error {
	s := u.s
	list, err := s.core.ListMultipartUploads(ctx, s.o.Bucket, u.key, "", "", "", 100)
	if err == nil {
		for _, old := range list.Uploads {
			if old.Key != u.key {
				continue
			}
			if have, err := u.parts(ctx, old.UploadID); err == nil {
				u.id, u.have = old.UploadID, have
				return nil
			}
		}
	}
	if err := remote.Ended(ctx, "write blob", string(u.desc.Digest)); err != nil {
		return err
	}
	u.id, err = s.core.NewMultipartUpload(ctx, s.o.Bucket, u.key, minio.PutObjectOptions{ContentType: u.desc.MediaType})
	return err
}

func (u *upload) parts(ctx context.Context, id string) (map[int]minio.ObjectPart, error) {
	have := map[int]minio.ObjectPart{}
	for marker := 0; ; {
		list, err := u.s.core.ListObjectParts(ctx, u.s.o.Bucket, u.key, id, marker, 1000)
		if err != nil {
			return nil, err
		}
		for _, p := range list.ObjectParts {
			have[p.PartNumber] = p
		}
		if !list.IsTruncated || list.NextPartNumberMarker <= marker {
			return have, nil
		}
		marker = list.NextPartNumberMarker
	}
}
