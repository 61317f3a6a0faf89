// Package store is the hub's database: SQLite, or PostgreSQL where several
// processes are one hub. Every rule that must hold at once is one transaction
// here. It knows neither HTTP nor where bytes are kept.
//
// # What a transaction may count on
//
// Whatever changes the names, the manifests or what they name, or the bytes counted, of a
// repository locks that repository's row first. What takes a blob into a repository
// locks the blob's row next. A blob's row is marked as being deleted under its lock
// alone, when no repository has it. So between a look and a change nothing moves.
// SQLite has one writer at a time anyway.
//
// Times are the caller's clock (Options.Now). Several hosts' clocks may be apart by
// as much as Slack.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/internal/durable"
)

// Slack is how old the time at which a blob was last asked for may be before
// it is written down again, and what a sweep adds to the grace period for it.
// It also covers how far the clocks of several hosts are apart.
const Slack = time.Hour

// Options say which database.
type Options struct {
	// URL is a path, sqlite:///path, or postgres://…
	URL string
	Now func() time.Time // nil: time.Now
}

// Store is an open database. It is a hub.Gate.
type Store struct {
	now      func() time.Time
	postgres bool
	path     string  // of SQLite's file
	w, r     *sql.DB // for changes, and for reading; the same with PostgreSQL

	names     keyed // repositories of which a name is written to the storage, with SQLite
	exclusive exclusive
	serving   *os.File // held while this process serves a SQLite database
}

var _ hub.Gate = (*Store)(nil)

// Open opens a database, makes it when there is none, and brings it up to date.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{now: o.Now}
	if s.now == nil {
		s.now = time.Now
	}
	var err error
	if strings.HasPrefix(o.URL, "postgres://") || strings.HasPrefix(o.URL, "postgresql://") {
		s.postgres = true
		s.w, err = sql.Open("pgx", o.URL)
		s.r = s.w
		if err == nil {
			s.w.SetMaxOpenConns(32)
			s.w.SetMaxIdleConns(8)
		}
	} else {
		err = s.openFile(strings.TrimPrefix(o.URL, "sqlite://"))
	}
	if err == nil {
		err = s.migrate(ctx)
	}
	if err != nil {
		if s.w != nil {
			_ = s.Close()
		}
		var known *api.Error
		if errors.As(err, &known) {
			return nil, known
		}
		return nil, &api.Error{Kind: api.Unavailable, Op: "open the hub's database", Object: withoutSecret(o.URL), Err: err, Next: "see whether it is there and may be used"}
	}
	return s, nil
}

func withoutSecret(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		return "" // it may hold anything
	}
	u.RawQuery = ""
	return u.Redacted()
}

func (s *Store) openFile(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	s.path = path
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err == nil {
		if err := errors.Join(f.Close(), durable.SyncDir(filepath.Dir(path))); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	dsn := func(more ...string) string {
		q := url.Values{"_pragma": append([]string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}, more...)}
		return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
	}
	if s.w, err = sql.Open("sqlite", dsn()+"&_txlock=immediate"); err != nil {
		return err
	}
	s.w.SetMaxOpenConns(1) // who waits, waits here and within their context
	if s.r, err = sql.Open("sqlite", dsn("query_only(1)")); err == nil {
		s.r.SetMaxOpenConns(8)
		s.r.SetMaxIdleConns(8)
	}
	return err
}

// Close lets go of the database.
func (s *Store) Close() error {
	err := s.w.Close()
	if s.serving != nil {
		err = errors.Join(err, s.serving.Close())
	}
	if s.r != nil && s.r != s.w {
		err = errors.Join(err, s.r.Close())
	}
	return err
}

func (s *Store) migrate(ctx context.Context) error {
	return s.write(ctx, "open the hub's database", "", func(t tx) error {
		if s.postgres { // several processes may begin at once
			if _, err := t.exec(ctx, "SELECT pg_advisory_xact_lock(?)", lockBase); err != nil {
				return err
			}
		}
		if _, err := t.exec(ctx, "CREATE TABLE IF NOT EXISTS versions (version INTEGER PRIMARY KEY)"); err != nil {
			return err
		}
		var at int
		if err := t.row(ctx, "SELECT COALESCE(MAX(version), 0) FROM versions").Scan(&at); err != nil {
			return err
		}
		if at > len(migrations) {
			return &api.Error{Kind: api.Unsupported, Op: "open the hub's database", Reason: fmt.Sprintf("it is of version %d, this program knows %d", at, len(migrations)), Next: "upgrade Drover on this host"}
		}
		id, text := "INTEGER PRIMARY KEY AUTOINCREMENT", " TEXT "
		if s.postgres { // where text is in the order of its bytes only if one says so
			id, text = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", ` TEXT COLLATE "C" `
		}
		words := strings.NewReplacer("{id}", id, " TEXT ", text)
		for ; at < len(migrations); at++ {
			for one := range strings.SplitSeq(words.Replace(migrations[at]), ";\n") {
				if strings.TrimSpace(one) == "" {
					continue
				}
				if _, err := t.exec(ctx, one); err != nil {
					return fmt.Errorf("version %d: %w", at+1, err)
				}
			}
			if _, err := t.exec(ctx, "INSERT INTO versions (version) VALUES (?)", at+1); err != nil {
				return err
			}
		}
		return nil
	})
}

