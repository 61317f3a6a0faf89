package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/repo"
)

// scheduler is who asked for what a schedule does.
const scheduler = "schedule"

// scheduleEvery is how often is looked whether something is due.
const scheduleEvery = 10 * time.Second

// followSchedules does what is due of the heads that this node owns, one
// volume's after the other's: they compete for the same disk.
func (a *Agent) followSchedules(ctx context.Context) {
	ticker := time.NewTicker(scheduleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, v := range a.scheduled() {
			for _, name := range slices.Sorted(maps.Keys(v.Schedules)) {
				if ctx.Err() == nil {
					a.runDue(ctx, v, name)
				}
			}
		}
	}
}

// scheduled lists the volumes with schedules, by name, that this node knows.
func (a *Agent) scheduled() []api.Volume {
	return a.volumesHere(func(v api.Volume, fresh bool) bool { return fresh && len(v.Schedules) > 0 })
}

// ran is what is remembered of a schedule on this node.
type ran struct {
	Last   time.Time `json:"last"`             // when it ran, or was first seen
	Failed int       `json:"failed,omitempty"` // times in a row
	Again  time.Time `json:"again,omitzero"`   // not before, after a failure
}

// runDue runs a schedule if it is due. A failure is tried again with growing
// pauses of at most an hour, and told each time.
func (a *Agent) runDue(ctx context.Context, v api.Volume, name string) {
	s := v.Schedules[name]
	branch := s.Branch
	if branch == "" {
		branch = v.Branch
	}
	if v.Heads[branch].Node != a.cfg.Node || a.OnHold() != "" {
		return
	}
	now := a.deps.Now()
	key := v.ID + "/" + name
	r, known, err := get[ran](a.index, bucketSchedules, key)
	if err != nil {
		a.deps.Log.Error("cannot look when a schedule ran", "volume", v.Name, "schedule", name, "error", err)
		return
	}
	if !known {
		// A schedule begins to count where it is first seen: on the owner, also
		// after a move, when its last commit says when it ran.
		r.Last = a.lastCommit(ctx, v, branch, now)
	}
	due := repo.Due(s, r.Last, now)
	if r.Failed > 0 {
		due = !now.Before(r.Again)
	}
	if due {
		err = a.runSchedule(ctx, v, branch, name, s)
		if ctx.Err() != nil {
			return
		}
		r = after(r, now, err)
	} else if known {
		return
	}
	if err := put(a.index, bucketSchedules, key, r); err != nil {
		a.deps.Log.Error("cannot keep when a schedule ran", "volume", v.Name, "schedule", name, "error", err)
	}
}

// after is what is remembered after a run.
func after(r ran, now time.Time, err error) ran {
	if err == nil {
		return ran{Last: now}
	}
	pause := min(time.Minute<<min(r.Failed, 10), time.Hour)
	return ran{Last: r.Last, Failed: r.Failed + 1, Again: now.Add(pause)}
}

// lastCommit is when the branch's newest commit was made, now without one.
func (a *Agent) lastCommit(ctx context.Context, v api.Volume, branch string, now time.Time) time.Time {
	if f, err := a.Find(ctx, v.ID, v.Heads[branch].Commit, ""); err == nil {
		return f.Commit.Time
	}
	return now
}

// runSchedule does all that a schedule says, and tells how it went.
func (a *Agent) runSchedule(ctx context.Context, v api.Volume, branch, name string, s api.Schedule) error {
	what, err := a.scheduledWork(ctx, v, branch, name, s)
	if err != nil {
		a.event("volume.schedule-failed", "error", v, branch, fmt.Sprintf("schedule %s of volume %s failed: %v", name, v.Name, err), map[string]string{"schedule": name})
		return err
	}
	a.event("volume.scheduled", "info", v, branch, fmt.Sprintf("schedule %s of volume %s: %s", name, v.Name, what), map[string]string{"schedule": name})
	return nil
}

