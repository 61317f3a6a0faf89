package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func notThere(op, what, name string) error {
	return &api.Error{Kind: api.NotFound, Op: op, Object: name, Reason: "there is no such " + what}
}

func exists(op, what, name string) error {
	return &api.Error{Kind: api.Exists, Op: op, Object: name, Reason: "there is a " + what + " of that name"}
}

// changed makes an error of a change that met no row.
func changed(n int64, err error, op, what, name string) error {
	if err == nil && n == 0 {
		return notThere(op, what, name)
	}
	return err
}

// CreateUser makes a user, and their namespace unless there is one of that name.
func (s *Store) CreateUser(ctx context.Context, by hub.Identity, u hub.User) error {
	const op = "create user"
	if err := hub.CheckUser(u.Name); err != nil {
		return err
	}
	return s.write(ctx, op, u.Name, func(t tx) error {
		_, err := t.exec(ctx, "INSERT INTO users (name, root, disabled, created) VALUES (?, ?, ?, ?)", u.Name, bit(u.Root), bit(u.Disabled), t.now)
		if taken(err) {
			return exists(op, "user", u.Name)
		}
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "INSERT INTO namespaces (name, owner, quota, used, created) VALUES (?, ?, 0, 0, ?) ON CONFLICT (name) DO NOTHING", u.Name, u.Name, t.now); err != nil {
			return err
		}
		return t.event(ctx, by, "user.create", "", map[string]string{"user": u.Name})
	})
}

func scanUser(scan func(...any) error) (u hub.User, err error) {
	var root, disabled int
	var created int64
	err = scan(&u.Name, &root, &disabled, &created)
	u.Root, u.Disabled, u.Created = root != 0, disabled != 0, timeOf(created)
	return u, err
}

// Users lists all users, in order.
func (s *Store) Users(ctx context.Context) ([]hub.User, error) {
	list, err := all(ctx, s.reading(), scanUser, "SELECT name, root, disabled, created FROM users ORDER BY name")
	return list, s.broken("list users", "", err)
}

// SetUser changes what a user is.
func (s *Store) SetUser(ctx context.Context, by hub.Identity, u hub.User) error {
	const op = "change user"
	return s.write(ctx, op, u.Name, func(t tx) error {
		n, err := t.exec(ctx, "UPDATE users SET root = ?, disabled = ? WHERE name = ?", bit(u.Root), bit(u.Disabled), u.Name)
		if err := changed(n, err, op, "user", u.Name); err != nil {
			return err
		}
		return t.event(ctx, by, "user.change", "", map[string]string{"user": u.Name, "root": fmt.Sprint(u.Root), "disabled": fmt.Sprint(u.Disabled)})
	})
}

// DeleteUser removes a user with their tokens and rights. Their namespace stays,
// and belongs to the operators then.
func (s *Store) DeleteUser(ctx context.Context, by hub.Identity, name string) error {
	const op = "delete user"
	return s.write(ctx, op, name, func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM users WHERE name = ?", name)
		if err := changed(n, err, op, "user", name); err != nil {
			return err
		}
		return t.event(ctx, by, "user.delete", "", map[string]string{"user": name})
	})
}

// SecretPrefix is what tokens begin with, so that those that leaked are found.
const SecretPrefix = "drover_hub_"

func hashed(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CreateToken makes a token for a user, and gives its secret, which is nowhere kept.
func (s *Store) CreateToken(ctx context.Context, by hub.Identity, k hub.Token) (hub.Token, string, error) {
	const op = "create token"
	if k.Most < hub.Read || k.Most > hub.Admin || len(k.Label) > 200 {
		return k, "", &api.Error{Kind: api.Invalid, Op: op, Object: k.Label, Reason: "a token allows read, write or admin, and its label has at most 200 bytes"}
	}
	secret := SecretPrefix + random(32)
	k.ID, k.Created, k.Used = random(8), s.now().UTC(), nil
	var end int64
	if k.Expires != nil {
		end = micros(*k.Expires)
	}
	err := s.write(ctx, op, k.User, func(t tx) error {
		_, err := t.exec(ctx, "INSERT INTO tokens (id, owner, label, hash, most, created, expires, used) VALUES (?, ?, ?, ?, ?, ?, ?, 0)", k.ID, k.User, k.Label, hashed(secret), int(k.Most), micros(k.Created), end)
		if needed(err) {
			return notThere(op, "user", k.User)
		}
		if err != nil {
			return err
		}
		return t.event(ctx, by, "token.create", "", map[string]string{"user": k.User, "token": k.ID, "label": k.Label, "most": k.Most.String()})
	})
	if err != nil {
		return k, "", err
	}
	return k, secret, nil
}

// Tokens lists a user's tokens, the oldest first.
func (s *Store) Tokens(ctx context.Context, user string) ([]hub.Token, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (k hub.Token, err error) {
		var most int
		var created, expires, used int64
		err = scan(&k.ID, &k.User, &k.Label, &most, &created, &expires, &used)
		k.Most, k.Created, k.Expires, k.Used = hub.Right(most), timeOf(created), later(expires), later(used)
		return k, err
	}, "SELECT id, owner, label, most, created, expires, used FROM tokens WHERE owner = ? ORDER BY created, id", user)
	return list, s.broken("list tokens", user, err)
}

