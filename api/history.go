package api

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Commit is an immutable, named point of a volume's history. It is kept as
// the note of the snapshot with the same ID, and as the record of a remote.
type Commit struct {
	ID      string            `json:"id" doc:"160 random bits in hexadecimal"`
	Volume  string            `json:"volume" doc:"id of the volume it was made of"`
	Parents []string          `json:"parents,omitempty" doc:"ids; the first is the branch's tip before it"`
	Branch  string            `json:"branch" doc:"branch on which it was made"`
	Message string            `json:"message"`
	Author  string            `json:"author"`
	Time    time.Time         `json:"time"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Consistency is how the data was held while the snapshot was made.
	Consistency Consistency `json:"consistency"`
	// Hooks names what ran in the application, in order.
	Hooks []string `json:"hooks,omitempty"`
	// Group is the same for commits of several volumes made in one instant.
	Group string `json:"group,omitempty"`
	// Stash marks a commit that was made to keep what a command replaced.
	Stash string `json:"stash,omitempty" doc:"the command that made it; empty for a commit of a user"`
}

// Consistency says what an application finds in a commit.
type Consistency string

// The levels, weakest first.
const (
	// ConsistencyCrash is one instant, as after a loss of power.
	ConsistencyCrash Consistency = "crash"
	// ConsistencyPaused is one instant with all containers held.
	ConsistencyPaused Consistency = "paused"
	// ConsistencyApplication is what the application's own hook prepared.
	ConsistencyApplication Consistency = "application"
)

// Tip is how a branch came to point where it does.
type Tip struct {
	Op   string    `json:"op" doc:"commit, reset, pull, undo, branch, fetch"`
	From string    `json:"from,omitempty" doc:"commit it pointed to before"`
	Kept string    `json:"kept,omitempty" doc:"stash that keeps what was not committed"`
	By   string    `json:"by"`
	At   time.Time `json:"at"`
	Note string    `json:"note,omitempty"`
}

// RefLogEntry is one move of a branch's tip.
type RefLogEntry struct {
	Branch string `json:"branch"`
	To     string `json:"to"`
	Tip
}

// Dropped is a branch that was deleted and can be brought back.
type Dropped struct {
	Branch string `json:"branch"`
	Commit string `json:"commit" doc:"where it pointed"`
	Kept   string `json:"kept,omitempty" doc:"stash with what was not committed"`
	Node   string `json:"node"`
	Pool   string `json:"pool"`
	// Epoch is what the head had: one that comes back has a later one.
	Epoch uint64    `json:"epoch"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
	Purge time.Time `json:"purge"`
}

// Remote is a place outside the cluster that keeps a volume's commits.
type Remote struct {
	URL string `json:"url" doc:"registry.example.com/team/pg, s3://bucket/prefix, file:///path or hub://host/team/pg"`
	// Key is the id of the key that seals what is pushed; empty: in clear.
	Key string `json:"key,omitempty"`
	// Old are ids of keys that it had before, for reading what they sealed.
	Old []string `json:"old,omitempty"`
}

// Hook prepares an application so that a commit is consistent for it.
type Hook struct {
	// Kind is "postgresql", "mysql", "redis" or "command".
	Kind string `json:"kind" enum:"postgresql,mysql,redis,command"`
	// Container is the name of the container it runs in; empty: the one that
	// uses the head, if there is just one.
	Container string `json:"container,omitempty"`
	// Before and After are the commands of kind command; After runs even when the commit fails.
	Before []string `json:"before,omitempty"`
	After  []string `json:"after,omitempty"`
	// User is whom the kinds that speak to a database log in as; empty is their usual one.
	User     string        `json:"user,omitempty"`
	Deadline time.Duration `json:"deadline,omitempty" doc:"nanoseconds for everything from Before to After; 0 is 30 s"`
}

// Schedule is what happens to a volume by itself.
type Schedule struct {
	Branch string   `json:"branch,omitempty" doc:"empty is the current branch"`
	Every  string   `json:"every" doc:"a duration (1h, 30m) or five cron fields, in UTC"`
	Commit bool     `json:"commit"`
	Push   []string `json:"push,omitempty" doc:"names of remotes"`
	// Keep is the retention applied after each run; nil keeps everything.
	Keep *Keep `json:"keep,omitempty"`
	// KeepRemote is the same for the remotes that are pushed to.
	KeepRemote *Keep `json:"keepRemote,omitempty"`
	// Verify reads the branch back from the remotes it is pushed to.
	Verify bool `json:"verify,omitempty"`
	// Check restores it from there besides, and runs a command on it.
	Check *RestoreCheck `json:"check,omitempty"`
	// Consistency is asked of each commit; empty is the best that the volume can.
	Consistency Consistency `json:"consistency,omitempty"`
}

