package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/transfer"
)

// act does one step of a move.
func (m *mover) act(ctx context.Context, o plan.Observed, action plan.Action) error {
	v := o.Volume
	rec := v.Heads[m.h.key.branch]
	j, err := m.journal()
	if err != nil {
		return err
	}
	switch a := action.(type) {
	case plan.CheckTarget:
		m.phase(api.MoveChecking)
		err = m.check(ctx, v, rec, j)
	case plan.TakeSnapshot:
		err = m.snapshot(ctx, rec, a, j)
	case plan.SealHead:
		err = m.seal(ctx, rec, j)
	case plan.SendSnapshot:
		err = m.send(ctx, v, rec, a, j)
	case plan.SendCommit:
		err = m.sendCommit(ctx, v, rec, a)
	case plan.RunHook:
		err = m.hook(ctx, rec, j)
	case plan.CloseHead:
		j.Closed = true
		m.h.mounting.Lock()
		err = m.write(j)
		m.h.mounting.Unlock()
	case plan.StopUsers:
		m.phase(api.MoveStopping)
		err = m.stop(ctx, rec, j)
	case plan.UnmountHead:
		err = m.unmount(ctx, rec)
	case plan.ReleaseHead:
		err = m.release(ctx, v, rec, j)
	case plan.HandOver:
		m.phase(api.MoveHandover)
		err = m.handOver(ctx, v, rec, a, j)
	case plan.CancelMove:
		err = m.cancel(ctx, v, rec, a.Reason)
	default:
		return &api.Error{Kind: api.Internal, Op: "move volume", Object: v.Name, Reason: fmt.Sprintf("no way is known to do %T", action)}
	}
	return m.judge(err)
}

// errLookAgain ends a list of actions early: the rest relies on what has failed.
var errLookAgain = errors.New("look again")

// judge keeps an error that will not pass as the reason to end the move.
func (m *mover) judge(err error) error {
	switch api.KindOf(err) {
	case api.Invalid, api.Denied, api.Unsupported, api.Damaged, api.Exhausted, api.ReadOnly, api.InUse, api.Exists:
		m.failed = err.Error()
		m.h.a.deps.Log.Warn("move cannot go on", "volume", m.h.volume().Name, "error", err)
		return errLookAgain
	}
	return err
}

// check asks the target, with all that it needs to make the containers.
func (m *mover) check(ctx context.Context, v api.Volume, rec api.Head, j journal) error {
	p := peer.Preparation{Move: rec.Move.ID, Volume: v, Branch: m.h.key.branch, Epoch: rec.Epoch, Pool: rec.Move.Pool, AllowLoss: rec.Move.Options.AllowLoss}
	pool, err := m.h.a.pool(rec.Pool)
	if err != nil {
		return err
	}
	p.Fidelity = pool.seen().Fidelity
	if p.Bytes, err = m.toCome(ctx, pool, rec); err != nil {
		return err
	}
	m.expect(p.Bytes)
	j.Told = nil
	if rec.Move.Options.Users == api.UsersMove && !j.Here {
		if err := m.exports(ctx, rec, &p, &j); err != nil {
			return err
		}
	}
	if err := m.h.a.deps.Peers.Prepare(ctx, rec.Move.To, p); err != nil {
		return err
	}
	j.Checked = true
	return m.write(j)
}

// toCome is about how much the target needs room for; where it holds a base,
// only what changed comes, and nobody knows how much that is.
func (m *mover) toCome(ctx context.Context, p *pool, rec api.Head) (int64, error) {
	bases, err := m.h.a.index.bases(m.h.id())
	if err != nil || bases[rec.Move.To] != "" {
		return 0, err
	}
	hd, err := p.backend.Head(ctx, m.h.storageKey())
	if api.Is(err, api.NotFound) {
		return 0, nil
	}
	return max(hd.Used, 0), err
}

// exports describes the containers to be made at the target: those that run,
// and those that this or an interrupted move has stopped.
func (m *mover) exports(ctx context.Context, rec api.Head, p *peer.Preparation, j *journal) error {
	cs, err := m.h.containers(ctx)
	if err != nil {
		return err
	}
	holders, err := m.h.holders(ctx)
	if err != nil {
		return err
	}
	down, err := m.down(ctx, rec, *j)
	if err != nil {
		return err
	}
	p.Restart = map[string]string{}
	for _, c := range cs {
		policy, moves := c.Restart, slices.Contains(down, c.ID) || slices.ContainsFunc(holders, func(x holder) bool { return x.ID == c.ID })
		for _, s := range j.Stopped {
			if s.ID == c.ID {
				policy, moves = s.Restart, true
			}
		}
		if !moves {
			continue
		}
		if policy == "" {
			now, err := m.h.a.deps.Engine.Inspect(ctx, c.ID)
			if err != nil {
				return err
			}
			policy = now.Restart
		}
		spec, err := m.h.a.deps.Engine.Export(ctx, c.ID)
		if err != nil {
			return err
		}
		p.Containers = append(p.Containers, spec)
		p.Restart[c.Name] = policy
		j.Told = append(j.Told, c.ID)
	}
	return nil
}

