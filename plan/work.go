package plan

import (
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
)

// WorkKind is what is done to a head on its own node by a user's command.
type WorkKind string

// The kinds.
const (
	// WorkReset replaces the head's content; its users are stopped meanwhile.
	WorkReset WorkKind = "reset"
	// WorkCheckout changes what the plain name means; those that use the head
	// by that name are stopped meanwhile.
	WorkCheckout WorkKind = "checkout"
)

// Work is where such a command stands. It is made anew from the journal and
// the record after a crash.
type Work struct {
	ID    string
	Kind  WorkKind
	Epoch uint64 // of the head when the command came
	// Failed is an error that will not pass. Before the record changed it ends
	// the work.
	Failed string
	Closed bool // mounts are refused
	// Users: containers run that are to be stopped; Holders names whoever else
	// keeps the head from being replaced, Stuck says that they stay.
	Users   bool
	Holders string
	Stuck   bool
	Mounted bool // Drover's own mount is there
	Kept    bool // what was not committed is in a stash, or there was nothing
	// Released is written beside the data: this owner lets go of this epoch.
	Released bool
	// Done: the record says that it took effect.
	Done bool
}

// CloseForWork refuses new mounts.
type CloseForWork struct{ ID string }

// StopForWork stops the containers that stand in the way, noted before.
type StopForWork struct{ ID string }

// KeepUncommitted makes a stash of what was not committed, if there is any.
type KeepUncommitted struct{ ID string }

// ReleaseForWork writes durably beside the data that this epoch is let go of.
type ReleaseForWork struct {
	ID    string
	Epoch uint64
}

// ResetHead begins the next epoch of the head from another snapshot.
type ResetHead struct {
	ID    string
	Epoch uint64
}

// SwitchBranch changes which branch the plain name means.
type SwitchBranch struct{ ID string }

// EndWork opens the head again and starts the containers that were stopped.
// Reason is why the work failed, "" if it did not.
type EndWork struct{ ID, Reason string }

// ExpireBranch deletes a branch whose time has come.
type ExpireBranch struct{}

// ForgetDropped forgets deleted branches whose grace has ended.
type ForgetDropped struct{}

func (CloseForWork) action()    {}
func (StopForWork) action()     {}
func (KeepUncommitted) action() {}
func (ReleaseForWork) action()  {}
func (ResetHead) action()       {}
func (SwitchBranch) action()    {}
func (EndWork) action()         {}
func (ExpireBranch) action()    {}
func (ForgetDropped) action()   {}

func (CloseForWork) String() string    { return "refuse new mounts" }
func (StopForWork) String() string     { return "stop the containers that stand in the way" }
func (KeepUncommitted) String() string { return "keep what was not committed" }
func (a ReleaseForWork) String() string {
	return fmt.Sprintf("write beside the data that epoch %d is let go of", a.Epoch)
}
func (a ResetHead) String() string  { return fmt.Sprintf("begin epoch %d", a.Epoch+1) }
func (SwitchBranch) String() string { return "change the current branch" }
func (a EndWork) String() string {
	if a.Reason != "" {
		return "start the containers again, because " + a.Reason
	}
	return "start the containers again"
}
func (ExpireBranch) String() string  { return "delete the branch, whose time has come" }
func (ForgetDropped) String() string { return "forget deleted branches whose grace has ended" }

// work decides the next step of a command. Until ResetHead or SwitchBranch
// everything can be taken back; EndWork does both.
func work(w Work, h api.Head) []Action {
	switch {
	case w.Done:
		return []Action{EndWork{ID: w.ID}}
	case w.Failed != "":
		return []Action{EndWork{ID: w.ID, Reason: w.Failed}}
	case w.Epoch != h.Epoch:
		return []Action{EndWork{ID: w.ID, Reason: fmt.Sprintf("the head is of epoch %d now", h.Epoch)}}
	case h.Move != nil && !w.Released:
		return []Action{EndWork{ID: w.ID, Reason: "it is to move to " + h.Move.To}}
	case !w.Closed:
		return []Action{CloseForWork{ID: w.ID}}
	case w.Users:
		return []Action{StopForWork{ID: w.ID}}
	case w.Kind == WorkCheckout:
		return []Action{SwitchBranch{ID: w.ID}}
	case w.Released:
		return []Action{ResetHead{ID: w.ID, Epoch: h.Epoch}}
	case w.Holders != "" && w.Stuck:
		return []Action{EndWork{ID: w.ID, Reason: "it is used by " + w.Holders + ", which Drover cannot stop"}}
	case w.Holders != "":
		return []Action{Wait{For: w.Holders + " to be gone", Retry: 100 * time.Millisecond}}
	case w.Mounted:
		return []Action{UnmountHead{}}
	case !w.Kept:
		return []Action{KeepUncommitted{ID: w.ID}}
	}
	return []Action{ReleaseForWork{ID: w.ID, Epoch: h.Epoch}, ResetHead{ID: w.ID, Epoch: h.Epoch}}
}

// stray is the part of a node that holds copies of a branch which the record
// does not have: it was deleted or renamed.
func stray(o Observed) []Action {
	var out []Action
	for _, c := range o.Copies {
		if why, ok := fit(o, c.Pool); !ok {
			return append(out, why)
		}
		switch {
		case !c.Released:
			return append(out, Alarm{Reason: fmt.Sprintf("pool %s holds epoch %d of branch %s, which the volume does not have; it is kept", c.Pool, c.Epoch, o.Branch)})
		case o.InUse:
			return append(out, Alarm{Reason: fmt.Sprintf("branch %s was deleted, and its copy in pool %s is in use; it is kept", o.Branch, c.Pool)})
		}
		out = append(out, DropHead{Pool: c.Pool, Epoch: c.Epoch})
	}
	return out
}

// tend is what an owner does to a branch by itself as time passes.
func tend(o Observed, h api.Head) []Action {
	var out []Action
	current := o.Volume.Branch == o.Branch
	if current && len(o.Volume.Dropped) > 0 {
		for _, d := range o.Volume.Dropped {
			if !o.Now.Before(d.Purge) {
				out = append(out, ForgetDropped{})
				break
			}
		}
	}
	if !h.Expires.IsZero() && !current && !o.Now.Before(h.Expires) {
		out = append(out, ExpireBranch{})
	}
	return out
}

// alarmClock gives when an owner has to look again though nothing happened.
func alarmClock(o Observed, h api.Head) []Action {
	if h.Expires.IsZero() || o.Volume.Branch == o.Branch {
		return nil
	}
	if left := h.Expires.Sub(o.Now); left > 0 {
		return []Action{Later{After: left}}
	}
	return nil
}

// behind is how long the reflog beside the data may wait to be written: what
// it lacks is in the record and in the commits themselves, and a note for each
// of many commits would slow all of them down.
func behind(c Copy, h api.Head, now time.Time) time.Duration {
	const most = 2 * time.Second
	if !c.Behind || h.Tip == nil {
		return 0
	}
	if age := now.Sub(h.Tip.At); age >= 0 && age < most {
		return most - age
	}
	return 0
}

// Later says when to look again; nothing is waited for.
type Later struct{ After time.Duration }

func (Later) action()          {}
func (a Later) String() string { return "look again in " + a.After.String() }

// unreached is how long a commit stays that nothing reaches: one that was
// just made is not yet in the record.
const unreached = 24 * time.Hour
