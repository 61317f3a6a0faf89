package exchange

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/tree"
)

// Push is what is to be pushed.
type Push struct {
	Branch string // of the remote
	Tip    string // commit
	// Graph is the history as it is known here.
	Graph repo.Graph
	// Aside keeps both sides of a divergence: ours goes to a branch of that name
	// instead. Empty: a divergence is refused.
	Aside  string
	DryRun bool // only say what would be sent
}

// Pushed is what a push did or would do.
type Pushed struct {
	Relation repo.Relation `json:"relation"`
	Branch   string        `json:"branch"`            // that was moved
	Theirs   string        `json:"theirs,omitempty"`  // commit that the branch pointed to
	Commits  []string      `json:"commits"`           // that were brought, parents first
	Skipped  []string      `json:"skipped,omitempty"` // of which no data is here; children name them
	Changed  int64         `json:"changed"`           // bytes of content that differ from what the remote has; of a dry run
	Warning  string        `json:"warning,omitempty"` // what the remote could not make sure
}

// maxWalk bounds how many commits of a remote are looked at for a common one.
const maxWalk = 100_000

// Push brings a branch's commits to the remote and moves the remote's branch.
func (r *Remote) Push(ctx context.Context, pool Pool, p Push) (Pushed, error) {
	const op = "push"
	out := Pushed{Branch: p.Branch, Relation: repo.UpToDate}
	if !p.DryRun {
		// Before anything is read: what is found there stays until the end.
		release, err := r.lease(ctx)
		if err != nil {
			return out, err
		}
		defer release()
	}
	theirs, err := unopened(r.Branch(ctx, p.Branch))
	if err != nil {
		return out, err
	}
	if theirs != nil && theirs.Record.Key != "" && r.Key == nil {
		// Somebody has sealed it since: in clear ours would show what theirs hides.
		return out, &api.Error{Kind: api.Denied, Op: op, Object: p.Branch, Reason: "what is there is sealed with the key " + theirs.Record.Key + ", ours would be in clear", Next: "drover remote key unlock brings the key here, and seals with it from then on"}
	}
	g := p.Graph
	if theirs != nil {
		out.Theirs = theirs.Record.ID
		if g, err = r.history(ctx, g, theirs); err != nil {
			return out, err
		}
	}
	out.Relation = g.Relate(p.Tip, out.Theirs)
	switch out.Relation {
	case repo.UpToDate, repo.Ahead:
		return out, nil
	case repo.Diverged, repo.Unrelated:
		if p.Aside == "" {
			return out, diverged(op, out.Relation, p, out.Theirs, g)
		}
		out.Branch, out.Theirs = p.Aside, ""
		if theirs, err = unopened(r.Branch(ctx, p.Aside)); err != nil {
			return out, err
		}
		if theirs != nil {
			out.Theirs = theirs.Record.ID
			if rel := g.Relate(p.Tip, out.Theirs); rel != repo.FastForward && rel != repo.UpToDate {
				return out, &api.Error{Kind: api.Exists, Op: op, Object: p.Aside, Reason: "the remote has a branch of that name that is something else", Next: "choose another name"}
			}
		}
	}
	return r.send(ctx, pool, p, g, theirs, out)
}

func diverged(op string, rel repo.Relation, p Push, theirs string, g repo.Graph) error {
	e := &api.Error{Kind: api.Conflict, Op: op, Object: p.Branch}
	if rel == repo.Unrelated {
		e.Reason = fmt.Sprintf("ours (%s) and theirs (%s) have no commit in common: they are of different volumes, or the common one was pruned", short(p.Tip), short(theirs))
		e.Next = "push to another branch or repository"
		return e
	}
	base := ""
	if b := g.Bases(p.Tip, theirs); len(b) > 0 {
		base = ", both from " + short(b[0])
	}
	e.Reason = fmt.Sprintf("diverged: ours is at %s, theirs at %s%s", short(p.Tip), short(theirs), base)
	e.Next = "pull with --branch-on-divergence to keep both here, or push with it to keep both there"
	return e
}

