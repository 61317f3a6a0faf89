package agent

import (
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

func TestChooseBranch(t *testing.T) {
	for _, c := range []struct {
		want string
		have []string
		got  string
		says string
	}{
		{"", []string{"trial", "main"}, "main", ""},
		{"", []string{"rescue"}, "rescue", ""},
		{"trial", []string{"main", "trial"}, "trial", ""},
		{"", []string{"b", "a"}, "", "no branch main, but a, b (name one with --branch)"},
		{"x", []string{"a"}, "", "no branch x, but a"},
		{"", nil, "", "no branch yet"},
		{"x", nil, "", "no branch yet"},
	} {
		got, err := chooseBranch("file:///r", c.want, c.have)
		if got != c.got || (err != nil) != (c.says != "") {
			t.Errorf("%+v: %q %v", c, got, err)
		}
		if c.says != "" && (!api.Is(err, api.NotFound) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A pool that holds only deleted volumes says how they can go now.
func TestPoolInUse(t *testing.T) {
	v := api.Volume{ID: "1", Name: "pg"}
	if err := poolInUse("p", v); !api.Is(err, api.InUse) || !strings.Contains(err.Error(), "volume pg is in it (move or remove") {
		t.Error(err)
	}
	v.Deleted = &api.Deletion{}
	if err := poolInUse("p", v); !api.Is(err, api.InUse) || !strings.Contains(err.Error(), "drover volume purge 1 --yes") {
		t.Error(err)
	}
}
