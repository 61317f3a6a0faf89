// Package events keeps what happened on a node for people and tools that
// watch: the last ones in memory, all of them in the log. It knows nothing of
// what the events mean.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
)

// Log is a node's recent events. Its methods may be called at the same time.
type Log struct {
	node  string
	epoch int64 // tells starts of the agent apart in event ids
	now   func() time.Time
	log   *slog.Logger

	mu      sync.Mutex
	next    int64         // guarded by mu; number of the next event
	ring    []api.Event   // guarded by mu; the last ones, oldest first
	changed chan struct{} // guarded by mu; closed at the next event
	traces  []related     // guarded by mu; the last moves and the requests behind them
}

// related is a move and the trace of the request that asked for it.
type related struct{ move, trace string }

// Relate notes which request asked for a move, so that the events that follow
// it, whose data names the move, carry its trace.
func (l *Log) Relate(move, trace string) {
	if move == "" || trace == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = 256
	l.traces = append(l.traces, related{move, trace})
	if len(l.traces) > most {
		l.traces = slices.Clone(l.traces[len(l.traces)-most:])
	}
}

// traceOf is the trace of the request behind a move. The caller holds mu.
func (l *Log) traceOf(move string) string {
	for _, r := range slices.Backward(l.traces) {
		if move != "" && r.move == move {
			return r.trace
		}
	}
	return ""
}

// keep is how many events stay in memory.
const keep = 4096

// New makes an empty log.
func New(node string, log *slog.Logger, now func() time.Time) *Log {
	return &Log{node: node, epoch: now().Unix(), now: now, log: log, next: 1, changed: make(chan struct{})}
}

// Add notes an event; Node, Time and ID are filled in.
func (l *Log) Add(e api.Event) {
	if e.Level == "" {
		e.Level = "info"
	}
	l.mu.Lock()
	e.Node, e.Time = l.node, l.now()
	if e.Trace == "" {
		e.Trace = l.traceOf(e.Data["move"])
	}
	e.ID = fmt.Sprintf("%d-%d", l.epoch, l.next)
	l.next++
	l.ring = append(l.ring, e)
	if len(l.ring) > 2*keep {
		l.ring = append([]api.Event(nil), l.ring[len(l.ring)-keep:]...)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	level := map[string]slog.Level{"warning": slog.LevelWarn, "error": slog.LevelError}[e.Level]
	l.log.Log(context.Background(), level, e.Message, "event", e.Type, "object", e.Object, "trace", e.Trace)
}

// After gives the events that follow the one with that id, oldest first; all
// that are kept for "" or an id that is no longer known. more is closed when
// another one comes.
func (l *Log) After(id string) (list []api.Event, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := 0
	for i := len(l.ring) - 1; i >= 0; i-- {
		if l.ring[i].ID == id {
			from = i + 1
			break
		}
	}
	return append([]api.Event(nil), l.ring[from:]...), l.changed
}
