// Package zfs keeps volumes as data sets of a ZFS pool, through the zfs and
// zpool commands. It knows ZFS and nothing of clusters, containers or of how the
// pool came to be there.
//
// # Layout
//
// The data set Config.Source is mounted at Config.Dir and holds what Drover
// knows. Whether a head or a snapshot exists is decided by these small files
// alone, each replaced by a rename, so every change of state is atomic:
//
//	DIR/drover-pool.json                says that this is a pool
//	DIR/heads/VOLUME/BRANCH             a head: its tree, size, note ("/" in BRANCH is "~")
//	DIR/snapshots/VOLUME/ID             a snapshot: its tree, guid, note
//	DIR/incoming/VOLUME/ID/             what is arriving: spec.json, and the spool of a stream
//
// Content lies in data sets whose names never change, because a stream names
// the data set it comes from and renaming a data set mounts it anew:
//
//	SOURCE/t/TREE                       a tree: data/ and .drover/beside/; TREE is random
//	SOURCE/t/TREE@s-HASH                a snapshot of it; HASH is of volume and ID
//	SOURCE/t/TREE@g-RANDOM              a snapshot that was destroyed and has clones still
//	SOURCE/t/TREE@m-N                   mark N of a stage
//	SOURCE/v/TREE-HASH                  a read-only clone that shows a snapshot where
//	                                    there is no .zfs directory
//
// A tree that no file names lives on only as the origin of others. Sweep removes
// such trees and snapshots when their last clone has gone. Nothing is ever
// promoted: that moves snapshots between data sets, and a later incremental
// receive then finds the wrong one.
package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Config is where the pool lies.
type Config struct {
	// Source is the data set, such as tank/drover.
	Source string
	// Dir is where Drover mounts it: an absolute path of Drover's own.
	Dir string
}

// Backend is a pool on ZFS. See package storage for the contract.
type Backend struct {
	cfg   Config
	locks hostfs.Locks
	busy  hostfs.Claims[incoming]

	mu       sync.Mutex
	making   map[string]int    // guarded by mu: data sets and snapshots that no file names yet
	sending  map[string]int    // guarded by mu: snapshots that are being sent
	fidelity *storage.Fidelity // guarded by mu; nil until probed
	version  string            // guarded by mu; of the pool, "" until asked
}

var (
	_ storage.Backend = (*Backend)(nil)
	_ storage.Sizer   = (*Backend)(nil)
)

// New gives the backend of a pool. It does not look at it: a pool that is not
// there is described by Info and makes everything else Unavailable.
func New(cfg Config) (*Backend, error) {
	const op = "open pool"
	if !filepath.IsAbs(cfg.Dir) {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: cfg.Dir, Reason: "not an absolute path", Next: "give the directory's full path"}
	}
	if !validDataset(cfg.Source) {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: cfg.Source, Reason: "not the name of a data set", Next: "give one such as tank/drover"}
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Backend{cfg: cfg, making: map[string]int{}, sending: map[string]int{}}, nil
}

// Init makes the data set a pool; it is created if it is not there. For a pool
// it does nothing; a data set that holds other things is refused.
func (b *Backend) Init(ctx context.Context) error {
	return b.fail("make pool", b.cfg.Source, b.init(ctx))
}

func (b *Backend) init(ctx context.Context) error {
	if b.present(ctx) == nil {
		return nil
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return err
	}
	if _, err := b.zpool(ctx, "list", "-H", "-o", "name", poolOf(b.cfg.Source)); err != nil {
		return err
	}
	switch _, err := b.zfs(ctx, nil, "list", "-H", "-o", "name", b.cfg.Source); {
	case errors.Is(err, errNoDataset):
		if _, err := b.zfs(ctx, nil, "create", "-o", "mountpoint="+b.cfg.Dir, b.cfg.Source); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := b.adopt(ctx); err != nil {
			return err
		}
	}
	if err := os.Chmod(b.cfg.Dir, 0o700); err != nil {
		return err
	}
	// What OpenZFS on Linux needs to keep access lists; others have no such property.
	_, _ = b.zfs(ctx, nil, "set", "acltype=posixacl", b.cfg.Source)
	for _, d := range []string{"heads", "snapshots", "incoming", "t", "v"} {
		if err := os.Mkdir(b.path(d), 0o700); err != nil && !os.IsExist(err) {
			return err
		}
	}
	for _, d := range []string{"t", "v"} {
		if _, err := b.zfs(ctx, nil, "list", "-H", "-o", "name", b.cfg.Source+"/"+d); err == nil {
			continue
		}
		if _, err := b.zfs(ctx, nil, "create", "-o", "canmount=off", b.cfg.Source+"/"+d); err != nil {
			return err
		}
	}
	root, err := unix.Open(b.cfg.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	return hostfs.WriteMarker(root)
}

// adopt takes a data set that is there, if it is empty or was begun by Init.
func (b *Backend) adopt(ctx context.Context) error {
	refuse := func(what string) error {
		return &api.Error{Kind: api.Exists, Op: "make pool", Object: b.cfg.Source, Reason: fmt.Sprintf("the data set is not a pool and holds %q", what), Next: "give an empty data set, or the name of a new one"}
	}
	props, err := b.get(ctx, []string{"mounted", "mountpoint"}, b.cfg.Source, true)
	if err != nil {
		return err
	}
	for name := range props {
		if name != b.cfg.Source && name != b.cfg.Source+"/t" && name != b.cfg.Source+"/v" {
			return refuse(name)
		}
	}
	own := props[b.cfg.Source]
	known := map[string]bool{"heads": true, "snapshots": true, "incoming": true, "t": true, "v": true, hostfs.Marker: true, hostfs.Marker + ".new": true}
	if own["mounted"] == "yes" {
		if err := onlyKnown(own["mountpoint"], known, refuse); err != nil {
			return err
		}
	}
	if own["mountpoint"] != b.cfg.Dir {
		if _, err := b.zfs(ctx, nil, "set", "mountpoint="+b.cfg.Dir, b.cfg.Source); err != nil {
			return err
		}
	}
	if err := b.mountDataset(ctx, b.cfg.Source); err != nil {
		return err
	}
	return onlyKnown(b.cfg.Dir, known, refuse)
}

func onlyKnown(dir string, known map[string]bool, refuse func(string) error) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !known[n.Name()] {
			return refuse(n.Name())
		}
	}
	return nil
}

