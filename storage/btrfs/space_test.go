package btrfs

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage/hostfs"
)

func TestJudge(t *testing.T) {
	const gib = 1 << 30
	base := Space{Capacity: 100 * gib, Unallocated: 50 * gib, DataTotal: 48 * gib, DataUsed: 40 * gib, DataCopies: 1, MetaTotal: gib, MetaUsed: gib / 2, MetaReserve: gib / 8, MetaCopies: 2}
	for _, c := range []struct {
		name  string
		mod   func(*Space)
		state api.PoolState
		tight bool
		free  int64
	}{
		{"half full", func(*Space) {}, api.PoolReady, false, 53 * gib},
		{"at the watermark", func(s *Space) { s.Unallocated, s.DataUsed = 0, 43*gib; s.MetaUsed = gib / 8 }, api.PoolFull, false, 0},
		{"almost nothing left", func(s *Space) { s.Unallocated, s.DataUsed = 0, 48*gib-1 }, api.PoolFull, true, 0},
		{"metadata used up", func(s *Space) { s.Unallocated, s.DataUsed, s.MetaUsed = 0, 20*gib, gib-gib/8 }, api.PoolFull, true, 0},
		{"read-only", func(s *Space) { s.ReadOnly = true }, api.PoolReadOnly, false, 0},
	} {
		s := base
		c.mod(&s)
		v := Judge(s)
		if v.State != c.state || v.Tight != c.tight || v.Free != c.free || (v.Reason == "") != (c.state == api.PoolReady) {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50)
		s := Space{Capacity: n.Draw(t, "cap"), Unallocated: n.Draw(t, "un"), DataTotal: n.Draw(t, "dt"), DataUsed: n.Draw(t, "du"), MetaTotal: n.Draw(t, "mt"), MetaUsed: n.Draw(t, "mu"), MetaReserve: n.Draw(t, "mr"), DataCopies: 1, MetaCopies: 2}
		v := Judge(s)
		if v.Free < 0 || v.State != api.PoolReady && (v.Free != 0 || v.Reason == "") {
			t.Fatalf("%+v", v)
		}
		if m := Watermark(s.Capacity); m < 0 || m > s.Capacity/5 {
			t.Fatalf("watermark %d of %d", m, s.Capacity)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("at-5", "a/b")
	f.Fuzz(func(t *testing.T, name, id string) {
		if n, ok := parseMark(name); ok && markName(n) != name {
			t.Fatal("not the inverse")
		}
		if hostfs.CheckID("x", id) == nil {
			for _, c := range id {
				if c == '/' || c == 0 {
					t.Fatalf("%q passes", id)
				}
			}
			if id == "." || id == ".." {
				t.Fatalf("%q passes", id)
			}
		}
	})
}
