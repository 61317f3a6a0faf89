package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
)

// History is what this node's agent does with the history of volumes whose
// heads it owns.
type History interface {
	Commit(ctx context.Context, volume string, r api.MakeCommit, by string) (api.Committed, error)
	CommitAll(ctx context.Context, heads []peer.Held, r api.MakeCommit, by string) ([]api.Committed, error)
	Hold(ctx context.Context, r peer.Hold) (peer.Held, error)
	Take(ctx context.Context, r peer.Take) error
	Release(ctx context.Context, r peer.Release) error
	Log(ctx context.Context, volume, branch, at string, all bool, limit int) ([]api.LoggedCommit, error)
	Branch(ctx context.Context, volume string, r api.MakeBranch, by string) (api.Volume, error)
	DropBranch(ctx context.Context, volume, branch, by string) (api.Dropped, error)
	RestoreBranch(ctx context.Context, volume, branch, by string) (api.Moved, error)
	RenameBranch(ctx context.Context, volume, branch, to, by string) (api.Volume, error)
	Checkout(ctx context.Context, volume, branch, by string) (api.CheckedOut, error)
	Reset(ctx context.Context, volume string, r api.ResetBranch, by string) (api.Moved, error)
	Stash(ctx context.Context, volume string, r api.StashChanges, by string) (api.Moved, error)
	Stashes(ctx context.Context, volume, branch string) ([]api.Commit, error)
	Undo(ctx context.Context, volume, branch, by string) (api.Moved, error)
	RefLog(ctx context.Context, volume, branch string) ([]api.RefLogEntry, error)
	BranchStatus(ctx context.Context, volume, branch string) (api.BranchStatus, error)
	Tag(ctx context.Context, volume string, r api.MakeTag) (api.Volume, error)
}

func (s *Server) historyRoutes() {
	post := func(id, path, summary string) route {
		return route{id, http.MethodPost, "/v1/volumes/{ref}/" + path, summary, auth.Change, false, false}
	}
	look := func(id, path, summary string) route {
		return route{id, http.MethodGet, "/v1/volumes/{ref}/" + path, summary, auth.Look, false, false}
	}
	remove := func(id, path, summary string) route {
		return route{id, http.MethodDelete, "/v1/volumes/{ref}/" + path, summary, auth.Change, false, false}
	}
	add(s, post("commit", "commits", "Commit a branch, or several volumes in one instant"), s.commit)
	add(s, look("log", "commits", "List the commits that a reference leads to"), s.log)
	add(s, look("list-branches", "branches", "List branches, and those that can be brought back"), s.branches)
	add(s, post("make-branch", "branches", "Make a branch"), s.makeBranch)
	add(s, remove("delete-branch", "branches", "Delete a branch; it can be brought back for a day"), s.deleteBranch)
	add(s, post("rename-branch", "branches/rename", "Rename a branch"), s.renameBranch)
	add(s, post("expire-branch", "branches/expire", "Let a branch be deleted by itself, or not"), s.expireBranch)
	add(s, post("checkout", "checkout", "Change the current branch, and restart the containers that use it by the plain name"), s.checkout)
	add(s, post("reset", "reset", "Replace a branch's content by a commit; what was not committed is kept"), s.reset)
	add(s, post("stash", "stash", "Put aside what is not committed, or take it back"), s.stash)
	add(s, look("list-stashes", "stash", "List what was put aside"), s.stashes)
	add(s, post("undo", "undo", "Take the last move of a branch back"), s.undo)
	add(s, look("reflog", "reflog", "List the moves of a branch's tip"), s.reflog)
	add(s, look("branch-status", "status", "Tell whether a branch has changes, and who uses it"), s.branchStatus)
	add(s, post("make-tag", "tags", "Name a commit"), s.makeTag)
	add(s, remove("delete-tag", "tags", "Delete a tag"), s.deleteTag)
	add(s, post("set-hook", "hook", "Set what makes commits application-consistent"), s.setHook)
	add(s, route{"peer-hold", http.MethodPost, "/v1/peer/hold", "Hold a head's users for a commit of several volumes", auth.Report, false, false}, s.peerHold)
	add(s, route{"peer-take", http.MethodPost, "/v1/peer/take", "Make the snapshot of a head that is held", auth.Report, false, true}, s.peerTake)
	add(s, route{"peer-release", http.MethodPost, "/v1/peer/release", "Let the users of a head go that is held", auth.Report, false, true}, s.peerRelease)
}

