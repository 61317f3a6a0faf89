// Package engine keeps the hub's bytes with the storage drivers of the
// distribution registry, in that registry's own layout, so that a stock registry can
// serve the same storage. It does not know whose the bytes are, nor whether anybody
// may see them: the database decides that before it is asked.
//
// Bytes lie under their digest once for all repositories, and are read there. What
// the layout keeps for each repository (links to blobs and manifests, tags) is written
// for stock registries and for a rebuild, and never read otherwise: a fork is rows of the
// database, and its links come later.
package engine

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/azure" // azure://
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // a directory
	_ "github.com/distribution/distribution/v3/registry/storage/driver/gcs"        // gs://
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"   // tests
	_ "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"     // s3://
	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// Options say where bytes are kept.
type Options struct {
	// URL is a path or file:///path, s3://bucket/prefix, gs://bucket/prefix,
	// azure://container/prefix, or inmemory: for tests. Its query holds what else the driver of
	// that name is to know, in the words of the distribution registry's configuration
	// (region, regionendpoint, accountname, keyfile, …). Keys are better left to
	// the environment.
	URL string
}

// Engine keeps bytes.
type Engine struct{ d driver.StorageDriver }

// Open makes ready to use a storage.
func Open(ctx context.Context, o Options) (*Engine, error) {
	const op = "open the hub's storage"
	name, parameters, err := parse(o.URL)
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Err: err, Next: "give a directory, s3://bucket/prefix, gs://bucket/prefix or azure://container/prefix"}
	}
	d, err := factory.Create(ctx, name, parameters)
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: name, Err: err, Next: "see whether it is there and may be used"}
	}
	if root, ok := parameters["rootdirectory"].(string); ok && name == "filesystem" {
		d = &durably{d, root}
	}
	return &Engine{d}, nil
}

// local: bytes are in a directory of this host.
func (e *Engine) local() bool {
	_, ok := e.d.(*durably)
	return ok
}

// markPath says whose storage it is.
const markPath = base + "/drover-hub"

// Claim makes sure that a storage is that of the hub with an id: Conflict when it is
// another's. One that belongs to nobody is taken if take; otherwise it is Unavailable:
// it is not what it should be, a mount that is missing perhaps.
func (e *Engine) Claim(ctx context.Context, id string, take bool) error {
	const op = "use the hub's storage"
	text, err := e.d.GetContent(ctx, markPath)
	switch {
	case err == nil && string(text) == id:
		return nil
	case err == nil:
		return &api.Error{Kind: api.Conflict, Op: op, Reason: "it belongs to another hub's database", Next: "give the database that it belongs to, or build one from it: drover hub rebuild"}
	case !absent(err):
		return broken(op, "", err, hub.ErrBlob)
	case !take:
		return &api.Error{Kind: api.Unavailable, Op: op, Reason: "it is not the one that the database knows: nothing of the hub is there", Next: "see whether it is mounted"}
	}
	return broken(op, "", e.d.PutContent(ctx, markPath, []byte(id)), hub.ErrBlob)
}

// Reclaim gives a storage to the hub with an id, whosever it was.
func (e *Engine) Reclaim(ctx context.Context, id string) error {
	return broken("use the hub's storage", "", e.d.PutContent(ctx, markPath, []byte(id)), hub.ErrBlob)
}

var errURL = errors.New("not a URL of a storage")

func parse(at string) (name string, parameters map[string]any, err error) {
	if !strings.Contains(at, ":") {
		at = "file://" + (&url.URL{Path: at}).EscapedPath()
	}
	u, err := url.Parse(at)
	if err != nil {
		return "", nil, errURL // it may hold a secret
	}
	parameters = map[string]any{}
	for k, v := range u.Query() {
		parameters[k] = v[len(v)-1]
	}
	prefix := strings.Trim(u.Path, "/")
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return "", nil, errURL
		}
		parameters["rootdirectory"] = filepath.Clean(u.Path)
		return "filesystem", parameters, nil
	case "inmemory":
		return "inmemory", parameters, nil
	case "s3":
		name, parameters["bucket"] = "s3", u.Host
		if parameters["region"] == nil {
			parameters["region"] = "us-east-1"
		}
	case "gs":
		name, parameters["bucket"] = "gcs", u.Host
	case "azure":
		name, parameters["container"] = "azure", u.Host
	default:
		return "", nil, errURL
	}
	if u.Host == "" {
		return "", nil, errURL
	}
	if prefix != "" {
		parameters["rootdirectory"] = "/" + prefix
	}
	return name, parameters, nil
}

