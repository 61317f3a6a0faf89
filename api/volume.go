package api

import "time"

// MainBranch is the branch every volume starts with.
const MainBranch = "main"

// Volume is a named history of data. One record in the state store holds all
// that is authoritative about it, so that one compare-and-swap changes it.
type Volume struct {
	ID      string            `json:"id" doc:"128 random bits in hexadecimal, given once"`
	Name    string            `json:"name" doc:"unique in the cluster among volumes that are not deleted"`
	Labels  map[string]string `json:"labels,omitempty"`
	Size    int64             `json:"size,omitempty" doc:"limit in bytes; 0 is no limit of its own"`
	Branch  string            `json:"branch" doc:"the branch that the plain name means"`
	Heads   map[string]Head   `json:"heads" doc:"writable heads by branch name"`
	Created time.Time         `json:"created"`
	Deleted *Deletion         `json:"deleted,omitempty" doc:"set while the volume waits to be purged"`
	// What follows is its history's references, each bounded in number: see
	// docs/design/history.md. Commits themselves are not here.
	Tags     map[string]string `json:"tags,omitempty" doc:"commit id by tag"`
	Remotes  map[string]Remote `json:"remotes,omitempty" doc:"by name"`
	Tracking map[string]string `json:"tracking,omitempty" doc:"commit id by remote/branch, as last seen there"`
	Dropped  []Dropped         `json:"dropped,omitempty" doc:"deleted branches that can be brought back"`
	// Past is the highest epoch of any branch that is gone: a node that was away
	// may still hold a copy, and no branch of that name may be taken for it.
	Past      uint64              `json:"past,omitempty" doc:"highest epoch of a branch that is gone"`
	Hook      *Hook               `json:"hook,omitempty" doc:"makes commits application-consistent"`
	Schedules map[string]Schedule `json:"schedules,omitempty" doc:"by name"`
	Version   int64               `json:"version" doc:"grows with every change of the record; send it back for a conditional change"`
}

// Deletion is a volume's day of grace: its data stays until Purge.
type Deletion struct {
	At    time.Time `json:"at"`
	By    string    `json:"by"`
	Purge time.Time `json:"purge" doc:"from then on the data may be removed"`
	// Purging is set before the first byte is removed; from then on nothing
	// can be restored.
	Purging bool `json:"purging,omitempty"`
}

// Head is the writable working copy of one branch. It has at most one owner.
type Head struct {
	Node  string    `json:"node" doc:"the owner: the one node that may write"`
	Pool  string    `json:"pool" doc:"the owner's pool"`
	Epoch uint64    `json:"epoch" doc:"grows each time the owner or its pool changes, from 1"`
	Since time.Time `json:"since" doc:"when this epoch began"`
	// Seed is the snapshot from which the owner makes the head of this epoch;
	// empty: the head begins empty.
	Seed string `json:"seed,omitempty" doc:"snapshot the head of this epoch began as"`
	// SeedVolume is the id of the volume whose snapshot Seed is; empty: this one.
	SeedVolume string `json:"seedVolume,omitempty"`
	// Ready is set once the owner holds the head durably. Until then the owner
	// makes it from Seed; from then on a head that its pool does not show is
	// missing, and is never made anew.
	Ready bool `json:"ready"`
	// From is the owner of the epoch before, until it has cleared up. It keeps
	// its copy at least until Ready.
	From     string `json:"from,omitempty" doc:"previous owner while the hand-over is not fully settled"`
	FromPool string `json:"fromPool,omitempty" doc:"the previous owner's pool"`
	Move     *Move  `json:"move,omitempty" doc:"the hand-over that is wanted"`
	// Away lists nodes whose stopped containers were moved elsewhere with the
	// head. A mount there may not pull the head back.
	Away map[string]Departure `json:"away,omitempty"`
	// Commit is the branch's tip, the commit that the next one will have as
	// parent; empty before the first one.
	Commit string `json:"commit,omitempty" doc:"id of the branch's newest commit"`
	// Tip says how Commit came to be what it is; the owner's reflog is made of these.
	Tip *Tip `json:"tip,omitempty"`
	// Expires is when the branch is deleted by itself, with a day's grace.
	Expires time.Time `json:"expires,omitzero"`
	// Stranded are nodes from which the head was taken without their word, with
	// the epoch they had. What they hold of it is kept and never mounted.
	Stranded map[string]uint64 `json:"stranded,omitempty"`
	// Was is set when a recovery of the cluster's state raised the epoch above
	// that of another copy: the pool's note still says Was, and is raised too.
	Was uint64 `json:"was,omitempty" doc:"epoch of before a recovery raised it"`
	// Kept says that this branch was made of a copy that lost against another
	// one when the cluster was recovered.
	Kept *Kept `json:"kept,omitempty"`
}

// Kept is the copy that a branch was made of by a recovery of the cluster.
type Kept struct {
	Branch string `json:"branch" doc:"that it was a copy of"`
	Epoch  uint64 `json:"epoch" doc:"that the copy had"`
	Why    string `json:"why"`
}

// Departure says why a node may not pull a head back: containers that used it
// there were moved away with it and still stand there, stopped.
type Departure struct {
	Containers []string  `json:"containers" doc:"names of the containers that moved"`
	To         string    `json:"to"`
	At         time.Time `json:"at"`
}