// at is a volume with the node that owns one of its branches; branch "" is the
// current one.
func (s *Server) at(ctx context.Context, op, ref, branch string) (v api.Volume, node, name string, err error) {
	if v, err = s.cfg.Ledger.Volume(ctx, ref); err != nil {
		return v, "", "", err
	}
	if branch == "" {
		branch = v.Branch
	}
	h, there := v.Heads[branch]
	if !there {
		return v, "", "", &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "the volume has no such branch", Next: "drover branch " + v.Name + " lists them"}
	}
	return v, h.Node, branch, nil
}

// near runs here what belongs to this node, and asks another one otherwise.
func near[O any](ctx context.Context, s *Server, op, node, volume, method, path string, in any, here func() (O, error)) (O, error) {
	if node == s.cfg.Node {
		return here()
	}
	var out O
	err := s.call(ctx, node, method, "/v1/volumes/"+volume+"/"+path, in, &out)
	if silent(err) {
		name := volume
		if v, err := s.cfg.Ledger.Volume(ctx, volume); err == nil {
			name = v.Name
		}
		next := "bring " + node + " back; the data is there"
		if method != http.MethodGet {
			next += ". It may have begun: see drover status " + name + " before you repeat it"
		}
		err = &api.Error{Kind: api.Unknown, Op: op, Object: name, Reason: "its owner " + node + " does not answer (" + s.since(ctx, node) + ")", Err: err, Next: next}
	}
	return out, err
}

type commitIn struct {
	VolumeRef
	Body api.MakeCommit
}

func (s *Server) commit(ctx context.Context, in *commitIn) ([]api.Committed, error) {
	const op = "commit"
	if len(in.Body.With) > 0 {
		return s.commitAll(ctx, in)
	}
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.Branch)
	if err != nil {
		return nil, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "commits", in.Body, func() ([]api.Committed, error) {
		c, err := s.cfg.Agent.Commit(ctx, v.ID, in.Body, by(ctx))
		return []api.Committed{c}, err
	})
}

// commitAll is done by a control node: only there can the tips of several
// volumes change in one transaction.
func (s *Server) commitAll(ctx context.Context, in *commitIn) ([]api.Committed, error) {
	const op = "commit"
	if !s.cfg.Control() {
		var out []api.Committed
		err := s.call(ctx, "", http.MethodPost, volumePath(in.Ref, "commits"), in.Body, &out)
		return out, err
	}
	first := in.Ref
	if in.Body.Branch != "" {
		first += "@" + in.Body.Branch
	}
	var heads []peer.Held
	for _, text := range append([]string{first}, in.Body.With...) {
		ref, branch, _ := strings.Cut(text, "@")
		v, node, branch, err := s.at(ctx, op, ref, branch)
		if err != nil {
			return nil, err
		}
		heads = append(heads, peer.Held{Node: node, Volume: v.ID, Name: v.Name, Branch: branch})
	}
	return s.cfg.Agent.CommitAll(ctx, heads, in.Body, by(ctx))
}

func volumePath(ref, more string) string { return "/v1/volumes/" + escape(ref) + "/" + more }

type logIn struct {
	VolumeRef
	Branch string `query:"branch" doc:"whose node is asked; empty is the current one"`
	At     string `query:"at" doc:"branch, tag or commit, with ~n; empty is the branch's newest commit"`
	All    bool   `query:"all" doc:"of every branch and tag"`
	Limit  int    `query:"limit" doc:"how many; 0 is all"`
}

