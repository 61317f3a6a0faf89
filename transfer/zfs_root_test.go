//go:build root

package transfer_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/zfs"
	"github.com/drover-data/drover/storage/zfs/zfstest"
	"github.com/drover-data/drover/tree/treetest"
)

func TestMain(m *testing.M) { zfstest.Main(m) }

func openZFS(t *testing.T) storage.Backend {
	t.Helper()
	pool, at := zfstest.Pool(t, 1<<30)
	b, err := zfs.New(zfs.Config{Source: pool + "/drover", Dir: at})
	must(t, err)
	t.Cleanup(func() { b.Close() })
	must(t, b.Init(t.Context()))
	return b
}

// TestZFS: a volume comes from btrfs, goes there and back between two ZFS pools
// by their own streams, and comes home with all that ZFS could not keep.
func TestZFS(t *testing.T) {
	key := storage.HeadKey{Volume: "v", Branch: api.MainBranch}
	home := kinds[0].open(t)
	pools := []storage.Backend{openZFS(t), openZFS(t)}
	info, err := pools[0].Info(t.Context())
	must(t, err)
	if info.Fidelity.TimeGrain != time.Second || info.Fidelity.TimeMax == 0 {
		t.Fatalf("the ZFS pool keeps %+v", info.Fidelity)
	}
	h, err := home.CreateHead(t.Context(), storage.HeadSpec{Key: key})
	must(t, err)
	treetest.Populate(t, h.Dir)
	s0, err := home.Snapshot(t.Context(), key, "s0", nil)
	must(t, err)
	if _, err := send(t, home, pools[0], "s0", 0, 0, false); !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "times") {
		t.Fatalf("what would be lost was not refused: %v", err)
	}
	_, err = send(t, home, pools[0], "s0", 300_000, 2, true)
	must(t, err)
	compare(t, s0.Dir, find(t, pools[0], "s0").Dir, info.Fidelity)
	from := "s0"
	for round := range 4 {
		src, dst := pools[round%2], pools[(round+1)%2]
		must(t, src.DestroyHead(t.Context(), key))
		h, err := src.CreateHead(t.Context(), storage.HeadSpec{Key: key, From: from})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(h.Dir, "round"), []byte(strings.Repeat("r", 100_000)), 0o600))
		id := "z" + from
		s, err := src.Snapshot(t.Context(), key, id, nil)
		must(t, err)
		result, err := send(t, src, dst, id, 100_000, 2, false)
		must(t, err)
		if result.Route.Format == repo.Portable || (result.Route.Base != "") != (round > 0) {
			t.Fatalf("round %d took the route %+v", round, result.Route)
		}
		if result.Attempts <= 1 || round > 0 && result.Sent > 2<<20 {
			t.Fatalf("round %d: %d attempts, %d bytes", round, result.Attempts, result.Sent)
		}
		compare(t, s.Dir, find(t, dst, id).Dir, info.Fidelity)
		from = id
	}
	// pools[0] has it now, and what it could not keep has travelled along.
	bring(t, pools[0], home, from, 100_000, 1)
	back := find(t, home, from)
	must(t, home.DestroyHead(t.Context(), key))
	h, err = home.CreateHead(t.Context(), storage.HeadSpec{Key: key, From: from})
	must(t, err)
	compare(t, find(t, pools[0], from).Dir, back.Dir, info.Fidelity)
	// Without the file that was added it is what left.
	must(t, os.Remove(filepath.Join(h.Dir, "round")))
	top, err := os.Stat(s0.Dir)
	must(t, err)
	must(t, os.Chtimes(h.Dir, time.Time{}, top.ModTime()))
	compare(t, s0.Dir, h.Dir, storage.Full())
}
