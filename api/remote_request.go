package api

import "time"

// NameRemote is a user's wish for a name of a place that keeps commits.
type NameRemote struct {
	Name string `json:"name"`
	URL  string `json:"url" doc:"registry.example.com/team/pg, s3://bucket/prefix, file:///path or hub://host/team/pg"`
	Key  string `json:"key,omitempty" doc:"id of the key that seals what is pushed; empty: the one that what is there is sealed with, otherwise in clear"`
	// Open opens the keys of a remote that is sealed already.
	Open    OpenKey `json:"open,omitzero"`
	Replace bool    `json:"replace,omitempty" doc:"point a name that is there elsewhere"`
}

// StartPush is a user's wish that a branch's commits go to a remote.
type StartPush struct {
	Remote string `json:"remote,omitempty" doc:"name; empty is origin, or the only one there is"`
	Branch string `json:"branch,omitempty" doc:"empty is the current branch"`
	To     string `json:"to,omitempty" doc:"branch of the remote; empty is the same name"`
	// OnDivergence is the name of the remote's branch that ours goes to when the
	// remote's has commits that ours lacks; empty: that is refused.
	OnDivergence string `json:"onDivergence,omitempty"`
	DryRun       bool   `json:"dryRun,omitempty" doc:"only say what would be sent"`
	// Tags are pushed alone, without the branch; AllTags pushes all besides it.
	Tags    []string `json:"tags,omitempty"`
	AllTags bool     `json:"allTags,omitempty"`
	Force   bool     `json:"force,omitempty" doc:"move tags of the remote that point to other commits"`
}

// StartFetch is a user's wish that commits come from a remote.
type StartFetch struct {
	Remote string `json:"remote,omitempty" doc:"name; empty is origin, or the only one there is"`
	Branch string `json:"branch,omitempty" doc:"of the remote; empty is the current branch's name"`
	// Into is the branch here that follows what was fetched; empty only fetches.
	Into string `json:"into,omitempty"`
	// OnDivergence is the name of the branch here that theirs becomes when both
	// sides have commits that the other lacks; empty: that is refused.
	OnDivergence string `json:"onDivergence,omitempty"`
	AllowLoss    bool   `json:"allowLoss,omitempty" doc:"take what the pool cannot keep, and keep it beside the data"`
	// AllTags brings all tags with their commits. Without it those come whose
	// commits are here.
	AllTags bool `json:"allTags,omitempty"`
	Force   bool `json:"force,omitempty" doc:"move tags here that point to other commits"`
}

// CloneVolume is a user's wish for a volume that begins as a branch of a remote.
type CloneVolume struct {
	URL string `json:"url"`
	Key string `json:"key,omitempty" doc:"id of the key that seals what is pushed; empty: the one that what is there is sealed with"`
	// Open opens the keys of a remote that is sealed.
	Open      OpenKey `json:"open,omitzero"`
	Name      string  `json:"name"`
	Branch    string  `json:"branch,omitempty" doc:"of the remote; empty is main"`
	Node      string  `json:"node,omitempty" doc:"where it is made; empty is the node that is asked"`
	Pool      string  `json:"pool,omitempty" doc:"pool on that node; empty is its default"`
	Size      int64   `json:"size,omitempty" doc:"limit in bytes; 0 is none"`
	AllowLoss bool    `json:"allowLoss,omitempty"`
	AllTags   bool    `json:"allTags,omitempty" doc:"bring all tags with their commits"`
}

// VerifyRemote is a user's wish to have a remote's branch read back.
type VerifyRemote struct {
	Remote string `json:"remote,omitempty" doc:"name; empty is origin, or the only one there is"`
	Branch string `json:"branch,omitempty" doc:"of the remote; empty is the current branch's name"`
	// Check restores it besides, and runs a command on it.
	Check *RestoreCheck `json:"check,omitempty"`
}

