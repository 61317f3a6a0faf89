package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
)

// VolumeRef is the volume that a request is about.
type VolumeRef struct {
	Ref string `path:"ref" doc:"name, id, or a prefix of the id"`
}

func (v VolumeRef) object() string { return v.Ref }

type none struct{}

func (s *Server) volumeRoutes() {
	add(s, route{"list-volumes", http.MethodGet, "/v1/volumes", "List volumes", auth.Look, true, false}, s.listVolumes)
	add(s, route{"create-volume", http.MethodPost, "/v1/volumes", "Create a volume", auth.Change, false, false}, s.createVolume)
	add(s, route{"inspect-volume", http.MethodGet, "/v1/volumes/{ref}", "Show a volume and how its heads are", auth.Look, false, false}, s.inspectVolume)
	add(s, route{"delete-volume", http.MethodDelete, "/v1/volumes/{ref}", "Delete a volume; it can be restored for a day", auth.Change, false, false}, s.deleteVolume)
	add(s, route{"restore-volume", http.MethodPost, "/v1/volumes/{ref}/restore", "Restore a deleted volume", auth.Change, true, false}, s.restoreVolume)
	add(s, route{"purge-volume", http.MethodPost, "/v1/volumes/{ref}/purge", "End a deleted volume's grace now", auth.Change, true, false}, s.purgeVolume)
	add(s, route{"label-volume", http.MethodPost, "/v1/volumes/{ref}/labels", "Set and remove labels", auth.Change, true, false}, s.labelVolume)
	add(s, route{"resize-volume", http.MethodPost, "/v1/volumes/{ref}/resize", "Change a volume's size", auth.Change, false, false}, s.resizeVolume)
	add(s, route{"move-volume", http.MethodPost, "/v1/volumes/{ref}/move", "Move a volume, or show what that would do", auth.Change, false, false}, s.moveVolume)
	add(s, route{"cancel-move", http.MethodDelete, "/v1/volumes/{ref}/move", "Cancel a move that has not handed over", auth.Change, true, false}, s.cancelMove)
	add(s, route{"show-move", http.MethodGet, "/v1/moves/{id}", "Show how a move goes", auth.Look, false, false}, s.showMove)
}

// by is who asks, as records keep it.
func by(ctx context.Context) string { return identityOf(ctx).String() }

func (s *Server) listVolumes(ctx context.Context, in *struct {
	Deleted bool `query:"deleted" doc:"those that wait to be purged instead"`
},
) ([]api.Volume, error) {
	list, err := s.cfg.Ledger.Volumes(ctx, in.Deleted)
	if list == nil {
		list = []api.Volume{}
	}
	return list, err
}

type createIn struct{ Body api.CreateVolume }

func (in createIn) object() string { return in.Body.Name }

func (s *Server) createVolume(ctx context.Context, in *createIn) (api.Volume, error) {
	if node := in.Body.Node; node != "" && node != s.cfg.Node {
		var v api.Volume
		err := s.call(ctx, node, http.MethodPost, "/v1/volumes", in.Body, &v)
		return v, err
	}
	in.Body.Node = ""
	return s.cfg.Agent.NewVolume(ctx, in.Body)
}

// owner is the node that owns the current branch's head.
func owner(v api.Volume) string { return v.Heads[v.Branch].Node }

func (s *Server) inspectVolume(ctx context.Context, in *VolumeRef) (api.VolumeDetail, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.VolumeDetail{}, err
	}
	out := api.VolumeDetail{Volume: v, Status: map[string]api.HeadStatus{}}
	for branch, h := range v.Heads {
		status, err := s.headStatus(ctx, h.Node, v.ID, branch)
		if err == nil {
			out.Status[branch] = status
			continue
		}
		if out.Unknown == nil {
			out.Unknown = map[string]string{}
		}
		out.Unknown[branch] = s.since(ctx, h.Node) + ": " + err.Error()
	}
	return out, nil
}

// since says in words since when nothing is known of a node.
func (s *Server) since(ctx context.Context, node string) string {
	nodes, err := s.cfg.Cluster.Nodes(ctx)
	if err == nil {
		if i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == node }); i >= 0 && !nodes[i].Status.Online && !nodes[i].Status.Seen.IsZero() {
			return "unknown since " + nodes[i].Status.Seen.UTC().Format(time.DateTime) + " UTC"
		}
	}
	return "unknown now"
}

func (s *Server) headStatus(ctx context.Context, node, volume, branch string) (api.HeadStatus, error) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if node == s.cfg.Node {
		return s.cfg.Agent.Status(ctx, volume, branch)
	}
	var status api.HeadStatus
	err := s.call(ctx, node, http.MethodGet, "/v1/peer/heads/"+volume+"?branch="+escape(branch), nil, &status)
	return status, err
}

