package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// snapFile is DIR/snapshots/VOLUME/ID.
type snapFile struct {
	Volume  string    `json:"volume"`
	ID      string    `json:"id"`
	Tree    string    `json:"tree"`
	GUID    string    `json:"guid"`
	Order   uint64    `json:"order"` // the transaction group it was made in
	Created time.Time `json:"created"`
	Note    []byte    `json:"note,omitempty"`
}

func (f snapFile) name() string { return snapName(f.Volume, f.ID) }

// fullName is what ZFS calls it.
func (b *Backend) fullName(f snapFile) string { return b.treeName(f.Tree) + "@" + f.name() }

func (b *Backend) viewName(f snapFile) string {
	return b.cfg.Source + "/v/" + f.Tree + "-" + f.name()
}

func (b *Backend) snapPath(volume, id string) string { return b.path("snapshots", volume, id) }

// readSnapshot reads a snapshot's file.
func (b *Backend) readSnapshot(op, volume, id string) (snapFile, error) {
	var f snapFile
	err := hostfs.ReadJSONAt(b.snapPath(volume, id), &f)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return f, hostfs.NoSnapshot(op, volume, id, b.cfg.Source)
	case err != nil:
		return f, err
	case f.Volume != volume || f.ID != id || !ourTree.MatchString(f.Tree):
		return f, fmt.Errorf("its file says that it is %s@%s", f.Volume, f.ID)
	}
	return f, nil
}

// Snapshot implements storage.Backend.
func (b *Backend) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "make snapshot"
	s, err := b.snapshotHead(ctx, op, key, id, note)
	return s, b.fail(op, key.String(), err)
}

func (b *Backend) snapshotHead(ctx context.Context, op string, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	var none storage.Snapshot
	if err := errors.Join(checkKey(key), checkID("snapshot", id), hostfs.CheckNote(note)); err != nil {
		return none, err
	}
	unlock, err := b.enter(ctx, key.Volume)
	if err != nil {
		return none, err
	}
	defer unlock()
	if f, err := b.readSnapshot(op, key.Volume, id); err == nil {
		return b.snapshot(ctx, f)
	} else if !api.Is(err, api.NotFound) {
		return none, err
	}
	h, err := b.readHead(op, key)
	if err != nil {
		return none, err
	}
	if err := b.mountTree(ctx, h.Tree); err != nil {
		return none, err
	}
	nested, err := b.nested(h.Tree)
	if err != nil {
		return none, err
	}
	if err := hostfs.WouldLeaveOut(op, key, nested, "unmount these file systems, or make them directories"); err != nil {
		return none, err
	}
	if err := b.admit(ctx, op, key.String(), forSnapshot, 0); err != nil {
		return none, err
	}
	// What programs mapped into their memory lies in the kernel's pages yet.
	if err := b.flush(h.Tree); err != nil {
		return none, err
	}
	f, release, err := b.takeSnapshot(ctx, key.Volume, id, h.Tree, note)
	if err != nil {
		return none, err
	}
	defer release()
	if err := b.publish(f); err != nil {
		return none, err
	}
	return b.snapshot(ctx, f)
}

// takeSnapshot makes the snapshot of a tree, which is there for others only
// when publish has written its file. Until release sweep leaves it alone.
func (b *Backend) takeSnapshot(ctx context.Context, volume, id, tree string, note []byte) (f snapFile, release func(), err error) {
	f = snapFile{Volume: volume, ID: id, Tree: tree, Created: time.Now().UTC(), Note: note}
	letGo := b.hold(b.fullName(f))
	defer func() {
		if err != nil {
			letGo()
		}
	}()
	// An interrupted call left one that may be of another moment.
	if err := b.retire(ctx, f); err != nil {
		return f, nil, err
	}
	_, err = b.zfs(ctx, nil, "snapshot", b.fullName(f))
	if errors.Is(err, errIsThere) { // that call's command has only ended now
		if err = b.retire(ctx, f); err == nil {
			_, err = b.zfs(ctx, nil, "snapshot", b.fullName(f))
		}
	}
	if err != nil {
		return f, nil, err
	}
	err = b.identify(ctx, &f)
	return f, letGo, err
}

