package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
)

// workJournal is a user's command that replaces a head or changes what the
// plain name means, while containers stand still. It is written before what
// it says is done, so that the next process finishes it.
type workJournal struct {
	ID    string        `json:"id"`
	Kind  plan.WorkKind `json:"kind"`
	Op    string        `json:"op"`
	Epoch uint64        `json:"epoch"`
	From  string        `json:"from"` // tip, or current branch, before
	To    string        `json:"to"`   // the same afterwards
	Seed  string        `json:"seed,omitempty"`
	Stash string        `json:"stash,omitempty"` // id that a stash gets if there is need of one
	Text  string        `json:"text,omitempty"`  // its message
	By    string        `json:"by"`
	At    time.Time     `json:"at"`
	Note  string        `json:"note,omitempty"`

	Closed  bool      `json:"closed,omitempty"`
	Stopped []stopped `json:"stopped,omitempty"`
	Kept    bool      `json:"kept,omitempty"`    // it is known whether there was need of a stash
	Stashed bool      `json:"stashed,omitempty"` // there was, and it is made
	Ended   bool      `json:"ended,omitempty"`   // only containers are to be started
	Reason  string    `json:"reason,omitempty"`  // why it ended without effect
	Names   []string  `json:"names,omitempty"`   // of the containers that were stopped
}

func (w workJournal) busy(op, volume string) error {
	return &api.Error{Kind: api.Conflict, Op: op, Object: volume, Reason: "its " + w.Op + " by " + w.By + " is not yet through", Next: "try again in a moment"}
}

func (w workJournal) kept() string {
	if w.Stashed {
		return w.Stash
	}
	return ""
}

// outcome is how a work ended, for whoever waits for it.
type outcome struct {
	w   workJournal
	err error
}

func (h *head) work() (w workJournal, found bool, err error) {
	return get[workJournal](h.a.index, bucketWork, h.id())
}

func (h *head) writeWork(w workJournal) error { return put(h.a.index, bucketWork, h.id(), w) }

// do begins a work and waits until it is through. When ctx ends it goes on.
func (h *head) do(ctx context.Context, make func(v api.Volume, rec api.Head) (workJournal, error)) (workJournal, error) {
	w, err := h.beginWork(make)
	if err != nil {
		return w, err
	}
	h.kick()
	patience := time.NewTimer(workPatience)
	defer patience.Stop()
	for {
		h.mu.Lock()
		over, ended := h.outcomes[w.ID]
		delete(h.outcomes, w.ID)
		changed := h.changed
		h.mu.Unlock()
		if ended {
			return over.w, over.err
		}
		select {
		case <-ctx.Done():
			return w, &api.Error{Kind: api.Canceled, Op: w.Op, Object: h.volume().Name, Reason: "it goes on by itself", Next: "drover status shows how it stands", Err: context.Cause(ctx)}
		case <-patience.C:
			h.mu.Lock()
			waiting := h.waiting + h.alarm
			h.mu.Unlock()
			return w, &api.Error{Kind: api.Unavailable, Op: w.Op, Object: h.volume().Name, Reason: "it waits for " + waiting, Next: "it goes on by itself; drover status shows how it stands"}
		case <-changed:
		}
	}
}

// workPatience is how long a command waits before it says what it waits for;
// containers may take their time to stop.
const workPatience = 3 * time.Minute

func (h *head) beginWork(make func(v api.Volume, rec api.Head) (workJournal, error)) (workJournal, error) {
	h.mounting.Lock()
	defer h.mounting.Unlock()
	x, err := h.begin("change branch")
	if err != nil {
		return workJournal{}, err
	}
	if x.rec.Move != nil || x.rec.From != "" {
		return workJournal{}, &api.Error{Kind: api.InUse, Op: "change branch", Object: x.volume.Name + "@" + h.key.branch, Reason: "it is just moving", Next: "try again when it has moved"}
	}
	w, err := make(x.volume, x.rec)
	if err != nil {
		return w, err
	}
	w.ID, w.Epoch, w.At = h.a.deps.NewID(), x.rec.Epoch, h.a.deps.Now().UTC()
	if w.Kind == plan.WorkReset {
		w.From, w.Stash = x.rec.Commit, h.a.commitID()
		if err := h.a.inPool(context.Background(), h.key.volume, w.Seed, x.rec.Pool); err != nil {
			return w, err
		}
	}
	h.mu.Lock()
	h.workFailed = ""
	h.mu.Unlock()
	return w, h.writeWork(w)
}

