package agent_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/api"
)

var everyPoint = flag.Bool("every-point", false, "try every fault at every call of every kind of move, not a sample")

// journey is one kind of move.
type journey struct {
	name             string
	fromSlow, toSlow bool
	here             bool // to the other pool of the same node
	// withdrawn: the volume has a second branch, and the move is withdrawn
	// before what went wrong is mended.
	withdrawn bool
}

var journeys = []journey{
	{name: "native"},
	{name: "native to directory", toSlow: true},
	{name: "directory to native", fromSlow: true},
	{name: "within the node", here: true},
	{name: "within the node, from a directory", here: true, fromSlow: true},
	{name: "withdrawn", withdrawn: true},
}

// hurt is what goes wrong at a call.
type hurt struct {
	name  string
	after bool
	f     fault
}

var hurts = []hurt{
	{"source killed before", false, fault{crash: "a"}},
	{"source killed after", true, fault{crash: "a"}},
	{"target killed before", false, fault{crash: "b"}},
	{"target killed after", true, fault{crash: "b"}},
	{"unavailable", false, fault{kind: api.Unavailable}},
	{"answer lost", true, fault{kind: api.Unavailable}},
	{"exhausted", false, fault{kind: api.Exhausted}},
}

// TestEveryPoint repeats one move with a fault at each call that it makes.
func TestEveryPoint(t *testing.T) {
	t.Parallel()
	tryPoints(t, *everyPoint)
}

// tryPoints tries every fault at every call of every kind of move, or a sample.
func tryPoints(t *testing.T, all bool) {
	tried := 0
	for k, j := range journeys {
		var calls []string
		synctest.Test(t, func(t *testing.T) { calls = journeyRun(t, j, 0, hurt{}, "dry run") })
		if len(calls) < 15 {
			t.Fatalf("%s: only %d calls were seen: %v", j.name, len(calls), calls)
		}
		t.Logf("%s: %d calls", j.name, len(calls))
		for n := range calls {
			for i, h := range hurts {
				if j.here && h.f.crash == "b" {
					continue
				}
				// The sample has every fault and, of the plain move, every call, but
				// not every pair of them.
				if every := 3 + 8*min(k, 1); !all && (n+i)%every != 0 {
					continue
				}
				tried++
				what := fmt.Sprintf("%s: %s call %d of %d (%s)", j.name, h.name, n+1, len(calls), calls[n])
				t.Run(fmt.Sprintf("%d-%d-%d", k, n+1, i), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { journeyRun(t, j, n+1, h, what) })
				})
			}
		}
	}
	t.Logf("%d points tried", tried)
}

// journeyRun makes the move with a fault at its nth call, repeats the command
// if need be, and looks at what is left.
func journeyRun(t *testing.T, j journey, nth int, h hurt, what string) []string {
	to, fromPool, toPool := "b", "default", "default"
	if j.here {
		to, toPool = "a", "second"
	}
	w := newWorld(t, 1, 2, func(host, pool string) bool {
		return (host == "a" && pool == fromPool && j.fromSlow) || (host == to && pool == toPool && j.toSlow)
	})
	defer w.end()
	s := &script{w: w, volumes: map[string]string{}}
	s.setUpOne("alpha", "a", fromPool)
	time.Sleep(3 * time.Second)
	if j.withdrawn {
		ctx, a := context.Background(), w.hosts["a"].current().a
		if _, err := a.Commit(ctx, s.volumes["alpha"], api.MakeCommit{Branch: "main", Message: "m"}, "user"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Branch(ctx, s.volumes["alpha"], api.MakeBranch{Name: "before"}, "user"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
	}
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
	_ = s.move("alpha", to, toPool, api.UsersMove)
	time.Sleep(8 * time.Second)
	if j.withdrawn {
		if _, err := w.truth.CancelMove(context.Background(), s.volumes["alpha"], "main", ""); err != nil && !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound) {
			t.Fatal(err)
		}
	}
	w.mu.Lock()
	calls := append([]string(nil), w.faults.names...)
	w.mu.Unlock()
	w.heal()
	if !s.settle("alpha") {
		s.stuck("alpha")
	}
	time.Sleep(30 * time.Second)
	if _, now := w.record(s.volumes["alpha"]); now.Node != to || now.Pool != toPool {
		if err := s.move("alpha", to, toPool, api.UsersMove); err != nil {
			w.fail("the same command again: %v", err)
		}
		if !s.settle("alpha") {
			s.stuck("alpha")
		}
	}
	time.Sleep(2 * time.Minute)
	if _, now := w.record(s.volumes["alpha"]); now.Node != to || now.Pool != toPool {
		w.fail("it is in %s/%s after the same command again", now.Node, now.Pool)
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
