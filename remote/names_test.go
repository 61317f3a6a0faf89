package remote

import (
	"strings"
	"testing"
)

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"main", "feature/x", "a_b", "é", strings.Repeat("x", 200), "_-", "a__b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := Escape(s)
		if CheckName(BranchPrefix+e) != nil {
			t.Fatalf("%q became %q, which no remote keeps", s, e)
		}
		back, ok := Unescape(e)
		if ok && back != s {
			t.Fatalf("%q became %q became %q", s, e, back)
		}
		if !ok && !strings.Contains(e, sumMark) {
			t.Fatalf("%q became %q and does not come back", s, e)
		}
		if _, ok := Unescape(s); ok && Escape(mustUnescape(s)) != s {
			t.Fatalf("%q is read but not written", s)
		}
	})
}

func mustUnescape(s string) string { n, _ := Unescape(s); return n }