// mountDataset mounts it unless it is mounted.
func (b *Backend) mountDataset(ctx context.Context, name string) error {
	props, err := b.get(ctx, []string{"mounted"}, name, false)
	if err != nil || props[name]["mounted"] == "yes" {
		return err
	}
	_, err = b.zfs(ctx, nil, "mount", name)
	return err
}

// present finds out whether the pool is at its place now, and mounts it there
// when only the mount is missing. Asking each time keeps a pool that has gone
// from being taken for an empty one.
func (b *Backend) present(ctx context.Context) error {
	err := b.checkMarker()
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	props, zerr := b.get(ctx, []string{"mounted", "mountpoint"}, b.cfg.Source, false)
	if zerr != nil {
		return fmt.Errorf("%w: %w", hostfs.ErrNotThere, zerr)
	}
	own := props[b.cfg.Source]
	if own["mounted"] == "yes" || own["mountpoint"] != b.cfg.Dir {
		return fmt.Errorf("%w: %s is mounted at %s and has no %s at %s", hostfs.ErrNotThere, b.cfg.Source, own["mountpoint"], hostfs.Marker, b.cfg.Dir)
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return err
	}
	if _, zerr := b.zfs(ctx, nil, "mount", b.cfg.Source); zerr != nil {
		return fmt.Errorf("%w: %w", hostfs.ErrNotThere, zerr)
	}
	if err := b.checkMarker(); err != nil {
		return fmt.Errorf("%w: %w", hostfs.ErrNotThere, err)
	}
	return nil
}

func (b *Backend) checkMarker() error {
	root, err := unix.Open(b.cfg.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return b.unreadable(err)
	}
	defer unix.Close(root)
	return b.unreadable(hostfs.CheckMarker(root, b.cfg.Dir))
}

// unreadable makes what is no refusal and no absence mean that the pool is gone.
func (b *Backend) unreadable(err error) error {
	var refused *api.Error
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w: %w", hostfs.ErrNotThere, err)
}

// Close lets go of arrivals whose handles nobody closed; these must not be in
// use any more.
func (b *Backend) Close() error {
	for _, in := range b.busy.Drain() {
		in.letGo()
	}
	return nil
}

// fail turns what happened into an *api.Error; nil stays nil.
func (b *Backend) fail(op, object string, err error) error {
	return hostfs.Wording{
		Pool: b.cfg.Source, Limits: true,
		NotThere: "import the pool (zpool import " + poolOf(b.cfg.Source) + "), then try again",
		Full:     "delete volumes or snapshots, or make the pool larger",
		ReadOnly: "look at zpool status",
		Device:   "look at zpool status",
		Damaged:  "look at zpool status",
	}.Fail(op, object, err)
}

// enter is the beginning of every method that works on one volume.
func (b *Backend) enter(ctx context.Context, volume string) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.present(ctx); err != nil {
		return nil, err
	}
	return b.locks.Lock(ctx, volume)
}

// hold keeps sweep away from something no file names yet.
func (b *Backend) hold(name string) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.making[name]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.making[name]--; b.making[name] == 0 {
			delete(b.making, name)
		}
	}
}

// path is a place in the control data set.
func (b *Backend) path(rel ...string) string {
	return filepath.Join(append([]string{b.cfg.Dir}, rel...)...)
}

func (b *Backend) treeName(tree string) string { return b.cfg.Source + "/t/" + tree }

func (b *Backend) treeDir(tree string) string { return b.path("t", tree) }

// makeDirs makes DIR/a/b with its entries durable.
func (b *Backend) makeDirs(rel ...string) error {
	at := b.cfg.Dir
	for _, r := range rel {
		next := filepath.Join(at, r)
		if err := os.Mkdir(next, 0o700); err == nil {
			if err := hostfs.SyncDir(at); err != nil {
				return err
			}
		} else if !os.IsExist(err) {
			return err
		}
		at = next
	}
	return nil
}

// removeFile removes a file durably, and its directory when that is empty then.
// The directory stays in the pool's own listing otherwise.
func removeFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.Remove(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := hostfs.SyncDir(dir); err != nil {
		return err
	}
	_ = os.Remove(dir) // only when it is empty; nothing depends on it
	return nil
}
