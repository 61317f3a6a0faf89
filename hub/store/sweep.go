package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// lockBase is the first of the numbers under which PostgreSQL keeps the hub's locks.
const (
	lockBase  = 0x64726f7665720000 // "drover"
	sweepLock = lockBase + 1
)

// Lock is held by one process of the hub. It ends with the process: it is a lock of
// the kernel on a file beside SQLite's, or of a connection to PostgreSQL, so that
// one that stands still keeps it, and one that died does not.
type Lock struct {
	file *os.File
	conn *sql.Conn
	s    *Store
}

// flock takes a lock beside SQLite's file; nil when another process has it.
func (s *Store) flock(name string) (*os.File, error) {
	f, err := os.OpenFile(s.path+name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

// Alone makes this the one process that serves a SQLite database, until the store is
// closed; InUse when there is one. Others may open it all the same, to manage it.
// With PostgreSQL there may be several.
func (s *Store) Alone() error {
	const op = "serve the hub"
	if s.postgres {
		return nil
	}
	f, err := s.flock(".serve")
	if err != nil {
		return s.broken(op, s.path, err)
	}
	if f == nil {
		return &api.Error{Kind: api.InUse, Op: op, Object: s.path, Reason: "another process serves it", Next: "end that one, or use PostgreSQL for several"}
	}
	s.serving = f
	return nil
}

// SweepLock takes the right to remove bytes; InUse while another has it.
func (s *Store) SweepLock(ctx context.Context) (*Lock, error) {
	const op = "begin sweep"
	other := &api.Error{Kind: api.InUse, Op: op, Reason: "another process of the hub is sweeping"}
	if !s.postgres {
		f, err := s.flock(".sweep")
		if err != nil {
			return nil, s.broken(op, "", err)
		}
		if f == nil {
			return nil, other
		}
		return &Lock{file: f, s: s}, nil
	}
	c, err := s.w.Conn(ctx)
	if err != nil {
		return nil, s.broken(op, "", err)
	}
	var got bool
	// A host that is gone is noticed within a minute.
	for _, q := range []string{"SET tcp_keepalives_idle = 20", "SET tcp_keepalives_interval = 10", "SET tcp_keepalives_count = 3"} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			_ = c.Close()
			return nil, s.broken(op, "", err)
		}
	}
	err = c.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", int64(sweepLock)).Scan(&got)
	if err != nil || !got {
		_ = c.Close()
		if err == nil {
			return nil, other
		}
		return nil, s.broken(op, "", err)
	}
	return &Lock{conn: c, s: s}, nil
}

// Alive says whether the lock is still held: asked before each removal of bytes.
func (l *Lock) Alive(ctx context.Context) error {
	if l.conn == nil {
		return nil
	}
	_, err := l.conn.ExecContext(ctx, "SELECT 1")
	return l.s.broken("go on with sweep", "", err)
}

// Release gives the lock up.
func (l *Lock) Release() {
	if l.conn == nil {
		_ = l.file.Close()
		return
	}
	// A session that ends gives its locks up when the server sees it; this does so now.
	ctx, cancel := context.WithTimeout(context.Background(), beatEvery)
	defer cancel()
	_, _ = l.conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(sweepLock))
	endSession(l.conn)
}

// endSession ends a connection for good, and its locks with it, whatever state it is in.
func endSession(c *sql.Conn) {
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
	_ = c.Close()
}

// Figures are what a sweep did.
type Figures struct {
	Commits   int   `json:"commits"`   // names that retention removed
	Manifests int   `json:"manifests"` // of repositories
	Blobs     int   `json:"blobs"`     // of repositories
	Removed   int   `json:"removed"`   // whose bytes were removed
	Bytes     int64 `json:"bytes"`
	Uploads   int   `json:"uploads"` // that were left
}

// Sweep is the last sweep.
type Sweep struct {
	Begun time.Time  `json:"begun"`
	Ended *time.Time `json:"ended,omitempty"` // nil: it is on its way, or broke off
	Figures
}

// BeginSweep notes that a sweep began.
func (s *Store) BeginSweep(ctx context.Context) error {
	return s.write(ctx, "begin sweep", "", func(t tx) error {
		_, err := t.exec(ctx, "UPDATE sweep SET begun = ?, ended = 0, figures = '{}' WHERE id = 1", t.now)
		return err
	})
}

// EndSweep notes what a sweep did.
func (s *Store) EndSweep(ctx context.Context, f Figures) error {
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return s.write(ctx, "end sweep", "", func(t tx) error {
		_, err := t.exec(ctx, "UPDATE sweep SET ended = ?, figures = ? WHERE id = 1", t.now, string(text))
		return err
	})
}

