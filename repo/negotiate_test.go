package repo

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func side(formats []string, copies ...Copy) Side { return Side{Copies: copies, Formats: formats} }

func TestNegotiate(t *testing.T) {
	btrfs, zfs := []string{"btrfs-2", "btrfs-1"}, []string{"zfs-23"}
	for _, c := range []struct {
		name           string
		source, target Side
		want           Route
	}{
		{"target has it", side(btrfs, Copy{"s", "l", 1}), side(btrfs, Copy{"s", "x", 9}), Route{Have: true}},
		{"first copy, one kind", side(btrfs, Copy{"s", "l", 1}), side(btrfs), Route{Format: "btrfs-2"}},
		{"first copy, older target", side(btrfs, Copy{"s", "l", 1}), side([]string{"btrfs-1"}), Route{Format: "btrfs-1"}},
		{"first copy, unlike kinds", side(btrfs, Copy{"s", "l", 1}), side(zfs), Route{Format: Portable}},
		{
			"shared lineage", side(btrfs, Copy{"a", "la", 1}, Copy{"b", "lb", 2}, Copy{"s", "ls", 3}),
			side(btrfs, Copy{"a", "la", 7}, Copy{"b", "lb", 8}),
			Route{Format: "btrfs-2", Base: "b"},
		},
		{
			"same id by another way", side(btrfs, Copy{"a", "la", 1}, Copy{"s", "ls", 3}),
			side(btrfs, Copy{"a", "other", 7}),
			Route{Format: Portable, Base: "a"},
		},
		{
			"an older base of one lineage beats a newer one without", side(btrfs, Copy{"a", "la", 1}, Copy{"b", "lb", 2}, Copy{"s", "ls", 3}),
			side(btrfs, Copy{"a", "la", 7}, Copy{"b", "other", 8}),
			Route{Format: "btrfs-2", Base: "a"},
		},
		{
			"no lineage is no shared lineage", side(btrfs, Copy{"a", "", 1}, Copy{"s", "", 3}),
			side(btrfs, Copy{"a", "", 7}),
			Route{Format: Portable, Base: "a"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Negotiate("s", c.source, c.target); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestNegotiateHolds(t *testing.T) {
	ids := []string{"a", "b", "c", "d", "s"}
	lineages := []string{"", "l1", "l2", "l3"}
	formats := []string{"f1", "f2", "f3"}
	draw := func(t *rapid.T, name string) Side {
		var s Side
		for i, id := range ids {
			if rapid.Bool().Draw(t, name+id) {
				s.Copies = append(s.Copies, Copy{id, rapid.SampledFrom(lineages).Draw(t, name+"lineage"+id), uint64(i)})
			}
		}
		s.Formats = rapid.SliceOfNDistinct(rapid.SampledFrom(formats), 0, 3, rapid.ID[string]).Draw(t, name+"formats")
		return s
	}
	find := func(s Side, id string) (Copy, bool) {
		i := slices.IndexFunc(s.Copies, func(c Copy) bool { return c.ID == id })
		if i < 0 {
			return Copy{}, false
		}
		return s.Copies[i], true
	}
	rapid.Check(t, func(t *rapid.T) {
		source, target := draw(t, "source"), draw(t, "target")
		r := Negotiate("s", source, target)
		_, held := find(target, "s")
		if r.Have != held {
			t.Fatalf("have %v, target holds it: %v", r.Have, held)
		}
		if r.Have {
			return
		}
		if r.Format != Portable && (!slices.Contains(source.Formats, r.Format) || !slices.Contains(target.Formats, r.Format)) {
			t.Fatalf("format %q is not spoken by both", r.Format)
		}
		if r.Base != "" {
			a, okA := find(source, r.Base)
			b, okB := find(target, r.Base)
			if !okA || !okB || r.Base == "s" {
				t.Fatalf("base %q is not held by both", r.Base)
			}
			if r.Format != Portable && (a.Lineage == "" || a.Lineage != b.Lineage) {
				t.Fatalf("native stream on a base of lineages %q and %q", a.Lineage, b.Lineage)
			}
			return
		}
		for _, c := range source.Copies {
			if _, ok := find(target, c.ID); ok && c.ID != "s" {
				t.Fatalf("%q is held by both and was not used", c.ID)
			}
		}
	})
}

func TestKeepHoldsOneForEachPeer(t *testing.T) {
	local := []Copy{{ID: "a", Order: 1}, {ID: "b", Order: 2}, {ID: "c", Order: 3}}
	got := Keep(local, map[string][]string{"n1": {"a", "b"}, "n2": {"a"}, "n3": {"gone"}})
	if len(got) != 2 || !got["a"] || !got["b"] {
		t.Errorf("got %v", got)
	}
}
