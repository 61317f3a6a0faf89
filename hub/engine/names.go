package engine

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/hub"
)

func layerLink(repository string, d digest.Digest) string {
	return path.Join(repositories, repository, "_layers", d.Algorithm().String(), d.Encoded(), "link")
}

func revisionLink(repository string, d digest.Digest) string {
	return path.Join(repositories, repository, "_manifests/revisions", d.Algorithm().String(), d.Encoded(), "link")
}

func tagDir(repository, name string) string {
	return path.Join(repositories, repository, "_manifests/tags", name)
}

// Link writes that a repository has manifests and blobs, for stock registries.
func (e *Engine) Link(ctx context.Context, repository string, manifests, blobs []digest.Digest) error {
	for _, d := range blobs {
		if err := ctx.Err(); err != nil { // a directory does not look
			return broken("link blob", string(d), err, hub.ErrBlob)
		}
		if err := e.d.PutContent(ctx, layerLink(repository, d), []byte(d)); err != nil {
			return broken("link blob", string(d), err, hub.ErrBlob)
		}
	}
	for _, d := range manifests {
		if err := e.d.PutContent(ctx, revisionLink(repository, d), []byte(d)); err != nil {
			return broken("link manifest", string(d), err, hub.ErrManifest)
		}
	}
	return nil
}

// Unlink takes back what Link wrote.
func (e *Engine) Unlink(ctx context.Context, repository string, manifests, blobs []digest.Digest) error {
	var failed error
	for _, d := range blobs {
		failed = errors.Join(failed, e.remove(ctx, "unlink blob", path.Dir(layerLink(repository, d))))
	}
	for _, d := range manifests {
		failed = errors.Join(failed, e.remove(ctx, "unlink manifest", path.Dir(revisionLink(repository, d))))
	}
	return broken("unlink", repository, failed, hub.ErrBlob)
}

// Tag writes where a name points; "" is nowhere.
func (e *Engine) Tag(ctx context.Context, repository, name string, d digest.Digest) error {
	if d == "" {
		return e.remove(ctx, "remove name", tagDir(repository, name))
	}
	return broken("write name", name, e.d.PutContent(ctx, tagDir(repository, name)+"/current/link", []byte(d)), hub.ErrManifest)
}

// Forget removes what was kept of a repository's names and links. Others whose names
// begin with its own stay, and so do uploads.
func (e *Engine) Forget(ctx context.Context, repository string) error {
	at := path.Join(repositories, repository)
	return errors.Join(e.remove(ctx, "forget repository", at+"/_manifests"), e.remove(ctx, "forget repository", at+"/_layers"))
}

// Names lists every repository and name that is written in the storage, in no order.
func (e *Engine) Names(ctx context.Context, each func(repository, name string, d digest.Digest) error) error {
	const op = "list names"
	err := e.d.Walk(ctx, repositories, func(i driver.FileInfo) error {
		at := strings.TrimPrefix(i.Path(), repositories+"/")
		if i.IsDir() {
			switch path.Base(at) {
			case "_uploads", "_layers", "revisions", "index":
				if strings.Contains(at, "/_") {
					return driver.ErrSkipDir
				}
			}
			return nil
		}
		repository, rest, ok := strings.Cut(at, "/_manifests/tags/")
		name, ok2 := strings.CutSuffix(rest, "/current/link")
		if !ok || !ok2 || strings.Contains(name, "/") {
			return nil
		}
		text, err := e.d.GetContent(ctx, i.Path())
		if err != nil {
			return err
		}
		d, err := digest.Parse(strings.TrimSpace(string(text)))
		if err != nil {
			d = "" // it cannot be read: the caller says so
		}
		return each(repository, name, d)
	})
	if absent(err) {
		return nil
	}
	return broken(op, "", err, hub.ErrManifest)
}

// Blobs lists every digest under which something is kept, in no order.
func (e *Engine) Blobs(ctx context.Context, each func(d digest.Digest, size int64) error) error {
	err := e.d.Walk(ctx, blobsDir, func(i driver.FileInfo) error {
		dir, file := path.Split(i.Path())
		d := digest.NewDigestFromEncoded(digest.SHA256, path.Base(dir))
		if i.IsDir() || file != "data" || d.Validate() != nil {
			return nil
		}
		return each(d, i.Size())
	})
	if absent(err) {
		return nil
	}
	return broken("list blobs", "", err, hub.ErrBlob)
}

// Uploads lists every upload on its way, in no order.
func (e *Engine) Uploads(ctx context.Context, each func(repository, id string) error) error {
	seen := map[string]bool{}
	err := e.d.Walk(ctx, repositories, func(i driver.FileInfo) error {
		at := strings.TrimPrefix(i.Path(), repositories+"/")
		if i.IsDir() && (path.Base(at) == "_layers" || path.Base(at) == "_manifests") {
			return driver.ErrSkipDir
		}
		repository, rest, ok := strings.Cut(at, "/_uploads/")
		if !ok {
			return nil
		}
		id, _, _ := strings.Cut(rest, "/")
		if seen[repository+" "+id] {
			return nil
		}
		seen[repository+" "+id] = true
		return each(repository, id)
	})
	if absent(err) {
		return nil
	}
	return broken("list uploads", "", err, hub.ErrUpload)
}

// Mirror writes a name as the database has it.
func (e *Engine) Mirror(ctx context.Context, m hub.Mirrored) error {
	if m.Gone {
		return e.Forget(ctx, m.Repository)
	}
	if err := e.Link(ctx, m.Repository, m.Manifests, m.Blobs); err != nil {
		return err
	}
	return e.Tag(ctx, m.Repository, m.Name, m.Digest)
}
