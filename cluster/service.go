package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

// Service is what control nodes do for the cluster. Its methods may be called
// on any control node at the same time and repeated after a failure. Whether
// the caller may is asked before, with auth.Allow; by names the caller in records.
type Service struct {
	Store *state.Store
	// Members and Access are nil with an external state store.
	Members state.Members
	Access  state.Access
	Dialer  Dialer
	// Node is the one this runs on.
	Node string
	// Endpoints are given to joining nodes when the store is external.
	Endpoints []string
	Prefix    string           // of all keys in an external store
	Validity  time.Duration    // of certificates; default auth.Validity
	Now       func() time.Time // default time.Now
}

func (s *Service) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Service) validity() time.Duration {
	if s.Validity != 0 {
		return s.Validity
	}
	return auth.Validity
}

// ca reads the CA. It is not kept, so that the key is in memory only while
// something is signed.
func (s *Service) ca(ctx context.Context) (*auth.CA, error) {
	var secret []byte
	err := s.Store.View(ctx, func(tx *state.Tx) (err error) {
		secret, _, err = state.Secrets.Get(tx, caSecret)
		return err
	})
	if err != nil {
		return nil, err
	}
	return auth.ParseCA(secret)
}

// optional gives nil for a record that is not there.
func optional[T any](tx *state.Tx, t state.Table[T], id string) (*T, error) {
	v, _, err := t.Get(tx, id)
	if api.Is(err, api.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// Join lets a node in, or says why not.
func (s *Service) Join(ctx context.Context, r JoinRequest) (JoinAnswer, error) {
	key, err := auth.RequestKeyHash(r.CSR)
	if err != nil {
		return JoinAnswer{}, err
	}
	// The name is used as a key below, so it is looked at before the token.
	if err := auth.CheckNode(r.Name); err != nil {
		return JoinAnswer{}, err
	}
	var node api.Node
	decide := func(tx *state.Tx) (replay bool, token *state.Token, err error) {
		facts, err := s.joinFacts(ctx, tx, r, key)
		if err != nil {
			return false, nil, err
		}
		if replay, err = r.check(facts); err == nil && r.External != (s.Members == nil) {
			err = storeMismatch(r.Name, s.Members == nil)
		}
		if replay {
			node = *facts.node
		}
		return replay, facts.token, err
	}
	// Once before dialing back, so that only holders of a token can make us
	// dial; once more with the commit.
	if err := s.Store.View(ctx, func(tx *state.Tx) error { _, _, err := decide(tx); return err }); err != nil {
		return JoinAnswer{}, err
	}
	if err := s.Dialer.DialBack(ctx, r.Address, key); err != nil {
		return JoinAnswer{}, err
	}
	err = s.Store.Update(ctx, func(tx *state.Tx) error {
		replay, token, err := decide(tx)
		if err != nil || replay {
			return err
		}
		node = api.Node{
			Name: r.Name, Address: r.Address, StateURL: r.StateURL, PeerURL: r.PeerURL,
			Joined: s.now().UTC(), Candidate: token.Control && !r.Worker, Member: api.MemberNone, Key: key, Version: 1,
		}
		if c, _, err := state.TheCluster.Get(tx, "cluster"); err != nil {
			return err
		} else if c.Recovery != nil {
			return &api.Error{Kind: api.Unavailable, Op: "join cluster", Object: r.Name, Reason: "the cluster is being recovered", Next: "wait until drover status shows that it is over"}
		} else {
			node.Incarnation = c.Incarnation
		}
		if s.Members == nil {
			// Nobody but its operators gives or takes rights in an external store.
			node.StateURL, node.PeerURL, node.Control, node.Candidate = "", "", token.Control && !r.Worker, false
		}
		token.Used = r.Name
		return errors.Join(
			state.Nodes.Put(tx, r.Name, node),
			state.Tokens.Put(tx, token.ID, *token),
			s.issued(tx, issuedNode(r.Name), key),
		)
	})
	if err != nil {
		return JoinAnswer{}, err
	}
	// From here on everything can be repeated: the node asks again with the
	// same key if it does not get the answer.
	if s.Access != nil {
		if err := s.Access.Add(ctx, node.Name); err != nil {
			return JoinAnswer{}, err
		}
	}
	return s.welcome(ctx, node, r.CSR)
}

func (s *Service) joinFacts(ctx context.Context, tx *state.Tx, r JoinRequest, key string) (joinFacts, error) {
	f := joinFacts{now: s.now(), key: key}
	var err error
	// Of the secrets of tokens that do not exist, none matches.
	if !strings.ContainsAny(r.Token, "/") && r.Token != "" {
		if f.token, err = optional(tx, state.Tokens, r.Token); err != nil {
			return f, err
		}
	}
	if f.token == nil {
		return f, nil
	}
	if f.node, err = optional(tx, state.Nodes, r.Name); err != nil {
		return f, err
	}
	_, err = state.Nodes.All(ctx, s.Store, "", func(name string, n api.Node, _ int64) error {
		if n.Address == r.Address || (r.PeerURL != "" && n.PeerURL == r.PeerURL) {
			f.byAddress = name
		}
		return nil
	})
	if err != nil {
		return f, err
	}
	f.speak, _, err = s.spoken(ctx)
	if f.speak != nil {
		f.speak[s.Node] = api.Speaks()
	}
	return f, err
}

func (s *Service) welcome(ctx context.Context, node api.Node, csr []byte) (JoinAnswer, error) {
	ca, err := s.ca(ctx)
	if err != nil {
		return JoinAnswer{}, err
	}
	chain, err := s.signNode(ca, node, csr)
	if err != nil {
		return JoinAnswer{}, err
	}
	a := JoinAnswer{Node: node, Chain: chain, CA: ca.PEM(), Endpoints: s.Endpoints, External: s.Members == nil, Prefix: s.Prefix}
	err = s.Store.View(ctx, func(tx *state.Tx) (err error) {
		a.Cluster, _, err = state.TheCluster.Get(tx, "cluster")
		return err
	})
	if err != nil || a.External {
		return a, err
	}
	a.Endpoints = nil
	_, err = state.Nodes.All(ctx, s.Store, "", func(_ string, n api.Node, _ int64) error {
		if n.Member == api.MemberVoter {
			a.Endpoints = append(a.Endpoints, n.StateURL)
		}
		return nil
	})
	return a, err
}

func (s *Service) signNode(ca *auth.CA, node api.Node, csr []byte) ([]byte, error) {
	host, _, err := net.SplitHostPort(node.Address)
	if err != nil {
		return nil, err
	}
	return ca.Sign(csr, auth.Subject{Kind: auth.NodeKind, Name: node.Name, Control: node.Control, Addresses: []string{host}}, s.now(), s.validity())
}

// Issued notes the key of a node's certificate that the records did not know,
// so that a removal revokes it.
func (s *Service) Issued(tx *state.Tx, node, key string) error {
	return s.issued(tx, issuedNode(node), key)
}

// issued notes the key of a certificate, and forgets those that are over.
func (s *Service) issued(tx *state.Tx, id, key string) error {
	old, err := optional(tx, state.Issued, id)
	if err != nil {
		return err
	}
	keys := []state.IssuedKey{{Key: key, Until: s.now().Add(s.validity()).UTC()}}
	if old != nil {
		for _, k := range *old {
			if k.Key != key && k.Until.After(s.now()) {
				keys = append(keys, k)
			}
		}
	}
	// A node renews a few times in the life of a certificate. One that asks
	// without end must not fill the store.
	if len(keys) > maxIssued {
		return &api.Error{Kind: api.Exhausted, Op: "sign certificate", Object: id, Reason: fmt.Sprintf("%d certificates are valid already", maxIssued), Next: "wait until the first of them are over, or remove it and join anew"}
	}
	return state.Issued.Put(tx, id, keys)
}

const maxIssued = 64

// revoke makes all keys of a node or user bad, from the moment of the commit.
func (s *Service) revoke(tx *state.Tx, id, name, reason string) error {
	keys, err := optional(tx, state.Issued, id)
	if err != nil || keys == nil {
		return err
	}
	for _, k := range *keys {
		if err := state.Revoked.Put(tx, k.Key, state.Revocation{Name: name, At: s.now().UTC(), Reason: reason, Until: k.Until}); err != nil {
			return err
		}
	}
	state.Issued.Delete(tx, id)
	return nil
}

// Renew signs a new certificate for the node or user that asks, with what it
// is now: a node that became a control node gets one that says so.
func (s *Service) Renew(ctx context.Context, caller auth.Identity, csr []byte) ([]byte, error) {
	key, err := auth.RequestKeyHash(csr)
	if err != nil {
		return nil, err
	}
	var node *api.Node
	var user *api.User
	err = s.Store.Update(ctx, func(tx *state.Tx) (err error) {
		node, user = nil, nil
		if revoked, err := optional(tx, state.Revoked, key); err != nil || revoked != nil {
			return errors.Join(err, unknownCaller(caller))
		}
		switch caller.Kind {
		case auth.NodeKind:
			if node, err = optional(tx, state.Nodes, caller.Name); err != nil || node == nil {
				return errors.Join(err, unknownCaller(caller))
			}
			node.Key, node.Version = key, node.Version+1
			return errors.Join(state.Nodes.Put(tx, node.Name, *node), s.issued(tx, issuedNode(node.Name), key))
		case auth.UserKind:
			if user, err = optional(tx, state.Users, caller.Name); err != nil || user == nil {
				return errors.Join(err, unknownCaller(caller))
			}
			user.Key = key
			return errors.Join(state.Users.Put(tx, user.Name, *user), s.issued(tx, issuedUser(user.Name), key))
		}
		return unknownCaller(caller)
	})
	if err != nil {
		return nil, err
	}
	ca, err := s.ca(ctx)
	if err != nil {
		return nil, err
	}
	if node != nil {
		return s.signNode(ca, *node, csr)
	}
	return ca.Sign(csr, auth.Subject{Kind: auth.UserKind, Name: user.Name, Role: user.Role}, s.now(), s.validity())
}

func unknownCaller(id auth.Identity) error {
	return &api.Error{Kind: api.Unauthenticated, Op: "renew certificate", Object: id.String(), Reason: "the cluster does not know it (any more)"}
}

// RemoveNode takes a node out of the cluster for good: its keys are revoked,
// its connections cut, its part in the state store ends. It is refused while
// the node owns heads, unless force says that what only it holds may be lost.
// Repeated after a failure it goes on.
func (s *Service) RemoveNode(ctx context.Context, name string, force bool) error {
	refuse := func(kind api.Kind, reason, next string) error {
		return &api.Error{Kind: kind, Op: "remove node", Object: name, Reason: reason, Next: next}
	}
	if name == s.Node {
		return refuse(api.InUse, "a node cannot remove itself", "run the command on, or against, another node")
	}
	var node api.Node
	err := s.Store.View(ctx, func(tx *state.Tx) (err error) {
		node, _, err = state.Nodes.Get(tx, name)
		return err
	})
	if err != nil {
		return err
	}
	if !force {
		owned, err := s.ownedBy(ctx, name)
		if err != nil {
			return err
		}
		if len(owned) > 0 {
			return refuse(api.InUse, "it owns "+strings.Join(owned, ", "), "move them away, for instance with drover node drain "+name+"; --force gives up what only that node holds")
		}
	}
	member, err := s.memberOf(ctx, node)
	if err != nil {
		return err
	}
	if member != nil && member.only {
		return refuse(api.InUse, "it holds the only member of the state store that has a vote", "drain it with drover node drain "+name+" and wait until drover node ls shows that another node took over")
	}
	err = s.Store.Update(ctx, func(tx *state.Tx) error {
		state.Alive.Delete(tx, name)
		return s.revoke(tx, issuedNode(name), name, "node "+name+" was removed from the cluster")
	})
	if err != nil {
		return err
	}
	if member != nil {
		if err := s.Members.Remove(ctx, member.id); err != nil {
			return err
		}
	}
	if s.Access != nil {
		if err := s.Access.Remove(ctx, name); err != nil {
			return err
		}
	}
	// The record goes last: as long as it is there, the command can be repeated.
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		state.Nodes.Delete(tx, name)
		return nil
	})
}

