package loopfile

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name       string
		p          Policy
		l          Look
		want, most int64
	}{
		{"enough left", Policy{}, Look{10 * gib, 6 * gib, false, 1000 * gib, 500 * gib}, 10 * gib, 490 * gib},
		{"grows by half", Policy{}, Look{10 * gib, 8 * gib, false, 1000 * gib, 500 * gib}, 15 * gib, 490 * gib},
		{"grows by whole steps", Policy{}, Look{gib / 4, gib / 5, false, 1000 * gib, 500 * gib}, gib, 480*gib + gib/4},
		{"full of something else than data", Policy{}, Look{10 * gib, gib, true, 1000 * gib, 500 * gib}, 15 * gib, 490 * gib},
		{"the host keeps its part", Policy{}, Look{10 * gib, 8 * gib, false, 1000 * gib, 22 * gib}, 15 * gib, 12 * gib},
		{"the host has nothing to give", Policy{}, Look{10 * gib, 8 * gib, false, 1000 * gib, 5 * gib}, 15 * gib, 10 * gib},
		{"the host has too little for a step", Policy{}, Look{10 * gib, 8 * gib, false, 1000 * gib, 20*gib + worth - 1}, 15 * gib, 10 * gib},
		{"a limit of its own", Policy{MaxSize: 11 * gib}, Look{10 * gib, 8 * gib, false, 1000 * gib, 500 * gib}, 11 * gib, 11 * gib},
		{"a limit below what it is", Policy{MaxSize: 9 * gib}, Look{10 * gib, 8 * gib, false, 1000 * gib, 500 * gib}, 10 * gib, 10 * gib},
		{"earlier when told", Policy{GrowAbove: 50}, Look{10 * gib, 6 * gib, false, 1000 * gib, 500 * gib}, 15 * gib, 490 * gib},
	} {
		if got := c.p.Decide(c.l); got != (Decision{c.want, c.most}) {
			t.Errorf("%s: %+v, want %d and %d", c.name, got, c.want, c.most)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50)
		l := Look{n.Draw(t, "file"), n.Draw(t, "used"), rapid.Bool().Draw(t, "full"), n.Draw(t, "cap"), n.Draw(t, "free")}
		p := Policy{KeepFree: rapid.Int64Range(1, 1<<40).Draw(t, "keep"), MaxSize: rapid.Int64Range(0, 1<<50).Draw(t, "max")}
		d := p.Decide(l)
		if d.Want < l.FileSize || d.Most < l.FileSize || d.Most > l.FileSize && l.HostFree-(d.Most-l.FileSize) < p.KeepFree {
			t.Fatalf("%+v gives %+v", l, d)
		}
		if p.MaxSize > 0 && max(d.Want, d.Most) > max(l.FileSize, p.MaxSize) {
			t.Fatalf("%+v gives %+v, beyond %d", l, d, p.MaxSize)
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
