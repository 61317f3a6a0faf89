package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// Condition is where a name must be for a change of it: If-None-Match: * and If-Match.
type Condition struct {
	Absent bool
	At     digest.Digest
}

// Check refuses (Conflict) where a name is, "" for not at all.
func (c Condition) Check(name string, now digest.Digest) error {
	if (c.Absent && now != "") || (c.At != "" && now != c.At) {
		at := "nothing"
		if now != "" {
			at = string(now)
		}
		return &api.Error{Kind: api.Conflict, Op: "move name", Object: name, Reason: "it points to " + at + ": somebody else changed it", Next: "look at what changed, and push again"}
	}
	return nil
}

// Put is a manifest on its way into a repository.
type Put struct {
	Repository string
	By         hub.Identity
	Right      hub.Right
	Manifest   hub.Manifest
	Tag        string    // "" for by digest alone
	If         Condition // of the tag
}

func noManifest(name string) error {
	return &api.Error{Kind: api.NotFound, Op: "find manifest", Object: name, Reason: "it is not in this repository", Err: hub.ErrManifest}
}

// HoldManifest is HoldBlob for a manifest, before its bytes are stored. there: its
// bytes are stored already.
func (s *Store) HoldManifest(ctx context.Context, repository string, m hub.Manifest) (there bool, err error) {
	err = s.write(ctx, "keep manifest", string(m.Digest), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		state, err := t.claim(ctx, m.Digest, m.Size)
		if err != nil {
			return err
		}
		var present int
		err = t.row(ctx, "UPDATE manifests SET seen = ? WHERE repository = ? AND digest = ? RETURNING present", t.now, r.id, string(m.Digest)).Scan(&present)
		there = present != 0 && state == live
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := t.charge(ctx, r, m.Size); err != nil {
			return err
		}
		_, err = t.exec(ctx, "INSERT INTO manifests (repository, digest, media, size, artifact, annotations, subject, commit_id, seen, present) VALUES (?, ?, ?, ?, '', '{}', '', '', ?, 0)", r.id, string(m.Digest), m.Media, m.Size, t.now)
		return err
	})
	return there, err
}

// PutManifest makes a manifest that was held, and whose bytes are stored, part of
// the repository, and points the tag to it if there is one. NotFound wrapping hub.ErrPart
// when something that it names is not there; Conflict, Denied and Exhausted as rules
// and quotas have it.
func (s *Store) PutManifest(ctx context.Context, p Put) error {
	m := p.Manifest
	return s.write(ctx, "put manifest", string(m.Digest), func(t tx) error {
		r, err := t.lock(ctx, p.Repository)
		if err != nil {
			return err
		}
		if err := t.parts(ctx, r, m); err != nil {
			return err
		}
		annotations, err := json.Marshal(m.Annotations)
		if err != nil {
			return err
		}
		commit := ""
		if m.Commit != nil {
			if commit = m.Commit.ID; commit != "" {
				if err := t.commit(ctx, r, *m.Commit); err != nil {
					return err
				}
			}
		}
		n, err := t.exec(ctx, "UPDATE manifests SET media = ?, artifact = ?, annotations = ?, subject = ?, commit_id = ?, seen = ?, present = 1 WHERE repository = ? AND digest = ?",
			m.Media, m.Artifact, string(annotations), string(m.Subject), commit, t.now, r.id, string(m.Digest))
		if err != nil {
			return err
		}
		if n == 0 {
			return &api.Error{Kind: api.Unavailable, Op: "put manifest", Object: string(m.Digest), Reason: "it took longer than the grace period to store it", Next: "send it again"}
		}
		if _, err := t.exec(ctx, "UPDATE blobs SET state = ? WHERE digest = ? AND state = ?", live, string(m.Digest), damaged); err != nil {
			return err
		}
		for _, d := range m.Blobs {
			if _, err := t.exec(ctx, "INSERT INTO blob_links (repository, manifest, blob) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", r.id, string(m.Digest), string(d)); err != nil {
				return err
			}
		}
		for _, d := range m.Manifests {
			if _, err := t.exec(ctx, "INSERT INTO manifest_links (repository, manifest, child) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", r.id, string(m.Digest), string(d)); err != nil {
				return err
			}
		}
		if p.Tag == "" {
			return nil
		}
		return t.setRef(ctx, r, p, commit)
	})
}

