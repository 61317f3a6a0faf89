package agent

import (
	"context"
	"slices"
	"sync"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// notes remembers what the notes of snapshots say: they never change, and a
// head looks at all of its volume's again and again.
type notes struct {
	mu   sync.Mutex
	read map[string]map[string]repo.Note // guarded by mu; volume -> snapshot -> its note without reflog
}

// of gives the commit that a snapshot is, nil for none.
func (n *notes) of(s storage.Snapshot) *api.Commit { return n.note(s).Commit }

func (n *notes) note(s storage.Snapshot) repo.Note {
	n.mu.Lock()
	defer n.mu.Unlock()
	known, ok := n.read[s.Volume][s.ID]
	if ok {
		return known
	}
	x := repo.ReadNote(s.Note)
	x.RefLog = nil
	if x.Commit != nil && x.Commit.ID != s.ID {
		x.Commit = nil // a note that speaks of another snapshot makes no commit
	}
	if n.read == nil {
		n.read = map[string]map[string]repo.Note{}
	}
	if n.read[s.Volume] == nil {
		n.read[s.Volume] = map[string]repo.Note{}
	}
	n.read[s.Volume][s.ID] = x
	return x
}

func (n *notes) forget(volume, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id == "" {
		delete(n.read, volume)
		return
	}
	delete(n.read[volume], id)
}

// Found is a commit that a pool of this node holds.
type Found struct {
	Pool     string
	Backend  storage.Backend
	Commit   api.Commit
	Snapshot storage.Snapshot
}

// held lists a volume's commits in this node's pools, by commit and pool. A
// pool that is gone is left out, and complete is false.
func (a *Agent) held(ctx context.Context, volume string) (list []Found, complete bool, err error) {
	complete = true
	for _, p := range a.poolList() {
		if p.seen().State == api.PoolGone {
			complete = false
			continue
		}
		snapshots, err := p.backend.Snapshots(ctx, volume)
		if err != nil {
			return nil, false, err
		}
		for _, s := range snapshots {
			if c := a.notes.of(s); c != nil {
				list = append(list, Found{p.name, p.backend, *c, s})
			}
		}
	}
	return list, complete, nil
}

// Graph is what this node's pools hold of a volume's history.
func (a *Agent) Graph(ctx context.Context, volume string) (repo.Graph, error) {
	list, _, err := a.held(ctx, volume)
	g := make(repo.Graph, len(list))
	for _, f := range list {
		g[f.Commit.ID] = f.Commit
	}
	return g, err
}

// Find gives a commit that a pool of this node holds, one in the pool named
// first; NotFound when none does.
func (a *Agent) Find(ctx context.Context, volume, commit, pool string) (Found, error) {
	list, complete, err := a.held(ctx, volume)
	if err != nil {
		return Found{}, err
	}
	return a.choose(list, complete, commit, pool)
}

// choose is Find in what was listed.
func (a *Agent) choose(list []Found, complete bool, commit, pool string) (Found, error) {
	const op = "find commit"
	at := -1
	for i, f := range list {
		if f.Commit.ID == commit && (at < 0 || f.Pool == pool) {
			at = i
		}
	}
	switch {
	case at >= 0:
		return list[at], nil
	case !complete:
		return Found{}, &api.Error{Kind: api.Unknown, Op: op, Object: short(commit), Reason: "a pool of " + a.cfg.Node + " is gone, and may hold it", Next: "drover pool ls tells more"}
	}
	return Found{}, &api.Error{Kind: api.NotFound, Op: op, Object: short(commit), Reason: "no pool of " + a.cfg.Node + " holds it", Next: "it was pruned, or lies on another node or remote"}
}

// inPool looks that a commit is in the pool where a head is to be made of it.
func (a *Agent) inPool(ctx context.Context, volume, commit, pool string) error {
	f, err := a.Find(ctx, volume, commit, pool)
	if err == nil && f.Pool != pool {
		err = &api.Error{Kind: api.NotFound, Op: "find commit", Object: short(commit), Reason: "it is in pool " + f.Pool + " of " + a.cfg.Node + ", the branch in pool " + pool, Next: "make a branch of it: drover branch VOLUME NAME " + short(commit)}
	}
	return err
}

// needed reports whether what a head saw as useless may be of use to a move
// that began meanwhile on another branch of the volume.
func (a *Agent) needed(volume string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, h := range a.heads {
		if key.volume != volume {
			continue
		}
		for _, rec := range h.volume().Heads {
			if rec.Move != nil {
				return true
			}
		}
	}
	return false
}

// Resolve finds the commit that a reference means, as far as this node's pools
// know the history.
func (a *Agent) Resolve(ctx context.Context, v api.Volume, r api.Ref) (string, error) {
	g, err := a.Graph(ctx, v.ID)
	if err != nil {
		return "", err
	}
	return g.Resolve(r, repo.RefsOf(v))
}

// owned looks up a head that this node may write now.
func (a *Agent) owned(op, volume, branch string) (*head, api.Volume, api.Head, error) {
	h := a.head(volume, branch)
	if h == nil {
		if v, known := a.record(volume); known && v.Deleted == nil {
			if _, there := v.Heads[branch]; !there {
				return nil, v, api.Head{}, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "the volume has no such branch", Next: "drover branch " + v.Name + " lists them"}
			}
		}
		return nil, api.Volume{}, api.Head{}, notHere(a.cfg.Node, volume)
	}
	v, fresh, _ := h.state()
	rec, there := v.Heads[branch]
	switch {
	case v.Deleted != nil:
		return h, v, rec, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "the volume was deleted", Next: "drover volume restore " + v.Name}
	case !there:
		return h, v, rec, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "the volume has no such branch", Next: "drover branch " + v.Name + " lists them"}
	case rec.Node != a.cfg.Node:
		return h, v, rec, notHere(a.cfg.Node, v.Name)
	case !fresh:
		return h, v, rec, &api.Error{Kind: api.Unknown, Op: op, Object: v.Name, Reason: "the state store has not answered since the agent's start", Next: "try again when drover status shows it healthy"}
	case !rec.Ready:
		return h, v, rec, &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name + "@" + branch, Reason: "its head is just being made", Next: "try again in a moment"}
	}
	return h, v, rec, nil
}