// Move is the wish that a head's owner changes. It is part of the head's
// record from the request until the owner changed or the wish was withdrawn;
// progress is not kept here but asked of the owner.
type Move struct {
	ID        string      `json:"id"`
	To        string      `json:"to" doc:"node"`
	Pool      string      `json:"pool" doc:"pool on that node"`
	By        string      `json:"by" doc:"who asked: a user, or \"mount on NODE\""`
	Requested time.Time   `json:"requested"`
	Trace     string      `json:"trace,omitempty" doc:"W3C trace id of the request behind it"`
	Options   MoveOptions `json:"options"`
}

// MoveOptions are the user's choices for a move.
type MoveOptions struct {
	// Users says what becomes of the containers that use the head.
	Users UsersPolicy `json:"users"`
	// Bandwidth limits the live rounds; the last delta is never slowed down.
	Bandwidth int64 `json:"bandwidth,omitempty" doc:"bytes a second; 0 is no limit"`
	// Hook is a command run in each using container before it is stopped,
	// such as a CHECKPOINT. Its failure ends the move before anything stopped.
	Hook        []string      `json:"hook,omitempty"`
	HookTimeout time.Duration `json:"hookTimeout,omitempty" doc:"nanoseconds; 0 is 30 s"`
	// StopTimeout is how long a container may take to stop before it is killed.
	StopTimeout time.Duration `json:"stopTimeout,omitempty" doc:"nanoseconds; 0 is the container's own setting"`
	// AllowLoss permits a target that cannot keep everything the data has.
	AllowLoss bool `json:"allowLoss,omitempty"`
}

// UsersPolicy is what a move does with the containers that use the head.
type UsersPolicy string

const (
	// UsersRefuse ends the move when the head is used.
	UsersRefuse UsersPolicy = "refuse"
	// UsersMove stops the containers, and makes and starts them on the target.
	UsersMove UsersPolicy = "move"
	// UsersStop stops the containers and leaves them stopped.
	UsersStop UsersPolicy = "stop"
)

// MovePhase is where a move stands, as its owner reports it.
type MovePhase string

// The phases, in order. Until handing-over the move can be cancelled without a trace.
const (
	MoveChecking   MovePhase = "checking"     // target, space, fidelity, images
	MoveCopying    MovePhase = "copying"      // rounds while the users run
	MoveStopping   MovePhase = "stopping"     // users are being stopped; rounds go on
	MoveFinal      MovePhase = "final"        // users are gone; the last delta goes
	MoveHandover   MovePhase = "handing-over" // the owner record changes
	MoveActivating MovePhase = "activating"   // the target makes and mounts the head
	MoveDone       MovePhase = "done"
	MoveFailed     MovePhase = "failed"
)

// MoveProgress is what the source of a move tells about it while it runs.
// It lives in the agents, not in the state store.
type MoveProgress struct {
	ID        string        `json:"id"`
	Volume    string        `json:"volume"`
	Branch    string        `json:"branch"`
	From      string        `json:"from"`
	To        string        `json:"to"`
	Phase     MovePhase     `json:"phase"`
	Waiting   string        `json:"waiting,omitempty" doc:"what it waits for, if it waits"`
	Round     int           `json:"round" doc:"current round, from 1"`
	Sent      int64         `json:"sent" doc:"bytes that crossed the wire, all rounds"`
	Resent    int64         `json:"resent" doc:"bytes sent a second time after a break"`
	RoundSent int64         `json:"roundSent" doc:"bytes of this round so far"`
	RoundSize int64         `json:"roundSize" doc:"expected bytes of this round; 0 is unknown"`
	Rate      float64       `json:"rate" doc:"bytes a second over the last seconds"`
	Remaining time.Duration `json:"remaining,omitempty" doc:"nanoseconds expected until ready; 0 is unknown"`
	Started   time.Time     `json:"started"`
	Stopped   time.Time     `json:"stopped,omitzero" doc:"when the last user had stopped"`
	Downtime  time.Duration `json:"downtime,omitempty" doc:"nanoseconds from the last user stopped to ready at the target"`
	Rounds    []MoveRound   `json:"rounds,omitempty" doc:"the rounds that are over"`
	Err       *Error        `json:"error,omitempty"`
}

// MoveRound is one snapshot that was brought to the target of a move.
type MoveRound struct {
	Sent   int64         `json:"sent" doc:"bytes"`
	Took   time.Duration `json:"took" doc:"nanoseconds"`
	Format string        `json:"format"`
	Base   string        `json:"base,omitempty" doc:"snapshot it built on; empty: it carried everything"`
	Final  bool          `json:"final,omitempty" doc:"sent after the last user had stopped"`
}

// HeadStatus is how a head is, as its owner sees it now.
type HeadStatus struct {
	Node      string        `json:"node"`
	Pool      string        `json:"pool"`
	Epoch     uint64        `json:"epoch"`
	Here      bool          `json:"here" doc:"the pool shows the head"`
	Mounted   bool          `json:"mounted"`
	Path      string        `json:"path,omitempty" doc:"mount point on the node"`
	Used      int64         `json:"used" doc:"bytes; -1 is unknown"`
	Size      int64         `json:"size" doc:"limit in bytes; 0 is none"`
	Sizes     string        `json:"sizes" doc:"hard or soft"`
	Users     []string      `json:"users,omitempty" doc:"who uses it, in words"`
	Nested    []string      `json:"nested,omitempty" doc:"paths inside that a snapshot would leave out"`
	Waiting   string        `json:"waiting,omitempty" doc:"what is waited for"`
	Alarm     string        `json:"alarm,omitempty" doc:"what is wrong"`
	Snapshots int           `json:"snapshots"`
	Move      *MoveProgress `json:"move,omitempty"`
}
