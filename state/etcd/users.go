package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// rootName is etcd's name for the user and role that may do everything. No
// certificate bears it: control nodes have the role under their own names.
const rootName = "root"

// grant is one permission of a plain node.
type grant struct {
	key    string
	prefix bool
	write  bool
}

// grantsOf is what a plain node may touch.
func grantsOf(node string) []grant {
	return []grant{
		{key: state.Alive.Key(node), write: true},
		{key: state.TheCluster.Prefix(), prefix: true},
		{key: state.Nodes.Prefix(), prefix: true},
		{key: state.Alive.Prefix(), prefix: true},
		{key: state.Names.Prefix(), prefix: true},
		{key: state.Assigned.Prefix() + node + "/", prefix: true},
		// Every agent refuses revoked keys, so every agent has to know them.
		{key: state.Revoked.Prefix(), prefix: true},
	}
}

// Grant is a right of a plain node in an etcd that others run, below the prefix.
type Grant struct {
	Key   string // all keys that begin with it
	Write bool   // as well as read
}

// Grants is what a node that is no control node needs there.
func Grants(node string) []Grant {
	var out []Grant
	for _, g := range grantsOf(node) {
		out = append(out, Grant{g.key, g.write})
	}
	return out
}

// setUp gives a new store its users: root, which etcd asks for, and this node
// as a control node. It goes on where a crash interrupted it.
func (m *Member) setUp(ctx context.Context) error {
	s := m.etcd.Server
	if s.AuthStore().IsAuthEnabled() {
		return nil
	}
	steps := []func() error{
		func() error { _, err := s.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: rootName}); return err },
		func() error { return addUser(ctx, s, rootName) },
		func() error { return addUser(ctx, s, m.cfg.Name) },
		func() error { return grantRoot(ctx, s, rootName) },
		func() error { return grantRoot(ctx, s, m.cfg.Name) },
		func() error { _, err := s.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil && !already(err) {
			return &api.Error{Kind: api.Unavailable, Op: "set up the users of the state store", Err: err, Next: "start it again; it goes on where it stopped"}
		}
	}
	return nil
}

func addUser(ctx context.Context, s *etcdserver.EtcdServer, name string) error {
	_, err := s.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}})
	return err
}

func grantRoot(ctx context.Context, s *etcdserver.EtcdServer, name string) error {
	_, err := s.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: rootName})
	return err
}

func already(err error) bool {
	for _, known := range []error{rpctypes.ErrUserAlreadyExist, rpctypes.ErrRoleAlreadyExist} {
		if errors.Is(err, known) || err.Error() == rpctypes.ErrorDesc(known) {
			return true
		}
	}
	return false
}

// Users are the nodes as users of an embedded store. All methods may be
// repeated.
type Users struct{ kv *KV }

// Users gives the store's users; only a control node may change them.
func (kv *KV) Users() *Users { return &Users{kv: kv} }

// Add makes a node a user limited to its own keys.
func (u *Users) Add(ctx context.Context, node string) error {
	role := nodeRole(node)
	return u.steps(ctx, "give node access to the state store", node, func(c *clientv3.Client, ctx context.Context) []error {
		var errs []error
		try := func(err error) { errs = append(errs, err) }
		_, err := c.RoleAdd(ctx, role)
		try(err)
		for _, g := range grantsOf(node) {
			end := ""
			if g.prefix {
				end = clientv3.GetPrefixRangeEnd(g.key)
			}
			kind := clientv3.PermissionType(clientv3.PermRead)
			if g.write {
				kind = clientv3.PermissionType(clientv3.PermReadWrite)
			}
			_, err := c.RoleGrantPermission(ctx, role, g.key, end, kind)
			try(err)
		}
		_, err = c.UserAddWithOptions(ctx, node, "", noPassword())
		try(err)
		_, err = c.UserGrantRole(ctx, node, role)
		try(err)
		return errs
	})
}

// Control makes a node that is a user a control node, which may do
// everything, or takes that from it.
func (u *Users) Control(ctx context.Context, node string, control bool) error {
	return u.steps(ctx, "change node's access to the state store", node, func(c *clientv3.Client, ctx context.Context) []error {
		var err error
		if control {
			_, err = c.UserGrantRole(ctx, node, rootName)
		} else {
			_, err = c.UserRevokeRole(ctx, node, rootName)
		}
		return []error{err}
	})
}

// Remove takes all access from a node.
func (u *Users) Remove(ctx context.Context, node string) error {
	return u.steps(ctx, "take node's access to the state store", node, func(c *clientv3.Client, ctx context.Context) []error {
		_, errUser := c.UserDelete(ctx, node)
		_, errRole := c.RoleDelete(ctx, nodeRole(node))
		return []error{errUser, errRole}
	})
}

func nodeRole(node string) string { return "node:" + node }

func (u *Users) steps(ctx context.Context, op, node string, f func(*clientv3.Client, context.Context) []error) error {
	return u.kv.do(ctx, op, node, func(ctx context.Context) error {
		for _, err := range f(u.kv.client, ctx) {
			if err != nil && !already(err) && !errors.Is(err, rpctypes.ErrRoleNotGranted) && !errors.Is(err, rpctypes.ErrUserNotFound) && !errors.Is(err, rpctypes.ErrRoleNotFound) {
				return err
			}
		}
		return nil
	})
}

func noPassword() *clientv3.UserAddOptions { return &clientv3.UserAddOptions{NoPassword: true} }
