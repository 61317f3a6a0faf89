package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// hold is a head whose users are held back while commits are made. It ends at
// its deadline whatever happens; who made it learns that from end.
type hold struct {
	h      *head
	b      storage.Backend
	volume api.Volume
	rec    api.Head
	level  api.Consistency
	hooks  []string

	stop  func() bool // of the deadline's timer
	taken []string    // snapshots that were made
	mu    sync.Mutex
	free  []func(context.Context) error // guarded by mu; what lets the users go, last first
	over  bool                          // guarded by mu
	err   error                         // guarded by mu; why it was no hold all the time
	open  sync.Once                     // lets mounts in again
}

// holdTime is how long users are held at most where no hook says otherwise.
const holdTime = 30 * time.Second

// hold holds a head's users as want says, "" being the best that can be had
// without more than the volume's own settings. Mounts wait until it has ended.
func (h *head) hold(ctx context.Context, want api.Consistency, several bool) (*hold, error) {
	const op = "commit"
	h.mounting.Lock()
	x, err := h.begin(op)
	if err == nil {
		err = x.acquire(ctx, want, several)
	}
	if err != nil {
		h.mounting.Unlock()
		return nil, err
	}
	return x, nil
}

// begin looks that the head is this node's to commit. mounting is held.
func (h *head) begin(op string) (*hold, error) {
	_, v, rec, err := h.a.owned(op, h.key.volume, h.key.branch)
	if err != nil {
		return nil, err
	}
	j, err := h.mover.journal()
	if err != nil {
		return nil, err
	}
	if j.Closed {
		return nil, &api.Error{Kind: api.InUse, Op: op, Object: v.Name, Reason: "it is just moving", Next: "try again in a moment"}
	}
	if w, found, err := get[workJournal](h.a.index, bucketWork, h.id()); err != nil || found {
		if err == nil {
			err = w.busy(op, v.Name)
		}
		return nil, err
	}
	b, err := h.a.backend(rec.Pool)
	if err != nil {
		return nil, err
	}
	return &hold{h: h, b: b, volume: v, rec: rec}, nil
}

// acquire chooses the level and holds the users.
func (x *hold) acquire(ctx context.Context, want api.Consistency, several bool) error {
	const op = "commit"
	p, err := x.h.a.pool(x.rec.Pool)
	if err != nil {
		return err
	}
	atomic := p.seen().Atomic
	if want == api.ConsistencyCrash && (!atomic || several) {
		reason := "snapshots of pool " + x.rec.Pool + " are not atomic"
		if several {
			reason = "several volumes have no instant in common unless their users are held"
		}
		return &api.Error{Kind: api.Unsupported, Op: op, Object: x.volume.Name, Reason: reason, Next: "leave --consistency out, or say paused"}
	}
	if want == api.ConsistencyCrash || (want == "" && atomic && !several && x.volume.Hook == nil && !x.h.a.labelled(ctx)) {
		x.level = api.ConsistencyCrash // the engine need not even be asked
		x.arm(holdTime)
		return nil
	}
	cs, err := x.h.containers(ctx)
	if err != nil {
		return err
	}
	cs = slices.DeleteFunc(cs, func(c container.Container) bool { return c.State != container.Running })
	hook, in, err := x.hook(ctx, cs, want)
	if err != nil {
		return err
	}
	limit := holdTime
	if hook != nil && hook.Deadline > 0 {
		limit = hook.Deadline
	}
	x.arm(limit)
	x.level = api.ConsistencyCrash
	if !atomic || several || want == api.ConsistencyPaused {
		x.level = api.ConsistencyPaused
	}
	pause := x.level == api.ConsistencyPaused
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if hook != nil {
		if err := x.run(ctx, *hook, in); err != nil {
			return x.failed(err)
		}
		x.level = api.ConsistencyApplication
	}
	if pause {
		if err := x.pause(ctx, cs); err != nil {
			return x.failed(err)
		}
	}
	return nil
}

// failed lets go of what was held before an error.
func (x *hold) failed(err error) error {
	x.stop()
	_ = x.letGo(nil)
	return err
}

// arm makes the hold end by itself.
func (x *hold) arm(limit time.Duration) {
	t := time.AfterFunc(limit, func() {
		_ = x.letGo(&api.Error{Kind: api.Unavailable, Op: "commit", Object: x.volume.Name, Reason: fmt.Sprintf("its users could be held for %s only, and the commit was not ready then", limit), Next: "nothing was committed; try again, or give the hook a longer deadline"})
	})
	x.stop = t.Stop
}

// onEnd adds what lets users go.
func (x *hold) onEnd(f func(context.Context) error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.free = append(x.free, f)
}

// openAtEnd lets mounts in at the deadline too, whether it is released or not.
func (x *hold) openAtEnd() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		x.done()
		return
	}
	x.free = slices.Insert(x.free, 0, func(context.Context) error { x.done(); return nil })
}

