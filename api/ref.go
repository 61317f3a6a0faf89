package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Ref names a version of a volume: volume[@branch][~n], volume@<commit prefix>
// or volume@<tag>. Which of branch, commit and tag At is, only the volume's
// history can tell.
type Ref struct {
	Volume string `json:"volume"`
	At     string `json:"at,omitempty" doc:"branch, tag or commit prefix; empty is the current branch"`
	Back   int    `json:"back,omitempty" doc:"that many commits before it"`
}

// maxBack bounds ~n: more parents than any history has.
const maxBack = 1 << 20

// ParseRef reads a reference. Whatever it accepts, String prints so that
// ParseRef reads it back as the same value. pg..fix..x is pg@fix/x, for engines
// that allow no more in the name of a volume than letters, digits, '_', '.' and '-'.
func ParseRef(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, &Error{Kind: Invalid, Op: "read reference", Object: fmt.Sprintf("%q", s), Reason: why, Next: "a reference reads volume[@branch][~n]"}
	}
	var r Ref
	rest := s
	if i := strings.LastIndexByte(rest, '~'); i >= 0 {
		digits := rest[i+1:]
		n, err := strconv.Atoi(digits)
		if err != nil || n < 0 || n > maxBack || (len(digits) > 1 && digits[0] == '0') || digits[0] == '+' {
			return bad("after '~' comes a number")
		}
		if n == 0 {
			return bad("~0 is the reference itself; leave it out")
		}
		r.Back, rest = n, rest[:i]
	}
	name, at, found := strings.Cut(rest, "@")
	if !found {
		// Podman takes neither '@' nor '/' in a name. No name has "..", so it
		// can stand for both.
		if name, at, found = strings.Cut(rest, ".."); found {
			at = strings.ReplaceAll(at, "..", "/")
		}
	}
	if err := CheckVolumeName(name); err != nil {
		return Ref{}, err
	}
	r.Volume = name
	if found {
		if err := CheckBranchName(at); err != nil {
			return Ref{}, err
		}
		r.At = at
	}
	return r, nil
}

// String is the reference as a user writes it.
func (r Ref) String() string {
	var b strings.Builder
	b.WriteString(r.Volume)
	if r.At != "" {
		b.WriteString("@" + r.At)
	}
	if r.Back != 0 {
		b.WriteString("~" + strconv.Itoa(r.Back))
	}
	return b.String()
}
