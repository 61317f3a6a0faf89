package btrfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

const (
	markFile = ".drover/mark"
)

// onKey does something about a head while its volume is locked.
func (b *Backend) onKey(ctx context.Context, op string, key storage.HeadKey, f func(p *pool) error) error {
	if err := hostfs.CheckKey(key); err != nil {
		return err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err == nil {
		defer unlock()
		err = f(p)
	}
	return b.fail(op, key.String(), err)
}

// onHead does something to a head, which is open as fd.
func (b *Backend) onHead(ctx context.Context, op string, key storage.HeadKey, f func(p *pool, fd int) error) error {
	return b.onKey(ctx, op, key, func(p *pool) error {
		fd, err := b.openHead(p, op, key)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(p, fd)
	})
}

// openHead opens a head's subvolume.
func (b *Backend) openHead(p *pool, op string, key storage.HeadKey) (int, error) {
	fd, err := openSubvol(p.root, hostfs.HeadPath(key))
	if err == unix.ENOENT {
		return -1, hostfs.NoHead(op, key, b.cfg.Source)
	}
	return fd, err
}

// CreateHead implements storage.Backend.
func (b *Backend) CreateHead(ctx context.Context, spec storage.HeadSpec) (storage.Head, error) {
	const op = "make head"
	h, err := b.createHead(ctx, op, spec)
	return h, b.fail(op, spec.Key.String(), err)
}

func (b *Backend) createHead(ctx context.Context, op string, spec storage.HeadSpec) (storage.Head, error) {
	var none storage.Head
	if err := hostfs.CheckSpec(spec, hostfs.CheckID); err != nil {
		return none, err
	}
	p, unlock, err := b.enter(ctx, spec.Key.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	switch h, err := b.head(p, op, spec.Key, true); {
	case err == nil && h.From == spec.From:
		return h, commitTransaction(p.root) // whoever made it may have been killed before that
	case err == nil:
		return none, hostfs.BeganOtherwise(op, spec, h.From)
	case !api.Is(err, api.NotFound):
		return none, err
	}
	if err := b.admit(p, op, spec.Key.String(), forNew, 0); err != nil {
		return none, err
	}
	sum := sha256.Sum256([]byte(spec.Key.String()))
	name := fmt.Sprintf("head-%x", sum[:16])
	tmp, err := hostfs.OpenDir(p.root, "tmp")
	if err != nil {
		return none, err
	}
	defer unix.Close(tmp)
	if err := destroySubvol(tmp, name); err != nil {
		return none, err
	}
	if err := b.fillHead(p, op, tmp, name, spec); err != nil {
		_ = destroySubvol(tmp, name)
		return none, err
	}
	if err := hostfs.MakeDirs(p.root, "heads", spec.Key.Volume); err != nil {
		return none, err
	}
	if err := unix.Renameat(tmp, name, p.root, hostfs.HeadPath(spec.Key)); err != nil {
		return none, err
	}
	if err := commitTransaction(p.root); err != nil {
		return none, err
	}
	return b.head(p, op, spec.Key, true)
}

// fillHead makes a whole head at tmp/name.
func (b *Backend) fillHead(p *pool, op string, tmp int, name string, spec storage.HeadSpec) error {
	if err := b.beginTree(p, op, tmp, name, spec.Source(), spec.From); err != nil {
		return err
	}
	fd, err := openSubvol(tmp, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	meta := hostfs.NewHeadNote(spec)
	if err := hostfs.WriteJSON(fd, hostfs.HeadFile, meta, true); err != nil {
		return err
	}
	info, err := getSubvolInfo(fd)
	if err != nil {
		return err
	}
	return b.settleLimit(p, info.TreeID, spec.Size, false)
}

// beginTree makes the writable subvolume dir/name: empty, or as a copy of a
// snapshot of the volume, without that snapshot's own memory.
func (b *Backend) beginTree(p *pool, op string, dir int, name, volume, from string) error {
	if from != "" {
		src, err := openSubvol(p.root, hostfs.SnapshotPath(volume, from))
		if err == unix.ENOENT {
			return hostfs.NoSnapshot(op, volume, from, b.cfg.Source)
		}
		if err != nil {
			return err
		}
		defer unix.Close(src)
		return b.copyTree(dir, name, src)
	}
	if err := subvolCreate(dir, name); err != nil {
		return err
	}
	fd, err := openSubvol(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return err
	}
	return hostfs.MakeTree(fd)
}

func (b *Backend) copyTree(dir int, name string, src int) error {
	if err := snapCreate(dir, name, src, false); err != nil {
		return err
	}
	fd, err := openSubvol(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, f := range []string{hostfs.SnapFile, markFile, hostfs.HeadFile} {
		if err := unix.Unlinkat(fd, f, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// Head implements storage.Backend.
func (b *Backend) Head(ctx context.Context, key storage.HeadKey) (h storage.Head, err error) {
	const op = "look up head"
	err = b.onKey(ctx, op, key, func(p *pool) (err error) {
		h, err = b.head(p, op, key, true)
		if err == nil && h.Size > 0 {
			if err := b.settleVolume(p, key.Volume); err != nil && !errors.Is(err, unix.EROFS) {
				return err
			}
		}
		return err
	})
	return h, err
}

// head reads one; walk allows to measure its size where that takes a walk.
func (b *Backend) head(p *pool, op string, key storage.HeadKey, walk bool) (storage.Head, error) {
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return storage.Head{}, err
	}
	defer unix.Close(fd)
	meta, info, err := readHead(fd)
	if err != nil {
		return storage.Head{}, err
	}
	if meta.Volume != key.Volume || meta.Branch != key.Branch {
		return storage.Head{}, fmt.Errorf("its own note says that it is %s@%s", meta.Volume, meta.Branch)
	}
	nested, err := b.nested(fd, key)
	if err != nil {
		return storage.Head{}, err
	}
	dir := b.dirPath(hostfs.HeadPath(key), hostfs.DataDir)
	return storage.Head{
		Key: key, Size: meta.Size, Used: b.usedBytes(p, info, dir, walk), Dir: dir,
		From: meta.From, Created: meta.Created, Note: meta.Note, Nested: nested,
	}, nil
}

func readHead(fd int) (hostfs.HeadNote, *subvolInfo, error) {
	var meta hostfs.HeadNote
	if err := hostfs.ReadJSON(fd, hostfs.HeadFile, &meta); err != nil {
		return meta, nil, fmt.Errorf("read the head's note: %w", err)
	}
	info, err := getSubvolInfo(fd)
	return meta, info, err
}

// Heads implements storage.Backend.
func (b *Backend) Heads(ctx context.Context) ([]storage.Head, error) {
	const op = "list heads"
	p, err := b.pool()
	if err != nil {
		return nil, b.fail(op, b.cfg.Source, err)
	}
	heads, _, err := b.scanHeads(ctx, p)
	return heads, b.fail(op, b.cfg.Source, err)
}

// scanHeads lists the heads and what else lies among them.
func (b *Backend) scanHeads(ctx context.Context, p *pool) (heads []storage.Head, strange []string, err error) {
	err = hostfs.EachTwo(p.root, "heads", func(volume, name string) error {
		key := storage.HeadKey{Volume: volume}
		fd, err := openSubvol(p.root, "heads/"+volume+"/"+name)
		if err == unix.ENOENT {
			return nil
		}
		if err == nil {
			var meta hostfs.HeadNote
			meta, _, err = readHead(fd)
			unix.Close(fd)
			if key.Branch = meta.Branch; err == nil && (meta.Volume != volume || hostfs.EscapeBranch(meta.Branch) != name) {
				err = errNotSubvol
			}
		}
		if err != nil {
			if hostfs.DeviceGone(err) {
				return err
			}
			strange = append(strange, b.dirPath("heads", volume, name))
			return nil
		}
		unlock, err := b.locks.Lock(ctx, volume)
		if err != nil {
			return err
		}
		defer unlock()
		h, err := b.head(p, "list heads", key, false)
		if err == nil {
			heads = append(heads, h)
		} else if api.Is(err, api.NotFound) {
			err = nil
		}
		return err
	}, func(path string) { strange = append(strange, b.dirPath(path)) })
	sort.Strings(strange)
	return heads, strange, err
}

// updateHead rewrites a head's memory durably.
func (b *Backend) updateHead(p *pool, fd int, change func(*hostfs.HeadNote)) error {
	meta, info, err := readHead(fd)
	if err != nil {
		return err
	}
	change(&meta)
	return p.withRoom(info.TreeID, func() error { return hostfs.WriteJSON(fd, hostfs.HeadFile, meta, true) })
}

// SetNote implements storage.Backend.
func (b *Backend) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	if err := errors.Join(hostfs.CheckKey(key), hostfs.CheckNote(note)); err != nil {
		return err
	}
	return b.onHead(ctx, "write note", key, func(p *pool, fd int) error {
		return b.updateHead(p, fd, func(m *hostfs.HeadNote) { m.Note = note })
	})
}

// Resize implements storage.Sizer.
func (b *Backend) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	const op = "resize head"
	if size < 0 {
		return hostfs.CheckSize(op, key, size, 0)
	}
	return b.onHead(ctx, op, key, func(p *pool, fd int) error { return b.resize(p, op, key, fd, size) })
}

func (b *Backend) resize(p *pool, op string, key storage.HeadKey, fd int, size int64) error {
	meta, info, err := readHead(fd)
	if err != nil {
		return err
	}
	if size != 0 && (meta.Size == 0 || size < meta.Size) {
		// What was not written out yet has no blocks yet.
		if err := unix.Syncfs(fd); err != nil {
			return err
		}
		used, err := hostfs.Measure(b.dirPath(hostfs.HeadPath(key), hostfs.DataDir))
		if err != nil {
			return err
		}
		if err := hostfs.CheckSize(op, key, size, used); err != nil {
			return err
		}
	}
	kept, err := b.keptBySnapshots(p, key.Volume, info.UUID)
	if err != nil {
		return err
	}
	if err := b.updateHead(p, fd, func(m *hostfs.HeadNote) { m.Size = size }); err != nil {
		return err
	}
	if p.counts() && size > 0 && p.limit(info.TreeID) == 0 && kept {
		return p.raiseLimit(info.TreeID, size)
	}
	// The amount on top stays when the size changes; it can only be too large.
	if kept && size > 0 {
		return p.raiseLimit(info.TreeID, size)
	}
	if err := b.settleLimit(p, info.TreeID, size, kept); err != nil {
		return err
	}
	return commitTransaction(p.root)
}

// DestroyHead implements storage.Backend.
func (b *Backend) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	const op = "destroy head"
	return b.onKey(ctx, op, key, func(p *pool) error {
		if err := hostfs.UnusedHead(op, b.cfg.Dir, key); err != nil {
			return err
		}
		return destroyIn(p, "heads", key.Volume, hostfs.EscapeBranch(key.Branch))
	})
}

// destroyIn durably removes a subvolume two levels below dir, and the
// volume's directory when that was the last one.
func destroyIn(p *pool, dir, volume, name string) error {
	fd, err := hostfs.OpenDir(p.root, dir+"/"+volume)
	if err == unix.ENOENT {
		return commitTransaction(p.root) // it may be gone for a moment only
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := destroySubvol(fd, name); err != nil {
		return err
	}
	if err := unix.Unlinkat(p.root, dir+"/"+volume, unix.AT_REMOVEDIR); err != nil && err != unix.ENOTEMPTY && err != unix.ENOENT {
		return err
	}
	return commitTransaction(p.root)
}
