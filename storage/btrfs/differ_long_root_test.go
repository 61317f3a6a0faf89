//go:build root && long

package btrfs

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/storage/storagetest"
)

// TestManyChangesAreAllNamed is TestChangesAreAllNamed with thousands of
// histories, on a pool that is made anew now and then.
func TestManyChangesAreAllNamed(t *testing.T) {
	for range 8 {
		t.Run("", func(t *testing.T) {
			b := newPool(t, 1<<30)
			var d storagetest.Differs
			n := 0
			for range 3 {
				rapid.Check(t, func(r *rapid.T) {
					n++
					d.Case(t, r, b, n)
				})
			}
			t.Logf("%d pairs told, %d left to be compared", d.Told, d.Unsure)
		})
	}
}
