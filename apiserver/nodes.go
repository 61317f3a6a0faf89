package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/state"
)

// NodeName is what a request is about: a node, a token, a user, a pool.
type NodeName struct {
	Name string `path:"name"`
}

func (n NodeName) object() string { return n.Name }

func (s *Server) nodeRoutes() {
	add(s, route{"status", http.MethodGet, "/v1/status", "The cluster at a glance", auth.Look, false, false}, s.status)
	add(s, route{"join", http.MethodPost, "/v1/join", "Let a node in that holds a token", auth.Join, true, false}, s.join)
	add(s, route{"list-nodes", http.MethodGet, "/v1/nodes", "List nodes", auth.Look, true, false}, s.listNodes)
	add(s, route{"probe-node", http.MethodGet, "/v1/nodes/{name}/probe", "Ask whether a node's agent answers, and what its clock says", auth.Look, false, true}, s.probeNode)
	add(s, route{"change-node", http.MethodPost, "/v1/nodes/{name}", "Label, drain or change a node", auth.Manage, true, false}, s.changeNode)
	add(s, route{"remove-node", http.MethodDelete, "/v1/nodes/{name}", "Remove a node and revoke its certificate", auth.Manage, true, false}, s.removeNode)
	add(s, route{"create-token", http.MethodPost, "/v1/tokens", "Make a token that lets one node join", auth.Manage, true, false}, s.createToken)
	add(s, route{"list-tokens", http.MethodGet, "/v1/tokens", "List tokens", auth.Manage, true, false}, s.listTokens)
	add(s, route{"revoke-token", http.MethodDelete, "/v1/tokens/{name}", "Revoke a token", auth.Manage, true, false}, s.revokeToken)
	add(s, route{"list-users", http.MethodGet, "/v1/users", "List users", auth.Manage, true, false}, s.listUsers)
	add(s, route{"add-user", http.MethodPost, "/v1/users", "Sign a user's certificate", auth.Manage, true, false}, s.addUser)
	add(s, route{"remove-user", http.MethodDelete, "/v1/users/{name}", "Revoke a user's certificate", auth.Manage, true, false}, s.removeUser)
	add(s, route{"list-pools", http.MethodGet, "/v1/pools", "List the pools of all nodes", auth.Look, false, false}, s.listPools)
	add(s, route{"add-pool", http.MethodPost, "/v1/pools", "Give a node a pool", auth.Manage, false, false}, s.addPool)
	add(s, route{"grow-pool", http.MethodPost, "/v1/pools/{name}/grow", "Make a pool on a file larger", auth.Manage, false, false}, s.growPool)
	add(s, route{"remove-pool", http.MethodDelete, "/v1/pools/{name}", "Let go of a pool; its data stays", auth.Manage, false, false}, s.removePool)
}

func (s *Server) status(ctx context.Context, _ *struct{}) (api.ClusterStatus, error) {
	out := api.ClusterStatus{Node: s.cfg.Node, Version: s.cfg.Version, Time: time.Now().UTC(), State: "healthy", Nodes: []api.Node{}}
	var err error
	if out.Cluster, err = s.cfg.Cluster.Describe(ctx); err == nil {
		out.Nodes, err = s.cfg.Cluster.Nodes(ctx)
	}
	var list []api.Volume
	if err == nil {
		list, err = s.volumesAnywhere(ctx)
	}
	if err != nil {
		out.State = err.Error()
	}
	out.Volumes = len(list)
	for _, v := range list {
		for _, h := range v.Heads {
			if h.Move != nil {
				out.Moving++
			}
		}
	}
	return out, nil
}

func (s *Server) volumesAnywhere(ctx context.Context) ([]api.Volume, error) {
	if s.cfg.Control() {
		return s.cfg.Ledger.Volumes(ctx, false)
	}
	var list []api.Volume
	err := s.call(ctx, "", http.MethodGet, "/v1/volumes", nil, &list)
	return list, err
}

type joinIn struct{ Body cluster.JoinRequest }

func (in joinIn) object() string { return in.Body.Name }

func (s *Server) join(ctx context.Context, in *joinIn) (cluster.JoinAnswer, error) {
	return s.cfg.Cluster.Join(ctx, in.Body)
}

func (s *Server) listNodes(ctx context.Context, _ *struct{}) ([]api.Node, error) {
	return s.cfg.Cluster.Nodes(ctx)
}

// probeNode goes from the node that is asked to the named one, so that it also
// tells whether that way is open.
func (s *Server) probeNode(ctx context.Context, in *NodeName) (api.NodeProbe, error) {
	if in.Name != s.cfg.Node {
		var p api.NodeProbe
		err := s.call(ctx, in.Name, http.MethodGet, "/v1/nodes/"+escape(in.Name)+"/probe", nil, &p)
		return p, err
	}
	return api.NodeProbe{Node: s.cfg.Node, Version: s.cfg.Version, Time: time.Now().UTC()}, nil
}

type changeNodeIn struct {
	NodeName
	Body cluster.NodeChange
}