// unopened lets a commit pass that is sealed with a key that is not here: its id
// and parents are in clear.
func unopened(s *Stored, err error) (*Stored, error) {
	if api.Is(err, api.Denied) && s != nil && s.Record.Key != "" {
		err = nil
	}
	return s, err
}

// history adds to a graph what leads from a commit of the remote to those that
// are in it.
func (r *Remote) history(ctx context.Context, g repo.Graph, from *Stored) (repo.Graph, error) {
	var found []api.Commit
	seen := map[string]bool{}
	todo := []*Stored{from}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		id := s.Record.ID
		if _, here := g[id]; here || seen[id] {
			continue
		}
		seen[id] = true
		found = append(found, s.Record.Commit)
		if len(found) > maxWalk {
			return nil, &api.Error{Kind: api.Exhausted, Op: "read history", Object: short(from.Record.ID), Reason: fmt.Sprintf("more than %d commits lead to it", maxWalk)}
		}
		for _, p := range s.Record.Parents {
			if _, here := g[p]; here || seen[p] {
				continue
			}
			next, err := unopened(r.Find(ctx, p))
			if api.Is(err, api.NotFound) {
				continue // pruned there
			}
			if err != nil {
				return nil, err
			}
			todo = append(todo, next)
		}
	}
	return g.Add(found...), nil
}

// History gives the records that lead to a branch of the remote, as far as
// known does not have them.
func (r *Remote) History(ctx context.Context, known repo.Graph, tip *Stored) (repo.Graph, error) {
	return r.history(ctx, known, tip)
}

// send brings the missing commits, parents first, and moves the branch.
func (r *Remote) send(ctx context.Context, pool Pool, p Push, g repo.Graph, theirs *Stored, out Pushed) (Pushed, error) {
	tip, err := r.bring(ctx, pool, g, p.Tip, p.DryRun, &out)
	if err != nil || p.DryRun {
		return out, err
	}
	var expect digest.Digest
	if theirs != nil {
		expect = theirs.Manifest.Digest
	}
	out.Warning, err = r.point(ctx, remote.BranchPrefix, out.Branch, tip, expect)
	return out, err
}

// bring brings what the remote lacks of what leads to a commit, parents first,
// and gives the commit as it is there then; of a dry run nil.
func (r *Remote) bring(ctx context.Context, pool Pool, g repo.Graph, id string, dry bool, out *Pushed) (*Stored, error) {
	missing, err := r.missing(ctx, g, id, map[string]bool{})
	if err != nil {
		return nil, err
	}
	var tip *Stored
	sent := map[string]bool{} // that a dry run would have sent by then
	for _, done := range out.Commits {
		sent[done] = dry
	}
	for _, c := range missing {
		if sent[c.ID] {
			continue
		}
		local, err := pool.Find(ctx, c.ID)
		if api.Is(err, api.NotFound) && c.ID != id {
			out.Skipped = append(out.Skipped, c.ID)
			continue
		}
		if err != nil {
			return nil, err
		}
		base, hints, err := r.base(ctx, pool, g, c, sent)
		if err != nil {
			return nil, err
		}
		if dry {
			sent[c.ID] = true
			n, err := changed(ctx, local, base, hints)
			out.Changed += n
			out.Commits = append(out.Commits, c.ID)
			if err != nil {
				return nil, err
			}
			continue
		}
		if tip, err = r.Put(ctx, local, base, hints); err != nil {
			return nil, err
		}
		out.Commits = append(out.Commits, c.ID)
	}
	if tip == nil && !dry {
		return unopened(r.Find(ctx, id))
	}
	return tip, nil
}