// DeleteToken revokes a token of a user.
func (s *Store) DeleteToken(ctx context.Context, by hub.Identity, user, id string) error {
	const op = "revoke token"
	return s.write(ctx, op, id, func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM tokens WHERE id = ? AND owner = ?", id, user)
		if err := changed(n, err, op, "token", id); err != nil {
			return err
		}
		return t.event(ctx, by, "token.delete", "", map[string]string{"user": user, "token": id})
	})
}

// Identify is of hub.Gate.
func (s *Store) Identify(ctx context.Context, user, token string) (hub.Identity, error) {
	if user == "" && token == "" {
		return hub.Identity{}, nil
	}
	return s.identity(ctx, "hash", hashed(token), user)
}

// Recall is of hub.Gate.
func (s *Store) Recall(ctx context.Context, id string) (hub.Identity, error) {
	return s.identity(ctx, "id", id, "")
}

func (s *Store) identity(ctx context.Context, column, value, user string) (hub.Identity, error) {
	const op = "log in"
	type found struct {
		who                  hub.Identity
		root, disabled, most int
		expires, used        int64
	}
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (f found, err error) {
		err = scan(&f.who.User, &f.who.Token, &f.root, &f.disabled, &f.most, &f.expires, &f.used)
		return f, err
	}, "SELECT u.name, k.id, u.root, u.disabled, k.most, k.expires, k.used FROM tokens k JOIN users u ON u.name = k.owner WHERE k."+column+" = ?", value)
	if err != nil {
		return hub.Identity{}, s.broken(op, user, err)
	}
	now := micros(s.now())
	if len(list) == 0 || list[0].disabled != 0 || (user != "" && list[0].who.User != user) || (list[0].expires != 0 && list[0].expires <= now) {
		return hub.Identity{}, &api.Error{Kind: api.Unauthenticated, Op: op, Object: user, Reason: "the name or the token is wrong, or the token has ended", Next: "make a new token on the hub and log in with it"}
	}
	f := list[0]
	f.who.Root, f.who.Most = f.root != 0, hub.Right(f.most)
	if now-f.used > int64(Slack/time.Microsecond) {
		err = s.write(ctx, op, user, func(t tx) error {
			_, err := t.exec(ctx, "UPDATE tokens SET used = ? WHERE id = ?", now, f.who.Token)
			return err
		})
		if err != nil && ctx.Err() != nil {
			return hub.Identity{}, err
		} // a hub whose disk is full can still be read
	}
	return f.who, nil
}

// Right is of hub.Gate.
func (s *Store) Right(ctx context.Context, who hub.Identity, repository string) (hub.Right, error) {
	if who.Root {
		return who.Most, nil
	}
	var owner string
	var public, member, grant int
	err := s.reading().row(ctx, `SELECT
		COALESCE((SELECT owner FROM namespaces WHERE name = ?), ''),
		COALESCE((SELECT public FROM repositories WHERE name = ?), 0),
		COALESCE((SELECT rights FROM members WHERE namespace = ? AND member = ?), 0),
		COALESCE((SELECT g.rights FROM grants g JOIN repositories r ON r.id = g.repository WHERE r.name = ? AND g.member = ?), 0)`,
		hub.NamespaceOf(repository), repository, hub.NamespaceOf(repository), who.User, repository, who.User).Scan(&owner, &public, &member, &grant)
	if err != nil {
		return hub.None, s.broken("find the right", repository, err)
	}
	right := hub.None
	if who.User != "" {
		right = max(hub.Right(member), hub.Right(grant))
		if owner == who.User {
			right = hub.Admin
		}
		right = min(right, who.Most)
	}
	if public != 0 {
		right = max(right, hub.Read)
	}
	return right, nil
}

// CreateNamespace makes a namespace; without an owner it belongs to the operators.
func (s *Store) CreateNamespace(ctx context.Context, by hub.Identity, n hub.Namespace) error {
	const op = "create namespace"
	if err := hub.CheckUser(n.Name); err != nil {
		return err
	}
	return s.write(ctx, op, n.Name, func(t tx) error {
		var owner any
		if n.Owner != "" {
			owner = n.Owner
		}
		_, err := t.exec(ctx, "INSERT INTO namespaces (name, owner, quota, used, created) VALUES (?, ?, ?, 0, ?)", n.Name, owner, n.Quota, t.now)
		switch {
		case taken(err):
			return exists(op, "namespace", n.Name)
		case needed(err):
			return notThere(op, "user", n.Owner)
		case err != nil:
			return err
		}
		return t.event(ctx, by, "namespace.create", "", map[string]string{"namespace": n.Name})
	})
}

