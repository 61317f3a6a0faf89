package cluster

import (
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// A store of an earlier incarnation is never listened to, one of a later one
// is reported, and one that says nothing yet is not taken for empty.
func TestFence(t *testing.T) {
	for _, c := range []struct {
		name      string
		seen      uint64
		holds     *api.Cluster
		want      api.Kind
		wantLater bool
	}{
		{"the same", 2, &api.Cluster{ID: "c", Incarnation: 2}, "", false},
		{"the first that is found", 0, &api.Cluster{ID: "c", Incarnation: 7}, "", false},
		{"earlier", 3, &api.Cluster{ID: "c", Incarnation: 2}, api.Unavailable, false},
		{"later", 2, &api.Cluster{ID: "c", Incarnation: 3}, api.Unavailable, true},
		{"another cluster", 2, &api.Cluster{ID: "d", Incarnation: 2}, api.Denied, false},
		{"empty", 2, nil, api.Unavailable, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			kv := state.NewMemory()
			if c.holds != nil {
				if err := state.New(kv).Update(t.Context(), func(tx *state.Tx) error { return state.TheCluster.Put(tx, "cluster", *c.holds) }); err != nil {
					t.Fatal(err)
				}
			}
			f := NewFence(kv, "c", c.seen)
			store := state.New(f)
			check := func(what string, err error) {
				t.Helper()
				if (c.want == "" && err != nil) || (c.want != "" && !api.Is(err, c.want)) {
					t.Errorf("%s: %v, want %q", what, err, c.want)
				}
			}
			_, _, err := f.Get(t.Context(), "x")
			check("get", err)
			_, err = state.Nodes.All(t.Context(), store, "", func(string, api.Node, int64) error { return nil })
			check("list", err)
			check("commit", store.Update(t.Context(), func(tx *state.Tx) error { return state.Nodes.Put(tx, "n", api.Node{}) }))
			_, _, err = f.Lease(t.Context(), state.LeaseTTL)
			check("lease", err)
			select {
			case n := <-f.Later():
				if !c.wantLater || n != c.holds.Incarnation {
					t.Errorf("a later incarnation %d is reported", n)
				}
			default:
				if c.wantLater {
					t.Error("the later incarnation is not reported")
				}
			}
		})
	}
	// A store that turns into an earlier one under a running agent.
	f := NewFence(state.NewMemory(), "c", 2)
	if err := f.Look(api.Cluster{ID: "c", Incarnation: 2}); err != nil {
		t.Fatal(err)
	}
	if err := f.Look(api.Cluster{ID: "c", Incarnation: 1}); !api.Is(err, api.Unavailable) {
		t.Errorf("got %v", err)
	}
	if _, _, err := f.Get(t.Context(), "x"); !api.Is(err, api.Unavailable) {
		t.Errorf("got %v", err)
	}
}
