package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// repository is a row of one.
type repository struct {
	id int64
	hub.Repository
}

const repoColumns = "id, name, public, forked, quota, used, protected, keep, created, pushed"

func scanRepository(scan func(...any) error) (r repository, err error) {
	var public int
	var protected, keep string
	var created, pushed int64
	err = scan(&r.id, &r.Name, &public, &r.Forked, &r.Quota, &r.Used, &protected, &keep, &created, &pushed)
	if err != nil {
		return r, err
	}
	r.Public, r.Created, r.Pushed = public != 0, timeOf(created), later(pushed)
	if err := json.Unmarshal([]byte(protected), &r.Protected); err != nil {
		return r, err
	}
	if keep != "" {
		err = json.Unmarshal([]byte(keep), &r.Keep)
	}
	return r, err
}

func (t tx) find(ctx context.Context, name, locking string) (repository, error) {
	r, err := scanRepository(t.row(ctx, "SELECT "+repoColumns+" FROM repositories WHERE name = ?"+locking, name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return r, &api.Error{Kind: api.NotFound, Op: "find repository", Object: name, Reason: "it is not there", Err: hub.ErrRepository}
	}
	return r, err
}

// lock finds a repository, which stays as it is until the transaction ends.
func (t tx) lock(ctx context.Context, name string) (repository, error) {
	return t.find(ctx, name, t.locking())
}

// charge counts bytes of a repository; Exhausted when a quota forbids them.
func (t tx) charge(ctx context.Context, r repository, n int64) error {
	const op = "keep bytes"
	full := func(what string) error {
		return &api.Error{Kind: api.Exhausted, Op: op, Object: r.Name, Reason: fmt.Sprintf("%d bytes more are beyond the quota of the %s", n, what), Next: "remove commits, tighten the retention, or ask for a larger quota"}
	}
	free := "1 = 0"
	if n <= 0 { // giving back is never refused
		free = "1 = 1"
	}
	found, err := t.exec(ctx, "UPDATE repositories SET used = used + ? WHERE id = ? AND (quota = 0 OR used + ? <= quota OR "+free+")", n, r.id, n)
	if err != nil {
		return err
	}
	if found == 0 {
		return full("repository")
	}
	found, err = t.exec(ctx, "UPDATE namespaces SET used = used + ? WHERE name = ? AND (quota = 0 OR used + ? <= quota OR "+free+")", n, hub.NamespaceOf(r.Name), n)
	if err == nil && found == 0 {
		err = full("namespace")
	}
	return err
}

// Room says whether so many bytes more would be within the quotas.
func (s *Store) Room(ctx context.Context, repository string, n int64) error {
	var quota, used, nquota, nused int64
	err := s.reading().row(ctx, "SELECT r.quota, r.used, n.quota, n.used FROM repositories r JOIN namespaces n ON n.name = r.namespace WHERE r.name = ?", repository).Scan(&quota, &used, &nquota, &nused)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return s.broken("keep bytes", repository, err)
	}
	if (quota != 0 && used+n > quota) || (nquota != 0 && nused+n > nquota) {
		return &api.Error{Kind: api.Exhausted, Op: "keep bytes", Object: repository, Reason: fmt.Sprintf("%d bytes more are beyond the quota", n), Next: "remove commits, tighten the retention, or ask for a larger quota"}
	}
	return nil
}

// CreateRepository makes an empty repository in a namespace that is there;
// Exists when there is one.
func (s *Store) CreateRepository(ctx context.Context, by hub.Identity, r hub.Repository) error {
	const op = "create repository"
	if err := checkRules(r); err != nil {
		return err
	}
	return s.write(ctx, op, r.Name, func(t tx) error {
		_, err := t.insertRepository(ctx, r)
		if err != nil {
			return err
		}
		return t.event(ctx, by, "repo.create", r.Name, nil)
	})
}

// EnsureRepository is CreateRepository for which one that is there is success.
func (s *Store) EnsureRepository(ctx context.Context, by hub.Identity, name string) error {
	if _, err := s.Repository(ctx, name); !api.Is(err, api.NotFound) {
		return err
	}
	err := s.CreateRepository(ctx, by, hub.Repository{Name: name})
	if api.Is(err, api.Exists) {
		return nil
	}
	return err
}

