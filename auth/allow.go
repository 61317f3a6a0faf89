package auth

import (
	"slices"

	"github.com/drover-data/drover/api"
)

// Permission is one class of things to do. Every route of the API names one.
type Permission string

// The permissions.
const (
	Join     Permission = "join the cluster"     // with a token, which is checked apart
	Look     Permission = "look"                 // everything but secrets
	Change   Permission = "change volumes"       // volumes, moves
	Manage   Permission = "manage the cluster"   // nodes, users, tokens
	Transfer Permission = "send snapshots"       // between nodes
	Report   Permission = "report as a node"     // transitions of the node's own heads, renewal
	Secrets  Permission = "read shared secrets"  // the CA's key, backups of the state
	Members  Permission = "be part of the state" // peers of the state store
)

// allowed says who may do what; what is not in it is refused. A line is the
// smallest role that suffices (a greater one includes it), and whether nodes
// and control nodes may.
var allowed = []struct {
	permission Permission
	role       api.Role // "": no user
	local      bool
	node       bool
	control    bool
	nobody     bool
}{
	{Join, api.Viewer, true, true, true, true},
	{Look, api.Viewer, true, true, true, false},
	{Change, api.Operator, true, false, true, false},
	{Manage, api.Admin, true, false, true, false},
	{Transfer, "", false, true, true, false},
	{Report, "", false, true, true, false},
	{Secrets, "", false, false, true, false},
	{Members, "", false, false, true, false},
}

// roles in growing order.
var roles = []api.Role{api.Viewer, api.Operator, api.Admin}

// KnownRole reports whether r is one of the roles.
func KnownRole(r api.Role) bool { return slices.Contains(roles, r) }

// Allow gives nil if the identity may, and otherwise an error that says what
// it would need.
func Allow(id Identity, p Permission) error {
	next := "ask an administrator of the cluster"
	for _, line := range allowed {
		if line.permission != p {
			continue
		}
		ok := false
		switch id.Kind {
		case Nobody:
			ok = line.nobody
		case LocalKind:
			ok = line.local
		case NodeKind:
			ok = line.node || (id.Control && line.control)
		case UserKind:
			ok = line.role != "" && KnownRole(id.Role) && slices.Index(roles, id.Role) >= slices.Index(roles, line.role)
		}
		if ok {
			return nil
		}
		if line.role != "" {
			next = "it takes the role " + string(line.role)
		}
	}
	if id.Kind == Nobody {
		return &api.Error{Kind: api.Unauthenticated, Op: string(p), Reason: "no certificate was shown", Next: "use a certificate of this cluster, or the unix socket on one of its nodes"}
	}
	return &api.Error{Kind: api.Denied, Op: string(p), Object: id.String(), Reason: "not permitted", Next: next}
}