func (s *Server) deleteVolume(ctx context.Context, in *VolumeRef) (none, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return none{}, err
	}
	if node := owner(v); node != s.cfg.Node {
		err := s.call(ctx, node, http.MethodDelete, "/v1/volumes/"+v.ID, nil, nil)
		if silent(err) {
			return none{}, &api.Error{Kind: api.Unknown, Op: "delete volume", Object: v.Name, Reason: "its owner " + node + " does not answer (" + s.since(ctx, node) + "), so whether it is used is unknown", Err: err, Next: "try again when " + node + " is back"}
		}
		return none{}, err
	}
	return none{}, s.cfg.Agent.Delete(ctx, v.ID, by(ctx))
}

type restoreIn struct {
	VolumeRef
	Body struct {
		Name string `json:"name,omitempty" doc:"a new name, if the old one is taken"`
	}
}

func (s *Server) restoreVolume(ctx context.Context, in *restoreIn) (api.Volume, error) {
	v, err := s.deleted(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	return s.cfg.Ledger.Restore(ctx, v.ID, in.Body.Name)
}

// deleted finds a deleted volume by id or by the name it had.
func (s *Server) deleted(ctx context.Context, ref string) (api.Volume, error) {
	list, err := s.cfg.Ledger.Volumes(ctx, true)
	if err != nil {
		return api.Volume{}, err
	}
	var found []api.Volume
	for _, v := range list {
		if v.ID == ref || v.Name == ref {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.Volume{}, &api.Error{Kind: api.NotFound, Op: "look up deleted volume", Object: ref, Reason: "no deleted volume has that name or id", Next: "drover volume ls --deleted shows what can be restored"}
	}
	return api.Volume{}, &api.Error{Kind: api.Invalid, Op: "look up deleted volume", Object: ref, Reason: fmt.Sprintf("%d deleted volumes had that name", len(found)), Next: "give the id that drover volume ls --deleted shows"}
}

func (s *Server) purgeVolume(ctx context.Context, in *VolumeRef) (api.Volume, error) {
	v, err := s.deleted(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	return s.cfg.Ledger.Purge(ctx, v.ID)
}

type labelIn struct {
	VolumeRef
	Body struct {
		Set    map[string]string `json:"set,omitempty"`
		Remove []string          `json:"remove,omitempty"`
	}
}

func (s *Server) labelVolume(ctx context.Context, in *labelIn) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	return s.cfg.Ledger.Label(ctx, v.ID, in.Body.Set, in.Body.Remove)
}

type resizeIn struct {
	VolumeRef
	Body struct {
		Size int64 `json:"size" doc:"limit in bytes; 0 removes it"`
	}
}

func (s *Server) resizeVolume(ctx context.Context, in *resizeIn) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	if node := owner(v); node != s.cfg.Node {
		var after api.Volume // of its own: what the answer leaves out must not stay from before
		err := s.call(ctx, node, http.MethodPost, "/v1/volumes/"+v.ID+"/resize", in.Body, &after)
		return after, err
	}
	return s.cfg.Agent.Resize(ctx, v.ID, in.Body.Size)
}

type moveIn struct {
	VolumeRef
	Body api.StartMove
}

func (s *Server) moveVolume(ctx context.Context, in *moveIn) (api.MovePlan, error) {
	var out api.MovePlan
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return out, err
	}
	if in.Body.Branch == "" {
		in.Body.Branch = v.Branch
	}
	h, there := v.Heads[in.Body.Branch]
	if !there {
		return out, &api.Error{Kind: api.NotFound, Op: "move volume", Object: v.Name + "@" + in.Body.Branch, Reason: "the volume has no such branch", Next: "drover branch " + v.Name + " lists them"}
	}
	if node := h.Node; node != s.cfg.Node {
		err := s.call(ctx, node, http.MethodPost, "/v1/volumes/"+v.ID+"/move", in.Body, &out)
		if silent(err) {
			return out, &api.Error{Kind: api.Unknown, Op: "move volume", Object: v.Name, Reason: "its owner " + node + " does not answer (" + s.since(ctx, node) + ")", Err: err, Next: "bring " + node + " back; its data is there"}
		}
		return out, err
	}
	return s.cfg.Agent.StartMove(ctx, v.ID, in.Body, by(ctx))
}

type cancelIn struct {
	VolumeRef
	Branch string `query:"branch" doc:"empty is the current branch"`
}

func (s *Server) cancelMove(ctx context.Context, in *cancelIn) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	branch := in.Branch
	if branch == "" {
		branch = v.Branch
	}
	return s.cfg.Ledger.CancelMove(ctx, v.ID, branch, "")
}

func (s *Server) showMove(ctx context.Context, in *struct {
	ID   string `path:"id"`
	Node string `query:"node" doc:"the move's source; empty is the node that is asked"`
},
) (api.MoveProgress, error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		var p api.MoveProgress
		err := s.call(ctx, in.Node, http.MethodGet, "/v1/moves/"+in.ID, nil, &p)
		return p, err
	}
	return s.cfg.Agent.Move(in.ID)
}
