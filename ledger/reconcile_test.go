package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func headAt(node string, epoch uint64) api.Head {
	return api.Head{Node: node, Pool: "p", Epoch: epoch, Ready: true}
}

func record(version int64, heads map[string]api.Head) api.Volume {
	return api.Volume{ID: strings.Repeat("a", 32), Name: "pg", Branch: "main", Heads: heads, Version: version}
}

// copyOf is a copy as its owner noted it.
func copyOf(node string, epoch uint64, version int64) Copy {
	return Copy{Node: node, Pool: "p", Branch: "main", Epoch: epoch, Volume: record(version, map[string]api.Head{"main": headAt(node, epoch)})}
}

func letGo(c Copy, to string) Copy {
	c.Released, c.To, c.ToPool = "move", to, "p"
	return c
}

func set(nodes ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range nodes {
		m[n] = true
	}
	return m
}

func TestReconcile(t *testing.T) {
	backup := func(node string, epoch uint64) *api.Volume {
		v := record(10, map[string]api.Head{"main": headAt(node, epoch)})
		return &v
	}
	all := set("a", "b", "c")
	deleted := copyOf("a", 1, 12)
	deleted.Volume.Deleted = &api.Deletion{At: noon.Add(-2 * day), By: "eve", Purge: noon.Add(-day)}
	handed := record(11, map[string]api.Head{"main": {Node: "b", Pool: "p", Epoch: 2, From: "a", FromPool: "p", Seed: "s"}})
	for _, c := range []struct {
		name string
		e    Evidence
		want string // owner, epoch, ready, from, stranded, branches, kinds
	}{
		{"as in the backup", Evidence{Known: backup("a", 1), Copies: []Copy{copyOf("a", 1, 9)}, Reported: all}, "a 1 ready from= stranded=[] [main] as in the backup"},
		{"moved since, the old owner has cleared up", Evidence{Known: backup("a", 1), Copies: []Copy{copyOf("b", 2, 14)}, Reported: all}, "b 2 ready from= stranded=[] [main] moved since"},
		{"moved since, the old owner has not cleared up", Evidence{Known: backup("a", 1), Copies: []Copy{letGo(copyOf("a", 1, 11), "b"), copyOf("b", 2, 14)}, Reported: all}, "b 2 ready from=a stranded=[] [main] moved since"},
		{"moved there and back", Evidence{Known: backup("a", 1), Copies: []Copy{copyOf("a", 3, 17)}, Reported: all}, "a 3 ready from= stranded=[] [main] moved since"},
		{"created since", Evidence{Copies: []Copy{copyOf("c", 1, 2)}, Reported: all}, "c 1 ready from= stranded=[] [main] created since"},
		{"deleted since", Evidence{Known: backup("a", 1), Copies: []Copy{deleted}, Reported: all}, "a 1 ready from= stranded=[] [main] as in the backup, deleted"},
		{"taken over since without the owner's word", Evidence{Known: backup("a", 3), Copies: []Copy{copyOf("a", 3, 9), copyOf("b", 4, 12)}, Reported: all}, "b 4 ready from= stranded=[a:3] [main] moved since, kept aside"},
		{"let go of, the target never held it", Evidence{Known: backup("a", 1), Copies: []Copy{letGo(copyOf("a", 1, 11), "b")}, Reported: all}, "a 1 ready from= stranded=[] [main] hand-over undone"},
		{"let go of, the target has not reported", Evidence{Known: backup("a", 1), Copies: []Copy{letGo(copyOf("a", 1, 11), "b")}, Reported: set("a", "c")}, "b 2 not ready from=a stranded=[] [main] unknown"},
		{"the backup itself was in the midst of a hand-over", Evidence{Known: &handed, Copies: []Copy{letGo(copyOf("a", 1, 9), "b")}, Reported: all}, "b 2 not ready from=a stranded=[] [main] as in the backup"},
		{"the owner has not reported", Evidence{Known: backup("a", 1), Reported: set("b", "c")}, "a 1 ready from= stranded=[] [main] unknown"},
		{"the owner has not reported, another holds a later one", Evidence{Known: backup("a", 1), Copies: []Copy{copyOf("b", 4, 14)}, Reported: set("b", "c")}, "b 4 ready from= stranded=[a:1] [main] moved since"},
		{"the owner has nothing", Evidence{Known: backup("a", 1), Reported: all}, "a 1 ready from= stranded=[] [main] missing"},
		{"the owner has nothing, another keeps an old one", Evidence{Known: backup("a", 3), Copies: []Copy{copyOf("b", 2, 5)}, Reported: all}, "a 3 ready from= stranded=[b:2] [main] missing, kept aside"},
		{"a tie", Evidence{Known: backup("a", 2), Copies: []Copy{copyOf("a", 2, 9), copyOf("b", 2, 9)}, Reported: all}, "a 3 ready from= stranded=[b:2] [main main-b-epoch2] as in the backup, branch"},
		{"a late report of a later epoch than a head that is used", Evidence{Known: backup("a", 1), Copies: []Copy{copyOf("b", 4, 14)}, Reported: all, Settled: set("a", "c")}, "a 5 ready from= stranded=[b:4] [main main-b-epoch4] as in the backup, branch"},
		{"a late report of a copy that was let go of", Evidence{Known: backup("a", 3), Copies: []Copy{letGo(copyOf("b", 2, 5), "a")}, Reported: all, Settled: set("a", "c")}, "a 3 ready from=b stranded=[] [main] as in the backup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.e.Now, c.e.Grace = noon, day
			v, found := Reconcile(c.e)
			h := v.Heads["main"]
			ready := map[bool]string{true: "ready", false: "not ready"}[h.Ready]
			var stranded, kinds []string
			for _, n := range slices.Sorted(maps.Keys(h.Stranded)) {
				stranded = append(stranded, fmt.Sprintf("%s:%d", n, h.Stranded[n]))
			}
			for _, f := range found {
				kinds = append(kinds, string(f.Kind))
			}
			got := fmt.Sprintf("%s %d %s from=%s stranded=%v %v %s", h.Node, h.Epoch, ready, h.From, stranded, slices.Sorted(maps.Keys(v.Heads)), strings.Join(kinds, ", "))
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if v.Deleted != nil && v.Deleted.Purge.Before(noon.Add(day)) {
				t.Error("a deleted volume is purged before anybody could restore it")
			}
		})
	}
}