// record is what this node knows of a volume that concerns it.
func (a *Agent) record(volume string) (api.Volume, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, h := range a.heads {
		if key.volume == volume {
			return h.volume(), true
		}
	}
	return api.Volume{}, false
}

// reflog is the moves of the branch's tip, as far as its head's note and the
// record tell; known is false when the note cannot be read now.
func (h *head) reflog(ctx context.Context) (log []api.RefLogEntry, known bool, err error) {
	v := h.volume()
	rec := v.Heads[h.key.branch]
	h.mu.Lock()
	log, epoch := h.log, h.logEpoch
	h.mu.Unlock()
	if epoch != rec.Epoch {
		b, err := h.a.backend(rec.Pool)
		if err != nil {
			return nil, false, nil //nolint:nilerr // a pool that is gone is no error of the reflog
		}
		hd, err := b.Head(ctx, h.storageKey())
		if api.Is(err, api.NotFound) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		n := readNote(hd.Note)
		if n.Epoch != rec.Epoch {
			return nil, false, nil
		}
		if log, err = repo.UnpackRefLog(n.RefLog); err != nil {
			h.a.deps.Log.Error("cannot read a reflog", "volume", v.Name, "branch", h.key.branch, "error", err)
			return nil, false, nil
		}
	}
	log, err = h.follow(ctx, log, rec)
	if err != nil {
		return nil, false, err
	}
	h.mu.Lock()
	h.log, h.logEpoch = log, rec.Epoch
	h.mu.Unlock()
	return log, true, nil
}

// follow brings a reflog up to the record.
func (h *head) follow(ctx context.Context, log []api.RefLogEntry, rec api.Head) ([]api.RefLogEntry, error) {
	if !behind(log, rec) {
		return log, nil
	}
	g, err := h.a.Graph(ctx, h.key.volume)
	if err != nil {
		return nil, err
	}
	log, _ = g.Follow(slices.Clone(log), h.key.branch, rec.Commit, rec.Tip)
	return log, nil
}

