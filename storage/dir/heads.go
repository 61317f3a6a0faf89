package dir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
	"github.com/drover-data/drover/tree"
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

func (b *Backend) openHead(p *pool, op string, key storage.HeadKey) (int, error) {
	fd, err := hostfs.OpenDir(p.root, hostfs.HeadPath(key))
	if err == unix.ENOENT {
		return -1, hostfs.NoHead(op, key, b.cfg.Source)
	}
	return fd, err
}

// copySlack is the room a copy needs beyond the size of the files.
const copySlack = 16 << 20

// makeTree makes tmp/name: empty, or a copy of the tree at from with its
// content and what lies beside it. It is not durable yet.
func (b *Backend) makeTree(ctx context.Context, p *pool, op, object, path, from string) error {
	if err := hostfs.RemoveTree(p.root, path, nil); err != nil {
		return err
	}
	if err := unix.Mkdirat(p.root, path, 0o700); err != nil {
		return err
	}
	fd, err := hostfs.OpenDir(p.root, path)
	if err != nil {
		return err
	}
	err = hostfs.MakeTree(fd)
	unix.Close(fd)
	if err != nil {
		return err
	}
	if from == "" {
		return nil
	}
	need := int64(copySlack)
	if !p.reflink {
		used, err := hostfs.Measure(b.dirPath(from, hostfs.DataDir))
		if err != nil {
			return err
		}
		need += used
	}
	if err := b.admit(ctx, op, object, need); err != nil {
		return err
	}
	for _, d := range []string{hostfs.DataDir, hostfs.BesideDir} {
		if err := tree.Copy(ctx, b.dirPath(from, d), b.dirPath(path, d), p.reflink); err != nil {
			return err
		}
	}
	return nil
}

func tmpName(what string) string {
	sum := sha256.Sum256([]byte(what))
	return fmt.Sprintf("tmp/%x", sum[:16])
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
		return h, p.settle("heads", spec.Key.Volume)
	case err == nil:
		return none, hostfs.BeganOtherwise(op, spec, h.From)
	case !api.Is(err, api.NotFound):
		return none, err
	}
	from := ""
	if spec.From != "" {
		if _, err := b.snapshot(p, op, spec.Source(), spec.From); err != nil {
			return none, err
		}
		from = hostfs.SnapshotPath(spec.Source(), spec.From)
	}
	if err := b.admit(ctx, op, spec.Key.String(), 0); err != nil {
		return none, err
	}
	tmp := tmpName("head " + spec.Key.String())
	meta := hostfs.NewHeadNote(spec)
	err = b.makeTree(ctx, p, op, spec.Key.String(), tmp, from)
	if err == nil {
		err = hostfs.WriteJSON(p.root, tmp+"/"+hostfs.HeadFile, meta, false)
	}
	if err == nil {
		err = p.publish(tmp, "heads", spec.Key.Volume, hostfs.EscapeBranch(spec.Key.Branch))
	}
	if err != nil {
		_ = hostfs.RemoveTree(p.root, tmp, nil)
		return none, err
	}
	return b.head(p, op, spec.Key, true)
}

// publish writes a tree out and gives it its name.
func (p *pool) publish(tmp, dir, volume, name string) error {
	if err := p.writeOut(); err != nil {
		return err
	}
	if err := p.above(dir, volume); err != nil {
		return err
	}
	return p.move(tmp, dir+"/"+volume+"/"+name)
}

// Head implements storage.Backend.
func (b *Backend) Head(ctx context.Context, key storage.HeadKey) (h storage.Head, err error) {
	const op = "look up head"
	err = b.onKey(ctx, op, key, func(p *pool) (err error) {
		h, err = b.head(p, op, key, true)
		return err
	})
	return h, err
}

