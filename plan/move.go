package plan

import (
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
)

// Round is one snapshot that was sent while the users ran or were stopping.
type Round struct {
	ID   string
	Sent int64 // bytes that crossed the wire
}

// MoveState is where a move stands at its source. It is made anew from the
// journal and the pool after a crash; what is not known then is done again.
type MoveState struct {
	// Failed is an error that will not pass, "" if there is none. Before the
	// hand-over it ends the move.
	Failed string
	// Checked: the target said that it can take head and users.
	Checked bool
	// Atomic and Instant are the source pool's; see storage.Info.
	Atomic, Instant bool
	Rounds          []Round
	// History are the commits that the target lacks, oldest first.
	History []string
	// Unsent is a snapshot that was taken and is not yet at the target.
	Unsent string
	// Users tells whether anybody uses the head; once it is closed, whether
	// anybody does that can be stopped. Movable: all of them are containers
	// that can be stopped. Holders names all that are there, or may be.
	Users   bool
	Movable bool
	Holders string
	// Passing: who cannot be stopped was first seen a moment ago, and may be
	// the last of a container that ends, or the first of one that begins.
	Passing bool
	Hooked  bool
	Closed  bool // new mounts are refused
	// Stopping: stopping was begun; Stopped: the engine says they have all stopped.
	Stopping, Stopped bool
	Mounted           bool   // Drover's own mount is there
	Gone              bool   // proven: no mount in any mountinfo, no open file
	Final             string // the last snapshot, taken after the proof
	FinalSent         bool
	Released          bool
}

const (
	// small is what the last delta may be: it crosses in a blink.
	small = 16 << 20
	// maxRounds bounds the live rounds of a head that changes as fast as it
	// can be sent.
	maxRounds = 12
)

// converged says that another live round would not make the last delta smaller.
func converged(rounds []Round) bool {
	n := len(rounds)
	switch {
	case n == 0:
		return false
	case n >= maxRounds, rounds[n-1].Sent <= small:
		return true
	case n < 3:
		return false
	}
	return rounds[n-1].Sent > rounds[n-2].Sent*3/4
}

// Move decides the next step of a move at its source. Every step before
// HandOver can be undone, and is when the wish is withdrawn.
func Move(m MoveState, wish api.Move, epoch uint64) []Action {
	if m.Failed != "" {
		return []Action{CancelMove{Reason: m.Failed}}
	}
	if m.FinalSent && len(m.History) == 0 {
		if !m.Released {
			return []Action{ReleaseHead{Epoch: epoch, Snapshot: m.Final}, HandOver{Epoch: epoch, Snapshot: m.Final, To: wish.To}}
		}
		return []Action{HandOver{Epoch: epoch, Snapshot: m.Final, To: wish.To}}
	}
	if m.Users && wish.Options.Users == api.UsersRefuse {
		return []Action{CancelMove{Reason: "it is used by " + m.Holders}}
	}
	if m.Users && !m.Movable && m.Passing {
		return []Action{Wait{For: m.Holders + " to be gone", Retry: 200 * time.Millisecond}}
	}
	if m.Users && !m.Movable {
		return []Action{CancelMove{Reason: "it is used by " + m.Holders + ", which Drover cannot stop"}}
	}
	if !m.Checked {
		return []Action{CheckTarget{To: wish.To, Pool: wish.Pool}}
	}
	if len(m.History) > 0 {
		return []Action{SendCommit{ID: m.History[0], Limited: !m.Closed}}
	}
	if m.Final != "" {
		return []Action{SendSnapshot{ID: m.Final}}
	}
	live := m.Instant && !(m.Stopping && m.Stopped)
	if live && m.Unsent != "" {
		return []Action{SendSnapshot{ID: m.Unsent, Limited: !m.Stopping}}
	}
	if live && !m.Stopping && !converged(m.Rounds) {
		return []Action{TakeSnapshot{Pause: !m.Atomic && m.Users}}
	}
	return settle(m)
}

// settle brings the users to an end and takes the last snapshot.
func settle(m MoveState) []Action {
	switch {
	case m.Users && !m.Hooked && !m.Stopping:
		return []Action{RunHook{}}
	case !m.Closed:
		return []Action{CloseHead{}}
	case m.Users && !m.Stopping:
		return []Action{StopUsers{}}
	case m.Stopping && !m.Stopped && m.Instant && m.Atomic:
		// Each round that goes while they stop shortens the last one.
		return []Action{TakeSnapshot{Linger: linger(m.Rounds)}}
	case m.Stopping && !m.Stopped:
		return []Action{Wait{For: "the containers to stop"}}
	case m.Holders != "":
		// Somebody may be about to use what was mounted a moment ago.
		return []Action{Wait{For: fmt.Sprintf("the last users to be gone: %s", m.Holders), Retry: 100 * time.Millisecond}}
	case m.Mounted:
		return []Action{UnmountHead{}}
	case !m.Gone:
		return []Action{Wait{For: "the proof that nobody uses it", Retry: 100 * time.Millisecond}}
	case m.Instant:
		return []Action{TakeSnapshot{Final: true}}
	}
	return []Action{SealHead{}}
}

// linger spaces the rounds out that go while the containers stop, once they
// have become too small to matter.
func linger(rounds []Round) time.Duration {
	const tiny, pause = 2 << 20, 100 * time.Millisecond
	if n := len(rounds); n > 0 && rounds[n-1].Sent < tiny {
		return pause
	}
	return 0
}
