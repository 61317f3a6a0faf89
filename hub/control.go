package hub

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
)

// What follows is what the hub's people say and are told over /api/v1.

// Self is who asks.
type Self struct {
	User string `json:"user" doc:"empty for somebody who did not log in"`
	Root bool   `json:"root" doc:"one of the hub's operators"`
	// Most is none for somebody who did not log in.
	Most  Right  `json:"most" doc:"what the token allows at most"`
	Token string `json:"token,omitempty" doc:"its id"`
}

// NewUser asks for a user.
type NewUser struct {
	Name string `json:"name"`
	Root bool   `json:"root,omitempty" doc:"an operator of the hub"`
}

// ChangeUser says what a user is to be; what is left out stays.
type ChangeUser struct {
	Root     *bool `json:"root,omitempty"`
	Disabled *bool `json:"disabled,omitempty"`
}

// NewToken asks for a token.
type NewToken struct {
	Label   string     `json:"label,omitempty"`
	Most    Right      `json:"most" doc:"read, write or admin"`
	Expires *time.Time `json:"expires,omitempty" doc:"left out: it does not end"`
}

// TokenSecret is a token that was just made. The secret is shown this once.
type TokenSecret struct {
	Token
	Secret string `json:"secret"`
}

// NewNamespace asks for a namespace.
type NewNamespace struct {
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty" doc:"left out: it belongs to the operators"`
	Quota int64  `json:"quota,omitempty" doc:"bytes of all its repositories; 0: no limit"`
}

// ChangeNamespace says what a namespace is to be; what is left out stays.
type ChangeNamespace struct {
	Owner *string `json:"owner,omitempty"`
	Quota *int64  `json:"quota,omitempty"`
}

// SetRight gives a user a right; none takes it away.
type SetRight struct {
	Right Right `json:"right" doc:"none, read, write or admin"`
}

// NewRepository asks for a repository.
type NewRepository struct {
	Name string `json:"name" doc:"namespace/name…"`
	ChangeRepository
}

// ChangeRepository says what people decide about a repository; what is left out stays.
type ChangeRepository struct {
	Public    *bool     `json:"public,omitempty" doc:"everybody may read it"`
	Quota     *int64    `json:"quota,omitempty" doc:"bytes; 0: that of the namespace alone"`
	Protected *[]string `json:"protected,omitempty" doc:"branches that only move forward, with * for any run of bytes"`
	Keep      *api.Keep `json:"keep,omitempty" doc:"which commits stay that no branch or tag reaches; empty: all"`
}

// Apply changes a repository by what is said.
func (c ChangeRepository) Apply(r *Repository) {
	if c.Public != nil {
		r.Public = *c.Public
	}
	if c.Quota != nil {
		r.Quota = *c.Quota
	}
	if c.Protected != nil {
		r.Protected = slices.Clone(*c.Protected)
	}
	if c.Keep != nil {
		r.Keep = c.Keep
		if *c.Keep == (api.Keep{}) {
			r.Keep = nil
		}
	}
}

// NewFork asks for a repository with all that another has.
type NewFork struct {
	Name   string `json:"name" doc:"of the new one: namespace/name…"`
	Public bool   `json:"public,omitempty"`
}

// Name is a branch or tag of a repository.
type Name struct {
	Name   string        `json:"name"`
	Commit string        `json:"commit,omitempty"`
	Digest digest.Digest `json:"digest"`
	Time   time.Time     `json:"time" doc:"when it was set"`
	Bytes  int64         `json:"bytes" doc:"of the blobs that it needs, as they are stored"`
	// Protected is the rule that lets it only move forward.
	Protected string `json:"protected,omitempty" doc:"the rule that lets it only move forward"`
}

// StoredCommit is a commit that a repository keeps under its own name.
type StoredCommit struct {
	ID      string        `json:"id"`
	Parents []string      `json:"parents"`
	Time    time.Time     `json:"time" doc:"when it was made"`
	Pushed  time.Time     `json:"pushed"`
	Digest  digest.Digest `json:"digest" doc:"of its manifest"`
	Bytes   int64         `json:"bytes" doc:"of the blobs that it needs, as they are stored"`
}

