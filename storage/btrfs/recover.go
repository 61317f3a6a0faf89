package btrfs

import (
	"context"
	"errors"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Recover implements storage.Backend.
func (b *Backend) Recover(ctx context.Context) (storage.Content, error) {
	c, err := b.recoverAll(ctx)
	return c, b.fail("recover pool", b.cfg.Source, err)
}

func (b *Backend) recoverAll(ctx context.Context) (storage.Content, error) {
	var c storage.Content
	p, err := b.pool()
	if err != nil {
		return c, err
	}
	names, err := hostfs.Names(p.root, ".")
	if err != nil {
		return c, err
	}
	for _, n := range names {
		switch n {
		case "heads", "snapshots", "incoming", "tmp", hostfs.Marker, hostfs.Marker + ".new":
		default:
			c.Strange = append(c.Strange, b.dirPath(n))
		}
	}
	if err := b.clean(p); err != nil && !errors.Is(err, unix.EROFS) { // a read-only pool can still be looked at
		return c, err
	}
	var strange []string
	if c.Snapshots, strange, err = b.scanSnapshots(ctx, p, ""); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	if c.Heads, strange, err = b.scanHeads(ctx, p); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	done := map[string]bool{}
	for _, h := range c.Heads {
		if !done[h.Key.Volume] {
			done[h.Key.Volume] = true
			if err := b.settleVolume(p, h.Key.Volume); err != nil && !errors.Is(err, unix.EROFS) {
				return c, err
			}
		}
	}
	c.Partial, strange, err = b.scanIncoming(p)
	c.Strange = append(c.Strange, strange...)
	sort.Strings(c.Strange)
	return c, err
}

// clean removes what was being made.
func (b *Backend) clean(p *pool) error {
	tmp, err := hostfs.OpenDir(p.root, "tmp")
	if err != nil {
		return err
	}
	defer unix.Close(tmp)
	names, err := hostfs.Names(p.root, "tmp")
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeTree(tmp, n); err != nil {
			return err
		}
	}
	return nil
}

// scanIncoming keeps what can go on and removes the rest. An arrival without a
// mark would begin anew anyway.
func (b *Backend) scanIncoming(p *pool) (partial []storage.ReceiveSpec, strange []string, err error) {
	err = hostfs.EachTwo(p.root, "incoming", func(volume, id string) error {
		fd, err := hostfs.OpenDir(p.root, hostfs.IncomingPath(volume, id))
		if err != nil {
			strange = append(strange, b.dirPath("incoming", volume, id))
			return nil //nolint:nilerr // reported
		}
		var meta incomingMeta
		metaErr := hostfs.ReadJSON(fd, "spec.json", &meta)
		mark, err := youngestMark(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
		if !b.busy.Take(volume, id) { // in use: Recover was called late
			return nil
		}
		defer b.busy.Release(volume, id)
		published := hostfs.Access(p.root, hostfs.SnapshotPath(volume, id)) == nil
		if metaErr == nil && mark > 0 && !published && meta.Volume == volume && meta.ID == id {
			partial = append(partial, storage.ReceiveSpec{Volume: volume, ID: id, Base: meta.Base, Note: meta.Note})
			return nil
		}
		if err := b.dropIncoming(p, volume, id); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
		return nil
	}, func(path string) { strange = append(strange, b.dirPath(path)) })
	return partial, strange, err
}
