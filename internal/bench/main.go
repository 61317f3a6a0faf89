// Command bench measures Drover in a lab on this machine and prints ratios
// that were taken in one run, as docs/benchmarks.md shows them. It needs root
// and the path of the drover binary.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/drover-data/drover/demo"
	"github.com/drover-data/drover/lab"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := bench{out: os.Stdout}
	flag.StringVar(&b.binary, "drover", "bin/drover", "path of the drover binary")
	flag.IntVar(&b.scale, "scale", 170, "of pgbench: 170 is 2.5 GB")
	flag.IntVar(&b.runs, "runs", 5, "of each measurement")
	flag.StringVar(&b.pool, "pool", "16G", "size of each host's pool; the disk holds three")
	flag.StringVar(&b.logs, "logs", "", "directory that the agents' logs of every action are copied to")
	only := flag.String("only", "", "comma-separated: idle, mount, move, downtime, large, push, history, memory, control")
	flag.Parse()
	path, err := filepath.Abs(b.binary)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	b.binary = path
	if err := b.run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	binary      string
	scale, runs int
	pool, logs  string
	out         io.Writer
	lab         *lab.Lab
	stage       demo.Stage
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

func (b *bench) run(ctx context.Context, only string) (err error) {
	lab := func(do func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error { return b.inLab(ctx, do) }
	}
	parts := []struct {
		name string
		do   func(context.Context) error
	}{{"idle", lab(b.idle)}, {"mount", lab(b.mount)}, {"move", lab(b.move)}, {"downtime", lab(b.downtime)}, {"large", lab(b.large)}, {"push", lab(b.push)}, {"history", lab(b.history)}, {"memory", lab(b.memory)}, {"control", b.control}}
	b.machine()
	for _, p := range parts {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		b.say("\n## %s", p.name)
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (b *bench) machine() {
	var u syscall.Utsname
	release := ""
	if syscall.Uname(&u) == nil {
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			release += string(rune(c))
		}
	}
	b.say("machine: %d cores, Linux %s, %s", runtime.NumCPU(), release, runtime.Version())
}

// inLab gives a measurement three fresh hosts.
func (b *bench) inLab(ctx context.Context, do func(context.Context) error) (err error) {
	if b.lab, err = lab.Up(ctx, lab.Options{Name: "bench", Nodes: 3, Progress: io.Discard}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Down(context.WithoutCancel(ctx))) }()
	b.stage = demo.Stage{Lab: b.lab, Binary: b.binary}
	if err := b.lab.StartCluster(ctx, lab.ClusterOptions{Binary: b.binary, PoolSize: b.pool, Verbose: b.logs != ""}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.keepLogs()) }()
	return do(ctx)
}

// keepLogs copies what the agents wrote, before the lab goes.
func (b *bench) keepLogs() error {
	if b.logs == "" {
		return nil
	}
	for _, h := range b.lab.Hosts() {
		text, err := os.ReadFile(h.Log("agent"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.logs, h.Name()+".log"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) load(ctx context.Context, image func(context.Context, string, io.Writer) (string, error)) error {
	path, err := image(ctx, "", b.out)
	if err != nil {
		return err
	}
	return b.lab.LoadImage(ctx, path)
}

// median and the range of a sample.
func median(list []float64) (mid, low, high float64) {
	s := slices.Sorted(slices.Values(list))
	if len(s) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	mid = s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return mid, s[0], s[len(s)-1]
}

func (b *bench) figure(what string, list []float64, unit string) {
	mid, low, high := median(list)
	b.say("| %s | %.2f %s | %.2f to %.2f | %d |", what, mid, unit, low, high, len(list))
}

func (b *bench) header() {
	b.say("| what | median | range | runs |\n|---|---|---|---|")
}

// seconds runs a command in a host and gives how long it took there.
func (b *bench) seconds(ctx context.Context, host string, script string) (float64, error) {
	h, err := b.lab.Host(host)
	if err != nil {
		return 0, err
	}
	out, err := h.Exec(ctx, "bash", "-c", "set -e; begin=$(date +%s%N); { "+script+"; } >/dev/null; echo $(( $(date +%s%N) - begin ))")
	if err != nil {
		return 0, err
	}
	var ns int64
	if _, err := fmt.Sscan(strings.TrimSpace(out), &ns); err != nil {
		return 0, fmt.Errorf("read %q: %w", out, err)
	}
	return time.Duration(ns).Seconds(), nil
}
