package storagetest

import (
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// grower makes the pool larger under a head, as far as the host gives, and no further.
func (s suite) grower(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	want := Files{"a": noise(1, 100<<10)}
	e.write(h, want)
	look := func() (storage.Grower, storage.Growth, storage.Info) {
		t.Helper()
		g, ok := storage.As[storage.Grower](e.Backend)
		if !ok {
			t.Fatal("the backend lost its Grower")
		}
		growth, err := g.Growth(e.ctx)
		e.ok(err, "Growth")
		info, err := e.Info(e.ctx)
		e.ok(err, "Info")
		if growth.Want < growth.Size || growth.Most < growth.Size || growth.Limit == "" {
			t.Fatalf("Growth gave %+v", growth)
		}
		return g, growth, info
	}
	g, first, before := look()
	if first.Most < first.Size+(256<<20) {
		t.Fatalf("the suite needs a host that has 256 MiB more for the pool: %+v", first)
	}
	e.is(g.Grow(e.ctx, first.Size-1), api.Invalid, "Grow to less")
	e.ok(g.Grow(e.ctx, first.Size), "Grow to what it has")
	to := first.Size + 256<<20
	for range 2 {
		e.ok(g.Grow(e.ctx, to), "Grow")
	}
	_, second, after := look()
	if second.Size < to || after.Capacity-before.Capacity != second.Size-first.Size || after.Free <= before.Free {
		t.Fatalf("after growing to %d: %+v, %+v; before %+v", to, second, after, before)
	}
	e.is(g.Grow(e.ctx, 1<<55), api.Exhausted, "Grow to more than there is")
	if _, third, info := look(); third.Size != second.Size || info.Capacity != after.Capacity || info.State != api.PoolReady {
		t.Fatalf("a growth that was refused left %+v, %+v", third, info)
	}
	want["b"] = noise(2, 100<<10)
	e.write(h, want)
	e, _ = e.again()
	e.wantHead(h, want)
	if _, last, _ := look(); last.Size != second.Size {
		t.Fatalf("after a restart it has %d bytes, before %d", last.Size, second.Size)
	}
}
