package api

import "time"

// CreateVolume is a user's wish for a new volume.
type CreateVolume struct {
	Name   string            `json:"name"`
	Node   string            `json:"node,omitempty" doc:"where it is made; empty is the node that is asked"`
	Size   int64             `json:"size,omitempty" doc:"limit in bytes; 0 is none"`
	Pool   string            `json:"pool,omitempty" doc:"pool on that node; empty is its default"`
	From   string            `json:"from,omitempty" doc:"volume to begin as a copy of"`
	Labels map[string]string `json:"labels,omitempty"`
}

// StartMove is a user's wish that a volume moves.
type StartMove struct {
	To      string      `json:"to" doc:"node"`
	Pool    string      `json:"pool,omitempty" doc:"pool on that node; empty is its default"`
	Branch  string      `json:"branch,omitempty" doc:"empty is the current branch"`
	Options MoveOptions `json:"options"`
	DryRun  bool        `json:"dryRun,omitempty" doc:"only say what would be done"`
}

// RecoverVolume is a user's decision that a volume goes on elsewhere from what
// is held there, because its owner is gone.
type RecoverVolume struct {
	Node string `json:"node" doc:"the new owner; it must hold a snapshot of the volume"`
	// OwnerIsDead is the user's word that the owner has stopped for certain:
	// powered off, not merely unreachable.
	OwnerIsDead bool `json:"ownerIsDead"`
	// AcceptLoss is the user's word that what was written after that snapshot
	// may be missing.
	AcceptLoss bool `json:"acceptLoss"`
	DryRun     bool `json:"dryRun,omitempty" doc:"only say what would be lost"`
}

// Recovery is what a recovery did or would do.
type Recovery struct {
	Volume   string       `json:"volume"`
	From     string       `json:"from"`
	To       string       `json:"to"`
	Snapshot HeldSnapshot `json:"snapshot"`
	Loss     string       `json:"loss" doc:"in words"`
}

// HeldSnapshot is a snapshot that a node holds of a volume.
type HeldSnapshot struct {
	Pool    string    `json:"pool"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// MovePlan is what a move does: its actions in order, and what is known of
// its size before it begins.
type MovePlan struct {
	Move    string   `json:"move,omitempty" doc:"id of the move that was begun; empty for a dry run"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Pool    string   `json:"pool"`
	Format  string   `json:"format" doc:"how the data travels"`
	Base    string   `json:"base,omitempty" doc:"snapshot that both sides hold; empty: everything travels"`
	Bytes   int64    `json:"bytes" doc:"about as many cross the wire; -1 is unknown"`
	Users   []string `json:"users,omitempty" doc:"containers that are stopped and started on the target"`
	Actions []string `json:"actions"`
}

// VolumeDetail is a volume with what its owners say of its heads.
type VolumeDetail struct {
	Volume Volume                `json:"volume"`
	Status map[string]HeadStatus `json:"status" doc:"by branch; a branch whose owner does not answer is missing"`
	// Unknown says for each branch whose owner does not answer since when.
	Unknown map[string]string `json:"unknown,omitempty" doc:"by branch: \"unknown since …\""`
}

// AddPool is a user's wish for a pool on a node.
type AddPool struct {
	Name string `json:"name"`
	Node string `json:"node,omitempty" doc:"empty is the node that is asked"`
	Kind string `json:"kind" enum:"btrfs,zfs,dir"`
	// Source is the place: a directory on a mounted btrfs, a ZFS dataset, a
	// directory. Empty with kind btrfs makes a file under the data directory.
	Source string `json:"source,omitempty"`
	Size   int64  `json:"size,omitempty" doc:"bytes of the file that is made for a pool without a source; 0 chooses"`
}

// GrowPool is a user's wish that a pool on a file becomes larger.
type GrowPool struct {
	Node string `json:"node,omitempty" doc:"empty is the node that is asked"`
	Size int64  `json:"size" doc:"bytes of the pool's file then"`
}

// Check is one thing that was checked.
type Check struct {
	Name   string `json:"name"`
	Level  string `json:"level" enum:"ok,warning,error"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty" doc:"how to mend it"`
}

// ClusterStatus is the cluster at a glance.
type ClusterStatus struct {
	Cluster Cluster   `json:"cluster"`
	Node    string    `json:"node" doc:"who answers"`
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	State   string    `json:"state" doc:"of the state store: healthy, or what is wrong"`
	Nodes   []Node    `json:"nodes"`
	Volumes int       `json:"volumes"`
	Moving  int       `json:"moving"`
}

// NodeProbe is a node's answer to the question whether it is there.
type NodeProbe struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Time    time.Time `json:"time" doc:"of its clock, when it answered"`
}