// ownedBy names the branches of volumes that a node owns.
func (s *Service) ownedBy(ctx context.Context, node string) ([]string, error) {
	var owned []string
	_, err := state.Assigned.All(ctx, s.Store, node+"/", func(_ string, v api.Volume, _ int64) error {
		for branch, h := range v.Heads {
			if h.Node == node {
				owned = append(owned, v.Name+"@"+branch)
			}
		}
		return nil
	})
	slices.Sort(owned)
	return owned, err
}

type membership struct {
	id   uint64
	only bool // the only voter
}

func (s *Service) memberOf(ctx context.Context, node api.Node) (*membership, error) {
	if s.Members == nil || node.PeerURL == "" {
		return nil, nil
	}
	members, err := s.Members.List(ctx)
	if err != nil {
		return nil, err
	}
	voters, is := 0, (*state.Member)(nil)
	for _, m := range members {
		if m.Voter {
			voters++
		}
		if m.PeerURL == node.PeerURL {
			is = &m
		}
	}
	if is == nil {
		return nil, nil
	}
	return &membership{id: is.ID, only: is.Voter && voters == 1}, nil
}

// NodeChange is what an administrator changes about a node; nil leaves it.
type NodeChange struct {
	Labels   map[string]*string `json:"labels,omitempty" doc:"new values; null removes a label"`
	Draining *bool              `json:"draining,omitempty"`
	Version  int64              `json:"version,omitempty" doc:"version the change is based on; 0 is any"`
}

