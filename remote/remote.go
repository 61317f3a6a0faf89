// Package remote is the contract between Drover and the places outside the
// cluster that keep commits: blobs and manifests by digest, and names that
// point to manifests, as docs/format/remote.md lays them out. It knows neither
// volumes nor pools. remote/layout, remote/s3 and remote/registry keep it;
// remote/remotetest is the suite that each of them passes.
//
// # Rules for every method
//
//   - What a successful call wrote is there after a loss of power at the remote,
//     as far as the remote itself promises that.
//   - Everything read by digest is checked against it; a mismatch is Damaged and
//     names the digest.
//   - Repeating a call that has succeeded succeeds.
//   - Errors are *api.Error: NotFound only when the remote has said so,
//     Unauthenticated and Denied for missing or insufficient rights, Unavailable when
//     it does not answer, Exhausted when it is full or limits its rate,
//     ReadOnly when it refuses writes, Conflict when a name is not where it was expected.
//     Passing failures are tried again inside, within the context's time.
//   - A call whose context has ended fails: Canceled, or Unavailable when its
//     time ran out. What it had begun is not seen by anybody.
//   - A digest that is not SHA-256 and a name that CheckName refuses are Invalid.
//   - Secrets are in no error, log line or event.
package remote

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Info describes a remote.
type Info struct {
	Kind string // "registry", "s3", "directory", "hub"
	URL  string // as the user wrote it, without secrets
	// Atomic: SetRef changes a name only if it is where it was expected, whoever
	// else writes. Otherwise two writers at once are found out afterwards at best.
	// Where that has to be tried out it is false before Check for writing, or the
	// first SetRef, has done so.
	Atomic bool
	// Collects: blobs and manifests that no name reaches go by the remote's own
	// means; Delete cannot be used.
	Collects bool
	// MaxManifest is the most bytes a manifest may have.
	MaxManifest int64
}

// Ref is a name and what it points to.
type Ref struct {
	Name string // "c-…", "b-…", "t-…", "k-…"
	Desc ocispec.Descriptor
	// Time is when the name was last changed; zero where the remote does not say.
	Time time.Time
}

// Blob is an object with its size, for lists.
type Blob struct {
	Digest digest.Digest
	Size   int64
	Time   time.Time
}

// Content opens the bytes of a blob from their beginning, as often as needed.
type Content func() (io.ReadCloser, error)

// Store is one repository of a remote.
type Store interface {
	// Info asks nothing of the remote.
	Info() Info
	// Check looks whether the remote answers and knows the caller; write says
	// whether the right to write is needed too.
	Check(ctx context.Context, write bool) error

	// Stat gives a blob's size; NotFound when it is not there.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	// Get opens a blob; the bytes are checked while they are read, and the last
	// Read fails when they are not what d says.
	Get(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	// GetRange opens length bytes from offset on, unchecked: the caller checks
	// what it takes from them. Of a blob that ends earlier there are fewer.
	GetRange(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error)
	// Put writes a blob; one that is there already is success without sending.
	// sent, if not nil, is told of bytes that crossed the wire.
	Put(ctx context.Context, desc ocispec.Descriptor, content Content, sent func(int64)) error

	// Manifest gives a manifest or index by digest, checked.
	Manifest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, []byte, error)
	// PutManifest writes one without a name. Everything it names is there already.
	// Where a remote keeps no manifest without a name, it is kept back until
	// SetRef names it.
	PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte) error

	// Ref looks a name up; NotFound when there is none.
	Ref(ctx context.Context, name string) (Ref, error)
	// Refs lists names that begin with prefix, in order. Desc may have no more
	// than a zero Digest where looking each one up would cost a call.
	Refs(ctx context.Context, prefix string) ([]Ref, error)
	// SetRef points a name to a manifest that was put; NotFound when it was not. expect is where it
	// must point now: "" for not at all. Otherwise Conflict. A name that points to desc
	// already is success. See Info.Atomic.
	SetRef(ctx context.Context, name string, desc ocispec.Descriptor, expect digest.Digest) error
	// DeleteRef removes a name that points to expect; gone already is success.
	DeleteRef(ctx context.Context, name string, expect digest.Digest) error

	// Close lets go of connections.
	Close() error
}

// Grace is how long what nobody names is kept, and how long an upload counts
// that has not said that it ended.
const Grace = 24 * time.Hour

// Collector is the capability to remove what no name reaches, for remotes
// that do not collect by themselves. Uploads and collections keep apart: each
// says durably that it begins and then looks for the other, so that of two at
// once at least one sees the other. A collection gives way, an upload waits.
type Collector interface {
	// Lease says durably that an upload is on its way, until it is released or
	// older than Grace. It waits while a collection is on its way.
	Lease(ctx context.Context) (release func(context.Context) error, err error)
	// Leases gives the times of the leases there are.
	Leases(ctx context.Context) ([]time.Time, error)
	// Collect says durably that a collection is on its way; InUse while there is
	// a lease younger than Grace, or another collection. It must be taken before
	// any name is read.
	Collect(ctx context.Context) (Collection, error)
	// Blobs lists all blobs and manifests, in no order.
	Blobs(ctx context.Context, each func(Blob) error) error
	// Delete removes a blob or manifest; gone already is success.
	Delete(ctx context.Context, d digest.Digest) error
}

// Collection is one that is on its way. It is renewed at least every
// RenewCollect, otherwise uploads take it for left behind.
type Collection struct {
	Renew func(context.Context) error
	End   func(context.Context) error
}
