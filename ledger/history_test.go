package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

func cid(n int) string { return fmt.Sprintf("%040x", n+1) }

// TestHistoryRules draws changes of a volume's references, sensible or not,
// and looks after each that nothing was lost that should not be.
func TestHistoryRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, err := New(Create{ID: "id", Name: "pg", Node: "a", Pool: "p"}, t0)
		if err != nil {
			t.Fatal(err)
		}
		now, serial := t0, 0
		epochs := map[string]uint64{}
		pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
		branch := func() string { return pick("branch", "main", "x", "y", "z") }
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "minutes")) * time.Minute)
			serial++
			b := branch()
			h := v.Heads[b]
			node, epoch, from := h.Node, h.Epoch, h.Commit
			switch rapid.IntRange(0, 5).Draw(t, "wrong") {
			case 0:
				node = pick("node", "a", "b")
			case 1:
				epoch = uint64(rapid.IntRange(0, 9).Draw(t, "epoch"))
			case 2:
				from = cid(rapid.IntRange(0, serial).Draw(t, "from"))
			}
			tip := api.Tip{Op: "test", By: "t", At: now}
			var c Change
			switch rapid.IntRange(0, 9).Draw(t, "change") {
			case 0, 1:
				c.Advance = &Advance{Branch: b, Node: node, Epoch: epoch, From: from, To: cid(serial), Tip: tip}
			case 2:
				c.NewBranch = &NewBranch{Branch: b, Node: pick("node", "a", "b"), Pool: "p", Seed: cid(0), Commit: cid(0), Tip: tip}
			case 3:
				c.Switch = &Switch{From: branch(), To: b}
			case 4:
				c.Reset = &Reset{Branch: b, Node: node, Epoch: epoch, From: from, Seed: cid(serial), To: cid(serial), Tip: tip}
			case 5:
				c.DropBranch = &DropBranch{Branch: b, Node: node, Epoch: epoch, From: from, Kept: cid(serial)}
			case 6:
				c.RestoreBranch = &RestoreBranch{Branch: b, Node: pick("node", "a", "b")}
			case 7:
				c.RenameBranch = &RenameBranch{Branch: b, To: branch(), Node: node, Epoch: epoch, From: from, Seed: cid(serial)}
			case 8:
				c.Tag = &Tag{Name: pick("tag", "v1", "x"), Commit: cid(serial), Force: rapid.Bool().Draw(t, "force")}
			case 9:
				c.ForgetDropped = true
			}
			before := encode(v)
			after, err := Apply(v, c, now, 24*time.Hour)
			if encode(v) != before {
				t.Fatalf("%s changed the record that it was given", c.What())
			}
			if err != nil {
				if encode(after) != before {
					t.Fatalf("%s failed and changed something: %v", c.What(), err)
				}
				continue
			}
			checkStep(t, v, after, c, now)
			if again, err := Apply(after, c, now.Add(time.Minute), 24*time.Hour); err == nil && c.What() != "restore-branch" && c.What() != "switch" && encode(again) != encode(after) && encode(after) != before {
				t.Fatalf("%s again changed something:\n%s\n%s", c.What(), encode(after), encode(again))
			}
			for name, h := range after.Heads {
				if h.Epoch < epochs[name] {
					t.Fatalf("%s: the epoch of %s went from %d to %d", c.What(), name, epochs[name], h.Epoch)
				}
				if was, there := v.Heads[name]; !there && h.Epoch <= epochs[name] && epochs[name] > 0 {
					t.Fatalf("%s: %s came back at epoch %d, a copy of epoch %d may be there: %+v", c.What(), name, h.Epoch, epochs[name], was)
				}
				epochs[name] = h.Epoch
				h.Ready = true // the owner makes it at once
				after.Heads = maps.Clone(after.Heads)
				after.Heads[name] = h
			}
			v = after
		}
	})
}

// checkStep looks at one change that was made.
func checkStep(t *rapid.T, before, after api.Volume, c Change, now time.Time) {
	if _, there := after.Heads[after.Branch]; !there {
		t.Fatalf("%s left the plain name without a branch", c.What())
	}
	for name, h := range before.Heads {
		next, there := after.Heads[name]
		switch {
		case there && next.Commit != h.Commit:
			cas := c.Advance != nil && c.Advance.From == h.Commit && c.Advance.Node == h.Node && c.Advance.Epoch == h.Epoch ||
				c.Reset != nil && c.Reset.From == h.Commit && c.Reset.Node == h.Node && c.Reset.Epoch == h.Epoch
			if !cas || next.Tip == nil || next.Tip.From != h.Commit {
				t.Fatalf("%s moved the tip of %s from %s to %s", c.What(), name, h.Commit, next.Commit)
			}
		case there && next.Node != h.Node:
			t.Fatalf("%s changed the owner of %s", c.What(), name)
		case !there && c.RenameBranch != nil:
			if moved := after.Heads[c.RenameBranch.To]; moved.Commit != h.Commit || moved.Node != h.Node {
				t.Fatalf("renaming lost %s", name)
			}
		case !there:
			i := slices.IndexFunc(after.Dropped, func(d api.Dropped) bool { return d.Branch == name && d.Commit == h.Commit && d.Epoch == h.Epoch })
			if i < 0 || !after.Dropped[i].Purge.After(now) || c.DropBranch == nil {
				t.Fatalf("%s dropped %s without a record of it", c.What(), name)
			}
		}
	}
	for _, d := range before.Dropped {
		if slices.Contains(after.Dropped, d) || !now.Before(d.Purge) || (c.RestoreBranch != nil && c.RestoreBranch.Branch == d.Branch) {
			continue
		}
		t.Fatalf("%s forgot that %s was deleted", c.What(), d.Branch)
	}
	for name, id := range before.Tags {
		if after.Tags[name] != id && (c.Tag == nil || !c.Tag.Force) && c.Untag == nil {
			t.Fatalf("%s moved tag %s", c.What(), name)
		}
	}
}

