// Package hub has the words of the hub, a registry with people: identities,
// rights, repositories and the rules of their branches, and what happened. It
// is the contract between its rooms (docs/design/hub.md) and knows neither
// HTTP nor SQL nor the engine.
package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

var rightNames = [...]string{"none", "read", "write", "admin"}

func (r Right) String() string {
	if r < None || r > Admin {
		return fmt.Sprintf("right %d", int(r))
	}
	return rightNames[r]
}

// MarshalText writes the right's name.
func (r Right) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the right's name.
func (r *Right) UnmarshalText(text []byte) error {
	i := slices.Index(rightNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("no right is called %.20q", text)
	}
	*r = Right(i)
	return nil
}

// What an *api.Error of kind NotFound wraps, so that each edge can say what is
// not there in its own words.
var (
	ErrRepository = errors.New("no such repository")
	ErrBlob       = errors.New("no such blob")
	ErrManifest   = errors.New("no such manifest")
	ErrUpload     = errors.New("no such upload")
	// ErrPart is a blob or manifest that a manifest names.
	ErrPart = errors.New("it names what is not in this repository")
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
	// Recall finds who a token belongs to by its id, for those who identified
	// themselves a moment ago: what was revoked since is Unauthenticated.
	Recall(ctx context.Context, id string) (Identity, error)
	// Right says what the identity may do to a repository, whether it is there or not.
	Right(ctx context.Context, who Identity, repository string) (Right, error)
}

// User is somebody who may log in, or could.
type User struct {
	Name     string    `json:"name"`
	Root     bool      `json:"root"`
	Disabled bool      `json:"disabled"` // no token of theirs counts
	Created  time.Time `json:"created"`
}

// Token is what a user logs in with; the secret itself is kept by nobody else.
type Token struct {
	ID      string     `json:"id"`
	User    string     `json:"user"`
	Label   string     `json:"label"`
	Most    Right      `json:"most"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Used    *time.Time `json:"used,omitempty"` // to the hour
}

// Namespace is the first part of repositories' names.
type Namespace struct {
	Name    string    `json:"name"`
	Owner   string    `json:"owner,omitempty"` // "" belongs to the operators
	Quota   int64     `json:"quota,omitempty"` // bytes of all its repositories; 0: no limit
	Used    int64     `json:"used"`
	Created time.Time `json:"created"`
}

// Member has a right on a namespace or a repository.
type Member struct {
	User  string `json:"user"`
	Right Right  `json:"right"`
}

// Manifest is what the hub keeps of a manifest or index.
type Manifest struct {
	Digest      digest.Digest
	Media       string
	Size        int64
	Artifact    string // artifact type, or the config's media type
	Annotations map[string]string
	Subject     digest.Digest
	Blobs       []digest.Digest // config and layers
	Manifests   []digest.Digest // of an index
	// Commit is what its record says; nil when it is none of Drover's.
	Commit *Commit
}

// Commit is a node of a repository's graph.
type Commit struct {
	ID      string
	Parents []string
	Time    time.Time
}

// Webhook is where events of a repository are sent.
type Webhook struct {
	ID         int64     `json:"id"`
	Repository string    `json:"repository"`
	URL        string    `json:"url"`
	Secret     string    `json:"-"`     // signs what is sent
	Kinds      []string  `json:"kinds"` // empty: all
	Disabled   bool      `json:"disabled"`
	Created    time.Time `json:"created"`
}

// Delivery is an event on its way to a webhook.
type Delivery struct {
	ID    int64
	Hook  Webhook
	Event Event
	Tries int
	Due   time.Time
}

// Ref is a tag of a repository.
type Ref struct {
	Name   string
	Digest digest.Digest
	Media  string // of the manifest
	Size   int64
	Time   time.Time
}

// Mirrored is a name as the storage is to have it, beside the database.
type Mirrored struct {
	Repository string
	Gone       bool // the repository was deleted: everything of it goes
	Name       string
	Digest     digest.Digest // "" for a name that goes
	// Manifests are what the name leads to, Blobs what they name and no link was written for.
	Manifests, Blobs []digest.Digest
}

// Event is one thing that happened: a line of the activity log, and what
// webhooks are sent.
type Event struct {
	ID         int64             `json:"id"` // grows
	Time       time.Time         `json:"time"`
	Kind       string            `json:"kind"` // ref.create, ref.move, ref.delete, repo.create, …
	Repository string            `json:"repository,omitempty"`
	User       string            `json:"user,omitempty"`
	Token      string            `json:"token,omitempty"` // its id
	Details    map[string]string `json:"details,omitempty"`
}
