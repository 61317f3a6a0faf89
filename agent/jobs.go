package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
)

// jobs are what takes a while and is asked for by a person, who may look again
// later: the last ones of this process.
type jobs struct {
	mu    sync.Mutex
	byID  map[string]*job // guarded by mu
	order []string        // guarded by mu; oldest first
}

// job is one, with what is told while it runs.
type job struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	now api.Job // guarded by mu
}

const maxJobs = 200

// start runs f as a job, which goes on when the asker is gone.
func (a *Agent) start(j api.Job, f func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error)) api.Job {
	j.ID, j.Node, j.Started, j.Phase = a.deps.NewID(), a.cfg.Node, a.deps.Now().UTC(), "reading"
	ctx, cancel := context.WithCancel(a.ctx)
	x := &job{cancel: cancel, done: make(chan struct{}), now: j}
	a.jobs.mu.Lock()
	if a.jobs.byID == nil {
		a.jobs.byID = map[string]*job{}
	}
	a.jobs.byID[j.ID] = x
	a.jobs.order = append(a.jobs.order, j.ID)
	for len(a.jobs.order) > maxJobs {
		delete(a.jobs.byID, a.jobs.order[0])
		a.jobs.order = a.jobs.order[1:]
	}
	a.jobs.mu.Unlock()
	a.group.Go(func() error {
		defer close(x.done)
		defer cancel()
		out, err := f(ctx, x.tell)
		x.end(a, out, err)
		return nil
	})
	return x.state()
}

func (x *job) state() api.Job {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.now
}

func (x *job) tell(p exchange.Progress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now.Phase = p.Phase
	switch p.Phase {
	case "reading":
		x.now.Read += p.Bytes
	case "uploading":
		x.now.Sent += p.Bytes
		x.now.ToSend += p.Total
	case "downloading":
		x.now.Got += p.Bytes
		x.now.ToGet += p.Total
	case "writing":
		x.now.Wrote += p.Bytes
	case "removing":
		x.now.Freed += p.Bytes
		x.now.ToFree += p.Total
	}
}

func (x *job) end(a *Agent, out *api.Synced, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now.Ended, x.now.Result, x.now.Phase = a.deps.Now().UTC(), out, "done"
	level, message := "info", x.now.Kind+" of volume "+x.now.Volume+" with "+x.now.Remote+" is through"
	if err != nil {
		x.now.Phase = "failed"
		x.now.Err = asError(x.now.Kind+" volume", x.now.Volume, err)
		level, message = "error", x.now.Kind+" of volume "+x.now.Volume+" with "+x.now.Remote+" failed: "+err.Error()
	}
	a.deps.Events.Add(api.Event{Type: "volume." + x.now.Kind, Object: x.now.Volume, Level: level, Message: message, Data: map[string]string{"job": x.now.ID}})
}

// asError is err as it can be shown to whoever asks later.
func asError(op, object string, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		c := *e
		if c.Err != nil && c.Reason == "" {
			c.Reason = c.Err.Error()
		}
		return &c
	}
	return &api.Error{Kind: api.KindOf(err), Op: op, Object: object, Reason: err.Error()}
}

func (a *Agent) job(id string) (*job, error) {
	a.jobs.mu.Lock()
	defer a.jobs.mu.Unlock()
	x := a.jobs.byID[id]
	if x == nil {
		return nil, &api.Error{Kind: api.NotFound, Op: "look up job", Object: id, Reason: a.cfg.Node + " does not know it: it is long over, or its agent was restarted meanwhile", Next: "ask for the same again: it goes on with what is there"}
	}
	return x, nil
}

// Job says how a job stands; wait is for its end, or the end of ctx.
func (a *Agent) Job(ctx context.Context, id string, wait bool) (api.Job, error) {
	x, err := a.job(id)
	if err != nil {
		return api.Job{}, err
	}
	if wait {
		select {
		case <-x.done:
		case <-ctx.Done():
		}
	}
	return x.state(), nil
}

// Jobs lists those that are known, the newest first.
func (a *Agent) Jobs() []api.Job {
	a.jobs.mu.Lock()
	defer a.jobs.mu.Unlock()
	out := make([]api.Job, 0, len(a.jobs.order))
	for i := len(a.jobs.order) - 1; i >= 0; i-- {
		out = append(out, a.jobs.byID[a.jobs.order[i]].state())
	}
	return out
}

// CancelJob ends one; what it has brought stays and need not be brought again.
func (a *Agent) CancelJob(id string) error {
	x, err := a.job(id)
	if err == nil {
		x.cancel()
	}
	return err
}