// head reads one; walk allows to measure its size.
func (b *Backend) head(p *pool, op string, key storage.HeadKey, walk bool) (storage.Head, error) {
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return storage.Head{}, err
	}
	defer unix.Close(fd)
	var meta hostfs.HeadNote
	if err := hostfs.ReadJSON(fd, hostfs.HeadFile, &meta); err != nil {
		return storage.Head{}, fmt.Errorf("read the head's note: %w", err)
	}
	if meta.Volume != key.Volume || meta.Branch != key.Branch {
		return storage.Head{}, fmt.Errorf("its own note says that it is %s@%s", meta.Volume, meta.Branch)
	}
	nested, err := b.nested(key)
	if err != nil {
		return storage.Head{}, err
	}
	dir := b.dirPath(hostfs.HeadPath(key), hostfs.DataDir)
	return storage.Head{
		Key: key, Size: meta.Size, Used: b.usedBytes(dir, walk), Dir: dir,
		From: meta.From, Created: meta.Created, Note: meta.Note, Nested: nested,
	}, nil
}

// measured is a size found by a walk.
type measured struct {
	bytes int64
	at    time.Time
}

// measureEvery is how long a measured size serves.
const measureEvery = 30 * time.Second

func (b *Backend) usedBytes(dir string, walk bool) int64 {
	b.mu.Lock()
	m, ok := b.used[dir]
	b.mu.Unlock()
	if ok && (!walk || time.Since(m.at) < measureEvery) {
		return m.bytes
	}
	if !walk {
		return -1
	}
	n, err := hostfs.Measure(dir)
	if err != nil {
		return -1
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used[dir] = measured{n, time.Now()}
	return n
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

func (b *Backend) scanHeads(ctx context.Context, p *pool) (heads []storage.Head, strange []string, err error) {
	err = hostfs.EachTwo(p.root, "heads", func(volume, name string) error {
		unlock, err := b.locks.Lock(ctx, volume)
		if err != nil {
			return err
		}
		defer unlock()
		var meta hostfs.HeadNote
		err = hostfs.ReadJSON(p.root, "heads/"+volume+"/"+name+"/"+hostfs.HeadFile, &meta)
		if err == nil && (meta.Volume != volume || hostfs.EscapeBranch(meta.Branch) != name) {
			err = hostfs.ErrNotOurs
		}
		if err != nil {
			if hostfs.DeviceGone(err) {
				return err
			}
			if hostfs.Access(p.root, "heads/"+volume+"/"+name) == nil {
				strange = append(strange, b.dirPath("heads", volume, name))
			}
			return nil
		}
		h, err := b.head(p, "list heads", storage.HeadKey{Volume: volume, Branch: meta.Branch}, false)
		if err == nil {
			heads = append(heads, h)
		}
		return err
	}, func(path string) { strange = append(strange, b.dirPath(path)) })
	sort.Strings(strange)
	return heads, strange, err
}

func updateHead(fd int, change func(*hostfs.HeadNote)) error {
	var meta hostfs.HeadNote
	if err := hostfs.ReadJSON(fd, hostfs.HeadFile, &meta); err != nil {
		return err
	}
	change(&meta)
	return hostfs.WriteJSON(fd, hostfs.HeadFile, meta, true)
}

// SetNote implements storage.Backend.
func (b *Backend) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	if err := errors.Join(hostfs.CheckKey(key), hostfs.CheckNote(note)); err != nil {
		return err
	}
	return b.onHead(ctx, "write note", key, func(_ *pool, fd int) error {
		return updateHead(fd, func(m *hostfs.HeadNote) { m.Note = note })
	})
}

// Resize implements storage.Sizer: the size is remembered and compared with
// what is measured; nothing enforces it.
func (b *Backend) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	const op = "resize head"
	if size < 0 {
		return hostfs.CheckSize(op, key, size, 0)
	}
	return b.onHead(ctx, op, key, func(_ *pool, fd int) error { return b.resize(op, key, fd, size) })
}

func (b *Backend) resize(op string, key storage.HeadKey, fd int, size int64) error {
	if size > 0 {
		if err := unix.Syncfs(fd); err != nil { // what was not written out has no blocks yet
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
	return updateHead(fd, func(m *hostfs.HeadNote) { m.Size = size })
}

// DestroyHead implements storage.Backend.
func (b *Backend) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	const op = "destroy head"
	return b.onKey(ctx, op, key, func(p *pool) error {
		if err := hostfs.UnusedHead(op, b.cfg.Dir, key); err != nil {
			return err
		}
		return p.drop("heads", key.Volume, hostfs.EscapeBranch(key.Branch))
	})
}
