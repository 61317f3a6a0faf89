package plan

import (
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
)

// Copy is a head of the volume's branch as a pool of this node shows it.
type Copy struct {
	Pool     string
	Epoch    uint64 // as written beside the data
	Released bool   // this epoch was let go of here; the record says to whom
	// ReleasedFor is the move for which it was let go of.
	ReleasedFor string
	Size        int64
	Sizes       bool // the pool can change sizes
	Stale       bool // the note beside the data is not that of the record
	Behind      bool // its reflog lacks the tip's last move
	Sealed      bool // it was made a snapshot for a move, and can be made the head again
}

// Snapshot is one that a pool of this node holds.
type Snapshot struct {
	Pool, ID string
	Order    uint64
	// Commit says that its note names a commit; Created is when this copy came.
	Commit  bool
	Created time.Time
	// Sealed is the branch whose head of epoch SealedEpoch it is, "" for none.
	Sealed      string
	SealedEpoch uint64
}

// is reports whether a snapshot is a head in disguise that the record counts on.
func (s Snapshot) is(o Observed) bool {
	h, there := o.Volume.Heads[s.Sealed]
	return s.Sealed != "" && there && h.Node == o.Node && h.Pool == s.Pool && h.Epoch <= s.SealedEpoch
}

// Observed is what a node sees of one branch of one volume.
type Observed struct {
	Node   string
	Branch string
	Now    time.Time
	// Volume is the record; Fresh says that it was read from the store after
	// this agent's start, so that it cannot be older than what the pools say.
	Volume api.Volume
	Fresh  bool
	// Pools gives the state of each pool of this node.
	Pools     map[string]api.PoolState
	Copies    []Copy
	Snapshots []Snapshot
	// Base is the ID of each snapshot that a later transfer to or from a peer
	// may build on; Needed those that a session reads or writes just now.
	Base, Needed map[string]bool
	// Keep are the commits that the volume's history reaches from what this
	// node has to keep; Unsure says that not all of that is known.
	Keep   map[string]bool
	Unsure bool
	// Work is what a user's command does to the head just now.
	Work *Work
	// Arriving says that containers which came with the head, or wait for
	// it, are to be started.
	Arriving bool
	// Stopped says that containers here were stopped for the move of that id.
	Stopped string
	// Closed says that mounts are refused because of the move of that id.
	Closed string
	// InUse says that the head's copy here has users.
	InUse bool
	Move  MoveState
}

// Next decides what to do about the head now. The last action may be a Wait
// or an Alarm; none means that all is as it should be.
func Next(o Observed) []Action {
	h, ok := o.Volume.Heads[o.Branch]
	if !o.Fresh {
		if !ok && len(o.Copies) == 0 {
			return nil
		}
		return []Action{Wait{For: "the state store, to know who owns the head"}}
	}
	if !ok {
		return stray(o)
	}
	if o.Volume.Deleted != nil {
		return deleted(o, h)
	}
	if h.Node != o.Node {
		return former(o, h)
	}
	return owner(o, h)
}

func find(o Observed, pool string) (Copy, bool) {
	for _, c := range o.Copies {
		if c.Pool == pool {
			return c, true
		}
	}
	return Copy{}, false
}

// fit says whether a pool can be worked on, and what is waited for if not.
func fit(o Observed, pool string) (Action, bool) {
	switch state, known := o.Pools[pool]; {
	case !known:
		return Alarm{Reason: "pool " + pool + " is not a pool of " + o.Node + ": add it again with drover pool add"}, false
	case state == api.PoolGone:
		return Wait{For: "pool " + pool + ", which is not there", Retry: 10 * time.Second}, false
	case state == api.PoolReadOnly:
		return Wait{For: "pool " + pool + ", which is read-only", Retry: 10 * time.Second}, false
	}
	return nil, true
}

