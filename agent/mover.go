package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/plan"
)

// journal is what the source of a move must know after a crash. It is written
// before what it says is done.
type journal struct {
	Move  string `json:"move"`
	Epoch uint64 `json:"epoch"` // before the hand-over
	Pool  string `json:"pool"`  // that the head leaves
	// Here: the head goes to another pool of this node, so its containers
	// are started again here.
	Here    bool `json:"here,omitempty"`
	Checked bool `json:"checked"`
	// Told are the ids of the containers that the target was told of.
	Told     []string  `json:"told,omitempty"`
	Warm     bool      `json:"warm,omitempty"` // the hook has run for the first time
	Hooked   bool      `json:"hooked"`
	Closed   bool      `json:"closed"`
	Stopping bool      `json:"stopping"`
	Stopped  []stopped `json:"stopped,omitempty"`
	// Final is the last snapshot, taken after the proof that nobody uses the
	// head; Sealed the same where the head itself became it.
	Final  string `json:"final,omitempty"`
	Sealed string `json:"sealed,omitempty"`
	Sent   bool   `json:"sent,omitempty"` // Final is durable at the target
}

// stopped is a container that the move stopped, with the restart policy it had.
type stopped struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Restart string `json:"restart"`
}

// of reports whether what the journal says can still matter under a record:
// before the hand-over, and after it when the head stayed on the node.
func (j journal) of(rec api.Head) bool {
	return j.Epoch == rec.Epoch || (j.Here && j.Epoch+1 == rec.Epoch)
}

func (j journal) closedFor() string {
	if j.Closed {
		return j.Move
	}
	return ""
}

// mover is the source's side of a head's move. Its fields belong to the
// head's goroutine, except those that say otherwise.
type mover struct {
	h      *head
	move   string // the wish that the fields below are of
	rounds []plan.Round
	unsent string
	failed string
	// held are the snapshots that the target has of the volume, once it was
	// asked about them for the wish heldFor.
	held    map[string]bool
	heldFor string
	stuck   time.Time // since when somebody uses the head who cannot be stopped
	// resumed: the move began before this process did. Containers that the
	// target was told of and that do not run may be so because the host was
	// restarted; they move as if they ran.
	resumed bool
	// restarts counts how often starting a container again has failed.
	restarts int

	mu       sync.Mutex
	stopper  chan struct{}      // guarded by mu; closed when the engine has stopped all users
	unstop   context.CancelFunc // guarded by mu; ends the stopping
	stopErr  error              // guarded by mu
	progress api.MoveProgress   // guarded by mu
	size     int64              // guarded by mu; about what a round has that carries everything
	rate     meter              // guarded by mu
}

func (m *mover) journal() (journal, error) {
	j, _, err := get[journal](m.h.a.index, bucketJournal, m.h.id())
	return j, err
}

// current gives the journal as far as the record leaves it any meaning. What
// a crash left of a move whose head is long gone from here is forgotten, so
// that it does not start containers when the head comes back.
func (m *mover) current(rec api.Head, fresh bool) (journal, error) {
	j, err := m.journal()
	if err != nil || j.Move == "" || !fresh {
		return j, err
	}
	if j.of(rec) {
		if j.Closed || len(j.Stopped) > 0 || (rec.Move != nil && rec.Move.ID == j.Move) {
			return j, nil
		}
		// Withdrawn before it changed anything here.
		m.ended(&api.Error{Kind: api.Canceled, Op: "move volume", Object: m.h.volume().Name, Reason: "the move was cancelled"})
		return journal{}, m.forget()
	}
	if j.Epoch+1 == rec.Epoch && rec.From == m.h.a.cfg.Node {
		return j, nil // the copy here is not yet cleared away
	}
	return journal{}, m.forget()
}

func (m *mover) write(j journal) error { return put(m.h.a.index, bucketJournal, m.h.id(), j) }

// forget ends the journal: the head is gone from here, or open again.
func (m *mover) forget() error {
	m.move = ""
	return remove(m.h.a.index, bucketJournal, m.h.id())
}

// begin begins the journal of a wish, unless that of another one is there: the
// plan undoes what that left first.
func (m *mover) begin(j journal, wish api.Move, epoch uint64, v api.Volume) (journal, error) {
	if m.move != wish.ID {
		m.move, m.rounds, m.unsent, m.failed, m.resumed = wish.ID, nil, "", "", j.Move == wish.ID
		m.mu.Lock()
		m.stopper, m.stopErr = nil, nil
		m.rate = meter{}
		m.progress = api.MoveProgress{
			ID: wish.ID, Volume: v.Name, Branch: m.h.key.branch, From: m.h.a.cfg.Node, To: wish.To,
			Phase: api.MoveChecking, Started: m.h.a.deps.Now(),
		}
		m.mu.Unlock()
		m.h.a.event("volume.moving", "info", v, m.h.key.branch, fmt.Sprintf("volume %s moves from %s to %s", v.Name, m.h.a.cfg.Node, wish.To), map[string]string{"move": wish.ID})
	}
	if j.Move == wish.ID {
		return j, nil
	}
	if j.Move != "" {
		return j, nil // what it left is taken back first
	}
	next := journal{
		Move: wish.ID, Epoch: epoch, Pool: v.Heads[m.h.key.branch].Pool,
		Here: wish.To == m.h.a.cfg.Node && wish.Options.Users == api.UsersMove,
	}
	return next, m.write(next)
}

