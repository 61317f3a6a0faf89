package repo

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func id(n int) string { return fmt.Sprintf("%040x", n+0xabcd0000) }

// history draws a graph of n commits, the parents of each among those before it.
func history(t *rapid.T, n int) Graph {
	g := Graph{}
	for i := range n {
		c := api.Commit{ID: id(i), Time: start.Add(time.Duration(rapid.IntRange(0, 3*n).Draw(t, "hour")) * time.Hour)}
		for range rapid.IntRange(0, min(i, 2)).Draw(t, "parents") {
			if p := id(rapid.IntRange(0, i-1).Draw(t, "parent")); !slices.Contains(c.Parents, p) {
				c.Parents = append(c.Parents, p)
			}
		}
		g[c.ID] = c
	}
	return g
}

// ancestor is the model: is a reached from b, by trying every way.
func ancestor(g Graph, a, b string) bool {
	return a == b || slices.ContainsFunc(g[b].Parents, func(p string) bool { return ancestor(g, a, p) })
}

func TestRelateAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 9).Draw(t, "commits")
		g := history(t, n)
		a, b := id(rapid.IntRange(0, n-1).Draw(t, "a")), id(rapid.IntRange(0, n-1).Draw(t, "b"))
		var common []string
		for i := range n {
			if ancestor(g, id(i), a) && ancestor(g, id(i), b) {
				common = append(common, id(i))
			}
		}
		want := Diverged
		switch {
		case a == b:
			want = UpToDate
		case ancestor(g, b, a):
			want = FastForward
		case ancestor(g, a, b):
			want = Ahead
		case len(common) == 0:
			want = Unrelated
		}
		if got := g.Relate(a, b); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		var best []string
		for _, c := range common {
			if !slices.ContainsFunc(common, func(d string) bool { return d != c && ancestor(g, c, d) }) {
				best = append(best, c)
			}
		}
		slices.Sort(best)
		if got := g.Bases(a, b); !slices.Equal(got, best) {
			t.Fatalf("bases %v, want %v", got, best)
		}
	})
}

func TestRelateWithNothing(t *testing.T) {
	g := Graph{id(1): {ID: id(1)}}
	for _, c := range []struct {
		ours, theirs string
		want         Relation
	}{{"", "", UpToDate}, {"", id(1), Ahead}, {id(1), "", FastForward}, {id(1), id(2), Unrelated}} {
		if got := g.Relate(c.ours, c.theirs); got != c.want {
			t.Errorf("%q to %q: %s, want %s", c.ours, c.theirs, got, c.want)
		}
	}
}

func TestMissingAndLogAreOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "commits")
		g := history(t, n)
		tip := id(n - 1)
		have := map[string]bool{}
		for i := range n {
			if rapid.Bool().Draw(t, "have") {
				for c := range g.Reach(id(i)) { // who has a commit has what it came from
					have[c] = true
				}
			}
		}
		seen := map[string]bool{}
		for _, c := range g.Missing(tip, have) {
			if have[c.ID] || seen[c.ID] || !ancestor(g, c.ID, tip) {
				t.Fatalf("%s should not be sent", c.ID)
			}
			for _, p := range c.Parents {
				if !have[p] && !seen[p] {
					t.Fatalf("%s comes before its parent %s", c.ID, p)
				}
			}
			seen[c.ID] = true
		}
		if !have[tip] && !seen[tip] {
			t.Fatal("the tip is left out")
		}
		shown := map[string]bool{}
		log := g.Log(0, tip)
		for _, c := range log {
			for _, p := range c.Parents {
				if shown[p] {
					t.Fatalf("parent %s is shown before its child %s", p, c.ID)
				}
			}
			shown[c.ID] = true
		}
		if len(shown) != len(g.Reach(tip)) || len(log) != len(shown) {
			t.Fatalf("%d of %d commits are shown", len(log), len(g.Reach(tip)))
		}
	})
}