// Job is something that takes a while, as the node tells that does it. It
// lives in that node's agent and is forgotten with it.
type Job struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind" doc:"push, fetch, pull, clone, verify or prune"`
	Node    string    `json:"node"`
	Volume  string    `json:"volume"`
	Remote  string    `json:"remote"`
	By      string    `json:"by"`
	Phase   string    `json:"phase" doc:"reading, uploading, downloading, writing, looking, removing, done or failed"`
	Read    int64     `json:"read" doc:"bytes of the volume's content that were read"`
	Sent    int64     `json:"sent" doc:"bytes that crossed the wire to the remote"`
	Got     int64     `json:"got" doc:"bytes that crossed the wire from the remote"`
	Wrote   int64     `json:"wrote" doc:"bytes of content that were written here"`
	ToSend  int64     `json:"toSend" doc:"bytes of packs that are ready to go or gone"`
	ToGet   int64     `json:"toGet" doc:"bytes that will cross the wire from the remote"`
	Freed   int64     `json:"freed,omitempty" doc:"bytes that were removed at the remote"`
	ToFree  int64     `json:"toFree,omitempty" doc:"bytes that are to be removed at the remote"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Result  *Synced   `json:"result,omitempty"`
	Err     *Error    `json:"error,omitempty"`
}

// Synced is what a push, fetch, pull or clone did.
type Synced struct {
	Relation string   `json:"relation" doc:"up-to-date, fast-forward, ahead, diverged or unrelated, seen from the side that was to change"`
	Branch   string   `json:"branch" doc:"that was moved, here or there"`
	From     string   `json:"from,omitempty" doc:"commit it pointed to"`
	To       string   `json:"to,omitempty" doc:"commit it points to"`
	Commits  []string `json:"commits,omitempty" doc:"that were brought"`
	Skipped  []string `json:"skipped,omitempty" doc:"of which no data was there; their children name them"`
	DryRun   bool     `json:"dryRun,omitempty" doc:"nothing was sent or moved"`
	Changed  int64    `json:"changed,omitempty" doc:"bytes of content that differ; of a dry run"`
	Kept     string   `json:"kept,omitempty" doc:"stash that keeps what was not committed"`
	Volume   string   `json:"volume,omitempty" doc:"that was made"`
	Warning  string   `json:"warning,omitempty"`
	// Tags were made or moved, here or there.
	Tags []MovedTag `json:"tags,omitempty"`
	// Checked is what the command said that looked at the restored data.
	Checked string `json:"checked,omitempty"`
	// Pruned says what a retention at the remote did.
	Pruned *RemotePruned `json:"pruned,omitempty"`
}

// MovedTag is a tag that was made or moved.
type MovedTag struct {
	Name   string `json:"name"`
	Commit string `json:"commit"`
	Was    string `json:"was,omitempty" doc:"commit that it pointed to"`
}

// RemotePruned is what a retention at a remote removed, or would remove.
type RemotePruned struct {
	Kept     int      `json:"kept" doc:"commits"`
	Dropped  []string `json:"dropped" doc:"commits"`
	Blobs    int      `json:"blobs" doc:"objects that nothing leads to any more"`
	Bytes    int64    `json:"bytes" doc:"of those"`
	Waiting  int64    `json:"waiting,omitempty" doc:"bytes that nothing leads to, too young to be removed"`
	Collects bool     `json:"collects,omitempty" doc:"the remote frees the room by its own means"`
	Warnings []string `json:"warnings,omitempty"`
}

// RemoteListing is what a remote has.
type RemoteListing struct {
	Remote string      `json:"remote"`
	URL    string      `json:"url"`
	Refs   []RemoteRef `json:"refs" doc:"branches, then tags"`
	// Commits are all there are, if they were asked for.
	Commits []RemoteRef `json:"commits,omitempty"`
	Keys    []RemoteKey `json:"keys,omitempty"`
	Damaged []Damage    `json:"damaged,omitempty" doc:"what cannot be read"`
}

// RemoteRef is a name that a remote has, with its commit.
type RemoteRef struct {
	Kind    string    `json:"kind" doc:"branch, tag or commit"`
	Name    string    `json:"name,omitempty"`
	Commit  string    `json:"commit"`
	Message string    `json:"message,omitempty" doc:"empty when it is sealed with a key that is not here"`
	Time    time.Time `json:"time"`
	Bytes   int64     `json:"bytes" doc:"sum of the files' sizes"`
	Stored  int64     `json:"stored" doc:"bytes at the remote that it needs; most are shared with other commits"`
	Digest  string    `json:"digest" doc:"of its content"`
	Sealed  string    `json:"sealed,omitempty" doc:"id of the key it is sealed with"`
}

// Damage is a name of a remote that leads to what cannot be read.
type Damage struct {
	Name   string `json:"name" doc:"as the remote has it: b-… a branch, t-… a tag, c-… a commit"`
	Reason string `json:"reason"`
}

// PruneCommits is a user's wish that commits go which a policy does not keep.
type PruneCommits struct {
	Keep   Keep `json:"keep"`
	DryRun bool `json:"dryRun,omitempty" doc:"only say which"`
}

// Pruned is what a prune removed.
type Pruned struct {
	Volume  string   `json:"volume"`
	Commits []string `json:"commits"`
	DryRun  bool     `json:"dryRun,omitempty"`
}