// RestoreCheck is a command that says whether restored data is good.
type RestoreCheck struct {
	Image string `json:"image" doc:"of the container it runs in, which has no network"`
	// Command ends with 0 when the data is good.
	Command  []string      `json:"command" doc:"instead of the image's entry point"`
	Path     string        `json:"path,omitempty" doc:"where the container has the data; empty is /data"`
	Deadline time.Duration `json:"deadline,omitempty" doc:"nanoseconds for the command; 0 is 10 min"`
}

// Bounds of a RestoreCheck.
const (
	CheckPath     = "/data"
	CheckDeadline = 10 * time.Minute
	MaxDeadline   = 6 * time.Hour
)

// Check refuses a check that could not run.
func (c RestoreCheck) Check() error {
	const op = "set check"
	switch {
	case c.Image == "":
		return &Error{Kind: Invalid, Op: op, Reason: "no image is given that the command runs in", Next: "give --check-image"}
	case len(c.Command) == 0 || c.Command[0] == "":
		return &Error{Kind: Invalid, Op: op, Object: c.Image, Reason: "no command is given", Next: "give --check-cmd"}
	case c.Path != "" && (!path.IsAbs(c.Path) || path.Clean(c.Path) != c.Path || c.Path == "/"):
		return &Error{Kind: Invalid, Op: op, Object: c.Path, Reason: "not a directory that the container can have the data at", Next: "give a path such as /data"}
	case c.Deadline < 0 || c.Deadline > MaxDeadline:
		return &Error{Kind: Invalid, Op: op, Object: c.Deadline.String(), Reason: "a deadline is between 0 (10 min) and 6 h"}
	}
	return nil
}

// Keep is a retention policy: a commit that any of its rules wants stays, and
// so does whatever a branch or tag points to.
type Keep struct {
	Last    int           `json:"last,omitempty" doc:"the newest n"`
	Within  time.Duration `json:"within,omitempty" doc:"nanoseconds; everything younger"`
	Hourly  int           `json:"hourly,omitempty" doc:"the newest of each of the last n hours that have one"`
	Daily   int           `json:"daily,omitempty"`
	Weekly  int           `json:"weekly,omitempty"`
	Monthly int           `json:"monthly,omitempty"`
	Yearly  int           `json:"yearly,omitempty"`
}

// Bounds of what a volume's record holds.
const (
	MaxBranches = 1000
	MaxTags     = 1000
	MaxRemotes  = 32
	MaxOldKeys  = 64 // of a remote
	MaxDropped  = 32
	MaxMessage  = 16 << 10 // bytes
)

var (
	commitID     = regexp.MustCompile(`^[0-9a-f]{40}$`)
	commitPrefix = regexp.MustCompile(`^[0-9a-f]{4,40}$`)
)

// IsCommitID reports whether s is a whole commit id.
func IsCommitID(s string) bool { return commitID.MatchString(s) }

// IsCommitPrefix reports whether s can stand for a commit.
func IsCommitPrefix(s string) bool { return commitPrefix.MatchString(s) }

// CheckTagName allows the same as for a branch.
func CheckTagName(s string) error {
	return checkName("tag", s, branchName, "letters, digits, '_', '.', '-' and '/' between parts that begin with a letter or digit")
}

// CheckRemoteName allows the same as for a volume.
func CheckRemoteName(s string) error {
	return checkName("remote", s, volumeName, "letters, digits, '_', '.' and '-', beginning with a letter or digit")
}

// CheckMessage refuses messages that are empty or could not be shown.
func CheckMessage(s string) error {
	const op = "write commit message"
	switch {
	case strings.TrimSpace(s) == "":
		return &Error{Kind: Invalid, Op: op, Reason: "the message is empty", Next: "give one with -m"}
	case len(s) > MaxMessage:
		return &Error{Kind: Invalid, Op: op, Reason: fmt.Sprintf("the message has %d bytes, at most %d are allowed", len(s), MaxMessage)}
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }):
		return &Error{Kind: Invalid, Op: op, Reason: "the message has bytes that are not text"}
	}
	return nil
}

// Check refuses hooks that could not run.
func (h Hook) Check() error {
	const op = "set hook"
	switch {
	case h.Kind != "postgresql" && h.Kind != "mysql" && h.Kind != "redis" && h.Kind != "command":
		return &Error{Kind: Invalid, Op: op, Object: fmt.Sprintf("%q", h.Kind), Reason: "there is no hook of that kind", Next: "the kinds are postgresql, mysql (for MariaDB too), redis and command"}
	case h.Kind == "command" && len(h.Before) == 0 && len(h.After) == 0:
		return &Error{Kind: Invalid, Op: op, Object: h.Kind, Reason: "no command is given", Next: "give one with --before, --after or both"}
	case h.Kind != "command" && (len(h.Before) > 0 || len(h.After) > 0):
		return &Error{Kind: Invalid, Op: op, Object: h.Kind, Reason: "only the kind command has commands of its own"}
	case h.Deadline < 0 || h.Deadline > time.Hour:
		return &Error{Kind: Invalid, Op: op, Object: h.Deadline.String(), Reason: "a deadline is between 0 (the default) and 1 h"}
	}
	return nil
}