func (t tx) insertRepository(ctx context.Context, r hub.Repository) (int64, error) {
	const op = "create repository"
	protected, keep, err := rules(r)
	if err != nil {
		return 0, err
	}
	var id int64
	err = t.row(ctx, "INSERT INTO repositories (name, namespace, public, forked, quota, used, protected, keep, created, pushed) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, 0) RETURNING id",
		r.Name, hub.NamespaceOf(r.Name), bit(r.Public), r.Forked, r.Quota, protected, keep, t.now).Scan(&id)
	switch {
	case taken(err):
		return 0, exists(op, "repository", r.Name)
	case needed(err):
		return 0, &api.Error{Kind: api.NotFound, Op: op, Object: r.Name, Reason: "there is no namespace " + hub.NamespaceOf(r.Name), Next: "a namespace is made with its user, or by the hub's operators", Err: hub.ErrRepository}
	}
	return id, err
}

func rules(r hub.Repository) (protected, keep string, err error) {
	if r.Protected == nil {
		r.Protected = []string{}
	}
	p, err := json.Marshal(r.Protected)
	if err != nil || r.Keep == nil {
		return string(p), "", err
	}
	k, err := json.Marshal(r.Keep)
	return string(p), string(k), err
}

func checkRules(r hub.Repository) error {
	const op = "set rules"
	if err := hub.CheckRepository(r.Name); err != nil {
		return err
	}
	if r.Quota < 0 || len(r.Protected) > 100 {
		return &api.Error{Kind: api.Invalid, Op: op, Object: r.Name, Reason: "a quota is not below 0, and at most 100 patterns protect branches"}
	}
	for _, p := range r.Protected {
		if p == "" || len(p) > 200 {
			return &api.Error{Kind: api.Invalid, Op: op, Object: r.Name, Reason: "a pattern for branches has 1 to 200 bytes"}
		}
	}
	return nil
}

// Repository looks one up.
func (s *Store) Repository(ctx context.Context, name string) (hub.Repository, error) {
	r, err := s.reading().find(ctx, name, "")
	return r.Repository, s.broken("find repository", name, err)
}

// Repositories lists what somebody may read, in order: at most n (0: all) after
// a name.
func (s *Store) Repositories(ctx context.Context, who hub.Identity, after string, n int) ([]hub.Repository, error) {
	q, args := "SELECT "+repoColumns+" FROM repositories r WHERE name > ?", []any{after}
	if !who.Root {
		q += ` AND (public = 1
			OR EXISTS (SELECT 1 FROM namespaces x WHERE x.name = r.namespace AND x.owner = ?)
			OR EXISTS (SELECT 1 FROM members x WHERE x.namespace = r.namespace AND x.member = ? AND x.rights > 0)
			OR EXISTS (SELECT 1 FROM grants x WHERE x.repository = r.id AND x.member = ? AND x.rights > 0))`
		args = append(args, who.User, who.User, who.User)
	}
	q += " ORDER BY name"
	if n > 0 {
		q, args = q+" LIMIT ?", append(args, n)
	}
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (hub.Repository, error) {
		r, err := scanRepository(scan)
		return r.Repository, err
	}, q, args...)
	return list, s.broken("list repositories", "", err)
}

// SetRepository changes what people decide about one: whether it is public, its
// quota, protected branches and retention.
func (s *Store) SetRepository(ctx context.Context, by hub.Identity, r hub.Repository) error {
	_, err := s.ChangeRepository(ctx, by, r.Name, func(now *hub.Repository) {
		now.Public, now.Quota, now.Protected, now.Keep = r.Public, r.Quota, r.Protected, r.Keep
	})
	return err
}

// ChangeRepository is SetRepository for who changes some of it: nobody else does
// between the look and the change. The change may be asked for more than once.
func (s *Store) ChangeRepository(ctx context.Context, by hub.Identity, name string, change func(*hub.Repository)) (out hub.Repository, err error) {
	err = s.write(ctx, "change repository", name, func(t tx) error {
		now, err := t.lock(ctx, name)
		if err != nil {
			return err
		}
		change(&now.Repository)
		if err := checkRules(now.Repository); err != nil {
			return err
		}
		protected, keep, err := rules(now.Repository)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "UPDATE repositories SET public = ?, quota = ?, protected = ?, keep = ? WHERE id = ?", bit(now.Public), now.Quota, protected, keep, now.id)
		if err != nil {
			return err
		}
		out = now.Repository
		return t.event(ctx, by, "repo.change", name, map[string]string{"public": fmt.Sprint(now.Public), "quota": fmt.Sprint(now.Quota), "protected": protected, "keep": keep})
	})
	return out, err
}

