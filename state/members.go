package state

import "context"

// Members are the servers of an embedded store. An external store has none
// that concern Drover. Operations may be repeated.
type Members interface {
	// List gives all members.
	List(ctx context.Context) ([]Member, error)
	// Add makes whoever will be found at the peer URL a learner: it gets
	// everything but has no vote, so that adding it endangers nothing.
	Add(ctx context.Context, peerURL string) error
	// Promote gives a learner a vote; Unavailable while it is not in sync.
	Promote(ctx context.Context, id uint64) error
	// Remove ends a membership for good.
	Remove(ctx context.Context, id uint64) error
}

// Member is one server of the embedded store.
type Member struct {
	ID      uint64
	PeerURL string
	Voter   bool
	// Ready means that it answers and, for a learner, is in sync.
	Ready bool
}

// Access is who may touch what in an embedded store. Operations may be repeated.
type Access interface {
	// Add gives a node access to its own keys.
	Add(ctx context.Context, node string) error
	// Control lets a node that was added change everything, or no longer.
	Control(ctx context.Context, node string, control bool) error
	// Remove takes all access from a node.
	Remove(ctx context.Context, node string) error
}