// LastSweep says when there was one, and what it did; its Begun is zero when there was none.
func (s *Store) LastSweep(ctx context.Context) (Sweep, error) {
	var out Sweep
	var begun, ended int64
	var text string
	err := s.reading().row(ctx, "SELECT begun, ended, figures FROM sweep WHERE id = 1").Scan(&begun, &ended, &text)
	if err != nil {
		return out, s.broken("look at the last sweep", "", err)
	}
	if begun != 0 {
		out.Begun = timeOf(begun)
	}
	out.Ended = later(ended)
	return out, json.Unmarshal([]byte(text), &out.Figures)
}

// Decide says which commits a policy keeps, of those that have a name. Those in stay
// do whatever it says.
type Decide func(keep api.Keep, commits []api.Commit, stay map[string]bool, now time.Time) map[string]bool

// Retain drops the names of commits that a repository's policy does not keep. Those stay to
// which a branch or tag points, and those whose name is younger than cutoff.
func (s *Store) Retain(ctx context.Context, repository string, cutoff time.Time, decide Decide) (dropped int, err error) {
	type named struct {
		name, commit string
		d            digest.Digest
		at, ref      int64
	}
	err = s.write(ctx, "retain", repository, func(t tx) error {
		dropped = 0
		r, err := t.lock(ctx, repository)
		if err != nil || r.Keep == nil {
			return err
		}
		list, err := all(ctx, t, func(scan func(...any) error) (n named, err error) {
			return n, scan(&n.name, &n.d, &n.ref, &n.commit, &n.at)
		}, `SELECT f.name, f.digest, f.time, c.id, c.time FROM refs f
			JOIN manifests m ON m.repository = f.repository AND m.digest = f.digest
			JOIN commits c ON c.repository = m.repository AND c.id = m.commit_id WHERE f.repository = ? ORDER BY f.name`, r.id)
		if err != nil {
			return err
		}
		stay := map[string]bool{}
		var commits []api.Commit
		for _, n := range list {
			if hub.CommitOf(n.name) != n.commit {
				stay[n.commit] = true
				continue
			}
			commits = append(commits, api.Commit{ID: n.commit, Time: timeOf(n.at)})
			if n.ref >= micros(cutoff) { // a push may be about to point a branch to it
				stay[n.commit] = true
			}
		}
		keep := decide(*r.Keep, commits, stay, timeOf(t.now))
		for _, n := range list {
			if hub.CommitOf(n.name) != n.commit || keep[n.commit] || stay[n.commit] {
				continue
			}
			if err := t.dropRef(ctx, r, n.name, n.d, hub.Identity{}, "retention"); err != nil {
				return err
			}
			dropped++
		}
		return nil
	})
	if errors.Is(err, hub.ErrRepository) { // it was deleted meanwhile
		err = nil
	}
	return dropped, err
}

// reached is a manifest that a name leads to, through indexes and subjects, or that
// is young, or that such a one leads to.
const reached = `WITH RECURSIVE reach(d) AS (
	SELECT digest FROM (SELECT digest FROM refs WHERE repository = ? UNION SELECT digest FROM manifests WHERE repository = ? AND seen >= ?) roots
	UNION SELECT e.b FROM (
		SELECT manifest AS a, child AS b FROM manifest_links WHERE repository = ?
		UNION ALL SELECT subject AS a, digest AS b FROM manifests WHERE repository = ? AND subject <> ''
	) e JOIN reach ON reach.d = e.a) `

// Swept is what a sweep took out of a repository.
type Swept struct{ Manifests, Blobs []digest.Digest }

