// Command suite runs Drover's tests as `make test` and `make test-long` do: it
// knows which tests need root, a lab or much time, says what it is about to
// run, and runs each test once. What the tests test it does not know.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/drover-data/drover/lab"
)

// shards is in how many days `make test` has run all long tests once.
const shards = 7

// packages are the Debian packages that tests need besides Go.
var packages = []string{
	"docker.io", "iptables", "nftables", "iproute2", "busybox-static", "btrfs-progs", "zfs-fuse", "xfsprogs", "e2fsprogs",
	"attr", "acl", "fuse3", "podman", "mmdebstrap", "procps", "util-linux", "mount", "ca-certificates", "etcd-server",
}

func main() {
	long := flag.Bool("long", false, "run all long tests, and only those")
	list := flag.Bool("list", false, "only say which test runs in which stage")
	install := flag.Bool("install", false, "only install what the tests need")
	day := flag.Int("day", time.Now().YearDay(), "day of the year, which chooses the shard of long tests")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *long, *list, *install, *day); err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, long, list, install bool, day int) error {
	if install {
		return lab.Require(ctx, os.Stdout, packages...)
	}
	tests, err := collect(".")
	if err != nil {
		return err
	}
	if list {
		for _, s := range stages() {
			for _, t := range tests[s.name] {
				fmt.Printf("%-10s %s\n", s.name, t)
			}
		}
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("these tests mount file systems and make network namespaces: run them as root, or make check for those that need no root")
	}
	if err := lab.Require(ctx, os.Stdout, packages...); err != nil {
		return err
	}
	everything := slices.Concat(slices.Collect(maps.Values(tests))...)
	var failed []error
	// The long ones first: what is printed last then is of tests that always run.
	order := stages()
	slices.SortStableFunc(order, func(a, b stage) int { return longFirst(a) - longFirst(b) })
	for _, s := range order {
		if s.name == "plain" || (long && !slices.Contains(s.tags, "long")) {
			continue // plain tests are make check's
		}
		want := tests[s.name]
		if slices.Contains(s.tags, "long") && !long {
			all := len(want)
			want = shard(want, day, shards)
			fmt.Printf("== %s: shard %d of %d, %d of %d tests (all of them: make test-long)\n", s.name, day%shards+1, shards, len(want), all)
		}
		if err := runStage(ctx, s, want, everything); err != nil {
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(failed...)
}

func longFirst(s stage) int {
	if slices.Contains(s.tags, "long") {
		return 0
	}
	return 1
}

// runStage runs the tests of one stage, in as few calls of go test as run each once.
func runStage(ctx context.Context, s stage, want, everything []test) error {
	if len(want) == 0 {
		return nil
	}
	fmt.Printf("== %s: %d tests\n", s.name, len(want))
	var failed []error
	for _, b := range batches(want, everything) {
		args := []string{"test", "-count=1", "-timeout=30m", "-tags=" + strings.Join(s.tags, ","), "-run=" + b.run}
		if s.alone {
			args = append(args, "-p=1")
		}
		cmd := exec.CommandContext(ctx, "go", append(args, b.pkgs...)...)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = time.Minute
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			failed = append(failed, fmt.Errorf("%s tests: %w", s.name, err))
		}
	}
	return errors.Join(failed...)
}
