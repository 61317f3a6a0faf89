package cluster

import (
	"context"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

// Rebalance brings the members of the embedded state store one step nearer to
// what PlanMembers wants, and the nodes' records and rights into agreement
// with the members there are. The leader calls it when nodes come, go or
// change, and every few seconds until it returns no changes. It gives what it
// did; a learner that is not in sync yet is no error.
func (s *Service) Rebalance(ctx context.Context) ([]MemberChange, error) {
	if s.Members == nil {
		return nil, nil
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	members, err := s.Members.List(ctx)
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for _, n := range nodes {
		alive[n.Name] = n.Status.Online
	}
	var did []MemberChange
	for _, c := range PlanMembers(nodes, alive, members) {
		if err := s.changeMember(ctx, c); err != nil {
			if c.Op == Promote && api.Is(err, api.Unavailable) {
				break
			}
			return did, err
		}
		did = append(did, c)
	}
	if len(did) > 0 {
		if members, err = s.Members.List(ctx); err != nil {
			return did, err
		}
	}
	return did, s.record(ctx, nodes, members)
}

func (s *Service) changeMember(ctx context.Context, c MemberChange) error {
	switch c.Op {
	case AddLearner:
		return s.Members.Add(ctx, c.URL)
	case Promote:
		return s.Members.Promote(ctx, c.ID)
	default:
		return s.Members.Remove(ctx, c.ID)
	}
}

// record writes into the nodes' records what part they have in the state
// store, and gives or takes the rights that go with it: rights first when
// they are given, record first when they are taken, so that a node that reads
// its record finds what it says.
func (s *Service) record(ctx context.Context, nodes []api.Node, members []state.Member) error {
	parts := map[string]api.Member{}
	for _, m := range members {
		parts[m.PeerURL] = api.MemberLearner
		if m.Voter {
			parts[m.PeerURL] = api.MemberVoter
		}
	}
	for _, n := range nodes {
		part, is := parts[n.PeerURL]
		if !is {
			part = api.MemberNone
		}
		if n.Member == part && n.Control == is {
			continue
		}
		if is {
			if err := s.Access.Control(ctx, n.Name, true); err != nil {
				return err
			}
		}
		err := s.Store.Update(ctx, func(tx *state.Tx) error {
			now, err := optional(tx, state.Nodes, n.Name)
			if err != nil || now == nil { // removed meanwhile
				return err
			}
			now.Member, now.Control, now.Version = part, is, now.Version+1
			return state.Nodes.Put(tx, n.Name, *now)
		})
		if err != nil {
			return err
		}
		if !is {
			if err := s.Access.Control(ctx, n.Name, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// MemberStart is what a node that was made a member needs to start: the peer
// URLs of all members by node.
type MemberStart struct {
	Cluster string            `json:"cluster"`
	Peers   map[string]string `json:"peers"`
}

// MemberStart tells a node how to start its member. A node whose record says
// learner or voter first renews its certificate, so that it is a control
// node's, then asks for this, then starts its state unit.
func (s *Service) MemberStart(ctx context.Context, caller auth.Identity) (MemberStart, error) {
	refuse := func(kind api.Kind, reason string) (MemberStart, error) {
		return MemberStart{}, &api.Error{Kind: kind, Op: "start member of the state store", Object: caller.String(), Reason: reason}
	}
	if caller.Kind != auth.NodeKind {
		return refuse(api.Denied, "it is not a node")
	}
	if s.Members == nil {
		return refuse(api.Unsupported, "this cluster keeps its state in an external etcd")
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return MemberStart{}, err
	}
	members, err := s.Members.List(ctx)
	if err != nil {
		return MemberStart{}, err
	}
	byURL := map[string]string{}
	for _, n := range nodes {
		byURL[n.PeerURL] = n.Name
	}
	start := MemberStart{Peers: map[string]string{}}
	for _, m := range members {
		name := byURL[m.PeerURL]
		if name == "" {
			return refuse(api.Conflict, "the state store has a member at "+m.PeerURL+" that is no node's; it is being removed")
		}
		start.Peers[name] = m.PeerURL
	}
	if start.Peers[caller.Name] == "" {
		return refuse(api.Conflict, "it is not a member")
	}
	err = s.Store.View(ctx, func(tx *state.Tx) error {
		c, _, err := state.TheCluster.Get(tx, "cluster")
		start.Cluster = c.ID
		return err
	})
	return start, err
}