func (m *mover) snapshot(ctx context.Context, rec api.Head, a plan.TakeSnapshot, j journal) error {
	if a.Linger > 0 {
		m.mu.Lock()
		stopper := m.stopper
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stopper:
			return nil
		case <-time.After(a.Linger):
		}
	}
	b, err := m.h.a.backend(rec.Pool)
	if err != nil {
		return err
	}
	if a.Pause {
		release, err := m.pause(ctx)
		if err != nil {
			return err
		}
		defer release()
	}
	id := m.h.a.deps.NewID()
	var note []byte
	if a.Final {
		if note, err = m.h.farewell(ctx, nil); err != nil {
			return err
		}
	}
	if _, err := b.Snapshot(ctx, m.h.storageKey(), id, note); err != nil {
		return err
	}
	if !a.Final {
		m.unsent = id
		return nil
	}
	m.stoppedNow()
	j.Final = id
	return m.write(j)
}

// pause holds the containers that use the head until release is called.
func (m *mover) pause(ctx context.Context) (release func(), err error) {
	cs, err := m.h.containers(ctx)
	if err != nil {
		return nil, err
	}
	var held []func(context.Context) error
	release = func() {
		for _, letGo := range held {
			if err := letGo(context.WithoutCancel(ctx)); err != nil {
				m.h.a.deps.Log.Error("cannot let a container go on", "error", err)
			}
		}
	}
	for _, c := range cs {
		if c.State != container.Running {
			continue
		}
		letGo, err := m.h.a.pause(ctx, c)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, letGo)
	}
	return release, nil
}

func (m *mover) seal(ctx context.Context, rec api.Head, j journal) error {
	b, err := m.h.a.backend(rec.Pool)
	if err != nil {
		return err
	}
	sealer, ok := storage.As[storage.Sealer](b)
	if !ok {
		return m.snapshot(ctx, rec, plan.TakeSnapshot{Final: true}, j)
	}
	if j.Sealed == "" {
		j.Sealed = m.h.a.deps.NewID()
		if err := m.write(j); err != nil {
			return err
		}
	}
	m.stoppedNow()
	note, err := m.h.farewell(ctx, &repo.Sealed{Node: m.h.a.cfg.Node, Pool: rec.Pool, Branch: m.h.key.branch, Epoch: rec.Epoch, Move: rec.Move.ID})
	if err != nil {
		return err
	}
	if _, err := sealer.Seal(ctx, m.h.storageKey(), j.Sealed, note); err != nil {
		return err
	}
	j.Final = j.Sealed
	return m.write(j)
}

func (m *mover) send(ctx context.Context, v api.Volume, rec api.Head, a plan.SendSnapshot, j journal) error {
	final := a.ID == j.Final
	p, err := m.h.a.pool(rec.Pool)
	if err != nil {
		return err
	}
	if final {
		m.phase(api.MoveFinal)
	} else {
		m.nextRound(j)
	}
	var note []byte
	if final {
		if note, err = m.noteOf(ctx, p, a.ID); err != nil {
			return err
		}
	}
	job := m.job(v, rec, p, a.ID, note, a.Limited)
	ctx, done := m.h.working(ctx, rec.Move.ID)
	defer done()
	result, err := m.source(p, rec).Send(ctx, job)
	m.counted(result, final)
	if err != nil {
		if api.Is(err, api.Canceled) {
			return nil // the wish was withdrawn, or the agent ends: the next look tells
		}
		return err
	}
	if err := put(m.h.a.index, bucketBases, m.h.id()+"/"+rec.Move.To, a.ID); err != nil {
		return err
	}
	if final {
		j.Sent = true
		return m.write(j)
	}
	m.rounds = append(m.rounds, plan.Round{ID: a.ID, Sent: result.Sent})
	m.unsent = ""
	return nil
}

// noteOf is the note of a snapshot that is here.
func (m *mover) noteOf(ctx context.Context, p *pool, id string) ([]byte, error) {
	list, err := p.backend.Snapshots(ctx, m.h.key.volume)
	for _, s := range list {
		if s.ID == id {
			return s.Note, err
		}
	}
	return nil, err
}