// A node to which a head was let go, and which reports late that it never came
// to hold it, gives it back.
func TestReconcileLate(t *testing.T) {
	v := record(10, map[string]api.Head{"main": headAt("a", 1)})
	e := Evidence{Known: &v, Copies: []Copy{letGo(copyOf("a", 1, 11), "b")}, Reported: set("a", "c"), Now: noon}
	first, _ := Reconcile(e)
	none, found := Reconcile(Evidence{Known: &first, Reported: set("a", "b", "c"), Settled: set("a", "c"), Now: noon})
	if h := none.Heads["main"]; h.Node != "a" || h.Epoch != 1 || !h.Ready || found[0].Kind != FoundReturned {
		t.Errorf("with nothing at b: %+v, %v", h, found)
	}
	there, _ := Reconcile(Evidence{Known: &first, Copies: []Copy{copyOf("b", 2, 12)}, Reported: set("a", "b", "c"), Settled: set("a", "c"), Now: noon})
	if h := there.Heads["main"]; h.Node != "b" || h.Epoch != 2 || !h.Ready || h.From != "a" {
		t.Errorf("with the head at b: %+v", h)
	}
}

// drawEvidence draws any backup and any pools, possible or not.
func drawEvidence(t *rapid.T) Evidence {
	nodes := []string{"a", "b", "c"}
	node := rapid.SampledFrom(nodes)
	epoch := rapid.Uint64Range(1, 4)
	e := Evidence{Reported: map[string]bool{}, Settled: map[string]bool{}, Now: noon, Grace: day}
	for _, n := range nodes {
		e.Reported[n] = rapid.Bool().Draw(t, "reported "+n)
	}
	branches := []string{"main", "dev"}
	if rapid.Bool().Draw(t, "known") {
		heads := map[string]api.Head{}
		for _, b := range branches {
			if b == "main" || rapid.Bool().Draw(t, "has "+b) {
				h := api.Head{Node: node.Draw(t, "owner"), Pool: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "owner's pool"), Epoch: epoch.Draw(t, "epoch"), Ready: rapid.Bool().Draw(t, "ready")}
				if !h.Ready && rapid.Bool().Draw(t, "from") {
					h.From, h.FromPool, h.Seed = node.Draw(t, "former"), "p", "seed"
				}
				heads[b] = h
			}
		}
		v := record(rapid.Int64Range(1, 20).Draw(t, "version"), heads)
		e.Known = &v
	}
	seen := map[string]bool{}
	for i := range rapid.IntRange(0, 5).Draw(t, "copies") {
		at := func(s string) string { return fmt.Sprintf("copy %d %s", i, s) }
		c := copyOf(node.Draw(t, at("node")), epoch.Draw(t, at("epoch")), rapid.Int64Range(1, 20).Draw(t, at("version")))
		c.Branch, c.Pool = rapid.SampledFrom(branches).Draw(t, at("branch")), rapid.SampledFrom([]string{"p", "q"}).Draw(t, at("pool"))
		c.Volume.Heads = map[string]api.Head{c.Branch: {Node: c.Node, Pool: c.Pool, Epoch: c.Epoch, Since: noon.Add(time.Duration(c.Epoch))}}
		if rapid.Bool().Draw(t, at("released")) {
			c = letGo(c, node.Draw(t, at("to")))
		}
		key := c.Node + c.Pool + c.Branch // a pool has at most one
		if c.To != c.Node && !seen[key] {
			seen[key] = true
			e.Reported[c.Node] = true
			e.Copies = append(e.Copies, c)
		}
	}
	if e.Known == nil && len(e.Copies) == 0 {
		e.Copies = append(e.Copies, copyOf("a", 1, 1))
		e.Reported["a"] = true
	}
	return e
}