// identify reads what ZFS knows the snapshot by.
func (b *Backend) identify(ctx context.Context, f *snapFile) error {
	props, err := b.get(ctx, []string{"guid", "createtxg"}, b.fullName(*f), false)
	if err != nil {
		return err
	}
	own := props[b.fullName(*f)]
	order := number(own["createtxg"])
	if own["guid"] == "" || order < 0 {
		return fmt.Errorf("zfs says nothing of the guid and createtxg of %s", b.fullName(*f))
	}
	f.GUID, f.Order = own["guid"], uint64(order)
	return nil
}

func (b *Backend) publish(f snapFile) error {
	if err := b.makeDirs("snapshots", f.Volume); err != nil {
		return err
	}
	return hostfs.WriteJSONAt(b.snapPath(f.Volume, f.ID), f)
}

// retire destroys a snapshot or, while clones need it, puts it aside under
// another name: sweep destroys it when the last clone has gone.
func (b *Backend) retire(ctx context.Context, f snapFile) error {
	_, err := b.zfs(ctx, nil, "destroy", b.fullName(f))
	if errors.Is(err, errHasClones) {
		_, err = b.zfs(ctx, nil, "rename", b.fullName(f), b.treeName(f.Tree)+"@g-"+newName())
	}
	if errors.Is(err, errNoDataset) {
		return nil
	}
	return err
}

// snapshot describes one.
func (b *Backend) snapshot(ctx context.Context, f snapFile) (storage.Snapshot, error) {
	props, err := b.get(ctx, []string{"used"}, b.fullName(f), false)
	if err != nil {
		return storage.Snapshot{}, err
	}
	return b.describeSnapshot(ctx, f, number(props[b.fullName(f)]["used"]))
}

func (b *Backend) describeSnapshot(ctx context.Context, f snapFile, used int64) (storage.Snapshot, error) {
	dir, err := b.view(ctx, f)
	if err != nil {
		return storage.Snapshot{}, err
	}
	return storage.Snapshot{
		ID: f.ID, Volume: f.Volume, Lineage: f.GUID, Order: f.Order, Created: f.Created, Used: used, Note: f.Note,
		Dir: filepath.Join(dir, hostfs.DataDir), Beside: filepath.Join(dir, hostfs.BesideDir),
	}, nil
}

// view is a directory that shows the snapshot: the one the file system has for
// that or, where it has none, the mount of a read-only clone.
func (b *Backend) view(ctx context.Context, f snapFile) (string, error) {
	if err := b.mountTree(ctx, f.Tree); err != nil {
		return "", err
	}
	direct := filepath.Join(b.treeDir(f.Tree), ".zfs", "snapshot")
	if _, err := os.Stat(direct); err == nil {
		return filepath.Join(direct, f.name()), nil
	}
	dir := b.path("v", f.Tree+"-"+f.name())
	if _, err := os.Lstat(filepath.Join(dir, hostfs.DataDir)); err == nil {
		return dir, nil
	}
	unlock, err := b.locks.Lock(ctx, "view "+f.Tree) // no volume's id
	if err != nil {
		return "", err
	}
	defer unlock()
	if now, err := b.readSnapshot("look at snapshot", f.Volume, f.ID); err != nil || now.Tree != f.Tree {
		return "", errors.Join(errNoDataset, err)
	}
	switch err := b.mountDataset(ctx, b.viewName(f)); {
	case errors.Is(err, errNoDataset):
		if _, err := b.zfs(ctx, nil, "clone", "-o", "readonly=on", b.fullName(f), b.viewName(f)); err != nil {
			return "", err
		}
	case err != nil:
		return "", err
	}
	_, err = os.Lstat(filepath.Join(dir, hostfs.DataDir))
	return dir, err
}

