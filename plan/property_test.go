package plan

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"pgregory.net/rapid"
)

// anything draws an observation with no regard to what can be.
func anything(t *rapid.T) Observed {
	flip := func(name string) bool { return rapid.Bool().Draw(t, name) }
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	epoch := func(name string) uint64 { return uint64(rapid.IntRange(0, 4).Draw(t, name)) }
	o := Observed{
		Node: "a", Branch: "main", Now: noon, Fresh: flip("fresh"), Pools: map[string]api.PoolState{},
		Base: map[string]bool{}, Needed: map[string]bool{}, Arriving: flip("arriving"), InUse: flip("in use"),
		Stopped: pick("stopped", "", "m", "n"), Closed: pick("closed", "", "m", "n"),
	}
	for _, p := range []string{"p", "q"} {
		if state := pick("pool "+p, "", "ready", "full", "read-only", "gone"); state != "" {
			o.Pools[p] = api.PoolState(state)
		}
		if flip("copy in " + p) {
			c := Copy{Pool: p, Epoch: epoch("copy's epoch"), ReleasedFor: pick("released", "", "m", "n"), Stale: flip("stale"), Sizes: flip("sizes")}
			c.Released = c.ReleasedFor != ""
			o.Copies = append(o.Copies, c)
		}
		for _, id := range []string{"s", "x", "y"} {
			if flip("snapshot " + id) {
				s := Snapshot{Pool: p, ID: id, Sealed: pick("sealed", "", "main", "kept", "gone")}
				s.SealedEpoch = epoch("sealed epoch")
				o.Snapshots = append(o.Snapshots, s)
			}
		}
	}
	o.Base["x"], o.Needed["y"] = flip("base"), flip("needed")
	h := api.Head{
		Node: pick("owner", "a", "b"), Pool: pick("pool", "p", "q"), Epoch: epoch("epoch") + 1,
		Seed: pick("seed", "", "s"), Ready: flip("ready"), From: pick("from", "", "a", "b"), FromPool: pick("from pool", "p", "q"),
	}
	if flip("move") {
		h.Move = &api.Move{ID: pick("move", "m", "n"), To: pick("to", "a", "b"), Pool: "q", Options: api.MoveOptions{Users: api.UsersPolicy(pick("policy", "move", "refuse", "stop"))}}
	}
	if h.Ready && flip("raised") {
		h.Was = epoch("was")
	}
	o.Volume = api.Volume{ID: "v", Heads: map[string]api.Head{"main": h}}
	if flip("kept branch") {
		o.Volume.Heads["kept"] = api.Head{
			Node: pick("kept on", "a", "b"), Pool: pick("kept in", "p", "q"), Epoch: 1, Ready: flip("kept branch ready"), Seed: "y",
			Kept: &api.Kept{Branch: "main", Epoch: epoch("kept epoch")},
		}
	}
	if flip("deleted") {
		o.Volume.Deleted = &api.Deletion{Purge: noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "purge")) * time.Hour)}
	}
	o.Move = anyMove(t)
	return o
}

func anyMove(t *rapid.T) MoveState {
	flip := func(name string) bool { return rapid.Bool().Draw(t, name) }
	m := MoveState{
		Checked: flip("checked"), Atomic: flip("atomic"), Instant: flip("instant"), Users: flip("users"), Movable: flip("movable"),
		Hooked: flip("hooked"), Closed: flip("move closed"), Stopping: flip("stopping"), Stopped: flip("has stopped"), Mounted: flip("mounted"), Gone: flip("gone"),
		Final: rapid.SampledFrom([]string{"", "f"}).Draw(t, "final"), FinalSent: flip("final sent"), Released: flip("is released"),
		Unsent: rapid.SampledFrom([]string{"", "u"}).Draw(t, "unsent"),
	}
	if flip("failed") {
		m.Failed = "it failed"
	}
	if m.Users || flip("holders") {
		m.Holders = "somebody"
	}
	return m
}

