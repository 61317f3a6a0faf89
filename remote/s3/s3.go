// Package s3 keeps commits in a bucket of any S3-compatible endpoint: an OCI
// image layout below a prefix, with one object a name, changed conditionally
// where the endpoint can. It knows nothing of what the blobs mean.
package s3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Options say which bucket, and how it is reached.
type Options struct {
	Bucket string
	Prefix string // of all keys; "" is the whole bucket
	// Endpoint is a URL; "" is AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS.
	Endpoint string
	Region   string // "" is AWS_REGION, AWS_DEFAULT_REGION, or what the bucket says
	// Access, Secret and Session are a key that was given; when Access is empty
	// the usual AWS variables, profile files and instance roles are asked.
	Access, Secret, Session string
	Transport               http.RoundTripper // nil: one like http.DefaultTransport
	Now                     func() time.Time
	ID                      func() string // random, for marks and probes
	PartSize                int64         // 0: 8 MiB
	PageSize                int           // of lists; 0: the endpoint's
}

// Store is a prefix of a bucket.
type Store struct {
	o       Options
	url     string // bucket and prefix
	address string // the whole: with endpoint and region where they were given
	core    *minio.Core
	idle    func()

	mu    sync.Mutex
	means *means // guarded by mu; nil before it was tried out
}

// means are what an endpoint was seen to do.
type means struct {
	put    bool // If-Match and If-None-Match on PUT
	remove bool // If-Match on DELETE
}

var (
	_ remote.Store     = (*Store)(nil)
	_ remote.Collector = (*Store)(nil)
	_ remote.Marks     = (*Store)(nil)
)

const (
	maxManifest = 64 << 20
	maxTries    = 8 // of one request, with growing pauses: about six seconds
)

// query is what an address says besides bucket and prefix: whoever keeps it finds
// the same place again.
func query(o Options, endpoint *url.URL) string {
	var parts []string
	if o.Endpoint != "" {
		parts = append(parts, "endpoint="+escaped.Replace(endpoint.Scheme+"://"+endpoint.Host))
	}
	if o.Region != "" {
		parts = append(parts, "region="+url.QueryEscape(o.Region))
	}
	if len(parts) == 0 {
		return ""
	}
	return "?" + strings.Join(parts, "&")
}

// escaped leaves a URL readable within a query.
var escaped = strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", "+", "%2B")

// Open makes a client; nothing is asked of the endpoint.
func Open(o Options) (*Store, error) {
	const op = "open remote"
	o.Prefix = strings.Trim(o.Prefix, "/")
	s := &Store{o: o, url: "s3://" + o.Bucket}
	if o.Prefix != "" {
		s.url += "/" + o.Prefix
	}
	endpoint := first(o.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), "https://s3.amazonaws.com")
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: s.url, Reason: "the endpoint is not the URL of a host", Next: "give one like endpoint=https://minio.example.com:9000"}
	}
	s.address = s.url + query(o, u)
	base := o.Transport
	if base == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = 16, 2*time.Minute
		base, s.idle = t, t.CloseIdleConnections
	}
	s.core, err = minio.NewCore(u.Host, &minio.Options{
		Creds: s.credentials(), Secure: u.Scheme == "https", Transport: conditional{base}, MaxRetries: maxTries,
		Region: first(o.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
	})
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: s.url, Reason: "the endpoint cannot be used", Err: err}
	}
	if s.o.PartSize == 0 {
		s.o.PartSize = 8 << 20
	}
	return s, nil
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

func (s *Store) credentials() *credentials.Credentials {
	if s.o.Access != "" {
		return credentials.NewStaticV4(s.o.Access, s.o.Secret, s.o.Session)
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.FileAWSCredentials{},
		// On a host that is no cloud's the address of roles answers nobody.
		&credentials.IAM{Client: &http.Client{Timeout: 3 * time.Second}},
	})
}

// conditional adds what the library has no option for.
type conditional struct{ http.RoundTripper }

type ifMatch struct{}

func (c conditional) RoundTrip(r *http.Request) (*http.Response, error) {
	if etag, ok := r.Context().Value(ifMatch{}).(string); ok && r.Method == http.MethodDelete {
		r = r.Clone(r.Context())
		r.Header.Set("If-Match", `"`+etag+`"`)
	}
	return c.RoundTripper.RoundTrip(r)
}

// Info is of remote.Store.
func (s *Store) Info() remote.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return remote.Info{Kind: "s3", URL: s.address, Atomic: s.means != nil && s.means.put, MaxManifest: maxManifest}
}

