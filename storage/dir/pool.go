// Package dir keeps volumes as plain directories on any file system of the
// host. Where files can share their blocks (reflinks: XFS, btrfs, bcachefs) a
// snapshot costs no data; elsewhere it is a full copy. It knows the file system
// and nothing of clusters or containers.
//
// # Layout
//
//	POOL/drover-pool.json               says that this is a pool
//	POOL/heads/VOLUME/BRANCH/           a head ("/" in BRANCH is "~")
//	POOL/snapshots/VOLUME/ID/           a snapshot
//	POOL/incoming/VOLUME/ID/            what is arriving: spec.json, tree/, mark
//	POOL/tmp/                           what is being made; emptied by Recover
//
// A head, a snapshot and tree hold data/ (the content), .drover/head,
// .drover/snapshot (our memory) and .drover/beside/.
//
// # Durability
//
// Whatever is made is made under tmp, written out, and then renamed to its
// name; a directory is flushed after a name in it came or went.
package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Config is where the pool lies.
type Config struct {
	Dir    string // the pool's directory
	Source string // what the user calls it; Dir when empty
	// NoReflink copies even where blocks could be shared.
	NoReflink bool
}

// Backend is a pool in a directory. See package storage for the contract.
type Backend struct {
	cfg   Config
	locks hostfs.Locks
	at    hostfs.Root[pool]
	busy  hostfs.Claims[stage]

	mu   sync.Mutex
	used map[string]measured // guarded by mu: by path of the head
}

var (
	_ storage.Backend = (*Backend)(nil)
	_ storage.Sizer   = (*Backend)(nil)
	_ storage.Sealer  = (*Backend)(nil)
)

type pool struct {
	root    int // descriptor of Config.Dir
	reflink bool
	keeps   storage.Fidelity
}

var ownDirs = []string{"heads", "snapshots", "incoming", "tmp"}

// New gives the backend of a pool. It does not look at it: a pool that is not
// there is described by Info and makes everything else Unavailable.
func New(cfg Config) (*Backend, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, &api.Error{Kind: api.Invalid, Op: "open pool", Object: cfg.Dir, Reason: "not an absolute path", Next: "give the directory's full path"}
	}
	if cfg.Source == "" {
		cfg.Source = cfg.Dir
	}
	return &Backend{cfg: cfg, used: map[string]measured{}}, nil
}

// Init makes an empty directory a pool. For a pool it does nothing; a
// directory that holds other things, or whose file system does not tell names
// apart by case, is refused.
func (b *Backend) Init(context.Context) error {
	const op = "make pool"
	return b.fail(op, b.cfg.Dir, b.init(op))
}

func (b *Backend) init(op string) error {
	root, err := hostfs.OpenRoot(b.cfg.Dir)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := hostfs.Access(root, hostfs.Marker); err == nil {
		return nil
	} else if err != unix.ENOENT {
		return err
	}
	names, err := hostfs.Names(root, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if !own(n) && n != "lost+found" {
			return &api.Error{Kind: api.Exists, Op: op, Object: b.cfg.Dir, Reason: fmt.Sprintf("the directory is not a pool and holds %q", n), Next: "give an empty directory"}
		}
	}
	if err := unix.Fchmod(root, 0o700); err != nil {
		return err
	}
	for _, d := range ownDirs {
		if err := unix.Mkdirat(root, d, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
	}
	keeps, _, err := probe(root)
	if err != nil {
		return err
	}
	if !keeps.CaseSensitive {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: b.cfg.Dir, Reason: "its file system does not tell names apart by case", Next: "give a directory on another file system"}
	}
	return hostfs.WriteMarker(root)
}

func own(name string) bool {
	for _, d := range ownDirs {
		if name == d {
			return true
		}
	}
	return name == hostfs.Marker || name == hostfs.Marker+".new"
}

// probe finds out what the pool's file system keeps.
func probe(root int) (storage.Fidelity, bool, error) {
	tmp, err := hostfs.OpenDir(root, "tmp")
	if err != nil {
		return storage.Fidelity{}, false, err
	}
	defer unix.Close(tmp)
	return hostfs.Probe(tmp, fmt.Sprintf("probe-%d-%d", os.Getpid(), time.Now().UnixNano()))
}

// pool gives the pool if it is at its place now.
func (b *Backend) pool() (*pool, error) { return b.at.At(b.cfg.Dir, b.inspect) }

func (b *Backend) inspect(root int) (*pool, error) {
	if err := hostfs.CheckMarker(root, b.cfg.Dir); err != nil {
		return nil, err
	}
	p := &pool{root: root}
	var err error
	p.keeps, p.reflink, err = probe(root)
	p.reflink = p.reflink && !b.cfg.NoReflink
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) {
		err = nil // it can still be looked at, and is judged as keeping nothing
	}
	return p, err
}

// Close lets go of the pool.
func (b *Backend) Close() error {
	b.at.Close()
	return nil
}

