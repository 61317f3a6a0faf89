package repo

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func entries(t *rapid.T, n int) []api.RefLogEntry {
	var log []api.RefLogEntry
	for i := range n {
		log = append(log, api.RefLogEntry{Branch: "main", To: id(i), Tip: api.Tip{
			Op: rapid.SampledFrom([]string{OpCommit, OpReset, OpUndo}).Draw(t, "op"), From: id(i - 1), By: rapid.StringN(0, 40, 200).Draw(t, "by"),
			At: start.Add(time.Duration(i) * time.Second), Note: rapid.StringN(0, 100, 400).Draw(t, "note"),
		}})
	}
	return log
}

// A reflog comes back as it was, or its newest part where it is too large.
func TestRefLogPacks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := entries(t, rapid.IntRange(0, 260).Draw(t, "entries"))
		packed, err := PackRefLog(log)
		if err != nil {
			t.Fatal(err)
		}
		if len(packed) > maxPacked {
			t.Fatalf("%d bytes", len(packed))
		}
		back, err := UnpackRefLog(packed)
		if err != nil {
			t.Fatal(err)
		}
		if len(log) > 0 && (len(back) == 0 || len(back) > MaxRefLog) {
			t.Fatalf("%d of %d entries came back", len(back), len(log))
		}
		want, _ := json.Marshal(log[len(log)-len(back):])
		if got, _ := json.Marshal(back); len(back) > 0 && string(got) != string(want) {
			t.Fatalf("%s\nis not the end of\n%s", got, want)
		}
	})
}

func FuzzUnpackRefLog(f *testing.F) {
	packed, err := PackRefLog([]api.RefLogEntry{{Branch: "main", To: id(1), Tip: api.Tip{Op: OpCommit, By: "me", At: start}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add([]byte{})
	f.Add([]byte("nonsense"))
	f.Add(packed[:len(packed)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		log, err := UnpackRefLog(data)
		if err != nil && !api.Is(err, api.Damaged) {
			t.Fatal(err)
		}
		if len(log) > MaxRefLog {
			t.Fatalf("%d entries", len(log))
		}
		if again, err := PackRefLog(log); err != nil || len(again) > maxPacked {
			t.Fatalf("%d bytes: %v", len(again), err)
		}
	})
}

func FuzzReadNote(f *testing.F) {
	text, err := json.Marshal(Note{Commit: &api.Commit{ID: id(1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"commit":null}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := ReadNote(data)
		again, err := json.Marshal(n)
		if err != nil {
			return // times that JSON cannot hold
		}
		if back := ReadNote(again); !reflect.DeepEqual(back.Commit == nil, n.Commit == nil) {
			t.Fatalf("%s became %s", data, again)
		}
	})
}

// However often the reflog was written in between, it ends up with every move.
func TestFollowMissesNoCommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Graph{}
		var log []api.RefLogEntry
		var want []string
		tip, how := "", (*api.Tip)(nil)
		n := rapid.IntRange(1, 30).Draw(t, "moves")
		for i := range n {
			at := start.Add(time.Duration(i) * time.Minute)
			op := OpCommit
			to := id(i)
			if i > 0 && rapid.IntRange(0, 4).Draw(t, "reset") == 0 {
				op, to = OpReset, id(rapid.IntRange(0, i-1).Draw(t, "to"))
			}
			if op == OpCommit {
				c := api.Commit{ID: to, Time: at, Author: "me", Message: "m"}
				if tip != "" {
					c.Parents = []string{tip}
				}
				g[to] = c
			} else if _, there := g[to]; !there {
				continue
			} else {
				// Whatever replaces a head writes its note first.
				log, _ = g.Follow(log, "main", tip, how)
			}
			how = &api.Tip{Op: op, From: tip, By: "me", At: at}
			tip = to
			want = append(want, to)
			if op == OpReset || rapid.Bool().Draw(t, "write") {
				log, _ = g.Follow(log, "main", tip, how)
			}
		}
		log, _ = g.Follow(log, "main", tip, how)
		if _, more := g.Follow(log, "main", tip, how); more {
			t.Fatal("it is never up to date")
		}
		var got []string
		for _, e := range log {
			got = append(got, e.To)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestStashes(t *testing.T) {
	log := []api.RefLogEntry{
		{Tip: api.Tip{Op: OpStash, Kept: "a"}}, {Tip: api.Tip{Op: OpReset, Kept: "b"}}, {Tip: api.Tip{Op: OpPop, Note: "a"}}, {Tip: api.Tip{Op: OpStash, Kept: "c"}},
	}
	if got := Stashes(log); !slices.Equal(got, []string{"c", "b"}) {
		t.Error(got)
	}
	log = append(log, api.RefLogEntry{Tip: api.Tip{Op: OpDrop, Note: "b"}})
	if got := Stashes(log); !slices.Equal(got, []string{"c"}) {
		t.Errorf("after a drop: %v", got)
	}
	if slices.Contains(Named(log), "b") {
		t.Error("a stash that was dropped is still named")
	}
	log = append(log, api.RefLogEntry{Tip: api.Tip{Op: OpUndo, Note: UndoneDrop + "b"}})
	if got := Stashes(log); !slices.Equal(got, []string{"c", "b"}) || !slices.Contains(Named(log), "b") {
		t.Errorf("after that was undone: %v", got)
	}
	if got := Subject("one\ntwo"); got != "one" {
		t.Error(got)
	}
}
