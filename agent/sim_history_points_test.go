package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/api"
)

// errand is one command of history on a volume with two commits and a branch.
type errand struct {
	name string
	slow bool
	do   func(ctx context.Context, l *life, id string, commits []string) error
	done func(v api.Volume, commits []string) bool
}

var errands = []errand{
	{
		name: "commit", do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.Commit(ctx, id, api.MakeCommit{Branch: "main", Message: "third", Consistency: api.ConsistencyPaused}, "user")
			return err
		},
		done: func(v api.Volume, commits []string) bool { return v.Heads["main"].Commit != commits[1] },
	},
	{
		name: "commit on a directory", slow: true, do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.Commit(ctx, id, api.MakeCommit{Branch: "main", Message: "third"}, "user")
			return err
		},
		done: func(v api.Volume, commits []string) bool { return v.Heads["main"].Commit != commits[1] },
	},
	{
		name: "reset", do: func(ctx context.Context, l *life, id string, commits []string) error {
			_, err := l.a.Reset(ctx, id, api.ResetBranch{Branch: "main", To: commits[0]}, "user")
			return err
		},
		done: func(v api.Volume, commits []string) bool { return v.Heads["main"].Commit == commits[0] },
	},
	{
		name: "stash", slow: true, do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.Stash(ctx, id, api.StashChanges{Branch: "main"}, "user")
			return err
		},
		done: func(v api.Volume, _ []string) bool { return v.Heads["main"].Tip.Op == "stash" },
	},
	{
		name: "checkout", do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.Checkout(ctx, id, "other", "user")
			return err
		},
		done: func(v api.Volume, _ []string) bool { return v.Branch == "other" },
	},
	{
		name: "branch", do: func(ctx context.Context, l *life, id string, commits []string) error {
			_, err := l.a.Branch(ctx, id, api.MakeBranch{Name: "more", From: commits[0]}, "user")
			return err
		},
		done: func(v api.Volume, _ []string) bool { return v.Heads["more"].Ready },
	},
	{
		name: "delete branch", do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.DropBranch(ctx, id, "other", "user")
			return err
		},
		done: func(v api.Volume, _ []string) bool { return len(v.Dropped) == 1 },
	},
	{
		name: "rename branch", do: func(ctx context.Context, l *life, id string, _ []string) error {
			_, err := l.a.RenameBranch(ctx, id, "other", "another", "user")
			return err
		},
		done: func(v api.Volume, _ []string) bool { return v.Heads["another"].Ready },
	},
}

// TestEveryHistoryPoint repeats each command with a fault at each call that it
// makes, then gives the same command again.
func TestEveryHistoryPoint(t *testing.T) {
	t.Parallel()
	tried := 0
	for k, e := range errands {
		var calls []string
		synctest.Test(t, func(t *testing.T) { calls = errandRun(t, e, 0, hurt{}, "dry run") })
		if len(calls) < 3 {
			t.Fatalf("%s: only %d calls were seen: %v", e.name, len(calls), calls)
		}
		t.Logf("%s: %d calls", e.name, len(calls))
		for n := range calls {
			for i, h := range hurts {
				if h.f.crash == "b" || (!*everyPoint && (n+i+k)%2 != 0) {
					continue
				}
				tried++
				what := fmt.Sprintf("%s: %s call %d of %d (%s)", e.name, h.name, n+1, len(calls), calls[n])
				t.Run(fmt.Sprintf("%d-%d-%d", k, n+1, i), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { errandRun(t, e, n+1, h, what) })
				})
			}
		}
	}
	t.Logf("%d points tried", tried)
}

func errandRun(t *testing.T, e errand, nth int, h hurt, what string) []string {
	w := newWorld(t, 1, 1, func(string, string) bool { return e.slow })
	defer w.end()
	s := &script{w: w, volumes: map[string]string{}}
	s.setUpOne("alpha", "a", "default")
	time.Sleep(3 * time.Second)
	id := s.volumes["alpha"]
	ctx := context.Background()
	l := w.hosts["a"].current()
	var commits []string
	for range 2 {
		c, err := l.a.Commit(ctx, id, api.MakeCommit{Branch: "main", Message: "m"}, "user")
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, c.Commit.ID)
		time.Sleep(5 * time.Second)
	}
	if _, err := l.a.Branch(ctx, id, api.MakeBranch{Name: "other", From: commits[0]}, "user"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	w.mu.Lock()
	start := w.faults.count
	w.faults.names = nil
	w.faults.at = func(n int, _ string, after bool) fault {
		if nth > 0 && n == start+nth && after == h.after {
			w.faults.at = nil
			return h.f
		}
		return fault{}
	}
	w.mu.Unlock()
	first, cancel := context.WithTimeout(ctx, 10*time.Second)
	err := e.do(first, l, id, commits)
	cancel()
	w.logf("user: %s: %v", e.name, err)
	time.Sleep(8 * time.Second)
	w.mu.Lock()
	calls := append([]string(nil), w.faults.names...)
	w.mu.Unlock()
	w.heal()
	time.Sleep(time.Minute)
	v, _ := w.record(id)
	if !e.done(v, commits) {
		if err := e.do(ctx, w.hosts["a"].current(), id, commits); err != nil {
			w.fail("the same command again: %v", err)
		}
	}
	time.Sleep(2 * time.Minute)
	if v, _ := w.record(id); !e.done(v, commits) {
		w.fail("it is not done after the same command again: %+v", v)
	}
	s.check("alpha")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.broken) > 0 {
		t.Errorf("%s:\n%s", what, strings.Join(w.broken, "\n"))
		if testing.Verbose() {
			t.Log(strings.Join(w.history, "\n"))
		}
	}
	return calls
}
