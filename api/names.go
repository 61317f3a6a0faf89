package api

import (
	"fmt"
	"regexp"
	"strings"
)

// MaxName is the longest name, in bytes.
const MaxName = 128

var (
	volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	branchName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*(/[a-zA-Z0-9][a-zA-Z0-9_.-]*)*$`)
	likeID     = regexp.MustCompile(`^[0-9a-f]{32}$`)
	nodeName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// CheckVolumeName refuses what Docker does not allow as a volume's name.
func CheckVolumeName(s string) error {
	return checkName("volume", s, volumeName, "letters, digits, '_', '.' and '-', beginning with a letter or digit")
}

// CheckNewVolumeName refuses, beyond that, what reads like the id of a volume:
// under such a name one volume would be taken for another.
func CheckNewVolumeName(s string) error {
	if likeID.MatchString(s) {
		return &Error{Kind: Invalid, Op: "name a volume", Object: s, Reason: "32 hexadecimal digits are what the id of a volume looks like", Next: "choose another name"}
	}
	return CheckVolumeName(s)
}

// CheckBranchName allows what git users expect of a branch, slashes included.
func CheckBranchName(s string) error {
	return checkName("branch", s, branchName, "letters, digits, '_', '.', '-' and '/' between parts that begin with a letter or digit")
}

// CheckNodeName allows host names as in RFC 1123, in lower case.
func CheckNodeName(s string) error {
	return checkName("node", s, nodeName, "a host name in lower case")
}

// CheckPoolName allows the same as for a volume.
func CheckPoolName(s string) error {
	return checkName("pool", s, volumeName, "letters, digits, '_', '.' and '-', beginning with a letter or digit")
}

func checkName(what, s string, re *regexp.Regexp, allowed string) error {
	switch {
	case s == "":
		return &Error{Kind: Invalid, Op: "name a " + what, Reason: "the name is empty", Next: "give " + allowed}
	case len(s) > MaxName:
		return &Error{Kind: Invalid, Op: "name a " + what, Reason: fmt.Sprintf("the name has %d bytes, at most %d are allowed", len(s), MaxName)}
	case re.MatchString(s) && strings.Contains(s, ".."):
		return &Error{Kind: Invalid, Op: "name a " + what, Object: fmt.Sprintf("%q", s), Reason: "two dots in a row stand for the @ of a branch, or for its /, where those cannot be written", Next: "use one dot, or another character"}
	case !re.MatchString(s):
		return &Error{Kind: Invalid, Op: "name a " + what, Object: fmt.Sprintf("%q", s), Reason: "not a valid name", Next: "use " + allowed}
	}
	return nil
}

// CheckLabels refuses labels that could not be selected later.
func CheckLabels(labels map[string]string) error {
	for k, v := range labels {
		if k == "" || len(k) > MaxName || len(v) > 1024 || strings.ContainsAny(k, "=, \t\n") || strings.ContainsAny(v, "\n") {
			return &Error{Kind: Invalid, Op: "set label", Object: fmt.Sprintf("%q=%q", k, v), Reason: "not a valid label", Next: "a key has at most 128 bytes without '=', ',' or blanks, a value at most 1024 without line breaks"}
		}
	}
	return nil
}
