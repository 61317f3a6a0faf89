package ledger

import (
	"fmt"
	"slices"
	"testing"

	"github.com/drover-data/drover/api"
)

func TestKeysOfRemotes(t *testing.T) {
	v := api.Volume{Name: "pg"}
	remote := func() api.Remote { return v.Remotes["origin"] }
	set := func(kind api.Kind, r SetRemote) {
		t.Helper()
		r.Name = "origin"
		after, err := setRemote(v, r)
		if api.KindOf(err) != kind {
			t.Fatalf("%+v: %v", r, err)
		}
		if err == nil {
			v = after
		}
	}
	key := func(kind api.Kind, s SetKey) {
		t.Helper()
		s.Remote = "origin"
		before := slices.Clone(remote().Old)
		after, err := setKey(v, s)
		if api.KindOf(err) != kind {
			t.Fatalf("%+v: %v", s, err)
		}
		if !slices.Equal(before, remote().Old) {
			t.Fatalf("%+v changed what was there before", s)
		}
		if err == nil {
			v = after
		}
	}
	want := func(now string, old ...string) {
		t.Helper()
		if r := remote(); r.Key != now || !slices.Equal(r.Old, old) {
			t.Fatalf("%+v, want %s %v", r, now, old)
		}
	}
	key(api.NotFound, SetKey{Key: "a"})
	set("", SetRemote{Remote: &api.Remote{URL: "file:///x"}})
	key("", SetKey{Key: "a"})
	key("", SetKey{Key: "a"}) // again
	want("a")
	key(api.Conflict, SetKey{Key: "b"}) // somebody else was faster
	key("", SetKey{Key: "b", Was: "a"})
	want("b", "a")
	key("", SetKey{Know: []string{"c", "b", "a"}})
	want("b", "a", "c")
	key(api.InUse, SetKey{Drop: "b"})
	key("", SetKey{Drop: "c"})
	key("", SetKey{Drop: "c"})
	want("b", "a")
	// What is sealed stays so wherever it goes, unless another key is named.
	set("", SetRemote{Remote: &api.Remote{URL: "file:///y"}, Replace: true})
	want("b", "a")
	set(api.Exists, SetRemote{Remote: &api.Remote{URL: "file:///y", Key: "d"}})
	set("", SetRemote{Remote: &api.Remote{URL: "file:///y", Key: "d"}, Replace: true})
	want("d", "a", "b")
	var many []string
	for i := range api.MaxOldKeys {
		many = append(many, fmt.Sprint("k", i))
	}
	key(api.Exhausted, SetKey{Know: many})
	want("d", "a", "b")
	if !v.NeedsKey("a") || !v.NeedsKey("d") || v.NeedsKey("c") || v.NeedsKey("") {
		t.Error("the volume needs other keys")
	}
}