// ChangeNode changes a node's record.
func (s *Service) ChangeNode(ctx context.Context, name string, c NodeChange) (api.Node, error) {
	var node api.Node
	err := s.Store.Update(ctx, func(tx *state.Tx) (err error) {
		if node, _, err = state.Nodes.Get(tx, name); err != nil {
			return err
		}
		if c.Version != 0 && c.Version != node.Version {
			return &api.Error{Kind: api.Conflict, Op: "change node", Object: name, Reason: fmt.Sprintf("it is at version %d, not %d", node.Version, c.Version), Next: "read it again"}
		}
		labels := maps.Clone(node.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for k, v := range c.Labels {
			if v == nil {
				delete(labels, k)
			} else {
				labels[k] = *v
			}
		}
		if err := api.CheckLabels(labels); err != nil {
			return err
		}
		node.Labels = labels
		if c.Draining != nil {
			node.Draining = *c.Draining
		}
		node.Version++
		return state.Nodes.Put(tx, name, node)
	})
	return node, err
}

// Nodes lists the nodes with what they last said of themselves.
func (s *Service) Nodes(ctx context.Context) ([]api.Node, error) {
	alive := map[string]api.NodeStatus{}
	if _, err := state.Alive.All(ctx, s.Store, "", func(name string, st api.NodeStatus, _ int64) error {
		alive[name] = st
		return nil
	}); err != nil {
		return nil, err
	}
	var nodes []api.Node
	_, err := state.Nodes.All(ctx, s.Store, "", func(name string, n api.Node, _ int64) error {
		if st, ok := alive[name]; ok {
			n.Status = st
			n.Status.Online = true
		}
		nodes = append(nodes, n)
		return nil
	})
	return nodes, err
}

// Describe gives the cluster's own record.
func (s *Service) Describe(ctx context.Context) (c api.Cluster, err error) {
	err = s.Store.View(ctx, func(tx *state.Tx) error {
		c, _, err = state.TheCluster.Get(tx, "cluster")
		return err
	})
	return c, err
}

// NoteSilence keeps in a node's record that its lease has ended, and when.
func (s *Service) NoteSilence(ctx context.Context, name string) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		node, _, err := state.Nodes.Get(tx, name)
		if api.Is(err, api.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		node.Status = api.NodeStatus{Seen: s.now().UTC()}
		return state.Nodes.Put(tx, name, node)
	})
}