// point moves a branch or tag from expect to a commit.
func (r *Remote) point(ctx context.Context, prefix, name string, tip *Stored, expect digest.Digest) (warning string, err error) {
	as := prefix + remote.Escape(name)
	to := tip.Manifest
	if _, whole := remote.Unescape(strings.TrimPrefix(as, prefix)); !whole {
		to.Annotations = map[string]string{remote.RefAnnotation: name}
	}
	if err := r.Store.SetRef(ctx, as, to, expect); err != nil {
		return "", err
	}
	return r.look(ctx, as, tip)
}

// look says whether a name still is where it was just put, on remotes that
// could not make sure.
func (r *Remote) look(ctx context.Context, name string, tip *Stored) (string, error) {
	if r.Store.Info().Atomic {
		return "", nil
	}
	now, err := r.Store.Ref(ctx, name)
	if err != nil {
		return "", err
	}
	// A retention at the same moment may have dropped what the branch leads to now.
	err = r.Store.SetRef(ctx, remote.CommitPrefix+tip.Record.ID, tip.Manifest, "")
	if err != nil && !api.Is(err, api.Conflict) {
		return "", err
	}
	if now.Desc.Digest != tip.Manifest.Digest {
		return "", &api.Error{Kind: api.Conflict, Op: "push", Object: name, Reason: "somebody else moved it at the same moment; the remote cannot keep two pushers apart", Next: "the commits are there under their ids: fetch, and push again"}
	}
	return "the remote cannot keep two pushers apart: nobody was seen", nil
}

// missing lists what the remote lacks, parents before children: it goes back
// from the tip until commits are there.
func (r *Remote) missing(ctx context.Context, g repo.Graph, tip string, have map[string]bool) ([]api.Commit, error) {
	todo, seen := []string{tip}, map[string]bool{}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[id] || have[id] {
			continue
		}
		seen[id] = true
		_, err := r.Store.Ref(ctx, remote.CommitPrefix+id)
		if err == nil {
			have[id] = true
			continue
		}
		if !api.Is(err, api.NotFound) {
			return nil, err
		}
		todo = append(todo, g[id].Parents...)
	}
	return g.Missing(tip, have), nil
}

// base chooses what a commit is sent as a difference to: the nearest of its
// ancestors that both sides have. Those in sent count as being there.
func (r *Remote) base(ctx context.Context, pool Pool, g repo.Graph, c api.Commit, sent map[string]bool) (*Base, *tree.Hints, error) {
	level, seen := c.Parents, map[string]bool{}
	for tries := 0; len(level) > 0 && tries < 1000; {
		var up []string
		for _, id := range level {
			if seen[id] {
				continue
			}
			seen[id] = true
			tries++
			up = append(up, g[id].Parents...)
			local, err := pool.Find(ctx, id)
			if api.Is(err, api.NotFound) {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			if sent[id] {
				hints, err := pool.Hints(ctx, id, c.ID)
				return &Base{Local: local}, hints, err
			}
			s, err := r.Find(ctx, id)
			if api.Is(err, api.NotFound) || api.Is(err, api.Denied) {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			if s.Record.Key != keyID(r.Key) {
				continue // layers of one commit are sealed with one key
			}
			hints, err := pool.Hints(ctx, id, c.ID)
			return &Base{Local: local, Stored: s}, hints, err
		}
		level = up
	}
	return nil, nil, nil
}

// changed counts the bytes of content that differ.
func changed(ctx context.Context, c Local, base *Base, hints *tree.Hints) (int64, error) {
	n := &counter{}
	if base == nil {
		err := tree.Walk(ctx, nil, c.Snapshot, nil, n)
		return n.n, err
	}
	err := tree.Walk(ctx, &base.Snapshot, c.Snapshot, hints, n)
	return n.n, err
}

type counter struct{ n int64 }

func (c *counter) Gone(string) error { return nil }

func (c *counter) Entry(_ *tree.Entry, content tree.Content) error {
	if content == nil {
		return nil
	}
	return content.Changed(func(_, n int64) error { c.n += n; return nil }, func(_, _ int64) error { return nil })
}