// TestNextIsSafe draws any observation, possible or not.
func TestNextIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := anything(t)
		h := o.Volume.Heads["main"]
		list := Next(o)
		if !reflect.DeepEqual(list, Next(o)) {
			t.Fatal("the same observation gives two plans")
		}
		mine := h.Node == o.Node
		dropped := map[string]bool{}
		for i, a := range list {
			check := func(ok bool, why string) {
				if !ok {
					t.Fatalf("%s: %s\nhead %+v\nobserved %+v", why, text(list), h, o)
				}
			}
			if _, waits := a.(Wait); waits {
				check(i == len(list)-1, "something follows a wait")
				continue
			}
			if _, alarms := a.(Alarm); alarms {
				check(i == len(list)-1, "something follows an alarm")
				continue
			}
			check(o.Fresh, "something is done before the store was read")
			switch a := a.(type) {
			case MakeHead:
				_, here := find(o, a.Pool)
				check(mine && !h.Ready && a.Pool == h.Pool && a.Seed == h.Seed && a.Epoch == h.Epoch, "a head is made that is not to be made")
				check(!here || dropped[a.Pool], "a head is made where one is")
				check(o.Volume.Deleted == nil || h.From != "", "a head of a deleted volume is made that nobody waits for")
			case DropHead:
				c, _ := find(o, a.Pool)
				x := o.Volume.Heads["kept"]
				kept := x.Kept != nil && x.Ready && x.Node == o.Node && x.Pool == c.Pool && x.Kept.Epoch == c.Epoch
				check(c.Epoch == a.Epoch && (kept || c.Epoch < h.Epoch), "a head of the present epoch is dropped")
				check(c.Released || kept, "a copy is dropped that was never handed over")
				check(mine || !o.InUse, "a head in use is dropped")
				check(kept || h.Ready || (mine && a.Pool == h.Pool && !(h.From == o.Node && h.FromPool == a.Pool)), "the previous owner's copy is dropped before the head is held")
				dropped[a.Pool] = true
			case SetAside:
				c, _ := find(o, a.Pool)
				x := o.Volume.Heads["kept"]
				check(!o.InUse && a.Snapshot == x.Seed && x.Kept != nil && x.Kept.Epoch == c.Epoch && x.Node == o.Node, "a copy is set aside that is none of a branch")
				check(!mine || a.Pool != h.Pool, "the head itself is set aside")
			case KeepNote:
				c, here := find(o, a.Pool)
				check(mine && here && a.Epoch == h.Epoch && (c.Epoch == h.Epoch || (c.Epoch == h.Was && !c.Released)), "a note is written of another epoch")
			case ReportReady:
				c, here := find(o, h.Pool)
				_, made := list[max(i-1, 0)].(MakeHead)
				check(mine && !h.Ready && (made || (here && c.Epoch == h.Epoch)), "ready is reported of what is not there")
			case ReportSettled:
				check(h.From == o.Node && h.Ready, "settled is reported too early")
			case Unfence, RestartUsers, StartUsers:
				check(mine && h.Ready && o.Volume.Deleted == nil, "users are let in where the head is not owned")
			case DropSnapshot:
				check(a.ID != h.Seed && !o.Base[a.ID] && !o.Needed[a.ID], "a snapshot is dropped that is needed")
				for _, s := range o.Snapshots {
					x, there := o.Volume.Heads[s.Sealed]
					check(s.ID != a.ID || s.Pool != a.Pool || !there || x.Node != o.Node || x.Pool != s.Pool || s.SealedEpoch < x.Epoch, "a snapshot is dropped that is a branch's head")
				}
			case PurgeVolume:
				check(mine && o.Volume.Deleted != nil && !o.Now.Before(o.Volume.Deleted.Purge) && !o.InUse, "data is purged that is not to be purged")
			case HandOver:
				check(mine && h.Move != nil && o.Move.FinalSent && a.Epoch == h.Epoch && a.To == h.Move.To, "a head is handed over that was not sent")
				released := o.Move.Released
				for _, b := range list[:i] {
					_, is := b.(ReleaseHead)
					released = released || is
				}
				check(released, "a head is handed over before it is released")
				check(o.Closed == "" || o.Closed == h.Move.ID, "a head is handed over while another move's traces are there")
			case TakeSnapshot:
				check(!a.Final || (o.Move.Gone && o.Move.Closed && !o.Move.Mounted && o.Move.Holders == ""), "the last snapshot is taken while somebody may write")
				check(a.Pause || o.Move.Atomic || a.Final || !o.Move.Users, "a snapshot that is not atomic is taken while users write")
			case SealHead:
				check(o.Move.Gone && o.Move.Closed && !o.Move.Mounted && o.Move.Holders == "", "the head is sealed while somebody may write")
			case StopUsers:
				check(h.Move.Options.Users != api.UsersRefuse, "users are stopped against the user's wish")
			}
		}
	})
}

// model is one head on one node with one move, as the actions change it.
type model struct {
	o       Observed
	running bool // the users that a withdrawn move has to bring back
}

