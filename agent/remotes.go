package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
)

// Remotes opens places outside the cluster.
type Remotes interface {
	// Open opens a remote by its URL.
	Open(ctx context.Context, url string) (remote.Store, error)
}

// remoteOf finds a remote by its name; "" is origin, or the only one.
func remoteOf(v api.Volume, name string) (string, api.Remote, error) {
	const op = "find remote"
	if name == "" {
		name = "origin"
		if _, known := v.Remotes[name]; !known && len(v.Remotes) == 1 {
			for only := range v.Remotes {
				name = only
			}
		}
	}
	r, known := v.Remotes[name]
	if !known {
		return name, r, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it has no remote " + name, Next: "drover remote add " + v.Name + " " + name + " URL"}
	}
	return name, r, nil
}

// openRemote opens a volume's remote for an exchange.
func (a *Agent) openRemote(ctx context.Context, v api.Volume, r api.Remote, tell func(exchange.Progress)) (*exchange.Remote, error) {
	x, err := a.lookAt(ctx, v, r)
	if err != nil {
		return nil, err
	}
	x.Progress = tell
	if r.Key != "" {
		if x.Key, err = a.obtain(ctx, v, r.Key); err != nil {
			_ = x.Store.Close()
			return nil, err
		}
	}
	return x, nil
}

// remoteCache is where indexes and digests of a volume are kept between exchanges.
func (a *Agent) remoteCache(volume string) string {
	return filepath.Join(a.cfg.DataDir, "agent", "remotes", volume)
}

// SetRemote names a remote after it has answered, and its keys are here.
func (a *Agent) SetRemote(ctx context.Context, volume string, r api.NameRemote) (api.Volume, error) {
	v, known := a.record(volume)
	if !known {
		return api.Volume{}, notHere(a.cfg.Node, volume)
	}
	x, err := a.lookAt(ctx, v, api.Remote{URL: r.URL})
	if err != nil {
		return api.Volume{}, err
	}
	defer x.Store.Close()
	if err := x.Store.Check(ctx, true); err != nil {
		return api.Volume{}, err
	}
	key, old, err := a.settleKey(ctx, x, v, r.Key, r.Open)
	if err != nil {
		return api.Volume{}, err
	}
	// What the store says of itself has no secrets in it.
	to := &api.Remote{URL: x.Store.Info().URL, Key: key, Old: old}
	return a.deps.Ledger.Change(ctx, volume, ledger.Change{Remote: &ledger.SetRemote{Name: r.Name, Remote: to, Replace: r.Replace}})
}

// Push begins to bring a branch's commits to a remote.
func (a *Agent) Push(_ context.Context, volume string, r api.StartPush, by string) (api.Job, error) {
	const op = "push"
	v, known := a.record(volume)
	if !known {
		return api.Job{}, notHere(a.cfg.Node, volume)
	}
	if r.Branch == "" {
		r.Branch = v.Branch
	}
	_, v, rec, err := a.owned(op, volume, r.Branch)
	if err != nil {
		return api.Job{}, err
	}
	name, to, err := remoteOf(v, r.Remote)
	if err != nil {
		return api.Job{}, err
	}
	for _, t := range r.Tags {
		if _, known := v.Tags[t]; !known {
			return api.Job{}, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it has no tag " + t, Next: "drover tag " + v.Name + " lists those it has"}
		}
	}
	if rec.Commit == "" && len(r.Tags) == 0 {
		return api.Job{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + r.Branch, Reason: "it has no commit yet", Next: "drover commit " + v.Name + " -m … makes the first"}
	}
	if r.To == "" {
		r.To = r.Branch
	}
	for _, b := range []string{r.To, r.OnDivergence} {
		if b != "" {
			if err := api.CheckBranchName(b); err != nil {
				return api.Job{}, err
			}
		}
	}
	return a.start(api.Job{Kind: "push", Volume: v.Name, Remote: name, By: by}, func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error) {
		return a.push(ctx, v, rec, r, name, to, tell)
	}), nil
}

