package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Diff is how two states of a volume differ.
type Diff struct {
	Volume string `json:"volume"`
	From   string `json:"from" doc:"commit"`
	// To is a commit; empty is the branch as it is now.
	To      string       `json:"to,omitempty"`
	Node    string       `json:"node" doc:"whose pools were asked"`
	Changes []PathChange `json:"changes"`
	// More: there are more than were asked for. Totals counts all of them.
	More   bool       `json:"more,omitempty"`
	Totals DiffTotals `json:"totals"`
}

// DiffTotals sums a diff up.
type DiffTotals struct {
	Added    int64 `json:"added"`
	Removed  int64 `json:"removed"`
	Modified int64 `json:"modified"`
	Metadata int64 `json:"metadata"`
	Type     int64 `json:"type"`
	Bytes    int64 `json:"bytes" doc:"of content that is new or differs"`
	Gone     int64 `json:"gone" doc:"bytes of files that were removed"`
}

// PathChange is a path that differs.
type PathChange struct {
	Path string `json:"path" doc:"escaped: \\\\ is a backslash, \\xNN a byte that is not text"`
	What string `json:"what" enum:"added,removed,modified,metadata,type"`
	// Was and Is are file, dir, link, symlink or node; empty: not there.
	Was     string `json:"was,omitempty"`
	Is      string `json:"is,omitempty"`
	OldSize int64  `json:"oldSize,omitempty"`
	Size    int64  `json:"size,omitempty"`
	Bytes   int64  `json:"bytes,omitempty" doc:"of content that is new or differs"`
	Entries int64  `json:"entries,omitempty" doc:"that went with it, itself included"`
	Mode    string `json:"mode,omitempty" doc:"octal, where it differs: old > new"`
	Owner   string `json:"owner,omitempty" doc:"user:group, where it differs: old > new"`
	Target  string `json:"target,omitempty" doc:"of a link; escaped as path is"`
}

// FilePart is a part of a file of a commit.
type FilePart struct {
	Commit string `json:"commit"`
	Path   string `json:"path" doc:"escaped"`
	Size   int64  `json:"size" doc:"of the whole file"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data" doc:"as many bytes as were asked for, less at the end only"`
}

// MaxFilePart is the most that one FilePart carries.
const MaxFilePart = 4 << 20

// RevertFile is a user's wish that a file is as it was.
type RevertFile struct {
	Branch string `json:"branch,omitempty" doc:"empty is the current branch"`
	Path   string `json:"path" doc:"escaped"`
	From   string `json:"from,omitempty" doc:"branch, tag or commit, with ~n; empty is the branch's newest commit"`
	Force  bool   `json:"force,omitempty" doc:"also while containers use the volume"`
}

// Reverted is what that did.
type Reverted struct {
	Volume string `json:"volume"`
	Branch string `json:"branch"`
	Path   string `json:"path" doc:"escaped"`
	From   string `json:"from" doc:"commit"`
	Size   int64  `json:"size"`
	Kept   string `json:"kept,omitempty" doc:"stash that keeps what was not committed"`
}

// Place is where a node holds a commit.
type Place struct {
	Volume string `json:"volume"`
	Commit string `json:"commit"`
	Node   string `json:"node"`
	Pool   string `json:"pool"`
	Dir    string `json:"dir" doc:"directory on that node; not to be written to"`
}

// EscapePath makes a path text: whatever it consists of, it can be shown, and
// UnescapePath gives the same path back.
func EscapePath(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); {
		r, n := utf8.DecodeRuneInString(p[i:])
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == utf8.RuneError && n == 1, !strconv.IsPrint(r):
			for _, c := range []byte(p[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		default:
			b.WriteString(p[i : i+n])
		}
		i += n
	}
	return b.String()
}

// UnescapePath reads what EscapePath wrote.
func UnescapePath(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			b.WriteByte(s[i])
		case strings.HasPrefix(s[i:], `\\`):
			b.WriteByte('\\')
			i++
		default:
			if len(s) < i+4 || s[i+1] != 'x' {
				return "", badEscape(s)
			}
			c, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
			if err != nil {
				return "", badEscape(s)
			}
			b.WriteByte(byte(c))
			i += 3
		}
	}
	return b.String(), nil
}

func badEscape(s string) error {
	return &Error{Kind: Invalid, Op: "read path", Object: fmt.Sprintf("%.200q", s), Reason: `after a backslash comes another one, or xNN`, Next: `write \\ for a backslash`}
}