// Content is what a repository's names lead to.
type Content struct {
	Branches []Name         `json:"branches"`
	Tags     []Name         `json:"tags"`
	Commits  []StoredCommit `json:"commits"`
	// Others are tags that are none of Drover's: of images, say.
	Others []Name `json:"others"`
}

// RepositoryDetail is a repository with what the asker may do.
type RepositoryDetail struct {
	Repository
	Right Right `json:"right" doc:"what you may do"`
}

// EventKinds are those of repositories, which a webhook can be told of.
var EventKinds = []string{"ref.create", "ref.move", "ref.delete", "repo.create", "repo.change", "repo.member", "webhook.create", "webhook.change", "webhook.delete"}

// PingKind is what a test of a webhook sends.
const PingKind = "ping"

// NewWebhook asks that events of a repository are sent.
type NewWebhook struct {
	URL    string   `json:"url"`
	Secret string   `json:"secret,omitempty" doc:"whsec_ and base64 of 24 to 64 bytes; left out: one is made"`
	Kinds  []string `json:"kinds,omitempty" doc:"left out: all"`
}

// ChangeWebhook says what a webhook is to be.
type ChangeWebhook struct {
	Disabled bool `json:"disabled"`
}

// WebhookSecret is a webhook that was just made. The secret is shown this once.
type WebhookSecret struct {
	Webhook
	Secret string `json:"secret"`
}

// Letter is an event that is to be sent to a webhook, or was given up.
type Letter struct {
	ID      int64      `json:"id"`
	Event   int64      `json:"event" doc:"its id in the activity log"`
	Kind    string     `json:"kind"`
	Tries   int        `json:"tries"`
	Due     *time.Time `json:"due,omitempty" doc:"when it is tried again"`
	GivenUp *time.Time `json:"givenUp,omitempty" doc:"when it was given up"`
	Said    string     `json:"said,omitempty" doc:"why the last try failed"`
}

// WebhookDetail is a webhook with what did not arrive yet.
type WebhookDetail struct {
	Webhook
	Letters []Letter `json:"letters" doc:"what is on its way or was given up, the newest first"`
}

// Attempt is how a test of a webhook went.
type Attempt struct {
	Status int           `json:"status,omitempty" doc:"what the receiver answered"`
	Took   time.Duration `json:"took" doc:"nanoseconds"`
	Error  string        `json:"error,omitempty"`
}

// Usage is how much a hub holds.
type Usage struct {
	Users        int   `json:"users"`
	Repositories int   `json:"repositories"`
	Blobs        int   `json:"blobs" doc:"each counted once for all repositories, manifests included"`
	Bytes        int64 `json:"bytes" doc:"of them: what the storage holds"`
	Uploads      int   `json:"uploads" doc:"on their way"`
	Unwritten    int   `json:"unwritten" doc:"names that the storage does not have yet as they are"`
	Waiting      int   `json:"waiting" doc:"deliveries to webhooks that are on their way"`
	GivenUp      int   `json:"givenUp" doc:"deliveries to webhooks that were given up"`
}

// SweepReport is what the last sweep did.
type SweepReport struct {
	Begun     time.Time  `json:"begun"`
	Ended     *time.Time `json:"ended,omitempty" doc:"left out: it is on its way, or broke off"`
	Commits   int        `json:"commits" doc:"names that retention removed"`
	Manifests int        `json:"manifests" doc:"taken out of repositories"`
	Blobs     int        `json:"blobs" doc:"taken out of repositories"`
	Removed   int        `json:"removed" doc:"whose bytes were removed"`
	Bytes     int64      `json:"bytes" doc:"that were removed"`
	Uploads   int        `json:"uploads" doc:"that were left, and were ended"`
}

// Status is how a hub is.
type Status struct {
	Version string          `json:"version"`
	Usage   Usage           `json:"usage"`
	Sweep   *SweepReport    `json:"sweep,omitempty" doc:"the last one"`
	Damaged []digest.Digest `json:"damaged" doc:"blobs whose bytes are not what they should be, or are gone; pushing them again heals them"`
}
