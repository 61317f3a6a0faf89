package btrfs

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
)

// MaxNote is the longest note.
const MaxNote = 64 << 10

const (
	headFile     = ".drover/head"
	snapshotFile = ".drover/snapshot"
	markFile     = ".drover/mark"
	besideDir    = ".drover/beside"
	dataDir      = "data"
)

// headMeta is .drover/head.
type headMeta struct {
	Volume  string    `json:"volume"`
	Branch  string    `json:"branch"`
	Size    int64     `json:"size,omitempty"`
	From    string    `json:"from,omitempty"`
	Created time.Time `json:"created"`
	Note    []byte    `json:"note,omitempty"`
}

func checkKey(key storage.HeadKey) error {
	if err := checkID("volume", key.Volume); err != nil {
		return err
	}
	return api.CheckBranchName(key.Branch)
}

func headPath(key storage.HeadKey) string {
	return "heads/" + key.Volume + "/" + escape(key.Branch)
}

func (b *Backend) noHead(op string, key storage.HeadKey) error {
	return &api.Error{Kind: api.NotFound, Op: op, Object: key.String(), Reason: "there is no such head in pool " + b.cfg.Source}
}

func checkNote(note []byte) error {
	if len(note) > MaxNote {
		return &api.Error{Kind: api.Invalid, Op: "write note", Reason: fmt.Sprintf("the note has %d bytes, at most %d are allowed", len(note), MaxNote)}
	}
	return nil
}

