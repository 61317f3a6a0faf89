package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

// Options of a demonstration.
type Options struct {
	Binary string    // path of drover
	Scale  int       // of pgbench: 50 is 750 MB
	Out    io.Writer // what happens, and the last line
	Keep   bool      // leave the lab as it is
	Name   string    // of the lab
}

// The database container of the demonstration.
const (
	Volume     = "pg"
	Container  = "db"
	Checkpoint = "psql -U postgres -qc CHECKPOINT"
	port       = "5432"
)

// Result is what a demonstration saw.
type Result struct {
	Rows, Acked, Lost int64
	Downtime          time.Duration // the longest of the moves
	Stall             time.Duration // longest gap between two acknowledged writes
	MovedMB           int64         // bytes sent by all moves, in MB of 10^6
	Ratio             float64       // throughput of the first full round against a bare pipeline
}

// String is the last line.
func (r Result) String() string {
	word := "ok"
	if r.Lost != 0 {
		word = "FAILED"
	}
	return fmt.Sprintf("demo: %s rows=%d acked=%d lost=%d volume_downtime_ms=%d client_stall_ms=%d moved_mb=%d throughput_ratio=%.2f",
		word, r.Rows, r.Acked, r.Lost, r.Downtime.Milliseconds(), r.Stall.Milliseconds(), r.MovedMB, r.Ratio)
}

