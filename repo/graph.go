package repo

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
)

// Graph is what is known of a volume's history: commits by id. A parent that
// is not in it is known to exist and nothing more: it was pruned, or lies
// elsewhere.
type Graph map[string]api.Commit

// Add puts commits into a copy of the graph.
func (g Graph) Add(commits ...api.Commit) Graph {
	out := make(Graph, len(g)+len(commits))
	for id, c := range g {
		out[id] = c
	}
	for _, c := range commits {
		out[c.ID] = c
	}
	return out
}

// Reach gives every commit that the tips lead to through parents, themselves
// included, whether it is in the graph or only named by a child.
func (g Graph) Reach(tips ...string) map[string]bool {
	seen := map[string]bool{}
	todo := slices.Clone(tips)
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		todo = append(todo, g[id].Parents...)
	}
	return seen
}

// Relation is how two tips of one volume's history stand to each other.
type Relation string

// The five outcomes, seen from the side that has ours and would change theirs.
const (
	UpToDate    Relation = "up-to-date"   // both are the same
	FastForward Relation = "fast-forward" // theirs is an ancestor of ours, or nothing
	Ahead       Relation = "ahead"        // ours is an ancestor of theirs, or nothing
	Diverged    Relation = "diverged"     // both have commits that the other lacks
	Unrelated   Relation = "unrelated"    // no commit in common is known
)

// Relate compares two tips; "" is a branch that is not there.
func (g Graph) Relate(ours, theirs string) Relation {
	switch {
	case ours == theirs:
		return UpToDate
	case ours == "":
		return Ahead
	case theirs == "":
		return FastForward
	}
	mine := g.Reach(ours)
	if mine[theirs] {
		return FastForward
	}
	other := g.Reach(theirs)
	if other[ours] {
		return Ahead
	}
	for id := range mine {
		if other[id] {
			return Diverged
		}
	}
	return Unrelated
}

