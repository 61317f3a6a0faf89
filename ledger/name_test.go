package ledger

import (
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
	v, err := s.Volume(t.Context(), "pg")
	if err != nil {
		t.Fatal(err)
	}
	v.Deleted = &api.Deletion{}
	if _, err := Restore(v, id); !api.Is(err, api.Invalid) {
		t.Errorf("restored: %v", err)
	}
}
