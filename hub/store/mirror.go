package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/hub"
)

// keyed are locks by name, within the process.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{} // guarded by mu; closed when it is free
}

func (k *keyed) lock(ctx context.Context, name string) (func(), error) {
	for {
		k.mu.Lock()
		wait := k.held[name]
		if wait == nil {
			mine := make(chan struct{})
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			k.held[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.held, name)
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mirror notes that a name has to be written to the storage; "" is for what was
// kept of a repository that is gone.
func (t tx) mirror(ctx context.Context, repository, name string) error {
	_, err := t.exec(ctx, "INSERT INTO mirror (repository, name, turn) VALUES (?, ?, 1) ON CONFLICT (repository, name) DO UPDATE SET turn = mirror.turn + 1", repository, name)
	return err
}

func (t tx) mirrorAll(ctx context.Context, id int64, repository string) error {
	_, err := t.exec(ctx, "INSERT INTO mirror (repository, name, turn) SELECT CAST(? AS TEXT), name, 1 FROM refs WHERE repository = ? ON CONFLICT (repository, name) DO UPDATE SET turn = mirror.turn + 1", repository, id)
	return err
}

// Unmirrored lists names that are still to be written to the storage.
func (s *Store) Unmirrored(ctx context.Context, limit int) ([]hub.Mirrored, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (m hub.Mirrored, err error) {
		err = scan(&m.Repository, &m.Name)
		m.Gone = m.Name == ""
		return m, err
	}, "SELECT repository, name FROM mirror ORDER BY repository, name LIMIT ?", limit)
	return list, s.broken("list names to write", "", err)
}

// Mirror has a name written to the storage as it is now, if that is still to be
// done. No other process writes the same name meanwhile.
func (s *Store) Mirror(ctx context.Context, repository, name string, put func(context.Context, hub.Mirrored) error) error {
	const op = "write name to the storage"
	if s.postgres {
		return s.write(ctx, op, name, func(t tx) error {
			m, _, err := t.mirrored(ctx, repository, name)
			if err != nil || m == nil {
				return err
			}
			if err := put(ctx, *m); err != nil {
				return err
			}
			return t.noteMirrored(ctx, *m)
		})
	}
	// SQLite has one writer: it does not wait for a storage. There is one process.
	free, err := s.names.lock(ctx, repository)
	if err != nil {
		return s.broken(op, name, err)
	}
	defer free()
	m, turn, err := s.reading().mirrored(ctx, repository, name)
	if err != nil || m == nil {
		return s.broken(op, name, err)
	}
	if err := put(ctx, *m); err != nil {
		return s.broken(op, name, err)
	}
	return s.write(ctx, op, name, func(t tx) error {
		var now int64
		err := t.row(ctx, "SELECT turn FROM mirror WHERE repository = ? AND name = ?", repository, name).Scan(&now)
		if errors.Is(err, sql.ErrNoRows) || (err == nil && now != turn) {
			return nil // it changed: once more
		}
		if err != nil {
			return err
		}
		return t.noteMirrored(ctx, *m)
	})
}

// mirrored looks up what is to be written; nil when nothing is.
func (t tx) mirrored(ctx context.Context, repository, name string) (*hub.Mirrored, int64, error) {
	var turn int64
	locking := ""
	if t.postgres {
		locking = t.locking()
	}
	err := t.row(ctx, "SELECT turn FROM mirror WHERE repository = ? AND name = ?"+locking, repository, name).Scan(&turn)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	m := &hub.Mirrored{Repository: repository, Name: name, Gone: name == ""}
	if m.Gone {
		return m, turn, nil
	}
	var id int64
	err = t.row(ctx, "SELECT r.id, f.digest FROM refs f JOIN repositories r ON r.id = f.repository WHERE r.name = ? AND f.name = ?", repository, name).Scan(&id, &m.Digest)
	if errors.Is(err, sql.ErrNoRows) {
		return m, turn, nil
	}
	if err != nil {
		return nil, 0, err
	}
	const down = "WITH RECURSIVE down(d) AS (SELECT digest FROM manifests WHERE repository = ? AND digest = ? UNION SELECT l.child FROM manifest_links l JOIN down ON l.manifest = down.d WHERE l.repository = ?) "
	if m.Manifests, err = all(ctx, t, one[digest.Digest], down+"SELECT d FROM down ORDER BY d", id, string(m.Digest), id); err != nil {
		return nil, 0, err
	}
	m.Blobs, err = all(ctx, t, one[digest.Digest], down+"SELECT DISTINCT b.digest FROM down JOIN blob_links l ON l.manifest = down.d JOIN repo_blobs b ON b.repository = l.repository AND b.digest = l.blob WHERE l.repository = ? AND b.linked = 0 ORDER BY b.digest", id, string(m.Digest), id, id)
	return m, turn, err
}

func (t tx) noteMirrored(ctx context.Context, m hub.Mirrored) error {
	if _, err := t.exec(ctx, "DELETE FROM mirror WHERE repository = ? AND name = ?", m.Repository, m.Name); err != nil {
		return err
	}
	r, err := t.find(ctx, m.Repository, "")
	if errors.Is(err, hub.ErrRepository) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Gone { // and there is a new one of that name: its links went too
		if _, err := t.exec(ctx, "UPDATE repo_blobs SET linked = 0 WHERE repository = ?", r.id); err != nil {
			return err
		}
		return t.mirrorAll(ctx, r.id, m.Repository)
	}
	for _, d := range m.Blobs {
		if _, err := t.exec(ctx, "UPDATE repo_blobs SET linked = 1 WHERE repository = ? AND digest = ?", r.id, string(d)); err != nil {
			return err
		}
	}
	return nil
}
