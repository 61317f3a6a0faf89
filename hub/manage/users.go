package manage

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func (s *Server) userRoutes() {
	add(s, route{"whoami", http.MethodGet, "/self", "Who asks, and what they may"}, s.self)
	add(s, route{"list-users", http.MethodGet, "/users", "List users (operators)"}, s.listUsers)
	add(s, route{"create-user", http.MethodPost, "/users", "Make a user with a namespace of their name (operators)"}, s.createUser)
	add(s, route{"change-user", http.MethodPatch, "/users/{user}", "Make a user an operator, or disable them (operators)"}, s.changeUser)
	add(s, route{"delete-user", http.MethodDelete, "/users/{user}", "Remove a user with their tokens and rights; their namespace becomes the operators' (operators)"}, s.deleteUser)
	add(s, route{"list-tokens", http.MethodGet, "/users/{user}/tokens", "List a user's tokens, without their secrets"}, s.listTokens)
	add(s, route{"create-token", http.MethodPost, "/users/{user}/tokens", "Make a token; its secret is in this answer and nowhere else"}, s.createToken)
	add(s, route{"revoke-token", http.MethodDelete, "/users/{user}/tokens/{id}", "Revoke a token: it counts no more from this moment on"}, s.revokeToken)
}

func (s *Server) self(ctx context.Context, _ *struct{}) (hub.Self, error) {
	who := identityOf(ctx)
	return hub.Self{User: who.User, Root: who.Root, Most: who.Most, Token: who.Token}, nil
}

func (s *Server) listUsers(ctx context.Context, _ *struct{}) ([]hub.User, error) {
	if _, err := operator(ctx, "list users", ""); err != nil {
		return nil, err
	}
	return s.o.Store.Users(ctx)
}

type createUser struct{ Body hub.NewUser }

func (in *createUser) object() string { return in.Body.Name }

func (s *Server) createUser(ctx context.Context, in *createUser) (hub.User, error) {
	who, err := operator(ctx, "create user", in.Body.Name)
	if err != nil {
		return hub.User{}, err
	}
	if err := s.o.Store.CreateUser(ctx, who, hub.User{Name: in.Body.Name, Root: in.Body.Root}); err != nil {
		return hub.User{}, err
	}
	return s.findUser(ctx, "create user", in.Body.Name)
}

func (s *Server) findUser(ctx context.Context, op, name string) (hub.User, error) {
	list, err := s.o.Store.Users(ctx)
	if err != nil {
		return hub.User{}, err
	}
	i := slices.IndexFunc(list, func(u hub.User) bool { return u.Name == name })
	if i < 0 {
		return hub.User{}, &api.Error{Kind: api.NotFound, Op: op, Object: name, Reason: "there is no such user", Next: "drover hub user ls lists them"}
	}
	return list[i], nil
}

// UserIn names a user.
type UserIn struct {
	User string `path:"user"`
}

func (in *UserIn) object() string { return in.User }

type changeUser struct {
	UserIn
	Body hub.ChangeUser
}

// notSelf keeps operators from shutting themselves out, and so one at least remains.
func notSelf(who hub.Identity, op, user string) error {
	if who.User != user {
		return nil
	}
	return &api.Error{Kind: api.Denied, Op: op, Object: user, Reason: "operators do not do that to themselves", Next: "another operator can"}
}

func (s *Server) changeUser(ctx context.Context, in *changeUser) (hub.User, error) {
	const op = "change user"
	who, err := operator(ctx, op, in.User)
	if err != nil {
		return hub.User{}, err
	}
	u, err := s.findUser(ctx, op, in.User)
	if err != nil {
		return u, err
	}
	if in.Body.Root != nil {
		u.Root = *in.Body.Root
	}
	if in.Body.Disabled != nil {
		u.Disabled = *in.Body.Disabled
	}
	if !u.Root || u.Disabled {
		if err := notSelf(who, op, u.Name); err != nil {
			return u, err
		}
	}
	return u, s.o.Store.SetUser(ctx, who, u)
}

func (s *Server) deleteUser(ctx context.Context, in *UserIn) (done, error) {
	const op = "delete user"
	who, err := operator(ctx, op, in.User)
	if err == nil {
		err = notSelf(who, op, in.User)
	}
	if err != nil {
		return done{}, err
	}
	return done{}, s.o.Store.DeleteUser(ctx, who, in.User)
}

// tokensOf lets a user through to their own tokens, and operators to everybody's.
func tokensOf(ctx context.Context, op, user string) (hub.Identity, error) {
	who := identityOf(ctx)
	if who.User == "" {
		return who, logIn(op)
	}
	if who.User == user {
		return who, nil
	}
	return operator(ctx, op, user)
}

func (s *Server) listTokens(ctx context.Context, in *UserIn) ([]hub.Token, error) {
	if _, err := tokensOf(ctx, "list tokens", in.User); err != nil {
		return nil, err
	}
	return s.o.Store.Tokens(ctx, in.User)
}

type createToken struct {
	UserIn
	Body hub.NewToken
}

func (s *Server) createToken(ctx context.Context, in *createToken) (hub.TokenSecret, error) {
	const op = "create token"
	who, err := tokensOf(ctx, op, in.User)
	if err != nil {
		return hub.TokenSecret{}, err
	}
	deny := func(reason, next string) (hub.TokenSecret, error) {
		return hub.TokenSecret{}, &api.Error{Kind: api.Denied, Op: op, Object: in.User, Reason: reason, Next: next}
	}
	// A token that leaked must not outlive its own end, nor its revocation.
	if who.Most < hub.Admin {
		return deny("the token that asks allows "+who.Most.String()+" at most, and tokens are made with one that allows admin", "log in with such a token")
	}
	if e := in.Body.Expires; e != nil && !e.After(s.o.Now()) {
		return hub.TokenSecret{}, &api.Error{Kind: api.Invalid, Op: op, Object: in.User, Reason: "it would have ended already", Next: "give an end that is to come"}
	}
	own, err := s.o.Store.Tokens(ctx, who.User)
	if err != nil {
		return hub.TokenSecret{}, err
	}
	for _, k := range own {
		if k.ID == who.Token && k.Expires != nil && (in.Body.Expires == nil || in.Body.Expires.After(*k.Expires)) {
			return deny("the token that asks ends on "+k.Expires.Format(time.DateTime)+" UTC, and makes none that lasts longer", "give an end before that, or log in with one that lasts")
		}
	}
	k, secret, err := s.o.Store.CreateToken(ctx, who, hub.Token{User: in.User, Label: in.Body.Label, Most: in.Body.Most, Expires: in.Body.Expires})
	return hub.TokenSecret{Token: k, Secret: secret}, err
}

type TokenIn struct {
	UserIn
	ID string `path:"id"`
}

func (s *Server) revokeToken(ctx context.Context, in *TokenIn) (done, error) {
	const op = "revoke token"
	who, err := tokensOf(ctx, op, in.User)
	if err != nil {
		return done{}, err
	}
	if who.Most < hub.Admin && in.ID != who.Token {
		return done{}, &api.Error{Kind: api.Denied, Op: op, Object: in.ID, Reason: "a token that allows " + who.Most.String() + " at most revokes itself alone", Next: "log in with one that allows admin"}
	}
	return done{}, s.o.Store.DeleteToken(ctx, who, in.User, in.ID)
}