func (s *Server) log(ctx context.Context, in *logIn) ([]api.LoggedCommit, error) {
	const op = "list commits"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if in.Branch == "" {
		in.Branch = branchIn(v, in.At)
	}
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Branch)
	if err != nil {
		return nil, err
	}
	q := url.Values{"branch": {branch}, "at": {in.At}, "all": {fmt.Sprint(in.All)}, "limit": {fmt.Sprint(in.Limit)}}
	list, err := near(ctx, s, op, node, v.ID, http.MethodGet, "commits?"+q.Encode(), nil, func() ([]api.LoggedCommit, error) {
		return s.cfg.Agent.Log(ctx, v.ID, branch, in.At, in.All, in.Limit)
	})
	if list == nil {
		list = []api.LoggedCommit{}
	}
	return list, err
}

// branchIn is the branch that the part of a reference after '@' begins with,
// "" when it begins with none: its owner knows its history.
func branchIn(v api.Volume, at string) string {
	name, _, _ := strings.Cut(at, "~")
	if _, there := v.Heads[name]; there {
		return name
	}
	return ""
}

func (s *Server) branches(ctx context.Context, in *VolumeRef) ([]api.Branch, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	out := []api.Branch{}
	for _, name := range slices.Sorted(maps.Keys(v.Heads)) {
		h := v.Heads[name]
		out = append(out, api.Branch{Name: name, Current: name == v.Branch, Commit: h.Commit, Node: h.Node, Pool: h.Pool, Ready: h.Ready, Expires: h.Expires, Tip: h.Tip})
	}
	for _, d := range v.Dropped {
		out = append(out, api.Branch{Name: d.Branch, Commit: d.Commit, Node: d.Node, Pool: d.Pool, Deleted: d.At, Purge: d.Purge})
	}
	return out, nil
}

type makeBranchIn struct {
	VolumeRef
	Body api.MakeBranch
}

func (s *Server) makeBranch(ctx context.Context, in *makeBranchIn) (api.Branch, error) {
	const op = "make branch"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.Branch{}, err
	}
	v, node, _, err := s.at(ctx, op, in.Ref, branchIn(v, in.Body.From))
	if err != nil {
		return api.Branch{}, err
	}
	r := in.Body
	r.Checkout = false
	out, err := near(ctx, s, op, node, v.ID, http.MethodPost, "branches", r, func() (api.Branch, error) {
		after, err := s.cfg.Agent.Branch(ctx, v.ID, r, by(ctx))
		h := after.Heads[r.Name]
		return api.Branch{Name: r.Name, Commit: h.Commit, Node: h.Node, Pool: h.Pool, Ready: err == nil, Expires: h.Expires, Tip: h.Tip}, err
	})
	if err != nil || !in.Body.Checkout {
		return out, err
	}
	_, err = s.checkout(ctx, &checkoutIn{VolumeRef: in.VolumeRef, Body: api.Checkout{Branch: r.Name}})
	out.Current = err == nil
	return out, err
}

type branchQuery struct {
	VolumeRef
	Branch string `query:"branch" doc:"empty is the current branch"`
}

func (s *Server) deleteBranch(ctx context.Context, in *struct {
	VolumeRef
	Name string `query:"name" required:"true"`
},
) (api.Dropped, error) {
	const op = "delete branch"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Name)
	if err != nil {
		return api.Dropped{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodDelete, "branches?name="+url.QueryEscape(branch), nil, func() (api.Dropped, error) {
		return s.cfg.Agent.DropBranch(ctx, v.ID, branch, by(ctx))
	})
}

type renameBranchIn struct {
	VolumeRef
	Body api.Rename
}

