package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// headFile is DIR/heads/VOLUME/BRANCH.
type headFile struct {
	Volume  string    `json:"volume"`
	Branch  string    `json:"branch"`
	Tree    string    `json:"tree"`
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

func (b *Backend) headPath(key storage.HeadKey) string {
	return b.path("heads", key.Volume, escape(key.Branch))
}

// readHead reads a head's file.
func (b *Backend) readHead(op string, key storage.HeadKey) (headFile, error) {
	var f headFile
	err := hostfs.ReadJSONAt(b.headPath(key), &f)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return f, hostfs.NoHead(op, key, b.cfg.Source)
	case err != nil:
		return f, err
	case f.Volume != key.Volume || f.Branch != key.Branch || !ourTree.MatchString(f.Tree):
		return f, fmt.Errorf("its file says that it is %s@%s", f.Volume, f.Branch)
	}
	return f, nil
}

// onKey does something about a head while its volume is locked.
func (b *Backend) onKey(ctx context.Context, op string, key storage.HeadKey, f func() error) error {
	if err := checkKey(key); err != nil {
		return err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err == nil {
		defer unlock()
		err = f()
	}
	return b.fail(op, key.String(), err)
}

// CreateHead implements storage.Backend.
func (b *Backend) CreateHead(ctx context.Context, spec storage.HeadSpec) (storage.Head, error) {
	const op = "make head"
	h, err := b.createHead(ctx, op, spec)
	return h, b.fail(op, spec.Key.String(), err)
}

func (b *Backend) createHead(ctx context.Context, op string, spec storage.HeadSpec) (storage.Head, error) {
	var none storage.Head
	if err := hostfs.CheckSpec(spec, checkID); err != nil {
		return none, err
	}
	unlock, err := b.enter(ctx, spec.Key.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	switch f, err := b.readHead(op, spec.Key); {
	case err == nil && f.From == spec.From:
		return b.head(ctx, f)
	case err == nil:
		return none, hostfs.BeganOtherwise(op, spec, f.From)
	case !api.Is(err, api.NotFound):
		return none, err
	}
	if err := b.admit(ctx, op, spec.Key.String(), forNew, 0); err != nil {
		return none, err
	}
	tree, release, err := b.beginTree(ctx, op, spec.Source(), spec.From, spec.Size)
	if err != nil {
		return none, err
	}
	defer release()
	if err := b.makeDirs("heads", spec.Key.Volume); err != nil {
		return none, err
	}
	f := headFile{spec.Key.Volume, spec.Key.Branch, tree, spec.Size, spec.From, time.Now().UTC(), spec.Note}
	if err := hostfs.WriteJSONAt(b.headPath(spec.Key), f); err != nil {
		return none, err
	}
	return b.head(ctx, f)
}

// beginTree makes a tree: empty, or as a clone of a snapshot. Until release is
// called nobody else knows of it.
func (b *Backend) beginTree(ctx context.Context, op, volume, from string, size int64) (tree string, release func(), err error) {
	name := newName()
	letGo := b.hold(name)
	defer func() {
		if err != nil {
			_ = b.destroy(context.WithoutCancel(ctx), b.treeName(name))
			letGo()
		}
	}()
	if from != "" {
		s, err := b.readSnapshot(op, volume, from)
		if err != nil {
			return "", nil, err
		}
		if _, err := b.zfs(ctx, nil, "clone", b.fullName(s), b.treeName(name)); err != nil {
			return "", nil, err
		}
	} else if _, err := b.zfs(ctx, nil, "create", b.treeName(name)); err != nil {
		return "", nil, err
	}
	if size > 0 {
		if _, err := b.zfs(ctx, nil, "set", refquota(size), b.treeName(name)); err != nil {
			return "", nil, err
		}
	}
	if from == "" {
		if err := b.fillTree(name); err != nil {
			return "", nil, err
		}
	}
	return name, letGo, b.mountTree(ctx, name)
}

func (b *Backend) fillTree(tree string) error {
	dir := b.treeDir(tree)
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = hostfs.MakeTree(fd)
	unix.Close(fd)
	for _, d := range []string{"", hostfs.DataDir, hostfs.OwnDir, hostfs.BesideDir} {
		if err == nil {
			err = hostfs.SyncDir(filepath.Join(dir, d))
		}
	}
	return err
}

// mountTree mounts a tree that is not mounted, as after a reboot.
func (b *Backend) mountTree(ctx context.Context, tree string) error {
	if _, err := os.Lstat(filepath.Join(b.treeDir(tree), hostfs.DataDir)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := b.mountDataset(ctx, b.treeName(tree)); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(b.treeDir(tree), hostfs.DataDir))
	return err
}

func refquota(size int64) string {
	if size == 0 {
		return "refquota=none"
	}
	return fmt.Sprintf("refquota=%d", size)
}

// Head implements storage.Backend.
func (b *Backend) Head(ctx context.Context, key storage.HeadKey) (h storage.Head, err error) {
	const op = "look up head"
	err = b.onKey(ctx, op, key, func() error {
		f, err := b.readHead(op, key)
		if err == nil {
			h, err = b.head(ctx, f)
		}
		return err
	})
	return h, err
}

// head describes a head.
func (b *Backend) head(ctx context.Context, f headFile) (storage.Head, error) {
	props, err := b.get(ctx, []string{"usedbydataset"}, b.treeName(f.Tree), false)
	if err != nil {
		return storage.Head{}, err
	}
	return b.describeHead(ctx, f, props)
}

func (b *Backend) describeHead(ctx context.Context, f headFile, props map[string]map[string]string) (storage.Head, error) {
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return storage.Head{}, err
	}
	nested, err := b.nested(f.Tree)
	if err != nil {
		return storage.Head{}, err
	}
	return storage.Head{
		Key: storage.HeadKey{Volume: f.Volume, Branch: f.Branch}, Size: f.Size,
		Used: number(props[b.treeName(f.Tree)]["usedbydataset"]), Dir: filepath.Join(b.treeDir(f.Tree), hostfs.DataDir),
		From: f.From, Created: f.Created, Note: f.Note, Nested: nested,
	}, nil
}

// Heads implements storage.Backend.
func (b *Backend) Heads(ctx context.Context) ([]storage.Head, error) {
	const op = "list heads"
	if err := b.present(ctx); err != nil {
		return nil, b.fail(op, b.cfg.Source, err)
	}
	heads, _, err := b.scanHeads(ctx)
	return heads, b.fail(op, b.cfg.Source, err)
}

// scanHeads lists the heads and what else lies among them.
func (b *Backend) scanHeads(ctx context.Context) (heads []storage.Head, strange []string, err error) {
	// The files first: a head that is made meanwhile is not expected then.
	files, strange, err := b.headFiles()
	if err != nil {
		return nil, nil, err
	}
	props, err := b.get(ctx, []string{"usedbydataset"}, b.cfg.Source+"/t", true)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		key := storage.HeadKey{Volume: f.Volume, Branch: f.Branch}
		if props[b.treeName(f.Tree)] == nil {
			if _, err := b.readHead("", key); !api.Is(err, api.NotFound) {
				strange = append(strange, b.headPath(key)) // its data set was destroyed by hand
			}
			continue
		}
		h, err := b.describeHead(ctx, f, props)
		if err != nil {
			if _, e := b.readHead("", key); api.Is(e, api.NotFound) {
				continue // destroyed just now
			}
			return nil, nil, err
		}
		heads = append(heads, h)
	}
	return heads, strange, nil
}

