// Package plan decides what a node does next about one head: desired record x
// what is observed x now -> actions. It is pure: no clock, no files, no
// network, no randomness. Whoever executes an action looks again afterwards
// and asks again; no action relies on an earlier one having worked.
package plan

import (
	"fmt"
	"time"
)

// Action is one step, a plain comparable value: it prints, diffs, and is what
// a dry run shows.
type Action interface {
	fmt.Stringer
	action()
}

// MakeHead makes the head of an epoch on a pool, from a snapshot or empty.
type MakeHead struct {
	Pool  string
	Seed  string // snapshot to copy
	Of    string // volume id whose snapshot it is, "" for the head's own
	Epoch uint64
	Size  int64
}

// ReportReady tells the cluster that the head of this epoch is durable here.
type ReportReady struct{ Epoch uint64 }

// KeepNote writes the record beside the data, where the pool remembers it.
type KeepNote struct {
	Pool  string
	Epoch uint64
}

// SetSize gives the head its wished limit.
type SetSize struct {
	Pool string
	Size int64
}

// DropHead removes the copy of a head that belongs to another owner now.
type DropHead struct {
	Pool  string
	Epoch uint64 // of the copy
}

// ReportSettled tells the cluster that this former owner has cleared up.
type ReportSettled struct{ Epoch uint64 }

// DropSnapshot removes a snapshot that nothing needs any more.
type DropSnapshot struct{ Pool, ID string }

// BeginPurge tells the cluster that the data is about to be removed: from then
// on nothing can be restored.
type BeginPurge struct{}

// PurgeVolume removes all that is left of a volume whose grace has ended, and
// then reports it.
type PurgeVolume struct{ Epoch uint64 }

// StartUsers makes and starts the containers that came with the head, and
// those that wait for it.
type StartUsers struct{ Epoch uint64 }

// RestartUsers starts the containers again that a move had stopped here, after
// the move has ended before the hand-over.
type RestartUsers struct{ Move string }

// Unfence opens the head for mounts again that a move had closed.
type Unfence struct{ Move string }

// CheckTarget asks the target whether it can take the head and its users.
type CheckTarget struct{ To, Pool string }

// TakeSnapshot makes a snapshot of the head. Pause: its users are held meanwhile.
// Linger is how long to wait before, unless the containers have stopped.
type TakeSnapshot struct {
	Pause  bool
	Final  bool
	Linger time.Duration
}

// SealHead turns the unused head into the last snapshot, without a copy.
type SealHead struct{}

// SendSnapshot brings a snapshot to the target.
type SendSnapshot struct {
	ID      string
	Limited bool // by the user's bandwidth limit
}

// SendCommit brings a commit of the branch's history to the target.
type SendCommit struct {
	ID      string
	Limited bool // by the user's bandwidth limit
}

// RunHook runs the user's command in each container before it is stopped.
type RunHook struct{}

// CloseHead refuses new mounts: from here the head has no new users.
type CloseHead struct{}

// StopUsers begins to stop the containers that use the head, and returns.
type StopUsers struct{}

// UnmountHead takes away Drover's own mount of the head.
type UnmountHead struct{}

// ReleaseHead writes durably beside the data that this owner lets go at this
// epoch: from then on it mounts the head only after reading the record.
type ReleaseHead struct {
	Epoch    uint64
	Snapshot string
}

// HandOver changes the owner: the one moment at which the head moves.
type HandOver struct {
	Epoch    uint64
	Snapshot string
	To       string
}

// CancelMove withdraws the wish, because of Reason.
type CancelMove struct{ Reason string }

// SetAside makes a snapshot of a copy that lost against another one when the
// cluster was recovered; the branch that keeps it begins there.
type SetAside struct{ Pool, Snapshot string }

// Wait says what is waited for. Retry is when to look again even if nothing
// happens; 0: an event will come.
type Wait struct {
	For   string
	Retry time.Duration
}