// observe sees where the move stands.
func (m *mover) observe(ctx context.Context, v api.Volume, rec api.Head, j journal) (plan.MoveState, error) {
	j, err := m.begin(j, *rec.Move, rec.Epoch, v)
	if err != nil || j.Move != rec.Move.ID {
		return plan.MoveState{}, err
	}
	mounted, err := m.h.mounted()
	if err != nil {
		return plan.MoveState{}, err
	}
	p, err := m.h.a.pool(rec.Pool)
	if err != nil {
		return plan.MoveState{}, err
	}
	info := p.seen()
	s := plan.MoveState{
		Failed: m.failed, Checked: j.Checked, Atomic: info.Atomic, Instant: info.Instant, Rounds: slices.Clone(m.rounds), Unsent: m.unsent,
		Hooked: j.Hooked, Closed: j.Closed, Final: j.Final, FinalSent: j.Sent, Mounted: mounted,
	}
	if hd, err := p.backend.Head(ctx, m.h.storageKey()); err == nil {
		n := readNote(hd.Note)
		s.Released = n.Released == rec.Move.ID && n.Epoch == rec.Epoch
	} else if !api.Is(err, api.NotFound) {
		return s, err
	} else if j.Sealed != "" {
		s.Released = j.Sent // the sealed head has no note of its own; the journal says it
	}
	if s.Checked {
		if s.History, err = m.h.luggage(ctx, v, rec, func() (map[string]bool, error) { return m.heldThere(ctx, rec) }); err != nil {
			return s, err
		}
	}
	if s.FinalSent || s.Final != "" {
		return s, nil // nobody has used the head since it was closed and proven unused
	}
	holders, err := m.h.holders(ctx)
	if err != nil {
		return s, err
	}
	down, err := m.down(ctx, rec, j)
	if err != nil {
		return s, err
	}
	m.observeUsers(&s, j, rec, holders, down)
	return s, nil
}

// heldThere asks the target once which snapshots it has in the pool that the
// head moves to.
func (m *mover) heldThere(ctx context.Context, rec api.Head) (map[string]bool, error) {
	if m.heldFor == rec.Move.ID {
		return m.held, nil
	}
	var list []api.HeldSnapshot
	var err error
	if rec.Move.To == m.h.a.cfg.Node {
		list, err = m.h.a.Held(ctx, m.h.key.volume)
	} else {
		list, err = m.h.a.deps.Peers.Held(ctx, rec.Move.To, m.h.key.volume)
	}
	if err != nil {
		return nil, err
	}
	m.held, m.heldFor = map[string]bool{}, rec.Move.ID
	for _, s := range list {
		if s.Pool == rec.Move.Pool {
			m.held[s.ID] = true
		}
	}
	return m.held, nil
}

// down gives the ids of containers that the move takes along though they do
// not run: those that failed to start only for want of the head, and, after a
// restart of the agent, those that the target was told of; see resumed.
func (m *mover) down(ctx context.Context, rec api.Head, j journal) (ids []string, err error) {
	if j.Stopping || rec.Move.Options.Users != api.UsersMove {
		return nil, nil
	}
	cs, err := m.h.containers(ctx)
	for _, c := range cs {
		if c.State.Uses() {
			continue
		}
		// The list leaves out what is asked for here.
		c, err := m.h.a.deps.Engine.Inspect(ctx, c.ID)
		if api.Is(err, api.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		told := m.resumed && slices.Contains(j.Told, c.ID)
		if !c.State.Uses() && c.Restart != "no" && (told || failedForVolume(c)) {
			ids = append(ids, c.ID)
		}
	}
	return ids, err
}

// passing reports whether somebody who cannot be stopped has been there for so
// short a time that it may pass by itself.
func (m *mover) passing(stuck bool) bool {
	const patience = 5 * time.Second
	now := m.h.a.deps.Now()
	switch {
	case !stuck:
		m.stuck = time.Time{}
		return false
	case m.stuck.IsZero():
		m.stuck = now
	}
	return now.Sub(m.stuck) < patience
}

// observeUsers says who uses the head, and how far stopping them has come.
func (m *mover) observeUsers(s *plan.MoveState, j journal, rec api.Head, holders []holder, running []string) {
	s.Holders, s.Movable = names(holders), true
	for _, x := range holders {
		if x.Container != "" {
			running = append(running, x.ID)
		} else {
			s.Movable = false
		}
	}
	s.Users = len(holders) > 0 || len(running) > 0
	if j.Closed {
		// Whoever else is there now can only be waited for: a mount that was
		// asked for before the head closed becomes a container, or is forgotten.
		s.Users, s.Movable = len(running) > 0, true
	}
	s.Passing = m.passing(s.Users && !s.Movable)
	m.mu.Lock()
	if m.stopErr != nil {
		s.Failed = m.stopErr.Error()
	}
	s.Stopping = m.stopper != nil
	if m.stopper != nil {
		select {
		case <-m.stopper:
			s.Stopped = true
		default:
		}
	}
	m.mu.Unlock()
	switch {
	case s.Stopped && s.Users:
		s.Stopping, s.Stopped = false, false // one that began just before the head closed
	case !s.Users && j.Stopping && !s.Stopping:
		s.Stopping, s.Stopped = true, true
	}
	s.Gone = j.Closed && len(holders) == 0 && !s.Mounted
	if rec.Move.Options.Users == api.UsersMove {
		s.Checked = s.Checked && j.told(running)
	}
}

// told reports whether the target knows of the containers that are to be made
// there: all that run, and once none can begin any more, exactly those that
// were stopped.
func (j journal) told(running []string) bool {
	if j.Here {
		return true
	}
	for _, id := range running {
		if !slices.Contains(j.Told, id) {
			return false
		}
	}
	if !j.Closed || len(running) > 0 {
		return true
	}
	for _, s := range j.Stopped {
		if !slices.Contains(j.Told, s.ID) {
			return false
		}
	}
	return len(j.Told) == len(j.Stopped)
}