func TestBoundsOfHistory(t *testing.T) {
	v := volume(t)
	v.Heads = maps.Clone(v.Heads)
	for i := len(v.Heads); i < api.MaxBranches; i++ {
		v.Heads[fmt.Sprint("b", i)] = api.Head{Node: "a", Pool: "p", Epoch: 1, Ready: true, Commit: cid(1)}
	}
	if _, err := Apply(v, Change{NewBranch: &NewBranch{Branch: "more", Node: "a", Pool: "p", Seed: cid(1), Commit: cid(1)}}, t0, time.Hour); !api.Is(err, api.Exhausted) {
		t.Errorf("a branch too many: %v", err)
	}
	for i := range api.MaxDropped {
		var err error
		if v, err = Apply(v, Change{DropBranch: &DropBranch{Branch: fmt.Sprint("b", i+1), Node: "a", Epoch: 1, From: cid(1)}}, t0, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	drop := Change{DropBranch: &DropBranch{Branch: "b500", Node: "a", Epoch: 1, From: cid(1)}}
	if _, err := Apply(v, drop, t0, time.Hour); !api.Is(err, api.Exhausted) {
		t.Errorf("one deleted too many: %v", err)
	}
	if after, err := Apply(v, drop, t0.Add(2*time.Hour), time.Hour); err != nil || len(after.Dropped) != 1 {
		t.Errorf("after their grace: %d %v", len(after.Dropped), err)
	}
	v.Tags = map[string]string{}
	for i := range api.MaxTags {
		v.Tags[fmt.Sprint("t", i)] = cid(1)
	}
	if _, err := Apply(v, Change{Tag: &Tag{Name: "more", Commit: cid(2)}}, t0, time.Hour); !api.Is(err, api.Exhausted) {
		t.Errorf("a tag too many: %v", err)
	}
	for _, c := range []Change{
		{Tag: &Tag{Name: "../x", Commit: cid(1)}},
		{Tag: &Tag{Name: "ok", Commit: "abc"}},
		{NewBranch: &NewBranch{Branch: "a b", Node: "a", Pool: "p", Seed: "s"}},
		{Hook: &SetHook{Hook: &api.Hook{Kind: "oracle"}}},
		{Hook: &SetHook{Hook: &api.Hook{Kind: "command"}}},
	} {
		if _, err := Apply(volume(t), c, t0, time.Hour); !api.Is(err, api.Invalid) {
			t.Errorf("%s: %v", c.What(), err)
		}
	}
	if _, err := Apply(volume(t), Change{}, t0, time.Hour); !api.Is(err, api.Unsupported) {
		t.Errorf("no change at all: %v", err)
	}
}

// AdvanceAll moves all tips or none.
func TestAdvanceAll(t *testing.T) {
	ctx := context.Background()
	n := 0
	s := &Service{Store: state.New(state.NewMemory()), Now: func() time.Time { return t0 }, NewID: func() string { n++; return fmt.Sprint("v", n) }, Grace: time.Hour}
	if err := s.Store.Update(ctx, func(tx *state.Tx) error { return state.Nodes.Put(tx, "a", api.Node{Name: "a"}) }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		if _, err := s.Create(ctx, Create{Name: name, Node: "a", Pool: "p"}); err != nil {
			t.Fatal(err)
		}
	}
	tips := func() string {
		one, err := s.Volume(ctx, "one")
		if err != nil {
			t.Fatal(err)
		}
		two, err := s.Volume(ctx, "two")
		if err != nil {
			t.Fatal(err)
		}
		return one.Heads["main"].Commit + " " + two.Heads["main"].Commit
	}
	move := func(from1, from2, to string) error {
		_, err := s.AdvanceAll(ctx, map[string]Advance{
			"v1": {Branch: "main", Node: "a", Epoch: 1, From: from1, To: to, Tip: api.Tip{At: t0}},
			"v2": {Branch: "main", Node: "a", Epoch: 1, From: from2, To: to, Tip: api.Tip{At: t0}},
		})
		return err
	}
	if err := move("", "", cid(1)); err != nil || tips() != cid(1)+" "+cid(1) {
		t.Fatalf("%v: %s", err, tips())
	}
	if err := move("", "", cid(1)); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := move(cid(1), cid(7), cid(2)); !api.Is(err, api.Conflict) || tips() != cid(1)+" "+cid(1) {
		t.Errorf("one is wrong: %v: %s", err, tips())
	}
	if err := move(cid(1), cid(1), cid(3)); err != nil || tips() != cid(3)+" "+cid(3) {
		t.Errorf("%v: %s", err, tips())
	}
}

// What an undo means is the last thing that happened.
func TestLast(t *testing.T) {
	v := volume(t)
	h := v.Heads["main"]
	h.Tip = &api.Tip{At: t0.Add(time.Hour)}
	v.Heads = map[string]api.Head{"main": h, "x": h}
	v.Dropped = []api.Dropped{{Branch: "y", At: t0}, {Branch: "x", At: t0.Add(2 * time.Hour)}, {Branch: "z", At: t0.Add(30 * time.Minute)}}
	for given, want := range map[string]string{"": "main", "main": "main", "x": "x", "y": "y dropped", "none": "none"} {
		if given == "" {
			v.Dropped[1].At, want = t0.Add(2*time.Hour), "x dropped"
		}
		branch, d := Last(v, given)
		if d != nil {
			branch += " dropped"
		}
		if branch != want {
			t.Errorf("%q: %s, want %s", given, branch, want)
		}
	}
}
