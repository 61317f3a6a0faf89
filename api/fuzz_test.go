package api

import (
	"strings"
	"testing"
)

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"pg", "pg@main", "pg@feature/x~2", "pg~1", "pg~0", "pg@", "@", "~", "pg~-1", "pg~99999999999999999999", "a..b", "pg@~1", "pg~1~2", "é", "pg..main", "pg..fix..x~1", "pg...x", "pg.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if !Is(err, Invalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again != r || r.String() != s && (strings.Contains(s, "@") || !strings.Contains(s, "..")) {
			t.Fatalf("%q is %+v, printed %q, read again %+v %v", s, r, r.String(), again, err)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"", "pg", ".", "..", "a/b", "/a", "a/", "a//b", "-a", "A", "a.b", "a..b", "a\n", strings.Repeat("a", MaxName+1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for what, check := range map[string]func(string) error{"volume": CheckVolumeName, "branch": CheckBranchName, "node": CheckNodeName, "pool": CheckPoolName} {
			if check(s) != nil {
				continue
			}
			// Whatever passes can be part of a path and of a key.
			if s == "" || len(s) > MaxName || strings.ContainsAny(s, "\x00\n @~%") || strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.Contains(s, "..") {
				t.Fatalf("%q passes as the name of a %s", s, what)
			}
			if what != "branch" && strings.Contains(s, "/") {
				t.Fatalf("%q passes as the name of a %s", s, what)
			}
		}
	})
}