// observeWork sees where the work stands.
func (h *head) observeWork(ctx context.Context, o *plan.Observed, rec api.Head) error {
	w, found, err := h.work()
	if err != nil || !found || rec.Node != h.a.cfg.Node {
		return err
	}
	h.mu.Lock()
	failed := h.workFailed
	h.mu.Unlock()
	s := &plan.Work{ID: w.ID, Kind: w.Kind, Epoch: w.Epoch, Failed: failed, Closed: w.Closed, Kept: w.Kept}
	o.Work = s
	for _, c := range o.Copies {
		s.Released = s.Released || (c.Pool == rec.Pool && c.ReleasedFor == w.ID && c.Epoch == rec.Epoch)
	}
	s.Done = w.Ended
	if w.Kind == plan.WorkCheckout {
		s.Done = s.Done || o.Volume.Branch == w.To
	} else {
		s.Done = s.Done || (rec.Epoch == w.Epoch+1 && rec.Tip != nil && rec.Tip.At.Equal(w.At))
	}
	if s.Done || s.Released || !w.Closed {
		return nil
	}
	cs, err := h.inTheWay(ctx, w)
	if err != nil {
		return err
	}
	if s.Users = len(cs) > 0; s.Users || w.Kind == plan.WorkCheckout {
		return nil
	}
	holders, err := h.holders(ctx)
	if err != nil {
		return err
	}
	s.Holders = names(holders)
	s.Stuck = s.Holders != "" && !h.mover.passing(true)
	if s.Holders == "" {
		h.mover.passing(false)
	}
	s.Mounted, err = h.mounted()
	return err
}

// inTheWay lists the containers that a work has to stop: those that use the
// head, or those that use it by the plain name.
func (h *head) inTheWay(ctx context.Context, w workJournal) ([]container.Container, error) {
	cs, err := h.containers(ctx)
	if err != nil {
		return nil, err
	}
	v := h.volume()
	return slices.DeleteFunc(cs, func(c container.Container) bool {
		if !c.State.Uses() {
			return true
		}
		return w.Kind == plan.WorkCheckout && !slices.ContainsFunc(c.Mounts, func(m container.Mount) bool { return plainly(v, m) })
	}), nil
}

// plainly reports whether a mount names the volume without a branch.
func plainly(v api.Volume, m container.Mount) bool {
	ref, err := api.ParseRef(m.Volume)
	return err == nil && m.Driver == Driver && ref.Volume == v.Name && ref.At == "" && ref.Back == 0
}

// actWork does one step. What fails for good ends the work.
func (h *head) actWork(ctx context.Context, o plan.Observed, action plan.Action) error {
	w, found, err := h.work()
	if err != nil || !found {
		return err
	}
	v, rec := o.Volume, o.Volume.Heads[h.key.branch]
	switch a := action.(type) {
	case plan.CloseForWork:
		h.mounting.Lock()
		w.Closed = true
		err = h.writeWork(w)
		h.mounting.Unlock()
	case plan.StopForWork:
		err = h.stopForWork(ctx, w)
	case plan.KeepUncommitted:
		err = h.keepUncommitted(ctx, v, rec, w)
	case plan.ReleaseForWork:
		err = h.releaseForWork(ctx, v, rec, w)
	case plan.ResetHead:
		var after api.Volume
		after, err = h.a.deps.Ledger.Change(ctx, v.ID, ledger.Change{Reset: &ledger.Reset{
			Branch: h.key.branch, Node: h.a.cfg.Node, Epoch: w.Epoch, From: w.From, To: w.To, Seed: w.Seed,
			Tip: api.Tip{Op: w.Op, Kept: w.kept(), By: w.By, At: w.At, Note: w.Note},
		}})
		err = h.took(after, err)
	case plan.SwitchBranch:
		var after api.Volume
		after, err = h.a.deps.Ledger.Change(ctx, v.ID, ledger.Change{Switch: &ledger.Switch{From: w.From, To: w.To}})
		if err == nil {
			h.a.take(after, true)
		}
	case plan.EndWork:
		return h.endWork(ctx, v, rec, w, a.Reason)
	}
	if definite(err) || api.Is(err, api.ReadOnly) || api.Is(err, api.Damaged) {
		h.mu.Lock()
		h.workFailed = err.Error()
		h.workErr = err
		h.mu.Unlock()
		return errLookAgain
	}
	return err
}

