package state

import (
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func TestUnknownFieldsAreCarried(t *testing.T) {
	for _, c := range []struct{ name, old, next, want string }{
		{"at the top", `{"id":"1","name":"a","future":[1,{"x":2}]}`, `{"id":"1","name":"b"}`, `{"future":[1,{"x":2}],"id":"1","name":"b"}`},
		{"in a head", `{"id":"1","heads":{"main":{"node":"a","future":1}}}`, `{"id":"1","heads":{"main":{"node":"b"},"other":{"node":"c"}}}`, `{"heads":{"main":{"future":1,"node":"b"},"other":{"node":"c"}},"id":"1"}`},
		{"of a head that is gone", `{"id":"1","heads":{"main":{"node":"a","future":1}}}`, `{"id":"1","heads":{}}`, `{"id":"1","heads":{}}`},
		{"in a move", `{"heads":{"main":{"move":{"id":"m","options":{"future":1}}}}}`, `{"heads":{"main":{"move":{"id":"m","options":{"users":"move"}}}}}`, `{"heads":{"main":{"move":{"id":"m","options":{"future":1,"users":"move"}}}}}`},
		{"of another move", `{"heads":{"main":{"move":{"id":"m","future":1}}}}`, `{"heads":{"main":{"move":{"id":"n"}}}}`, `{"heads":{"main":{"move":{"id":"n"}}}}`},
		{"known and left out", `{"id":"1","size":5,"deleted":{"by":"me"}}`, `{"id":"1"}`, `{"id":"1"}`},
		{"labels are data", `{"id":"1","labels":{"a":"1","b":"2"}}`, `{"id":"1","labels":{"a":"3"}}`, `{"id":"1","labels":{"a":"3"}}`},
		{"nothing unknown", `{"id":"1","name":"a"}`, `{"id":"1","name":"b"}`, `{"id":"1","name":"b"}`},
		{"not an object", `[]`, `{"id":"1"}`, `{"id":"1"}`},
	} {
		if got := string(carry([]byte(c.old), []byte(c.next), reflect.TypeFor[api.Volume]())); got != c.want {
			t.Errorf("%s: %s\nnot %s", c.name, got, c.want)
		}
	}
	if got := string(carry([]byte(`"x"`), []byte(`"y"`), reflect.TypeFor[string]())); got != `"y"` {
		t.Errorf("a string became %s", got)
	}
	if got := string(carry([]byte(`[{"key":"a","future":1}]`), []byte(`[]`), reflect.TypeFor[[]IssuedKey]())); got != `[]` {
		t.Errorf("a list became %s", got)
	}
}

// TestCarryChangesNothingKnown: whatever is carried, the record reads as it was written.
func TestCarryChangesNothingKnown(t *testing.T) {
	volume := rapid.Custom(func(t *rapid.T) api.Volume {
		v := api.Volume{ID: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "id"), Size: rapid.Int64().Draw(t, "size"), Heads: map[string]api.Head{}}
		for _, b := range rapid.SliceOf(rapid.SampledFrom([]string{"main", "b", "Future"})).Draw(t, "branches") {
			v.Heads[b] = api.Head{Node: b, Epoch: rapid.Uint64().Draw(t, "epoch"), Away: map[string]api.Departure{"n": {To: b}}}
		}
		return v
	})
	rapid.Check(t, func(t *rapid.T) {
		var was map[string]any
		old, _ := json.Marshal(volume.Draw(t, "old"))
		_ = json.Unmarshal(old, &was)
		was["future"] = rapid.String().Draw(t, "future")
		old, _ = json.Marshal(was)
		want := volume.Draw(t, "next")
		next, _ := json.Marshal(want)
		var got api.Volume
		text := carry(old, next, reflect.TypeFor[api.Volume]())
		if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v: %+v, not %+v", err, got, want)
		}
		if again := carry(text, text, reflect.TypeFor[api.Volume]()); string(again) != string(text) {
			t.Fatalf("a second time it is %s, not %s", again, text)
		}
	})
}

func FuzzCarry(f *testing.F) {
	f.Add([]byte(`{"id":"1","heads":{"main":{"future":1}}}`), []byte(`{"id":"1","heads":{"main":{}}}`))
	f.Fuzz(func(t *testing.T, old, next []byte) {
		if got := carry(old, next, reflect.TypeFor[api.Volume]()); json.Valid(next) && !json.Valid(got) {
			t.Errorf("%q and %q gave %q", old, next, got)
		}
	})
}