// owner is the part of the node that may write the head.
func owner(o Observed, h api.Head) []Action {
	if why, ok := fit(o, h.Pool); !ok {
		return []Action{why}
	}
	c, here := find(o, h.Pool)
	switch {
	case here && c.Epoch > h.Epoch:
		return []Action{Alarm{Reason: fmt.Sprintf("the pool remembers epoch %d, the record says %d: the state store is older than the data; nothing is changed here until a newer state is restored", c.Epoch, h.Epoch)}}
	case !here && h.Kept != nil && !h.Ready && !holds(o, h.Pool, h.Seed):
		return []Action{Wait{For: "the copy of branch " + h.Kept.Branch + " that it is made of to be out of use", Retry: 10 * time.Second}}
	case !here && h.Ready:
		return []Action{Alarm{Reason: fmt.Sprintf("the head should be in pool %s and is not there; nothing is made in its place", h.Pool)}}
	case !here:
		return []Action{MakeHead{Pool: h.Pool, Seed: h.Seed, Of: h.SeedVolume, Epoch: h.Epoch, Size: o.Volume.Size}, ReportReady{Epoch: h.Epoch}}
	case h.Was != 0 && c.Epoch == h.Was && c.Epoch < h.Epoch && !c.Released:
		return []Action{KeepNote{Pool: c.Pool, Epoch: h.Epoch}}
	case !h.Ready && c.Epoch == h.Epoch:
		return []Action{ReportReady{Epoch: h.Epoch}}
	case c.Epoch < h.Epoch && !h.Ready:
		// A copy of an earlier epoch, from a time when this node owned the
		// head before. What was let go of was sent on; anything else may be
		// the only copy of what was written here.
		if !c.Released || (h.From == o.Node && h.FromPool == c.Pool) {
			return []Action{Alarm{Reason: fmt.Sprintf("the pool holds a copy of epoch %d that may not have been handed over, where epoch %d is to be made; it is kept", c.Epoch, h.Epoch)}}
		}
		if o.InUse {
			return []Action{Alarm{Reason: fmt.Sprintf("a copy of epoch %d is in use while epoch %d is to be made", c.Epoch, h.Epoch)}}
		}
		return []Action{DropHead{Pool: c.Pool, Epoch: c.Epoch}, MakeHead{Pool: h.Pool, Seed: h.Seed, Of: h.SeedVolume, Epoch: h.Epoch, Size: o.Volume.Size}, ReportReady{Epoch: h.Epoch}}
	case c.Epoch < h.Epoch:
		return []Action{Alarm{Reason: fmt.Sprintf("the pool holds epoch %d of the head, the record says epoch %d is here", c.Epoch, h.Epoch)}}
	}
	var out []Action
	for _, other := range o.Copies {
		if other.Pool == h.Pool {
			continue
		}
		if do, kept := aside(o, other); kept {
			return do
		}
	}
	if h.From == o.Node && h.FromPool != h.Pool {
		if old, ok := find(o, h.FromPool); ok {
			if why, ok := fit(o, h.FromPool); !ok {
				return []Action{why}
			}
			if !old.Released || old.Epoch >= h.Epoch {
				return []Action{Alarm{Reason: fmt.Sprintf("pool %s holds a copy of epoch %d that may not have been handed over to pool %s; it is kept", old.Pool, old.Epoch, h.Pool)}}
			}
			out = append(out, DropHead{Pool: old.Pool, Epoch: old.Epoch})
		}
		out = append(out, ReportSettled{Epoch: h.Epoch})
	}
	if undo := undone(o, h, c); len(undo) > 0 {
		return append(out, undo...)
	}
	if o.Work != nil {
		return append(out, work(*o.Work, h)...)
	}
	if h.Move != nil {
		return append(out, Move(o.Move, *h.Move, h.Epoch)...)
	}
	if c.Sizes && c.Size != o.Volume.Size {
		out = append(out, SetSize{Pool: c.Pool, Size: o.Volume.Size})
	}
	wait := behind(c, h, o.Now)
	if c.Stale || (c.Behind && wait == 0) {
		out = append(out, KeepNote{Pool: c.Pool, Epoch: h.Epoch})
		wait = 0
	}
	if o.Arriving {
		out = append(out, StartUsers{Epoch: h.Epoch})
	}
	out = append(out, tend(o, h)...)
	out = append(out, thin(o, h)...)
	if wait > 0 {
		out = append(out, Later{After: wait})
	}
	return append(out, alarmClock(o, h)...)
}

// undone takes back what is left of a move that is no longer wanted, before
// anything else happens to the head: the record, freshly read, says that this
// node is the owner.
func undone(o Observed, h api.Head, c Copy) []Action {
	wish := ""
	if h.Move != nil {
		wish = h.Move.ID
	}
	if o.Work != nil && c.ReleasedFor == o.Work.ID {
		c.Released = false // it is what the work did
	}
	var out []Action
	if (o.Closed != "" && o.Closed != wish) || (c.Released && c.ReleasedFor != wish) {
		out = append(out, Unfence{Move: o.Closed})
	}
	if o.Stopped != "" && o.Stopped != wish {
		out = append(out, RestartUsers{Move: o.Stopped})
	}
	return out
}