// Whatever the backup and the pools say: one owner, no epoch lower than any
// pool's, nothing dropped, and the same again when it is decided again.
func TestReconcileIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvidence(t)
		v, _ := Reconcile(e)
		safe(t, e, v)
		again := e
		again.Known = &v
		if w, _ := Reconcile(again); encode(withVersion(w, 0)) != encode(withVersion(v, 0)) {
			t.Fatalf("decided again it is another\nfirst  %s\nsecond %s", encode(v), encode(w))
		}
		if e.Known != nil && v.Version < e.Known.Version {
			t.Fatalf("version %d after %d", v.Version, e.Known.Version)
		}
	})
}

// A node that reports after the others have gone on takes nothing from them.
func TestReconcileLateIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvidence(t)
		late := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "late")
		early := e
		early.Reported = maps.Clone(e.Reported)
		early.Reported[late] = false
		early.Copies = slices.DeleteFunc(slices.Clone(e.Copies), func(c Copy) bool { return c.Node == late })
		second := e
		second.Reported, second.Settled = maps.Clone(e.Reported), maps.Clone(early.Reported)
		second.Reported[late] = true
		second.Copies = slices.DeleteFunc(slices.Clone(e.Copies), func(c Copy) bool { return c.Node != late })
		if early.Known == nil && len(early.Copies) == 0 {
			second.Known = nil
			v, _ := Reconcile(second)
			safe(t, second, v)
			return
		}
		first, _ := Reconcile(early)
		safe(t, early, first)
		second.Known = &first
		v, _ := Reconcile(second)
		safe(t, second, v)
		for b, was := range first.Heads {
			if h := v.Heads[b]; was.Ready && early.Reported[was.Node] && (h.Node != was.Node || h.Pool != was.Pool) {
				t.Fatalf("%s, used at %s since the recovery, was taken by %s\n%s", b, was.Node, h.Node, encode(v))
			}
		}
	})
}

func safe(t *rapid.T, e Evidence, v api.Volume) {
	fail := func(why string) {
		t.Fatalf("%s\nevidence %+v\nknown %s\nresult %s", why, e, knownText(e), encode(v))
	}
	kept := func(c Copy) bool {
		for _, h := range v.Heads {
			if h.Kept != nil && h.Kept.Branch == c.Branch && h.Kept.Epoch == c.Epoch && h.Node == c.Node && h.Pool == c.Pool {
				return true
			}
		}
		return false
	}
	if e.Known != nil {
		for b := range e.Known.Heads {
			if _, ok := v.Heads[b]; !ok {
				fail("branch " + b + " of the backup is dropped")
			}
		}
	}
	for _, c := range e.Copies {
		h, ok := v.Heads[c.Branch]
		owns := h.Node == c.Node && h.Pool == c.Pool
		switch {
		case !ok:
			fail("a branch that a pool holds is dropped")
		case h.Epoch < c.Epoch:
			fail("the epoch is lower than a pool's")
		case c.Released == "" && h.Epoch == c.Epoch && !owns && !kept(c):
			fail("two own one epoch")
		case c.Released == "" && !owns && !kept(c) && h.Stranded[c.Node] == 0 && h.Node != c.Node:
			fail("a copy that was not let go of is forgotten")
		}
		if c.Released != "" && owns && h.Ready && h.Epoch == c.Epoch && !e.Reported[c.To] && !e.Settled[h.Node] {
			fail("a head is resurrected that was let go to a node that has not reported")
		}
	}
	for b, h := range v.Heads {
		if h.Node == "" || h.Pool == "" || h.Epoch == 0 {
			fail("branch " + b + " has no owner")
		}
		if !e.Settled[h.Node] && h.Move != nil {
			fail("a wish of before is left")
		}
	}
}

func knownText(e Evidence) string {
	if e.Known == nil {
		return "none"
	}
	return encode(*e.Known)
}

func TestRename(t *testing.T) {
	list := []api.Volume{
		{ID: "1111111111", Name: "pg", Created: noon},
		{ID: "2222222222", Name: "pg", Created: noon.Add(time.Hour)},
		{ID: "3333333333", Name: "pg", Created: noon.Add(2 * time.Hour)},
		{ID: "4444444444", Name: "pg", Created: noon, Deleted: &api.Deletion{}},
		{ID: "5555555555", Name: "other", Created: noon},
	}
	found := Rename(list, func(id string) bool { return id == "3333333333" })
	var got []string
	for _, v := range list {
		got = append(got, v.Name)
	}
	if want := "pg-recovered-11111111 pg pg-recovered-33333333 pg other"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if len(found) != 2 {
		t.Errorf("findings %v", found)
	}
}