func (h *head) stopForWork(ctx context.Context, w workJournal) error {
	cs, err := h.inTheWay(ctx, w)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if !slices.ContainsFunc(w.Stopped, func(s stopped) bool { return s.ID == c.ID }) {
			w.Stopped = append(w.Stopped, stopped{ID: c.ID, Name: c.Name})
			w.Names = append(w.Names, c.Name)
		}
	}
	if err := h.writeWork(w); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range cs {
		group.Go(func() error {
			err := h.a.deps.Engine.Stop(ctx, c.ID, 0)
			if api.Is(err, api.NotFound) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// keepUncommitted makes the stash. Nobody uses the head.
func (h *head) keepUncommitted(ctx context.Context, v api.Volume, rec api.Head, w workJournal) error {
	dirty, _, err := h.dirty(ctx, rec)
	if err != nil {
		return err
	}
	if dirty {
		if err := h.stash(ctx, v, rec, w); err != nil {
			return err
		}
	}
	w.Kept, w.Stashed = true, dirty
	return h.writeWork(w)
}

// stash makes a commit to which no branch points, of a head that nobody uses.
func (h *head) stash(ctx context.Context, v api.Volume, rec api.Head, w workJournal) error {
	b, err := h.a.backend(rec.Pool)
	if err != nil {
		return err
	}
	c := api.Commit{
		ID: w.Stash, Volume: v.ID, Branch: h.key.branch, Message: w.Text, Author: w.By, Time: w.At,
		Consistency: api.ConsistencyPaused, Stash: w.Op,
	}
	if c.Message == "" {
		c.Message = "uncommitted changes before " + w.Op
	}
	if rec.Commit != "" {
		c.Parents = []string{rec.Commit}
	}
	note, err := json.Marshal(repo.Note{Commit: &c})
	if err != nil {
		return err
	}
	_, err = b.Snapshot(ctx, h.storageKey(), c.ID, note)
	return err
}

// savedLog is a reflog between the head that had it and the one that gets it.
type savedLog struct {
	Epoch uint64 `json:"epoch"` // of the head that gets it; 0: whichever is made next
	Log   []byte `json:"log"`
}

func (h *head) releaseForWork(ctx context.Context, v api.Volume, rec api.Head, w workJournal) error {
	log, known, err := h.reflog(ctx)
	if err != nil {
		return err
	}
	if !known {
		return &api.Error{Kind: api.Unavailable, Op: w.Op, Object: v.Name, Reason: "its reflog cannot be read now"}
	}
	packed, err := repo.PackRefLog(log)
	if err != nil {
		return err
	}
	if err := put(h.a.index, bucketRefLog, h.id(), savedLog{rec.Epoch + 1, packed}); err != nil {
		return err
	}
	return h.keepNote(ctx, rec.Pool, v, rec.Epoch, w.ID)
}

// endWork opens the head, starts what was stopped, and tells who waits.
func (h *head) endWork(ctx context.Context, v api.Volume, rec api.Head, w workJournal, reason string) error {
	if !w.Ended {
		if w.Kind == plan.WorkReset && rec.Epoch == w.Epoch {
			// It had no effect: the head is opened as it was.
			h.mounting.Lock()
			err := h.keepNote(ctx, rec.Pool, v, rec.Epoch, "")
			h.mounting.Unlock()
			if err != nil {
				return err
			}
		}
		h.mounting.Lock()
		w.Ended, w.Closed, w.Reason = true, false, reason
		err := h.writeWork(w)
		h.mounting.Unlock()
		if err != nil {
			return err
		}
	}
	for len(w.Stopped) > 0 {
		s := w.Stopped[0]
		if err := h.startAgain(ctx, v, s); err != nil {
			return err
		}
		w.Stopped = w.Stopped[1:]
		if err := h.writeWork(w); err != nil {
			return err
		}
	}
	if err := remove(h.a.index, bucketWork, h.id()); err != nil {
		return err
	}
	h.mu.Lock()
	err := h.workErr
	if w.Reason == "" {
		err = nil
		h.a.event("volume."+strings.ReplaceAll(w.Op, " ", "-"), "info", v, h.key.branch, fmt.Sprintf("%s of volume %s: %s to %s", w.Op, v.Name, orNothing(w.From), orNothing(w.To)), nil)
	} else if err == nil {
		err = &api.Error{Kind: api.InUse, Op: w.Op, Object: v.Name + "@" + h.key.branch, Reason: w.Reason, Next: "nothing was changed"}
	}
	h.workFailed, h.workErr = "", nil
	h.outcomes[w.ID] = outcome{w, err}
	h.notify()
	h.mu.Unlock()
	return nil
}

func orNothing(id string) string {
	if id == "" {
		return "nothing"
	}
	return short(id)
}

// startAgain starts a container that a work stopped. One that cannot be
// started is said and left; one that waits for the volume is started with it.
func (h *head) startAgain(ctx context.Context, v api.Volume, s stopped) error {
	err := h.a.deps.Engine.Start(ctx, s.ID)
	switch {
	case err == nil || api.Is(err, api.NotFound):
	case volumeError(err.Error()):
		h.a.event("container.waits", "warning", v, h.key.branch, "container "+s.Name+" starts when the volume is here: "+err.Error(), nil)
	case api.Is(err, api.Unavailable) || ctx.Err() != nil:
		return err
	case h.mover.restarts < maxRestarts:
		h.mover.restarts++
		return err
	default:
		h.complain(v, "container "+s.Name+" was stopped and does not start again: "+err.Error())
	}
	h.mover.restarts = 0
	return nil
}

// moved is what a work did, for the user.
func (h *head) moved(w workJournal) api.Moved {
	return api.Moved{Volume: h.volume().Name, Branch: h.key.branch, Op: w.Op, From: w.From, To: w.To, Kept: w.kept(), Note: w.Note}
}

// Reset replaces a branch's content by a commit. What was not committed is
// kept in a stash.
func (a *Agent) Reset(ctx context.Context, volume string, r api.ResetBranch, by string) (api.Moved, error) {
	h, v, rec, err := a.owned("reset branch", volume, r.Branch)
	if err != nil {
		return api.Moved{}, err
	}
	to, err := a.resolveIn(ctx, v, r.Branch, r.To)
	if err != nil {
		return api.Moved{}, err
	}
	if err := a.inPool(ctx, volume, to, rec.Pool); err != nil {
		return api.Moved{}, err
	}
	w, err := h.do(ctx, func(api.Volume, api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkReset, Op: repo.OpReset, To: to, Seed: to, By: by}, nil
	})
	return h.moved(w), err
}

// resolveIn finds the commit that the part of a reference after '@' means.
// "~n" alone goes back from the branch.
func (a *Agent) resolveIn(ctx context.Context, v api.Volume, branch, at string) (string, error) {
	text := v.Name + "@" + at
	switch {
	case at == "":
		text = v.Name + "@" + branch
	case strings.HasPrefix(at, "~"):
		text = v.Name + "@" + branch + at
	case at == v.Name || strings.HasPrefix(at, v.Name+"@") || strings.HasPrefix(at, v.Name+"~"):
		text = at // a whole reference
		if r, err := api.ParseRef(at); err == nil && r.At == "" && branch != "" && r.Back > 0 {
			r.At = branch
			text = r.String()
		}
	}
	ref, err := api.ParseRef(text)
	if err != nil {
		return "", err
	}
	return a.Resolve(ctx, v, ref)
}

// Stash puts aside what is not committed, or takes it back.
func (a *Agent) Stash(ctx context.Context, volume string, r api.StashChanges, by string) (api.Moved, error) {
	const op = "stash changes"
	h, v, rec, err := a.owned(op, volume, r.Branch)
	if err != nil {
		return api.Moved{}, err
	}
	switch {
	case r.Pop && r.Drop:
		return api.Moved{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + r.Branch, Reason: "a stash is taken back or dropped, not both"}
	case r.Pop:
		return a.pop(ctx, h, v, rec, r, by)
	case r.Drop:
		return a.dropStash(ctx, h, r, by)
	}
	if rec.Commit == "" {
		return api.Moved{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + r.Branch, Reason: "it has no commit to go back to", Next: "drover commit " + v.Name + " -m … makes the first"}
	}
	if r.Message != "" {
		if err := api.CheckMessage(r.Message); err != nil {
			return api.Moved{}, err
		}
	}
	if dirty, _, err := h.dirty(ctx, rec); err != nil || !dirty {
		if err == nil {
			err = &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + r.Branch, Reason: "it has no changes since commit " + short(rec.Commit)}
		}
		return api.Moved{}, err
	}
	w, err := h.do(ctx, func(_ api.Volume, rec api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkReset, Op: repo.OpStash, To: rec.Commit, Seed: rec.Commit, By: by, Text: r.Message}, nil
	})
	return h.moved(w), err
}

