// Package btrfs keeps volumes as subvolumes in a directory of a mounted btrfs.
// It knows the file system and nothing of clusters, containers or of how the
// file system came to be there (package loopfile makes one on a file).
//
// # Layout
//
//	POOL/drover-pool.json               says that this is a pool
//	POOL/heads/VOLUME/BRANCH/           a head: a subvolume ("/" in BRANCH is "~")
//	POOL/snapshots/VOLUME/ID/           a snapshot: a read-only subvolume
//	POOL/incoming/VOLUME/ID/            a plain directory for what is arriving:
//	    spec.json                       what it is to become
//	    tree/                           the subvolume being filled
//	    at-N/                           tree as it was at stream offset or mark N
//	POOL/tmp/                           what is being made; emptied by Recover
//
// and in every subvolume
//
//	data/                               the content
//	.drover/head, .drover/snapshot      our memory: key, note, size, origin
//	.drover/beside/                     storage.Snapshot.Beside
//
// so that what Drover knows of a volume travels with its snapshots and streams.
//
// # Durability
//
// Creating a snapshot makes the kernel write out the dirty data of that one
// subvolume and commit the transaction before it returns. So Snapshot, Mark,
// Checkpoint and Commit are each one such call, atomic and durable together,
// and nobody else's dirty data is waited for as with syncfs. What changes only
// metadata ends with a commit of the transaction. A transaction is shared by
// the whole file system, so a commit can still wait for other writers'
// ordered extents that are already on their way to the device.
package btrfs

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Config is where the pool lies and how it is used.
type Config struct {
	// Dir is the pool's directory, inside a mounted btrfs.
	Dir string
	// Source is what the user calls the pool; Dir when empty.
	Source string
	// SoftSizes leaves the file system's quotas alone. Otherwise simple quotas
	// are switched on where the kernel has them (6.7 and later): note that
	// kernels before that cannot mount the file system any more then.
	SoftSizes bool
}

// Backend is a pool on btrfs. See package storage for the contract.
type Backend struct {
	cfg   Config
	locks hostfs.Locks
	at    hostfs.Root[pool]
	busy  hostfs.Claims[incoming]

	mu   sync.Mutex
	used map[uint64]measured // guarded by mu
}

var (
	_ storage.Backend       = (*Backend)(nil)
	_ storage.NativeStreams = (*Backend)(nil)
	_ storage.Sizer         = (*Backend)(nil)
	_ storage.Estimator     = (*Backend)(nil)
	_ storage.Differ        = (*Backend)(nil)
)

// pool is the directory while it is there.
type pool struct {
	root  int // descriptor of Config.Dir
	fsid  string
	quota quotaMode
}

// New gives the backend of a pool. It does not look at it: a pool that is not
// there is described by Info and makes everything else Unavailable.
func New(cfg Config) (*Backend, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, &api.Error{Kind: api.Invalid, Op: "open pool", Object: cfg.Dir, Reason: "not an absolute path", Next: "give the directory's full path"}
	}
	if cfg.Source == "" {
		cfg.Source = cfg.Dir
	}
	return &Backend{cfg: cfg, used: map[uint64]measured{}}, nil
}

// Init makes an empty directory of a mounted btrfs a pool. For a pool it does
// nothing; a directory that holds other things is refused.
func (b *Backend) Init(context.Context) error {
	const op = "make pool"
	root, err := hostfs.OpenRoot(b.cfg.Dir)
	if err != nil {
		return b.fail(op, b.cfg.Dir, err)
	}
	defer unix.Close(root)
	if err := checkBtrfs(root, b.cfg.Dir); err != nil {
		return b.fail(op, b.cfg.Dir, err)
	}
	if err := hostfs.Access(root, hostfs.Marker); err == nil {
		return nil
	} else if err != unix.ENOENT {
		return b.fail(op, b.cfg.Dir, err)
	}
	names, err := hostfs.Names(root, ".")
	if err != nil {
		return b.fail(op, b.cfg.Dir, err)
	}
	for _, n := range names {
		switch n {
		case "heads", "snapshots", "incoming", "tmp", hostfs.Marker + ".new": // an interrupted Init
		default:
			return &api.Error{Kind: api.Exists, Op: op, Object: b.cfg.Dir, Reason: fmt.Sprintf("the directory is not a pool and holds %q", n), Next: "give an empty directory"}
		}
	}
	if err := unix.Fchmod(root, 0o700); err != nil {
		return b.fail(op, b.cfg.Dir, err)
	}
	for _, d := range []string{"heads", "snapshots", "incoming", "tmp"} {
		if err := unix.Mkdirat(root, d, 0o700); err != nil && err != unix.EEXIST {
			return b.fail(op, b.cfg.Dir, err)
		}
	}
	if err := hostfs.WriteMarker(root); err != nil {
		return b.fail(op, b.cfg.Dir, err)
	}
	return b.fail(op, b.cfg.Dir, commitTransaction(root))
}

// checkBtrfs refuses another file system, such as the one below a mount that
// is missing.
func checkBtrfs(root int, dir string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return err
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return fmt.Errorf("%w: %s is not on a btrfs: is it mounted?", hostfs.ErrNotThere, dir)
	}
	return nil
}

// pool gives the pool if it is at its place now.
func (b *Backend) pool() (*pool, error) { return b.at.At(b.cfg.Dir, b.inspect) }

func (b *Backend) inspect(root int) (*pool, error) {
	if err := checkBtrfs(root, b.cfg.Dir); err != nil {
		return nil, err
	}
	if err := hostfs.CheckMarker(root, b.cfg.Dir); err != nil {
		return nil, err
	}
	info, err := getFsInfo(root)
	if err != nil {
		return nil, err
	}
	p := &pool{root: root, fsid: info.FSID.String()}
	p.quota = findQuota(p, !b.cfg.SoftSizes)
	return p, nil
}

// Close lets go of the pool, and of arrivals whose handles nobody closed; these
// must not be in use any more.
func (b *Backend) Close() error {
	for _, in := range b.busy.Drain() {
		in.letGo()
	}
	b.at.Close()
	return nil
}

// fail turns what the kernel said into an *api.Error; nil stays nil.
func (b *Backend) fail(op, object string, err error) error {
	return hostfs.Wording{
		Pool: b.cfg.Source, Limits: true,
		NotThere: "mount the pool's file system, then try again",
		Full:     "delete volumes or snapshots, or make the pool larger",
		ReadOnly: "look into the kernel's log, then mount it again",
		Device:   "look at the pool's device and the kernel's log",
		Damaged:  "run btrfs scrub and restore from a replica",
	}.Fail(op, object, err)
}

// String is the usual form.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// enter is the beginning of every method that works on one volume: it finds
// the pool and takes the volume's lock.
func (b *Backend) enter(ctx context.Context, volume string) (*pool, func(), error) {
	return hostfs.Enter(ctx, &b.locks, volume, b.pool)
}

// dirPath is a place in the pool as an absolute path, for the caller's eyes.
func (b *Backend) dirPath(rel ...string) string {
	return filepath.Join(append([]string{b.cfg.Dir}, rel...)...)
}
