//go:build root && long

package etcd_test

import (
	"math/rand/v2"
	"testing"
)

// TestMemberLosesPowerOften cuts the power at many moments.
func TestMemberLosesPowerOften(t *testing.T) { losePower(t, 60, rand.Uint64()) }
