package api

import "time"

// MakeCommit is a user's wish for a commit.
type MakeCommit struct {
	Branch  string            `json:"branch,omitempty" doc:"empty is the current branch"`
	Message string            `json:"message"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Consistency is the level that is wanted; empty is the best that the
	// volume's own settings give.
	Consistency Consistency `json:"consistency,omitempty" enum:",crash,paused,application"`
	// With names further volumes, as volume or volume@branch, that are committed
	// in the same instant: all or none.
	With []string `json:"with,omitempty"`
}

// Committed is a commit that was made.
type Committed struct {
	Volume string `json:"volume" doc:"name"`
	Branch string `json:"branch"`
	Commit Commit `json:"commit"`
}

// LoggedCommit is a commit with the names that point to it.
type LoggedCommit struct {
	Commit
	Refs []string `json:"refs,omitempty" doc:"branches, tags (\"tag: …\") and remote branches that point to it"`
	// Missing are parents of which this cluster's node has no record.
	Missing []string `json:"missing,omitempty"`
}

// Branch is a branch as a list shows it.
type Branch struct {
	Name    string    `json:"name"`
	Current bool      `json:"current"`
	Commit  string    `json:"commit,omitempty" doc:"its tip"`
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	Ready   bool      `json:"ready"`
	Expires time.Time `json:"expires,omitzero"`
	Tip     *Tip      `json:"tip,omitempty"`
	// Deleted is when it was deleted, of one that can be brought back until Purge.
	Deleted time.Time `json:"deleted,omitzero"`
	Purge   time.Time `json:"purge,omitzero"`
}

// MakeBranch is a user's wish for a branch.
type MakeBranch struct {
	Name string `json:"name"`
	// From is where it begins: branch, tag or commit, with ~n; empty is the
	// current branch's newest commit.
	From     string        `json:"from,omitempty"`
	Expire   time.Duration `json:"expire,omitempty" doc:"nanoseconds until it is deleted by itself; 0 is never"`
	Checkout bool          `json:"checkout,omitempty" doc:"make it the current branch"`
}

// Rename is a user's wish that a branch has another name.
type Rename struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// ExpireBranch is a user's wish that a branch is deleted by itself, or not.
type ExpireBranch struct {
	Name   string        `json:"name"`
	Expire time.Duration `json:"expire" doc:"nanoseconds from now; 0 is never"`
}

// Checkout is a user's wish that another branch is the current one.
type Checkout struct {
	Branch string `json:"branch"`
}

// CheckedOut is what a checkout did.
type CheckedOut struct {
	Volume  string   `json:"volume"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Dirty   bool     `json:"dirty" doc:"the branch that was left has changes that are not committed; they stay in it"`
	Restart []string `json:"restart,omitempty" doc:"containers that were stopped and started"`
}

// ResetBranch is a user's wish that a branch's content is replaced.
type ResetBranch struct {
	Branch string `json:"branch,omitempty" doc:"empty is the current branch"`
	To     string `json:"to" doc:"branch, tag or commit, with ~n"`
}

// StashChanges is a user's wish that what is not committed is put aside.
type StashChanges struct {
	Branch  string `json:"branch,omitempty" doc:"empty is the current branch"`
	Message string `json:"message,omitempty"`
	Pop     bool   `json:"pop,omitempty" doc:"take back what was put aside instead"`
	Drop    bool   `json:"drop,omitempty" doc:"forget the stash instead, so that its space can be freed"`
	Stash   string `json:"stash,omitempty" doc:"which to take back or to drop: its id or the beginning of it; empty is the newest"`
}

// UndoLast is a user's wish that the last move of a branch's tip is taken back.
type UndoLast struct {
	Branch string `json:"branch,omitempty" doc:"empty is the current branch, or a branch that was deleted after its last move"`
}

// Moved is what reset, stash and undo did to a branch.
type Moved struct {
	Volume string `json:"volume"`
	Branch string `json:"branch"`
	Op     string `json:"op"`
	From   string `json:"from,omitempty" doc:"its tip before"`
	To     string `json:"to,omitempty" doc:"its tip now"`
	Kept   string `json:"kept,omitempty" doc:"stash that keeps what was not committed"`
	Note   string `json:"note,omitempty"`
}

// BranchStatus is how a branch stands to its newest commit.
type BranchStatus struct {
	Volume  string    `json:"volume"`
	Branch  string    `json:"branch"`
	Current bool      `json:"current"`
	Commit  *Commit   `json:"commit,omitempty" doc:"its tip; nothing before the first commit"`
	Tip     string    `json:"tip,omitempty" doc:"id of it, also where this node does not have it"`
	Dirty   bool      `json:"dirty" doc:"it has changes that are not committed"`
	Sure    bool      `json:"sure" doc:"false: dirty only because the pool cannot tell"`
	Node    string    `json:"node"`
	Users   []string  `json:"users,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Stashes int       `json:"stashes"`
	Waiting string    `json:"waiting,omitempty"`
}

// MakeTag is a user's wish for a tag.
type MakeTag struct {
	Name  string `json:"name"`
	At    string `json:"at,omitempty" doc:"branch, tag or commit, with ~n; empty is the current branch's newest commit"`
	Force bool   `json:"force,omitempty" doc:"move it when it names another commit"`
}
