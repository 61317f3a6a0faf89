package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/trace"
)

func (s *Server) recoverRoutes() {
	add(s, route{"recover-volume", http.MethodPost, "/v1/volumes/{ref}/recover", "Let a volume go on elsewhere without its owner, from what is held there", auth.Manage, true, false}, s.recoverVolume)
	add(s, route{"peer-held", http.MethodGet, "/v1/peer/held/{ref}", "Snapshots of a volume that this node holds", auth.Look, false, true}, s.peerHeld)
}

func (s *Server) peerHeld(ctx context.Context, in *VolumeRef) ([]api.HeldSnapshot, error) {
	return s.cfg.Agent.Held(ctx, in.Ref)
}

type recoverIn struct {
	VolumeRef
	Body api.RecoverVolume
}

// recoverVolume takes a head from an owner that is gone. It asks for the two
// things that only a person can know: that the owner has really stopped, and
// that the loss is accepted.
func (s *Server) recoverVolume(ctx context.Context, in *recoverIn) (api.Recovery, error) {
	const op = "recover volume"
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return api.Recovery{}, err
	}
	h := v.Heads[v.Branch]
	out := api.Recovery{Volume: v.Name, From: h.Node, To: in.Body.Node}
	nodes, err := s.cfg.Cluster.Nodes(ctx)
	if err != nil {
		return out, err
	}
	i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == h.Node })
	if i >= 0 && nodes[i].Status.Online {
		return out, &api.Error{Kind: api.InUse, Op: op, Object: v.Name, Reason: "its owner " + h.Node + " answers and has all of its data", Next: "drover volume move " + v.Name + " " + in.Body.Node}
	}
	if out.Snapshot, err = s.latest(ctx, v, in.Body.Node); err != nil {
		return out, err
	}
	out.Loss = fmt.Sprintf("everything written on %s after %s UTC; it stays there, and is kept if %s comes back", h.Node, out.Snapshot.Created.UTC().Format(time.DateTime), h.Node)
	if in.Body.DryRun {
		return out, nil
	}
	if !in.Body.OwnerIsDead || !in.Body.AcceptLoss {
		return out, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "this loses " + out.Loss, Next: "if " + h.Node + " is powered off for certain and the loss is accepted, say --owner-is-dead --accept-loss"}
	}
	proof := by(ctx) + " says that " + h.Node + " is dead"
	if _, err := s.cfg.Ledger.Adopt(ctx, v.ID, v.Branch, in.Body.Node, out.Snapshot.Pool, out.Snapshot.ID, proof, out.Loss); err != nil {
		return out, err
	}
	s.cfg.Events.Add(api.Event{Type: "volume.recovered", Level: "warning", Object: v.Name, Message: fmt.Sprintf("volume %s goes on at %s: %s; lost: %s", v.Name, in.Body.Node, proof, out.Loss), Trace: trace.ID(ctx)})
	return out, nil
}

// latest is the last snapshot that a node holds of a volume.
func (s *Server) latest(ctx context.Context, v api.Volume, node string) (api.HeldSnapshot, error) {
	var held []api.HeldSnapshot
	var err error
	if node == s.cfg.Node {
		held, err = s.cfg.Agent.Held(ctx, v.ID)
	} else {
		err = s.call(ctx, node, http.MethodGet, "/v1/peer/held/"+escape(v.ID), nil, &held)
	}
	if err != nil {
		return api.HeldSnapshot{}, err
	}
	if len(held) == 0 {
		return api.HeldSnapshot{}, &api.Error{Kind: api.NotFound, Op: "recover volume", Object: v.Name, Reason: node + " holds no snapshot of it", Next: "try the other nodes; its data is on " + v.Heads[v.Branch].Node}
	}
	return held[len(held)-1], nil
}