// parts looks whether all that a manifest names is there. With the repository
// locked nothing of it goes.
func (t tx) parts(ctx context.Context, r repository, m hub.Manifest) error {
	look := func(table string, want []digest.Digest) error {
		for part := range slices.Chunk(want, 500) {
			args := []any{r.id}
			for _, d := range part {
				args = append(args, string(d))
			}
			have, err := all(ctx, t, one[digest.Digest], "SELECT digest FROM "+table+" WHERE repository = ? AND present = 1 AND digest IN ("+several(len(part))+")", args...)
			if err != nil {
				return err
			}
			found := map[digest.Digest]bool{}
			for _, d := range have {
				found[d] = true
			}
			for _, d := range part {
				if !found[d] {
					return &api.Error{Kind: api.NotFound, Op: "put manifest", Object: string(d), Reason: "the manifest names it, and it is not in this repository", Next: "push it first", Err: hub.ErrPart}
				}
			}
		}
		return nil
	}
	if err := look("repo_blobs", m.Blobs); err != nil {
		return err
	}
	return look("manifests", m.Manifests)
}

// commit writes a node of the graph. It stays when the commit itself goes, so that
// what came before it can still be told from what did not.
func (t tx) commit(ctx context.Context, r repository, c hub.Commit) error {
	n, err := t.exec(ctx, "INSERT INTO commits (repository, id, time) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", r.id, c.ID, micros(c.Time))
	if err != nil {
		return err
	}
	if n == 0 {
		have, err := all(ctx, t, one[string], "SELECT parent FROM commit_parents WHERE repository = ? AND id = ? ORDER BY place", r.id, c.ID)
		if err == nil && !slices.Equal(have, append([]string{}, c.Parents...)) {
			err = &api.Error{Kind: api.Denied, Op: "put manifest", Object: c.ID, Reason: "the repository knows this commit with other parents, and commits do not change"}
		}
		return err
	}
	for i, p := range c.Parents {
		if _, err := t.exec(ctx, "INSERT INTO commit_parents (repository, id, place, parent) VALUES (?, ?, ?, ?)", r.id, c.ID, i, p); err != nil {
			return err
		}
	}
	return nil
}

// at gives what a name points to, and its commit; "" when there is none.
func (t tx) at(ctx context.Context, r repository, name string) (d digest.Digest, commit string, err error) {
	err = t.row(ctx, "SELECT f.digest, m.commit_id FROM refs f JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest WHERE f.repository = ? AND f.name = ?", r.id, name).Scan(&d, &commit)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return d, commit, err
}

// reaches says whether a commit leads to another by parents.
func (t tx) reaches(ctx context.Context, r repository, from, to string) (bool, error) {
	if from == "" || to == "" {
		return false, nil
	}
	if from == to {
		return true, nil
	}
	var n int
	err := t.row(ctx, `WITH RECURSIVE past(id) AS (SELECT id FROM commits WHERE repository = ? AND id = ?
		UNION SELECT p.parent FROM commit_parents p JOIN past ON p.id = past.id WHERE p.repository = ?)
		SELECT COUNT(*) FROM past WHERE id = ?`, r.id, from, r.id, to).Scan(&n)
	return n > 0, err
}

func denied(op, name, reason, next string) error {
	return &api.Error{Kind: api.Denied, Op: op, Object: name, Reason: reason, Next: next}
}

func (t tx) setRef(ctx context.Context, r repository, p Put, commit string) error {
	const op = "move name"
	to := p.Manifest.Digest
	now, from, err := t.at(ctx, r, p.Tag)
	if err != nil {
		return err
	}
	if err := p.If.Check(p.Tag, now); err != nil {
		return err
	}
	if now == to {
		return nil
	}
	if id := hub.CommitOf(p.Tag); id != "" {
		if now != "" {
			return denied(op, p.Tag, "the name of a commit never moves", "")
		}
		if commit != "" && commit != id {
			return denied(op, p.Tag, "this is commit "+commit, "")
		}
	}
	if rule := r.Protects(p.Tag); rule != "" && now != "" {
		forward, err := t.reaches(ctx, r, commit, from)
		if err != nil {
			return err
		}
		if !forward {
			return denied(op, p.Tag, fmt.Sprintf("the branch is protected by the rule %q: it only moves forward, and what is pushed does not come after %s", rule, now), "pull first, or push to another branch")
		}
	}
	if _, err := t.exec(ctx, "INSERT INTO refs (repository, name, digest, time) VALUES (?, ?, ?, ?) ON CONFLICT (repository, name) DO UPDATE SET digest = excluded.digest, time = excluded.time", r.id, p.Tag, string(to), t.now); err != nil {
		return err
	}
	if _, err := t.exec(ctx, "UPDATE repositories SET pushed = ? WHERE id = ?", t.now, r.id); err != nil {
		return err
	}
	if now != "" { // whoever is just reading what it pointed to has the grace period
		if _, err := t.exec(ctx, "UPDATE manifests SET seen = ? WHERE repository = ? AND digest = ?", t.now, r.id, string(now)); err != nil {
			return err
		}
	}
	if err := t.mirror(ctx, r.Name, p.Tag); err != nil {
		return err
	}
	details := map[string]string{"name": p.Tag, "to": string(to)}
	kind := "ref.create"
	if now != "" {
		kind, details["from"] = "ref.move", string(now)
	}
	if commit != "" {
		details["commit"] = commit
	}
	return t.event(ctx, p.By, kind, r.Name, details)
}

