package manage

import (
	"context"
	"net/http"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func (s *Server) namespaceRoutes() {
	add(s, route{"list-namespaces", http.MethodGet, "/namespaces", "List the namespaces that are yours or that you are a member of; operators: all"}, s.listNamespaces)
	add(s, route{"create-namespace", http.MethodPost, "/namespaces", "Make a namespace (operators)"}, s.createNamespace)
	add(s, route{"inspect-namespace", http.MethodGet, "/namespaces/{namespace}", "Look a namespace up"}, s.getNamespace)
	add(s, route{"change-namespace", http.MethodPatch, "/namespaces/{namespace}", "Change owner and quota of a namespace (operators)"}, s.changeNamespace)
	add(s, route{"delete-namespace", http.MethodDelete, "/namespaces/{namespace}", "Remove a namespace without repositories (its admins)"}, s.deleteNamespace)
	add(s, route{"list-members", http.MethodGet, "/namespaces/{namespace}/members", "List who has a right on all of a namespace"}, s.listMembers)
	add(s, route{"set-member", http.MethodPut, "/namespaces/{namespace}/members/{user}", "Give a user a right on all of a namespace; none takes it away (its admins)"}, s.setMember)
}

func (s *Server) listNamespaces(ctx context.Context, _ *struct{}) ([]hub.Namespace, error) {
	who := identityOf(ctx)
	if who.User == "" {
		return nil, logIn("list namespaces")
	}
	return s.o.Store.NamespacesOf(ctx, who)
}

type createNamespace struct{ Body hub.NewNamespace }

func (in *createNamespace) object() string { return in.Body.Name }

func checkQuota(op, object string, quota int64) error {
	if quota < 0 {
		return &api.Error{Kind: api.Invalid, Op: op, Object: object, Reason: "a quota is not below 0"}
	}
	return nil
}

func (s *Server) createNamespace(ctx context.Context, in *createNamespace) (hub.Namespace, error) {
	const op = "create namespace"
	b := in.Body
	who, err := operator(ctx, op, b.Name)
	if err == nil {
		err = checkQuota(op, b.Name, b.Quota)
	}
	if err != nil {
		return hub.Namespace{}, err
	}
	if err := s.o.Store.CreateNamespace(ctx, who, hub.Namespace{Name: b.Name, Owner: b.Owner, Quota: b.Quota}); err != nil {
		return hub.Namespace{}, err
	}
	return s.findNamespace(ctx, op, b.Name)
}

func (s *Server) findNamespace(ctx context.Context, op, name string) (hub.Namespace, error) {
	list, err := s.o.Store.Namespaces(ctx)
	if err != nil {
		return hub.Namespace{}, err
	}
	i := slices.IndexFunc(list, func(n hub.Namespace) bool { return n.Name == name })
	if i < 0 {
		return hub.Namespace{}, &api.Error{Kind: api.NotFound, Op: op, Object: name, Reason: "there is no such namespace", Next: "drover hub namespace ls lists them"}
	}
	return list[i], nil
}

// NamespaceIn names a namespace.
type NamespaceIn struct {
	Namespace string `path:"namespace"`
}

func (in *NamespaceIn) object() string { return in.Namespace }

func (s *Server) getNamespace(ctx context.Context, in *NamespaceIn) (hub.Namespace, error) {
	const op = "inspect namespace"
	if _, _, err := s.governs(ctx, op, in.Namespace, hub.Read); err != nil {
		return hub.Namespace{}, err
	}
	return s.findNamespace(ctx, op, in.Namespace)
}

type changeNamespace struct {
	NamespaceIn
	Body hub.ChangeNamespace
}

func (s *Server) changeNamespace(ctx context.Context, in *changeNamespace) (hub.Namespace, error) {
	const op = "change namespace"
	who, err := operator(ctx, op, in.Namespace)
	if err != nil {
		return hub.Namespace{}, err
	}
	n, err := s.findNamespace(ctx, op, in.Namespace)
	if err != nil {
		return n, err
	}
	if in.Body.Owner != nil {
		n.Owner = *in.Body.Owner
	}
	if in.Body.Quota != nil {
		n.Quota = *in.Body.Quota
	}
	if err := checkQuota(op, n.Name, n.Quota); err != nil {
		return n, err
	}
	return n, s.o.Store.SetNamespace(ctx, who, n)
}

func (s *Server) deleteNamespace(ctx context.Context, in *NamespaceIn) (done, error) {
	who, _, err := s.governs(ctx, "delete namespace", in.Namespace, hub.Admin)
	if err != nil {
		return done{}, err
	}
	return done{}, s.o.Store.DeleteNamespace(ctx, who, in.Namespace)
}

func (s *Server) listMembers(ctx context.Context, in *NamespaceIn) ([]hub.Member, error) {
	const op = "list members"
	if _, _, err := s.governs(ctx, op, in.Namespace, hub.Read); err != nil {
		return nil, err
	}
	if _, err := s.findNamespace(ctx, op, in.Namespace); err != nil {
		return nil, err
	}
	return s.o.Store.Members(ctx, in.Namespace)
}

type setMember struct {
	NamespaceIn
	User string `path:"user"`
	Body hub.SetRight
}

func (s *Server) setMember(ctx context.Context, in *setMember) (hub.Member, error) {
	m := hub.Member{User: in.User, Right: in.Body.Right}
	who, _, err := s.governs(ctx, "set right", in.Namespace, hub.Admin)
	if err != nil {
		return m, err
	}
	return m, s.o.Store.SetMember(ctx, who, in.Namespace, m)
}
