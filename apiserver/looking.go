package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
)

// Looking is what this node's agent reads in commits that its pools hold, and
// in heads that it owns.
type Looking interface {
	Place(ctx context.Context, v api.Volume, branch, at string) (api.Place, error)
	Diff(ctx context.Context, v api.Volume, branch, from, to string, limit int) (api.Diff, error)
	ReadFile(ctx context.Context, v api.Volume, commit, path string, offset, length int64) (api.FilePart, error)
	RevertFile(ctx context.Context, volume string, r api.RevertFile, by string) (api.Reverted, error)
}

func (s *Server) lookingRoutes() {
	add(s, route{"diff", http.MethodGet, "/v1/volumes/{ref}/diff", "Tell how two commits, or a commit and its branch as it is now, differ", auth.Look, false, false}, s.diff)
	add(s, route{"read-file", http.MethodGet, "/v1/volumes/{ref}/file", "Read a part of a file of a commit", auth.Change, false, false}, s.readFile)
	add(s, route{"revert-file", http.MethodPost, "/v1/volumes/{ref}/revert-file", "Put one file of a commit back; what was not committed is kept", auth.Change, false, false}, s.revertFile)
	add(s, route{"place-of-commit", http.MethodGet, "/v1/volumes/{ref}/place", "Tell where a commit lies on this node, or on another one", auth.Look, false, false}, s.place)
}

type placeIn struct {
	VolumeRef
	At     string `query:"at" doc:"branch, tag or commit, with ~n; empty is the current branch's newest commit"`
	Branch string `query:"branch" doc:"from which \"~n\" alone goes back; empty is the current one"`
	Node   string `query:"node" doc:"ask this node only; empty is any"`
}

func (s *Server) place(ctx context.Context, in *placeIn) (api.Place, error) {
	const op = "find commit"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.Place{}, err
	}
	if in.Node != "" {
		return s.placeOn(ctx, in.Node, v, in.Branch, in.At)
	}
	at, err := s.locate(ctx, op, v, in.At)
	if err != nil {
		return api.Place{}, err
	}
	if p, here := at.on[s.cfg.Node]; here {
		return p, nil
	}
	for _, node := range slices.Sorted(maps.Keys(at.on)) {
		return at.on[node], nil
	}
	return api.Place{}, at.nowhere(op)
}

// placeOn asks one node where it holds a commit.
func (s *Server) placeOn(ctx context.Context, node string, v api.Volume, branch, at string) (api.Place, error) {
	q := url.Values{"at": {at}, "branch": {branch}, "node": {node}}
	return near(ctx, s, "find commit", node, v.ID, http.MethodGet, "place?"+q.Encode(), nil, func() (api.Place, error) {
		return s.cfg.Agent.Place(ctx, v, branch, at)
	})
}

// located is a commit and the nodes that hold it.
type located struct {
	commit string
	on     map[string]api.Place
	silent []string // nodes that could not be asked
}

func (l located) nowhere(op string) error {
	e := &api.Error{Kind: api.NotFound, Op: op, Object: l.commit[:min(12, len(l.commit))], Reason: "no node that was asked holds it", Next: "it was pruned, or lies on a remote"}
	if len(l.silent) > 0 {
		e.Kind, e.Reason, e.Next = api.Unknown, "no node that answers holds it; "+strings.Join(l.silent, ", ")+" did not answer", "bring the node back"
	}
	return e
}

func (l located) text() string {
	where := "on no node"
	if len(l.on) > 0 {
		where = "on " + strings.Join(slices.Sorted(maps.Keys(l.on)), ", ")
	}
	return "commit " + l.commit[:min(12, len(l.commit))] + " is " + where
}

// locate finds the commit that a reference means: the branch's owner knows
// best, others may know as well. Then it asks who holds it.
func (s *Server) locate(ctx context.Context, op string, v api.Volume, at string) (located, error) {
	branch := branchIn(v, at)
	if branch == "" {
		branch = v.Branch
	}
	nodes := []string{v.Heads[branch].Node}
	for _, name := range slices.Sorted(maps.Keys(v.Heads)) {
		nodes = append(nodes, v.Heads[name].Node, v.Heads[name].From)
	}
	nodes = append(nodes, s.cfg.Node)
	l := located{on: map[string]api.Place{}}
	var first error
	asked := map[string]bool{"": true}
	for _, node := range nodes {
		if asked[node] {
			continue
		}
		asked[node] = true
		want := at
		if l.commit != "" {
			want = l.commit
		}
		p, err := s.placeOn(ctx, node, v, branch, want)
		switch {
		case api.Is(err, api.Unknown) || api.Is(err, api.Unavailable):
			l.silent = append(l.silent, node)
		case err == nil && l.commit == "":
			l.commit = p.Commit
		}
		if err == nil && p.Dir != "" && p.Commit == l.commit {
			l.on[node] = p
		}
		if first == nil {
			first = err
		}
	}
	if l.commit == "" {
		if first == nil {
			first = &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + at, Reason: "there is no such commit"}
		}
		return l, first
	}
	return l, nil
}

