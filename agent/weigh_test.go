package agent

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// A file that the agent itself has open is waited for, nobody else's is.
func TestTheAgentIsNoStranger(t *testing.T) {
	own, other := holder{Own: true, Text: "process 1 (drover, open file)"}, holder{Text: "process 2 (cat, open file)"}
	for what, c := range map[string]struct {
		seen [][]holder
		want int
	}{
		"nobody":           {[][]holder{nil}, 0},
		"the agent, once":  {[][]holder{{own}, {own}, nil}, 0},
		"somebody else":    {[][]holder{{own, other}, nil}, 2},
		"the agent, stays": {[][]holder{{own}}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			got, err := strangers(t.Context(), func(context.Context) ([]holder, error) {
				asked++
				return c.seen[min(asked, len(c.seen))-1], nil
			})
			if err != nil || len(got) != c.want {
				t.Errorf("%s: %v %v", what, got, err)
			}
		})
	}
}

// All data of a head counts, also what it shares with its commits, and a file
// of two names counts once.
func TestWeighTree(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	n, err := weighTree(t.Context(), dir)
	if err != nil || n < 1<<20 || n > 1<<20+1<<16 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := weighTree(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("what is not there weighs something")
	}
}