// behind reports whether a reflog lacks the tip's last move.
func behind(log []api.RefLogEntry, rec api.Head) bool {
	_, more := repo.Graph(nil).Follow(log, "", rec.Commit, rec.Tip)
	return more
}

// reached gives the commits that this node has to keep of a volume, and
// whether all of that is known. rec's own branch and those of others count
// where they are here; what a move takes along it has until it is settled.
func (a *Agent) reached(ctx context.Context, v api.Volume, g repo.Graph) (keep map[string]bool, sure bool, err error) {
	tips := a.nameless(v)
	sure = true
	for branch, rec := range v.Heads {
		mine := rec.Node == a.cfg.Node
		if mine || rec.From == a.cfg.Node || (rec.Move != nil && rec.Move.To == a.cfg.Node) {
			tips = append(tips, rec.Commit, rec.Seed)
		}
		if !mine {
			continue
		}
		h := a.head(v.ID, branch)
		if h == nil {
			sure = false
			continue
		}
		log, known, err := h.reflog(ctx)
		if err != nil {
			return nil, false, err
		}
		sure = sure && known
		tips = append(tips, repo.Named(log)...)
		j, found, err := get[workJournal](a.index, bucketWork, h.id())
		if err != nil {
			return nil, false, err
		}
		if found {
			tips = append(tips, j.To, j.Seed, j.Stash)
		}
	}
	return g.Reach(tips...), sure, nil
}

// nameless are the commits that a volume's record names other than by a branch.
func (a *Agent) nameless(v api.Volume) []string {
	var tips []string
	for _, id := range v.Tags {
		tips = append(tips, id)
	}
	for _, id := range v.Tracking {
		tips = append(tips, id)
	}
	for _, d := range v.Dropped {
		tips = append(tips, d.Commit, d.Kept)
	}
	return tips
}

// luggage lists the commits that go along when the head leaves its pool and
// that the target does not hold, parents before children: all that the branch
// and its reflog reach, and when nothing of the volume stays, all that has a name.
func (h *head) luggage(ctx context.Context, v api.Volume, rec api.Head, have func() (map[string]bool, error)) ([]string, error) {
	list, _, err := h.a.held(ctx, h.key.volume)
	if err != nil {
		return nil, err
	}
	g := repo.Graph{}
	for _, f := range list {
		if f.Pool == rec.Pool {
			g[f.Commit.ID] = f.Commit
		}
	}
	if len(g) == 0 {
		return nil, nil
	}
	log, known, err := h.reflog(ctx)
	if err != nil {
		return nil, err
	}
	if !known && !h.sealed() {
		return nil, &api.Error{Kind: api.Unavailable, Op: "move volume", Object: v.Name, Reason: "its reflog cannot be read now"}
	}
	tips := append(repo.Named(log), rec.Commit)
	if h.last(v) {
		tips = append(tips, h.a.nameless(v)...)
	}
	there, err := have()
	if err != nil {
		return nil, err
	}
	var out []string
	done := map[string]bool{}
	for id := range there {
		done[id] = true
	}
	slices.Sort(tips)
	for _, tip := range slices.Compact(tips) {
		for _, c := range missing(g, tip, done) {
			done[c.ID] = true
			out = append(out, c.ID)
		}
	}
	return out, nil
}

// missing is Graph.Missing that goes on past what is there: a commit that was
// pruned, or came without its history, hides none of its ancestors.
func missing(g repo.Graph, tip string, have map[string]bool) []api.Commit {
	var out []api.Commit
	for _, c := range g.Missing(tip, nil) {
		if !have[c.ID] {
			out = append(out, c)
		}
	}
	return out
}

// last reports whether this node owns no other branch of the volume.
func (h *head) last(v api.Volume) bool {
	for branch, rec := range v.Heads {
		if branch != h.key.branch && rec.Node == h.a.cfg.Node {
			return false
		}
	}
	return true
}

// sealed reports whether a move has turned the head into its last snapshot.
func (h *head) sealed() bool {
	j, err := h.mover.journal()
	return err == nil && j.Sealed != ""
}
