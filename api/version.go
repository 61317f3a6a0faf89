package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Versions is the range of versions of API, records and transfer protocol that
// a binary speaks. Two nodes use the newest that both of them know.
type Versions struct {
	Oldest, Newest int
}

// Speaks is what this binary speaks. A version is kept for as long as a cluster
// is upgraded from it, node by node.
func Speaks() Versions { return Versions{oldest, newest} }

// Common is the newest version that both speak; false: there is none.
func (v Versions) Common(other Versions) (int, bool) {
	n := min(v.Newest, other.Newest)
	return n, n > 0 && n >= v.Oldest && n >= other.Oldest
}

// String is the form that VersionHeader has and that people read: "1" or "1-2".
func (v Versions) String() string {
	if v.Oldest == v.Newest {
		return strconv.Itoa(v.Newest)
	}
	return fmt.Sprintf("%d-%d", v.Oldest, v.Newest)
}

// ParseVersions is the inverse of String.
func ParseVersions(s string) (v Versions, ok bool) {
	from, to, both := strings.Cut(s, "-")
	if !both {
		to = from
	}
	var err, err2 error
	v.Oldest, err = strconv.Atoi(from)
	v.Newest, err2 = strconv.Atoi(to)
	if err != nil || err2 != nil || v.Oldest < 1 || v.Newest < v.Oldest || v.String() != s {
		return Versions{}, false
	}
	return v, true
}

// VersionHeader says in each request and answer what its sender speaks.
const VersionHeader = "Drover-Api"

// Apart is the error for two that have no version in common.
func Apart(op, object string, mine Versions, other string, theirs Versions) *Error {
	next := "upgrade this one first, to a version that speaks both"
	if mine.Newest > theirs.Newest {
		next = "upgrade " + other + " first, to a version that speaks both"
	}
	return &Error{Kind: Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("it speaks version %s of the API, and %s version %s", mine, other, theirs), Next: next}
}
