package agent

import (
	"context"
	"fmt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

// reading keeps snapshots that are being read from being dropped meanwhile. It
// gives the function that ends it.
func (a *Agent) reading(ids ...string) func() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.read == nil {
		a.read = map[string]int{}
	}
	for _, id := range ids {
		a.read[id]++
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, id := range ids {
			if a.read[id]--; a.read[id] <= 0 {
				delete(a.read, id)
			}
		}
	}
}

func (a *Agent) isRead(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.read[id] > 0
}

// Place finds the commit that a reference means, as this node knows the
// history, and where this node holds it. Dir is empty when it does not.
func (a *Agent) Place(ctx context.Context, v api.Volume, branch, at string) (api.Place, error) {
	if branch == "" {
		branch = v.Branch
	}
	id, err := a.resolveIn(ctx, v, branch, at)
	if err != nil {
		return api.Place{}, err
	}
	p := api.Place{Volume: v.Name, Commit: id, Node: a.cfg.Node}
	f, err := a.Find(ctx, v.ID, id, v.Heads[branch].Pool)
	if api.Is(err, api.NotFound) {
		return p, nil
	}
	p.Pool, p.Dir = f.Pool, f.Snapshot.Dir
	return p, err
}

// maxChanges bounds how many paths of a diff are kept.
const maxChanges = 100_000

// Diff tells how a commit differs from another one, or with to "" from its
// branch as it is now. Both have to be on this node.
func (a *Agent) Diff(ctx context.Context, v api.Volume, branch, from, to string, limit int) (api.Diff, error) {
	pool := v.Heads[branch].Pool
	base, err := a.Find(ctx, v.ID, from, pool)
	if err != nil {
		return api.Diff{}, err
	}
	defer a.reading(from, to)()
	out := api.Diff{Volume: v.Name, From: from, To: to, Node: a.cfg.Node, Changes: []api.PathChange{}}
	var b storage.Backend
	var target storage.Snapshot
	if to == "" {
		var free func()
		if b, target, free, err = a.liveTree(ctx, v, branch); err != nil {
			return out, err
		}
		defer free()
	} else {
		f, err := a.Find(ctx, v.ID, to, base.Pool)
		if err != nil {
			return out, err
		}
		b, target = f.Backend, f.Snapshot
	}
	if limit <= 0 || limit > maxChanges {
		limit = maxChanges
	}
	var hints *tree.Hints
	if b == base.Backend {
		if hints, err = tree.HintsOf(ctx, b, v.ID, from, target.ID); err != nil {
			return out, err
		}
	}
	err = tree.Diff(ctx, base.Snapshot, target, hints, func(c tree.Change) error {
		addTotals(&out.Totals, c)
		if out.More = len(out.Changes) >= limit; !out.More {
			out.Changes = append(out.Changes, pathChange(c))
		}
		return nil
	})
	return out, err
}

// liveTree is a head as it is now: a snapshot that goes when free is called
// where that costs nothing, otherwise the head itself.
func (a *Agent) liveTree(ctx context.Context, v api.Volume, branch string) (storage.Backend, storage.Snapshot, func(), error) {
	const op = "compare with the branch"
	h, _, rec, err := a.owned(op, v.ID, branch)
	if err != nil {
		return nil, storage.Snapshot{}, nil, err
	}
	p, err := a.pool(rec.Pool)
	if err != nil {
		return nil, storage.Snapshot{}, nil, err
	}
	if seen := p.seen(); !seen.Atomic || !seen.Instant {
		hd, err := p.backend.Head(ctx, h.storageKey())
		return p.backend, storage.Snapshot{ID: "", Volume: v.ID, Dir: hd.Dir}, func() {}, err
	}
	id := "look-" + a.deps.NewID()
	end := a.reading(id)
	s, err := p.backend.Snapshot(ctx, h.storageKey(), id, nil)
	if err != nil {
		end()
		return nil, s, nil, err
	}
	return p.backend, s, func() {
		defer end()
		// When that fails, it goes with the next look at what nothing needs.
		if err := p.backend.DestroySnapshot(context.WithoutCancel(ctx), v.ID, id); err != nil {
			a.deps.Log.Warn("cannot remove a snapshot", "volume", v.Name, "snapshot", id, "error", err)
		}
	}, nil
}

func addTotals(t *api.DiffTotals, c tree.Change) {
	switch c.What {
	case tree.Added:
		t.Added++
	case tree.Removed:
		t.Removed++
		t.Gone += c.OldSize
	case tree.Modified:
		t.Modified++
	case tree.Metadata:
		t.Metadata++
	case tree.Retyped:
		t.Type++
	}
	t.Bytes += c.Bytes
}

func pathChange(c tree.Change) api.PathChange {
	words := map[tree.Kind]string{tree.Dir: "dir", tree.File: "file", tree.Link: "link", tree.Symlink: "symlink", tree.Node: "node"}
	out := api.PathChange{
		Path: api.EscapePath(c.Path), What: string(c.What), Was: words[c.Was], Is: words[c.Is], OldSize: c.OldSize, Size: c.Size,
		Bytes: c.Bytes, Entries: c.Entries, Target: api.EscapePath(c.Link),
	}
	if c.What != tree.Added && c.What != tree.Removed && c.Is != tree.Link {
		if c.OldMode != c.Mode {
			out.Mode = fmt.Sprintf("%04o > %04o", c.OldMode&0o7777, c.Mode&0o7777)
		}
		if c.OldOwner != c.Owner {
			out.Owner = fmt.Sprintf("%d:%d > %d:%d", c.OldOwner[0], c.OldOwner[1], c.Owner[0], c.Owner[1])
		}
	}
	return out
}

