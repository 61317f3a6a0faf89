package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/demo"
	"github.com/drover-data/drover/lab"
)

// move compares whole moves with a bare pipeline of the same data, no writer
// running, in pairs.
func (b *bench) move(ctx context.Context) error {
	if err := b.load(ctx, lab.PostgresImage); err != nil {
		return err
	}
	if err := b.stage.Database(ctx, "node1", b.scale); err != nil {
		return err
	}
	if h, err := b.lab.Host("node1"); err != nil {
		return err
	} else if _, err := h.Docker(ctx, "stop", demo.Container); err != nil {
		return err
	}
	var ratios, rates []float64
	b.header()
	targets := []string{"node2", "node3"}
	for i, to := range targets {
		p, err := b.stage.Move(ctx, to)
		if err != nil {
			return err
		}
		bare, size, err := b.stage.Bare(ctx, to)
		if err != nil {
			return err
		}
		if len(p.Rounds) == 0 || p.Rounds[0].Base != "" {
			return fmt.Errorf("move %d to %s did not carry everything", i, to)
		}
		r := p.Rounds[0]
		rate := float64(r.Sent) / r.Took.Seconds()
		rates = append(rates, rate/1e6)
		ratios = append(ratios, rate/(float64(size)/bare.Seconds()))
	}
	b.figure("throughput of a first move", rates, "MB/s")
	b.figure("against bare send, receive and sync", ratios, "times")
	return nil
}

// downtime moves a database under pgbench to and fro, and restarts its
// container under the same load.
func (b *bench) downtime(ctx context.Context) error { return b.downtimeOf(ctx, b.scale) }

// large is the same with four times as much data.
func (b *bench) large(ctx context.Context) error { return b.downtimeOf(ctx, 4*b.scale) }

func (b *bench) downtimeOf(ctx context.Context, scale int) error {
	if err := b.load(ctx, lab.PostgresImage); err != nil {
		return err
	}
	if err := b.stage.Database(ctx, "node1", scale); err != nil {
		return err
	}
	client, err := b.stage.StartClient(ctx, "node3")
	if err != nil {
		return err
	}
	defer client.Stop()
	// The first move carries everything; the median is of those after it.
	if _, err := b.stage.Move(ctx, "node2"); err != nil {
		return err
	}
	var away, sent []float64
	var moves, restarts []demo.Gap
	at, to := "node2", "node1"
	for range b.runs {
		h, err := b.lab.Host(at)
		if err != nil {
			return err
		}
		load, begin := b.pgbench(ctx, at), time.Now()
		_, err = h.Docker(ctx, "restart", "-t", "60", demo.Container)
		load()
		if err != nil {
			return err
		}
		pause(ctx, 3*time.Second)
		restarts = append(restarts, demo.Gap{From: begin, To: time.Now()})
		load, begin = b.pgbench(ctx, at), time.Now()
		p, err := b.stage.Move(ctx, to)
		load()
		if err != nil {
			return err
		}
		pause(ctx, 3*time.Second)
		moves = append(moves, demo.Gap{From: begin, To: time.Now()})
		away = append(away, float64(p.Downtime.Microseconds())/1000)
		sent = append(sent, float64(p.Sent)/1e6)
		b.say("%s", steps(p))
		at, to = to, at
	}
	if err := client.Stop(); err != nil {
		return err
	}
	tally, err := client.Tally()
	if err != nil {
		return err
	}
	rows, lost, err := b.stage.Verify(ctx, at, tally)
	if err != nil {
		return err
	}
	var stalls, over []float64
	for i := range moves {
		move, restart := tally.Longest(moves[i].From, moves[i].To), tally.Longest(restarts[i].From, restarts[i].To)
		stalls = append(stalls, move.Seconds()*1000)
		over = append(over, (move-restart).Seconds()*1000)
	}
	b.header()
	b.figure("volume away, under pgbench", away, "ms")
	b.figure("bytes sent by a move", sent, "MB")
	b.figure("client's stall", stalls, "ms")
	b.figure("client's stall over that of docker restart", over, "ms")
	b.say("%d rows, %d acknowledged, %d lost", rows, tally.Acked, lost)
	return nil
}

