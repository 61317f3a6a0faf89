//go:build root && long

package powerloss

import (
	"math/rand/v2"
	"testing"
)

// TestPoolsLosePowerAtEachFlush cuts behind every flush and, with many seeds,
// at random moments with arbitrary parts of what was not flushed.
func TestPoolsLosePowerAtEachFlush(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) { cutEverywhere(t, r, rand.Uint64(), 1, 40) })
	}
}