// The layout of the distribution registry, version 2.
const (
	base         = "/docker/registry/v2"
	blobsDir     = base + "/blobs"
	repositories = base + "/repositories"
)

func blobDir(d digest.Digest) string {
	return path.Join(blobsDir, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

func blobPath(d digest.Digest) string { return blobDir(d) + "/data" }

// Stat gives the size of what is kept under a digest.
func (e *Engine) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	i, err := e.d.Stat(ctx, blobPath(d))
	if err != nil {
		return 0, broken("find blob", string(d), err, hub.ErrBlob)
	}
	return i.Size(), nil
}

// Open reads what is kept under a digest, from an offset on, unchecked.
func (e *Engine) Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	r, err := e.d.Reader(ctx, blobPath(d), offset)
	if err != nil {
		return nil, broken("read blob", string(d), err, hub.ErrBlob)
	}
	return r, nil
}

// Read reads the whole of what is kept under a digest, at most limit bytes, and checks it:
// Damaged when it is something else.
func (e *Engine) Read(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	const op = "read blob"
	r, err := e.Open(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, broken(op, string(d), err, hub.ErrBlob)
	}
	if int64(len(text)) > limit || d.Algorithm().FromBytes(text) != d {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Object: string(d), Reason: "what is stored does not have that digest", Next: "push it again"}
	}
	return text, nil
}

// Redirect gives a URL at which the storage itself serves a blob; "" where it does not.
func (e *Engine) Redirect(r *http.Request, d digest.Digest) (string, error) {
	at, err := e.d.RedirectURL(r, blobPath(d))
	return at, broken("read blob", string(d), err, hub.ErrBlob)
}

// Put keeps bytes under their digest. What is there already stays, unless it is to be
// replaced or has another length.
func (e *Engine) Put(ctx context.Context, d digest.Digest, body []byte, replace bool) error {
	const op = "write blob"
	if d.Algorithm().FromBytes(body) != d {
		return &api.Error{Kind: api.Damaged, Op: op, Object: string(d), Reason: "what came does not have that digest", Next: "send it again"}
	}
	if !replace {
		if i, err := e.d.Stat(ctx, blobPath(d)); err == nil && i.Size() == int64(len(body)) {
			return nil
		}
	}
	return broken(op, string(d), e.d.PutContent(ctx, blobPath(d), body), hub.ErrBlob)
}

// Delete removes what is kept under a digest; gone already is success.
func (e *Engine) Delete(ctx context.Context, d digest.Digest) error {
	return e.remove(ctx, "delete blob", blobDir(d))
}

func (e *Engine) remove(ctx context.Context, op, at string) error {
	err := e.d.Delete(ctx, at)
	if absent(err) {
		return nil
	}
	return broken(op, path.Base(at), err, hub.ErrBlob)
}

func absent(err error) bool {
	var none driver.PathNotFoundError
	return errors.As(err, &none)
}

// broken makes an *api.Error of what a driver says.
func broken(op, object string, err, missing error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the hub's storage does not do it", Err: err, Next: "try again; the hub's log says more"}
	switch {
	case absent(err):
		e.Kind, e.Reason, e.Err, e.Next = api.NotFound, "it is not in the hub's storage", missing, ""
	case errors.Is(err, context.Canceled):
		e.Kind, e.Reason, e.Next = api.Canceled, "", ""
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the hub's storage is full", "make room there"
	case errors.Is(err, syscall.EROFS):
		e.Kind, e.Reason, e.Next = api.ReadOnly, "the hub's storage takes no writes", "look at its mount"
	}
	return e
}
