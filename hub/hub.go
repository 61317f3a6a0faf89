// Package hub has the words of the hub, a registry with people: identities,
// rights, repositories and the rules of their branches, and what happened. It
// is the contract between its rooms (docs/design/hub.md) and knows neither
// HTTP nor SQL nor the engine.
package hub

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
)

// Grace is how long what nobody names is kept, and how long a client may count
// on a blob that it was told is there.
const Grace = 24 * time.Hour

// Right is what somebody may do; each includes those before it.
type Right int

// The rights, in order.
const (
	None  Right = iota
	Read        // list and pull
	Write       // push, delete names, create repositories in a namespace
	Admin       // rules, members, quotas, deletion
)

// Identity is who asks. The zero value is somebody who did not log in.
type Identity struct {
	User  string
	Token string // id of the token, for the activity log
	// Most is what the token allows at most.
	Most Right
	// Root may do everything: the operators of the hub.
	Root bool
}

// Repository is one of a hub's.
type Repository struct {
	Name      string     `json:"name"` // namespace/name…, as a registry has it
	Public    bool       `json:"public"`
	Forked    string     `json:"forkedFrom,omitempty"`
	Quota     int64      `json:"quota,omitempty"` // bytes; 0: that of the namespace alone
	Protected []string   `json:"protected"`       // branches, with * for any run of bytes
	Keep      *api.Keep  `json:"keep,omitempty"`  // nil: everything stays
	Created   time.Time  `json:"created"`
	Used      int64      `json:"used"` // bytes of its blobs, each counted once
	Pushed    *time.Time `json:"pushed,omitempty"`
}

// Gate knows people. Errors are *api.Error: Unauthenticated for a token that
// is wrong or ended, NotFound for what the identity may not read.
type Gate interface {
	// Identify finds who a user's name and token belong to.
	Identify(ctx context.Context, user, token string) (Identity, error)
	// Right says what the identity may do to a repository, whether it is there or not.
	Right(ctx context.Context, who Identity, repository string) (Right, error)
}

// Ref is a tag of a repository.
type Ref struct {
	Name   string
	Digest digest.Digest
	Media  string // of the manifest
	Size   int64
	Time   time.Time
}

// Event is one thing that happened: a line of the activity log, and what
// webhooks are sent.
type Event struct {
	ID         int64             `json:"id"` // grows
	Time       time.Time         `json:"time"`
	Kind       string            `json:"kind"` // push, ref.create, ref.move, ref.delete, repo.create, …
	Repository string            `json:"repository,omitempty"`
	User       string            `json:"user,omitempty"`
	Token      string            `json:"token,omitempty"` // its id
	Details    map[string]string `json:"details,omitempty"`
}
