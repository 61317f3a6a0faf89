package apiserver

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/trace"
)

func escape(s string) string { return url.PathEscape(s) }

// call asks another node's API for the user who asks here.
func (s *Server) call(ctx context.Context, node, method, path string, in, out any) error {
	transport, err := s.cfg.Forward(node)
	if err != nil {
		return err
	}
	id := identityOf(ctx)
	header := http.Header{}
	if id.Kind == auth.UserKind || id.Kind == auth.LocalKind {
		header.Set(BehalfHeader, behalf(auth.Identity{Kind: id.Kind, Name: url.QueryEscape(id.Name), Role: id.Role}))
	}
	c := client.New("https://node", transport, header)
	if err := c.Do(ctx, method, path, in, out); err != nil {
		return unanswered(node, err)
	}
	return nil
}

// silent reports whether a node did not answer at all. One that answers that
// something it needs does not, its container engine say, has said so itself: an
// error that came over the wire has lost its cause.
func silent(err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Kind == api.Unavailable && e.Err != nil
}

func (s *Server) peerRoutes() {
	add(s, route{"peer-status", http.MethodGet, "/v1/peer/heads/{volume}", "How a head is that this node owns", auth.Look, false, true}, s.peerStatus)
	add(s, route{"peer-pull", http.MethodPost, "/v1/peer/pull", "Ask an owner for a head that nobody uses there", auth.Report, false, false}, s.peerPull)
	add(s, route{"peer-prepare", http.MethodPost, "/v1/peer/prepare", "Ask whether this node can take a head and its users", auth.Report, false, false}, s.peerPrepare)
	add(s, route{"peer-delete", http.MethodPost, "/v1/peer/delete", "Delete a volume for another node's container engine", auth.Report, false, false}, s.peerDelete)
	add(s, route{"renew", http.MethodPost, "/v1/peer/renew", "Renew the asking node's certificate", auth.Report, true, false}, s.renew)
	add(s, route{"member-start", http.MethodPost, "/v1/peer/member", "How the asking node starts its member of the state store", auth.Report, true, false}, s.memberStart)
	add(s, route{"ledger", http.MethodPost, "/v1/peer/ledger", "Change a volume's record in the asking node's name", auth.Report, true, true}, s.ledgerCall)
}

func (s *Server) peerStatus(ctx context.Context, in *struct {
	Volume string `path:"volume"`
	Branch string `query:"branch"`
},
) (api.HeadStatus, error) {
	return s.cfg.Agent.Status(ctx, in.Volume, in.Branch)
}

// self is the node that asks; what a node asks for is for itself.
func self(ctx context.Context) string { return identityOf(ctx).Name }

func (s *Server) peerPull(ctx context.Context, in *struct{ Body peer.Pull }) (none, error) {
	in.Body.To = self(ctx)
	return none{}, s.cfg.Agent.Pull(ctx, in.Body)
}

func (s *Server) peerPrepare(ctx context.Context, in *struct{ Body peer.Preparation }) (none, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Body.Volume.ID)
	if err != nil {
		return none{}, err
	}
	h := v.Heads[in.Body.Branch]
	if h.Node != self(ctx) || h.Move == nil || h.Move.ID != in.Body.Move || h.Move.To != s.cfg.Node {
		return none{}, &api.Error{Kind: api.Denied, Op: "prepare move", Object: v.Name, Reason: self(ctx) + " does not own it, or it does not move here"}
	}
	s.cfg.Events.Relate(in.Body.Move, trace.ID(ctx))
	return none{}, s.cfg.Agent.Prepare(ctx, in.Body)
}

func (s *Server) peerDelete(ctx context.Context, in *struct{ Body peer.Delete }) (none, error) {
	return none{}, s.cfg.Agent.Delete(ctx, in.Body.Volume, in.Body.By)
}

func (s *Server) renew(ctx context.Context, in *struct{ Body peer.Renewal }) (peer.Renewal, error) {
	chain, err := s.cfg.Cluster.Renew(ctx, identityOf(ctx), in.Body.CSR)
	return peer.Renewal{Chain: chain}, err
}

func (s *Server) memberStart(ctx context.Context, _ *struct{}) (cluster.MemberStart, error) {
	return s.cfg.Cluster.MemberStart(ctx, identityOf(ctx))
}

// ledgerCall changes a record in the name of the node that asks, whatever it
// says: a node speaks for its own heads only.
func (s *Server) ledgerCall(ctx context.Context, in *struct{ Body peer.LedgerCall }) (api.Volume, error) {
	c, node, l := in.Body, self(ctx), s.cfg.Ledger
	if missing := (c.Op == "create" && c.Create == nil) || (c.Op == "hand" && c.HandOver == nil) || (c.Op == "change" && c.Change == nil) || ((c.Op == "move" || c.Op == "cancel") && c.Move == nil); missing {
		return api.Volume{}, &api.Error{Kind: api.Invalid, Op: "change record", Object: c.Op, Reason: "what is to be done is left out"}
	}
	switch c.Op {
	case "volume":
		return l.Volume(ctx, c.ID)
	case "create":
		c.Create.Node = node
		return l.Create(ctx, *c.Create)
	case "hand":
		c.HandOver.Node = node
		return l.Hand(ctx, c.ID, c.Branch, *c.HandOver)
	case "ready":
		return l.Ready(ctx, c.ID, c.Branch, node, c.Epoch)
	case "settled":
		return l.Settled(ctx, c.ID, c.Branch, node, c.Epoch)
	case "returned":
		return l.Returned(ctx, c.ID, c.Branch, node)
	case "forget":
		return api.Volume{}, l.Forget(ctx, c.ID, c.Branch, node, c.Epoch)
	case "move", "cancel", "delete", "resize", "purge", "change":
		v, err := l.Volume(ctx, c.ID)
		if err != nil {
			return v, err
		}
		if c.Op == "change" && ownsAny(v, node) {
			break
		}
		if owner(v) != node && v.Heads[c.Branch].Node != node {
			return v, &api.Error{Kind: api.Denied, Op: c.Op + " volume", Object: v.Name, Reason: node + " does not own it"}
		}
	default:
		return api.Volume{}, &api.Error{Kind: api.Unsupported, Op: "change record", Object: c.Op, Reason: "this node does not know that change", Next: "upgrade it"}
	}
	switch c.Op {
	case "move":
		return l.RequestMove(ctx, c.ID, c.Branch, *c.Move)
	case "cancel":
		return l.CancelMove(ctx, c.ID, c.Branch, c.Move.ID)
	case "purge":
		return l.BeginPurge(ctx, c.ID)
	case "change":
		return l.Change(ctx, c.ID, c.Change.For(node))
	case "resize":
		return l.Resize(ctx, c.ID, c.Size)
	}
	return l.Delete(ctx, c.ID, c.By)
}

// ownsAny reports whether a node has a say in a volume's references: it owns
// a branch, or has what is left of a deleted one. Changes of a head itself ask
// for its owner besides.
func ownsAny(v api.Volume, node string) bool {
	for _, h := range v.Heads {
		if h.Node == node {
			return true
		}
	}
	for _, d := range v.Dropped {
		if d.Node == node {
			return true
		}
	}
	return false
}