func (a *Agent) pop(ctx context.Context, h *head, v api.Volume, rec api.Head, r api.StashChanges, by string) (api.Moved, error) {
	const op = "take a stash back"
	s, err := a.findStash(ctx, op, v, r)
	if err != nil {
		return api.Moved{}, err
	}
	if base := slices.Concat(s.Parents, []string{""})[0]; base != rec.Commit {
		return api.Moved{}, &api.Error{Kind: api.Conflict, Op: op, Object: short(s.ID), Reason: "it was made on commit " + orNothing(base) + ", and the branch is at " + orNothing(rec.Commit) + ": taking it back would undo what was committed in between", Next: "look at it as a branch of its own: drover branch " + v.Name + " NAME " + short(s.ID)}
	}
	if dirty, sure, err := h.dirty(ctx, rec); err != nil || (dirty && sure) {
		if err == nil {
			err = &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + r.Branch, Reason: "it has changes that are not committed", Next: "commit or stash them first"}
		}
		return api.Moved{}, err
	}
	w, err := h.do(ctx, func(_ api.Volume, rec api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkReset, Op: repo.OpPop, To: rec.Commit, Seed: s.ID, By: by, Note: s.ID}, nil
	})
	return h.moved(w), err
}

func (a *Agent) findStash(ctx context.Context, op string, v api.Volume, r api.StashChanges) (api.Commit, error) {
	list, err := a.Stashes(ctx, v.ID, r.Branch)
	if err != nil {
		return api.Commit{}, err
	}
	i := slices.IndexFunc(list, func(c api.Commit) bool { return strings.HasPrefix(c.ID, r.Stash) })
	if i < 0 {
		return api.Commit{}, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + r.Branch, Reason: "there is no such stash", Next: "drover stash list " + v.Name + " shows them"}
	}
	return list[i], nil
}