// Snapshots implements storage.Backend.
func (b *Backend) Snapshots(ctx context.Context, volume string) ([]storage.Snapshot, error) {
	const op = "list snapshots"
	if volume != "" {
		if err := checkID("volume", volume); err != nil {
			return nil, err
		}
	}
	if err := b.present(ctx); err != nil {
		return nil, b.fail(op, b.cfg.Source, err)
	}
	list, _, err := b.scanSnapshots(ctx, volume)
	return list, b.fail(op, b.cfg.Source, err)
}

func (b *Backend) scanSnapshots(ctx context.Context, volume string) (list []storage.Snapshot, strange []string, err error) {
	files, strange, err := b.snapFiles()
	if err != nil {
		return nil, nil, err
	}
	props, err := b.get(ctx, []string{"used"}, b.cfg.Source+"/t", true)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		if volume != "" && f.Volume != volume {
			continue
		}
		own := props[b.fullName(f)]
		if own == nil {
			if _, err := b.readSnapshot("", f.Volume, f.ID); !api.Is(err, api.NotFound) {
				strange = append(strange, b.snapPath(f.Volume, f.ID)) // destroyed by hand
			}
			continue
		}
		s, err := b.describeSnapshot(ctx, f, number(own["used"]))
		if err != nil {
			if _, e := b.readSnapshot("", f.Volume, f.ID); api.Is(e, api.NotFound) {
				continue // destroyed just now
			}
			return nil, nil, err
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(x, y storage.Snapshot) int {
		return cmp.Or(cmp.Compare(x.Order, y.Order), x.Created.Compare(y.Created), strings.Compare(x.ID, y.ID))
	})
	return list, strange, nil
}

func (b *Backend) snapFiles() (files []snapFile, strange []string, err error) {
	err = b.eachTwo("snapshots", func(volume, id, path string) {
		var f snapFile
		switch err := hostfs.ReadJSONAt(path, &f); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil || f.Volume != volume || f.ID != id || !ourTree.MatchString(f.Tree):
			strange = append(strange, path)
		default:
			files = append(files, f)
		}
	}, &strange)
	return files, strange, err
}

// DestroySnapshot implements storage.Backend. It also drops what had arrived
// of a snapshot that is not complete, unless it is just arriving.
func (b *Backend) DestroySnapshot(ctx context.Context, volume, id string) error {
	const op = "destroy snapshot"
	if err := errors.Join(checkID("volume", volume), checkID("snapshot", id)); err != nil {
		return err
	}
	object := volume + "@" + id
	unlock, err := b.enter(ctx, volume)
	if err != nil {
		return b.fail(op, object, err)
	}
	defer unlock()
	return b.fail(op, object, b.destroySnapshot(ctx, op, volume, id))
}

