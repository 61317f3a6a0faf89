package memory_test

import (
	"fmt"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/memory"
	"github.com/drover-data/drover/storage/storagetest"
)

// content lets the suite reach the trees, which have no directories.
type content struct{}

func (content) WriteHead(b storage.Backend, h storage.Head, f storagetest.Files) error {
	return b.(*memory.Backend).Put(h.Key, f)
}

func (content) ReadHead(b storage.Backend, h storage.Head) (storagetest.Files, error) {
	f, err := b.(*memory.Backend).Files(h.Key)
	return f, err
}

func (content) ReadSnapshot(b storage.Backend, s storage.Snapshot) (storagetest.Files, error) {
	f, err := b.(*memory.Backend).SnapshotFiles(s.Volume, s.ID)
	return f, err
}

func (content) WriteStage(s storage.Stage, f storagetest.Files) error {
	s.(*memory.Stage).Put(f)
	return nil
}

func (content) ReadStage(s storage.Stage) (storagetest.Files, error) {
	return s.(*memory.Stage).Files(), nil
}

func TestBackend(t *testing.T) {
	n := 0
	storagetest.Run(t, func(*testing.T) storage.Backend {
		n++
		return memory.New(memory.Config{Name: fmt.Sprintf("mem%d", n)})
	}, storagetest.Options{
		Content: content{},
		Reopen:  func(_ *testing.T, old storage.Backend) storage.Backend { return old.(*memory.Backend).Reopen() },
		Strange: func(_ *testing.T, b storage.Backend) string {
			b.(*memory.Backend).AddStrange("/mem/x")
			return "/mem/x"
		},
		Gone: func(_ *testing.T, b storage.Backend) { b.(*memory.Backend).SetState(api.PoolGone) },
	})
}

// growing reaches the trees of a Growing.
type growing struct{ content }

func (c growing) WriteHead(b storage.Backend, h storage.Head, f storagetest.Files) error {
	return c.content.WriteHead(b.(*memory.Growing).Backend, h, f)
}

func (c growing) ReadHead(b storage.Backend, h storage.Head) (storagetest.Files, error) {
	return c.content.ReadHead(b.(*memory.Growing).Backend, h)
}

func (c growing) ReadSnapshot(b storage.Backend, s storage.Snapshot) (storagetest.Files, error) {
	return c.content.ReadSnapshot(b.(*memory.Growing).Backend, s)
}

func TestGrowing(t *testing.T) {
	n := 0
	storagetest.Run(t, func(*testing.T) storage.Backend {
		n++
		return &memory.Growing{Backend: memory.New(memory.Config{Name: fmt.Sprintf("grow%d", n), Capacity: 1 << 30}), Host: func() int64 { return 2 << 30 }}
	}, storagetest.Options{
		Content: growing{},
		Reopen:  func(_ *testing.T, old storage.Backend) storage.Backend { return old.(*memory.Growing).Reopen() },
	})
}

func TestMounts(t *testing.T) {
	b := memory.New(memory.Config{})
	ctx := t.Context()
	k := storage.HeadKey{Volume: "v", Branch: "main"}
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: k}); err != nil {
		t.Fatal(err)
	}
	if err := b.Mount(ctx, k, "/m"); err != nil {
		t.Fatal(err)
	}
	b.SetOpen(k, true)
	if err := b.Unmount(ctx, k, "/m"); !api.Is(err, api.InUse) {
		t.Fatalf("Unmount of an open head: %v", err)
	}
	if err := b.DestroyHead(ctx, k); !api.Is(err, api.InUse) {
		t.Fatalf("DestroyHead of a mounted head: %v", err)
	}
	b.Reboot()
	if err := b.DestroyHead(ctx, k); err != nil {
		t.Fatalf("DestroyHead after a reboot: %v", err)
	}
}

func TestStates(t *testing.T) {
	b := memory.New(memory.Config{Capacity: 100})
	ctx := t.Context()
	k := storage.HeadKey{Volume: "v", Branch: "main"}
	if _, err := b.CreateHead(ctx, storage.HeadSpec{Key: k}); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(k, memory.Files{"x": string(make([]byte, 200))}); !api.Is(err, api.Exhausted) {
		t.Fatalf("a write beyond the capacity: %v", err)
	}
	b.SetState(api.PoolReadOnly)
	if err := b.SetNote(ctx, k, nil); !api.Is(err, api.ReadOnly) {
		t.Fatalf("SetNote in a read-only pool: %v", err)
	}
	if _, err := b.Head(ctx, k); err != nil {
		t.Fatalf("Head in a read-only pool: %v", err)
	}
}

func TestDir(t *testing.T) {
	n := 0
	storagetest.Run(t, func(*testing.T) storage.Backend {
		n++
		return memory.NewDir(memory.Config{Name: fmt.Sprintf("dir%d", n)})
	}, storagetest.Options{
		Content: dirContent{},
		Reopen:  func(_ *testing.T, old storage.Backend) storage.Backend { return old.(*memory.Dir).Reopen() },
		Gone:    func(_ *testing.T, b storage.Backend) { b.(*memory.Dir).Pool.SetState(api.PoolGone) },
	})
}

// dirContent is content for a *memory.Dir.
type dirContent struct{ content }

func (dirContent) WriteHead(b storage.Backend, h storage.Head, f storagetest.Files) error {
	return b.(*memory.Dir).Pool.Put(h.Key, f)
}

func (dirContent) ReadHead(b storage.Backend, h storage.Head) (storagetest.Files, error) {
	f, err := b.(*memory.Dir).Pool.Files(h.Key)
	return f, err
}

func (dirContent) ReadSnapshot(b storage.Backend, s storage.Snapshot) (storagetest.Files, error) {
	f, err := b.(*memory.Dir).Pool.SnapshotFiles(s.Volume, s.ID)
	return f, err
}