func (a *Agent) scheduledWork(ctx context.Context, v api.Volume, branch, name string, s api.Schedule) (what string, err error) {
	what = "nothing had changed"
	if s.Commit {
		status, err := a.BranchStatus(ctx, v.ID, branch)
		if err != nil {
			return "", err
		}
		if status.Dirty || v.Heads[branch].Commit == "" {
			c, err := a.Commit(ctx, v.ID, api.MakeCommit{Branch: branch, Message: "schedule " + name, Consistency: s.Consistency}, scheduler)
			if err != nil {
				return "", err
			}
			what = "commit " + short(c.Commit.ID)
		}
	}
	// The record that the commit changed.
	v, known := a.record(v.ID)
	if !known {
		return "", notHere(a.cfg.Node, v.Name)
	}
	var errs []error
	for _, r := range s.Push {
		if v.Heads[branch].Commit == "" {
			break
		}
		if err := a.scheduledPush(ctx, v, branch, r, s); err != nil {
			errs = append(errs, fmt.Errorf("push to %s: %w", r, err))
			continue
		}
		what += ", pushed to " + r
		if s.KeepRemote == nil {
			continue
		}
		out, err := a.pruneRemote(ctx, v, v.Remotes[r], *s.KeepRemote, false, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("prune %s: %w", r, err))
		} else if len(out.Dropped) > 0 {
			what += fmt.Sprintf(", %d commits dropped there", len(out.Dropped))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err // nothing is pruned that a remote may lack
	}
	if s.Keep != nil {
		n, err := a.Prune(ctx, v.ID, *s.Keep, false)
		if err != nil {
			return "", err
		}
		if len(n) > 0 {
			what += fmt.Sprintf(", %d commits pruned", len(n))
		}
	}
	return what, nil
}

func (a *Agent) scheduledPush(ctx context.Context, v api.Volume, branch, name string, s api.Schedule) error {
	to, known := v.Remotes[name]
	if !known {
		return &api.Error{Kind: api.NotFound, Op: "push", Object: v.Name, Reason: "it has no remote " + name}
	}
	quiet := func(exchange.Progress) {}
	if _, err := a.push(ctx, v, v.Heads[branch], api.StartPush{Branch: branch, To: branch}, name, to, quiet); err != nil || !s.Verify && s.Check == nil {
		return err
	}
	_, err := a.checkBack(ctx, v, name, to, branch, s.Check, quiet)
	return err
}

// Prune removes the commits of a volume that a retention policy does not keep
// from this node's pools, and gives their ids. What is kept and no branch leads
// to any more gets a tag first, so that nothing else removes it.
func (a *Agent) Prune(ctx context.Context, volume string, k api.Keep, dryRun bool) ([]string, error) {
	v, known := a.record(volume)
	if !known {
		return nil, notHere(a.cfg.Node, volume)
	}
	list, complete, err := a.held(ctx, volume)
	if err != nil {
		return nil, err
	}
	if !complete {
		return nil, &api.Error{Kind: api.Unknown, Op: "prune commits", Object: v.Name, Reason: "a pool of " + a.cfg.Node + " is gone, so what there is cannot be known", Next: "drover pool ls tells more"}
	}
	g := repo.Graph{}
	for _, f := range list {
		g[f.Commit.ID] = f.Commit
	}
	remove, tag := repo.Prune(v, g, k, a.deps.Now())
	if dryRun || len(remove) == 0 {
		return remove, nil
	}
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{Retain: &ledger.Retain{Commits: tag}})
	if err != nil {
		return nil, err
	}
	a.take(after, true)
	pins := repo.Pins(after)
	for _, f := range list {
		if !slices.Contains(remove, f.Commit.ID) || pins[f.Commit.ID] {
			continue
		}
		if err := f.Backend.DestroySnapshot(ctx, volume, f.Commit.ID); err != nil {
			return nil, err
		}
		a.notes.forget(volume, f.Commit.ID)
	}
	return remove, nil
}
