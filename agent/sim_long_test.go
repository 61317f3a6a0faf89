//go:build long

package agent_test

import "testing"

// TestMoreSeeds runs the simulation with seeds that TestSimulation leaves out.
func TestMoreSeeds(t *testing.T) { simulateAll(t, 301, 1200) }

// TestMoreHistories is the same for TestHistorySimulation.
func TestMoreHistories(t *testing.T) { simulateHistories(t, 1001, 900) }

// TestAllPoints tries every fault at every call, of which TestEveryPoint
// takes a sample.
func TestAllPoints(t *testing.T) { tryPoints(t, true) }
