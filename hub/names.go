package hub

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// What distribution-spec 1.1 allows, in two parts at least.
var (
	validPart = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)
	validPath = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$`)
)

// Bounds of names, in bytes.
const (
	MaxUser       = 64
	MaxRepository = 200
)

// CheckRepository refuses what is not namespace/name….
func CheckRepository(name string) error {
	if len(name) > MaxRepository || !validPath.MatchString(name) {
		return &api.Error{Kind: api.Invalid, Op: "use repository", Object: fmt.Sprintf("%.100q", name), Reason: "not a repository's name", Next: "namespace/name, of a-z, 0-9 and . _ - / between them"}
	}
	return nil
}

// CheckUser refuses what cannot be the name of a user or a namespace.
func CheckUser(name string) error {
	if len(name) > MaxUser || !validPart.MatchString(name) {
		return &api.Error{Kind: api.Invalid, Op: "use name", Object: fmt.Sprintf("%.100q", name), Reason: "not a name of a user or namespace", Next: "a-z and 0-9, with . _ - between them, at most 64"}
	}
	return nil
}

// NamespaceOf is the first part of a repository's name.
func NamespaceOf(repository string) string {
	first, _, _ := strings.Cut(repository, "/")
	return first
}

// Matches says whether a name is meant by a pattern: * stands for any run of bytes.
func Matches(pattern, name string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, first)
	if !ok {
		return false
	}
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(name, part)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], more
	}
}

// Protects gives the rule that lets a name only move forward, "" when there is none.
func (r Repository) Protects(name string) string {
	escaped, branch := strings.CutPrefix(name, remote.BranchPrefix)
	if !branch {
		return ""
	}
	whole, known := remote.Unescape(escaped)
	for _, p := range r.Protected {
		if known && Matches(p, whole) {
			return p
		}
		if known {
			continue
		}
		// A name that was cut: as much of it as is there.
		first, _, star := strings.Cut(p, "*")
		if remote.Escape(p) == escaped || (star && strings.HasPrefix(escaped, remote.Escape(first))) {
			return p
		}
	}
	return ""
}

// CommitOf is the commit that a name stands for, "" when it is no such name.
func CommitOf(name string) string {
	id, ok := strings.CutPrefix(name, remote.CommitPrefix)
	if !ok || !api.IsCommitID(id) {
		return ""
	}
	return id
}
