package plan

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

// TestWorkIsSafe draws where a command stands, possible or not, and looks that
// nothing is replaced before it is kept, and nothing let go of while it is used.
func TestWorkIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := anything(t)
		flip := func(name string) bool { return rapid.Bool().Draw(t, name) }
		w := &Work{
			ID: rapid.SampledFrom([]string{"w", "m"}).Draw(t, "id"), Kind: rapid.SampledFrom([]WorkKind{WorkReset, WorkCheckout}).Draw(t, "kind"),
			Epoch: uint64(rapid.IntRange(1, 5).Draw(t, "work's epoch")), Closed: flip("work closed"), Users: flip("work users"), Stuck: flip("stuck"),
			Mounted: flip("work mounted"), Kept: flip("kept"), Released: flip("work released"), Done: flip("done"),
		}
		if flip("work holders") {
			w.Holders = "somebody"
		}
		if flip("work failed") {
			w.Failed = "it failed"
		}
		o.Work = w
		h := o.Volume.Heads["main"]
		kept := w.Kept
		for _, a := range Next(o) {
			switch a := a.(type) {
			case KeepUncommitted:
				kept = true
				if !w.Closed || w.Users || w.Holders != "" || w.Mounted {
					t.Fatal("what is not committed is kept while somebody may write more")
				}
			case ReleaseForWork:
				if !kept || !w.Closed || w.Users || w.Holders != "" || w.Mounted || w.Kind != WorkReset {
					t.Fatalf("a head is let go of that is used, or not kept: %+v", w)
				}
			case ResetHead:
				if h.Node != o.Node || !o.Fresh || w.Epoch != h.Epoch || !w.Closed || w.Users || (!w.Released && !kept) {
					t.Fatalf("a head is replaced that is not to be: %+v", w)
				}
			case SwitchBranch:
				if w.Kind != WorkCheckout || w.Users || !w.Closed {
					t.Fatalf("the plain name changes its meaning under its users: %+v", w)
				}
			case EndWork:
				if a.Reason == "" && !w.Done {
					t.Fatal("a command ends without effect or reason")
				}
			}
		}
	})
}

// TestWorkEnds lets every step of a command work, fail for good anywhere or
// not, and looks that it ends and what it stopped is started.
func TestWorkEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]WorkKind{WorkReset, WorkCheckout}).Draw(t, "kind")
		h := api.Head{Node: "a", Pool: "p", Epoch: 3, Ready: true}
		w := Work{ID: "w", Kind: kind, Epoch: 3, Users: rapid.Bool().Draw(t, "users"), Mounted: kind == WorkReset}
		failAt := rapid.IntRange(0, 12).Draw(t, "fails at")
		for step := range 20 {
			list := work(w, h)
			if len(list) == 0 {
				t.Fatal("it does nothing")
			}
			for _, a := range list {
				if step == failAt && !w.Done {
					w.Failed = "so it is wished"
				}
				switch a := a.(type) {
				case CloseForWork:
					w.Closed = true
				case StopForWork:
					w.Users = false
				case UnmountHead:
					w.Mounted = false
				case KeepUncommitted:
					w.Kept = true
				case ReleaseForWork:
					w.Released = true
				case ResetHead:
					h.Epoch++
					w.Done = true
				case SwitchBranch:
					w.Done = true
				case EndWork:
					if (a.Reason == "") != w.Done {
						t.Fatalf("it ends with %q, done: %v", a.Reason, w.Done)
					}
					return
				default:
					t.Fatalf("%s", a)
				}
			}
		}
		t.Fatal("it does not end")
	})
}

// What history reaches stays; what nothing reaches goes after a day.
func TestThinKeepsHistory(t *testing.T) {
	old, young := noon.Add(-25*time.Hour), noon.Add(-time.Hour)
	o := seen(func(o *Observed, h *api.Head) {
		o.Snapshots = []Snapshot{
			{Pool: "p", ID: "reached", Commit: true, Created: old},
			{Pool: "p", ID: "young", Commit: true, Created: young},
			{Pool: "p", ID: "old", Commit: true, Created: old},
			{Pool: "p", ID: "round", Created: young},
		}
		o.Keep = map[string]bool{"reached": true}
	})
	if got := text(thin(o, o.Volume.Heads["main"])); got != "remove snapshot old from pool p; remove snapshot round from pool p" {
		t.Error(got)
	}
	o.Unsure = true
	if got := text(thin(o, o.Volume.Heads["main"])); got != "remove snapshot round from pool p" {
		t.Error(got)
	}
}

// A head that was made a snapshot for a move that was withdrawn while the agent
// was away is all there is: no other branch of the volume clears it away.
func TestThinKeepsSealedHeads(t *testing.T) {
	o := seen(func(o *Observed, _ *api.Head) {
		o.Snapshots = []Snapshot{
			{Pool: "p", ID: "head", Sealed: "x", SealedEpoch: 5},
			{Pool: "p", ID: "former", Sealed: "x", SealedEpoch: 4},
			{Pool: "p", ID: "gone", Sealed: "y", SealedEpoch: 9},
		}
	})
	o.Volume.Heads["x"] = api.Head{Node: o.Node, Pool: "p", Epoch: 5, Ready: true}
	if got := text(thin(o, o.Volume.Heads["main"])); got != "remove snapshot former from pool p; remove snapshot gone from pool p" {
		t.Error(got)
	}
}

// A branch that the record does not have goes only when it was let go of.
func TestStray(t *testing.T) {
	o := seen(func(o *Observed, _ *api.Head) {
		o.Branch = "gone"
		o.Copies = []Copy{{Pool: "p", Epoch: 2, Released: true}}
	})
	if got := text(Next(o)); got != "remove head of epoch 2 from pool p" {
		t.Error(got)
	}
	for _, change := range []func(){
		func() { o.InUse = true },
		func() { o.InUse, o.Copies[0].Released = false, false },
		func() { o.Fresh = false },
	} {
		change()
		for _, a := range Next(o) {
			if _, drops := a.(DropHead); drops {
				t.Errorf("%+v: %s", o, a)
			}
		}
	}
}

// A branch is deleted by itself when its time has come, but never the current one.
func TestExpiry(t *testing.T) {
	o := seen(func(o *Observed, h *api.Head) { h.Expires = noon.Add(time.Hour) })
	if got := text(Next(o)); got != "look again in 1h0m0s" {
		t.Error(got)
	}
	o.Now = noon.Add(2 * time.Hour)
	if got := text(Next(o)); got != "delete the branch, whose time has come" {
		t.Error(got)
	}
	o.Volume.Branch = "main"
	if got := text(Next(o)); got != "" {
		t.Error(got)
	}
}
