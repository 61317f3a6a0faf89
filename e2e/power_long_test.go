//go:build lab && long

package e2e

import (
	"math/rand/v2"
	"testing"
)

// TestMoveLosesPowerOften cuts at many moments.
func TestMoveLosesPowerOften(t *testing.T) { losePower(t, 30, rand.Uint64()) }
