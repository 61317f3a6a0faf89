package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/transfer"
)

func handOver(node string, rec api.Head, snapshot string) ledger.HandOver {
	return ledger.HandOver{Node: node, Epoch: rec.Epoch, Move: rec.Move.ID, Snapshot: snapshot}
}

// meter measures a rate over the last seconds.
type meter struct {
	at    time.Time
	bytes int64
	rate  float64
}

// add takes a running total and gives bytes a second, smoothed.
func (r *meter) add(total int64, now time.Time) float64 {
	if r.at.IsZero() || total < r.bytes {
		r.at, r.bytes = now, total
		return r.rate
	}
	const window = time.Second
	d := now.Sub(r.at)
	if d < window/2 {
		return r.rate
	}
	current := float64(total-r.bytes) / d.Seconds()
	if r.rate == 0 {
		r.rate = current
	}
	r.rate += (current - r.rate) / 2
	r.at, r.bytes = now, total
	return r.rate
}

func (m *mover) phase(p api.MovePhase) {
	m.mu.Lock()
	m.progress.Phase = p
	m.mu.Unlock()
	m.h.mu.Lock()
	m.h.notify()
	m.h.mu.Unlock()
}

func (m *mover) nextRound(j journal) {
	m.mu.Lock()
	if !j.Stopping {
		m.progress.Phase = api.MoveCopying
	}
	m.progress.Round = len(m.rounds) + 1
	m.mu.Unlock()
}

// expect notes how much a round would be that carries everything.
func (m *mover) expect(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = bytes
}

// stoppedNow notes the moment from which nobody uses the head.
func (m *mover) stoppedNow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.progress.Stopped.IsZero() {
		m.progress.Stopped = m.h.a.deps.Now()
	}
}

// watch is told by a running transfer how it goes.
func (m *mover) watch(p transfer.Progress) {
	now := m.h.a.deps.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.RoundSent, m.progress.Waiting = p.Sent, p.Waiting
	if p.Route.Base == "" && p.Route.Format != "" {
		m.progress.RoundSize = m.size
	}
	m.progress.Rate = m.rate.add(m.progress.Sent+p.Sent, now)
	m.progress.Remaining = 0
	if left := m.progress.RoundSize - p.Sent; left > 0 && m.progress.Rate > 0 {
		m.progress.Remaining = time.Duration(float64(left) / m.progress.Rate * float64(time.Second))
	}
}

// counted adds a transfer that is over to the totals.
func (m *mover) counted(r transfer.Result, final bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Sent += r.Sent
	m.progress.Resent += r.Resent
	m.progress.RoundSent, m.progress.RoundSize = 0, 0
	if r.Took > 0 {
		m.progress.Rounds = append(slices.Clone(m.progress.Rounds), api.MoveRound{Sent: r.Sent, Took: r.Took, Format: r.Route.Format, Base: r.Route.Base, Final: final})
	}
}

// ended closes the progress of a move that did not take place.
func (m *mover) ended(e *api.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.progress.ID == "" || m.progress.Phase == api.MoveFailed {
		return
	}
	m.progress.Phase, m.progress.Err, m.progress.Waiting = api.MoveFailed, e, ""
	m.h.a.keepMove(m.progress)
}

// finished closes the progress of a move whose target holds the head, and
// keeps it for those who ask later.
func (m *mover) finished() {
	m.mu.Lock()
	if m.progress.Phase != api.MoveActivating {
		m.mu.Unlock()
		return
	}
	m.progress.Phase, m.progress.Waiting = api.MoveDone, ""
	if !m.progress.Stopped.IsZero() {
		m.progress.Downtime = m.h.a.deps.Now().Sub(m.progress.Stopped)
	}
	p := m.progress
	m.mu.Unlock()
	m.h.a.keepMove(p)
	v := m.h.volume()
	m.h.a.event("volume.moved", "info", v, m.h.key.branch,
		fmt.Sprintf("volume %s moved from %s to %s: %d bytes in %d rounds, away for %d ms", v.Name, p.From, p.To, p.Sent, p.Round, p.Downtime.Milliseconds()),
		map[string]string{"move": p.ID})
}

// Progress tells how the head's last move goes, if there was one.
func (m *mover) Progress() (api.MoveProgress, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.progress, m.progress.ID != ""
}

// keptMoves is how many finished moves a node remembers for those who ask.
const keptMoves = 256

func (a *Agent) keepMove(p api.MoveProgress) {
	a.moves.mu.Lock()
	defer a.moves.mu.Unlock()
	if a.moves.byID == nil {
		a.moves.byID = map[string]api.MoveProgress{}
	}
	if _, there := a.moves.byID[p.ID]; !there {
		a.moves.order = append(a.moves.order, p.ID)
	}
	a.moves.byID[p.ID] = p
	if len(a.moves.order) > keptMoves {
		delete(a.moves.byID, a.moves.order[0])
		a.moves.order = a.moves.order[1:]
	}
}

// Move tells how a move goes or went whose source this node is.
func (a *Agent) Move(id string) (api.MoveProgress, error) {
	a.mu.Lock()
	for _, h := range a.heads {
		if p, ok := h.mover.Progress(); ok && p.ID == id {
			a.mu.Unlock()
			return p, nil
		}
	}
	a.mu.Unlock()
	a.moves.mu.Lock()
	defer a.moves.mu.Unlock()
	if p, ok := a.moves.byID[id]; ok {
		return p, nil
	}
	return api.MoveProgress{}, &api.Error{Kind: api.NotFound, Op: "look up move", Object: id, Reason: a.cfg.Node + " does not know it: it began elsewhere, or before the agent was restarted", Next: "drover volume inspect shows where the volume is"}
}
