package dir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sort"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

// MaxNote is the longest note.
const MaxNote = 64 << 10

const (
	headFile     = ".drover/head"
	snapshotFile = ".drover/snapshot"
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

func headPath(key storage.HeadKey) string { return "heads/" + key.Volume + "/" + escape(key.Branch) }

func (b *Backend) noHead(op string, key storage.HeadKey) error {
	return &api.Error{Kind: api.NotFound, Op: op, Object: key.String(), Reason: "there is no such head in pool " + b.cfg.Source}
}

func checkNote(note []byte) error {
	if len(note) > MaxNote {
		return &api.Error{Kind: api.Invalid, Op: "write note", Reason: fmt.Sprintf("the note has %d bytes, at most %d are allowed", len(note), MaxNote)}
	}
	return nil
}

func (b *Backend) openHead(p *pool, op string, key storage.HeadKey) (int, error) {
	fd, err := openDir(p.root, headPath(key))
	if err == unix.ENOENT {
		return -1, b.noHead(op, key)
	}
	return fd, err
}

// copySlack is the room a copy needs beyond the size of the files.
const copySlack = 16 << 20

// makeTree makes tmp/name: empty, or a copy of the tree at from with its
// content and what lies beside it. It is not durable yet.
func (b *Backend) makeTree(ctx context.Context, p *pool, op, object, path, from string) error {
	if err := removeTree(p.root, path); err != nil {
		return err
	}
	if err := unix.Mkdirat(p.root, path, 0o700); err != nil {
		return err
	}
	for _, d := range []struct {
		name string
		mode uint32
	}{{dataDir, 0o755}, {".drover", 0o700}, {besideDir, 0o700}} {
		if err := unix.Mkdirat(p.root, path+"/"+d.name, d.mode); err != nil {
			return err
		}
		// The process's umask does not decide how an empty volume looks.
		if err := unix.Fchmodat(p.root, path+"/"+d.name, d.mode, 0); err != nil {
			return err
		}
	}
	if from == "" {
		return nil
	}
	need := int64(copySlack)
	if !p.reflink {
		used, err := measure(b.dirPath(from, dataDir))
		if err != nil {
			return err
		}
		need += used
	}
	if err := b.admit(ctx, op, object, need); err != nil {
		return err
	}
	for _, d := range []string{dataDir, besideDir} {
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
	if err := errors.Join(checkKey(spec.Key), checkNote(spec.Note)); err != nil {
		return none, err
	}
	fromVolume := spec.FromVolume
	if fromVolume == "" {
		fromVolume = spec.Key.Volume
	}
	if spec.From != "" {
		if err := errors.Join(checkID("snapshot", spec.From), checkID("volume", fromVolume)); err != nil {
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
		return h, p.settle("heads", spec.Key.Volume)
	case err == nil:
		return none, &api.Error{Kind: api.Exists, Op: op, Object: spec.Key.String(), Reason: fmt.Sprintf("it is there already and began as %q, not as %q", h.From, spec.From), Next: "remove it first"}
	case !api.Is(err, api.NotFound):
		return none, err
	}
	from := ""
	if spec.From != "" {
		if _, err := b.snapshot(p, op, fromVolume, spec.From); err != nil {
			return none, err
		}
		from = snapshotPath(fromVolume, spec.From)
	}
	if err := b.admit(ctx, op, spec.Key.String(), 0); err != nil {
		return none, err
	}
	tmp := tmpName("head " + spec.Key.String())
	meta := headMeta{spec.Key.Volume, spec.Key.Branch, spec.Size, spec.From, time.Now().UTC(), spec.Note}
	err = b.makeTree(ctx, p, op, spec.Key.String(), tmp, from)
	if err == nil {
		err = writeJSON(p.root, tmp+"/"+headFile, meta, false)
	}
	if err == nil {
		err = p.publish(tmp, "heads", spec.Key.Volume, escape(spec.Key.Branch))
	}
	if err != nil {
		_ = removeTree(p.root, tmp)
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
	return h, b.fail(op, key.String(), err)
}

// head reads one; walk allows to measure its size.
func (b *Backend) head(p *pool, op string, key storage.HeadKey, walk bool) (storage.Head, error) {
	fd, err := b.openHead(p, op, key)
	if err != nil {
		return storage.Head{}, err
	}
	defer unix.Close(fd)
	var meta headMeta
	if err := readJSON(fd, headFile, &meta); err != nil {
		return storage.Head{}, fmt.Errorf("read the head's note: %w", err)
	}
	if meta.Volume != key.Volume || meta.Branch != key.Branch {
		return storage.Head{}, fmt.Errorf("its own note says that it is %s@%s", meta.Volume, meta.Branch)
	}
	nested, err := b.nested(key)
	if err != nil {
		return storage.Head{}, err
	}
	dir := b.dirPath(headPath(key), dataDir)
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
	n, err := measure(dir)
	if err != nil {
		return -1
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used[dir] = measured{n, time.Now()}
	return n
}

// measure sums what files take, each file once. What goes away meanwhile takes nothing.
func measure(dir string) (int64, error) {
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != dir {
				return nil
			}
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if st.Nlink > 1 && !e.IsDir() {
				if seen[st.Ino] {
					return nil
				}
				seen[st.Ino] = true
			}
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
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
	err = eachTwo(p, "heads", func(volume, name string) error {
		unlock, err := b.locks.lock(ctx, volume)
		if err != nil {
			return err
		}
		defer unlock()
		var meta headMeta
		err = readJSON(p.root, "heads/"+volume+"/"+name+"/"+headFile, &meta)
		if err == nil && (meta.Volume != volume || escape(meta.Branch) != name) {
			err = errNotOurs
		}
		if err != nil {
			if gone(err) {
				return err
			}
			if faccess(p.root, "heads/"+volume+"/"+name) == nil {
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

func updateHead(fd int, change func(*headMeta)) error {
	var meta headMeta
	if err := readJSON(fd, headFile, &meta); err != nil {
		return err
	}
	change(&meta)
	return writeJSON(fd, headFile, meta, true)
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
	return b.fail(op, key.String(), updateHead(fd, func(m *headMeta) { m.Note = note }))
}

// Resize implements storage.Sizer: the size is remembered and compared with
// what is measured; nothing enforces it.
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
	if size > 0 {
		if err := unix.Syncfs(fd); err != nil { // what was not written out has no blocks yet
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
	return b.fail(op, key.String(), updateHead(fd, func(m *headMeta) { m.Size = size }))
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
	if err := b.unmounted(op, key); err != nil {
		return b.fail(op, key.String(), err)
	}
	return b.fail(op, key.String(), p.drop("heads", key.Volume, escape(key.Branch)))
}

func (b *Backend) unmounted(op string, key storage.HeadKey) error {
	mounts, err := b.mountsOf(headPath(key))
	if err == nil && len(mounts) > 0 {
		err = &api.Error{Kind: api.InUse, Op: op, Object: key.String(), Reason: "it is mounted at " + mounts[0], Next: "stop its users, then unmount it"}
	}
	return err
}