func (s *Server) renameBranch(ctx context.Context, in *renameBranchIn) (api.Volume, error) {
	const op = "rename branch"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.From)
	if err != nil {
		return v, err
	}
	in.Body.From = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "branches/rename", in.Body, func() (api.Volume, error) {
		return s.cfg.Agent.RenameBranch(ctx, v.ID, branch, in.Body.To, by(ctx))
	})
}

type expireBranchIn struct {
	VolumeRef
	Body api.ExpireBranch
}

func (s *Server) expireBranch(ctx context.Context, in *expireBranchIn) (api.Volume, error) {
	v, node, branch, err := s.at(ctx, "let branch expire", in.Ref, in.Body.Name)
	if err != nil {
		return v, err
	}
	in.Body.Name = branch
	return near(ctx, s, "let branch expire", node, v.ID, http.MethodPost, "branches/expire", in.Body, func() (api.Volume, error) {
		e := ledger.Expire{Branch: branch}
		if in.Body.Expire < 0 {
			return v, &api.Error{Kind: api.Invalid, Op: "let branch expire", Object: branch, Reason: "it would have to be deleted in the past"}
		}
		if in.Body.Expire > 0 {
			e.At = time.Now().Add(in.Body.Expire).UTC()
		}
		return s.cfg.Ledger.Change(ctx, v.ID, ledger.Change{Expire: &e})
	})
}

type checkoutIn struct {
	VolumeRef
	Body api.Checkout
}

func (s *Server) checkout(ctx context.Context, in *checkoutIn) (api.CheckedOut, error) {
	const op = "check branch out"
	v, node, _, err := s.at(ctx, op, in.Ref, "")
	if err != nil {
		return api.CheckedOut{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "checkout", in.Body, func() (api.CheckedOut, error) {
		return s.cfg.Agent.Checkout(ctx, v.ID, in.Body.Branch, by(ctx))
	})
}

type resetIn struct {
	VolumeRef
	Body api.ResetBranch
}

func (s *Server) reset(ctx context.Context, in *resetIn) (api.Moved, error) {
	const op = "reset branch"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.Branch)
	if err != nil {
		return api.Moved{}, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "reset", in.Body, func() (api.Moved, error) {
		return s.cfg.Agent.Reset(ctx, v.ID, in.Body, by(ctx))
	})
}

type stashIn struct {
	VolumeRef
	Body api.StashChanges
}

func (s *Server) stash(ctx context.Context, in *stashIn) (api.Moved, error) {
	const op = "stash changes"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.Branch)
	if err != nil {
		return api.Moved{}, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "stash", in.Body, func() (api.Moved, error) {
		return s.cfg.Agent.Stash(ctx, v.ID, in.Body, by(ctx))
	})
}

func (s *Server) stashes(ctx context.Context, in *branchQuery) ([]api.Commit, error) {
	const op = "list stashes"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Branch)
	if err != nil {
		return nil, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodGet, "stash?branch="+url.QueryEscape(branch), nil, func() ([]api.Commit, error) {
		return s.cfg.Agent.Stashes(ctx, v.ID, branch)
	})
}

type undoIn struct {
	VolumeRef
	Body api.UndoLast
}

func (s *Server) undo(ctx context.Context, in *undoIn) (api.Moved, error) {
	const op = "undo"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.Moved{}, err
	}
	branch, dropped := ledger.Last(v, in.Body.Branch)
	if dropped != nil {
		in.Body.Branch = dropped.Branch
		return near(ctx, s, op, dropped.Node, v.ID, http.MethodPost, "undo", in.Body, func() (api.Moved, error) {
			return s.cfg.Agent.RestoreBranch(ctx, v.ID, dropped.Branch, by(ctx))
		})
	}
	v, node, branch, err := s.at(ctx, op, in.Ref, branch)
	if err != nil {
		return api.Moved{}, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "undo", in.Body, func() (api.Moved, error) {
		return s.cfg.Agent.Undo(ctx, v.ID, branch, by(ctx))
	})
}

