package agent

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/storage"
)

// head is the agent's own side of one branch of one volume: one goroutine
// that looks, asks package plan, and acts.
type head struct {
	a    *Agent
	key  headKey
	wake chan struct{}
	gone chan struct{}
	once sync.Once
	// after ends when an earlier head of the same key has finished; done when
	// this one has.
	after, done chan struct{}
	mover       mover // used by the head's goroutine only, except where it says otherwise

	expired    time.Time       // of the head's goroutine: when deleting the branch was last tried
	complained map[string]bool // of the head's goroutine: what events said about containers

	// mounting is held while a mount or a reference is added, and while the
	// head is closed to them, so that no user slips in unseen.
	mounting gate

	// acting is held while the head's goroutine looks and acts, and by who must
	// not be disturbed by it.
	acting gate

	mu      sync.Mutex
	record  api.Volume         // guarded by mu
	fresh   bool               // guarded by mu; the record was read from the store since the start
	changed chan struct{}      // guarded by mu; closed when anything here changes
	alarm   string             // guarded by mu; what is wrong, for people
	waiting string             // guarded by mu; what is waited for
	busy    context.CancelFunc // guarded by mu; ends what is done for the wish busyMove
	wish    string             // guarded by mu; id of the move that busy works for

	log        []api.RefLogEntry  // guarded by mu; the reflog of logEpoch
	logEpoch   uint64             // guarded by mu
	outcomes   map[string]outcome // guarded by mu; of works that are through, until they are asked for
	workFailed string             // guarded by mu; why the work in progress cannot go on
	workErr    error              // guarded by mu; the same as an error
}

// gate is a mutex that may be held across slow calls: a simulated clock goes
// on while somebody waits for a channel, and stands still for a sync.Mutex.
type gate chan struct{}

func (g gate) Lock()   { g <- struct{}{} }
func (g gate) Unlock() { <-g }

func newHead(a *Agent, key headKey) *head {
	h := &head{
		a: a, key: key, mounting: make(gate, 1), acting: make(gate, 1), outcomes: map[string]outcome{}, wake: make(chan struct{}, 1), gone: make(chan struct{}),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	h.mover.h = h
	return h
}

func (h *head) id() string { return h.key.volume + "@" + h.key.branch }

func (h *head) storageKey() storage.HeadKey {
	return storage.HeadKey{Volume: h.key.volume, Branch: h.key.branch}
}

// mountpoint is where the head is mounted for its users: fixed by its id.
func (h *head) mountpoint() string {
	return filepath.Join(h.a.cfg.DataDir, "mounts", h.key.volume, strings.ReplaceAll(h.key.branch, "/", "%2F"))
}

// kick lets the head look again soon.
func (h *head) kick() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *head) end() { h.once.Do(func() { close(h.gone) }) }

func (h *head) ended() bool {
	select {
	case <-h.gone:
		return true
	default:
		return false
	}
}

// setRecord takes a record unless a later one is known: answers of the ledger
// overtake the watch. What is being done for a wish that was withdrawn ends.
func (h *head) setRecord(v api.Volume, fresh bool) {
	h.mu.Lock()
	if h.fresh && v.Version < h.record.Version {
		h.mu.Unlock()
		return
	}
	h.record = v
	h.fresh = h.fresh || fresh
	m := v.Heads[h.key.branch].Move
	if h.busy != nil && (m == nil || m.ID != h.wish) {
		h.busy()
	}
	h.notify()
	h.mu.Unlock()
	h.kick()
}

// notify is called with mu held.
func (h *head) notify() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *head) volume() api.Volume {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record
}

// state gives the record and a channel that closes at the next change.
func (h *head) state() (v api.Volume, fresh bool, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record, h.fresh, h.changed
}

// cares reports whether a change of some container can matter to the head.
func (h *head) cares() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.record.Heads[h.key.branch]
	return r.Move != nil || h.alarm != "" || h.waiting != "" || len(r.Away) > 0
}