type diffIn struct {
	VolumeRef
	From  string `query:"from" doc:"branch, tag or commit, with ~n; empty is the current branch's newest commit"`
	To    string `query:"to" doc:"likewise"`
	Live  bool   `query:"live" doc:"instead of with to, compare with the branch as it is now"`
	Limit int    `query:"limit" doc:"how many paths are listed; 0 is as many as there may be"`
	Node  string `query:"node" doc:"for nodes among themselves: from and to are whole ids"`
	On    string `query:"branch" doc:"likewise: the branch that is compared with"`
}

func (s *Server) diff(ctx context.Context, in *diffIn) (api.Diff, error) {
	const op = "compare commits"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.Diff{}, err
	}
	if in.Limit < 0 {
		return api.Diff{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "the number of paths is negative"}
	}
	if in.Node == s.cfg.Node {
		return s.cfg.Agent.Diff(ctx, v, in.On, in.From, in.To, in.Limit)
	}
	branch := branchIn(v, in.From)
	if branch == "" {
		branch = v.Branch
	}
	from, err := s.locate(ctx, op, v, in.From)
	if err != nil {
		return api.Diff{}, err
	}
	to := located{on: map[string]api.Place{}}
	if in.Live {
		_, node, _, err := s.at(ctx, op, v.ID, branch)
		if err != nil {
			return api.Diff{}, err
		}
		to.on[node] = api.Place{}
	} else if to, err = s.locate(ctx, op, v, in.To); err != nil {
		return api.Diff{}, err
	}
	node, err := both(op, v, branch, s.cfg.Node, from, to, in.Live)
	if err != nil {
		return api.Diff{}, err
	}
	q := url.Values{"from": {from.commit}, "to": {to.commit}, "limit": {fmt.Sprint(in.Limit)}, "node": {node}, "branch": {branch}}
	return near(ctx, s, op, node, v.ID, http.MethodGet, "diff?"+q.Encode(), nil, func() (api.Diff, error) {
		return s.cfg.Agent.Diff(ctx, v, branch, from.commit, to.commit, in.Limit)
	})
}

// both chooses a node that has what is compared, this one if it can be.
func both(op string, v api.Volume, branch, here string, from, to located, live bool) (string, error) {
	var list []string
	for node := range from.on {
		if _, too := to.on[node]; too {
			list = append(list, node)
		}
	}
	slices.Sort(list)
	switch {
	case slices.Contains(list, here):
		return here, nil
	case len(list) > 0:
		return list[0], nil
	}
	other := to.text()
	if live {
		other = "branch " + branch + " is on " + v.Heads[branch].Node
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name, Reason: "no node has both: " + from.text() + ", " + other, Next: "drover volume move brings a branch with its commits to another node"}
	if silent := append(from.silent, to.silent...); len(silent) > 0 {
		slices.Sort(silent)
		e.Kind, e.Reason = api.Unknown, e.Reason+"; "+strings.Join(slices.Compact(silent), ", ")+" did not answer"
	}
	return "", e
}

type fileIn struct {
	VolumeRef
	At     string `query:"at" doc:"branch, tag or commit, with ~n; empty is the current branch's newest commit"`
	Path   string `query:"path" doc:"escaped: \\\\ is a backslash, \\xNN a byte that is not text"`
	Offset int64  `query:"offset"`
	Length int64  `query:"length" doc:"at most 4 MiB are given"`
	Node   string `query:"node" doc:"for nodes among themselves: at is a whole id"`
}

func (s *Server) readFile(ctx context.Context, in *fileIn) (api.FilePart, error) {
	const op = "read file"
	path, err := api.UnescapePath(in.Path)
	if err != nil {
		return api.FilePart{}, err
	}
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.FilePart{}, err
	}
	if in.Node == s.cfg.Node {
		return s.cfg.Agent.ReadFile(ctx, v, in.At, path, in.Offset, in.Length)
	}
	at := located{commit: in.At, on: map[string]api.Place{in.Node: {}}}
	if in.Node == "" {
		if at, err = s.locate(ctx, op, v, in.At); err != nil {
			return api.FilePart{}, err
		}
	}
	node := s.cfg.Node
	if _, here := at.on[node]; !here {
		list := slices.Sorted(maps.Keys(at.on))
		if len(list) == 0 {
			return api.FilePart{}, at.nowhere(op)
		}
		node = list[0]
	}
	q := url.Values{"at": {at.commit}, "path": {in.Path}, "offset": {fmt.Sprint(in.Offset)}, "length": {fmt.Sprint(in.Length)}, "node": {node}}
	return near(ctx, s, op, node, v.ID, http.MethodGet, "file?"+q.Encode(), nil, func() (api.FilePart, error) {
		return s.cfg.Agent.ReadFile(ctx, v, at.commit, path, in.Offset, in.Length)
	})
}

type revertFileIn struct {
	VolumeRef
	Body api.RevertFile
}

func (s *Server) revertFile(ctx context.Context, in *revertFileIn) (api.Reverted, error) {
	const op = "revert file"
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.Branch)
	if err != nil {
		return api.Reverted{}, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "revert-file", in.Body, func() (api.Reverted, error) {
		return s.cfg.Agent.RevertFile(ctx, v.ID, in.Body, by(ctx))
	})
}