func (a *Agent) push(ctx context.Context, v api.Volume, rec api.Head, r api.StartPush, name string, to api.Remote, tell func(exchange.Progress)) (*api.Synced, error) {
	x, err := a.openRemote(ctx, v, to, tell)
	if err != nil {
		return nil, err
	}
	defer x.Store.Close()
	pool := a.commitsOf(v.ID, rec.Pool)
	g, err := pool.Graph(ctx)
	if err != nil {
		return nil, err
	}
	done := &api.Synced{Relation: string(repo.UpToDate), DryRun: r.DryRun}
	if len(r.Tags) == 0 {
		out, err := x.Push(ctx, pool, exchange.Push{Branch: r.To, Tip: rec.Commit, Graph: g, Aside: r.OnDivergence, DryRun: r.DryRun})
		done = &api.Synced{Relation: string(out.Relation), Branch: out.Branch, From: out.Theirs, To: rec.Commit, Commits: out.Commits, Skipped: out.Skipped, DryRun: r.DryRun, Changed: out.Changed, Warning: out.Warning}
		if err != nil {
			return done, err
		}
		if out.Relation == repo.Ahead {
			done.To = out.Theirs
		}
		if !r.DryRun {
			if err := a.track(ctx, v.ID, name, out.Branch, done.To); err != nil {
				return done, err
			}
		}
	}
	return done, a.pushTags(ctx, x, v, pool, g, r, done)
}

// track notes where a remote's branch is.
func (a *Agent) track(ctx context.Context, volume, name, branch, commit string) error {
	after, err := a.deps.Ledger.Change(ctx, volume, ledger.Change{Track: &ledger.Track{Remote: name, Branch: branch, Commit: commit}})
	if err == nil {
		a.take(after, true)
	}
	return err
}

// Fetch begins to bring a remote's branch here; with Into a branch follows it.
func (a *Agent) Fetch(_ context.Context, volume string, r api.StartFetch, by string) (api.Job, error) {
	v, known := a.record(volume)
	if !known {
		return api.Job{}, notHere(a.cfg.Node, volume)
	}
	name, from, err := remoteOf(v, r.Remote)
	if err != nil {
		return api.Job{}, err
	}
	if r.Branch == "" {
		r.Branch = v.Branch
	}
	kind, at := "fetch", v.Branch
	if r.Into != "" {
		kind, at = "pull", r.Into
	}
	h, v, rec, err := a.owned(kind, volume, at)
	if err != nil {
		return api.Job{}, err
	}
	return a.start(api.Job{Kind: kind, Volume: v.Name, Remote: name, By: by}, func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error) {
		got, err := a.bring(ctx, v, rec.Pool, r, name, from, tell)
		if err != nil {
			return nil, err
		}
		tip, g := got.tip, got.graph
		done := &api.Synced{Branch: r.Branch, To: tip.ID, Commits: []string{tip.ID}, Relation: string(g.Relate(tip.ID, rec.Commit))}
		if r.Into != "" {
			if done, err = a.advanceTo(ctx, h, g, tip, r, by); err != nil {
				return done, err
			}
		}
		done.Tags, done.Warning = got.tags, got.warning
		return done, got.left
	}), nil
}

// brought is what a fetch brought.
type brought struct {
	tip     api.Commit
	graph   repo.Graph
	tags    []api.MovedTag
	warning string
	left    error // tags that were asked for and could not be made
}

// bring brings the tip of a remote's branch into a pool, and tags.
func (a *Agent) bring(ctx context.Context, v api.Volume, pool string, r api.StartFetch, name string, from api.Remote, tell func(exchange.Progress)) (got brought, err error) {
	x, err := a.openRemote(ctx, v, from, tell)
	if err != nil {
		return got, err
	}
	defer x.Store.Close()
	b, err := a.backend(pool)
	if err != nil {
		return got, err
	}
	here := a.commitsOf(v.ID, pool)
	g, err := here.Graph(ctx)
	if err != nil {
		return got, err
	}
	into := exchange.Into{Backend: b, Volume: v.ID, Pool: here, AllowLoss: r.AllowLoss}
	if got.tip, got.graph, err = fetchTip(ctx, x, r.Branch, g, into); err != nil {
		return got, err
	}
	if err := a.track(ctx, v.ID, name, r.Branch, got.tip.ID); err != nil {
		return got, err
	}
	into.Graph = got.graph
	return got, a.fetchTags(ctx, x, v, here, into, r.AllTags, r.Force, &got)
}