func (s *Server) changeNode(ctx context.Context, in *changeNodeIn) (api.Node, error) {
	changed, err := s.cfg.Cluster.ChangeNode(ctx, in.Name, in.Body)
	if err != nil {
		return changed, err
	}
	// The record does not say how the node is now.
	list, err := s.cfg.Cluster.Nodes(ctx)
	if i := slices.IndexFunc(list, func(n api.Node) bool { return n.Name == in.Name }); err == nil && i >= 0 {
		changed.Status = list[i].Status
	}
	return changed, nil
}

func (s *Server) removeNode(ctx context.Context, in *struct {
	NodeName
	Force bool `query:"force" doc:"also when volumes are on it: they are unreachable then"`
},
) (none, error) {
	return none{}, s.cfg.Cluster.RemoveNode(ctx, in.Name, in.Force)
}

// NewToken is a token as it is shown once.
type NewToken struct {
	Token   string    `json:"token" doc:"to be given to drover join; shown only now"`
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
}

func (s *Server) createToken(ctx context.Context, in *struct{ Body cluster.TokenOptions }) (NewToken, error) {
	text, t, err := s.cfg.Cluster.CreateToken(ctx, by(ctx), in.Body)
	return NewToken{Token: text, ID: t.ID, Expires: t.Expires}, err
}

func (s *Server) listTokens(ctx context.Context, _ *struct{}) ([]state.Token, error) {
	list, err := s.cfg.Cluster.Tokens(ctx)
	for i := range list {
		list[i].Hash = ""
	}
	return list, err
}

func (s *Server) revokeToken(ctx context.Context, in *NodeName) (none, error) {
	return none{}, s.cfg.Cluster.RevokeToken(ctx, in.Name)
}

func (s *Server) listUsers(ctx context.Context, _ *struct{}) ([]api.User, error) {
	return s.cfg.Cluster.Users(ctx)
}

// AddUser asks for a user's certificate.
type AddUser struct {
	Name string   `json:"name"`
	Role api.Role `json:"role" enum:"viewer,operator,admin"`
	CSR  []byte   `json:"csr" doc:"certificate request, PEM"`
}

// AddedUser is the answer: the user and the certificate.
type AddedUser struct {
	User  api.User `json:"user"`
	Chain []byte   `json:"chain" doc:"PEM"`
}

type addUserIn struct{ Body AddUser }

func (in addUserIn) object() string { return in.Body.Name }

func (s *Server) addUser(ctx context.Context, in *addUserIn) (AddedUser, error) {
	u, chain, err := s.cfg.Cluster.AddUser(ctx, in.Body.Name, in.Body.Role, in.Body.CSR)
	return AddedUser{u, chain}, err
}

func (s *Server) removeUser(ctx context.Context, in *NodeName) (none, error) {
	return none{}, s.cfg.Cluster.RemoveUser(ctx, in.Name)
}

// listPools gives what the nodes said with their last sign of life, and this
// node's as they are now.
func (s *Server) listPools(ctx context.Context, _ *struct{}) ([]api.Pool, error) {
	out := s.cfg.Agent.Pools()
	nodes, err := s.cfg.Cluster.Nodes(ctx)
	if err != nil {
		return out, nil //nolint:nilerr // without the store, this node's own are what is known
	}
	for _, n := range nodes {
		if n.Name == s.cfg.Node {
			continue
		}
		for _, p := range n.Status.Pools {
			if !n.Status.Online {
				p.State, p.Reason = api.PoolGone, "unknown: node "+n.Name+" was last heard at "+n.Status.Seen.UTC().Format(time.DateTime)+" UTC"
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b api.Pool) int {
		if a.Node != b.Node {
			return strings.Compare(a.Node, b.Node)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

type addPoolIn struct{ Body api.AddPool }

func (in addPoolIn) object() string { return in.Body.Name }

func (s *Server) addPool(ctx context.Context, in *addPoolIn) (api.Pool, error) {
	if node := in.Body.Node; node != "" && node != s.cfg.Node {
		var p api.Pool
		err := s.call(ctx, node, http.MethodPost, "/v1/pools", in.Body, &p)
		return p, err
	}
	return s.cfg.Agent.AddPool(ctx, in.Body)
}

type growPoolIn struct {
	NodeName
	Body api.GrowPool
}

func (s *Server) growPool(ctx context.Context, in *growPoolIn) (api.Pool, error) {
	if node := in.Body.Node; node != "" && node != s.cfg.Node {
		var p api.Pool
		err := s.call(ctx, node, http.MethodPost, "/v1/pools/"+escape(in.Name)+"/grow", in.Body, &p)
		return p, err
	}
	return s.cfg.Agent.GrowPool(ctx, in.Name, in.Body.Size)
}

func (s *Server) removePool(ctx context.Context, in *struct {
	NodeName
	Node string `query:"node"`
},
) (none, error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		return none{}, s.call(ctx, in.Node, http.MethodDelete, "/v1/pools/"+escape(in.Name)+"?node="+escape(in.Node), nil, nil)
	}
	return none{}, s.cfg.Agent.RemovePool(ctx, in.Name)
}
