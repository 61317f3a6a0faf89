package apiserver

import (
	"context"
	"errors"
	"net/http"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/peer"
)

// RemoteKeys is what this node's agent does with the keys of remotes.
type RemoteKeys interface {
	RemoteKeys(ctx context.Context, volume, remote string) ([]api.RemoteKey, error)
	MakeKey(ctx context.Context, volume, remote string, r api.SealKey, by string) (api.RemoteKey, error)
	WrapKey(ctx context.Context, volume, remote string, r api.SealKey, by string) (api.RemoteKey, error)
	UnlockKey(ctx context.Context, volume, remote string, r api.OpenKey, by string) ([]api.RemoteKey, error)
	ExportKey(ctx context.Context, volume, remote, id, by string) (api.KeyCopy, error)
	RemoveKey(ctx context.Context, volume, remote, id string, force bool, by string) error
	KeyFor(id string) (peer.Key, error)
}

// Who may export or wrap a key can read the remote from then on without asking
// anybody: that takes more than the right to change volumes.
func (s *Server) remoteKeyRoutes() {
	keys := func(id, method, path, summary string, need auth.Permission) route {
		return route{id, method, "/v1/volumes/{ref}/remotes/{remote}/keys" + path, summary, need, false, false}
	}
	add(s, keys("list-remote-keys", http.MethodGet, "", "List the keys that seal what a remote keeps", auth.Look), s.listRemoteKeys)
	add(s, keys("make-remote-key", http.MethodPost, "", "Make a key that seals what is pushed, or another instead of it", auth.Change), s.makeRemoteKey)
	add(s, keys("wrap-remote-key", http.MethodPost, "/wrap", "Wrap a key at the remote for another passphrase or other recipients", auth.Manage), s.wrapRemoteKey)
	add(s, keys("unlock-remote-key", http.MethodPost, "/unlock", "Bring a remote's keys to the volume's node", auth.Change), s.unlockRemoteKey)
	add(s, keys("export-remote-key", http.MethodPost, "/export", "Give a key in clear, as a recovery copy", auth.Manage), s.exportRemoteKey)
	add(s, keys("remove-remote-key", http.MethodDelete, "/{key}", "Forget an old key, here and at the remote", auth.Change), s.removeRemoteKey)
	add(s, route{"peer-key", http.MethodPost, "/v1/peer/key", "Give a key to a node with a part in a volume that needs it", auth.Report, false, false}, s.peerKey)
}

func (s *Server) listRemoteKeys(ctx context.Context, in *RemoteRef) ([]api.RemoteKey, error) {
	const op = "list keys"
	v, node, err := s.keeper(ctx, op, *in)
	if err != nil {
		return nil, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodGet, in.path("/keys"), nil, func() ([]api.RemoteKey, error) {
		return s.cfg.Agent.RemoteKeys(ctx, v.ID, in.remote())
	})
}

type sealKeyIn struct {
	RemoteRef
	Body api.SealKey
}

func (s *Server) makeRemoteKey(ctx context.Context, in *sealKeyIn) (api.RemoteKey, error) {
	const op = "make key"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return api.RemoteKey{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, in.path("/keys"), in.Body, func() (api.RemoteKey, error) {
		return s.cfg.Agent.MakeKey(ctx, v.ID, in.remote(), in.Body, by(ctx))
	})
}

func (s *Server) wrapRemoteKey(ctx context.Context, in *sealKeyIn) (api.RemoteKey, error) {
	const op = "wrap key"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return api.RemoteKey{}, err
	}
	k, err := near(ctx, s, op, node, v.ID, http.MethodPost, in.path("/keys/wrap"), in.Body, func() (api.RemoteKey, error) {
		return s.cfg.Agent.WrapKey(ctx, v.ID, in.remote(), in.Body, by(ctx))
	})
	return k, s.whereToAsk(node, err)
}

func (s *Server) unlockRemoteKey(ctx context.Context, in *struct {
	RemoteRef
	Body api.OpenKey
},
) ([]api.RemoteKey, error) {
	const op = "unlock key"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return nil, err
	}
	if in.Body == (api.OpenKey{}) {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "nothing is given that opens a key", Next: "give a passphrase, an age identity or a recovery copy"}
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, in.path("/keys/unlock"), in.Body, func() ([]api.RemoteKey, error) {
		return s.cfg.Agent.UnlockKey(ctx, v.ID, in.remote(), in.Body, by(ctx))
	})
}

func (s *Server) exportRemoteKey(ctx context.Context, in *struct {
	RemoteRef
	Key string `query:"key" doc:"id; empty is the current one"`
},
) (api.KeyCopy, error) {
	const op = "export key"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return api.KeyCopy{}, err
	}
	k, err := near(ctx, s, op, node, v.ID, http.MethodPost, in.path("/keys/export?key="+escape(in.Key)), nil, func() (api.KeyCopy, error) {
		return s.cfg.Agent.ExportKey(ctx, v.ID, in.remote(), in.Key, by(ctx))
	})
	return k, s.whereToAsk(node, err)
}

// whereToAsk helps an administrator whose word another node does not take from
// this one, which is no control node.
func (s *Server) whereToAsk(node string, err error) error {
	var e *api.Error
	if node == s.cfg.Node || s.cfg.Control() || !api.Is(err, api.Denied) || !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Next = "ask on " + node + ", or on a control node"
	return &c
}

func (s *Server) removeRemoteKey(ctx context.Context, in *struct {
	RemoteRef
	Key   string `path:"key" doc:"its id"`
	Force bool   `query:"force" doc:"although commits are sealed with it"`
},
) (none, error) {
	const op = "remove key"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return none{}, err
	}
	path := in.path("/keys/" + escape(in.Key))
	if in.Force {
		path += "?force=true"
	}
	return near(ctx, s, op, node, v.ID, http.MethodDelete, path, nil, func() (none, error) {
		return none{}, s.cfg.Agent.RemoveKey(ctx, v.ID, in.remote(), in.Key, in.Force, by(ctx))
	})
}

// peerKey gives a key to a node that owns, has left of, or is just given a
// branch of a volume whose remote is sealed with it.
func (s *Server) peerKey(ctx context.Context, in *struct{ Body peer.KeyRequest }) (peer.Key, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Body.Volume)
	if err != nil {
		return peer.Key{}, err
	}
	node := self(ctx)
	part := ownsAny(v, node)
	for _, h := range v.Heads {
		part = part || h.Move != nil && h.Move.To == node
	}
	if !part || !v.NeedsKey(in.Body.ID) {
		return peer.Key{}, &api.Error{Kind: api.Denied, Op: "give key", Object: v.Name, Reason: node + " has no part in it, or none of its remotes is sealed with that key"}
	}
	return s.cfg.Agent.KeyFor(in.Body.ID)
}
