//go:build root

package powerloss

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs"
	"github.com/drover-data/drover/storage/dir"
	"github.com/drover-data/drover/storage/loopfile"
)

func exists(err error) bool { return api.Is(err, api.Exists) }

var (
	v = storage.HeadKey{Volume: "v", Branch: "main"}
	w = storage.HeadKey{Volume: "w", Branch: "main"} // the volume at a move's target
)

func rigs() []rig {
	openDir := func(ctx context.Context, path string, create bool) (storage.Backend, error) {
		b, err := dir.New(dir.Config{Dir: path})
		if err == nil && create {
			err = errors.Join(os.Mkdir(path, 0o700), b.Init(ctx), flush(filepath.Dir(path)))
		}
		return b, err
	}
	return []rig{
		{
			name: "btrfs", mkfs: []string{"mkfs.btrfs", "-q", "--metadata", "dup"}, options: "noatime", size: 384 << 20, steps: btrfsSteps,
			open: func(ctx context.Context, path string, create bool) (storage.Backend, error) {
				b, err := btrfs.New(btrfs.Config{Dir: path})
				if err == nil && create {
					err = errors.Join(os.Mkdir(path, 0o700), b.Init(ctx))
				}
				return b, err
			},
		},
		{name: "dir on xfs", mkfs: []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, size: 320 << 20, open: openDir, steps: dirSteps},
		{name: "dir on ext4", mkfs: []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, size: 192 << 20, open: openDir, steps: dirSteps},
	}
}

func flush(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// btrfsSteps is the life of a volume at a move's source (v) and at its target
// (w), and of a copy that arrives by the portable stream.
func btrfsSteps(t *testing.T) []step {
	full, delta, format := streams(t)
	return slices.Concat(
		[]step{
			makeHead(v, "", "epoch 1"), writeTo(v, "a", 500<<10), noteOf(v, "epoch 1, labelled"), makeSnapshot(v, "s1"),
			writeTo(v, "b", 70<<10), makeSnapshot(v, "s2"),
		},
		receive(storage.ReceiveSpec{Volume: "w", ID: "s1", Note: []byte("of s1")}, format, full),
		receive(storage.ReceiveSpec{Volume: "w", ID: "s2", Base: "s1", Note: []byte("of s2")}, format, delta),
		[]step{
			noteOf(v, "released at epoch 1"), makeHead(w, "s2", "epoch 2"), destroyHead(v),
			{name: "resize", do: func(ctx context.Context, b storage.Backend) error {
				return b.(storage.Sizer).Resize(ctx, w, 64<<20)
			}},
			writeTo(w, "c", 10<<10), destroySnapshot("v", "s1"),
		},
		arrive(storage.ReceiveSpec{Volume: "v", ID: "p1", Base: "s2", Stream: "p", Note: []byte("p")}),
		[]step{makeHead(v, "p1", "epoch 3"), destroySnapshot("w", "s1"), destroyHead(w)},
	)
}

func dirSteps(*testing.T) []step {
	return slices.Concat(
		[]step{
			makeHead(v, "", "epoch 1"), writeTo(v, "a", 500<<10), noteOf(v, "epoch 1, labelled"), makeSnapshot(v, "s1"),
			writeTo(v, "b", 70<<10),
		},
		arrive(storage.ReceiveSpec{Volume: "w", ID: "s1", Stream: "p", Note: []byte("of s1")}),
		arrive(storage.ReceiveSpec{Volume: "w", ID: "s2", Base: "s1", Stream: "p", Note: []byte("of s2")}),
		[]step{
			noteOf(v, "released at epoch 1"),
			{name: "seal", do: func(ctx context.Context, b storage.Backend) error {
				_, err := b.(storage.Sealer).Seal(ctx, v, "s3", []byte("sealed"))
				return err
			}},
			{name: "unseal", do: func(ctx context.Context, b storage.Backend) error {
				_, err := b.(storage.Sealer).Unseal(ctx, "v", "s3", v)
				return err
			}},
			makeHead(w, "s2", "epoch 2"), destroyHead(v), destroySnapshot("v", "s1"),
			{name: "resize", do: func(ctx context.Context, b storage.Backend) error {
				return b.(storage.Sizer).Resize(ctx, w, 64<<20)
			}},
			writeTo(w, "c", 10<<10), destroySnapshot("w", "s1"), destroyHead(w),
		},
	)
}

// streams gives a full stream, one of the changes on it, and their format, from another pool.
func streams(t *testing.T) (full, delta []byte, format string) {
	t.Helper()
	base := t.TempDir()
	cfg := loopfile.Config{File: filepath.Join(base, "img"), Dir: filepath.Join(base, "mnt"), Size: loopfile.MinSize}
	t.Cleanup(func() {
		if err := loopfile.Detach(context.Background(), cfg); err != nil {
			t.Error(err)
		}
	})
	if err := loopfile.Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b, err := btrfs.New(btrfs.Config{Dir: cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, st := range []step{makeHead(w, "", ""), writeTo(w, "a", 900<<10), makeSnapshot(w, "s1"), writeTo(w, "b", 600<<10), makeSnapshot(w, "s2")} {
		if err := st.do(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	send := func(id, from string) []byte {
		r, err := b.Send(t.Context(), storage.SendSpec{Volume: "w", ID: id, Base: from, Format: b.Format()})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return send("s1", ""), send("s2", "s1"), b.Format()
}

// cutEverywhere cuts the power behind each flush of each step, with nothing
// kept that was not flushed, and at random moments with an arbitrary part kept.
func cutEverywhere(t *testing.T, r rig, seed uint64, share float64, random int) {
	d, place := New(t, r.size), t.TempDir()
	steps := r.steps(t)
	tape, moments := r.record(t, d, place, steps)
	rng := rand.New(rand.NewPCG(seed, 1))
	tries := 0
	for i, m := range moments {
		// The moment of the acknowledgement itself always belongs to it: what
		// was acknowledged just now is the likeliest to be lost.
		at := []int{m.end}
		for _, f := range tape.Flushes(t, m.begin) {
			if f < m.end && rng.Float64() < share {
				at = append(at, f)
			}
		}
		for _, n := range at {
			r.try(t, tape, place, steps, moments, i, n, Drop, 0, rng.IntN(8) == 0)
			tries++
		}
		for range random {
			n := m.begin + rng.IntN(m.end-m.begin+1)
			r.try(t, tape, place, steps, moments, i, n, Reorder, rng.Uint64(), rng.IntN(8) == 0)
			tries++
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d steps, %d events, the power was cut %d times (seed %d)", len(steps), tape.End, tries, seed)
}

func TestPoolsLosePower(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) { cutEverywhere(t, r, 1, 0.3, 1) })
	}
}