func (b *Backend) headFiles() (files []headFile, strange []string, err error) {
	err = b.eachTwo("heads", func(volume, name, path string) {
		var f headFile
		switch err := hostfs.ReadJSONAt(path, &f); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil || f.Volume != volume || escape(f.Branch) != name || !ourTree.MatchString(f.Tree):
			strange = append(strange, path)
		default:
			files = append(files, f)
		}
	}, &strange)
	return files, strange, err
}

// eachTwo calls f for everything two levels below a directory of the pool, but
// for files that are being written.
func (b *Backend) eachTwo(dir string, f func(volume, name, path string), strange *[]string) error {
	volumes, err := os.ReadDir(b.path(dir))
	if err != nil {
		return err
	}
	for _, v := range volumes {
		path := b.path(dir, v.Name())
		if checkID("volume", v.Name()) != nil || !v.IsDir() {
			*strange = append(*strange, path)
			continue
		}
		names, err := os.ReadDir(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if !strings.HasSuffix(n.Name(), ".new") {
				f(v.Name(), n.Name(), filepath.Join(path, n.Name()))
			}
		}
	}
	sort.Strings(*strange)
	return nil
}

// SetNote implements storage.Backend.
func (b *Backend) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	const op = "write note"
	if err := errors.Join(checkKey(key), hostfs.CheckNote(note)); err != nil {
		return err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return b.fail(op, key.String(), err)
	}
	defer unlock()
	f, err := b.readHead(op, key)
	if err == nil {
		f.Note = note
		err = hostfs.WriteJSONAt(b.headPath(key), f)
	}
	return b.fail(op, key.String(), err)
}