// DeleteRef removes a name; NotFound when there is none.
func (s *Store) DeleteRef(ctx context.Context, repository, name string, by hub.Identity, right hub.Right, c Condition) error {
	return s.write(ctx, "remove name", name, func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		now, _, err := t.at(ctx, r, name)
		if err != nil {
			return err
		}
		if now == "" {
			return noManifest(name)
		}
		if err := c.Check(name, now); err != nil {
			return err
		}
		return t.deleteRef(ctx, r, name, now, by, right)
	})
}

func (t tx) deleteRef(ctx context.Context, r repository, name string, now digest.Digest, by hub.Identity, right hub.Right) error {
	const op = "remove name"
	if rule := r.Protects(name); rule != "" {
		return denied(op, name, fmt.Sprintf("the branch is protected by the rule %q", rule), "remove the rule first")
	}
	if id := hub.CommitOf(name); id != "" && right < hub.Admin {
		if err := t.historyOf(ctx, r, id); err != nil {
			return err
		}
	}
	return t.dropRef(ctx, r, name, now, by, "")
}

// historyOf refuses what would take a commit out of a protected branch's history.
func (t tx) historyOf(ctx context.Context, r repository, id string) error {
	type branch struct{ name, commit string }
	list, err := all(ctx, t, func(scan func(...any) error) (b branch, err error) { return b, scan(&b.name, &b.commit) },
		"SELECT f.name, m.commit_id FROM refs f JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest WHERE f.repository = ? AND f.name LIKE 'b-%'", r.id)
	if err != nil {
		return err
	}
	for _, b := range list {
		rule := r.Protects(b.name)
		if rule == "" {
			continue
		}
		there, err := t.reaches(ctx, r, b.commit, id)
		if err != nil {
			return err
		}
		if there {
			return denied("remove name", "c-"+id, fmt.Sprintf("it is in the history of %s, which is protected by the rule %q", b.name, rule), "leave it to the repository's retention, or ask its administrator")
		}
	}
	return nil
}

// dropRef removes a name that nothing protects.
func (t tx) dropRef(ctx context.Context, r repository, name string, now digest.Digest, by hub.Identity, why string) error {
	if _, err := t.exec(ctx, "DELETE FROM refs WHERE repository = ? AND name = ?", r.id, name); err != nil {
		return err
	}
	// What it pointed to is kept for the grace period from now on.
	if _, err := t.exec(ctx, "UPDATE manifests SET seen = ? WHERE repository = ? AND digest = ?", t.now, r.id, string(now)); err != nil {
		return err
	}
	if err := t.mirror(ctx, r.Name, name); err != nil {
		return err
	}
	details := map[string]string{"name": name, "from": string(now)}
	if why != "" {
		details["why"] = why
	}
	return t.event(ctx, by, "ref.delete", r.Name, details)
}

// DeleteManifest removes a manifest, and every name of it.
func (s *Store) DeleteManifest(ctx context.Context, repository string, d digest.Digest, by hub.Identity, right hub.Right) error {
	const op = "delete manifest"
	return s.write(ctx, op, string(d), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		var size int64
		err = t.row(ctx, "SELECT size FROM manifests WHERE repository = ? AND digest = ? AND present = 1", r.id, string(d)).Scan(&size)
		if errors.Is(err, sql.ErrNoRows) {
			return noManifest(string(d))
		}
		if err != nil {
			return err
		}
		names, err := all(ctx, t, one[string], "SELECT name FROM refs WHERE repository = ? AND digest = ? ORDER BY name", r.id, string(d))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := t.deleteRef(ctx, r, name, d, by, right); err != nil {
				return err
			}
		}
		err = t.removeManifest(ctx, r, d)
		if needed(err) {
			return &api.Error{Kind: api.InUse, Op: op, Object: string(d), Reason: "an index names it", Next: "delete that first"}
		}
		if err != nil {
			return err
		}
		return t.charge(ctx, r, -size)
	})
}

