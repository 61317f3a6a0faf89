package repo

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func TestCheckSchedule(t *testing.T) {
	commit := func(every string) api.Schedule { return api.Schedule{Every: every, Commit: true} }
	for _, c := range []struct {
		name string
		s    api.Schedule
		kind api.Kind
	}{
		{"hourly", commit("1h"), ""},
		{"nightly", commit("15 3 * * *"), ""},
		{"daily", commit("@daily"), ""},
		{"", commit("1h"), api.Invalid},
		{"fast", commit("1s"), api.Invalid},
		{"odd", commit("often"), api.Invalid},
		{"never", commit("0 0 31 2 *"), api.Invalid},
		{"idle", api.Schedule{Every: "1h"}, api.Invalid},
		{"keeps", api.Schedule{Every: "1h", Keep: &api.Keep{}}, api.Invalid},
		{"there", api.Schedule{Every: "1h", Push: []string{"r"}, KeepRemote: &api.Keep{Daily: 7}}, ""},
		{"all", api.Schedule{Every: "1h", Push: []string{"r"}, KeepRemote: &api.Keep{}}, api.Invalid},
		{"nowhere", api.Schedule{Every: "1h", Commit: true, KeepRemote: &api.Keep{Daily: 7}}, api.Invalid},
		{"restores", api.Schedule{Every: "1h", Push: []string{"r"}, Check: &api.RestoreCheck{Image: "i", Command: []string{"true"}}}, ""},
		{"runs", api.Schedule{Every: "1h", Push: []string{"r"}, Check: &api.RestoreCheck{Image: "i"}}, api.Invalid},
		{"pushes", api.Schedule{Every: "1h", Commit: true, Check: &api.RestoreCheck{Image: "i", Command: []string{"true"}}}, api.Invalid},
		{"root", api.Schedule{Every: "1h", Push: []string{"r"}, Check: &api.RestoreCheck{Image: "i", Command: []string{"true"}, Path: "/"}}, api.Invalid},
		{"checks", api.Schedule{Every: "1h", Commit: true, Verify: true}, api.Invalid},
	} {
		if err := CheckSchedule(c.name, c.s); api.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %q", c.name, err, c.kind)
		}
	}
}

// TestMissedRunsAreMadeUpOnce: whenever the node looks, it runs at most once
// for all that was missed, and never twice for one time.
func TestMissedRunsAreMadeUpOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := api.Schedule{Every: rapid.SampledFrom([]string{"1h", "90m", "15 3 * * *", "0 * * * *", "@weekly"}).Draw(t, "every"), Commit: true}
		last, now := start, start
		for range 20 {
			now = now.Add(time.Duration(rapid.IntRange(1, 3000).Draw(t, "minutes")) * time.Minute)
			next, err := NextRun(s.Every, last)
			if err != nil {
				t.Fatal(err)
			}
			due := Due(s, last, now)
			if due != !next.After(now) {
				t.Fatalf("due %v at %v, next is %v", due, now, next)
			}
			if due {
				last = now
				if Due(s, last, now) {
					t.Fatalf("due twice at %v", now)
				}
			}
		}
	})
}