// SweepRepository takes out of a repository the manifests that no name leads to, and
// the blobs that no manifest names, if nobody asked for them since cutoff.
func (s *Store) SweepRepository(ctx context.Context, name string, cutoff time.Time) (out Swept, err error) {
	before := micros(cutoff)
	err = s.write(ctx, "sweep", name, func(t tx) error {
		out = Swept{}
		r, err := t.lock(ctx, name)
		if err != nil {
			return err
		}
		type sized struct {
			d    digest.Digest
			size int64
		}
		scan := func(scan func(...any) error) (x sized, err error) { return x, scan(&x.d, &x.size) }
		var freed int64
		gone, err := all(ctx, t, scan, reached+"SELECT digest, size FROM manifests WHERE repository = ? AND seen < ? AND digest NOT IN (SELECT d FROM reach) ORDER BY digest",
			r.id, r.id, before, r.id, r.id, r.id, before)
		if err != nil {
			return err
		}
		// First what they name, so that none of them is needed by another.
		for _, table := range []string{"blob_links", "manifest_links"} {
			for _, m := range gone {
				if _, err := t.exec(ctx, "DELETE FROM "+table+" WHERE repository = ? AND manifest = ?", r.id, string(m.d)); err != nil {
					return err
				}
			}
		}
		for _, m := range gone {
			if _, err := t.exec(ctx, "DELETE FROM manifests WHERE repository = ? AND digest = ?", r.id, string(m.d)); err != nil {
				return err
			}
			out.Manifests = append(out.Manifests, m.d)
			freed += m.size
		}
		// With the repository locked no manifest comes; whether somebody has asked since
		// is looked at again in each row.
		blobs, err := all(ctx, t, scan, "DELETE FROM repo_blobs WHERE repository = ? AND seen < ? AND NOT EXISTS (SELECT 1 FROM blob_links l WHERE l.repository = repo_blobs.repository AND l.blob = repo_blobs.digest) RETURNING digest, size", r.id, before)
		if err != nil {
			return err
		}
		for _, b := range blobs {
			out.Blobs = append(out.Blobs, b.d)
			freed += b.size
		}
		if freed == 0 {
			return nil
		}
		return t.charge(ctx, r, -freed)
	})
	if errors.Is(err, hub.ErrRepository) {
		return Swept{}, nil
	}
	return out, err
}

// nobody has a digest.
const nobody = "NOT EXISTS (SELECT 1 FROM repo_blobs r WHERE r.digest = blobs.digest) AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.digest = blobs.digest)"

// MarkOrphans marks, and so takes from everybody, up to limit digests that no
// repository has: their bytes are to be removed.
func (s *Store) MarkOrphans(ctx context.Context, limit int) (int, error) {
	n := 0
	list, err := all(ctx, s.reading(), one[string], "SELECT digest FROM blobs WHERE state <> ? AND "+nobody+" ORDER BY digest LIMIT ?", deleting, limit)
	if err != nil {
		return 0, s.broken("sweep", "", err)
	}
	for _, d := range list {
		err := s.write(ctx, "sweep", d, func(t tx) error {
			// The row is locked first, then looked at: who holds it meanwhile has written who they are.
			var state int
			err := t.row(ctx, "SELECT state FROM blobs WHERE digest = ?"+t.locking(), d).Scan(&state)
			if errors.Is(err, sql.ErrNoRows) {
				return nil
			}
			if err != nil {
				return err
			}
			found, err := t.exec(ctx, "UPDATE blobs SET state = ? WHERE digest = ? AND "+nobody, deleting, d)
			n += int(found)
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Orphan is a digest whose bytes are to be removed.
type Orphan struct {
	Digest digest.Digest
	Size   int64
}

// Orphans lists what is marked.
func (s *Store) Orphans(ctx context.Context) ([]Orphan, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (o Orphan, err error) { return o, scan(&o.Digest, &o.Size) },
		"SELECT digest, size FROM blobs WHERE state = ? ORDER BY digest", deleting)
	return list, s.broken("sweep", "", err)
}

// Removed says that the bytes of what was marked are gone.
func (s *Store) Removed(ctx context.Context, d digest.Digest) error {
	return s.write(ctx, "sweep", string(d), func(t tx) error {
		_, err := t.exec(ctx, "DELETE FROM blobs WHERE digest = ? AND state = ?", string(d), deleting)
		return err
	})
}

// Upload is a session that a client began.
type Upload struct{ ID, Repository string }

// StaleUploads ends those that nobody went on with since cutoff, and lists them: their
// sessions are to be removed, and then EndUpload is said.
func (s *Store) StaleUploads(ctx context.Context, cutoff time.Time) ([]Upload, error) {
	var list []Upload
	err := s.write(ctx, "end uploads", "", func(t tx) error {
		if _, err := t.exec(ctx, "UPDATE uploads SET seen = ? WHERE seen < ?", ending, micros(cutoff)); err != nil {
			return err
		}
		var err error
		list, err = all(ctx, t, func(scan func(...any) error) (u Upload, err error) { return u, scan(&u.ID, &u.Repository) },
			"SELECT id, repository FROM uploads WHERE seen = ? ORDER BY id", ending)
		return err
	})
	return list, err
}

// Empty says that the database knows no bytes: it is new.
func (s *Store) Empty(ctx context.Context) (bool, error) {
	var n int
	err := s.reading().row(ctx, "SELECT COUNT(*) FROM (SELECT 1 FROM blobs LIMIT 1) x").Scan(&n)
	return n == 0, s.broken("look at the hub's database", "", err)
}
