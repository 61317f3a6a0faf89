package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func TestURLs(t *testing.T) {
	for at, want := range map[string]map[string]any{
		"/srv/hub":              {"": "filesystem", "rootdirectory": "/srv/hub"},
		"file:///srv/a%20b/":    {"": "filesystem", "rootdirectory": "/srv/a b"},
		"s3://b/x/y?region=eu":  {"": "s3", "bucket": "b", "rootdirectory": "/x/y", "region": "eu"},
		"s3://b":                {"": "s3", "bucket": "b", "region": "us-east-1"},
		"gs://b/x?keyfile=/k":   {"": "gcs", "bucket": "b", "rootdirectory": "/x", "keyfile": "/k"},
		"azure://c?accountname": {"": "azure", "container": "c", "accountname": ""},
		"":                      nil, "relative": nil, "s3://": nil, "http://x": nil, "file://host/x": nil,
	} {
		name, parameters, err := parse(at)
		if want == nil {
			if err == nil {
				t.Errorf("%q: %s %v", at, name, parameters)
			}
			continue
		}
		if err == nil {
			parameters[""] = name
		}
		if err != nil || !maps.Equal(parameters, want) {
			t.Errorf("%q: %v %v", at, parameters, err)
		}
	}
}

// TestUpload: what breaks off goes on, also without the state of the digest, and what
// is not what it should be leaves nothing.
func TestUpload(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	e, err := Open(ctx, Options{URL: dir})
	if err != nil {
		t.Fatal(err)
	}
	text := []byte(strings.Repeat("0123456789", 1000))
	d := digest.FromBytes(text)
	broken := errors.New("the line is cut")
	size, err := e.Append(ctx, "a/b", "u1", -1, io.MultiReader(bytes.NewReader(text[:3000]), iotest.ErrReader(broken)))
	if size != 3000 || !errors.Is(err, broken) || !api.Is(err, api.Canceled) {
		t.Fatal(size, err)
	}
	var at *OffsetError
	if size, err = e.Append(ctx, "a/b", "u1", 5, bytes.NewReader(text)); !errors.As(err, &at) || at.At != 3000 || size != 3000 {
		t.Fatal(size, err)
	}
	session := filepath.Join(dir, sessionDir("a/b", "u1"))
	for _, spoil := range []func() error{
		func() error { return nil },
		func() error { return os.RemoveAll(filepath.Join(session, "hashstates")) },
		func() error {
			return os.WriteFile(filepath.Join(session, "hashstates/sha256/5000"), []byte("junk"), 0o600)
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		n, err := e.Size(ctx, "a/b", "u1")
		if err != nil {
			t.Fatal(err)
		}
		if size, err = e.Append(ctx, "a/b", "u1", n, bytes.NewReader(text[n:n+1000])); size != n+1000 || err != nil {
			t.Fatal(size, err)
		}
	}
	if _, err := e.Append(ctx, "a/b", "u1", 6000, bytes.NewReader(text[6000:])); err != nil {
		t.Fatal(err)
	}
	size, err = e.Check(ctx, "a/b", "u1", d)
	if size != int64(len(text)) || err != nil {
		t.Fatal(size, err)
	}
	if _, err := e.Stat(ctx, d); !errors.Is(err, hub.ErrBlob) {
		t.Fatal(err)
	}
	if err := e.Store(ctx, "a/b", "u1", d, size, false); err != nil {
		t.Fatal(err)
	}
	if got, err := e.Read(ctx, d, 1<<20); err != nil || !bytes.Equal(got, text) {
		t.Fatal(err)
	}
	if _, err := e.Read(ctx, d, 100); !api.Is(err, api.Damaged) {
		t.Fatal(err)
	}
	if _, err := os.Stat(session); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the session stays")
	}
	if _, err := e.Append(ctx, "a/b", "u2", -1, bytes.NewReader(text[1:])); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Check(ctx, "a/b", "u2", d); !api.Is(err, api.Damaged) {
		t.Fatal(err)
	}
	if err := e.Uploads(ctx, func(repository, id string) error { return errors.New(id) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Delete(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Blobs(ctx, func(d digest.Digest, _ int64) error { return errors.New(string(d)) }); err != nil {
		t.Fatal(err)
	}
}
