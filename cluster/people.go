package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

// TokenTTL is how long a token lasts unless told otherwise; MaxTokenTTL the
// longest.
const (
	TokenTTL    = time.Hour
	MaxTokenTTL = 30 * 24 * time.Hour
)

// TokenOptions are the choices for a new token.
type TokenOptions struct {
	TTL    time.Duration `json:"ttl,omitempty" doc:"nanoseconds until it expires; 0 is an hour"`
	Worker bool          `json:"worker,omitempty" doc:"the node will never be given a part in the state store"`
}

// CreateToken makes a permission to join once and gives the word for it,
// which is not kept anywhere.
func (s *Service) CreateToken(ctx context.Context, by string, o TokenOptions) (string, state.Token, error) {
	if o.TTL == 0 {
		o.TTL = TokenTTL
	}
	if o.TTL < 0 || o.TTL > MaxTokenTTL {
		return "", state.Token{}, &api.Error{Kind: api.Invalid, Op: "create join token", Reason: fmt.Sprintf("it cannot last %v", o.TTL), Next: fmt.Sprintf("give a time up to %v", MaxTokenTTL)}
	}
	ca, err := s.ca(ctx)
	if err != nil {
		return "", state.Token{}, err
	}
	var addresses []string
	if _, err := state.Nodes.All(ctx, s.Store, "", func(name string, n api.Node, _ int64) error {
		switch {
		case name == s.Node: // the one that certainly answers first
			addresses = append([]string{n.Address}, addresses...)
		case n.Control && len(addresses) < 5:
			addresses = append(addresses, n.Address)
		}
		return nil
	}); err != nil {
		return "", state.Token{}, err
	}
	word, err := auth.NewToken(addresses, ca.Hash())
	if err != nil {
		return "", state.Token{}, err
	}
	t := state.Token{ID: word.ID, Hash: auth.SecretHash(word.Secret), Expires: s.now().Add(o.TTL).UTC(), By: by, Control: !o.Worker}
	err = s.Store.Update(ctx, func(tx *state.Tx) error { return state.Tokens.Put(tx, t.ID, t) })
	return word.String(), t, err
}

// Tokens lists the tokens, used and expired ones too until they are swept.
func (s *Service) Tokens(ctx context.Context) ([]state.Token, error) {
	return all(ctx, s, state.Tokens)
}

func all[T any](ctx context.Context, s *Service, t state.Table[T]) ([]T, error) {
	var out []T
	_, err := t.All(ctx, s.Store, "", func(_ string, v T, _ int64) error {
		out = append(out, v)
		return nil
	})
	return out, err
}

// RevokeToken makes a token worthless.
func (s *Service) RevokeToken(ctx context.Context, id string) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		if _, _, err := state.Tokens.Get(tx, id); err != nil {
			return err
		}
		state.Tokens.Delete(tx, id)
		return nil
	})
}

// AddUser makes a user and signs the certificate for the key in the request.
// It gives the chain; the CA is its last part.
func (s *Service) AddUser(ctx context.Context, name string, role api.Role, csr []byte) (api.User, []byte, error) {
	key, err := auth.RequestKeyHash(csr)
	if err != nil {
		return api.User{}, nil, err
	}
	ca, err := s.ca(ctx)
	if err != nil {
		return api.User{}, nil, err
	}
	chain, err := ca.Sign(csr, auth.Subject{Kind: auth.UserKind, Name: name, Role: role}, s.now(), s.validity())
	if err != nil {
		return api.User{}, nil, err
	}
	user := api.User{Name: name, Role: role, Created: s.now().UTC(), Key: key}
	err = s.Store.Update(ctx, func(tx *state.Tx) error {
		there, err := optional(tx, state.Users, name)
		if err != nil {
			return err
		}
		if there != nil {
			return &api.Error{Kind: api.Exists, Op: "add user", Object: name, Reason: fmt.Sprintf("there is a user of that name with the role %s", there.Role), Next: "remove it first with drover user rm " + name}
		}
		return errors.Join(state.Users.Put(tx, name, user), s.issued(tx, issuedUser(name), key))
	})
	if err != nil {
		return api.User{}, nil, err
	}
	return user, chain, nil
}

// Users lists the users.
func (s *Service) Users(ctx context.Context) ([]api.User, error) { return all(ctx, s, state.Users) }

// RemoveUser revokes a user's certificates.
func (s *Service) RemoveUser(ctx context.Context, name string) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		if _, _, err := state.Users.Get(tx, name); err != nil {
			return err
		}
		state.Users.Delete(tx, name)
		return s.revoke(tx, issuedUser(name), name, "user "+name+" was removed")
	})
}

// Sweep removes what is over: tokens that can no longer be used, revocations
// of certificates that have ended by themselves. The leader calls it now and then.
func (s *Service) Sweep(ctx context.Context) error {
	now := s.now()
	var tokens, revoked []string
	if _, err := state.Tokens.All(ctx, s.Store, "", func(id string, t state.Token, _ int64) error {
		// A day of grace: a join that was interrupted may still be repeated,
		// and whoever looks sees what became of the token.
		if now.After(t.Expires.Add(24 * time.Hour)) {
			tokens = append(tokens, id)
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := state.Revoked.All(ctx, s.Store, "", func(key string, r state.Revocation, _ int64) error {
		if now.After(r.Until.Add(24 * time.Hour)) {
			revoked = append(revoked, key)
		}
		return nil
	}); err != nil {
		return err
	}
	return errors.Join(sweep(ctx, s, state.Tokens, tokens), sweep(ctx, s, state.Revoked, revoked))
}

func sweep[T any](ctx context.Context, s *Service, t state.Table[T], ids []string) error {
	for len(ids) > 0 {
		n := min(len(ids), state.MaxOps)
		err := s.Store.Update(ctx, func(tx *state.Tx) error {
			for _, id := range ids[:n] {
				t.Delete(tx, id)
			}
			return nil
		})
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}