// Namespaces lists all namespaces, in order.
func (s *Store) Namespaces(ctx context.Context) ([]hub.Namespace, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (n hub.Namespace, err error) {
		var created int64
		err = scan(&n.Name, &n.Owner, &n.Quota, &n.Used, &created)
		n.Created = timeOf(created)
		return n, err
	}, "SELECT name, COALESCE(owner, ''), quota, used, created FROM namespaces ORDER BY name")
	return list, s.broken("list namespaces", "", err)
}

// SetNamespace changes a namespace's owner and quota.
func (s *Store) SetNamespace(ctx context.Context, by hub.Identity, n hub.Namespace) error {
	const op = "change namespace"
	return s.write(ctx, op, n.Name, func(t tx) error {
		var owner any
		if n.Owner != "" {
			owner = n.Owner
		}
		found, err := t.exec(ctx, "UPDATE namespaces SET owner = ?, quota = ? WHERE name = ?", owner, n.Quota, n.Name)
		if needed(err) {
			return notThere(op, "user", n.Owner)
		}
		if err := changed(found, err, op, "namespace", n.Name); err != nil {
			return err
		}
		return t.event(ctx, by, "namespace.change", "", map[string]string{"namespace": n.Name, "owner": n.Owner, "quota": fmt.Sprint(n.Quota)})
	})
}

// DeleteNamespace removes one without repositories.
func (s *Store) DeleteNamespace(ctx context.Context, by hub.Identity, name string) error {
	const op = "delete namespace"
	return s.write(ctx, op, name, func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM namespaces WHERE name = ?", name)
		if needed(err) {
			return &api.Error{Kind: api.InUse, Op: op, Object: name, Reason: "it has repositories", Next: "delete them first"}
		}
		if err := changed(n, err, op, "namespace", name); err != nil {
			return err
		}
		return t.event(ctx, by, "namespace.delete", "", map[string]string{"namespace": name})
	})
}

func scanMember(scan func(...any) error) (m hub.Member, err error) {
	var right int
	err = scan(&m.User, &right)
	m.Right = hub.Right(right)
	return m, err
}

// Members lists who has a right on a namespace besides its owner.
func (s *Store) Members(ctx context.Context, namespace string) ([]hub.Member, error) {
	list, err := all(ctx, s.reading(), scanMember, "SELECT member, rights FROM members WHERE namespace = ? ORDER BY member", namespace)
	return list, s.broken("list members", namespace, err)
}

// SetMember gives a user a right on a namespace; None takes it away.
func (s *Store) SetMember(ctx context.Context, by hub.Identity, namespace string, m hub.Member) error {
	const op = "set right"
	return s.write(ctx, op, namespace, func(t tx) error {
		var err error
		if m.Right == hub.None {
			_, err = t.exec(ctx, "DELETE FROM members WHERE namespace = ? AND member = ?", namespace, m.User)
		} else {
			_, err = t.exec(ctx, "INSERT INTO members (namespace, member, rights) VALUES (?, ?, ?) ON CONFLICT (namespace, member) DO UPDATE SET rights = excluded.rights", namespace, m.User, int(m.Right))
		}
		if needed(err) {
			return notThere(op, "user or namespace", m.User+", "+namespace)
		}
		if err != nil {
			return err
		}
		return t.event(ctx, by, "namespace.member", "", map[string]string{"namespace": namespace, "user": m.User, "right": m.Right.String()})
	})
}

// Grants lists who has a right on a repository alone.
func (s *Store) Grants(ctx context.Context, repository string) ([]hub.Member, error) {
	list, err := all(ctx, s.reading(), scanMember, "SELECT g.member, g.rights FROM grants g JOIN repositories r ON r.id = g.repository WHERE r.name = ? ORDER BY g.member", repository)
	return list, s.broken("list rights", repository, err)
}

// SetGrant gives a user a right on a repository; None takes it away.
func (s *Store) SetGrant(ctx context.Context, by hub.Identity, repository string, m hub.Member) error {
	const op = "set right"
	return s.write(ctx, op, repository, func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		if m.Right == hub.None {
			_, err = t.exec(ctx, "DELETE FROM grants WHERE repository = ? AND member = ?", r.id, m.User)
		} else {
			_, err = t.exec(ctx, "INSERT INTO grants (repository, member, rights) VALUES (?, ?, ?) ON CONFLICT (repository, member) DO UPDATE SET rights = excluded.rights", r.id, m.User, int(m.Right))
		}
		if needed(err) {
			return notThere(op, "user", m.User)
		}
		if err != nil {
			return err
		}
		return t.event(ctx, by, "repo.member", repository, map[string]string{"user": m.User, "right": m.Right.String()})
	})
}
