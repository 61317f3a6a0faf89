package loopfile

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		name string
		p    Policy
		l    Look
		want int64
	}{
		{"enough left", Policy{}, Look{10 * gib, 6 * gib, 1000 * gib, 500 * gib}, 10 * gib},
		{"grows by half", Policy{}, Look{10 * gib, 8 * gib, 1000 * gib, 500 * gib}, 15 * gib},
		{"the host keeps its part", Policy{}, Look{10 * gib, 8 * gib, 1000 * gib, 22 * gib}, 12 * gib},
		{"the host has nothing to give", Policy{}, Look{10 * gib, 8 * gib, 1000 * gib, 5 * gib}, 10 * gib},
		{"a limit of its own", Policy{MaxSize: 11 * gib}, Look{10 * gib, 8 * gib, 1000 * gib, 500 * gib}, 11 * gib},
		{"earlier when told", Policy{GrowAbove: 50}, Look{10 * gib, 6 * gib, 1000 * gib, 500 * gib}, 15 * gib},
	} {
		if got := c.p.Wanted(c.l); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50)
		l := Look{n.Draw(t, "file"), n.Draw(t, "used"), n.Draw(t, "cap"), n.Draw(t, "free")}
		p := Policy{KeepFree: rapid.Int64Range(1, 1<<40).Draw(t, "keep")}
		got := p.Wanted(l)
		if got < l.FileSize || got > l.FileSize && l.HostFree-(got-l.FileSize) < p.KeepFree {
			t.Fatalf("%+v gives %d", l, got)
		}
	})
}

func TestInitial(t *testing.T) {
	if got := (Policy{}).Initial(100*gib, 10*gib); got != 0 {
		t.Errorf("no room gave %d", got)
	}
	if got := (Policy{}).Initial(1000*gib, 900*gib); got != 10*gib {
		t.Errorf("a large host gave %d", got)
	}
}

func TestValidate(t *testing.T) {
	err := Config{File: "a", Dir: "b"}.Validate()
	if !api.Is(err, api.Invalid) {
		t.Fatal(err)
	}
}
