package api

import (
	"testing"
	"unicode/utf8"
)

func TestEscapePath(t *testing.T) {
	for path, want := range map[string]string{
		"base/1/2":      "base/1/2",
		"größe 日本":      "größe 日本",
		"a\nb\x00c":     `a\x0ab\x00c`,
		"\xff\\x41":     `\xff\\x41`,
		"\u202egnp.exe": `\xe2\x80\xaegnp.exe`, // turns the line around
		"\x1b[2J":       `\x1b[2J`,
		"":              "",
	} {
		if got := EscapePath(path); got != want {
			t.Errorf("%q became %s, want %s", path, got, want)
		}
	}
	for _, bad := range []string{`\`, `a\n`, `\x`, `\x4`, `\xg0`, `\x+1`} {
		if got, err := UnescapePath(bad); !Is(err, Invalid) {
			t.Errorf("%s was read as %q, %v", bad, got, err)
		}
	}
}

func FuzzEscapePath(f *testing.F) {
	f.Add("a/b")
	f.Add("\xff\\x\u202e\u0085\ufffd")
	f.Fuzz(func(t *testing.T, p string) {
		text := EscapePath(p)
		if !utf8.ValidString(text) {
			t.Fatalf("%q became %q", p, text)
		}
		if back, err := UnescapePath(text); err != nil || back != p {
			t.Fatalf("%q became %q and then %q, %v", p, text, back, err)
		}
		if q, err := UnescapePath(p); err == nil {
			if again, err := UnescapePath(EscapePath(q)); err != nil || again != q {
				t.Fatalf("%q became %q", q, again)
			}
		}
	})
}
