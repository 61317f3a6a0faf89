package cluster

import (
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Voters is how many members with a vote a cluster of n nodes has: one lost
// node of three is survived, two of seven; two voters would survive less than one.
func Voters(nodes int) int {
	switch {
	case nodes >= 7:
		return 5
	case nodes >= 3:
		return 3
	}
	return 1
}

// MemberOp is what is done to the membership.
type MemberOp string

// The operations.
const (
	AddLearner   MemberOp = "add learner"
	Promote      MemberOp = "promote"
	RemoveMember MemberOp = "remove"
)

// MemberChange is one step.
type MemberChange struct {
	Op   MemberOp
	ID   uint64 // of the member; 0 for AddLearner
	Node string // "" when no node knows the member
	URL  string // peer URL
}

// maxLearners is how many learners the state store takes at once.
const maxLearners = 4

// PlanMembers says what to do next so that the wanted number of nodes has a
// vote. It is pure. alive names the nodes whose leases are held. The rules:
//
//   - a member that is no node's is removed;
//   - a learner comes first, on nodes that are alive, may be members and are
//     not draining, by name;
//   - learners are promoted when they are in sync, and together, so that the
//     number of voters is even only for moments;
//   - a voter is given up when its node is draining and another has its place,
//     or when there are too many, and only while every voter that stays
//     answers. A voter that is merely silent is never given up: it may come
//     back, and only an operator knows that it will not (drover node rm);
//   - a learner whose node is silent makes room for another.
func PlanMembers(nodes []api.Node, alive map[string]bool, members []state.Member) []MemberChange {
	v := viewMembers(nodes, alive, members)
	if len(v.strays) > 0 {
		return v.strays
	}
	wanted := Voters(v.eligible + v.draining)
	if k := v.promotable(wanted); k > 0 {
		return v.ready[:k]
	}
	var changes []MemberChange
	if len(v.spare) > 0 {
		changes = append(changes, v.silent...)
	}
	changes = append(changes, v.unfit...)
	changes = append(changes, v.surplus(wanted)...)
	if len(v.keep) >= wanted {
		for _, c := range slices.Concat(v.ready, v.syncing) {
			c.Op = RemoveMember
			changes = append(changes, c)
		}
	}
	if len(changes) > 0 {
		return changes
	}
	learners := len(v.ready) + len(v.syncing)
	missing := min(wanted-len(v.keep)-learners, maxLearners-learners-len(v.silent))
	for _, n := range v.spare[:max(0, min(missing, len(v.spare)))] {
		changes = append(changes, MemberChange{Op: AddLearner, Node: n.Name, URL: n.PeerURL})
	}
	return changes
}

// memberView sorts nodes and members into what PlanMembers speaks of.
type memberView struct {
	eligible, draining int            // nodes
	keep               []MemberChange // voters on eligible nodes, as their removals
	leave              []MemberChange // voters on nodes that drain or may not be members
	ready              []MemberChange // learners in sync, as their promotions
	syncing            []MemberChange
	silent             []MemberChange // learners of silent nodes, as their removals
	unfit              []MemberChange // learners of nodes that drain or may not be members, likewise
	strays             []MemberChange
	spare              []api.Node
	answering          bool // every kept voter
}

func viewMembers(nodes []api.Node, alive map[string]bool, members []state.Member) memberView {
	v := memberView{answering: true}
	byURL := map[string]state.Member{}
	for _, m := range members {
		byURL[m.PeerURL] = m
	}
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b api.Node) int { return strings.Compare(a.Name, b.Name) })
	known := map[string]bool{}
	for _, n := range nodes {
		if n.PeerURL == "" {
			continue
		}
		known[n.PeerURL] = true
		suitable := n.Candidate && !n.Draining
		switch {
		case suitable:
			v.eligible++
		case n.Candidate:
			v.draining++
		}
		m, is := byURL[n.PeerURL]
		removal := MemberChange{Op: RemoveMember, ID: m.ID, Node: n.Name, URL: n.PeerURL}
		promotion := removal
		promotion.Op = Promote
		switch {
		case !is && suitable && alive[n.Name]:
			v.spare = append(v.spare, n)
		case !is:
		case m.Voter && suitable:
			v.keep = append(v.keep, removal)
			v.answering = v.answering && m.Ready
		case m.Voter:
			v.leave = append(v.leave, removal)
		case !suitable:
			v.unfit = append(v.unfit, removal)
		case !alive[n.Name]:
			v.silent = append(v.silent, removal)
		case m.Ready:
			v.ready = append(v.ready, promotion)
		default:
			v.syncing = append(v.syncing, promotion)
		}
	}
	for _, m := range members {
		if !known[m.PeerURL] {
			v.strays = append(v.strays, MemberChange{Op: RemoveMember, ID: m.ID, URL: m.PeerURL})
		}
	}
	return v
}

// promotable is how many of the ready learners get a vote now: the most that
// makes the number of lasting voters odd and not more than wanted.
func (v memberView) promotable(wanted int) int {
	for k := min(len(v.ready), wanted-len(v.keep)); k > 0; k-- {
		if (len(v.keep)+k)%2 == 1 {
			return k
		}
	}
	return 0
}

// surplus is one voter that can go.
func (v memberView) surplus(wanted int) []MemberChange {
	total := len(v.keep) + len(v.leave)
	switch {
	case !v.answering:
		return nil
	case len(v.leave) > 0 && len(v.keep) > 0 && (len(v.keep) >= wanted || total > wanted):
		return v.leave[:1]
	case len(v.keep) > wanted:
		return v.keep[len(v.keep)-1:]
	}
	return nil
}