func (h *head) run(ctx context.Context, done chan struct{}) {
	defer close(done)
	// Containers that failed for the volume while no agent ran, at the boot of
	// the host above all, wait for it.
	if err := put(h.a.index, bucketWaiting, h.id(), h.a.deps.Now()); err != nil {
		h.a.deps.Log.Error("cannot look for containers that wait", "error", err)
	}
	if h.after != nil {
		select {
		case <-ctx.Done():
			return
		case <-h.after:
		}
	}
	const firstPause, maxPause = 200 * time.Millisecond, 15 * time.Second
	pause := firstPause
	h.kick()
	for {
		var again <-chan time.Time
		h.acting.Lock()
		retry, err := h.look(ctx)
		h.acting.Unlock()
		switch {
		case err != nil:
			if ctx.Err() == nil {
				h.a.deps.Log.Warn("will try again", "volume", h.volume().Name, "branch", h.key.branch, "in", pause, "error", err)
				h.setWaiting("a further try, after: " + err.Error())
			}
			again = time.After(pause)
			pause = min(2*pause, maxPause)
		default:
			pause = firstPause
			if retry > 0 {
				again = time.After(retry)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-h.gone:
			return
		case <-h.wake:
		case <-again:
		}
	}
}

// maxSteps bounds how often a head acts before others get a turn at the log.
const maxSteps = 200

// look observes, plans and acts until nothing remains to be done, and says
// when to look again.
func (h *head) look(ctx context.Context) (time.Duration, error) {
	for range maxSteps {
		select {
		case <-h.gone:
			return 0, nil
		default:
		}
		o, err := h.observe(ctx)
		if err != nil {
			return 0, err
		}
		actions := plan.Next(o)
		progressed := false
		later := time.Duration(0)
		for _, action := range actions {
			switch a := action.(type) {
			case plan.Wait:
				h.setWaiting(a.For)
				h.setAlarm("")
				return a.Retry, nil
			case plan.Later:
				if later == 0 || a.After < later {
					later = a.After
				}
				continue
			case plan.ExpireBranch:
				h.expire(o.Volume)
				if later == 0 {
					later = expireAgain
				}
				continue
			case plan.Alarm:
				h.setWaiting("")
				h.setAlarm(a.Reason)
				return time.Minute, nil
			}
			if h.ended() {
				return 0, nil
			}
			err := h.act(ctx, o, action)
			progressed = true
			if errors.Is(err, errLookAgain) {
				break
			}
			if err != nil {
				return 0, err
			}
		}
		if !progressed {
			h.setWaiting("")
			h.setAlarm("")
			if _, there := o.Volume.Heads[h.key.branch]; !there && o.Fresh && len(o.Copies) == 0 {
				h.a.forgetHead(h)
				return 0, nil
			}
			again, err := h.stillWaiting(o.Volume.Heads[h.key.branch], o.Fresh)
			if later > 0 && (again == 0 || later < again) {
				again = later
			}
			return again, err
		}
	}
	return time.Second, nil
}

func (h *head) setWaiting(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting != s {
		h.waiting = s
		h.notify()
	}
}

func (h *head) setAlarm(s string) {
	h.mu.Lock()
	before, v := h.alarm, h.record
	h.alarm = s
	if before != s {
		h.notify()
	}
	h.mu.Unlock()
	if s != "" && s != before {
		h.a.event("volume.alarm", "error", v, h.key.branch, "volume "+v.Name+": "+s, nil)
	}
}

// note is what is written beside the data, so that the pool remembers.
type note struct {
	Format   int        `json:"format"`
	Cluster  string     `json:"cluster"`
	Branch   string     `json:"branch"`
	Epoch    uint64     `json:"epoch"`
	Released string     `json:"released,omitempty"` // id of the move for which this owner let go
	Volume   api.Volume `json:"volume"`             // the record when the note was written
	RefLog   []byte     `json:"reflog,omitempty"`   // moves of the branch's tip; see repo.PackRefLog
}

const noteFormat = 1

// maxNote is below what backends take.
const maxNote = 60 << 10

// makeNote makes a note that fits: where a record is large, what the pools of
// other heads remember, and what is known of remotes, is left out first.
func (h *head) makeNote(v api.Volume, epoch uint64, released string, reflog []byte) ([]byte, error) {
	n := note{Format: noteFormat, Cluster: h.a.cfg.Cluster, Branch: h.key.branch, Epoch: epoch, Released: released, Volume: v, RefLog: reflog}
	for _, less := range []func(){
		func() { n.Volume.Heads = map[string]api.Head{h.key.branch: v.Heads[h.key.branch]} },
		func() { n.Volume.Tracking, n.Volume.Dropped = nil, nil },
		func() { n.Volume.Schedules, n.Volume.Remotes = nil, nil },
		func() { n.Volume.Tags = nil },
		func() { n.RefLog = nil },
	} {
		text, err := json.Marshal(n)
		if err != nil || len(text) <= maxNote {
			return text, err
		}
		less()
	}
	return json.Marshal(n)
}

// readNote reads a note; a head without one that can be read is of epoch 0.
func readNote(text []byte) note {
	var n note
	if json.Unmarshal(text, &n) != nil || n.Format != noteFormat {
		return note{}
	}
	return n
}

// stale reports whether the pool should remember something newer.
func (n note) stale(v api.Volume) bool {
	if len(n.Volume.Labels) == 0 && len(v.Labels) == 0 {
		n.Volume.Labels = v.Labels // absent and empty are the same
	}
	was, err1 := json.Marshal([]any{n.Volume.Name, n.Volume.Labels, n.Volume.Size, n.Volume.Deleted, n.Volume.Branch})
	is, err2 := json.Marshal([]any{v.Name, v.Labels, v.Size, v.Deleted, v.Branch})
	return err1 != nil || err2 != nil || string(was) != string(is)
}
