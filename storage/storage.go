// Package storage is the contract between Drover and the places that keep
// data. A Backend manages one pool on one node. It knows volumes only as
// opaque ids, and nothing of clusters, owners or containers.
//
// # Words
//
// A head is a writable directory tree. A snapshot is an immutable copy of a
// head at one moment. A snapshot's ID is Drover's name for the content and is
// the same on every pool that holds a copy; its Lineage is the file system's
// name for the physical copy (btrfs: received UUID or own UUID; ZFS: guid)
// and is shared exactly by copies that native streams made of each other.
//
// # Life cycle
//
//	head:      CreateHead -> Mount <-> Unmount -> DestroyHead
//	snapshot:  Snapshot | Receive+Commit -> (base of heads and streams) -> DestroySnapshot
//
// A head may be made empty or as a copy of a snapshot. Destroying a snapshot
// never harms heads or snapshots made from it, and destroying a head never
// harms its snapshots.
//
// # Rules for every method
//
//   - Idempotence: repeating a call that has succeeded succeeds, and repeating
//     one that was interrupted, by a crash at any instant too, finishes it.
//     Nothing half-made is ever listed: it is finished, or removed by Recover.
//   - Durability: what a successful call made is there after a power loss, and
//     so is what it found made (or gone, or answers Exists to): the call that made
//     it may have been killed before it was durable.
//   - Absence: NotFound is returned only when the backend has looked and the
//     object is not there. A pool that cannot be read gives Unavailable.
//   - Concurrency: all methods may be called at the same time; calls on one
//     volume are ordered by the backend where they exclude each other.
//   - Errors are *api.Error: Exhausted when the pool is full, ReadOnly when it
//     refuses writes, Unavailable when it is gone, Damaged for a stream or a
//     store that is not what it should be, InUse for a head that is mounted
//     or open, Invalid for arguments. Everything else is Internal.
//   - Cancelling a context leaves the pool as a crash would.
//
// Everything beyond Backend is optional, found by As: NativeStreams, Estimator,
// Differ, Sizer, Sealer, Grower. Portable streams work on every backend by way
// of directories (package tree), so none needs a capability for them.
package storage

import (
	"context"
	"io"
	"time"

	"github.com/drover-data/drover/api"
)

// HeadKey names a head on a pool.
type HeadKey struct {
	Volume string // volume id
	Branch string
}

// String is "volume@branch".
func (k HeadKey) String() string { return k.Volume + "@" + k.Branch }

// Info describes a pool.
type Info struct {
	Kind     string // "btrfs", "zfs", "dir", "memory"
	Source   string // what it lies on, as the user would name it
	State    api.PoolState
	Reason   string // why State is not ready, with the next step
	Capacity int64  // bytes
	Used     int64  // bytes
	Free     int64  // bytes that can still be promised: below the watermark
	// HardSizes: writes beyond a head's size fail. Otherwise sizes are
	// measured and reported only.
	HardSizes bool
	// Atomic: a snapshot is of one instant whatever writes meanwhile.
	// Otherwise the caller pauses the head's users around Snapshot.
	Atomic bool
	// Instant: the cost of a snapshot does not grow with the data. Where it
	// does, a mover would rather Seal than Snapshot.
	Instant bool
	// Fidelity is what the pool can keep.
	Fidelity Fidelity
}

// HeadSpec is what a head should be.
type HeadSpec struct {
	Key  HeadKey
	Size int64 // bytes; 0 is no limit
	// From is the ID of the snapshot to copy; empty begins empty. An empty
	// head is truly empty: no lost+found or the like. FromVolume is the id of
	// the volume whose snapshot it is; empty: the head's own.
	From       string
	FromVolume string
	// Note is kept durably beside the head: see Head.Note.
	Note []byte
}

// Source is the id of the volume whose snapshot From is.
func (s HeadSpec) Source() string {
	if s.FromVolume != "" {
		return s.FromVolume
	}
	return s.Key.Volume
}