// openHead opens a head's subvolume.
func (b *Backend) openHead(p *pool, op string, key storage.HeadKey) (int, error) {
	fd, err := openSubvol(p.root, headPath(key))
	if err == unix.ENOENT {
		return -1, b.noHead(op, key)
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
	if err := errors.Join(checkKey(spec.Key), checkNote(spec.Note)); err != nil {
		return none, err
	}
	if spec.From != "" {
		if err := errors.Join(checkID("snapshot", spec.From), checkID("volume", spec.Source())); err != nil {
			return none, err
		}
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
		return none, &api.Error{Kind: api.Exists, Op: op, Object: spec.Key.String(), Reason: fmt.Sprintf("it is there already and began as %q, not as %q", h.From, spec.From), Next: "remove it first"}
	case !api.Is(err, api.NotFound):
		return none, err
	}
	if err := b.admit(p, op, spec.Key.String(), forNew, 0); err != nil {
		return none, err
	}
	sum := sha256.Sum256([]byte(spec.Key.String()))
	name := fmt.Sprintf("head-%x", sum[:16])
	tmp, err := openDir(p.root, "tmp")
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
	if err := mkdirs(p.root, "heads", spec.Key.Volume); err != nil {
		return none, err
	}
	if err := unix.Renameat(tmp, name, p.root, headPath(spec.Key)); err != nil {
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
	meta := headMeta{spec.Key.Volume, spec.Key.Branch, spec.Size, spec.From, time.Now().UTC(), spec.Note}
	if err := writeJSON(fd, headFile, meta, true); err != nil {
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
		src, err := openSubvol(p.root, snapshotPath(volume, from))
		if err == unix.ENOENT {
			return b.noSnapshot(op, volume, from)
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
	for _, d := range []struct {
		name string
		mode uint32
	}{{dataDir, 0o755}, {".drover", 0o700}, {besideDir, 0o700}} {
		if err := unix.Mkdirat(fd, d.name, d.mode); err != nil {
			return err
		}
		// The process's umask does not decide how an empty volume looks.
		if err := unix.Fchmodat(fd, d.name, d.mode, 0); err != nil {
			return err
		}
	}
	return nil
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
	for _, f := range []string{snapshotFile, markFile, headFile} {
		if err := unix.Unlinkat(fd, f, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// Head implements storage.Backend.
func (b *Backend) Head(ctx context.Context, key storage.HeadKey) (storage.Head, error) {
	const op = "look up head"
	if err := checkKey(key); err != nil {
		return storage.Head{}, err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return storage.Head{}, b.fail(op, key.String(), err)
	}
	defer unlock()
	h, err := b.head(p, op, key, true)
	if err == nil && h.Size > 0 {
		if err := b.settleVolume(p, key.Volume); err != nil && !errors.Is(err, unix.EROFS) {
			return h, b.fail(op, key.String(), err)
		}
	}
	return h, b.fail(op, key.String(), err)
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
	nested, err := b.nested(p, fd, key)
	if err != nil {
		return storage.Head{}, err
	}
	dir := b.dirPath(headPath(key), dataDir)
	return storage.Head{
		Key: key, Size: meta.Size, Used: b.usedBytes(p, info, dir, walk), Dir: dir,
		From: meta.From, Created: meta.Created, Note: meta.Note, Nested: nested,
	}, nil
}

func readHead(fd int) (headMeta, *subvolInfo, error) {
	var meta headMeta
	if err := readJSON(fd, headFile, &meta); err != nil {
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
	err = eachTwo(p, "heads", func(volume, name string) error {
		key := storage.HeadKey{Volume: volume}
		fd, err := openSubvol(p.root, "heads/"+volume+"/"+name)
		if err == unix.ENOENT {
			return nil
		}
		if err == nil {
			var meta headMeta
			meta, _, err = readHead(fd)
			unix.Close(fd)
			if key.Branch = meta.Branch; err == nil && (meta.Volume != volume || escape(meta.Branch) != name) {
				err = errNotSubvol
			}
		}
		if err != nil {
			if gone(err) {
				return err
			}
			strange = append(strange, b.dirPath("heads", volume, name))
			return nil
		}
		unlock, err := b.locks.lock(ctx, volume)
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

// gone reports whether an error is about the device rather than the object.
func gone(err error) bool {
	for _, e := range []error{unix.EIO, unix.ENODEV, unix.ESTALE, unix.ESHUTDOWN, unix.EUCLEAN, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// eachTwo calls f for everything two levels below dir.
func eachTwo(p *pool, dir string, f func(volume, name string) error, strange func(path string)) error {
	volumes, err := readNames(p.root, dir)
	if err != nil {
		return err
	}
	sort.Strings(volumes)
	for _, v := range volumes {
		names, err := readNames(p.root, dir+"/"+v)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || err == nil && checkID("volume", v) != nil {
			strange(dir + "/" + v)
			continue
		}
		if err != nil {
			return err
		}
		sort.Strings(names)
		for _, n := range names {
			if err := f(v, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// updateHead rewrites a head's memory durably.
func (b *Backend) updateHead(p *pool, fd int, change func(*headMeta)) error {
	meta, info, err := readHead(fd)
	if err != nil {
		return err
	}
	change(&meta)
	return p.withRoom(info.TreeID, func() error { return writeJSON(fd, headFile, meta, true) })
}

// SetNote implements storage.Backend.
func (b *Backend) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	const op = "write note"
	if err := errors.Join(checkKey(key), checkNote(note)); err != nil {
		return err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unix.Close(fd)
	return b.fail(op, key.String(), b.updateHead(p, fd, func(m *headMeta) { m.Note = note }))
}

// Resize implements storage.Sizer.
func (b *Backend) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	const op = "resize head"
	if err := checkKey(key); err != nil {
		return err
	}
	if size < 0 {
		return &api.Error{Kind: api.Invalid, Op: op, Object: key.String(), Reason: "the size is negative"}
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unix.Close(fd)
	meta, info, err := readHead(fd)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	if size != 0 && (meta.Size == 0 || size < meta.Size) {
		// What was not written out yet has no blocks yet.
		if err := unix.Syncfs(fd); err != nil {
			return b.fail(op, key.String(), err)
		}
		used, err := measure(b.dirPath(headPath(key), dataDir))
		if err != nil {
			return b.fail(op, key.String(), err)
		}
		if used > size {
			return &api.Error{Kind: api.Exhausted, Op: op, Object: key.String(), Reason: fmt.Sprintf("its files take %d bytes, more than the wanted %d", used, size), Next: fmt.Sprintf("give at least %d bytes", used)}
		}
	}
	kept, err := b.keptBySnapshots(p, key.Volume, info.UUID)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	if err := b.updateHead(p, fd, func(m *headMeta) { m.Size = size }); err != nil {
		return b.fail(op, key.String(), err)
	}
	if p.counts() && size > 0 && p.limit(info.TreeID) == 0 && kept {
		return b.fail(op, key.String(), p.raiseLimit(info.TreeID, size))
	}
	// The amount on top stays when the size changes; it can only be too large.
	if kept && size > 0 {
		return b.fail(op, key.String(), p.raiseLimit(info.TreeID, size))
	}
	if err := b.settleLimit(p, info.TreeID, size, kept); err != nil {
		return b.fail(op, key.String(), err)
	}
	return b.fail(op, key.String(), commitTransaction(p.root))
}

// DestroyHead implements storage.Backend.
func (b *Backend) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	const op = "destroy head"
	if err := checkKey(key); err != nil {
		return err
	}
	p, unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	mounts, err := b.mountsOf(p, headPath(key))
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	if len(mounts) > 0 {
		return &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "it is mounted at " + mounts[0], Next: "stop its users, then unmount it"}
	}
	return b.fail(op, key.String(), destroyIn(p, "heads", key.Volume, escape(key.Branch)))
}

// destroyIn durably removes a subvolume two levels below dir, and the
// volume's directory when that was the last one.
func destroyIn(p *pool, dir, volume, name string) error {
	fd, err := openDir(p.root, dir+"/"+volume)
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