func (s *Server) reflog(ctx context.Context, in *branchQuery) ([]api.RefLogEntry, error) {
	const op = "read reflog"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Branch)
	if err != nil {
		return nil, err
	}
	list, err := near(ctx, s, op, node, v.ID, http.MethodGet, "reflog?branch="+url.QueryEscape(branch), nil, func() ([]api.RefLogEntry, error) {
		return s.cfg.Agent.RefLog(ctx, v.ID, branch)
	})
	if list == nil {
		list = []api.RefLogEntry{}
	}
	return list, err
}

func (s *Server) branchStatus(ctx context.Context, in *branchQuery) (api.BranchStatus, error) {
	const op = "look at branch"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Branch)
	if err != nil {
		return api.BranchStatus{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodGet, "status?branch="+url.QueryEscape(branch), nil, func() (api.BranchStatus, error) {
		return s.cfg.Agent.BranchStatus(ctx, v.ID, branch)
	})
}

type tagIn struct {
	VolumeRef
	Body api.MakeTag
}

func (s *Server) makeTag(ctx context.Context, in *tagIn) (api.Volume, error) {
	const op = "tag commit"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	v, node, _, err := s.at(ctx, op, in.Ref, branchIn(v, in.Body.At))
	if err != nil {
		return v, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "tags", in.Body, func() (api.Volume, error) {
		return s.cfg.Agent.Tag(ctx, v.ID, in.Body)
	})
}

func (s *Server) deleteTag(ctx context.Context, in *struct {
	VolumeRef
	Name string `query:"name" required:"true"`
},
) (api.Volume, error) {
	v, node, _, err := s.at(ctx, "delete tag", in.Ref, "")
	if err != nil {
		return v, err
	}
	return near(ctx, s, "delete tag", node, v.ID, http.MethodDelete, "tags?name="+url.QueryEscape(in.Name), nil, func() (api.Volume, error) {
		return s.cfg.Ledger.Change(ctx, v.ID, ledger.Change{Untag: &ledger.Untag{Name: in.Name}})
	})
}

type hookIn struct {
	VolumeRef
	Body struct {
		Hook *api.Hook `json:"hook,omitempty" doc:"nothing removes it"`
	}
}

func (s *Server) setHook(ctx context.Context, in *hookIn) (api.Volume, error) {
	v, node, _, err := s.at(ctx, "set hook", in.Ref, "")
	if err != nil {
		return v, err
	}
	return near(ctx, s, "set hook", node, v.ID, http.MethodPost, "hook", in.Body, func() (api.Volume, error) {
		return s.cfg.Ledger.Change(ctx, v.ID, ledger.Change{Hook: &ledger.SetHook{Hook: in.Body.Hook}})
	})
}

// onlyControl refuses nodes that are no control nodes: a hold stops containers.
func onlyControl(ctx context.Context) error {
	if id := identityOf(ctx); !id.Control {
		return &api.Error{Kind: api.Denied, Op: "hold a volume's users", Object: id.Name, Reason: "only control nodes commit several volumes"}
	}
	return nil
}

func (s *Server) peerHold(ctx context.Context, in *struct{ Body peer.Hold }) (peer.Held, error) {
	if err := onlyControl(ctx); err != nil {
		return peer.Held{}, err
	}
	return s.cfg.Agent.Hold(ctx, in.Body)
}

func (s *Server) peerTake(ctx context.Context, in *struct{ Body peer.Take }) (none, error) {
	if err := onlyControl(ctx); err != nil {
		return none{}, err
	}
	return none{}, s.cfg.Agent.Take(ctx, in.Body)
}

func (s *Server) peerRelease(ctx context.Context, in *struct{ Body peer.Release }) (none, error) {
	if err := onlyControl(ctx); err != nil {
		return none{}, err
	}
	return none{}, s.cfg.Agent.Release(ctx, in.Body)
}
