package api

import "testing"

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		a, b   string
		common int // 0: none
	}{
		{"1", "1", 1},
		{"1", "1-2", 1},
		{"1-3", "2-5", 3},
		{"1-2", "3", 0},
		{"4", "1-3", 0},
	} {
		a, ok := ParseVersions(c.a)
		b, ok2 := ParseVersions(c.b)
		if !ok || !ok2 || a.String() != c.a {
			t.Fatalf("%s, %s: %v %v", c.a, c.b, ok, ok2)
		}
		for _, p := range [][2]Versions{{a, b}, {b, a}} {
			n, ok := p[0].Common(p[1])
			if ok != (c.common > 0) || ok && n != c.common {
				t.Errorf("%s and %s: %d, %v", p[0], p[1], n, ok)
			}
		}
	}
	for _, s := range []string{"", "0", "-1", "2-1", "1-", "x", "1-1", "01", "1-2-3"} {
		if v, ok := ParseVersions(s); ok {
			t.Errorf("%q is taken for %v", s, v)
		}
	}
	if _, ok := (Versions{}).Common(Speaks()); ok {
		t.Error("nothing has something in common")
	}
}

func FuzzParseVersions(f *testing.F) {
	f.Add("1")
	f.Add("1-2")
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := ParseVersions(s); ok && v.String() != s {
			t.Errorf("%q came back as %q", s, v)
		}
	})
}