// letGo lets the users go, once. why is the reason when it was too early.
func (x *hold) letGo(why error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return x.err
	}
	x.over, x.err = true, why
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, f := range slices.Backward(x.free) {
		if err := f(ctx); err != nil {
			x.h.a.deps.Log.Error("cannot let a volume's users go", "volume", x.volume.Name, "error", err)
			if x.err == nil {
				x.err = err
			}
		}
	}
	return x.err
}

// end lets the users go and says whether they were held until now. Mounts
// wait on until done.
func (x *hold) end() error {
	x.stop()
	return x.letGo(nil)
}

// done lets mounts in again.
func (x *hold) done() { x.open.Do(x.h.mounting.Unlock) }

// take makes the snapshot of a commit.
func (x *hold) take(ctx context.Context, c api.Commit) error {
	x.mu.Lock()
	over, err := x.over, x.err
	x.mu.Unlock()
	if over {
		return err
	}
	note, err := json.Marshal(repo.Note{Commit: &c})
	if err != nil {
		return err
	}
	if _, err := x.b.Snapshot(ctx, x.h.storageKey(), c.ID, note); err != nil {
		return err
	}
	x.taken = append(x.taken, c.ID)
	return nil
}

// drop removes the snapshots of a commit that did not come about.
func (x *hold) drop() {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, id := range x.taken {
		// What cannot be removed now is swept after a day.
		_ = x.b.DestroySnapshot(ctx, x.h.key.volume, id)
		x.h.a.notes.forget(x.h.key.volume, id)
	}
}

// heldBack is a container that was held back, written before it is, so that
// it is let go when the agent's process ends in between.
type heldBack struct {
	Name   string   `json:"name"`
	Paused bool     `json:"paused,omitempty"`
	After  []string `json:"after,omitempty"`
}

// pause pauses containers until the hold ends.
func (x *hold) pause(ctx context.Context, cs []container.Container) error {
	for _, c := range cs {
		release, err := x.h.a.pause(ctx, c)
		if err != nil {
			return err
		}
		x.onEnd(release)
	}
	return nil
}

// pause pauses one container, durably noted.
func (a *Agent) pause(ctx context.Context, c container.Container) (release func(context.Context) error, err error) {
	key := "pause " + c.ID
	if err := put(a.index, bucketHeld, key, heldBack{Name: c.Name, Paused: true}); err != nil {
		return nil, err
	}
	release = func(ctx context.Context) error { return a.letOn(ctx, key, heldBack{Name: c.Name, Paused: true}) }
	if err := a.deps.Engine.Pause(ctx, c.ID); err != nil {
		if err2 := release(context.WithoutCancel(ctx)); err2 != nil {
			a.deps.Log.Error("cannot let a container go on", "container", c.Name, "error", err2)
		}
		return nil, err
	}
	return release, nil
}

// releaseHeld lets go what an earlier process held back.
func (a *Agent) releaseHeld() error {
	return each(a.index, bucketHeld, func(key string, x heldBack) { a.insist(key, x) })
}

// insist lets go what was held back, as often as it takes.
func (a *Agent) insist(key string, x heldBack) {
	a.group.Go(func() error {
		for pause := 200 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
			err := a.tryLetOn(a.ctx, key, x)
			if err == nil || a.ctx.Err() != nil {
				return nil
			}
			a.deps.Log.Warn("cannot let a container go on that was held for a commit", "container", x.Name, "error", err)
			select {
			case <-a.ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
}

// letOn lets go what was held back; when that fails it goes on trying behind
// the back of whoever asked.
func (a *Agent) letOn(ctx context.Context, key string, x heldBack) error {
	err := a.tryLetOn(ctx, key, x)
	if err != nil {
		a.insist(key, x)
	}
	return err
}

func (a *Agent) tryLetOn(ctx context.Context, key string, x heldBack) error {
	_, id, _ := strings.Cut(key, " ")
	var err error
	switch {
	case x.Paused:
		err = a.deps.Engine.Unpause(ctx, id)
	case len(x.After) > 0:
		var c container.Container
		if c, err = a.deps.Engine.Inspect(ctx, id); err == nil && c.State.Uses() { // what does not run holds nothing
			_, err = a.deps.Engine.Exec(ctx, id, x.After)
		}
	}
	if err != nil && (api.Is(err, api.Unavailable) || api.Is(err, api.Canceled)) {
		return err
	}
	if err2 := remove(a.index, bucketHeld, key); err2 != nil {
		return err2
	}
	if api.Is(err, api.NotFound) || x.Paused && err != nil && a.ended(ctx, id) {
		return nil
	}
	return err
}

// ended reports whether a container does not run any more.
func (a *Agent) ended(ctx context.Context, id string) bool {
	c, err := a.deps.Engine.Inspect(ctx, id)
	return err == nil && !c.State.Uses()
}
