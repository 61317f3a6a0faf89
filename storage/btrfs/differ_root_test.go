//go:build root

package btrfs

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/storage/storagetest"
)

func TestChangesAreAllNamed(t *testing.T) {
	b := newPool(t, 1<<30)
	var d storagetest.Differs
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		d.Case(t, r, b, n)
	})
	t.Logf("%d pairs told, %d left to be compared", d.Told, d.Unsure)
	if d.Told < d.Unsure {
		t.Errorf("%d pairs were told, %d were not", d.Told, d.Unsure)
	}
}
