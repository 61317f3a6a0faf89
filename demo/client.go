// Package demo shows Drover at work, and proves it: a database with a writing
// client moves from host to host of a lab, and every write that was
// acknowledged is counted afterwards. Tests and benchmarks use its parts.
package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Write is one write that the database acknowledged.
type Write struct {
	N  int64     `json:"n"`
	At time.Time `json:"at"` // when the acknowledgement came
}

// ClientCommand is the hidden command of the binary that runs Client.
const ClientCommand = "lab-client"

// Client writes numbered rows into the database, one transaction each, as
// fast as it answers, wherever it answers among addresses, and prints each
// acknowledgement as a line of JSON. A write whose outcome is not known is
// written again under the same number. It ends with ctx.
func Client(ctx context.Context, addresses []string, out io.Writer) error {
	w := bufio.NewWriter(out)
	defer w.Flush()
	enc := json.NewEncoder(w)
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
	}()
	n := int64(0)
	for ctx.Err() == nil {
		if conn == nil {
			if conn = connect(ctx, addresses); conn == nil {
				continue
			}
			if n == 0 {
				if err := conn.QueryRow(ctx, "SELECT coalesce(max(n), 0) FROM written").Scan(&n); err != nil {
					return fmt.Errorf("read where the last client ended: %w", err)
				}
				n++
			}
		}
		const patience = 3 * time.Second
		writing, cancel := context.WithTimeout(ctx, patience)
		_, err := conn.Exec(writing, "INSERT INTO written (n) VALUES ($1) ON CONFLICT DO NOTHING", n)
		cancel()
		if err != nil {
			conn.Close(context.WithoutCancel(ctx))
			conn = nil
			continue
		}
		if err := enc.Encode(Write{N: n, At: time.Now()}); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		n++
	}
	return nil
}

// connect tries the addresses in turn until one has the database.
func connect(ctx context.Context, addresses []string) *pgx.Conn {
	const patience = 300 * time.Millisecond
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return nil
		}
		trying, cancel := context.WithTimeout(ctx, patience)
		conn, err := pgx.Connect(trying, fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable", host, port))
		cancel()
		if err == nil {
			return conn
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
	return nil
}

// Tally is what a client's output says.
type Tally struct {
	Acked int64
	Last  int64         // highest number acknowledged
	Stall time.Duration // longest time between two acknowledgements
	Gaps  []Gap         // those of a tenth of a second and more, in order
}

// Gap is a time without an acknowledgement.
type Gap struct{ From, To time.Time }

// Longest is the longest gap that touches a span of time.
func (t Tally) Longest(from, to time.Time) time.Duration {
	var most time.Duration
	for _, g := range t.Gaps {
		if g.From.Before(to) && g.To.After(from) {
			most = max(most, g.To.Sub(g.From))
		}
	}
	return most
}

// Count reads a client's output.
func Count(r io.Reader) (Tally, error) {
	var t Tally
	var before time.Time
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var w Write
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			if strings.HasSuffix(lines.Text(), "}") {
				return t, fmt.Errorf("read client's output: %w", err)
			}
			continue // the last line, cut off when the client was ended
		}
		t.Acked++
		t.Last = max(t.Last, w.N)
		if !before.IsZero() {
			t.Stall = max(t.Stall, w.At.Sub(before))
			if w.At.Sub(before) >= 100*time.Millisecond {
				t.Gaps = append(t.Gaps, Gap{before, w.At})
			}
		}
		before = w.At
	}
	return t, lines.Err()
}