// fetchTip brings what a remote's branch points to.
func fetchTip(ctx context.Context, x *exchange.Remote, branch string, g repo.Graph, into exchange.Into) (api.Commit, repo.Graph, error) {
	theirs, err := branchOf(ctx, x, "fetch", branch)
	if err != nil {
		return api.Commit{}, g, err
	}
	if g, err = x.History(ctx, g, theirs); err != nil {
		return api.Commit{}, g, err
	}
	into.Graph = g
	_, err = x.Get(ctx, theirs, into)
	return theirs.Record.Commit, g, err
}

// advanceTo lets a branch follow a commit that was fetched.
func (a *Agent) advanceTo(ctx context.Context, h *head, g repo.Graph, tip api.Commit, r api.StartFetch, by string) (*api.Synced, error) {
	const op = "pull"
	_, v, rec, err := a.owned(op, h.key.volume, h.key.branch)
	if err != nil {
		return nil, err
	}
	done := &api.Synced{Branch: r.Into, From: rec.Commit, To: rec.Commit, Commits: []string{tip.ID}}
	rel := g.Relate(tip.ID, rec.Commit)
	if rec.Commit == "" {
		rel = repo.FastForward
	}
	done.Relation = string(rel)
	switch rel {
	case repo.UpToDate, repo.Ahead:
		return done, nil
	case repo.Diverged, repo.Unrelated:
		if r.OnDivergence == "" {
			return done, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + r.Into, Reason: fmt.Sprintf("%s: ours is at %s, theirs at %s", rel, short(rec.Commit), short(tip.ID)), Next: "pull with --branch-on-divergence NAME to have theirs as a branch of its own"}
		}
		done.Branch, done.From, done.To = r.OnDivergence, "", tip.ID
		_, err := a.Branch(ctx, v.ID, api.MakeBranch{Name: r.OnDivergence, From: tip.ID}, by)
		return done, err
	}
	w, err := h.do(ctx, func(api.Volume, api.Head) (workJournal, error) {
		return workJournal{Kind: plan.WorkReset, Op: repo.OpPull, To: tip.ID, Seed: tip.ID, By: by}, nil
	})
	m := h.moved(w)
	done.To, done.Kept = m.To, m.Kept
	return done, err
}

// Clone begins to make a volume here from a branch of a remote.
func (a *Agent) Clone(ctx context.Context, r api.CloneVolume, by string) (api.Job, error) {
	const op = "clone volume"
	if err := api.CheckNewVolumeName(r.Name); err != nil {
		return api.Job{}, err
	}
	if _, err := a.find(ctx, r.Name); err == nil {
		return api.Job{}, &api.Error{Kind: api.Exists, Op: op, Object: r.Name, Reason: "there is a volume of that name", Next: "choose another name, or drover pull into it"}
	} else if !api.Is(err, api.NotFound) {
		return api.Job{}, err
	}
	pool, err := a.choosePool(r.Pool)
	if err != nil {
		return api.Job{}, err
	}
	return a.start(api.Job{Kind: "clone", Volume: r.Name, Remote: "origin", By: by}, func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error) {
		return a.clone(ctx, r, pool, by, tell)
	}), nil
}