// Info implements storage.Backend.
func (b *Backend) Info(context.Context) (storage.Info, error) {
	info := storage.Info{Kind: "dir", Source: b.cfg.Source}
	p, err := b.pool()
	var st unix.Statfs_t
	if err == nil {
		err = unix.Fstatfs(p.root, &st)
	}
	if err != nil {
		info.State, info.Reason = api.PoolGone, b.fail("look at pool", b.cfg.Source, err).Error()
		return info, nil
	}
	info.Instant, info.Fidelity = p.reflink, p.keeps
	info.Capacity = int64(st.Blocks) * st.Bsize
	info.Used = int64(st.Blocks-st.Bfree) * st.Bsize
	avail := int64(st.Bavail) * st.Bsize
	info.Free = max(0, avail-watermark(info.Capacity))
	info.State = api.PoolReady
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		info.State, info.Reason, info.Free = api.PoolReadOnly, "its file system is mounted read-only: look into the kernel's log, then mount it again", 0
	case info.Free == 0:
		info.State, info.Reason = api.PoolFull, fmt.Sprintf("%d bytes are free, and %d are kept back: delete volumes or snapshots", avail, watermark(info.Capacity))
	}
	return info, nil
}

// watermark is what is kept free: 5 %, at least 16 MiB, at most 10 GiB, never
// more than a fifth.
func watermark(capacity int64) int64 {
	return min(max(capacity/20, 16<<20), 10<<30, capacity/5)
}

// admit refuses what the pool cannot take.
func (b *Backend) admit(ctx context.Context, op, object string, size int64) error {
	i, err := b.Info(ctx)
	switch {
	case err != nil:
		return err
	case i.State == api.PoolReadOnly:
		return &api.Error{Kind: api.ReadOnly, Op: op, Object: object, Reason: "pool " + b.cfg.Source + " is read-only", Next: i.Reason}
	case i.State == api.PoolFull || size > i.Free:
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: fmt.Sprintf("pool %s can take %d bytes, and %d are needed", b.cfg.Source, i.Free, size), Next: "delete volumes or snapshots, or choose another pool"}
	}
	return nil
}

// fail turns what the kernel said into an *api.Error; nil stays nil.
func (b *Backend) fail(op, object string, err error) error {
	return hostfs.Wording{
		Pool:     b.cfg.Source,
		NotThere: "mount the pool's file system, then try again",
		Full:     "delete volumes or snapshots",
		ReadOnly: "look into the kernel's log, then mount it again",
		Device:   "look at the pool's device and the kernel's log",
	}.Fail(op, object, err)
}

// enter is the beginning of every method that works on one volume.
func (b *Backend) enter(ctx context.Context, volume string) (*pool, func(), error) {
	return hostfs.Enter(ctx, &b.locks, volume, b.pool)
}

func (b *Backend) dirPath(rel ...string) string {
	return filepath.Join(append([]string{b.cfg.Dir}, rel...)...)
}

// move renames a place of the pool and makes both directories durable.
func (p *pool) move(from, to string) error {
	if err := unix.Renameat2(p.root, from, p.root, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return errors.Join(p.flush(filepath.Dir(to)), p.flush(filepath.Dir(from)))
}

// flush makes the names of a directory durable.
func (p *pool) flush(rel string) error {
	fd, err := hostfs.OpenDir(p.root, rel)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

// writeOut makes all that was written durable.
func (p *pool) writeOut() error { return unix.Syncfs(p.root) }

// settle makes durable which names there are in dir/volume: whoever made or
// removed one may have been killed before it was.
func (p *pool) settle(dir, volume string) error {
	if err := p.flush(dir + "/" + volume); err != nil && err != unix.ENOENT {
		return err
	}
	return p.flush(dir)
}

// above makes the directory of a volume under heads, snapshots or incoming.
func (p *pool) above(dir, volume string) error {
	if err := hostfs.MakeDirs(p.root, dir, volume); err != nil {
		return err
	}
	return p.flush(dir)
}

// drop durably removes dir/volume/name: first out of sight, then in pieces.
func (p *pool) drop(dir, volume, name string) error {
	tmp := fmt.Sprintf("tmp/drop-%s-%s-%s-%d", dir, volume, name, time.Now().UnixNano())
	if len(tmp) > 250 {
		tmp = fmt.Sprintf("tmp/drop-%d", time.Now().UnixNano())
	}
	err := unix.Renameat(p.root, dir+"/"+volume+"/"+name, p.root, tmp)
	if err == unix.ENOENT {
		return p.settle(dir, volume)
	}
	if err != nil {
		return err
	}
	if err := p.flush(dir + "/" + volume); err != nil {
		return err
	}
	if err := unix.Unlinkat(p.root, dir+"/"+volume, unix.AT_REMOVEDIR); err != nil && err != unix.ENOTEMPTY && err != unix.ENOENT {
		return err
	}
	return hostfs.RemoveTree(p.root, tmp, nil)
}
