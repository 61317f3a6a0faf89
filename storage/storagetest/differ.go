package storagetest

import (
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// differ demands of Dirty that it says false where nothing was done and true
// where something was, and of Changes that it names what was done, where it
// answers at all.
func (s suite) differ(t *testing.T) {
	e := s.new(t)
	d, ok := storage.As[storage.Differ](e.Backend)
	if !ok {
		t.Fatal("the backend lost its Differ")
	}
	dirty := func(h storage.Head, id string, want bool, when string) {
		t.Helper()
		got, err := d.Dirty(e.ctx, h.Key, id)
		e.ok(err, "Dirty "+when)
		if got != want {
			t.Errorf("%s: dirty against %s is %v", when, id, got)
		}
	}
	h := e.head("v", "")
	e.write(h, Files{"a": "one", "same": "same", "d/x": "x"})
	e.snap(h, "s1")
	dirty(h, "s1", false, "after a snapshot")
	dirty(h, "s1", false, "when asked again")
	e.ok(e.SetNote(e.ctx, h.Key, []byte("another")), "SetNote")
	e.snap(h, "s2")
	dirty(h, "s2", false, "after a second snapshot")
	e.write(h, Files{"a": "two", "d/y": "new"})
	dirty(h, "s1", true, "after a change")
	dirty(h, "s2", true, "after a change")
	e.snap(h, "s3")
	dirty(h, "s3", false, "after the change's snapshot")
	dirty(h, "s1", true, "after the change's snapshot")

	branch, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: storage.HeadKey{Volume: "v", Branch: "other"}, From: "s1"})
	e.ok(err, "CreateHead from a snapshot")
	dirty(branch, "s1", false, "of a head just made")
	e.write(branch, Files{"d/x": "changed"})
	dirty(branch, "s1", true, "of a head that was changed")

	_, err = d.Dirty(e.ctx, h.Key, "unknown")
	e.is(err, api.NotFound, "Dirty against a snapshot that is not there")
	_, err = d.Dirty(e.ctx, key("unknown"), "s1")
	e.is(err, api.NotFound, "Dirty of a head that is not there")
	e.is(d.Changes(e.ctx, "v", "s1", "unknown", func(storage.Change) error { return nil }), api.NotFound, "Changes of a snapshot that is not there")

	named := map[string]bool{}
	err = d.Changes(e.ctx, "v", "s2", "s3", func(c storage.Change) error { named[c.Path] = true; return nil })
	if api.Is(err, api.Unsupported) {
		return
	}
	e.ok(err, "Changes")
	if !named["a"] || !named["d"] || !named["d/y"] {
		t.Errorf("Changes named %v", named)
	}
	e.ok(d.Changes(e.ctx, "v", "s1", "s2", func(c storage.Change) error {
		if c.Whole || len(c.Ranges) > 0 {
			t.Errorf("nothing changed, and %+v is named", c)
		}
		return nil
	}), "Changes where nothing changed")
}