// Head is a head as it is on the pool.
type Head struct {
	Key     HeadKey
	Size    int64  // limit in bytes; 0 is none
	Used    int64  // bytes it alone takes or, where that is unknown, refers to; -1 unknown
	Dir     string // directory with its data, valid while the pool is there; for Drover's own eyes
	From    string // ID of the snapshot it began as, "" if empty or unknown
	Created time.Time
	// Note is the caller's own, written durably beside the data, atomically
	// replaced by SetNote: the pool's memory of epoch and volume record
	// from which a lost state store is recovered. At most 64 KiB.
	Note []byte
	// Nested lists paths inside the head that a snapshot would silently leave
	// out (btrfs subvolumes made by a user, file systems mounted inside).
	Nested []string
}

// Snapshot is a snapshot as it is on the pool.
type Snapshot struct {
	ID      string // Drover's name of the content
	Volume  string // volume id
	Lineage string // physical identity; "" where there is none
	// Order tells snapshots of one lineage apart in time on this pool only.
	Order uint64
	Dir   string // directory with the content, read-only
	// Beside is a directory that belongs to the snapshot but not to its
	// content and travels with native streams: what a store of less fidelity
	// could not keep is written there. "" when there is none.
	Beside  string
	Created time.Time
	Used    int64 // bytes it alone takes; -1 unknown
	Note    []byte
}

// Backend is one pool.
type Backend interface {
	// Info looks at the pool now. A pool that is gone is described, not an error.
	Info(ctx context.Context) (Info, error)
	// Recover is called once before anything else, after a start of the
	// process: it removes what interrupted calls left, except partial
	// receives that can go on, and gives the pool's whole content.
	Recover(ctx context.Context) (Content, error)

	// CreateHead makes a head. An existing one with the same key and From is
	// returned as it is; with another From it is Exists.
	CreateHead(ctx context.Context, spec HeadSpec) (Head, error)
	// Head looks one up.
	Head(ctx context.Context, key HeadKey) (Head, error)
	// Heads lists all, in no order.
	Heads(ctx context.Context) ([]Head, error)
	// SetNote replaces a head's note, durably and atomically.
	SetNote(ctx context.Context, key HeadKey, note []byte) error
	// DestroyHead removes a head. InUse while it is mounted by Mount.
	// Gone already is success. The space may come back later.
	DestroyHead(ctx context.Context, key HeadKey) error

	// Mount makes the head usable at target, an existing empty directory, for
	// reading and writing. Mounted there already is success.
	Mount(ctx context.Context, key HeadKey, target string) error
	// Unmount undoes Mount; not mounted is success. InUse when the kernel
	// says busy: never a lazy unmount, which would only hide the users.
	Unmount(ctx context.Context, key HeadKey, target string) error
	// Identity is how the kernel names the head in mountinfo and stat, so that
	// its users can be found whatever path they came by.
	Identity(ctx context.Context, key HeadKey) (Identity, error)

	// Snapshot makes a snapshot of a head. The same ID again returns what is
	// there. When Info.Atomic is false the caller has stopped or paused the
	// head's users. A nested subvolume or mount that would be left out is
	// Unsupported and named.
	Snapshot(ctx context.Context, key HeadKey, id string, note []byte) (Snapshot, error)
	// Snapshots lists a volume's, oldest first; volume "" lists all.
	Snapshots(ctx context.Context, volume string) ([]Snapshot, error)
	// DestroySnapshot removes one; gone already is success. It also drops what
	// had arrived of one that is not complete and that nobody is filling now.
	DestroySnapshot(ctx context.Context, volume, id string) error

	// Stage makes a writable tree that becomes the snapshot spec.ID on
	// Commit: how portable streams arrive. With a Base it begins as a copy of
	// that snapshot. Calling it again with the same spec after an interruption
	// gives the same tree as far as it had come. Exists when the snapshot is
	// there already, InUse while another handle fills it.
	Stage(ctx context.Context, spec ReceiveSpec) (Stage, error)

	// Close lets go of the pool; heads that are mounted stay mounted.
	Close() error
}