// ReadFile reads a part of a file of a commit that this node holds.
func (a *Agent) ReadFile(ctx context.Context, v api.Volume, commit, path string, offset, length int64) (api.FilePart, error) {
	const op = "read file"
	f, err := a.Find(ctx, v.ID, commit, "")
	if err != nil {
		return api.FilePart{}, err
	}
	defer a.reading(commit)()
	e, err := tree.Look(f.Snapshot, path)
	if err != nil {
		return api.FilePart{}, err
	}
	if e.Kind != tree.File {
		return api.FilePart{}, &api.Error{Kind: api.Unsupported, Op: op, Object: api.EscapePath(path), Reason: "it is no regular file", Next: "drover mount shows the whole tree"}
	}
	if offset < 0 || length < 0 {
		return api.FilePart{}, &api.Error{Kind: api.Invalid, Op: op, Object: api.EscapePath(path), Reason: "a negative offset or length"}
	}
	out := api.FilePart{Commit: commit, Path: api.EscapePath(path), Size: e.Size, Offset: offset}
	out.Data = make([]byte, min(length, api.MaxFilePart, max(e.Size-offset, 0)))
	n, err := tree.Read(ctx, f.Snapshot, path, out.Data, offset)
	if err == nil && n < len(out.Data) {
		err = &api.Error{Kind: api.Damaged, Op: op, Object: api.EscapePath(path), Reason: fmt.Sprintf("it ends at byte %d, not at %d", offset+int64(n), e.Size)}
	}
	return out, err
}

// RevertFile puts one file of a commit back into a head. What the head has and
// no commit is kept in a stash before. While somebody uses the head it is
// refused, unless by force: an open file stays the old one for who has it open.
func (a *Agent) RevertFile(ctx context.Context, volume string, r api.RevertFile, by string) (api.Reverted, error) {
	const op = "revert file"
	path, err := api.UnescapePath(r.Path)
	if err != nil {
		return api.Reverted{}, err
	}
	h, v, rec, err := a.owned(op, volume, r.Branch)
	if err != nil {
		return api.Reverted{}, err
	}
	if rec.Commit == "" {
		return api.Reverted{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + r.Branch, Reason: "it has no commit yet, so what it has now could not be kept", Next: "drover commit " + v.Name + " -m … makes the first"}
	}
	from, err := a.resolveIn(ctx, v, r.Branch, r.From)
	if err != nil {
		return api.Reverted{}, err
	}
	h.mounting.Lock() // nobody mounts, commits or resets it meanwhile
	defer h.mounting.Unlock()
	x, err := h.begin(op)
	if err != nil {
		return api.Reverted{}, err
	}
	f, err := a.Find(ctx, volume, from, x.rec.Pool)
	if err != nil {
		return api.Reverted{}, err
	}
	if _, err := tree.Look(f.Snapshot, path); err != nil {
		return api.Reverted{}, err
	}
	holders, err := h.holders(ctx)
	if err != nil {
		return api.Reverted{}, err
	}
	if len(holders) > 0 && !r.Force {
		return api.Reverted{}, &api.Error{Kind: api.InUse, Op: op, Object: x.volume.Name + "@" + r.Branch, Reason: "it is used by " + names(holders), Next: "stop them first, or add --force: who has the file open goes on with the old one"}
	}
	out := api.Reverted{Volume: x.volume.Name, Branch: r.Branch, Path: api.EscapePath(path), From: from}
	if out.Kept, err = x.stashFor(ctx, op, repo.Subject(out.Path), by); err != nil {
		return out, err
	}
	hd, err := x.b.Head(ctx, h.storageKey())
	if err != nil {
		return out, err
	}
	defer a.reading(from)()
	e, err := tree.Restore(ctx, f.Snapshot, path, hd.Dir, ".drover-revert-"+a.deps.NewID())
	if err != nil {
		return out, err
	}
	out.Size = e.Size
	a.event("volume.file-reverted", "info", x.volume, r.Branch, fmt.Sprintf("%s of volume %s was put back as in commit %s by %s", api.EscapePath(path), x.volume.Name, short(from), by), nil)
	return out, nil
}

// stashFor keeps what the head has and no commit, and notes in the reflog what
// is going to be done, so that undo takes it back. The branch goes on pointing
// where it did. mounting is held.
func (x *hold) stashFor(ctx context.Context, op, note, by string) (string, error) {
	h := x.h
	dirty, _, err := h.dirty(ctx, x.rec)
	if err != nil {
		return "", err
	}
	w := workJournal{Op: op, By: by, At: h.a.deps.Now().UTC()}
	if dirty {
		w.Stash, w.Stashed = h.a.commitID(), true
		if err := h.stash(ctx, x.volume, x.rec, w); err != nil {
			return "", err
		}
	}
	after, err := h.a.deps.Ledger.Change(ctx, x.volume.ID, ledger.Change{Advance: &ledger.Advance{
		Branch: h.key.branch, Node: h.a.cfg.Node, Epoch: x.rec.Epoch, From: x.rec.Commit, To: x.rec.Commit,
		Tip: api.Tip{Op: repo.OpRevertFile, Kept: w.kept(), By: by, At: w.At, Note: note},
	}})
	if err != nil {
		return "", err
	}
	h.a.take(after, true)
	return w.kept(), nil
}
