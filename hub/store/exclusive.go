package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
)

// exclusive are locks of this process against the others of the hub: of one
// connection to PostgreSQL, so that they end with the process. When the connection is
// lost, so are they, and whoever relies on one is told by their context.
type exclusive struct {
	mu    sync.Mutex
	conn  *sql.Conn                     // guarded by mu; nil while nothing is held
	holds map[string]context.CancelFunc // guarded by mu
	beat  *time.Timer                   // guarded by mu; looks at the connection while something is held
}

// beatEvery is how often the connection is looked at.
const beatEvery = 5 * time.Second

// Exclusive keeps other processes from what a name stands for until it is released;
// InUse while one of them has it. Within the process the caller sees to that. The
// context that it gives ends when the lock is lost.
func (s *Store) Exclusive(ctx context.Context, name string) (context.Context, func(), error) {
	if !s.postgres { // there is one process
		return ctx, func() {}, nil
	}
	const op = "keep others away"
	e := &s.exclusive
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		c, err := s.w.Conn(ctx)
		if err != nil {
			return nil, nil, s.broken(op, name, err)
		}
		e.conn, e.holds = c, map[string]context.CancelFunc{}
	}
	var got bool
	// A query that is canceled ends the connection, and with it everybody's locks.
	if err := e.conn.QueryRowContext(context.WithoutCancel(ctx), "SELECT pg_try_advisory_lock($1)", lockNumber(name)).Scan(&got); err != nil {
		e.drop()
		return nil, nil, s.broken(op, name, err)
	}
	if !got {
		e.idle()
		return nil, nil, &api.Error{Kind: api.Unavailable, Op: op, Object: name, Reason: "another process of the hub is at it", Next: "try again in a moment"}
	}
	held, cancel := context.WithCancel(ctx)
	e.holds[name] = cancel
	if e.beat == nil {
		e.beat = time.AfterFunc(beatEvery, e.look)
	}
	return held, func() { e.release(name, cancel) }, nil
}

func lockNumber(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

// drop gives up a connection that broke. The caller holds mu.
func (e *exclusive) drop() {
	for _, cancel := range e.holds {
		cancel()
	}
	endSession(e.conn)
	e.conn, e.holds = nil, nil
	e.stop()
}

func (e *exclusive) stop() {
	if e.beat != nil {
		e.beat.Stop()
		e.beat = nil
	}
}

// idle gives the connection back when nothing is held. The caller holds mu.
func (e *exclusive) idle() {
	if len(e.holds) == 0 && e.conn != nil {
		_ = e.conn.Close()
		e.conn, e.holds = nil, nil
		e.stop()
	}
}

func (e *exclusive) look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil || e.beat == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), beatEvery)
	defer cancel()
	if _, err := e.conn.ExecContext(ctx, "SELECT 1"); err != nil {
		e.drop()
		return
	}
	e.beat.Reset(beatEvery)
}

func (e *exclusive) release(name string, cancel context.CancelFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	cancel()
	if e.conn == nil || e.holds[name] == nil {
		return // it was lost
	}
	delete(e.holds, name)
	ctx, done := context.WithTimeout(context.Background(), beatEvery)
	defer done()
	if _, err := e.conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", lockNumber(name)); err != nil {
		e.drop()
		return
	}
	e.idle()
}
