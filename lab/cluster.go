package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClusterOptions says how the hosts become one cluster.
type ClusterOptions struct {
	Binary   string // path of drover
	PoolSize string // of each host's default pool, as in "6G"; "" lets it choose
	Verbose  bool   // agents log every action
	// External gives init and join of a host what they need to keep the state
	// in an etcd that is not Drover's; no state unit is started then.
	External func(h *Host) []string
	// Apart makes each host a cluster of its own.
	Apart bool
	// Env is added to the environment of the agents.
	Env []string
}

// StartCluster makes the hosts one cluster, the first one by init and the
// others by join, with each unit as a service of its host.
func (l *Lab) StartCluster(ctx context.Context, o ClusterOptions) error {
	hosts := l.Hosts()
	if o.Apart {
		group, ctx := errgroup.WithContext(ctx)
		for _, h := range hosts {
			group.Go(func() error { return h.setUp(ctx, o, "init", "--cluster-name", l.name+"-"+h.Name()) })
		}
		return group.Wait()
	}
	if err := hosts[0].setUp(ctx, o, "init", "--cluster-name", l.name); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range hosts[1:] {
		token, err := hosts[0].drover(ctx, o, "node", "token")
		if err != nil {
			return err
		}
		group.Go(func() error { return h.setUp(ctx, o, "join", strings.TrimSpace(token)) })
	}
	return group.Wait()
}

// drover runs the binary in the host and gives what it prints.
func (h *Host) drover(ctx context.Context, o ClusterOptions, args ...string) (string, error) {
	var out bytes.Buffer
	err := h.Run(ctx, Cmd{Args: append([]string{o.Binary}, args...), Stdout: &out})
	return out.String(), err
}

// setUp makes the host a node, starts its units and waits for its pool.
func (h *Host) setUp(ctx context.Context, o ClusterOptions, args ...string) error {
	units := []string{"state", "agent"}
	if o.External != nil {
		args, units = append(args, o.External(h)...), units[1:]
	}
	if _, err := h.drover(ctx, o, append(args, "--no-start", "--name", h.Name(), "--advertise", h.Address())...); err != nil {
		return err
	}
	for _, unit := range units {
		s := Service{Name: unit, Args: []string{o.Binary, unit}, Restart: "always", BeforeDocker: true, Notify: true}
		if unit == "agent" {
			s.Env = o.Env
		}
		if o.Verbose {
			s.Args = append(s.Args, "--verbose")
		}
		if err := h.StartService(ctx, s); err != nil {
			return err
		}
	}
	pool := []string{"pool", "add", "default"}
	if o.PoolSize != "" {
		pool = append(pool, "--size", o.PoolSize)
	}
	const patience = 60 * time.Second
	deadline := time.Now().Add(patience)
	for {
		_, err := h.drover(ctx, o, "status")
		if err == nil {
			_, err = h.drover(ctx, o, pool...)
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("node %s has no pool after %v: %w", h.Name(), patience, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