func TestResolve(t *testing.T) {
	a, b, c := id(1), id(2), "ffff"+id(3)[4:]
	g := Graph{a: {ID: a}, b: {ID: b, Parents: []string{a}}, c: {ID: c, Parents: []string{b, a}}}
	refs := Refs{
		Current: "main", Branches: map[string]string{"main": c, "feature/x": b, "empty": ""},
		Tags: map[string]string{"v1": a, "main": a}, Tracking: map[string]string{"origin/main": b},
	}
	for _, x := range []struct {
		ref, want string
		kind      api.Kind
	}{
		{"pg", c, ""},
		{"pg@main", c, ""},
		{"pg~1", b, ""},
		{"pg~2", a, ""},
		{"pg~3", "", api.NotFound},
		{"pg@feature/x", b, ""},
		{"pg@v1", a, ""},
		{"pg@origin/main", b, ""},
		{"pg@ffff", c, ""},
		{"pg@ffff~1", b, ""},
		{"pg@0000", "", api.Invalid},
		{"pg@fff", "", api.NotFound},
		{"pg@" + a, a, ""},
		{"pg@nothing", "", api.NotFound},
		{"pg@empty", "", api.NotFound},
	} {
		r, err := api.ParseRef(x.ref)
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.Resolve(r, refs)
		if got != x.want || api.KindOf(err) != x.kind {
			t.Errorf("%s: got %q %v, want %q %s", x.ref, got, err, x.want, x.kind)
		}
	}
}

func TestRetainAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 30).Draw(t, "commits")
		var list []api.Commit
		for i := range n {
			list = append(list, api.Commit{ID: id(i), Time: start.Add(time.Duration(rapid.IntRange(0, 24*40).Draw(t, "hour")) * time.Hour)})
		}
		k := api.Keep{Last: rapid.IntRange(0, 3).Draw(t, "last"), Daily: rapid.IntRange(0, 5).Draw(t, "daily")}
		pinned := map[string]bool{}
		if n > 0 {
			pinned[id(rapid.IntRange(0, n-1).Draw(t, "pinned"))] = true
		}
		got := Retain(list, k, pinned, start.Add(41*24*time.Hour))
		slices.SortFunc(list, later)
		days := map[string]bool{}
		for i, c := range list {
			day := c.Time.Format(time.DateOnly)
			newest := !days[day]
			days[day] = true
			want := pinned[c.ID] || i < k.Last || (newest && len(days) <= k.Daily) || k == (api.Keep{})
			if got[c.ID] != want {
				t.Fatalf("%s (number %d, %s) kept: %v, want %v", c.ID, i, day, got[c.ID], want)
			}
		}
	})
}

// TestPruneKeepsWhatItSays: what stays is reached or tagged, what goes is not
// pinned, and a second prune finds nothing to do.
func TestPruneKeepsWhatItSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "commits")
		g := history(t, n)
		v := api.Volume{Heads: map[string]api.Head{"main": {Commit: id(n - 1)}}, Tags: map[string]string{"mine": id(rapid.IntRange(0, n-1).Draw(t, "tag"))}}
		k := api.Keep{Last: rapid.IntRange(1, 3).Draw(t, "last"), Daily: rapid.IntRange(0, 2).Draw(t, "daily")}
		now := start.Add(1000 * time.Hour)
		remove, tag := Prune(v, g, k, now)
		for _, x := range remove {
			if x == id(n-1) || x == v.Tags["mine"] {
				t.Fatalf("%s is removed although it is named", x)
			}
			delete(g, x)
		}
		tips := append([]string{id(n - 1), v.Tags["mine"]}, tag...)
		for i, x := range tag {
			v.Tags[RetainedTag+fmt.Sprint(i)] = x
		}
		reach := g.Reach(tips...)
		for x := range g {
			if !reach[x] {
				t.Fatalf("%s stays and nothing leads to it", x)
			}
		}
		again, tags := Prune(v, g, k, now)
		if len(again) > 0 || !slices.Equal(tags, tag) {
			t.Fatalf("again: removes %v, tags %v, before %v", again, tags, tag)
		}
	})
}