func (m *mover) job(v api.Volume, rec api.Head, p *pool, id string, note []byte, limited bool) transfer.Job {
	job := transfer.Job{Offer: transfer.Offer{
		Volume: v.ID, Branch: m.h.key.branch, Move: rec.Move.ID, Pool: rec.Move.Pool, Snapshot: id, Note: note,
		Fidelity: p.seen().Fidelity, AllowLoss: rec.Move.Options.AllowLoss, Stream: m.h.a.streamID(),
	}}
	if limited && rec.Move.Options.Bandwidth > 0 {
		const burst = 256 << 10
		job.Limit = rate.NewLimiter(rate.Limit(rec.Move.Options.Bandwidth), burst)
	}
	return job
}

func (m *mover) source(p *pool, rec api.Head) *transfer.Source {
	return &transfer.Source{
		Backend: p.backend, Portable: m.h.a.deps.Portable, Watch: m.watch,
		Dial: func(ctx context.Context) (net.Conn, error) { return m.h.a.deps.Peers.Dial(ctx, rec.Move.To) },
	}
}

// sendCommit brings a commit of the history to the target.
func (m *mover) sendCommit(ctx context.Context, v api.Volume, rec api.Head, a plan.SendCommit) error {
	p, err := m.h.a.pool(rec.Pool)
	if err != nil {
		return err
	}
	found, err := m.h.a.Find(ctx, v.ID, a.ID, rec.Pool)
	if err != nil {
		return err
	}
	if !a.Limited {
		m.phase(api.MoveFinal)
	} else {
		m.phase(api.MoveCopying)
	}
	job := m.job(v, rec, p, a.ID, found.Snapshot.Note, a.Limited)
	ctx, done := m.h.working(ctx, rec.Move.ID)
	defer done()
	result, err := m.source(p, rec).Send(ctx, job)
	m.counted(result, false)
	if err != nil {
		if api.Is(err, api.Canceled) {
			return nil
		}
		return err
	}
	if err := put(m.h.a.index, bucketBases, m.h.id()+"/"+rec.Move.To, a.ID); err != nil {
		return err
	}
	if m.heldFor == rec.Move.ID {
		m.held[a.ID] = true
	}
	return nil
}

// farewell is the note of a head's last snapshot: it takes the reflog along,
// and says of what head it is all there is.
func (h *head) farewell(ctx context.Context, sealed *repo.Sealed) ([]byte, error) {
	log, _, err := h.reflog(ctx)
	if err != nil || len(log) == 0 && sealed == nil {
		return nil, err
	}
	packed, err := repo.PackRefLog(log)
	if err != nil {
		return nil, err
	}
	return json.Marshal(repo.Note{RefLog: packed, Sealed: sealed})
}

// working gives a context that ends when the wish is withdrawn.
func (h *head) working(ctx context.Context, wish string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy, h.wish = cancel, wish
	if m := h.record.Heads[h.key.branch].Move; m == nil || m.ID != wish {
		cancel()
	}
	return ctx, func() {
		h.mu.Lock()
		h.busy = nil
		h.mu.Unlock()
		cancel()
	}
}