// Resize implements storage.Sizer.
func (b *Backend) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	const op = "resize head"
	if size < 0 {
		return hostfs.CheckSize(op, key, size, 0)
	}
	return b.onKey(ctx, op, key, func() error { return b.resize(ctx, op, key, size) })
}

func (b *Backend) resize(ctx context.Context, op string, key storage.HeadKey, size int64) error {
	f, err := b.readHead(op, key)
	if err != nil {
		return err
	}
	name := b.treeName(f.Tree)
	if size != 0 && (f.Size == 0 || size < f.Size) {
		if err := b.settle(ctx, f.Tree); err != nil {
			return err
		}
		props, err := b.get(ctx, []string{"referenced"}, name, false)
		if err != nil {
			return err
		}
		if err := hostfs.CheckSize(op, key, size, number(props[name]["referenced"])); err != nil {
			return err
		}
	}
	if _, err := b.zfs(ctx, nil, "set", refquota(size), name); err != nil {
		return err
	}
	f.Size = size
	return hostfs.WriteJSONAt(b.headPath(key), f)
}

// settle waits until what was written is counted: the kernel's pages are
// written out, and changing any property takes a whole transaction group.
func (b *Backend) settle(ctx context.Context, tree string) error {
	if err := b.flush(tree); err != nil {
		return err
	}
	_, err := b.zfs(ctx, nil, "set", "drover:settled="+time.Now().UTC().Format(time.RFC3339Nano), b.treeName(tree))
	return err
}

func (b *Backend) flush(tree string) error {
	d, err := os.Open(b.treeDir(tree))
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// DestroyHead implements storage.Backend. The head is gone when its file is; its
// tree stays while snapshots of it do.
func (b *Backend) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	const op = "destroy head"
	return b.onKey(ctx, op, key, func() error {
		f, err := b.readHead(op, key)
		if api.Is(err, api.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		mounts, err := b.mountsOf(f.Tree)
		if err != nil {
			return err
		}
		if err := hostfs.Unused(op, key, mounts); err != nil {
			return err
		}
		if err := removeFile(b.headPath(key)); err != nil {
			return err
		}
		if err := b.sweep(ctx); err != nil {
			return err
		}
		_ = b.shed(ctx, f.Tree) // space that may come back later
		return nil
	})
}

// shed gives back what a tree without a head took since its youngest snapshot.
func (b *Backend) shed(ctx context.Context, tree string) error {
	all, err := b.get(ctx, []string{"createtxg"}, b.treeName(tree), true)
	if errors.Is(err, errNoDataset) {
		return nil // it went as a whole
	}
	if err != nil {
		return err
	}
	youngest, at := "", int64(-1)
	for name, p := range all {
		if txg := number(p["createtxg"]); strings.Contains(name, "@") && txg > at {
			youngest, at = name, txg
		}
	}
	if youngest == "" {
		return nil // still busy: sweep takes it next time
	}
	if _, err := b.zfs(ctx, nil, "rollback", youngest); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}