// dropStash forgets a stash: nothing but the reflog reaches it, which says from
// now on that it went.
func (a *Agent) dropStash(ctx context.Context, h *head, r api.StashChanges, by string) (api.Moved, error) {
	const op = repo.OpDrop
	s, err := a.findStash(ctx, op, h.volume(), r)
	if err != nil {
		return api.Moved{}, err
	}
	m, err := a.noteTip(ctx, h, op, "", api.Tip{Op: repo.OpDrop, By: by, Note: s.ID})
	m.Note = "stash " + short(s.ID) + ", made " + s.Time.UTC().Format(time.DateTime) + " UTC; drover undo brings it back until its space is freed"
	return m, err
}

// Stashes lists a branch's stashes, newest first.
func (a *Agent) Stashes(ctx context.Context, volume, branch string) ([]api.Commit, error) {
	log, err := a.RefLog(ctx, volume, branch)
	if err != nil {
		return nil, err
	}
	g, err := a.Graph(ctx, volume)
	if err != nil {
		return nil, err
	}
	out := []api.Commit{}
	for _, id := range repo.Stashes(log) {
		if c, here := g[id]; here {
			out = append(out, c)
		}
	}
	return out, nil
}

// RefLog lists the moves of a branch's tip, oldest first.
func (a *Agent) RefLog(ctx context.Context, volume, branch string) ([]api.RefLogEntry, error) {
	h, v, _, err := a.owned("read reflog", volume, branch)
	if err != nil {
		return nil, err
	}
	log, known, err := h.reflog(ctx)
	if err == nil && !known {
		err = &api.Error{Kind: api.Unavailable, Op: "read reflog", Object: v.Name + "@" + branch, Reason: "its pool cannot be read now"}
	}
	return log, err
}

// Checkout makes another branch the one that the plain name means. It runs
// where the present one's head is: there are the containers that use it.
func (a *Agent) Checkout(ctx context.Context, volume, branch, by string) (api.CheckedOut, error) {
	const op = "check branch out"
	v, known := a.record(volume)
	if !known {
		return api.CheckedOut{}, notHere(a.cfg.Node, volume)
	}
	h, v, rec, err := a.owned(op, volume, v.Branch)
	if err != nil {
		return api.CheckedOut{}, err
	}
	out := api.CheckedOut{Volume: v.Name, From: v.Branch, To: branch}
	to, there := v.Heads[branch]
	switch {
	case !there:
		return out, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "the volume has no such branch", Next: "drover checkout -b " + v.Name + " " + branch + " makes it"}
	case branch == v.Branch:
		return out, nil
	case !to.Expires.IsZero():
		return out, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + branch, Reason: "it is to be deleted by itself", Next: "drover branch " + v.Name + " " + branch + " --expire never, first"}
	}
	if out.Dirty, _, err = h.dirty(ctx, rec); err != nil {
		return out, err
	}
	w, err := h.do(ctx, func(v api.Volume, _ api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkCheckout, Op: "checkout", From: v.Branch, To: branch, By: by}, nil
	})
	out.Restart = w.Names
	return out, err
}
