//go:build root

package transfer_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs"
	"github.com/drover-data/drover/storage/dir"
	"github.com/drover-data/drover/transfer"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/treetest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// loopFS mounts a new file system on a file.
func loopFS(t *testing.T, mkfs ...string) string {
	t.Helper()
	top := t.TempDir()
	img, at := filepath.Join(top, "img"), filepath.Join(top, "fs")
	f, err := os.Create(img)
	must(t, err)
	err = f.Truncate(1 << 30)
	f.Close()
	must(t, err)
	for _, args := range [][]string{append(mkfs, img), {"mkdir", at}, {"mount", "-o", "loop", img, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	pool := filepath.Join(at, "pool")
	must(t, os.Mkdir(pool, 0o700))
	return pool
}

// kinds make a new pool each.
var kinds = []struct {
	name string
	open func(t *testing.T) storage.Backend
}{
	{"btrfs", func(t *testing.T) storage.Backend {
		b, err := btrfs.New(btrfs.Config{Dir: loopFS(t, "mkfs.btrfs", "-q", "-f")})
		must(t, err)
		t.Cleanup(func() { b.Close() })
		must(t, b.Init(t.Context()))
		return b
	}},
	{"dir on xfs", func(t *testing.T) storage.Backend { return openDir(t, loopFS(t, "mkfs.xfs", "-q")) }},
	{"dir on ext4", func(t *testing.T) storage.Backend {
		return openDir(t, loopFS(t, "mkfs.ext4", "-q", "-F", "-I", "1024"))
	}},
}

func openDir(t *testing.T, at string) storage.Backend {
	b, err := dir.New(dir.Config{Dir: at})
	must(t, err)
	t.Cleanup(func() { b.Close() })
	must(t, b.Init(t.Context()))
	return b
}

// cutting is a connection that breaks after so many bytes were written.
type cutting struct {
	net.Conn
	left *atomic.Int64
}

func (c cutting) Write(p []byte) (int, error) {
	if left := c.left.Add(-int64(len(p))); left < 0 {
		n, _ := c.Conn.Write(p[:max(0, int64(len(p))+left)])
		c.Close()
		return n, io.ErrClosedPipe
	}
	return c.Conn.Write(p)
}

// bring brings a snapshot over connections of which the first ones break.
func bring(t *testing.T, from, to storage.Backend, id string, size int64, cuts int) transfer.Result {
	t.Helper()
	result, err := send(t, from, to, id, size, cuts, false)
	must(t, err)
	return result
}

func send(t *testing.T, from, to storage.Backend, id string, size int64, cuts int, allowLoss bool) (transfer.Result, error) {
	t.Helper()
	target := &transfer.Target{
		Pool:     func(string) (storage.Backend, error) { return to, nil },
		Permit:   func(context.Context, string, transfer.Offer) error { return nil },
		Portable: tree.Streams{},
	}
	info, err := from.Info(t.Context())
	must(t, err)
	served := make(chan struct{}, 100)
	opened := 0
	source := &transfer.Source{Backend: from, Portable: tree.Streams{}, Dial: func(ctx context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			_ = target.Serve(context.WithoutCancel(ctx), there, "peer")
			served <- struct{}{}
		}()
		opened++
		left := &atomic.Int64{}
		left.Store(1 << 60)
		if opened <= cuts {
			left.Store(2000 + rand.Int64N(max(size/2, 1)))
		}
		return cutting{here, left}, nil
	}}
	result, err := source.Send(t.Context(), transfer.Job{Offer: transfer.Offer{Volume: "v", Branch: "main", Pool: "p", Snapshot: id, Fidelity: info.Fidelity, AllowLoss: allowLoss, Stream: "test"}})
	for range opened {
		<-served
	}
	return result, err
}

func find(t *testing.T, b storage.Backend, id string) storage.Snapshot {
	t.Helper()
	list, err := b.Snapshots(t.Context(), "v")
	must(t, err)
	for _, s := range list {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("there is no snapshot %s", id)
	return storage.Snapshot{}
}

// TestBetweenPools moves a volume with everything in it there and back, first
// in full and then by what changed, over connections that break.
func TestBetweenPools(t *testing.T) {
	const bulk = 40 << 20
	key := storage.HeadKey{Volume: "v", Branch: api.MainBranch}
	for _, a := range kinds {
		for _, b := range kinds {
			if a.name == "btrfs" && b.name == "btrfs" {
				continue // native streams: the suite's
			}
			t.Run(a.name+" to "+b.name, func(t *testing.T) {
				pools := []storage.Backend{a.open(t), b.open(t)}
				from := ""
				for round := range 4 {
					src, dst := pools[round%2], pools[(round+1)%2]
					must(t, src.DestroyHead(t.Context(), key))
					h, err := src.CreateHead(t.Context(), storage.HeadSpec{Key: key, From: from})
					must(t, err)
					if round == 0 {
						treetest.Populate(t, h.Dir)
						noise := make([]byte, bulk)
						r := rand.New(rand.NewPCG(3, 4))
						for i := range noise {
							noise[i] = byte(r.Uint32())
						}
						must(t, os.WriteFile(filepath.Join(h.Dir, "bulk"), noise, 0o600))
					} else {
						treetest.Change(t, h.Dir, round)
					}
					from = fmt.Sprint("s", round)
					s, err := src.Snapshot(t.Context(), key, from, nil)
					must(t, err)
					size, cuts := int64(bulk), 3
					if round > 0 {
						size, cuts = 8_000, 2
					}
					result := bring(t, src, dst, from, size, cuts)
					if result.Route.Format != repo.Portable || (result.Route.Base != "") != (round > 0) {
						t.Fatalf("the route was %+v", result.Route)
					}
					if result.Attempts <= 1 || result.Resent > 64<<20 {
						t.Fatalf("%d attempts, %d bytes sent twice", result.Attempts, result.Resent)
					}
					if round > 0 && result.Sent > 2<<20 {
						t.Fatalf("a small change took %d bytes", result.Sent)
					}
					t.Logf("round %d: %d bytes in %d attempts, %d twice", round, result.Sent, result.Attempts, result.Resent)
					compare(t, s.Dir, find(t, dst, from).Dir, storage.Full())
				}
			})
		}
	}
}

// TestPoorPool: what a pool cannot keep is refused, or kept beside the data,
// travels on by a native stream too, and is there again on a pool that can.
func TestPoorPool(t *testing.T) {
	key := storage.HeadKey{Volume: "v", Branch: api.MainBranch}
	rich := kinds[0].open(t)
	// Inodes of 128 bytes: times in seconds, up to the year 2038.
	poor := openDir(t, loopFS(t, "mkfs.ext4", "-q", "-F", "-I", "128"))
	info, err := poor.Info(t.Context())
	must(t, err)
	if info.Fidelity.TimeGrain != time.Second || info.Fidelity.TimeMax == 0 {
		t.Fatalf("the poor pool keeps %+v", info.Fidelity)
	}
	h, err := rich.CreateHead(t.Context(), storage.HeadSpec{Key: key})
	must(t, err)
	treetest.Populate(t, h.Dir)
	s0, err := rich.Snapshot(t.Context(), key, "s0", nil)
	must(t, err)
	if _, err := send(t, rich, poor, "s0", 0, 0, false); !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "times") {
		t.Fatalf("what would be lost was not refused: %v", err)
	}
	if _, err := send(t, rich, poor, "s0", 500_000, 2, true); err != nil {
		t.Fatal(err)
	}
	compare(t, s0.Dir, find(t, poor, "s0").Dir, info.Fidelity)
	// There it is changed, and goes to a third pool, by the difference and in full.
	_, err = poor.CreateHead(t.Context(), storage.HeadSpec{Key: key, From: "s0"})
	must(t, err)
	_, err = poor.Snapshot(t.Context(), key, "s1", nil)
	must(t, err)
	third := kinds[1].open(t)
	bring(t, poor, third, "s1", 0, 0)
	compare(t, s0.Dir, find(t, third, "s1").Dir, storage.Full())
	bring(t, poor, rich, "s1", 0, 0)
	compare(t, s0.Dir, find(t, rich, "s1").Dir, storage.Full())
}

func compare(t *testing.T, a, b string, f storage.Fidelity) {
	t.Helper()
	differ, err := tree.Compare(a, b, f)
	must(t, err)
	if len(differ) > 0 {
		t.Fatalf("the copies differ: %v", differ[:min(len(differ), 5)])
	}
}
