package repo

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"io"

	"github.com/drover-data/drover/api"
)

// Note is what a snapshot says of itself beside its data. A commit is a
// snapshot whose note names it.
type Note struct {
	Commit *api.Commit `json:"commit,omitempty"`
	// RefLog travels with the last snapshot of a move; see PackRefLog.
	RefLog []byte `json:"reflog,omitempty"`
	// Sealed says that the snapshot is the head itself, until the record says
	// that another node or epoch has it: the only copy of what was written last.
	Sealed *Sealed `json:"sealed,omitempty"`
}

// Sealed is the head that a snapshot was before a move.
type Sealed struct {
	Node   string `json:"node"`
	Pool   string `json:"pool"`
	Branch string `json:"branch"`
	Epoch  uint64 `json:"epoch"`
	Move   string `json:"move"`
}

// ReadNote reads a snapshot's note; one that cannot be read is of no commit.
func ReadNote(text []byte) Note {
	var n Note
	if len(text) == 0 || json.Unmarshal(text, &n) != nil {
		return Note{}
	}
	return n
}

const (
	// MaxRefLog is how many moves of a branch's tip are remembered.
	MaxRefLog = 200
	// maxPacked bounds what a reflog may take in a head's note, in bytes: ids
	// are random and do not shrink below half of their digits.
	maxPacked = 24 << 10
	// maxUnpacked bounds what a note can make us read.
	maxUnpacked = 1 << 20
)

// Tail is the part of a reflog that is kept, oldest first.
func Tail(log []api.RefLogEntry) []api.RefLogEntry {
	return log[max(0, len(log)-MaxRefLog):]
}

// PackRefLog makes a reflog small enough for a head's note, leaving out the
// oldest entries where it has to. Nothing packs to nothing.
func PackRefLog(log []api.RefLogEntry) ([]byte, error) {
	for log = Tail(log); len(log) > 0; log = log[(len(log)+3)/4:] {
		text, err := json.Marshal(log)
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		w, err := flate.NewWriter(&out, flate.DefaultCompression)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		if out.Len() <= maxPacked && len(text) <= maxUnpacked {
			return out.Bytes(), nil
		}
	}
	return nil, nil
}

// UnpackRefLog reads what PackRefLog wrote.
func UnpackRefLog(packed []byte) ([]api.RefLogEntry, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	const op = "read reflog"
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), maxUnpacked+1))
	if err != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Err: err}
	}
	if len(text) > maxUnpacked {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Reason: "it is larger than any that was written"}
	}
	var log []api.RefLogEntry
	if err := json.Unmarshal(text, &log); err != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Err: err}
	}
	return Tail(log), nil
}

// Follow brings a reflog up to a branch's tip. The tip says how it came to be;
// moves in between, of which only the tip was told, were commits: the graph
// says which. It reports whether anything was added.
func (g Graph) Follow(log []api.RefLogEntry, branch, tip string, how *api.Tip) ([]api.RefLogEntry, bool) {
	if how == nil || tip == "" && how.From == "" {
		return log, false
	}
	last := ""
	if n := len(log); n > 0 {
		last = log[n-1].To
		if last == tip && log[n-1].At.Equal(how.At) {
			return log, false
		}
	}
	var between []api.RefLogEntry
	for at := how.From; at != last && at != ""; {
		c, known := g[at]
		if !known || len(between) >= MaxRefLog {
			break
		}
		before := ""
		if len(c.Parents) > 0 {
			before = c.Parents[0]
		}
		between = append(between, api.RefLogEntry{Branch: branch, To: at, Tip: api.Tip{Op: OpCommit, From: before, By: c.Author, At: c.Time, Note: Subject(c.Message)}})
		at = before
		if at == last {
			break
		}
	}
	// Only when the way back leads to what is known are they what happened.
	if n := len(between); n > 0 && (between[n-1].From == last) {
		for i := n - 1; i >= 0; i-- {
			log = append(log, between[i])
		}
	}
	return Tail(append(log, api.RefLogEntry{Branch: branch, To: tip, Tip: *how})), true
}

// The words that reflogs and tips use for how a branch came to point somewhere.
const (
	OpCommit = "commit"
	OpReset  = "reset"
	OpStash  = "stash"
	OpPop    = "stash pop"
	OpUndo   = "undo"
	OpBranch = "branch"
	OpRename = "rename"
	OpPull   = "pull"
	// OpRevertFile leaves the tip where it is, and is there to be undone.
	OpRevertFile = "revert-file"
	OpClone      = "clone"
)

// Subject is a message's first line, cut to what fits a line.
func Subject(message string) string {
	const most = 100
	line := message
	for i, r := range message {
		if r == '\n' || i >= most {
			line = message[:i]
			break
		}
	}
	return line
}

// Named lists the commits that a reflog names.
func Named(log []api.RefLogEntry) []string {
	var out []string
	for _, e := range log {
		for _, id := range []string{e.To, e.From, e.Kept} {
			if id != "" {
				out = append(out, id)
			}
		}
	}
	return out
}

// Stashes lists what a reflog says was kept and not taken back, newest first.
func Stashes(log []api.RefLogEntry) []string {
	popped := map[string]bool{}
	var out []string
	for i := len(log) - 1; i >= 0; i-- {
		e := log[i]
		if e.Op == OpPop {
			popped[e.Note] = true
		}
		if e.Kept != "" && !popped[e.Kept] {
			out = append(out, e.Kept)
		}
	}
	return out
}

// RefsOf are the names that a volume's record gives to commits.
func RefsOf(v api.Volume) Refs {
	r := Refs{Current: v.Branch, Branches: map[string]string{}, Tags: v.Tags, Tracking: v.Tracking}
	for b, h := range v.Heads {
		r.Branches[b] = h.Commit
	}
	return r
}
