package apiserver

import (
	"errors"
	"testing"

	"github.com/drover-data/drover/api"
)

// An owner that says what it lacks is not taken for one that is silent.
func TestSilent(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&api.Error{Kind: api.Unavailable, Op: "ask the API", Reason: "no answer", Err: errors.New("EOF")}, true},
		{&api.Error{Kind: api.Unavailable, Op: "list containers", Reason: "the container engine does not answer"}, false},
		{&api.Error{Kind: api.Conflict, Err: errors.New("x")}, false},
		{nil, false},
	} {
		if got := silent(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