// DeleteRepository removes a repository. Its bytes go with a later sweep, unless
// another has them.
func (s *Store) DeleteRepository(ctx context.Context, by hub.Identity, name string) error {
	return s.write(ctx, "delete repository", name, func(t tx) error {
		r, err := t.lock(ctx, name)
		if err != nil {
			return err
		}
		// Before the rows go: whoever hears of it, hears of the repository.
		if err := t.event(ctx, by, "repo.delete", name, nil); err != nil {
			return err
		}
		for _, table := range []string{"refs", "blob_links", "manifest_links", "manifests", "repo_blobs", "commit_parents", "commits"} {
			if _, err := t.exec(ctx, "DELETE FROM "+table+" WHERE repository = ?", r.id); err != nil {
				return err
			}
		}
		if err := t.charge(ctx, r, -r.Used); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM repositories WHERE id = ?", r.id); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "UPDATE uploads SET seen = ? WHERE repository = ?", ending, name); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM mirror WHERE repository = ?", name); err != nil {
			return err
		}
		return t.mirror(ctx, name, "")
	})
}

// Fork makes a repository with all that another has: rows, no bytes.
func (s *Store) Fork(ctx context.Context, by hub.Identity, from string, to hub.Repository) error {
	const op = "fork repository"
	to.Forked = from
	if err := checkRules(to); err != nil {
		return err
	}
	return s.write(ctx, op, to.Name, func(t tx) error {
		// While the parent's row is locked nothing of it goes, and so no bytes go.
		r, err := t.lock(ctx, from)
		if err != nil {
			return err
		}
		id, err := t.insertRepository(ctx, to)
		if err != nil {
			return err
		}
		for _, q := range []string{
			"INSERT INTO repo_blobs (repository, digest, size, seen, present, linked) SELECT ?, digest, size, CAST(? AS BIGINT), 1, 0 FROM repo_blobs WHERE repository = ? AND present = 1",
			"INSERT INTO manifests (repository, digest, media, size, artifact, annotations, subject, commit_id, seen, present) SELECT ?, digest, media, size, artifact, annotations, subject, commit_id, CAST(? AS BIGINT), 1 FROM manifests WHERE repository = ? AND present = 1",
			"INSERT INTO refs (repository, name, digest, time) SELECT ?, name, digest, CAST(? AS BIGINT) FROM refs WHERE repository = ?",
		} {
			if _, err := t.exec(ctx, bigint(q), id, t.now, r.id); err != nil {
				return err
			}
		}
		for _, q := range []string{
			"INSERT INTO blob_links (repository, manifest, blob) SELECT ?, manifest, blob FROM blob_links WHERE repository = ?",
			"INSERT INTO manifest_links (repository, manifest, child) SELECT ?, manifest, child FROM manifest_links WHERE repository = ?",
			"INSERT INTO commits (repository, id, time) SELECT ?, id, time FROM commits WHERE repository = ?",
			"INSERT INTO commit_parents (repository, id, place, parent) SELECT ?, id, place, parent FROM commit_parents WHERE repository = ?",
		} {
			if _, err := t.exec(ctx, bigint(q), id, r.id); err != nil {
				return err
			}
		}
		if err := t.event(ctx, by, "repo.create", to.Name, map[string]string{"from": from}); err != nil {
			return err
		}
		if err := t.mirrorAll(ctx, id, to.Name); err != nil {
			return err
		}
		var used int64
		if err := t.row(ctx, usedBy, id, id).Scan(&used); err != nil {
			return err
		}
		return t.charge(ctx, repository{id: id, Repository: to}, used)
	})
}

// usedBy counts a repository's bytes anew.
const usedBy = "SELECT CAST((SELECT COALESCE(SUM(size), 0) FROM repo_blobs WHERE repository = ?) + (SELECT COALESCE(SUM(size), 0) FROM manifests WHERE repository = ?) AS BIGINT)"
