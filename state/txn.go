package state

import (
	"fmt"

	"github.com/drover-data/drover/api"
)

// MaxOps is how many conditions, and how many changes, one Txn may have: the
// limit of an etcd that was not configured for Drover.
const MaxOps = 128

// Validate refuses what not every store can do: too much at once, or two
// changes of one key.
func (t Txn) Validate() error {
	bad := func(key, why string) error {
		return &api.Error{Kind: api.Invalid, Op: "change state", Object: key, Reason: why}
	}
	if changes := len(t.Put) + len(t.Delete); changes > MaxOps || len(t.If) > MaxOps {
		return bad(t.Object(), fmt.Sprintf("%d changes under %d conditions at once, at most %d of each are possible", changes, len(t.If), MaxOps))
	}
	seen := map[string]bool{}
	for _, p := range t.Put {
		if p.Key == "" || seen[p.Key] {
			return bad(p.Key, "a key is empty or changed twice at once")
		}
		seen[p.Key] = true
	}
	for _, key := range t.Delete {
		if key == "" || seen[key] {
			return bad(key, "a key is empty or changed twice at once")
		}
		seen[key] = true
	}
	return nil
}

// Object names the transaction in errors: the first key that it touches.
func (t Txn) Object() string {
	switch {
	case len(t.Put) > 0:
		return t.Put[0].Key
	case len(t.Delete) > 0:
		return t.Delete[0]
	case len(t.If) > 0:
		return t.If[0].Key
	}
	return ""
}
