package agent

import (
	"time"

	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/peer"
)

// Crash makes everything that the agent still does without durable effect,
// as if its process had been killed now.
func (a *Agent) Crash() {
	a.index.db.Close()
	a.refs.mu.Lock()
	defer a.refs.mu.Unlock()
	a.refs.path = "/dev/null/crashed"
}

// Leftovers is what the agent's durable memory holds of heads.
type Leftovers struct {
	Journals, Prepared, Waiting []string
	Works, Held                 []string
	Bases                       map[string][]string // volume@branch -> ids
	Refs                        map[string][]string // volume@branch -> mount ids
}

// Leftovers reads it.
func (a *Agent) Leftovers() (Leftovers, error) {
	l := Leftovers{Bases: map[string][]string{}, Refs: map[string][]string{}}
	if err := each(a.index, bucketJournal, func(k string, _ journal) { l.Journals = append(l.Journals, k) }); err != nil {
		return l, err
	}
	if err := each(a.index, bucketPrepared, func(k string, _ peer.Preparation) { l.Prepared = append(l.Prepared, k) }); err != nil {
		return l, err
	}
	if err := each(a.index, bucketWaiting, func(k string, _ time.Time) { l.Waiting = append(l.Waiting, k) }); err != nil {
		return l, err
	}
	if err := each(a.index, bucketWork, func(k string, _ workJournal) { l.Works = append(l.Works, k) }); err != nil {
		return l, err
	}
	if err := each(a.index, bucketHeld, func(k string, _ heldBack) { l.Held = append(l.Held, k) }); err != nil {
		return l, err
	}
	err := each(a.index, bucketBases, func(k string, id string) {
		for i := range k {
			if k[i] == '/' {
				l.Bases[k[:i]] = append(l.Bases[k[:i]], id)
				return
			}
		}
	})
	a.refs.mu.Lock()
	defer a.refs.mu.Unlock()
	for k, ids := range a.refs.held {
		for id := range ids {
			l.Refs[k.volume+"@"+k.branch] = append(l.Refs[k.volume+"@"+k.branch], id)
		}
	}
	return l, err
}

// Health gives alarm and waiting of each head.
func (a *Agent) Health() map[string][2]string {
	out := map[string][2]string{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.heads {
		h.mu.Lock()
		out[h.id()] = [2]string{h.alarm, h.waiting}
		h.mu.Unlock()
	}
	return out
}

// NoteEpoch reads the epoch from a note beside the data.
func NoteEpoch(text []byte) uint64 { return readNote(text).Epoch }

// CommitsOf is what a push is given of a volume.
func (a *Agent) CommitsOf(volume, pool string) exchange.Pool { return a.commitsOf(volume, pool) }
