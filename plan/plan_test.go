package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// seen is an owner's view of a healthy head of epoch 3 in pool p, changed by f.
func seen(f func(*Observed, *api.Head)) Observed {
	o := Observed{
		Node: "a", Branch: "main", Now: noon, Fresh: true,
		Pools:  map[string]api.PoolState{"p": api.PoolReady, "q": api.PoolReady},
		Copies: []Copy{{Pool: "p", Epoch: 3}},
		Base:   map[string]bool{}, Needed: map[string]bool{},
	}
	h := api.Head{Node: "a", Pool: "p", Epoch: 3, Seed: "s", Ready: true}
	f(&o, &h)
	if o.Volume.ID == "" {
		o.Volume.ID = "v"
	}
	o.Volume.Heads = map[string]api.Head{"main": h}
	return o
}

func text(list []Action) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, "; ")
}

func TestNext(t *testing.T) {
	elsewhere := func(h *api.Head) { h.Node, h.Epoch, h.From, h.FromPool = "b", 4, "a", "p" }
	for _, c := range []struct {
		name string
		f    func(*Observed, *api.Head)
		want string
	}{
		{"all is well", func(*Observed, *api.Head) {}, ""},
		{"the store was not read", func(o *Observed, _ *api.Head) { o.Fresh = false }, "wait for the state store, to know who owns the head"},
		{"a new head", func(o *Observed, h *api.Head) { o.Copies, h.Ready, h.Epoch, h.Seed = nil, false, 1, "" }, "make head in pool p, empty, epoch 1; report epoch 1 ready"},
		{"a head that arrived", func(o *Observed, h *api.Head) { o.Copies, h.Ready = nil, false }, "make head in pool p, from snapshot s, epoch 3; report epoch 3 ready"},
		{"made but not reported", func(_ *Observed, h *api.Head) { h.Ready = false }, "report epoch 3 ready"},
		{"missing", func(o *Observed, _ *api.Head) { o.Copies = nil }, "alarm: the head should be in pool p and is not there; nothing is made in its place"},
		{"the pool is gone", func(o *Observed, _ *api.Head) { o.Copies, o.Pools["p"] = nil, api.PoolGone }, "wait for pool p, which is not there"},
		{"the pool is no pool of the node", func(o *Observed, _ *api.Head) { delete(o.Pools, "p") }, "alarm: pool p is not a pool of a: add it again with drover pool add"},
		{"the pool is ahead of the record", func(o *Observed, _ *api.Head) { o.Copies[0].Epoch = 4 }, "alarm: the pool remembers epoch 4, the record says 3: the state store is older than the data; nothing is changed here until a newer state is restored"},
		{"an old copy that was let go of", func(o *Observed, h *api.Head) {
			o.Copies[0] = Copy{Pool: "p", Epoch: 1, Released: true, ReleasedFor: "m"}
			h.Ready = false
		}, "remove head of epoch 1 from pool p; make head in pool p, from snapshot s, epoch 3; report epoch 3 ready"},
		{"an old copy that never was", func(o *Observed, h *api.Head) { o.Copies[0].Epoch, h.Ready = 1, false }, "alarm: the pool holds a copy of epoch 1 that may not have been handed over, where epoch 3 is to be made; it is kept"},
		{"handed over, not yet held", func(o *Observed, h *api.Head) {
			elsewhere(h)
			h.Ready = false
			o.Copies[0].Released = true
		}, "wait for b to hold the head; until then the copy here stays"},
		{"handed over and held", func(o *Observed, h *api.Head) {
			elsewhere(h)
			o.Copies[0].Released = true
		}, "remove head of epoch 3 from pool p; report epoch 4 settled"},
		{"taken over without this node's word", func(_ *Observed, h *api.Head) { elsewhere(h) }, "alarm: b took the head over at epoch 4; this node's copy of epoch 3 is kept and not mounted"},
		{"in use where it is not owned", func(o *Observed, h *api.Head) {
			elsewhere(h)
			o.Copies[0].Released, o.InUse = true, true
		}, "alarm: a copy of epoch 3 is in use here, while b owns epoch 4"},
		{"a withdrawn move", func(o *Observed, _ *api.Head) {
			o.Copies[0].Released, o.Copies[0].ReleasedFor, o.Closed, o.Stopped = true, "m", "m", "m"
		}, "allow mounts again; start the containers again that were stopped for the move"},
		{"another move before the first is undone", func(o *Observed, h *api.Head) {
			o.Closed, o.Stopped, h.Move = "m", "m", &api.Move{ID: "n", To: "b", Pool: "p"}
		}, "allow mounts again; start the containers again that were stopped for the move"},
		{"moved within the node", func(o *Observed, h *api.Head) {
			h.Pool, h.From, h.FromPool, h.Epoch = "q", "a", "p", 4
			o.Copies = []Copy{{Pool: "p", Epoch: 3, Released: true, ReleasedFor: "m"}, {Pool: "q", Epoch: 4}}
			o.Closed, o.Stopped = "m", "m"
		}, "remove head of epoch 3 from pool p; report epoch 4 settled; allow mounts again; start the containers again that were stopped for the move"},
		{"snapshots that nothing needs", func(o *Observed, _ *api.Head) {
			o.Snapshots = []Snapshot{{Pool: "p", ID: "s"}, {Pool: "p", ID: "base"}, {Pool: "p", ID: "now"}, {Pool: "q", ID: "old"}}
			o.Base["base"], o.Needed["now"] = true, true
		}, "remove snapshot old from pool q"},
		{"deleted", func(o *Observed, _ *api.Head) { o.Volume.Deleted = &api.Deletion{Purge: noon.Add(time.Hour)} }, "wait for the end of the volume's grace"},
		{"its grace has ended", func(o *Observed, _ *api.Head) { o.Volume.Deleted = &api.Deletion{Purge: noon} }, "end the time in which it can be restored"},
		{"its purge was begun", func(o *Observed, _ *api.Head) {
			o.Volume.Deleted = &api.Deletion{Purge: noon, Purging: true}
		}, "remove all data of the volume"},
		{"deleted on its way here", func(o *Observed, h *api.Head) {
			o.Volume.Deleted, o.Copies = &api.Deletion{Purge: noon.Add(time.Hour)}, nil
			h.Ready, h.From, h.FromPool, h.Seed = false, "b", "q", "s"
		}, "make head in pool p, from snapshot s, epoch 3; report epoch 3 ready"},
		{"its grace has ended in use", func(o *Observed, _ *api.Head) {
			o.Volume.Deleted, o.InUse = &api.Deletion{Purge: noon}, true
		}, "alarm: the volume's grace has ended, but it is in use; nothing is removed"},
		{"resized, renamed, awaited", func(o *Observed, _ *api.Head) {
			o.Volume.Size, o.Copies[0].Sizes, o.Copies[0].Stale, o.Arriving = 1<<30, true, true, true
		}, "limit size to 1073741824 bytes; write epoch 3 beside the data; start the containers that use it"},
	} {
		if got := text(Next(seen(c.f))); got != c.want {
			t.Errorf("%s:\n got  %s\n want %s", c.name, got, c.want)
		}
	}
}

