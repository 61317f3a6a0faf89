package store

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/remote"
)

// ActivityQuery says which lines of the activity log are meant.
type ActivityQuery struct {
	Repository, User string // "": of all
	// Before: the newest first, with a smaller id (0: from the newest on).
	Before int64
	// After: the oldest first, with a larger id; nil: Before counts.
	After *int64
	Limit int
}

// settles is how long a transaction of PostgreSQL may be on its way after it was given a
// number: whoever follows the log is told of a line after it, so that none comes
// behind one with a larger number.
const settles = 2 * time.Second

// Activity lists lines of the activity log.
func (s *Store) Activity(ctx context.Context, a ActivityQuery) ([]hub.Event, error) {
	q, args := "SELECT "+eventColumns+" FROM events e WHERE e.id < ?", []any{int64(never)}
	also := func(text string, v any) { q, args = q+" AND "+text, append(args, v) }
	if a.Repository != "" {
		also("e.repository = ?", a.Repository)
	}
	if a.User != "" {
		also("e.actor = ?", a.User)
	}
	order := " ORDER BY e.id DESC LIMIT ?"
	switch {
	case a.After != nil:
		order = " ORDER BY e.id LIMIT ?"
		also("e.id > ?", *a.After)
		if s.postgres {
			also("e.time <= ?", micros(s.now().Add(-settles)))
		}
	case a.Before > 0:
		also("e.id < ?", a.Before)
	}
	list, err := all(ctx, s.reading(), scanEvent, q+order, append(args, a.Limit)...)
	return list, s.broken("list activity", a.Repository, err)
}

// NamespacesOf lists the namespaces in which somebody has a right of their own.
func (s *Store) NamespacesOf(ctx context.Context, who hub.Identity) ([]hub.Namespace, error) {
	list, err := s.Namespaces(ctx)
	if err != nil || who.Root {
		return list, err
	}
	member, err := all(ctx, s.reading(), one[string], "SELECT namespace FROM members WHERE member = ? AND rights > 0", who.User)
	if err != nil {
		return nil, s.broken("list namespaces", "", err)
	}
	mine := map[string]bool{}
	for _, name := range member {
		mine[name] = true
	}
	out := []hub.Namespace{}
	for _, n := range list {
		if who.User != "" && (n.Owner == who.User || mine[n.Name]) {
			out = append(out, n)
		}
	}
	return out, nil
}

// Usage counts what the hub holds.
func (s *Store) Usage(ctx context.Context) (u hub.Usage, err error) {
	err = s.reading().row(ctx, `SELECT
		(SELECT COUNT(*) FROM users), (SELECT COUNT(*) FROM repositories),
		(SELECT COUNT(*) FROM blobs), CAST((SELECT COALESCE(SUM(size), 0) FROM blobs) AS BIGINT),
		(SELECT COUNT(*) FROM uploads), (SELECT COUNT(*) FROM mirror),
		(SELECT COUNT(*) FROM outbox WHERE ended = 0), (SELECT COUNT(*) FROM outbox WHERE ended <> 0)`).
		Scan(&u.Users, &u.Repositories, &u.Blobs, &u.Bytes, &u.Uploads, &u.Unwritten, &u.Waiting, &u.GivenUp)
	return u, s.broken("count", "", err)
}

// content is a row of what names lead to.
type content struct {
	name, commit     string
	digest           digest.Digest
	set, made, bytes int64
}

// Content lists what the names of a repository lead to, as Drover reads them.
func (s *Store) Content(ctx context.Context, repository string) (hub.Content, error) {
	const op = "list names"
	out := hub.Content{Branches: []hub.Name{}, Tags: []hub.Name{}, Commits: []hub.StoredCommit{}, Others: []hub.Name{}}
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return out, s.broken(op, repository, err)
	}
	rows, err := all(ctx, t, func(scan func(...any) error) (c content, err error) {
		return c, scan(&c.name, &c.digest, &c.set, &c.commit, &c.made, &c.bytes)
	}, `SELECT f.name, f.digest, f.time, m.commit_id, COALESCE(c.time, 0),
		CAST((SELECT COALESCE(SUM(b.size), 0) FROM repo_blobs b WHERE b.repository = f.repository AND b.digest IN (
			SELECT l.blob FROM blob_links l WHERE l.repository = f.repository AND (l.manifest = f.digest
				OR l.manifest IN (SELECT x.child FROM manifest_links x WHERE x.repository = f.repository AND x.manifest = f.digest)))) AS BIGINT)
		FROM refs f JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest
		LEFT JOIN commits c ON c.repository = m.repository AND c.id = m.commit_id
		WHERE f.repository = ? ORDER BY f.name`, r.id)
	if err != nil {
		return out, s.broken(op, repository, err)
	}
	type edge struct{ id, parent string }
	edges, err := all(ctx, t, func(scan func(...any) error) (e edge, err error) { return e, scan(&e.id, &e.parent) },
		"SELECT id, parent FROM commit_parents WHERE repository = ? ORDER BY id, place", r.id)
	if err != nil {
		return out, s.broken(op, repository, err)
	}
	parents := map[string][]string{}
	for _, e := range edges {
		parents[e.id] = append(parents[e.id], e.parent)
	}
	for _, c := range rows {
		out = place(out, r.Repository, c, parents)
	}
	return out, nil
}

// place puts a name where it belongs.
func place(out hub.Content, r hub.Repository, c content, parents map[string][]string) hub.Content {
	prefix, rest := c.name[:min(2, len(c.name))], c.name[min(2, len(c.name)):]
	n := hub.Name{Name: c.name, Commit: c.commit, Digest: c.digest, Time: timeOf(c.set), Bytes: c.bytes}
	if (prefix == remote.BranchPrefix || prefix == remote.TagPrefix) && c.commit != "" {
		n.Name = rest
		if whole, ok := remote.Unescape(rest); ok {
			n.Name = whole
		}
	}
	switch {
	case hub.CommitOf(c.name) != "" && c.commit != "":
		p := parents[c.commit]
		if p == nil {
			p = []string{}
		}
		out.Commits = append(out.Commits, hub.StoredCommit{ID: c.commit, Parents: p, Time: timeOf(c.made), Pushed: timeOf(c.set), Digest: c.digest, Bytes: c.bytes})
	case prefix == remote.BranchPrefix && c.commit != "":
		n.Protected = r.Protects(c.name)
		out.Branches = append(out.Branches, n)
	case prefix == remote.TagPrefix && c.commit != "":
		out.Tags = append(out.Tags, n)
	default:
		out.Others = append(out.Others, n)
	}
	return out
}

// Operators lists the users who may do everything and are not disabled.
func (s *Store) Operators(ctx context.Context) ([]string, error) {
	list, err := all(ctx, s.reading(), one[string], "SELECT name FROM users WHERE root = 1 AND disabled = 0 ORDER BY name")
	return list, s.broken("list operators", "", err)
}
