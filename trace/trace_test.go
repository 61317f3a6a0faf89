package trace

import (
	"bytes"
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestHeaderReadsBack(t *testing.T) {
	a := New()
	if a == New() {
		t.Fatal("two traces are the same")
	}
	b, ok := Parse(a.String())
	if !ok || a != b {
		t.Fatalf("%v became %v", a, b)
	}
	if s := a.Step(); s.ID != a.ID || s.Span == a.Span {
		t.Errorf("the step after %v is %v", a, s)
	}
	if c := Continue(a.ID); c.ID != a.ID || c.Span == "" {
		t.Errorf("got %v", c)
	}
	if c := Continue("x"); c.ID == "x" || len(c.ID) != 32 {
		t.Errorf("got %v", c)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "00-1-2-01", "01-" + strings.Repeat("a", 32) + "-" + strings.Repeat("b", 16) + "-01",
		"00-" + strings.Repeat("0", 32) + "-" + strings.Repeat("b", 16) + "-01", "00-" + strings.Repeat("a", 32) + "-" + strings.Repeat("0", 16) + "-01",
		"00-" + strings.Repeat("A", 32) + "-" + strings.Repeat("b", 16) + "-01", New().String() + "\n",
	} {
		if got, ok := Parse(s); ok {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(New().String())
	f.Add("00--")
	f.Fuzz(func(t *testing.T, s string) {
		if a, ok := Parse(s); ok {
			if b, again := Parse(a.String()); !again || a != b {
				t.Fatalf("%q is %v, and then %v", s, a, b)
			}
		}
	})
}

func TestOfRequest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set(Header, rapid.String().Draw(t, "header"))
		if got := Of(r); len(got.ID) != 32 || len(got.Span) != 16 {
			t.Fatalf("got %v", got)
		}
	})
}

func TestLogs(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(Logs(slog.NewTextHandler(&out, nil))).With("a", 1).WithGroup("g")
	tr := New()
	log.InfoContext(With(context.Background(), tr), "hello")
	log.InfoContext(context.Background(), "bye")
	lines := strings.Split(out.String(), "\n")
	if !strings.Contains(lines[0], "trace="+tr.ID) || strings.Contains(lines[1], "trace") {
		t.Errorf("got %q", lines)
	}
}