func (t tx) removeManifest(ctx context.Context, r repository, d digest.Digest) error {
	for _, q := range []string{
		"DELETE FROM blob_links WHERE repository = ? AND manifest = ?",
		"DELETE FROM manifest_links WHERE repository = ? AND manifest = ?",
		"DELETE FROM manifests WHERE repository = ? AND digest = ?",
	} {
		if _, err := t.exec(ctx, q, r.id, string(d)); err != nil {
			return err
		}
	}
	return nil
}

// Manifest looks up a manifest by its digest or by a name: what a descriptor needs.
func (s *Store) Manifest(ctx context.Context, repository, reference string) (hub.Ref, error) {
	const op = "find manifest"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return hub.Ref{}, s.broken(op, repository, err)
	}
	q := "SELECT f.name, m.digest, m.media, m.size, f.time FROM refs f JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest WHERE f.repository = ? AND f.name = ?"
	if strings.Contains(reference, ":") {
		q = "SELECT '', digest, media, size, seen FROM manifests WHERE repository = ? AND digest = ? AND present = 1"
	}
	var at int64
	var f hub.Ref
	err = t.row(ctx, q, r.id, reference).Scan(&f.Name, &f.Digest, &f.Media, &f.Size, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return f, noManifest(reference)
	}
	f.Time = timeOf(at)
	return f, s.broken(op, reference, err)
}

// Refs lists names of a repository in order, at most n (0: all) after one.
func (s *Store) Refs(ctx context.Context, repository, after string, n int) ([]hub.Ref, error) {
	const op = "list names"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return nil, s.broken(op, repository, err)
	}
	q, args := "SELECT f.name, m.digest, m.media, m.size, f.time FROM refs f JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest WHERE f.repository = ? AND f.name > ? ORDER BY f.name", []any{r.id, after}
	if n > 0 {
		q, args = q+" LIMIT ?", append(args, n)
	}
	list, err := all(ctx, t, func(scan func(...any) error) (f hub.Ref, err error) {
		var at int64
		err = scan(&f.Name, &f.Digest, &f.Media, &f.Size, &at)
		f.Time = timeOf(at)
		return f, err
	}, q, args...)
	return list, s.broken(op, repository, err)
}

// Referrers lists the manifests whose subject a digest is, of an artifact type ("": all),
// at most n after one.
func (s *Store) Referrers(ctx context.Context, repository string, subject digest.Digest, artifact, after string, n int) ([]hub.Manifest, error) {
	const op = "list referrers"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return nil, s.broken(op, repository, err)
	}
	list, err := all(ctx, t, func(scan func(...any) error) (m hub.Manifest, err error) {
		var annotations string
		if err = scan(&m.Digest, &m.Media, &m.Size, &m.Artifact, &annotations); err != nil {
			return m, err
		}
		m.Subject = subject
		return m, json.Unmarshal([]byte(annotations), &m.Annotations)
	}, "SELECT digest, media, size, artifact, annotations FROM manifests WHERE repository = ? AND subject = ? AND subject <> '' AND present = 1 AND digest > ? AND (? = '' OR artifact = ?) ORDER BY digest LIMIT ?",
		r.id, string(subject), after, artifact, artifact, n)
	return list, s.broken(op, string(subject), err)
}

// CommitOf gives the commit that a manifest of the repository holds; nil when it holds none.
func (s *Store) CommitOf(ctx context.Context, repository string, d digest.Digest) (*hub.Commit, error) {
	const op = "find commit"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return nil, s.broken(op, repository, err)
	}
	var c hub.Commit
	var at int64
	err = t.row(ctx, "SELECT c.id, c.time FROM manifests m JOIN commits c ON c.repository = m.repository AND c.id = m.commit_id WHERE m.repository = ? AND m.digest = ?", r.id, string(d)).Scan(&c.ID, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, s.broken(op, string(d), err)
	}
	c.Time = timeOf(at)
	c.Parents, err = all(ctx, t, one[string], "SELECT parent FROM commit_parents WHERE repository = ? AND id = ? ORDER BY place", r.id, c.ID)
	return &c, s.broken(op, string(d), err)
}