// Ping asks whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.broken("ask the hub's database", "", s.r.PingContext(ctx))
}

// Setting gives what all processes of the hub share under a name; the first to
// ask makes it: random bytes in hexadecimal.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	var value string
	err := s.write(ctx, "read setting", name, func(t tx) error {
		if _, err := t.exec(ctx, "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", name, random(32)); err != nil {
			return err
		}
		return t.row(ctx, "SELECT value FROM settings WHERE name = ?", name).Scan(&value)
	})
	return value, err
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// tx asks and changes in one transaction, or reads outside of one.
type tx struct {
	q interface {
		ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error)
		QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
		QueryRowContext(ctx context.Context, q string, args ...any) *sql.Row
	}
	postgres bool
	now      int64
}

// text writes parameters as the database has them: ? or $1, $2, …
func (t tx) text(q string) string {
	if !t.postgres {
		return q
	}
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(q, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}

func (t tx) exec(ctx context.Context, q string, args ...any) (int64, error) {
	r, err := t.q.ExecContext(ctx, t.text(q), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t tx) row(ctx context.Context, q string, args ...any) *sql.Row {
	return t.q.QueryRowContext(ctx, t.text(q), args...)
}

// locking is what a SELECT ends with whose rows are to stay as they are.
func (t tx) locking() string {
	if t.postgres {
		return " FOR UPDATE"
	}
	return ""
}

// all reads every row.
func all[T any](ctx context.Context, t tx, scan func(scan func(...any) error) (T, error), q string, args ...any) ([]T, error) {
	rows, err := t.q.QueryContext(ctx, t.text(q), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		x, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, rows.Err()
}

// one reads a column's value from each row.
func one[T any](scan func(...any) error) (v T, err error) { return v, scan(&v) }

// several writes n parameters, for IN.
func several(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

func (s *Store) reading() tx { return tx{s.r, s.postgres, micros(s.now())} }

// write runs what changes something in one transaction, and again when it lost
// against another for no reason of its own.
func (s *Store) write(ctx context.Context, op, object string, f func(tx) error) error {
	for try := 1; ; try++ {
		err := s.once(ctx, f)
		if err == nil {
			return nil
		}
		if !lost(err) || try >= 10 {
			return s.broken(op, object, err)
		}
		if err := pause(ctx, time.Duration(try)*10*time.Millisecond); err != nil {
			return s.broken(op, object, err)
		}
	}
}

func (s *Store) once(ctx context.Context, f func(tx) error) error {
	t, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = t.Rollback() }()
	if err := f(tx{t, s.postgres, micros(s.now())}); err != nil {
		return err
	}
	return t.Commit()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lost says that the database chose another transaction.
func lost(err error) bool {
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code()&0xff == sqlite3.SQLITE_BUSY
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// needed says that a row cannot go, or come, because of another.
func needed(err error) bool {
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23503"
}

// taken says that there is such a row.
func taken(err error) bool {
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}

// broken makes an *api.Error of what the database says.
func (s *Store) broken(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the hub's database does not do it", Err: err, Next: "try again; the hub's log says more"}
	var lite *sqlite.Error
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, context.Canceled):
		e.Kind, e.Reason, e.Next = api.Canceled, "", ""
	case errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_FULL, errors.As(err, &pg) && pg.Code == "53100":
		e.Kind, e.Reason, e.Next = api.Exhausted, "the disk of the hub's database is full", "make room there"
	case errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_READONLY:
		e.Kind, e.Reason, e.Next = api.ReadOnly, "the hub's database cannot be written", "look at its permissions"
	case errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_CORRUPT:
		e.Kind, e.Reason, e.Next = api.Damaged, "the hub's database is damaged", "restore it, or build it anew: drover hub rebuild"
	}
	return e
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func timeOf(n int64) time.Time { return time.UnixMicro(n).UTC() }

// later is a time that may be missing.
func later(n int64) *time.Time {
	if n == 0 {
		return nil
	}
	t := timeOf(n)
	return &t
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