func (m *mover) hook(ctx context.Context, rec api.Head, j journal) error {
	if command := rec.Move.Options.Hook; len(command) > 0 {
		timeout := rec.Move.Options.HookTimeout
		if timeout == 0 {
			timeout = 30 * time.Second
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		cs, err := m.h.containers(ctx)
		if err != nil {
			return err
		}
		for _, c := range cs {
			if c.State != container.Running {
				continue
			}
			if out, err := m.h.a.deps.Engine.Exec(ctx, c.ID, command); err != nil {
				return &api.Error{Kind: api.Invalid, Op: "run hook", Object: "container " + c.Name, Reason: string(out[max(0, len(out)-300):]), Err: err, Next: "nothing was stopped; mend the hook or leave it out"}
			}
		}
	}
	// A hook such as a checkpoint runs twice. What it writes out the first time
	// travels while the containers still run, in rounds that begin anew; the
	// second time it has little to do, and leaves little for the stop to write.
	if len(rec.Move.Options.Hook) > 0 {
		m.rounds = nil
	}
	j.Hooked = j.Warm || len(rec.Move.Options.Hook) == 0
	j.Warm = true
	return m.write(j)
}

// stop begins to stop the containers that use the head.
func (m *mover) stop(ctx context.Context, rec api.Head, j journal) error {
	cs, err := m.h.containers(ctx)
	if err != nil {
		return err
	}
	holders, err := m.h.holders(ctx)
	if err != nil {
		return err
	}
	down, err := m.down(ctx, rec, j)
	if err != nil {
		return err
	}
	var running []container.Container
	for _, c := range cs {
		if !slices.Contains(down, c.ID) && !slices.ContainsFunc(holders, func(x holder) bool { return x.ID == c.ID }) {
			continue
		}
		running = append(running, c)
		if !slices.ContainsFunc(j.Stopped, func(s stopped) bool { return s.ID == c.ID }) {
			if c, err = m.h.a.deps.Engine.Inspect(ctx, c.ID); err != nil {
				return err
			}
			j.Stopped = append(j.Stopped, stopped{c.ID, c.Name, c.Restart})
		}
	}
	j.Stopping = true
	if err := m.write(j); err != nil {
		return err
	}
	over := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	m.mu.Lock()
	m.stopper, m.unstop = over, cancel
	m.mu.Unlock()
	m.h.a.group.Go(func() error {
		defer m.h.kick()
		defer close(over)
		defer cancel()
		err := m.stopAll(ctx, running, rec.Move.Options.StopTimeout)
		m.mu.Lock()
		m.stopErr = err
		m.mu.Unlock()
		m.stoppedNow()
		return nil
	})
	return nil
}

func (m *mover) stopAll(ctx context.Context, cs []container.Container, timeout time.Duration) error {
	for _, c := range cs {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		// Its restart policy would start it again, here, where the data is leaving.
		if err := m.h.a.deps.Engine.SetRestart(ctx, c.ID, "no"); err != nil {
			return err
		}
		// An engine that was asked to stop a container goes on with it whatever
		// becomes of the question: who gives up waits for it all the same.
		if err := m.h.a.deps.Engine.Stop(context.WithoutCancel(ctx), c.ID, timeout); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) unmount(ctx context.Context, rec api.Head) error {
	b, err := m.h.a.backend(rec.Pool)
	if err != nil {
		return err
	}
	m.h.mounting.Lock()
	defer m.h.mounting.Unlock()
	err = m.h.unmount(ctx, b)
	if api.Is(err, api.InUse) {
		// Busy in the kernel's eyes: somebody has a file open through it.
		return &api.Error{Kind: api.Unavailable, Op: "unmount volume", Object: m.h.volume().Name, Err: err}
	}
	return err
}

func (m *mover) release(ctx context.Context, v api.Volume, rec api.Head, j journal) error {
	if j.Sealed != "" {
		return nil
	}
	return m.h.keepNote(ctx, rec.Pool, v, rec.Epoch, rec.Move.ID)
}

func (m *mover) handOver(ctx context.Context, v api.Volume, rec api.Head, a plan.HandOver, j journal) error {
	o := handOver(m.h.a.cfg.Node, rec, a.Snapshot)
	if rec.Move.Options.Users == api.UsersMove && !j.Here {
		for _, s := range j.Stopped {
			o.Departed = append(o.Departed, s.Name)
		}
	}
	after, err := m.h.a.deps.Ledger.Hand(ctx, m.h.key.volume, m.h.key.branch, o)
	if api.Is(err, api.Canceled) || api.Is(err, api.Conflict) {
		// Withdrawn a moment ago, or long done: the record tells.
		now, err := m.h.a.deps.Ledger.Volume(ctx, m.h.key.volume)
		return m.h.took(now, err)
	}
	if err != nil {
		return err
	}
	m.phase(api.MoveActivating)
	m.h.a.event("volume.handed-over", "info", v, m.h.key.branch, fmt.Sprintf("volume %s belongs to %s now, epoch %d", v.Name, a.To, rec.Epoch+1), map[string]string{"move": rec.Move.ID})
	return m.h.took(after, nil)
}

func (m *mover) cancel(ctx context.Context, v api.Volume, rec api.Head, reason string) error {
	after, err := m.h.a.deps.Ledger.CancelMove(ctx, m.h.key.volume, m.h.key.branch, rec.Move.ID)
	if err != nil {
		return err
	}
	m.ended(&api.Error{Kind: api.Canceled, Op: "move volume", Object: v.Name, Reason: reason})
	m.h.a.event("volume.move-cancelled", "warning", v, m.h.key.branch, fmt.Sprintf("volume %s stays on %s: %s", v.Name, m.h.a.cfg.Node, reason), map[string]string{"move": rec.Move.ID})
	return m.h.took(after, nil)
}

// unfence opens the head again after a move that ended before its hand-over,
// or that brought it to another pool of this node.
func (m *mover) unfence(ctx context.Context, o plan.Observed) error {
	rec := o.Volume.Heads[m.h.key.branch]
	if err := m.h.stillThere(ctx, o); err != nil {
		return err
	}
	if _, err := m.stopStopping(ctx); err != nil {
		return err
	}
	j, err := m.journal()
	if err != nil {
		return err
	}
	b, err := m.h.a.backend(rec.Pool)
	if err != nil {
		return err
	}
	m.h.mounting.Lock()
	defer m.h.mounting.Unlock()
	if err := m.unseal(ctx, rec, j, b); err != nil {
		return err
	}
	if err := m.h.keepNote(ctx, rec.Pool, o.Volume, rec.Epoch, ""); err != nil {
		return err
	}
	if j.Epoch == rec.Epoch {
		m.ended(&api.Error{Kind: api.Canceled, Op: "move volume", Object: o.Volume.Name, Reason: "the move was cancelled"})
	}
	if len(j.Stopped) == 0 {
		return m.forget()
	}
	return m.write(journal{Move: j.Move, Epoch: rec.Epoch, Stopped: j.Stopped})
}

// unseal makes the head of the snapshot again that it was made for a move.
func (m *mover) unseal(ctx context.Context, rec api.Head, j journal, b storage.Backend) error {
	sealer, ok := storage.As[storage.Sealer](b)
	if !ok {
		return nil
	}
	id := ""
	if j.Epoch == rec.Epoch {
		id = j.Sealed
	}
	if id == "" {
		// The journal may be gone; what the snapshot says is not.
		p, err := m.h.a.pool(rec.Pool)
		if err != nil {
			return err
		}
		list, err := b.Snapshots(ctx, m.h.key.volume)
		if err != nil {
			return err
		}
		for _, s := range list {
			if x := sealedHead(m.h.a, p, m.h.key.branch, rec, []storage.Snapshot{s}); x != nil {
				id = s.ID
			}
		}
	}
	if id == "" {
		return nil
	}
	_, err := sealer.Unseal(ctx, m.h.key.volume, id, m.h.storageKey())
	if api.Is(err, api.NotFound) || api.Is(err, api.Exists) {
		return nil // it was done before
	}
	return err
}

// stopStopping ends what a withdrawn move does to the containers, and waits
// for it, so that it stops none that was started again. known says that this
// process did it: then nothing is being stopped any more.
func (m *mover) stopStopping(ctx context.Context) (known bool, err error) {
	m.mu.Lock()
	over, unstop := m.stopper, m.unstop
	m.mu.Unlock()
	if over == nil {
		return false, nil
	}
	unstop()
	select {
	case <-ctx.Done():
		return true, context.Cause(ctx)
	case <-over:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopper, m.stopErr, m.unstop = nil, nil, nil
	return true, nil
}

// maxRestarts bounds how often a container is started in vain, about half a
// minute with the pauses between.
const maxRestarts = 7

// restart starts the containers again that a move stopped, as they were. One
// that cannot be started is said and left: it holds up nothing else.
func (m *mover) restart(ctx context.Context) error {
	known, err := m.stopStopping(ctx)
	if err != nil {
		return err
	}
	j, err := m.journal()
	if err != nil {
		return err
	}
	for len(j.Stopped) > 0 {
		s := j.Stopped[0]
		err := m.h.a.deps.Engine.SetRestart(ctx, s.ID, s.Restart)
		if err == nil && !known {
			// An earlier run of the agent may have asked the engine to stop it,
			// which may be about to end what seems to run.
			if err = m.h.a.deps.Engine.Stop(ctx, s.ID, 0); api.Is(err, api.NotFound) {
				err = nil
			}
		}
		if err == nil {
			err = m.h.a.deps.Engine.Start(ctx, s.ID)
		}
		switch {
		case err == nil:
			m.h.a.event("container.restarted", "info", m.h.volume(), m.h.key.branch, "container "+s.Name+" runs here again", nil)
		case api.Is(err, api.Unavailable) || ctx.Err() != nil:
			return err
		case m.restarts < maxRestarts && !api.Is(err, api.NotFound):
			m.restarts++
			return err
		case !api.Is(err, api.NotFound):
			m.h.complain(m.h.volume(), "container "+s.Name+" was stopped for a move and does not start again: "+err.Error())
		}
		m.restarts = 0
		j.Stopped = j.Stopped[1:]
		if err := m.write(j); err != nil {
			return err
		}
	}
	return m.forget()
}