// Content is what a pool holds.
type Content struct {
	Heads     []Head
	Snapshots []Snapshot
	// Strange lists things in the pool's own place that the backend did not
	// make. They are reported, never touched.
	Strange []string
	// Partial lists what had begun to arrive and can go on.
	Partial []ReceiveSpec
}

// Identity is how the kernel names a head.
type Identity struct {
	// Devices are the st_dev values that files of the head have, when no
	// other data has them; empty when they are shared with other data.
	Devices []uint64
	// MountDevice (major:minor as in mountinfo's third field) and Root (its
	// fourth field, a path inside that file system): a mount whose device
	// matches and whose root is Root or below shows the head.
	MountDevice string
	Root        string
}

// ReceiveSpec says what is to arrive.
type ReceiveSpec struct {
	Volume string // volume id
	ID     string // snapshot to make
	Base   string // ID of a snapshot that is there; "" for a full copy
	Size   int64  // hint in bytes for checking space before it is taken; 0 unknown
	// Stream identifies what the bytes of the stream depend on. A partial
	// receive that was begun under another identity is discarded, not gone on with.
	Stream string
	Note   []byte
}

// Stage is a tree being filled.
type Stage interface {
	// Dir is the directory to fill with content; Beside the one that becomes
	// Snapshot.Beside.
	Dir() string
	Beside() string
	// Mark durably keeps what was written so far, together with a note of the
	// caller; Marked gives the last note back after an interruption. What was
	// written after the last mark may be there wholly, partly or not at all.
	Mark(ctx context.Context, note []byte) error
	Marked() []byte
	// Commit turns the tree into the snapshot, durably.
	Commit(ctx context.Context) (Snapshot, error)
	// Abort removes it.
	Abort(ctx context.Context) error
	// Close lets go without removing, so that a later Stage goes on.
	Close() error
}

// NativeStreams is the capability to send and receive in the pool's own format.
type NativeStreams interface {
	// Format names the stream, such as "btrfs-v2" or "zfs-23". Two backends
	// with the same Format understand each other.
	Format() string
	// Formats lists what Receive understands.
	Formats() []string
	// Send gives the stream of a snapshot from byte offset on. It is the same
	// stream, byte for byte, each time for the same spec.
	Send(ctx context.Context, spec SendSpec) (io.ReadCloser, error)
	// Receive begins or goes on with receiving. The base is looked up by ID
	// and must have the lineage the stream names, otherwise Conflict, from
	// Write at the latest. Exists when the snapshot is there already, InUse while
	// another handle receives it. With another Base than before it begins anew.
	Receive(ctx context.Context, spec ReceiveSpec, format string) (Receive, error)
}

// Estimator is the capability to tell beforehand how much a stream would be.
type Estimator interface {
	// Estimate gives about the number of bytes Send would give for spec, from
	// Offset 0, without reading the data.
	Estimate(ctx context.Context, spec SendSpec) (int64, error)
}

// Differ is the capability to tell what changed without reading data.
type Differ interface {
	// Changes calls each for every path that may differ in snapshot id from
	// snapshot base, in no order; a path that it does not name is the same in
	// content and metadata, and so is whatever Ranges leave out. It may name
	// too much, never too little. Where the file system cannot say it for
	// exactly these two snapshots (other lineage, a change it cannot describe) it is
	// Unsupported, and the caller compares.
	Changes(ctx context.Context, volume, base, id string, each func(Change) error) error
	// Dirty reports whether a head may differ from the snapshot id of the same
	// volume, in constant time. False is certain; true may be a change that
	// left all as it was.
	Dirty(ctx context.Context, key HeadKey, id string) (bool, error)
}

// Change is a path that may differ between two snapshots.
type Change struct {
	Path string // relative to the tree's root, "" is the root
	// Whole: the entry is to be looked at as if it were new: it was made, removed,
	// renamed or linked. Otherwise it is the same inode under the same name.
	Whole bool
	// Ranges are where the content of a file may differ; nil: nowhere.
	Ranges []Range
}

