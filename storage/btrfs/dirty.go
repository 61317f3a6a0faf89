package btrfs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Dirty implements storage.Differ. What changes a file writes its inode, and
// the inode says in which transaction that was; the tree's blocks say in which
// they were written, so only those are read that are younger than the snapshot.
//
// What has not reached the tree yet is written out first, but only when
// nothing was found without that: a head in use answers at once.
func (b *Backend) Dirty(ctx context.Context, key storage.HeadKey, id string) (dirty bool, err error) {
	const op = "look whether the head is dirty"
	if err := errors.Join(hostfs.CheckKey(key), hostfs.CheckID("snapshot", id)); err != nil {
		return false, err
	}
	c, err := b.compareHead(ctx, op, key, id)
	if err != nil {
		return false, b.fail(op, key.String(), err)
	}
	defer c.close()
	dirty, err = c.changed()
	if err == nil && !dirty {
		if err = unix.Syncfs(c.head); err == nil {
			dirty, err = c.changed()
		}
	}
	if err == nil && !dirty && c.nearest != id {
		dirty, err = b.differ(ctx, op, key.Volume, id, c.nearest)
	}
	return dirty, b.fail(op, key.String(), unsure(op, key.String(), err))
}

// headSince is a head and the state of it from which changes count.
type headSince struct {
	own     string // directory of our memory in the head
	head    int
	base    int    // the snapshot with that state
	nearest string // its ID
	transid uint64 // what was written in a later transaction is a change
	settled int64  // seconds since 1970: a ctime before that is from before the snapshot
}

func (c *headSince) close() {
	unix.Close(c.head)
	unix.Close(c.base)
}

// clockGrain is more than the kernel's clock for file times takes to move.
const clockGrain = 2

// compareHead finds the snapshot nearest to the head that was made of it or
// that it was made from; id itself if it is one.
func (b *Backend) compareHead(ctx context.Context, op string, key storage.HeadKey, id string) (*headSince, error) {
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	head, err := b.openHead(p, op, key)
	if err != nil {
		return nil, err
	}
	info, err := getSubvolInfo(head)
	if err != nil {
		unix.Close(head)
		return nil, err
	}
	if _, err := b.snapshot(p, op, key.Volume, id); err != nil {
		unix.Close(head)
		return nil, err
	}
	ids, err := hostfs.Names(p.root, "snapshots/"+key.Volume)
	if err != nil {
		unix.Close(head)
		return nil, err
	}
	best := &headSince{own: b.dirPath(hostfs.HeadPath(key), hostfs.OwnDir), head: head, base: -1}
	for _, other := range ids {
		fd, err := openSubvol(p.root, hostfs.SnapshotPath(key.Volume, other))
		if err != nil {
			continue // not ours, or just going: Recover reports it
		}
		s, err := getSubvolInfo(fd)
		transid := since(info, s)
		if err != nil || transid == 0 || best.nearest == id || (best.base >= 0 && other != id && transid <= best.transid) {
			unix.Close(fd)
			continue
		}
		if best.base >= 0 {
			unix.Close(best.base)
		}
		best.base, best.nearest, best.transid, best.settled = fd, other, transid, int64(s.OTime.Sec)-clockGrain
	}
	if best.base < 0 {
		unix.Close(head)
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: key.String(), Reason: "no snapshot here was made of this head, nor this head of one", Next: "compare the two"}
	}
	return best, nil
}

// since is the transaction after which a head has changed from a snapshot: the
// one that made the later of the two. 0: neither was made of the other.
func since(head, snapshot *subvolInfo) uint64 {
	switch {
	case snapshot == nil:
	case snapshot.ParentUUID != (UUID{}) && snapshot.ParentUUID == head.UUID:
		return snapshot.OTransid
	case head.ParentUUID != (UUID{}) && head.ParentUUID == snapshot.UUID:
		return head.OTransid
	}
	return 0
}

// maxRead bounds how many inodes are looked at that were only read.
const maxRead = 10_000

// changed looks for an inode of the content that was written since.
func (c *headSince) changed() (bool, error) {
	own, err := inodesOf(c.own)
	if err != nil {
		return false, err
	}
	own[firstInode] = true // the subvolume's root, which holds our memory and the content's directory
	dirty, read := false, 0
	err = inodesSince(c.head, c.transid, func(x inodeItem) (bool, error) {
		if own[x.Ino] {
			return true, nil
		}
		was, found, err := inode(c.base, x.Ino)
		read++
		dirty = err == nil && (!found || was.same != x.same || x.ctime >= c.settled || read > maxRead)
		return !dirty, err
	})
	return dirty, err
}

// inodesOf lists the inodes of a directory and all below it.
func inodesOf(dir string) (map[uint64]bool, error) {
	list := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil {
			list[st.Ino] = true
		}
		if errors.Is(err, fs.ErrNotExist) { // just replaced
			return nil
		}
		return err
	})
	return list, err
}

// errDiffers ends a stream at the first thing that differs.
var errDiffers = errors.New("they differ")

// differ reports whether the content of two snapshots differs.
func (b *Backend) differ(ctx context.Context, op, volume, base, id string) (bool, error) {
	t := newTracker()
	old, now, err := b.track(ctx, op, volume, base, id, t, func(e *tracked) error {
		if _, inside := inData(e.was); e.old && inside && len(e.ranges) > 0 {
			return errDiffers
		}
		return nil
	})
	for _, e := range t.all {
		if err != nil {
			break
		}
		err = e.onlyRead(old, now)
	}
	if errors.Is(err, errDiffers) {
		return true, nil
	}
	return false, err
}

// onlyRead is errDiffers unless an entry is as it was, without doubt: the
// stream speaks of what was only read as well.
func (e *tracked) onlyRead(old, now storage.Snapshot) error {
	there, is := e.now()
	path, isData := inData(there)
	_, wasData := inData(e.was)
	isData, wasData = isData && is, wasData && e.old
	switch {
	case !e.noted || !isData && !wasData:
		return nil
	case isData != wasData || e.whole || e.moved():
		return errDiffers
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Lstat(filepath.Join(old.Dir, path), &a), unix.Lstat(filepath.Join(now.Dir, path), &b)); err != nil {
		return err
	}
	if a.Ino != b.Ino || a.Ctim != b.Ctim || b.Ctim.Sec >= old.Created.Unix()-clockGrain {
		return errDiffers
	}
	return nil
}