// Alarm says that something is wrong that no action can mend.
type Alarm struct{ Reason string }

func (MakeHead) action()      {}
func (ReportReady) action()   {}
func (KeepNote) action()      {}
func (SetSize) action()       {}
func (DropHead) action()      {}
func (ReportSettled) action() {}
func (DropSnapshot) action()  {}
func (BeginPurge) action()    {}
func (PurgeVolume) action()   {}
func (StartUsers) action()    {}
func (RestartUsers) action()  {}
func (Unfence) action()       {}
func (CheckTarget) action()   {}
func (TakeSnapshot) action()  {}
func (SealHead) action()      {}
func (SendSnapshot) action()  {}
func (SendCommit) action()    {}
func (RunHook) action()       {}
func (CloseHead) action()     {}
func (StopUsers) action()     {}
func (UnmountHead) action()   {}
func (ReleaseHead) action()   {}
func (HandOver) action()      {}
func (CancelMove) action()    {}
func (SetAside) action()      {}
func (Wait) action()          {}
func (Alarm) action()         {}

func (a MakeHead) String() string {
	from := "empty"
	if a.Seed != "" {
		from = "from snapshot " + a.Seed
	}
	return fmt.Sprintf("make head in pool %s, %s, epoch %d", a.Pool, from, a.Epoch)
}
func (a ReportReady) String() string { return fmt.Sprintf("report epoch %d ready", a.Epoch) }
func (a KeepNote) String() string    { return fmt.Sprintf("write epoch %d beside the data", a.Epoch) }
func (a SetSize) String() string     { return fmt.Sprintf("limit size to %d bytes", a.Size) }
func (a DropHead) String() string {
	return fmt.Sprintf("remove head of epoch %d from pool %s", a.Epoch, a.Pool)
}
func (a ReportSettled) String() string { return fmt.Sprintf("report epoch %d settled", a.Epoch) }
func (a DropSnapshot) String() string  { return "remove snapshot " + a.ID + " from pool " + a.Pool }
func (a BeginPurge) String() string    { return "end the time in which it can be restored" }
func (a PurgeVolume) String() string   { return "remove all data of the volume" }
func (a StartUsers) String() string    { return "start the containers that use it" }
func (a RestartUsers) String() string {
	return "start the containers again that were stopped for the move"
}
func (a Unfence) String() string { return "allow mounts again" }
func (a CheckTarget) String() string {
	return fmt.Sprintf("check that %s can take it in pool %s", a.To, a.Pool)
}

func (a TakeSnapshot) String() string {
	s := "take a snapshot"
	if a.Final {
		s = "take the last snapshot"
	}
	if a.Pause {
		s += " with the containers paused"
	}
	return s
}
func (a SealHead) String() string { return "make the head the last snapshot" }
func (a SendSnapshot) String() string {
	if a.Limited {
		return "send snapshot " + a.ID + " within the bandwidth limit"
	}
	return "send snapshot " + a.ID
}
func (a SendCommit) String() string  { return "send commit " + a.ID[:min(12, len(a.ID))] }
func (a RunHook) String() string     { return "run the hook in the containers that use it" }
func (a CloseHead) String() string   { return "refuse new mounts" }
func (a StopUsers) String() string   { return "stop the containers that use it" }
func (a UnmountHead) String() string { return "unmount" }
func (a ReleaseHead) String() string {
	return fmt.Sprintf("write beside the data that epoch %d is released", a.Epoch)
}
func (a HandOver) String() string   { return fmt.Sprintf("hand epoch %d over to %s", a.Epoch, a.To) }
func (a CancelMove) String() string { return "cancel the move: " + a.Reason }
func (a SetAside) String() string {
	return "set the copy in pool " + a.Pool + " aside as snapshot " + a.Snapshot
}
func (a Wait) String() string  { return "wait for " + a.For }
func (a Alarm) String() string { return "alarm: " + a.Reason }
