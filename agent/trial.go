package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/repo"
)

// A trial restores what a remote keeps into a tree of its own and runs the user's
// command on it. It is written down before it begins, so that what a crash leaves
// of it is removed.
type trial struct {
	Pool      string `json:"pool"`
	Commit    string `json:"commit"`
	Container string `json:"container"`
}

// checkBack reads a remote's branch back, or with a check restores it and runs that.
func (a *Agent) checkBack(ctx context.Context, v api.Volume, name string, from api.Remote, branch string, c *api.RestoreCheck, tell func(exchange.Progress)) (*api.Synced, error) {
	if c == nil {
		return a.readBack(ctx, v, from, branch, tell)
	}
	done, err := a.try(ctx, v, from, branch, *c, tell)
	if ctx.Err() != nil {
		return done, err
	}
	data := map[string]string{"remote": name, "image": c.Image}
	if err != nil {
		a.event("volume.check-failed", "error", v, branch, fmt.Sprintf("the check of what %s keeps of volume %s failed: %v", name, v.Name, err), data)
		return done, err
	}
	a.event("volume.checked", "info", v, branch, fmt.Sprintf("commit %s of volume %s was restored from %s and passed its check", short(done.To), v.Name, name), data)
	return done, nil
}

// try restores a remote's branch and runs a check on it.
func (a *Agent) try(ctx context.Context, v api.Volume, from api.Remote, branch string, c api.RestoreCheck, tell func(exchange.Progress)) (*api.Synced, error) {
	const op = "check"
	engine, ok := a.deps.Engine.(container.Runs)
	if !ok {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: v.Name, Reason: "the container engine of " + a.cfg.Node + " cannot run a command for it"}
	}
	b, err := a.backend(v.Heads[v.Branch].Pool)
	if err != nil {
		return nil, err
	}
	x, err := a.openRemote(ctx, v, from, tell)
	if err != nil {
		return nil, err
	}
	defer x.Store.Close()
	s, err := branchOf(ctx, x, op, branch)
	if err != nil {
		return nil, err
	}
	id := a.deps.NewID()
	t := trial{Pool: v.Heads[v.Branch].Pool, Commit: s.Record.ID, Container: "drover-check-" + id[:min(12, len(id))]}
	a.mu.Lock()
	a.trials[id] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.trials, id)
		a.mu.Unlock()
	}()
	if err := put(a.index, bucketTrials, id, t); err != nil {
		return nil, err
	}
	done := &api.Synced{Relation: string(repo.UpToDate), Branch: branch, To: s.Record.ID, Commits: []string{s.Record.ID}}
	err = x.Try(ctx, s, b, id, func(dir string) (err error) {
		tell(exchange.Progress{Phase: "checking"})
		done.Checked, err = runCheck(ctx, engine, t.Container, dir, c)
		return err
	})
	if err2 := a.endTrial(context.WithoutCancel(ctx), id, t); err2 != nil {
		a.deps.Log.Warn("what a check left is removed later", "volume", v.Name, "error", err2)
	}
	return done, err
}

// branchOf is a remote's branch, which is to be there.
func branchOf(ctx context.Context, x *exchange.Remote, op, branch string) (*exchange.Stored, error) {
	s, err := x.Branch(ctx, branch)
	if err == nil && s == nil {
		err = &api.Error{Kind: api.NotFound, Op: op, Object: branch, Reason: x.Store.Info().URL + " has no such branch", Next: "drover ls-remote shows those it has"}
	}
	return s, err
}

// runCheck runs the command within its deadline; what it said is given back.
func runCheck(ctx context.Context, engine container.Runs, name, dir string, c api.RestoreCheck) (string, error) {
	const op = "check"
	if c.Path == "" {
		c.Path = api.CheckPath
	}
	if c.Deadline == 0 {
		c.Deadline = api.CheckDeadline
	}
	late := &api.Error{Kind: api.Unavailable, Op: op, Object: c.Image, Reason: fmt.Sprintf("the command did not end within %s", c.Deadline), Next: "give it more with --check-deadline"}
	running, cancel := context.WithTimeoutCause(ctx, c.Deadline, late)
	defer cancel()
	ran, err := engine.Run(running, container.Once{Name: name, Image: c.Image, Command: c.Command, Source: dir, Target: c.Path})
	if err != nil {
		if errors.Is(context.Cause(running), late) {
			return "", late
		}
		return "", err
	}
	const enough = 1000
	text := string(ran.Output)
	text = text[max(0, len(text)-enough):]
	if ran.Exit != 0 {
		return text, &api.Error{Kind: api.Damaged, Op: op, Object: c.Image, Reason: fmt.Sprintf("the command ended with exit code %d: %s", ran.Exit, text), Next: "what is restored does not pass: look at it in a clone (drover clone), and push again from a commit that does"}
	}
	return text, nil
}

// endTrial removes what there is of a trial: first who uses the tree, then the tree.
func (a *Agent) endTrial(ctx context.Context, id string, t trial) error {
	if err := a.deps.Engine.Stop(ctx, t.Container, time.Second); err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	if err := a.deps.Engine.Remove(ctx, t.Container); err != nil && !api.Is(err, api.NotFound) {
		return err
	}
	b, err := a.backend(t.Pool)
	if err != nil {
		return err
	}
	if err := b.DestroySnapshot(ctx, id, t.Commit); err != nil {
		return err
	}
	return remove(a.index, bucketTrials, id)
}

// trialsEvery is how often is looked for what trials left.
const trialsEvery = time.Minute

// endTrials removes what earlier processes left of trials, as soon as engine
// and pool are there.
func (a *Agent) endTrials(ctx context.Context) {
	ticker := time.NewTicker(trialsEvery)
	defer ticker.Stop()
	for {
		left := map[string]trial{}
		err := each(a.index, bucketTrials, func(id string, t trial) { left[id] = t })
		for id, t := range left {
			a.mu.Lock()
			running := a.trials[id]
			a.mu.Unlock()
			if !running {
				err = errors.Join(err, a.endTrial(ctx, id, t))
			}
		}
		if err != nil && ctx.Err() == nil {
			a.deps.Log.Warn("cannot remove what a check left", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
