//go:build root

package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/powerloss"
)

func TestMain(m *testing.M) {
	powerloss.Main()
	os.Exit(m.Run())
}

// dump is all that an index holds.
func dump(t *testing.T, x *index) string {
	t.Helper()
	var lines []string
	err := x.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				lines = append(lines, fmt.Sprintf("%s/%s=%s", name, k, v))
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// TestIndexLosesPower: what the index has taken is there after a power cut, and
// each change is there wholly or not at all.
func TestIndexLosesPower(t *testing.T) {
	for name, mkfs := range map[string][]string{"xfs": {"mkfs.xfs", "-q"}, "ext4": {"mkfs.ext4", "-q", "-F"}} {
		t.Run(name, func(t *testing.T) {
			d, place := powerloss.New(t, 320<<20), t.TempDir()
			path := filepath.Join(place, "data", "agent", "index.db")
			d.Format(t, mkfs...)
			d.Mount(t, place, "")
			x, err := openIndex(path)
			if err != nil {
				t.Fatal(err)
			}
			ends, states := []int{d.Position(t)}, []string{dump(t, x)}
			rng := rand.New(rand.NewPCG(7, 7))
			for i := range 60 {
				id := fmt.Sprintf("v%d", rng.IntN(6))
				switch rng.IntN(5) {
				case 0:
					err = x.putVolume(api.Volume{ID: id, Name: strings.Repeat(id, 1+rng.IntN(2000)), Created: api.Volume{}.Created})
				case 1:
					err = x.dropVolume(id)
				case 2:
					err = x.setNames(map[string]string{id: "id", fmt.Sprint("n", i): "other"})
				case 3:
					err = put(x, bucketJournal, id+"@main", journal{})
				case 4:
					err = put(x, bucketBases, fmt.Sprintf("%s@main/peer", id), fmt.Sprint("s", i))
				}
				if err != nil {
					t.Fatal(err)
				}
				ends, states = append(ends, d.Position(t)), append(states, dump(t, x))
			}
			if err := x.close(); err != nil {
				t.Fatal(err)
			}
			d.Unmount(t, place)
			tape := d.Eject(t)

			check := func(at int, mode powerloss.Mode, seed uint64) {
				t.Helper()
				tape.Load(t, at, mode, seed)
				d.Mount(t, place, "")
				defer d.Unmount(t, place)
				_, statErr := os.Stat(path)
				x, err := openIndex(path)
				if err != nil || statErr != nil {
					t.Errorf("cut at event %d, %s, seed %d: %v, %v", at, mode, seed, statErr, err)
					return
				}
				defer x.close()
				i, _ := slices.BinarySearch(ends, at+1)
				acked := i - 1 // the last change that was acknowledged
				got := dump(t, x)
				if got != states[acked] && (acked+1 == len(states) || got != states[acked+1]) {
					t.Errorf("cut at event %d, %s, seed %d: after change %d this is there:\n%s\nnot:\n%s", at, mode, seed, acked, got, states[acked])
				}
			}
			for _, at := range ends {
				if rng.IntN(3) == 0 || at == ends[0] {
					check(at, powerloss.Drop, 0)
				}
			}
			for seed := range uint64(20) {
				check(ends[0]+rng.IntN(tape.End-ends[0]+1), powerloss.Reorder, seed)
			}
		})
	}
}
