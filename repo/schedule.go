package repo

import (
	"time"

	"github.com/robfig/cron/v3"

	"github.com/drover-data/drover/api"
)

// minEvery is the shortest time between two runs.
const minEvery = time.Minute

// CheckSchedule refuses a schedule that could never be followed.
func CheckSchedule(name string, s api.Schedule) error {
	const op = "set schedule"
	if err := api.CheckRemoteName(name); err != nil {
		return err
	}
	if _, err := NextRun(s.Every, time.Unix(0, 0)); err != nil {
		return err
	}
	switch {
	case !s.Commit && len(s.Push) == 0 && s.Keep == nil:
		return &api.Error{Kind: api.Invalid, Op: op, Object: name, Reason: "it would do nothing", Next: "give --commit, --push or a --keep"}
	case s.KeepRemote != nil && len(s.Push) == 0:
		return &api.Error{Kind: api.Invalid, Op: op, Object: name, Reason: "it is not said at which remote commits are kept", Next: "give --push REMOTE too"}
	case s.Keep != nil && *s.Keep == (api.Keep{}), s.KeepRemote != nil && *s.KeepRemote == (api.Keep{}):
		return &api.Error{Kind: api.Invalid, Op: op, Object: name, Reason: "a retention without a rule keeps everything", Next: "leave it out, or give a rule such as --keep-daily 7"}
	case (s.Verify || s.Check != nil) && len(s.Push) == 0:
		return &api.Error{Kind: api.Invalid, Op: op, Object: name, Reason: "what is not pushed cannot be read back", Next: "give --push REMOTE too"}
	}
	if s.Check != nil {
		return s.Check.Check()
	}
	return nil
}

// NextRun is the first time after last at which something that happens every
// so often happens: a duration counted from last, or five cron fields, in UTC.
func NextRun(every string, last time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(every); err == nil {
		if d < minEvery {
			return time.Time{}, &api.Error{Kind: api.Invalid, Op: "set schedule", Object: every, Reason: "it is shorter than a minute"}
		}
		return last.Add(d), nil
	}
	s, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(every)
	if err != nil {
		return time.Time{}, &api.Error{Kind: api.Invalid, Op: "set schedule", Object: every, Reason: "neither a duration nor five cron fields", Next: "write it as in 1h, 30m, \"15 3 * * *\" or @daily"}
	}
	next := s.Next(last.UTC())
	if next.IsZero() {
		return next, &api.Error{Kind: api.Invalid, Op: "set schedule", Object: every, Reason: "that day never comes"}
	}
	return next, nil
}

// Due reports whether a schedule is to run now. However many runs were missed
// since last, they are made up for by one.
func Due(s api.Schedule, last, now time.Time) bool {
	next, err := NextRun(s.Every, last)
	return err == nil && !next.After(now)
}