// aside turns a copy that lost when the cluster was recovered into the branch
// that was named for it, once nobody uses it any more; kept reports whether
// there is such a branch.
func aside(o Observed, c Copy) (do []Action, kept bool) {
	for branch, x := range o.Volume.Heads {
		if x.Kept == nil || x.Kept.Branch != o.Branch || x.Kept.Epoch != c.Epoch || x.Node != o.Node || x.Pool != c.Pool {
			continue
		}
		why, ok := fit(o, c.Pool)
		switch {
		case !ok:
			return []Action{why}, true
		case o.InUse:
			return []Action{Alarm{Reason: fmt.Sprintf("a copy of epoch %d that lost when the cluster was recovered is in use here; it becomes branch %s when its containers have stopped", c.Epoch, branch)}}, true
		case x.Ready:
			return []Action{DropHead{Pool: c.Pool, Epoch: c.Epoch}}, true
		case holds(o, c.Pool, x.Seed):
			return []Action{Wait{For: "branch " + branch + " to be made of the copy here", Retry: 10 * time.Second}}, true
		}
		return []Action{SetAside{Pool: c.Pool, Snapshot: x.Seed}}, true
	}
	return nil, false
}

// holds reports whether a pool of this node has a snapshot.
func holds(o Observed, pool, id string) bool {
	for _, s := range o.Snapshots {
		if s.Pool == pool && s.ID == id {
			return true
		}
	}
	return false
}

// former is the part of a node that does not own the head: it owned it
// before, or will own it.
func former(o Observed, h api.Head) []Action {
	var out []Action
	for _, c := range o.Copies {
		if why, ok := fit(o, c.Pool); !ok {
			return append(out, why)
		}
		if do, kept := aside(o, c); kept {
			return append(out, do...)
		}
		switch {
		case c.Epoch >= h.Epoch:
			return append(out, Alarm{Reason: fmt.Sprintf("the pool remembers that %s owns epoch %d, the record says %s owns epoch %d; nothing is changed here until a newer state is restored", o.Node, c.Epoch, h.Node, h.Epoch)})
		case o.InUse:
			return append(out, Alarm{Reason: fmt.Sprintf("a copy of epoch %d is in use here, while %s owns epoch %d", c.Epoch, h.Node, h.Epoch)})
		case !h.Ready:
			return append(out, Wait{For: h.Node + " to hold the head; until then the copy here stays"})
		case c.Released:
			out = append(out, DropHead{Pool: c.Pool, Epoch: c.Epoch})
		default:
			// Somebody took the head over without this node's word: what was
			// written here and not sent is kept until a person looks at it.
			return append(out, Alarm{Reason: fmt.Sprintf("%s took the head over at epoch %d; this node's copy of epoch %d is kept and not mounted", h.Node, h.Epoch, c.Epoch)})
		}
	}
	if h.From == o.Node && h.Ready {
		out = append(out, ReportSettled{Epoch: h.Epoch})
	}
	if h.Move != nil && h.Move.To == o.Node {
		return append(out, Wait{For: "the data from " + h.Node})
	}
	return append(out, thin(o, h)...)
}

// thin drops the snapshots that neither a transfer nor the volume's history
// needs: what stays is the seed of the current epoch, the last one shared with
// each peer, and what references reach.
func thin(o Observed, h api.Head) []Action {
	var out []Action
	for _, s := range o.Snapshots {
		if s.ID == h.Seed || s.is(o) || o.Base[s.ID] || o.Needed[s.ID] || o.Pools[s.Pool] == api.PoolGone || o.Pools[s.Pool] == api.PoolReadOnly {
			continue
		}
		if o.Keep[s.ID] || (s.Commit && (o.Unsure || o.Now.Sub(s.Created) < unreached)) {
			continue
		}
		out = append(out, DropSnapshot{Pool: s.Pool, ID: s.ID})
	}
	return out
}

// deleted is the part of any node once the volume is in its grace.
func deleted(o Observed, h api.Head) []Action {
	if h.Node != o.Node {
		return former(o, h)
	}
	if !h.Ready && h.From != "" {
		// It was deleted on its way here. A former owner keeps its copy until
		// this one is made.
		return owner(o, h)
	}
	if o.Now.Before(o.Volume.Deleted.Purge) {
		if c, here := find(o, h.Pool); here && c.Stale && c.Epoch == h.Epoch {
			if _, ok := fit(o, h.Pool); ok {
				return []Action{KeepNote{Pool: c.Pool, Epoch: h.Epoch}}
			}
		}
		return []Action{Wait{For: "the end of the volume's grace", Retry: o.Volume.Deleted.Purge.Sub(o.Now)}}
	}
	if o.InUse {
		return []Action{Alarm{Reason: "the volume's grace has ended, but it is in use; nothing is removed"}}
	}
	if why, ok := fit(o, h.Pool); !ok {
		return []Action{why}
	}
	if !o.Volume.Deleted.Purging {
		return []Action{BeginPurge{}}
	}
	return []Action{PurgeVolume{Epoch: h.Epoch}}
}