func (a *Agent) clone(ctx context.Context, r api.CloneVolume, pool, by string, tell func(exchange.Progress)) (*api.Synced, error) {
	b, err := a.backend(pool)
	if err != nil {
		return nil, err
	}
	id := a.deps.NewID()
	// While no record names it, what arrives is kept from being swept.
	a.mu.Lock()
	a.cloning[id] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.cloning, id)
		a.mu.Unlock()
	}()
	from, err := a.unlockRemote(ctx, id, r)
	if err != nil {
		return nil, err
	}
	x, err := a.openRemote(ctx, api.Volume{ID: id}, from, tell)
	if err != nil {
		return nil, err
	}
	defer x.Store.Close()
	if r.Branch, err = cloneBranch(ctx, x, r.Branch); err != nil {
		_ = os.RemoveAll(a.remoteCache(id))
		return nil, err
	}
	here := a.commitsOf(id, pool)
	into := exchange.Into{Backend: b, Volume: id, Pool: here, AllowLoss: r.AllowLoss}
	tip, g, err := fetchTip(ctx, x, r.Branch, nil, into)
	if err != nil {
		_ = os.RemoveAll(a.remoteCache(id))
		return nil, err
	}
	v, err := a.deps.Ledger.Create(ctx, ledger.Create{
		ID: id, Name: r.Name, Size: r.Size, Node: a.cfg.Node, Pool: pool, Seed: tip.ID, Commit: tip.ID, Branch: r.Branch,
		Tip:     &api.Tip{Op: repo.OpClone, By: by, At: a.deps.Now().UTC(), Note: "from " + x.Store.Info().URL},
		Remotes: map[string]api.Remote{"origin": from},
	})
	if err != nil {
		return nil, err
	}
	a.take(v, true)
	if err := a.track(ctx, id, "origin", r.Branch, tip.ID); err != nil {
		return nil, err
	}
	if err := a.ready(ctx, id, r.Branch, branchWait); err != nil {
		return nil, err
	}
	got := brought{tip: tip, graph: g}
	into.Graph = g
	err = a.fetchTags(ctx, x, v, here, into, r.AllTags, false, &got)
	if err == nil {
		err = got.left
	}
	return &api.Synced{Relation: string(repo.FastForward), Branch: r.Branch, To: tip.ID, Commits: []string{tip.ID}, Volume: v.Name, Tags: got.tags, Warning: got.warning}, err
}

// unlockRemote brings the keys here that cloning a remote takes.
func (a *Agent) unlockRemote(ctx context.Context, id string, r api.CloneVolume) (api.Remote, error) {
	x, err := a.lookAt(ctx, api.Volume{ID: id}, api.Remote{URL: r.URL})
	if err != nil {
		return api.Remote{}, err
	}
	defer x.Store.Close()
	key, old, err := a.settleKey(ctx, x, api.Volume{ID: id}, r.Key, r.Open)
	return api.Remote{URL: x.Store.Info().URL, Key: key, Old: old}, err
}

// Verify begins to read a commit of a remote back.
func (a *Agent) Verify(_ context.Context, volume string, r api.VerifyRemote, by string) (api.Job, error) {
	v, known := a.record(volume)
	if !known {
		return api.Job{}, notHere(a.cfg.Node, volume)
	}
	name, from, err := remoteOf(v, r.Remote)
	if err != nil {
		return api.Job{}, err
	}
	if r.Branch == "" {
		r.Branch = v.Branch
	}
	if r.Check != nil {
		if err := r.Check.Check(); err != nil {
			return api.Job{}, err
		}
	}
	return a.start(api.Job{Kind: "verify", Volume: v.Name, Remote: name, By: by}, func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error) {
		return a.checkBack(ctx, v, name, from, r.Branch, r.Check, tell)
	}), nil
}

// readBack reads all of a remote's branch and checks it.
func (a *Agent) readBack(ctx context.Context, v api.Volume, from api.Remote, branch string, tell func(exchange.Progress)) (*api.Synced, error) {
	x, err := a.openRemote(ctx, v, from, tell)
	if err != nil {
		return nil, err
	}
	defer x.Store.Close()
	s, err := branchOf(ctx, x, "verify", branch)
	if err != nil {
		return nil, err
	}
	return &api.Synced{Relation: string(repo.UpToDate), Branch: branch, To: s.Record.ID, Commits: []string{s.Record.ID}}, x.Verify(ctx, s)
}