// Close is of remote.Store.
func (s *Store) Close() error {
	if s.idle != nil {
		s.idle()
	}
	return nil
}

// key is where something lies in the bucket.
func (s *Store) key(parts ...string) string {
	if s.o.Prefix != "" {
		parts = append([]string{s.o.Prefix}, parts...)
	}
	return strings.Join(parts, "/")
}

func (s *Store) blob(ctx context.Context, d digest.Digest) (string, error) {
	if err := remote.CheckDigest(d); err != nil {
		return "", err
	}
	return s.key(ocispec.ImageBlobsDir, "sha256", d.Encoded()), remote.Ended(ctx, "find blob", string(d))
}

// Check is of remote.Store.
func (s *Store) Check(ctx context.Context, write bool) error {
	const op = "use remote"
	if err := remote.Ended(ctx, op, s.url); err != nil {
		return err
	}
	err := s.list(ctx, s.key("refs")+"/", 1, func(minio.ObjectInfo) error { return errEnough })
	if err != nil && !errors.Is(err, errEnough) {
		if code(err) == "NoSuchBucket" {
			return &api.Error{Kind: api.NotFound, Op: op, Object: s.url, Reason: "there is no bucket " + s.o.Bucket, Next: "make it, or check the name and the endpoint"}
		}
		return s.fail(ctx, op, s.url, err)
	}
	if write {
		_, err := s.probe(ctx)
		return err
	}
	return nil
}

var errEnough = errors.New("enough")

// list goes over the objects whose keys begin so.
func (s *Store) list(ctx context.Context, prefix string, page int, each func(minio.ObjectInfo) error) error {
	for o := range s.core.ListObjectsIter(ctx, s.o.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, MaxKeys: page}) {
		if o.Err != nil {
			return o.Err
		}
		if err := each(o); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Stat is of remote.Store.
func (s *Store) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	key, err := s.blob(ctx, d)
	if err != nil {
		return 0, err
	}
	o, err := s.core.StatObject(ctx, s.o.Bucket, key, minio.StatObjectOptions{})
	return o.Size, s.fail(ctx, "find blob", string(d), err)
}

// get opens an object from an offset on. end is the last byte that is wanted, or -1.
func (s *Store) get(ctx context.Context, key string, offset, end int64) (io.ReadCloser, minio.ObjectInfo, error) {
	var o minio.GetObjectOptions
	if end >= 0 || offset > 0 {
		if err := o.SetRange(offset, max(end, 0)); err != nil {
			return nil, minio.ObjectInfo{}, err
		}
	}
	r, info, _, err := s.core.GetObject(ctx, s.o.Bucket, key, o)
	return r, info, err
}

// Get is of remote.Store.
func (s *Store) Get(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	key, err := s.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	r, err := remote.Resume(ctx, func(offset int64) (io.ReadCloser, error) {
		r, _, err := s.get(ctx, key, offset, -1)
		return r, s.fail(ctx, "read blob", string(d), err)
	})
	if err != nil {
		return nil, err
	}
	return remote.Verify(r, d), nil
}

// GetRange is of remote.Store.
func (s *Store) GetRange(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	const op = "read blob"
	key, err := s.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	if offset < 0 || length < 0 {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: string(d), Reason: "there is nothing before its beginning"}
	}
	none := io.NopCloser(bytes.NewReader(nil))
	if length == 0 {
		_, err := s.Stat(ctx, d)
		return none, err
	}
	return remote.Resume(ctx, func(done int64) (io.ReadCloser, error) {
		if done >= length {
			return none, nil
		}
		r, _, err := s.get(ctx, key, offset+done, offset+length-1)
		if code(err) == "InvalidRange" {
			return none, nil // it ends before
		}
		return r, s.fail(ctx, op, string(d), err)
	})
}

// Manifest is of remote.Store.
func (s *Store) Manifest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, []byte, error) {
	r, err := s.Get(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return remote.ParseManifest(d, text)
}

// PutManifest is of remote.Store.
func (s *Store) PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte) error {
	return s.Put(ctx, desc, remote.Bytes(body), nil)
}

// write puts a small object. Its digest is part of what is signed, so that the
// endpoint checks it (the option's name is about another way to do that).
func (s *Store) write(ctx context.Context, key string, body []byte, o minio.PutObjectOptions) error {
	o.DisableContentSha256 = true
	_, err := s.core.PutObject(ctx, s.o.Bucket, key, bytes.NewReader(body), int64(len(body)), "", digest.FromBytes(body).Encoded(), o)
	return err
}