// do is an executor whose every step works.
func (w *model) do(a Action) {
	h := w.o.Volume.Heads["main"]
	m := &w.o.Move
	switch a := a.(type) {
	case MakeHead:
		w.o.Copies = append(w.o.Copies, Copy{Pool: a.Pool, Epoch: a.Epoch})
	case ReportReady:
		h.Ready = true
	case DropHead:
		w.o.Copies = slices.DeleteFunc(w.o.Copies, func(c Copy) bool { return c.Pool == a.Pool })
	case ReportSettled:
		h.From, h.FromPool = "", ""
	case CheckTarget:
		m.Checked = true
	case TakeSnapshot:
		if a.Final {
			m.Final = "final"
		} else {
			m.Unsent = "round"
		}
	case SealHead:
		m.Final = "final"
	case SendSnapshot:
		if a.ID == m.Final {
			m.FinalSent = true
		} else {
			m.Rounds, m.Unsent = append(m.Rounds, Round{ID: a.ID, Sent: small << max(0, 3-len(m.Rounds))}), ""
		}
	case RunHook:
		m.Hooked = true
	case CloseHead:
		m.Closed, w.o.Closed = true, h.Move.ID
	case StopUsers:
		m.Stopping, m.Stopped, m.Users, m.Holders, w.running, w.o.Stopped = true, true, false, "", false, h.Move.ID
	case UnmountHead:
		m.Mounted = false
	case ReleaseHead:
		m.Released = true
		w.o.Copies[0].Released, w.o.Copies[0].ReleasedFor = true, h.Move.ID
	case HandOver:
		h.From, h.FromPool, h.Node, h.Pool, h.Epoch, h.Ready, h.Seed, h.Move = h.Node, h.Pool, h.Move.To, h.Move.Pool, h.Epoch+1, false, a.Snapshot, nil
	case CancelMove:
		h.Move = nil
	case Unfence:
		w.o.Closed, w.o.Copies[0].Released, w.o.Copies[0].ReleasedFor = "", false, ""
	case RestartUsers:
		w.o.Stopped, w.running = "", true
	case DropSnapshot:
		w.o.Snapshots = nil
	}
	m.Gone = m.Closed && m.Holders == "" && !m.Mounted
	w.o.Volume.Heads = map[string]api.Head{"main": h}
}

// run goes on until nothing is to be done, or the target has to act.
func (w *model) run(t *rapid.T, steps int) (quiet bool) {
	for range steps {
		list := Next(w.o)
		if len(list) == 0 {
			return true
		}
		for _, a := range list {
			if _, waits := a.(Wait); waits {
				return true
			}
			if _, alarms := a.(Alarm); alarms {
				t.Fatalf("%s", text(list))
			}
			w.do(a)
		}
	}
	return false
}

// TestMoveConverges runs a move as far as it goes, withdraws it at any step,
// and looks that everything is as before; or lets it end.
func TestMoveConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users := rapid.Bool().Draw(t, "users")
		w := &model{running: users, o: seen(func(o *Observed, h *api.Head) {
			h.Move = &api.Move{ID: "m", To: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "to"), Pool: "q"}
			h.Move.Options.Users = api.UsersMove
			o.Move = MoveState{
				Atomic: rapid.Bool().Draw(t, "atomic"), Instant: rapid.Bool().Draw(t, "instant"),
				Users: users, Movable: true, Mounted: users || rapid.Bool().Draw(t, "mounted"),
			}
			if users {
				o.Move.Holders = "container db"
			}
		})}
		steps := rapid.IntRange(0, 30).Draw(t, "steps")
		w.run(t, steps)
		h := w.o.Volume.Heads["main"]
		if h.Epoch == 3 {
			h.Move = nil
			w.o.Volume.Heads = map[string]api.Head{"main": h}
			w.o.Move = MoveState{}
			if !w.run(t, 5) || w.o.Closed != "" || w.o.Stopped != "" || w.o.Copies[0].Released || w.running != users {
				t.Fatalf("after %d steps the withdrawn move left %+v, running %v", steps, w.o, w.running)
			}
			return
		}
		if h.Node != "a" {
			if got := text(Next(w.o)); got != "wait for b to hold the head; until then the copy here stays" {
				t.Fatal(got)
			}
			h.Ready = true
			w.o.Volume.Heads = map[string]api.Head{"main": h}
		}
		if !w.run(t, 10) {
			t.Fatalf("it does not become quiet: %s", text(Next(w.o)))
		}
		if h = w.o.Volume.Heads["main"]; h.From != "" || !h.Ready || (h.Node == "b") != (len(w.o.Copies) == 0) {
			t.Fatalf("in the end: %+v %+v", h, w.o.Copies)
		}
	})
}
