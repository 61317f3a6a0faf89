package dir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/storagetest"
)

func newPool(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// options are the suite's for this backend.
func options() storagetest.Options {
	return storagetest.Options{
		RootWrites: true,
		Mounts:     false,
		Reopen: func(t *testing.T, old storage.Backend) storage.Backend {
			b, err := New(old.(*Backend).cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b
		},
		Strange: func(t *testing.T, b storage.Backend) string {
			dir := filepath.Join(b.(*Backend).cfg.Dir, "heads", "v", "stranger")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		},
		Gone: func(t *testing.T, b storage.Backend) {
			dir := b.(*Backend).cfg.Dir
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o700); err != nil { // the empty mount point
				t.Fatal(err)
			}
		},
	}
}

func poolDir(t *testing.T, parent string) string {
	t.Helper()
	dir := filepath.Join(parent, "pool")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBackend(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Backend {
		return newPool(t, Config{Dir: poolDir(t, t.TempDir())})
	}, options())
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Init(t.Context()); !api.Is(err, api.Exists) {
		t.Fatalf("a directory that holds something became a pool: %v", err)
	}
	if _, err := New(Config{Dir: "relative"}); !api.Is(err, api.Invalid) {
		t.Fatalf("a relative path was taken: %v", err)
	}
}

func TestSeal(t *testing.T) {
	b := newPool(t, Config{Dir: poolDir(t, t.TempDir())})
	key := storage.HeadKey{Volume: "v", Branch: "main"}
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: key, Note: []byte("n")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(h.Dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := b.Seal(t.Context(), key, "s1", []byte("sealed"))
		if err != nil || string(s.Note) != "sealed" {
			t.Fatalf("Seal gave %+v, %v", s, err)
		}
		after, err := os.Stat(filepath.Join(s.Dir, "f"))
		if err != nil || !os.SameFile(before, after) {
			t.Fatalf("Seal copied: %v", err)
		}
		if _, err := b.Head(t.Context(), key); !api.Is(err, api.NotFound) {
			t.Fatalf("the head is still there: %v", err)
		}
	}
	for range 2 {
		h, err := b.Unseal(t.Context(), "v", "s1", key)
		if err != nil || string(h.Note) != "n" {
			t.Fatalf("Unseal gave %+v, %v", h, err)
		}
	}
	if list, err := b.Snapshots(t.Context(), "v"); err != nil || len(list) != 0 {
		t.Fatalf("after Unseal there are %+v, %v", list, err)
	}
}