func (b *Backend) destroySnapshot(ctx context.Context, op, volume, id string) error {
	if b.busy.Take(volume, id) {
		err := b.dropIncoming(volume, id)
		b.busy.Release(volume, id)
		if err != nil {
			return err
		}
	}
	f, err := b.readSnapshot(op, volume, id)
	if api.Is(err, api.NotFound) {
		return b.sweep(ctx)
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	busy := b.sending[b.fullName(f)] > 0
	b.mu.Unlock()
	if busy {
		return &api.Error{Kind: api.InUse, Op: op, Object: volume + "@" + id, Reason: "it is just being sent", Next: "try again when that has ended"}
	}
	if err := b.unlist(ctx, f); err != nil {
		return err
	}
	// From here on it is gone; what cannot go now goes with its last clone.
	if err := b.retire(ctx, f); err != nil {
		return err
	}
	return b.sweep(ctx)
}

// unlist removes a snapshot's view and its file; nobody makes the view anew
// in between. While somebody looks at it, it stays.
func (b *Backend) unlist(ctx context.Context, f snapFile) error {
	unlock, err := b.locks.Lock(ctx, "view "+f.Tree) // no volume's id
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.destroy(ctx, b.viewName(f)); err != nil && !errors.Is(err, errNoDataset) {
		return err
	}
	return removeFile(b.snapPath(f.Volume, f.ID))
}

// known is what the pool's files name.
type known struct {
	trees map[string]bool // of heads and of what arrives
	snaps map[string]bool // full names of snapshots
	views map[string]bool // full names of their clones
}

func (b *Backend) known() (known, error) {
	k := known{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	b.mu.Lock()
	for name := range b.making {
		k.trees[name], k.snaps[name] = true, true
	}
	b.mu.Unlock()
	heads, _, err := b.headFiles()
	if err != nil {
		return k, err
	}
	for _, h := range heads {
		k.trees[h.Tree] = true
	}
	specs, err := b.incomingSpecs()
	if err != nil {
		return k, err
	}
	for _, s := range specs {
		if s.Tree != "" {
			k.trees[s.Tree] = true
			k.snaps[b.treeName(s.Tree)+"@"+markName(s.Mark)] = true
		}
	}
	snaps, _, err := b.snapFiles()
	for _, s := range snaps {
		k.snaps[b.fullName(s)], k.views[b.viewName(s)] = true, true
	}
	return k, err
}

// sweep destroys the trees, snapshots and views of ours that nothing names and
// no clone needs. It looks at ZFS first and at the files after that, so that
// what is published meanwhile is found in one of them.
func (b *Backend) sweep(ctx context.Context) error {
	unlock, err := b.locks.Lock(ctx, "sweep all") // no volume's id
	if err != nil {
		return err
	}
	defer unlock()
	all, err := b.get(ctx, []string{"origin", "type"}, b.cfg.Source, true)
	if err != nil {
		return err
	}
	k, err := b.known()
	if err != nil {
		return err
	}
	clones := map[string]int{}
	for _, p := range all {
		clones[p["origin"]]++
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	sort.Strings(names)
	for again := true; again; {
		again = false
		for _, n := range names {
			if all[n] == nil || !b.idle(n, k, all, clones) {
				continue
			}
			if err := b.destroy(ctx, n); err != nil && !errors.Is(err, errNoDataset) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				continue // in use, or of somebody else's: Recover tries again
			}
			clones[all[n]["origin"]]--
			delete(all, n)
			if rest, ok := strings.CutPrefix(n, b.cfg.Source+"/"); ok && !strings.Contains(n, "@") {
				_ = os.Remove(b.path(rest)) // the empty mount point
			}
			again = true
		}
	}
	return nil
}

// idle reports whether something is ours and nobody needs it.
func (b *Backend) idle(name string, k known, all map[string]map[string]string, clones map[string]int) bool {
	rest, ok := strings.CutPrefix(name, b.cfg.Source+"/")
	if !ok {
		return false
	}
	kind, rest, _ := strings.Cut(rest, "/")
	tree, snap, isSnap := strings.Cut(rest, "@")
	switch {
	case kind == "v":
		return !isSnap && ourView.MatchString(tree) && !k.views[name] && !k.snaps[b.viewed(tree)]
	case kind != "t" || !ourTree.MatchString(tree):
		return false
	case isSnap:
		return ourSnap.MatchString(snap) && !k.snaps[name] && clones[name] == 0
	case k.trees[tree]:
		return false
	}
	for n := range all {
		if strings.HasPrefix(n, name+"@") || strings.HasPrefix(n, name+"/") {
			return false
		}
	}
	return true
}

// viewed is the snapshot that a view shows.
func (b *Backend) viewed(view string) string {
	m := ourView.FindStringSubmatch(view)
	return b.treeName(m[1]) + "@" + m[2]
}