func TestPreview(t *testing.T) {
	for _, c := range []struct {
		name string
		m    MoveState
		want string
	}{
		{"instant and used", MoveState{Atomic: true, Instant: true, Users: true, Movable: true, Holders: "x", Mounted: true}, `check that b can take it in pool p
take a snapshot
send snapshot first within the bandwidth limit
take a snapshot
send snapshot second within the bandwidth limit
run the hook in the containers that use it
refuse new mounts
stop the containers that use it
unmount
take the last snapshot
send snapshot last
write beside the data that epoch 3 is released
hand epoch 3 over to b`},
		{"a directory, unused", MoveState{}, `check that b can take it in pool p
refuse new mounts
make the head the last snapshot
send snapshot last
write beside the data that epoch 3 is released
hand epoch 3 over to b`},
		{"refused", MoveState{Users: true, Holders: "container db"}, "cancel the move: it is used by container db, which Drover cannot stop"},
	} {
		var got []string
		for _, a := range Preview(c.m, api.Move{To: "b", Pool: "p"}, 3) {
			got = append(got, a.String())
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s:\n%s", c.name, strings.Join(got, "\n"))
		}
	}
}

func TestConverged(t *testing.T) {
	for _, c := range []struct {
		sent []int64
		want bool
	}{
		{nil, false},
		{[]int64{small}, true},
		{[]int64{small * 100}, false},
		{[]int64{small * 100, small * 90, small * 80}, true}, // it no longer shrinks
		{[]int64{small * 100, small * 50, small * 25}, false},
	} {
		var rounds []Round
		for i, n := range c.sent {
			rounds = append(rounds, Round{ID: fmt.Sprint(i), Sent: n})
		}
		if got := converged(rounds); got != c.want {
			t.Errorf("%v: %v", c.sent, got)
		}
	}
}
