//go:build root

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/drover-data/drover/api"
)

// TestLockFileGoes takes the lock of a lab that is not there from many sides:
// one at a time has it, and nothing is left.
func TestLockFileGoes(t *testing.T) {
	name := fmt.Sprintf("t-lock-%d", os.Getpid())
	t.Cleanup(func() { os.Remove(lockPath(name)); os.RemoveAll(filepath.Dir(statePath(name))) })
	var inside atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				unlock, err := lock(name)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have it", n)
				}
				inside.Add(-1)
				unlock()
			}
		})
	}
	all.Wait()
	gone := func(after string) {
		t.Helper()
		if _, err := os.Stat(lockPath(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after %s: %v", after, err)
		}
	}
	gone("the crowd")
	h := &Host{lab: &Lab{name: name}, name: "node1"}
	for what, err := range map[string]error{"PowerOff": h.PowerOff(t.Context()), "PowerOn": h.PowerOn(t.Context()), "StartService": h.StartService(t.Context(), Service{Name: "x"})} {
		if !api.Is(err, api.NotFound) {
			t.Errorf("%s in a lab that is gone: %v", what, err)
		}
		gone(what)
	}
	if err := Down(t.Context(), name); err != nil {
		t.Error(err)
	}
	gone("Down")
	// While the lab is there, its lock stays.
	if err := os.MkdirAll(filepath.Dir(statePath(name)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(statePath(name), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(name)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(lockPath(name)); err != nil {
		t.Errorf("the lock of a lab that is there: %v", err)
	}
}