// Range is a part of a file, in bytes.
type Range struct{ Offset, Length int64 }

// SendSpec says what is to be sent.
type SendSpec struct {
	Volume string
	ID     string
	Base   string // ID of a snapshot of the same lineage on both sides; "" for a full stream
	Format string
	Offset int64 // bytes to leave out at the beginning
	// SizeOnly asks for the stream without file data where the file system
	// can give that, to estimate: Unsupported where it cannot.
	SizeOnly bool
}

// Receive is a native stream arriving.
type Receive interface {
	// Offset is where the stream is to go on: bytes before it are kept durably.
	Offset() int64
	// Write takes the next bytes of the stream.
	io.Writer
	// Checkpoint makes what was written durable and returns the new Offset,
	// which may lie before the last byte written.
	Checkpoint(ctx context.Context) (int64, error)
	// Commit is called after the last byte: it checks the stream's end and
	// publishes the snapshot durably, with the lineage the stream names.
	Commit(ctx context.Context) (Snapshot, error)
	// Abort removes what arrived.
	Abort(ctx context.Context) error
	// Close lets go without removing, so that a later Receive goes on.
	Close() error
}

// Sizer is the capability to change a head's size.
type Sizer interface {
	// Resize sets the limit in bytes; 0 removes it. Shrinking below what is
	// used is Exhausted and names the least possible size.
	Resize(ctx context.Context, key HeadKey, size int64) error
}

// Sealer is the capability to turn an unmounted head into a snapshot without
// copying, for pools where a snapshot is not instant.
type Sealer interface {
	// Seal makes the head the snapshot id; the head is gone then.
	Seal(ctx context.Context, key HeadKey, id string, note []byte) (Snapshot, error)
	// Unseal makes the snapshot the head again, with its former note.
	Unseal(ctx context.Context, volume, id string, key HeadKey) (Head, error)
}

// Grower is the capability to make the pool itself larger while it is in use,
// with space of what it lies on.
type Grower interface {
	// Growth looks how large the pool is, and how large it should and could be.
	Growth(ctx context.Context) (Growth, error)
	// Grow makes the pool size bytes large. The space is reserved before the
	// pool counts with it: Exhausted, with nothing changed, when it is not
	// there. The present size is success, and finishes what was interrupted;
	// a smaller one is Invalid.
	Grow(ctx context.Context, size int64) error
}

// Growth is where a pool stands and could go, in bytes.
type Growth struct {
	Size int64 // now
	// Want is the size it should have now: Size when that is enough.
	Want int64
	// Most is the largest size that leaves the host what it keeps for itself,
	// Size at least. Growing to min(Want, Most) is right at any time.
	Most int64
	// Limit says in words what Most comes from. It names no figure that
	// changes by itself.
	Limit string
}

// Fidelity is what a store keeps of a directory tree. The zero value keeps
// nothing but names, types and content.
type Fidelity struct {
	Owners        bool          // numeric user and group
	Modes         bool          // permission bits with set-id and sticky
	TimeGrain     time.Duration // finest step of times kept; 0: none are kept
	TimeMax       int64         // last second since 1970 that can be kept; 0: no limit
	Xattrs        bool          // user.* and trusted.*, security.capability
	ACLs          bool          // POSIX access and default lists
	HardLinks     bool
	Symlinks      bool
	Devices       bool // block and character devices
	FIFOs         bool // and sockets' nodes
	Sparse        bool // holes stay holes; where false their content is kept as zeros
	Flags         bool // inode flags: immutable, append-only, no-copy-on-write …
	CaseSensitive bool
	NameBytes     int // longest name
}

// Full is what Linux's own file systems keep.
func Full() Fidelity {
	return Fidelity{
		Owners: true, Modes: true, TimeGrain: time.Nanosecond, Xattrs: true, ACLs: true,
		HardLinks: true, Symlinks: true, Devices: true, FIFOs: true, Sparse: true,
		CaseSensitive: true, NameBytes: 255,
	}
}