// Blobs is of remote.Collector. It also ends uploads in parts that nobody goes on with.
func (s *Store) Blobs(ctx context.Context, each func(remote.Blob) error) error {
	const op = "list blobs"
	if err := remote.Ended(ctx, op, ""); err != nil {
		return err
	}
	prefix := s.key(ocispec.ImageBlobsDir, "sha256") + "/"
	for up := range s.core.ListIncompleteUploads(ctx, s.o.Bucket, prefix, true) {
		if up.Err == nil && s.o.Now().Sub(up.Initiated) > remote.Grace {
			_ = s.core.AbortMultipartUpload(ctx, s.o.Bucket, up.Key, up.UploadID)
		}
	}
	var stopped error
	err := s.list(ctx, prefix, s.o.PageSize, func(o minio.ObjectInfo) error {
		d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimPrefix(o.Key, prefix))
		if d.Validate() != nil {
			return nil
		}
		stopped = each(remote.Blob{Digest: d, Size: o.Size, Time: o.LastModified})
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return s.fail(ctx, op, s.url, err)
}

// Delete is of remote.Collector.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	key, err := s.blob(ctx, d)
	if err != nil {
		return err
	}
	return s.gone(s.fail(ctx, "remove blob", string(d), s.core.RemoveObject(ctx, s.o.Bucket, key, minio.RemoveObjectOptions{})))
}

func (s *Store) gone(err error) error {
	if api.Is(err, api.NotFound) {
		return nil
	}
	return err
}

// Mark is of remote.Marks.
func (s *Store) Mark(ctx context.Context, name string) error {
	const op = "announce"
	if err := remote.Ended(ctx, op, name); err != nil {
		return err
	}
	text, err := json.Marshal(map[string]time.Time{"time": s.o.Now().UTC()})
	if err != nil {
		return err
	}
	return s.fail(ctx, op, name, s.write(ctx, s.key("leases", name), text, minio.PutObjectOptions{ContentType: "application/json"}))
}

// Unmark is of remote.Marks.
func (s *Store) Unmark(ctx context.Context, name string) error {
	const op = "withdraw"
	if err := remote.Ended(ctx, op, name); err != nil {
		return err
	}
	return s.gone(s.fail(ctx, op, name, s.core.RemoveObject(ctx, s.o.Bucket, s.key("leases", name), minio.RemoveObjectOptions{})))
}

// Marks is of remote.Marks.
func (s *Store) Marks(ctx context.Context) ([]remote.Mark, error) {
	const op = "list uploads"
	if err := remote.Ended(ctx, op, ""); err != nil {
		return nil, err
	}
	var out []remote.Mark
	prefix := s.key("leases") + "/"
	err := s.list(ctx, prefix, s.o.PageSize, func(o minio.ObjectInfo) error {
		out = append(out, remote.Mark{Name: strings.TrimPrefix(o.Key, prefix), Time: o.LastModified})
		return nil
	})
	return out, s.fail(ctx, op, s.url, err)
}

// Lease is of remote.Collector.
func (s *Store) Lease(ctx context.Context) (func(context.Context) error, error) {
	return remote.TakeLease(ctx, s, s.o.ID(), s.o.Now)
}

// Collect is of remote.Collector.
func (s *Store) Collect(ctx context.Context) (remote.Collection, error) {
	return remote.TakeCollect(ctx, s, s.o.ID(), s.o.Now)
}

// Leases is of remote.Collector.
func (s *Store) Leases(ctx context.Context) ([]time.Time, error) { return remote.LeaseTimes(ctx, s) }

// Refs is of remote.Store. Digests are not given: they would cost a call each.
func (s *Store) Refs(ctx context.Context, prefix string) ([]remote.Ref, error) {
	const op = "list names"
	if err := remote.Ended(ctx, op, ""); err != nil {
		return nil, err
	}
	var out []remote.Ref
	dir := s.key("refs") + "/"
	err := s.list(ctx, dir+prefix, s.o.PageSize, func(o minio.ObjectInfo) error {
		name := strings.TrimPrefix(o.Key, dir)
		if remote.CheckName(name) == nil && o.Size > 0 {
			out = append(out, remote.Ref{Name: name, Time: o.LastModified})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b remote.Ref) int { return strings.Compare(a.Name, b.Name) })
	return out, s.fail(ctx, op, s.url, err)
}
