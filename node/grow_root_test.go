//go:build root

package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	containers "github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs"
	"github.com/drover-data/drover/storage/loopfile"
)

// small is a host whose file system has room for one growth, with an agent and
// its default pool on it.
type small struct {
	t      *testing.T
	dir    string
	a      *agent.Agent
	events *events.Log
	seen   string // id of the last event that was waited for
	head   storage.Head
	pools  storage.Grower // the same pool, as the test sees it
	sums   map[string][sha256.Size]byte
}

func newSmall(t *testing.T) *small {
	s := &small{t: t, dir: t.TempDir(), sums: map[string][sha256.Size]byte{}, events: events.New("n", slog.New(slog.DiscardHandler), time.Now)}
	s.remount("size=600m", 0)
	t.Cleanup(func() {
		if err := loopfile.Detach(context.Background(), s.file().Config); err != nil {
			t.Error(err)
			_ = unix.Unmount(s.file().Config.Dir, unix.MNT_DETACH)
		}
		if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s.start()
	if _, err := s.a.AddPool(t.Context(), api.AddPool{Name: "default", Kind: "btrfs", Size: loopfile.MinSize}); err != nil {
		t.Fatal(err)
	}
	b, err := btrfs.New(btrfs.Config{Dir: s.file().Config.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	s.pools = b.On(s.file())
	if s.head, err = b.CreateHead(t.Context(), storage.HeadSpec{Key: storage.HeadKey{Volume: "v", Branch: "main"}}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *small) file() *loopfile.File {
	pools := filepath.Join(s.dir, "data", "pools")
	return &loopfile.File{Config: loopfile.Config{File: filepath.Join(pools, "default.img"), Dir: filepath.Join(pools, "default"), Size: loopfile.MinSize}}
}

func (s *small) remount(options string, flags uintptr) {
	s.t.Helper()
	if err := unix.Mount("drover-test", s.dir, "tmpfs", flags, options); err != nil {
		s.t.Fatal(err)
	}
}

// start runs an agent until the test is over.
func (s *small) start() {
	s.t.Helper()
	data := filepath.Join(s.dir, "data")
	var err error
	s.a, err = agent.New(agent.Config{Node: "n", DataDir: data, VolatileDir: data}, agent.Deps{
		Store: state.New(state.NewMemory()), Engine: containers.New("n", time.Now, nil), Events: s.events, Open: opener{dataDir: data}.open,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, NewID: NewID,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := s.a.Run(ctx); err != nil {
			s.t.Errorf("the agent ended: %v", err)
		}
	}()
	s.t.Cleanup(func() {
		_ = s.a.RemovePool(context.Background(), "default") // closes it
		cancel()
		<-over
	})
}

// write makes a file of random bytes, durably.
func (s *small) write(name string, n int) error {
	data := make([]byte, n)
	key := [32]byte{}
	copy(key[:], name)
	_, _ = rand.NewChaCha8(key).Read(data)
	f, err := os.Create(filepath.Join(s.head.Dir, name))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(data))
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		s.sums[name] = sha256.Sum256(data)
	} else if e := os.Remove(f.Name()); e != nil {
		s.t.Errorf("what did not fit cannot be removed: %v", e)
	}
	return err
}

// await waits for the next event of a type and gives the pool after it.
func (s *small) await(typ string) api.Pool {
	s.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		list, more := s.events.After(s.seen)
		for _, e := range list {
			s.seen = e.ID
			if e.Type == typ {
				s.t.Log(e.Message)
				return s.pool()
			}
		}
		select {
		case <-more:
		case <-limit:
			s.t.Fatalf("no event %s came; the pool is %+v", typ, s.pool())
		}
	}
}

func (s *small) pool() api.Pool {
	s.t.Helper()
	list := s.a.Pools()
	if len(list) != 1 || !list[0].Grows || list[0].State == api.PoolGone || list[0].State == api.PoolReadOnly {
		s.t.Fatalf("pools: %+v", list)
	}
	return list[0]
}

func (s *small) check() {
	s.t.Helper()
	for name, want := range s.sums {
		data, err := os.ReadFile(filepath.Join(s.head.Dir, name))
		if err != nil || sha256.Sum256(data) != want {
			s.t.Errorf("%s is damaged: %v", name, err)
		}
	}
}

// TestDefaultPoolGrows fills a pool until its host has nothing more, sees that
// writes stop and nothing is damaged, and that all goes on with more space.
func TestDefaultPoolGrows(t *testing.T) {
	s := newSmall(t)
	first := s.pool().Capacity
	const piece = 10 << 20
	n := 0
	fill := func() error {
		for range 200 {
			if err := s.write(fmt.Sprintf("f%d", n), piece); err != nil {
				return err
			}
			n++
			g, err := s.pools.Growth(t.Context())
			if err != nil || g.Want > g.Size {
				return err
			}
		}
		return errors.New("it never wants to grow")
	}
	if err := fill(); err != nil {
		t.Fatal(err)
	}
	grown := s.await("pool.grown")
	if grown.Capacity <= first || grown.Capacity > 540<<20 {
		t.Fatalf("it grew from %d to %d on a host of 600 MiB that keeps a tenth", first, grown.Capacity)
	}
	if err := fill(); err != nil {
		t.Fatalf("a write after it grew: %v", err)
	}
	if p := s.await("pool.cannot-grow"); p.Held == "" || p.Room != 0 {
		t.Errorf("what holds it is not shown: %+v", p)
	}
	// Nobody heeds it: the writes end, as they do on any full disk.
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = s.write(fmt.Sprintf("over%d", i), piece)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("writing into a full pool: %v", err)
	}
	s.check()
	if _, err := s.a.GrowPool(t.Context(), "default", 1<<30); !api.Is(err, api.Exhausted) {
		t.Errorf("growing to what the host does not have: %v", err)
	}
	// The host gets more space.
	s.remount("size=2g", unix.MS_REMOUNT)
	if p := s.await("pool.grown"); p.Capacity < 1<<30 || p.Held != "" || p.State != api.PoolReady {
		t.Errorf("after the host got more space: %+v", p)
	}
	if err := s.write("after", piece); err != nil {
		t.Errorf("a write after it grew again: %v", err)
	}
	s.check()
}

// TestPoolsAreNotMadeAgain opens a pool whose file is out of sight, and one
// whose host has no room for a new one.
func TestPoolsAreNotMadeAgain(t *testing.T) {
	s := newSmall(t)
	cfg := s.file().Config
	if err := s.write("f", 1<<20); err != nil {
		t.Fatal(err)
	}
	o := opener{dataDir: filepath.Join(s.dir, "data"), growth: loopfile.Policy{KeepFree: 1 << 50}}
	b, err := o.open(t.Context(), api.AddPool{Name: "default", Kind: "btrfs"}, false)
	if err != nil {
		t.Fatalf("a pool that is there, on a host with no room to make one: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.open(t.Context(), api.AddPool{Name: "lost", Kind: "btrfs", Size: loopfile.MinSize}, false); !api.Is(err, api.Unavailable) {
		t.Errorf("a pool whose file is not there: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(cfg.File), "lost*")); len(left) > 0 {
		t.Errorf("an empty pool was made in its place: %q", left)
	}
	s.check()
}
