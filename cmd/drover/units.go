package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
)

// unitNames are the host's units, in the order in which they start.
var unitNames = []string{"state", "agent"}

// startUnits brings the host's units up: by systemd where it runs, detached
// if asked, otherwise in the foreground until the command is ended.
func startUnits(ctx context.Context, p places, detach, external bool) error {
	names := unitNames
	if external {
		names = names[1:]
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		for _, n := range names {
			if out, err := exec.CommandContext(ctx, "systemctl", "enable", "--now", "drover-"+n+".service").CombinedOutput(); err != nil {
				return &api.Error{Kind: api.Unavailable, Op: "start unit", Object: "drover-" + n, Reason: string(out), Err: err, Next: "install the units with make install or the Debian package, or use --detach"}
			}
		}
		return nil
	}
	if !detach {
		return superviseUnits(ctx, p, names)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.runDir, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(p.dataDir, "drover.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"units"}, p.args()...)
	if external {
		args = append(args, "--external")
	}
	c := exec.Command(self, args...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return err
	}
	fmt.Printf("the units run in the background (process %d, log %s)\n", c.Process.Pid, log.Name())
	return c.Process.Release()
}

// unitsCommand runs the units as children and starts again what ends.
func unitsCommand() *cobra.Command {
	var p places
	var external bool
	c := &cobra.Command{
		Use:   "units",
		Short: "Run this host's units where there is no systemd, and start again what ends",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			names := unitNames
			if external {
				names = names[1:]
			}
			return superviseUnits(c.Context(), p, names)
		},
	}
	p.flags(c.Flags())
	c.Flags().BoolVar(&external, "external", false, "the state store is an external etcd")
	return c
}

func superviseUnits(ctx context.Context, p places, names []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range names {
		group.Go(func() error {
			for ctx.Err() == nil {
				c := exec.CommandContext(ctx, self, append([]string{n}, p.args()...)...)
				c.Stdout, c.Stderr = os.Stdout, os.Stderr
				c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
				c.WaitDelay = 10 * time.Second
				if err := c.Run(); err != nil && ctx.Err() == nil {
					fmt.Fprintf(os.Stderr, "drover: unit %s ended (%v); starting it again\n", n, err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// awaitAgent waits until the host's agent answers and reaches the cluster.
func awaitAgent(ctx context.Context, socket string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := client.Unix(socket, nil)
	var last error = errors.New("it was not asked yet")
	for ctx.Err() == nil {
		var s api.ClusterStatus
		last = c.Do(ctx, "GET", "/v1/status", nil, &s)
		if last == nil && s.State == "healthy" {
			return nil
		}
		if last == nil {
			last = errors.New(s.State)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return &api.Error{Kind: api.Unavailable, Op: "start agent", Reason: "it is not ready after " + patience.String(), Err: last, Next: "see its log: journalctl -u drover-agent, or drover.log in the data directory"}
}