// Bases gives the best common ancestors of two tips: those of which no
// descendant is common too. Sorted by id.
func (g Graph) Bases(a, b string) []string {
	ofA, ofB := g.Reach(a), g.Reach(b)
	common := map[string]bool{}
	for id := range ofA {
		if ofB[id] {
			common[id] = true
		}
	}
	covered := map[string]bool{}
	for id := range common {
		for _, p := range g[id].Parents {
			for older := range g.Reach(p) {
				covered[older] = true
			}
		}
	}
	var out []string
	for id := range common {
		if !covered[id] {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Missing lists what a side that holds have needs to hold tip with its
// history, parents before children; commits that are only named are left out.
func (g Graph) Missing(tip string, have map[string]bool) []api.Commit {
	var out []api.Commit
	done := map[string]bool{}
	type visit struct {
		id   string
		back bool
	}
	todo := []visit{{id: tip}}
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c, known := g[v.id]
		switch {
		case v.back:
			if !done[v.id] {
				done[v.id] = true
				out = append(out, c)
			}
			continue
		case !known || have[v.id] || done[v.id]:
			continue
		}
		todo = append(todo, visit{v.id, true})
		for i := len(c.Parents) - 1; i >= 0; i-- {
			todo = append(todo, visit{id: c.Parents[i]})
		}
	}
	return out
}

// Log lists what a tip leads to, children before parents; where the graph
// leaves it open, the later first. limit 0 is all.
func (g Graph) Log(limit int, tips ...string) []api.Commit {
	reach := g.Reach(tips...)
	children := map[string]int{}
	for id := range reach {
		for _, p := range g[id].Parents {
			if _, known := g[p]; known {
				children[p]++
			}
		}
	}
	var ready []api.Commit
	for id := range reach {
		if c, known := g[id]; known && children[id] == 0 {
			ready = append(ready, c)
		}
	}
	var out []api.Commit
	for len(ready) > 0 && (limit == 0 || len(out) < limit) {
		slices.SortFunc(ready, later)
		c := ready[0]
		ready = ready[1:]
		out = append(out, c)
		for _, p := range c.Parents {
			if children[p]--; children[p] == 0 {
				if pc, known := g[p]; known {
					ready = append(ready, pc)
				}
			}
		}
	}
	return out
}

func later(a, b api.Commit) int {
	if c := b.Time.Compare(a.Time); c != 0 {
		return c
	}
	return cmp.Compare(a.ID, b.ID)
}

// Near lists up to limit commits that are related to one, the nearest first,
// going to parents and children alike; the commit itself is not among them.
func (g Graph) Near(id string, limit int) []string {
	children := map[string][]string{}
	for _, c := range g {
		for _, p := range c.Parents {
			children[p] = append(children[p], c.ID)
		}
	}
	var out []string
	seen := map[string]bool{id: true}
	level := []string{id}
	for len(level) > 0 && len(out) < limit {
		var next []string
		for _, at := range level {
			around := slices.Clone(children[at])
			slices.Sort(around)
			for _, n := range append(slices.Clone(g[at].Parents), around...) {
				if !seen[n] {
					seen[n] = true
					next = append(next, n)
				}
			}
		}
		out = append(out, next...)
		level = next
	}
	return out[:min(limit, len(out))]
}

// Refs are the names that a volume's record gives to commits.
type Refs struct {
	Current  string            // branch that the plain name means
	Branches map[string]string // tip by branch, "" before the first commit
	Tags     map[string]string
	Tracking map[string]string // by remote/branch
}

// Resolve finds the commit that a reference means. The order is: branch, tag,
// remote's branch, prefix of a commit's id; ~n goes back along first parents.
func (g Graph) Resolve(r api.Ref, refs Refs) (string, error) {
	const op = "find commit"
	fail := func(kind api.Kind, reason, next string) (string, error) {
		return "", &api.Error{Kind: kind, Op: op, Object: r.String(), Reason: reason, Next: next}
	}
	at := r.At
	if at == "" {
		at = refs.Current
	}
	id, found := refs.Branches[at]
	if found && id == "" {
		return fail(api.NotFound, "branch "+at+" has no commit yet", "drover commit "+r.Volume+" -m … makes the first")
	}
	if !found {
		id, found = refs.Tags[at]
	}
	if !found {
		id, found = refs.Tracking[at]
	}
	if !found && api.IsCommitPrefix(at) {
		var all []string
		for known := range g {
			if len(known) >= len(at) && known[:len(at)] == at {
				all = append(all, known)
			}
		}
		slices.Sort(all)
		switch len(all) {
		case 0:
		case 1:
			id, found = all[0], true
		default:
			return fail(api.Invalid, "several commits begin so: "+all[0][:12]+", "+all[1][:12], "give more digits")
		}
	}
	if !found {
		return fail(api.NotFound, "the volume has no branch, tag or commit of that name", "drover log "+r.Volume+" --all and drover branch "+r.Volume+" show what there is")
	}
	for n := range r.Back {
		c, known := g[id]
		if !known || len(c.Parents) == 0 {
			return fail(api.NotFound, "its history has "+strconv.Itoa(n)+" commits before it here", "")
		}
		id = c.Parents[0]
	}
	return id, nil
}

// RetainedTag begins the names of tags that keep what a retention policy keeps
// although no branch leads to it any more.
const RetainedTag = "retained/"

// Pins are the commits that a volume's record names: retention never removes
// them. What only an earlier retention had tagged is not among them.
func Pins(v api.Volume) map[string]bool {
	pins := map[string]bool{}
	for _, h := range v.Heads {
		pins[h.Commit], pins[h.Seed] = true, true
	}
	for name, id := range v.Tags {
		if !strings.HasPrefix(name, RetainedTag) {
			pins[id] = true
		}
	}
	for _, id := range v.Tracking {
		pins[id] = true
	}
	for _, d := range v.Dropped {
		pins[d.Commit], pins[d.Kept] = true, true
	}
	delete(pins, "")
	return pins
}

// Prune decides what a retention policy removes of the commits that a pool
// holds, and which of those that stay no branch leads to then: they need a tag.
// Stashes are left alone.
func Prune(v api.Volume, g Graph, k api.Keep, now time.Time) (remove, tag []string) {
	pins := Pins(v)
	var list []api.Commit
	for _, c := range g {
		if c.Stash == "" {
			list = append(list, c)
		}
	}
	keep := Retain(list, k, pins, now)
	left := Graph{}
	for id, c := range g {
		if c.Stash == "" && !keep[id] {
			remove = append(remove, id)
			continue
		}
		left[id] = c
	}
	var tips []string
	for id := range pins {
		tips = append(tips, id)
	}
	reach := left.Reach(tips...)
	for id, c := range left {
		if c.Stash == "" && !reach[id] {
			tag = append(tag, id)
		}
	}
	slices.Sort(remove)
	slices.Sort(tag)
	return remove, tag
}

// Retain says which of the commits a policy keeps. pinned stay whatever their
// age, and count for the rules as well. A commit that goes leaves its children,
// which go on naming it.
func Retain(commits []api.Commit, k api.Keep, pinned map[string]bool, now time.Time) map[string]bool {
	list := slices.Clone(commits)
	slices.SortFunc(list, later)
	keep := map[string]bool{}
	for i, c := range list {
		if pinned[c.ID] || i < k.Last || (k.Within > 0 && now.Sub(c.Time) < k.Within) {
			keep[c.ID] = true
		}
	}
	for _, rule := range []struct {
		n      int
		period func(time.Time) string
	}{
		{k.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15") }},
		{k.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{k.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return strconv.Itoa(y) + "w" + strconv.Itoa(w) }},
		{k.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{k.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		last, left := "", rule.n
		for _, c := range list {
			if left == 0 {
				break
			}
			if p := rule.period(c.Time.UTC()); p != last {
				last = p
				left--
				keep[c.ID] = true
			}
		}
	}
	if k == (api.Keep{}) {
		for _, c := range list {
			keep[c.ID] = true
		}
	}
	return keep
}
