package ledger

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func volume(t *testing.T) api.Volume {
	t.Helper()
	v, err := New(Create{ID: "id", Name: "pg", Node: "a", Pool: "p"}, t0)
	if err != nil {
		t.Fatal(err)
	}
	v, err = Ready(v, api.MainBranch, "a", 1)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestHandOverIsOnceAndByTheOwner(t *testing.T) {
	v := volume(t)
	v, err := RequestMove(v, "main", api.Move{ID: "m", To: "b", Pool: "p"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    HandOver
		kind api.Kind
	}{
		{HandOver{Node: "b", Epoch: 1, Move: "m", Snapshot: "s"}, api.Conflict},
		{HandOver{Node: "a", Epoch: 2, Move: "m", Snapshot: "s"}, api.Conflict},
		{HandOver{Node: "a", Epoch: 1, Move: "other", Snapshot: "s"}, api.Canceled},
	} {
		if _, err := Hand(v, "main", c.o, t0); !api.Is(err, c.kind) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	o := HandOver{Node: "a", Epoch: 1, Move: "m", Snapshot: "s", Departed: []string{"db"}}
	v, err = Hand(v, "main", o, t0)
	if err != nil {
		t.Fatal(err)
	}
	h := v.Heads["main"]
	if h.Node != "b" || h.Epoch != 2 || h.Seed != "s" || h.Ready || h.From != "a" || h.Move != nil || h.Away["a"].To != "b" {
		t.Fatalf("after the hand-over: %+v", h)
	}
	again, err := Hand(v, "main", o, t0.Add(time.Hour))
	if err != nil || encode(again) != encode(v) {
		t.Errorf("repeated: %v %+v", err, again)
	}
	if _, err := Settled(v, "main", "a", 2); !api.Is(err, api.Conflict) {
		t.Errorf("settled before ready: %v", err)
	}
	if _, err := RequestMove(v, "main", api.Move{ID: "m2", To: "c"}); !api.Is(err, api.Unavailable) {
		t.Errorf("moved on before ready: %v", err)
	}
}

func TestGrace(t *testing.T) {
	v := volume(t)
	v, err := Delete(v, "ann", t0, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Forget(v, "main", "a", 1); !api.Is(err, api.Conflict) {
		t.Errorf("forgotten within the grace: %v", err)
	}
	if _, err := BeginPurge(v, t0.Add(23*time.Hour)); !api.Is(err, api.Conflict) {
		t.Errorf("purged within the grace: %v", err)
	}
	if _, err := RequestMove(v, "main", api.Move{ID: "m", To: "b"}); !api.Is(err, api.NotFound) {
		t.Errorf("deleted and moved: %v", err)
	}
	back, err := Restore(v, "")
	if err != nil || back.Deleted != nil {
		t.Errorf("restore: %v", err)
	}
	now, err := PurgeNow(v, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	now, err = BeginPurge(now, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(now, ""); !api.Is(err, api.NotFound) {
		t.Errorf("restored while its data is being removed: %v", err)
	}
	if _, _, err := Forget(now, "main", "b", 1); !api.Is(err, api.Conflict) {
		t.Errorf("forgotten by a stranger: %v", err)
	}
	if _, gone, err := Forget(now, "main", "a", 1); err != nil || !gone {
		t.Errorf("purge: %v %v", gone, err)
	}
}

// Any sequence of requests, by anybody, in any order and repeated, keeps one
// owner whose epoch only grows, and changes the owner only on the owner's word.
func TestRulesHold(t *testing.T) {
	nodes := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		v, err := New(Create{ID: "id", Name: "pg", Node: "a", Pool: "p"}, t0)
		if err != nil {
			t.Fatal(err)
		}
		node := func() string { return rapid.SampledFrom(nodes).Draw(t, "node") }
		epoch := func() uint64 { return rapid.Uint64Range(0, 4).Draw(t, "epoch") }
		move := func() string { return fmt.Sprint("m", rapid.IntRange(0, 3).Draw(t, "move")) }
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			before := v.Heads["main"]
			var by HandOver
			next := v
			var err error
			switch rapid.IntRange(0, 6).Draw(t, "rule") {
			case 0:
				next, err = RequestMove(v, "main", api.Move{ID: move(), To: node(), Pool: "p"})
			case 1:
				next, err = CancelMove(v, "main", move())
			case 2:
				by = HandOver{Node: node(), Epoch: epoch(), Move: move(), Snapshot: "s"}
				next, err = Hand(v, "main", by, t0)
			case 3:
				next, err = Ready(v, "main", node(), epoch())
			case 4:
				next, err = Settled(v, "main", node(), epoch())
			case 5:
				next, err = Delete(v, "x", t0, time.Hour)
			case 6:
				next, err = Restore(v, "")
			}
			if err != nil {
				if encode(next) != encode(v) {
					t.Fatalf("a refused change changed the record: %v", err)
				}
				continue
			}
			after := next.Heads["main"]
			switch {
			case after.Epoch == before.Epoch:
				if after.Node != before.Node || after.Pool != before.Pool || after.Seed != before.Seed {
					t.Fatalf("the owner changed within an epoch: %+v -> %+v", before, after)
				}
				if before.Ready && !after.Ready {
					t.Fatalf("a ready head became unready within its epoch")
				}
			case after.Epoch == before.Epoch+1:
				if by.Node != before.Node || by.Epoch != before.Epoch || before.Move == nil || before.Move.ID != by.Move {
					t.Fatalf("handed over by %+v: %+v -> %+v", by, before, after)
				}
			default:
				t.Fatalf("epoch went from %d to %d", before.Epoch, after.Epoch)
			}
			if !slices.Contains(Concerned(next), after.Node) {
				t.Fatal("the owner is not concerned")
			}
			if after.From != "" && !slices.Contains(Concerned(next), after.From) {
				t.Fatal("the previous owner is not concerned")
			}
			v = next
		}
	})
}
