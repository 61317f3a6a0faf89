//go:build root

package etcd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/internal/powerloss"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
)

func TestMain(m *testing.M) {
	powerloss.Main()
	os.Exit(m.Run())
}

// acked is a write that the member has acknowledged.
type acked struct {
	key string
	at  int // moment on the disk's tape
}

// losePower runs the embedded member on a disk that forgets, under writers, and
// then from what a power cut leaves at several moments: every acknowledged write
// is there, and nobody's later write without the earlier ones.
func losePower(t *testing.T, cuts int, seed uint64) {
	const writers, writes = 4, 30
	w := newWorld(t)
	d, place := powerloss.New(t, 512<<20), t.TempDir()
	d.Format(t, "mkfs.xfs", "-q")
	d.Mount(t, place, "")
	cfg := w.config("n1", w.identity("n1", true))
	cfg.NoSync = false
	cfg.Dir = filepath.Join(place, "drover", "state")
	m := w.start(cfg)

	var mu sync.Mutex
	var list []acked
	var all sync.WaitGroup
	for n := range writers {
		all.Go(func() {
			for i := range writes {
				key := fmt.Sprintf("drover/v1/test/%d/%03d", n, i)
				_, err := m.KV().Commit(t.Context(), state.Txn{Put: []state.Put{{Key: key, Value: []byte(strings.Repeat(key, 40))}}})
				if err != nil {
					t.Errorf("write %s: %v", key, err)
					return
				}
				mu.Lock()
				list = append(list, acked{key, d.Position(t)})
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	m.Close()
	d.Unmount(t, place)
	tape := d.Eject(t)

	first := slices.MinFunc(list, func(a, b acked) int { return a.at - b.at }).at
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := range cuts {
		at, mode := list[rng.IntN(len(list))].at, powerloss.Drop
		if i%2 == 1 {
			at, mode = first+rng.IntN(tape.End-first+1), powerloss.Reorder
		}
		tape.Load(t, at, mode, rng.Uint64())
		d.Mount(t, place, "")
		have := restart(t, cfg)
		for _, a := range list {
			if a.at <= at && !have[a.key] {
				t.Errorf("cut at event %d (%s, seed %d): %s was acknowledged at %d and is lost", at, mode, seed, a.key, a.at)
			}
		}
		for n := range writers {
			for i := 1; i < writes; i++ {
				if have[fmt.Sprintf("drover/v1/test/%d/%03d", n, i)] && !have[fmt.Sprintf("drover/v1/test/%d/%03d", n, i-1)] {
					t.Errorf("cut at event %d (%s, seed %d): of writer %d write %d is there without the one before", at, mode, seed, n, i)
				}
			}
		}
		d.Unmount(t, place)
	}
	t.Logf("%d writes, %d events, the power was cut %d times (seed %d)", len(list), tape.End, cuts, seed)
}

// restart starts the member from what is there and gives the keys it has.
func restart(t *testing.T, cfg etcd.Config) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := etcd.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	_, err = m.KV().List(ctx, "drover/v1/test/", 0, func(i state.Item) error {
		have[i.Key] = string(i.Value) == strings.Repeat(i.Key, 40)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func TestMemberLosesPower(t *testing.T) { losePower(t, 6, 1) }
