package agent_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/recovery"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
)

// A cluster of two comes back: until both have reported nothing new is mounted
// or made; of two heads of one epoch one goes on and the other becomes a
// branch, with all that was written to it.
func TestComesBack(t *testing.T) {
	for _, slow := range []bool{false, true} { // pools with and without instant snapshots
		synctest.Test(t, func(t *testing.T) { comesBack(t, slow) })
	}
}

func comesBack(t *testing.T, slow bool) {
	w := newWorld(t, 1, 2, func(string, string) bool { return slow })
	defer w.end()
	time.Sleep(2 * time.Second)
	a, b := w.hosts["a"], w.hosts["b"]
	v, err := a.current().a.NewVolume(t.Context(), api.CreateVolume{Name: "v", Pool: "default"})
	must(t, err)
	a.kill()
	b.kill()

	// b holds the same epoch: it was the owner in a state that was lost.
	key := storage.HeadKey{Volume: v.ID, Branch: "main"}
	twin := v
	twin.Heads = map[string]api.Head{"main": {Node: "b", Pool: "default", Epoch: 1, Ready: true}}
	note, err := json.Marshal(map[string]any{"format": 1, "cluster": "sim", "branch": "main", "epoch": 1, "volume": twin})
	must(t, err)
	_, err = b.pools["default"].CreateHead(t.Context(), storage.HeadSpec{Key: key, Note: note})
	must(t, err)

	must(t, w.store.Update(t.Context(), func(tx *state.Tx) error {
		return state.TheCluster.Put(tx, "cluster", api.Cluster{ID: "sim", Incarnation: 2, Recovery: &api.ClusterRecovery{Awaiting: map[string]string{"a": "pools", "b": "pools"}}})
	}))
	service := &recovery.Service{
		Store: w.store, Ledger: w.truth, Now: time.Now, Grace: time.Hour,
		Issued: func(*state.Tx, string, string) error { return nil }, Tell: func(api.Event) {},
	}
	for _, h := range []*host{a, b} {
		h.incarnation = 2
		h.report = func(ctx context.Context, r ledger.Report) error {
			return service.Report(ctx, auth.Identity{Kind: auth.NodeKind, Name: h.name}, r)
		}
	}

	a.start()
	time.Sleep(10 * time.Second)
	held := a.current().a
	if why := held.OnHold(); why == "" {
		t.Error("a goes on though b has not reported")
	}
	if _, err := held.Mount(t.Context(), "v", "m1"); !api.Is(err, api.Unknown) {
		t.Errorf("a mount in the midst of it: %v", err)
	}
	if err := held.Create(t.Context(), api.CreateVolume{Name: "new"}); !api.Is(err, api.Unknown) {
		t.Errorf("a new volume in the midst of it: %v", err)
	}
	if _, err := held.StartMove(t.Context(), v.ID, api.StartMove{To: "b"}, "eve"); !api.Is(err, api.Unknown) {
		t.Errorf("a move in the midst of it: %v", err)
	}
	if err := held.Delete(t.Context(), v.ID, "eve"); !api.Is(err, api.Unknown) {
		t.Errorf("a deletion in the midst of it: %v", err)
	}

	b.start()
	time.Sleep(2 * time.Minute)
	for _, h := range []*host{a, b} {
		if why := h.current().a.OnHold(); why != "" {
			t.Errorf("%s is held: %s", h.name, why)
		}
	}
	rec, err := w.truth.Volume(t.Context(), "v")
	must(t, err)
	const branch = "main-b-epoch1"
	if h := rec.Heads["main"]; h.Node != "a" || h.Epoch != 2 {
		t.Errorf("main %+v", h)
	}
	if h := rec.Heads[branch]; h.Node != "b" || !h.Ready || h.Kept == nil || h.Kept.Why == "" {
		t.Errorf("the branch %+v", h)
	}
	hd, err := a.pools["default"].Head(t.Context(), key)
	must(t, err)
	if epoch := agent.NoteEpoch(hd.Note); epoch != 2 {
		t.Errorf("a's pool remembers epoch %d", epoch)
	}
	if _, err := b.pools["default"].Head(t.Context(), key); !api.Is(err, api.NotFound) {
		t.Errorf("the copy that lost: %v", err)
	}
	_, err = b.pools["default"].Head(t.Context(), storage.HeadKey{Volume: v.ID, Branch: branch})
	must(t, err)
	_, err = a.current().a.Mount(t.Context(), "v", "m2")
	must(t, err)
	_, err = b.current().a.Mount(t.Context(), "v@"+branch, "m3")
	must(t, err)
	if err := a.current().a.Create(t.Context(), api.CreateVolume{Name: "new"}); err != nil {
		t.Errorf("a new volume afterwards: %v", err)
	}
	w.report(0)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