// steps tells what a move's rounds carried and took.
func steps(p api.MoveProgress) string {
	var out []string
	for _, r := range p.Rounds {
		name := "round"
		if r.Final {
			name = "last"
		}
		out = append(out, fmt.Sprintf("%s %.1f MB in %d ms", name, float64(r.Sent)/1e6, r.Took.Milliseconds()))
	}
	return fmt.Sprintf("away %d ms: %s", p.Downtime.Milliseconds(), strings.Join(out, ", "))
}

// pgbench writes to the database on a host until the returned function is called.
func (b *bench) pgbench(ctx context.Context, host string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		// It ends with an error when its database moves away: that is the point.
		if h, err := b.lab.Host(host); err == nil {
			_, _ = h.Docker(ctx, "exec", demo.Container, "pgbench", "-U", "postgres", "-n", "-c", "4", "-j", "1", "-T", "600", "postgres")
		}
	}()
	select {
	case <-ctx.Done():
	case <-time.After(3 * time.Second):
	}
	return func() { cancel(); <-over }
}

// mount compares starting a container with a Drover volume and with one of
// Docker's own, in pairs.
func (b *bench) mount(ctx context.Context) error {
	if err := b.load(ctx, lab.BusyboxImage); err != nil {
		return err
	}
	const script = "docker run --rm --network none -v %s:/d " + lab.BusyboxImageName + " true"
	h, err := b.lab.Host("node1")
	if err != nil {
		return err
	}
	for driver, name := range map[string]string{"drover": "ours", "local": "theirs"} {
		if _, err := h.Docker(ctx, "volume", "create", "-d", driver, name); err != nil {
			return err
		}
	}
	var diff []float64
	const pairs = 20
	for i := range pairs + 1 {
		ours, err := b.seconds(ctx, "node1", fmt.Sprintf(script, "ours"))
		if err != nil {
			return err
		}
		theirs, err := b.seconds(ctx, "node1", fmt.Sprintf(script, "theirs"))
		if err != nil {
			return err
		}
		if i > 0 { // the first pair warms up
			diff = append(diff, (ours-theirs)*1000)
		}
	}
	b.header()
	b.figure("docker run with a Drover volume, over Docker's local driver", diff, "ms")
	return nil
}

// idle measures what each unit takes of a core while nothing happens.
func (b *bench) idle(ctx context.Context) error {
	const settle, window = 20 * time.Second, 60 * time.Second
	pause(ctx, settle)
	before, err := b.cpu()
	if err != nil {
		return err
	}
	pause(ctx, window)
	after, err := b.cpu()
	if err != nil {
		return err
	}
	b.header()
	for _, unit := range []string{"agent", "state"} {
		var shares []float64
		for key, ticks := range after {
			if strings.HasPrefix(key, unit+" ") {
				const hz = 100
				shares = append(shares, float64(ticks-before[key])/hz/window.Seconds()*100)
			}
		}
		b.figure("idle "+unit+", of a core", shares, "%")
	}
	return nil
}

// memory measures an agent that has a thousand volumes of its own; the state
// store is another process.
func (b *bench) memory(ctx context.Context) error {
	const volumes = 1000
	h, err := b.lab.Host("node3")
	if err != nil {
		return err
	}
	if _, err := h.Exec(ctx, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do %s volume create mem$i >/dev/null || exit 1; done", volumes, b.binary)); err != nil {
		return err
	}
	services, err := h.Services(ctx)
	if err != nil {
		return err
	}
	b.header()
	for _, s := range services {
		if s.Name != "agent" {
			continue
		}
		text, err := h.Exec(ctx, "cat", fmt.Sprintf("/proc/%d/status", s.PID))
		if err != nil {
			return err
		}
		for _, line := range strings.Split(text, "\n") {
			name, rest, _ := strings.Cut(line, ":")
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				continue
			}
			switch name {
			case "VmRSS":
				b.figure(fmt.Sprintf("agent with %d volumes, resident", volumes), []float64{kib / 1024}, "MiB")
			case "VmHWM":
				b.figure("the same at its most", []float64{kib / 1024}, "MiB")
			}
		}
	}
	return nil
}

// cpu gives the processor ticks of each unit of the lab, by "unit pid".
func (b *bench) cpu() (map[string]int64, error) {
	out := map[string]int64{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue // it ended
		}
		args := strings.Split(string(text), "\x00")
		if len(args) < 2 || args[0] != b.binary || (args[1] != "agent" && args[1] != "state") {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		var user, system int64
		if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
			return nil, err
		}
		out[args[1]+" "+e.Name()] = user + system
	}
	return out, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
