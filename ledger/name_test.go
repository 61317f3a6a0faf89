package ledger

import (
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Nodes name volumes to each other by their ids: a volume that is called like
// another one's id must not get what was meant for that one.
func TestANameIsNeverTakenForAnID(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	store := state.New(state.NewMemory())
	s := &Service{Store: store, Now: time.Now, NewID: func() string { return "x" }, Grace: time.Hour}
	if err := store.Update(t.Context(), func(tx *state.Tx) error { return state.Nodes.Put(tx, "a", api.Node{Name: "a"}) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), Create{ID: id, Name: "pg", Node: "a", Pool: "p"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), Create{ID: "1", Name: id, Node: "a", Pool: "p"}); !api.Is(err, api.Invalid) {
		t.Errorf("created: %v", err)
	}
	// One that was made before this was refused.
	err := s.Store.Update(t.Context(), func(tx *state.Tx) error {
		if err := state.Volumes.Put(tx, "1", api.Volume{ID: "1", Name: id}); err != nil {
			return err
		}
		return state.Names.Put(tx, id, "1")
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := s.Volume(t.Context(), id); err != nil || v.Name != "pg" {
		t.Errorf("looked up: %+v %v", v, err)
	}
	if _, err := s.Volume(t.Context(), "pg@trial"); !api.Is(err, api.NotFound) || !strings.Contains(err.Error(), "write pg; drover branch pg") {
		t.Errorf("a branch where a volume is wanted: %v", err)
	}
	v, err := s.Volume(t.Context(), "pg")
	if err != nil {
		t.Fatal(err)
	}
	v.Deleted = &api.Deletion{}
	if _, err := Restore(v, id); !api.Is(err, api.Invalid) {
		t.Errorf("restored: %v", err)
	}
}

// A branch that is made anew, when the one of its name was deleted so long ago
// that it is forgotten, has a later epoch: a pool that was away may still hold
// the old one, and it must never pass for the new.
func TestAForgottenBranchLeavesItsEpoch(t *testing.T) {
	v, err := New(Create{ID: "id", Name: "pg", Node: "a", Pool: "p"}, t0)
	if err != nil {
		t.Fatal(err)
	}
	now := t0
	step := func(c Change) {
		t.Helper()
		var err error
		if v, err = Apply(v, c, now, time.Hour); err != nil {
			t.Fatal(err)
		}
		for name, h := range v.Heads {
			h.Ready = true
			v.Heads[name] = h
		}
	}
	step(Change{NewBranch: &NewBranch{Branch: "x", Node: "a", Pool: "p", Seed: cid(1), Commit: cid(1)}})
	was := v.Heads["x"].Epoch
	step(Change{DropBranch: &DropBranch{Branch: "x", Node: "a", Epoch: was, From: cid(1), Kept: cid(2)}})
	now = now.Add(2 * time.Hour)
	step(Change{ForgetDropped: true})
	if len(v.Dropped) > 0 {
		t.Fatalf("it is not forgotten: %+v", v.Dropped)
	}
	step(Change{NewBranch: &NewBranch{Branch: "x", Node: "a", Pool: "p", Seed: cid(3), Commit: cid(3)}})
	if now := v.Heads["x"].Epoch; now <= was {
		t.Errorf("x is back at epoch %d, and was at %d", now, was)
	}
}