// Run brings a lab up, moves a database through it under load, and takes the
// lab down again.
func Run(ctx context.Context, o Options) (r Result, err error) {
	say := func(format string, args ...any) { fmt.Fprintf(o.Out, "demo: "+format+"\n", args...) }
	if err := lab.Require(ctx, o.Out, "docker.io", "btrfs-progs", "mmdebstrap", "iproute2", "nftables", "iptables"); err != nil {
		return r, err
	}
	image, err := lab.PostgresImage(ctx, "", o.Out)
	if err != nil {
		return r, err
	}
	say("three hosts, each with its own Docker and agent")
	l, err := lab.Up(ctx, lab.Options{Name: o.Name, Nodes: 3, Progress: io.Discard})
	if err != nil {
		return r, err
	}
	if !o.Keep {
		defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	}
	if err := l.StartCluster(ctx, lab.ClusterOptions{Binary: o.Binary, PoolSize: "8G"}); err != nil {
		return r, err
	}
	if err := l.LoadImage(ctx, image); err != nil {
		return r, err
	}
	s := Stage{Lab: l, Binary: o.Binary}
	say("PostgreSQL in a container on node1, its data in the volume %s; pgbench fills it at scale %d", Volume, o.Scale)
	if err := s.Database(ctx, "node1", o.Scale); err != nil {
		return r, err
	}
	client, err := s.StartClient(ctx, "node3")
	if err != nil {
		return r, err
	}
	defer client.Stop()
	var first api.MoveProgress
	for i, target := range []string{"node2", "node3"} {
		pause(ctx, 2*time.Second)
		say("drover volume move %s %s --hook %q, while a client writes", Volume, target, Checkpoint)
		p, err := s.Move(ctx, target)
		if err != nil {
			return r, err
		}
		say("%s is on %s: %d MB in %d rounds, away for %d ms", Volume, target, p.Sent/1e6, len(p.Rounds), p.Downtime.Milliseconds())
		r.Downtime = max(r.Downtime, p.Downtime)
		r.MovedMB += p.Sent / 1e6
		if i == 0 {
			first = p
		}
	}
	pause(ctx, 2*time.Second)
	if err := client.Stop(); err != nil {
		return r, err
	}
	tally, err := client.Tally()
	if err != nil {
		return r, err
	}
	r.Acked, r.Stall = tally.Acked, tally.Stall
	if r.Rows, r.Lost, err = s.Verify(ctx, "node3", tally); err != nil {
		return r, err
	}
	say("the same snapshot by a bare btrfs send | btrfs receive, for comparison")
	bare, size, err := s.Bare(ctx, "node1")
	if err != nil {
		return r, err
	}
	if len(first.Rounds) > 0 {
		round := first.Rounds[0]
		r.Ratio = (float64(round.Sent) / round.Took.Seconds()) / (float64(size) / bare.Seconds())
	}
	return r, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Stage is a lab with a database on it.
type Stage struct {
	Lab    *lab.Lab
	Binary string
}

func (s Stage) run(ctx context.Context, host string, args ...string) (string, error) {
	h, err := s.Lab.Host(host)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = h.Run(ctx, lab.Cmd{Args: args, Stdout: &out})
	return out.String(), err
}

// Database starts PostgreSQL on a host and fills it.
func (s Stage) Database(ctx context.Context, host string, scale int) error {
	_, err := s.run(ctx, host, "docker", "run", "-d", "--name", Container, "--restart", "always", "--shm-size", "256m", "-p", port+":"+port,
		"--volume-driver", "drover", "-v", Volume+":/var/lib/postgresql/data", lab.PostgresImageName,
		"postgres", "-c", "listen_addresses=*", "-c", "jit=off", "-c", "shared_buffers=128MB", "-c", "max_wal_size=4GB")
	if err != nil {
		return err
	}
	if err := s.await(ctx, host); err != nil {
		return err
	}
	if _, err := s.run(ctx, host, "docker", "exec", Container, "pgbench", "-U", "postgres", "-q", "-i", "-s", strconv.Itoa(scale), "postgres"); err != nil {
		return err
	}
	_, err = s.SQL(ctx, host, "CREATE TABLE written (n bigint PRIMARY KEY, at timestamptz DEFAULT now()); CHECKPOINT")
	return err
}

// await waits until the database on the host answers.
func (s Stage) await(ctx context.Context, host string) error {
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := s.SQL(ctx, host, "SELECT 1")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the database on %s does not answer: %w", host, err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// SQL runs statements in the database on the host and gives what it prints.
func (s Stage) SQL(ctx context.Context, host, text string) (string, error) {
	out, err := s.run(ctx, host, "docker", "exec", Container, "psql", "-U", "postgres", "-h", "127.0.0.1", "-qtAXc", text)
	return strings.TrimSpace(out), err
}

// Move moves the volume with its container, from any host.
func (s Stage) Move(ctx context.Context, target string, flags ...string) (p api.MoveProgress, err error) {
	args := append([]string{s.Binary, "volume", "move", Volume, target, "--hook", Checkpoint, "-o", "json"}, flags...)
	out, err := s.run(ctx, "node1", args...)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal([]byte(out), &p)
}

// Verify counts the rows and the acknowledged writes that are not among them.
func (s Stage) Verify(ctx context.Context, host string, t Tally) (rows, lost int64, err error) {
	if err := s.await(ctx, host); err != nil {
		return 0, 0, err
	}
	out, err := s.SQL(ctx, host, "SELECT count(*) FROM written")
	if err != nil {
		return 0, 0, err
	}
	if rows, err = strconv.ParseInt(out, 10, 64); err != nil {
		return 0, 0, err
	}
	// Numbers are given without gaps and a number is acknowledged before the
	// next is tried, so all up to the last acknowledged one must be there.
	out, err = s.SQL(ctx, host, fmt.Sprintf("SELECT count(*) FROM written WHERE n <= %d", t.Last))
	if err != nil {
		return rows, 0, err
	}
	there, err := strconv.ParseInt(out, 10, 64)
	return rows, t.Last - there, err
}

// Bare sends the newest snapshot of the volume that a host holds through
// btrfs send | btrfs receive into a fresh file system, and syncs it.
func (s Stage) Bare(ctx context.Context, host string) (took time.Duration, size int64, err error) {
	h, err := s.Lab.Host(host)
	if err != nil {
		return 0, 0, err
	}
	file := filepath.Join(h.Dir(), "bare.img")
	defer os.Remove(file)
	const script = `set -e
snapshot=$(ls -dt /var/lib/drover/pools/default/snapshots/*/* | head -n 1)
truncate -s 8G "$1"; fallocate -l 8G "$1"
mkfs.btrfs -q "$1" >/dev/null
mkdir -p /run/bare; mount -o loop,noatime "$1" /run/bare
trap 'umount /run/bare' EXIT
size=$(btrfs send -q "$snapshot" | wc -c)
sync
begin=$(date +%s%N)
btrfs send -q "$snapshot" | btrfs receive -q /run/bare
sync -f /run/bare
echo $(( $(date +%s%N) - begin )) "$size"
`
	var out bytes.Buffer
	if err := h.Run(ctx, lab.Cmd{Args: []string{"bash", "-c", script, "bare", file}, Stdout: &out}); err != nil {
		return 0, 0, err
	}
	var ns int64
	if _, err := fmt.Sscan(out.String(), &ns, &size); err != nil {
		return 0, 0, fmt.Errorf("read %q: %w", out.String(), err)
	}
	return time.Duration(ns), size, nil
}

// Writer is a client at work on a host.
type Writer struct {
	cancel context.CancelFunc
	over   chan error
	out    bytes.Buffer
	ended  error
	done   bool
}

// StartClient lets a client on the host write until it is stopped.
func (s Stage) StartClient(ctx context.Context, host string) (*Writer, error) {
	h, err := s.Lab.Host(host)
	if err != nil {
		return nil, err
	}
	args := []string{s.Binary, ClientCommand}
	for _, other := range s.Lab.Hosts() {
		args = append(args, net.JoinHostPort(other.Address(), port))
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &Writer{cancel: cancel, over: make(chan error, 1)}
	go func() { w.over <- h.Run(ctx, lab.Cmd{Args: args, Stdout: &w.out}) }()
	return w, nil
}

// Stop ends the client; what it printed can be counted then.
func (w *Writer) Stop() error {
	if w.done {
		return w.ended
	}
	w.cancel()
	if err := <-w.over; err != nil && !api.Is(err, api.Canceled) {
		w.ended = err
	}
	w.done = true
	return w.ended
}

// Tally counts what a stopped client printed.
func (w *Writer) Tally() (Tally, error) { return Count(bytes.NewReader(w.out.Bytes())) }
