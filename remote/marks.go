package remote

import (
	"context"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
)

// Mark is a note at a remote that something is on its way.
type Mark struct {
	Name string
	Time time.Time // by the remote's clock, where it has one
}

// Marks are where a remote keeps notes of uploads and collections.
type Marks interface {
	Mark(ctx context.Context, name string) error
	Unmark(ctx context.Context, name string) error
	Marks(ctx context.Context) ([]Mark, error)
}

const (
	collectMark = "collect-"
	// MaxCollect is how long a collection may delete. One that is older than
	// twice that, and an hour for clocks that differ, has ended without saying so.
	MaxCollect = 30 * time.Minute
	deadMark   = 2*MaxCollect + time.Hour
)

// IsLease says whether a mark is an upload's.
func (m Mark) IsLease() bool { return !strings.HasPrefix(m.Name, collectMark) }

// TakeLease is Collector.Lease on marks. id is random.
func TakeLease(ctx context.Context, m Marks, id string, now func() time.Time) (func(context.Context) error, error) {
	if err := m.Mark(ctx, id); err != nil {
		return nil, err
	}
	release := func(ctx context.Context) error { return m.Unmark(ctx, id) }
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		list, err := m.Marks(ctx)
		if err == nil && !busy(list, func(x Mark) bool { return !x.IsLease() && now().Sub(x.Time) < deadMark }) {
			return release, nil
		}
		if err == nil {
			select { // another host's collection has no event to wait for
			case <-ctx.Done():
				err = Ended(ctx, "announce upload", "")
			case <-time.After(pause):
			}
		}
		if err != nil {
			_ = release(context.WithoutCancel(ctx))
			return nil, err
		}
	}
}

// TakeCollect is Collector.Collect on marks. id is random.
func TakeCollect(ctx context.Context, m Marks, id string, now func() time.Time) (func(context.Context) error, error) {
	const op = "begin collection"
	own := collectMark + id
	if err := m.Mark(ctx, own); err != nil {
		return nil, err
	}
	end := func(ctx context.Context) error { return m.Unmark(ctx, own) }
	list, err := m.Marks(ctx)
	switch {
	case err != nil:
	case busy(list, func(x Mark) bool { return x.IsLease() && now().Sub(x.Time) < Grace }):
		err = &api.Error{Kind: api.InUse, Op: op, Reason: "an upload is on its way, or broke off less than a day ago", Next: "try again when it has ended; a push that is repeated ends it"}
	case busy(list, func(x Mark) bool { return !x.IsLease() && x.Name != own && now().Sub(x.Time) < deadMark }):
		err = &api.Error{Kind: api.InUse, Op: op, Reason: "another collection is on its way, or broke off within two hours", Next: "try again later"}
	}
	if err != nil {
		_ = end(context.WithoutCancel(ctx))
		return nil, err
	}
	for _, x := range list { // what ended without saying so
		if x.IsLease() || x.Name != own {
			if err := m.Unmark(ctx, x.Name); err != nil {
				_ = end(context.WithoutCancel(ctx))
				return nil, err
			}
		}
	}
	return end, nil
}

// LeaseTimes is Collector.Leases on marks.
func LeaseTimes(ctx context.Context, m Marks) ([]time.Time, error) {
	list, err := m.Marks(ctx)
	var out []time.Time
	for _, x := range list {
		if x.IsLease() {
			out = append(out, x.Time)
		}
	}
	return out, err
}

func busy(list []Mark, is func(Mark) bool) bool {
	for _, x := range list {
		if is(x) {
			return true
		}
	}
	return false
}
