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
	// RenewCollect is how often a collection renews its mark at least: it deletes
	// nothing later than twice that after it last did.
	RenewCollect = 20 * time.Second
	// deadMark is how long a collection's mark is watched that does not change
	// until it counts as left behind. No two hosts' clocks are compared for that.
	deadMark = 2 * time.Minute
)

// IsLease says whether a mark is an upload's.
func (m Mark) IsLease() bool { return !strings.HasPrefix(m.Name, collectMark) }

// watch looks at marks until none of those that is gives is alive. Told of
// marks that change meanwhile, each may end the wait.
func watch(ctx context.Context, m Marks, now func() time.Time, is func(Mark) bool, changed func() error) ([]Mark, error) {
	type sight struct{ time, since time.Time }
	seen := map[string]sight{}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		list, err := m.Marks(ctx)
		if err != nil {
			return nil, err
		}
		alive := false
		for _, x := range list {
			if !is(x) {
				continue
			}
			at, before := seen[x.Name]
			if !before || !at.time.Equal(x.Time) {
				if before {
					if err := changed(); err != nil {
						return nil, err
					}
				}
				at = sight{x.Time, now()}
				seen[x.Name] = at
			}
			alive = alive || now().Sub(at.since) < deadMark
		}
		if !alive {
			return list, nil
		}
		if err := Pause(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// TakeLease is Collector.Lease on marks. id is random.
func TakeLease(ctx context.Context, m Marks, id string, now func() time.Time) (func(context.Context) error, error) {
	if err := m.Mark(ctx, id); err != nil {
		return nil, err
	}
	release := func(ctx context.Context) error { return m.Unmark(ctx, id) }
	_, err := watch(ctx, m, now, func(x Mark) bool { return !x.IsLease() }, func() error { return nil })
	if err != nil {
		_ = release(context.WithoutCancel(ctx))
		return nil, err
	}
	return release, nil
}

// TakeCollect is Collector.Collect on marks. id is random.
func TakeCollect(ctx context.Context, m Marks, id string, now func() time.Time) (Collection, error) {
	const op = "begin collection"
	own := collectMark + id
	c := Collection{
		Renew: func(ctx context.Context) error { return m.Mark(ctx, own) },
		End:   func(ctx context.Context) error { return m.Unmark(ctx, own) },
	}
	if err := c.Renew(ctx); err != nil {
		return Collection{}, err
	}
	err := func() error {
		list, err := m.Marks(ctx)
		if err != nil {
			return err
		}
		for _, x := range list {
			if x.IsLease() && now().Sub(x.Time) < Grace {
				return &api.Error{Kind: api.InUse, Op: op, Reason: "an upload is on its way, or broke off less than a day ago", Next: "try again when it has ended; one that broke off counts for a day"}
			}
		}
		others := func(x Mark) bool { return !x.IsLease() && x.Name != own }
		list, err = watch(ctx, m, now, others, func() error {
			return &api.Error{Kind: api.InUse, Op: op, Reason: "another collection is on its way", Next: "try again when it has ended"}
		})
		if err != nil {
			return err
		}
		for _, x := range list { // what ended without saying so
			old := x.IsLease() && now().Sub(x.Time) >= Grace
			if !old && !others(x) {
				continue
			}
			if err := m.Unmark(ctx, x.Name); err != nil {
				return err
			}
		}
		// While others were watched an upload may have begun: it waits for us.
		return nil
	}()
	if err != nil {
		_ = c.End(context.WithoutCancel(ctx))
		return Collection{}, err
	}
	return c, nil
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
