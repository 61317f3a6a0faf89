package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/cluster"
)

func nodeDrain(t *talk) *cobra.Command {
	var stop bool
	var to string
	c := &cobra.Command{
		Use:   "drain NAME",
		Short: "Place nothing new on a node and move its volumes, with their containers, away",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			draining := !stop
			if err := exclusive(c, "stop", "to"); err != nil {
				return err
			}
			if err := t.canTake(c, args[0], to); err != nil {
				return err
			}
			if stop || t.output == "table" {
				if err := t.changeNode(c, args[0], cluster.NodeChange{Draining: &draining}); err != nil || stop {
					return err
				}
			} else if err := t.do(c.Context(), http.MethodPost, "/v1/nodes/"+url.PathEscape(args[0]), cluster.NodeChange{Draining: &draining}, nil); err != nil {
				return err // one document is printed: what was moved
			}
			return t.drain(c, args[0], to)
		},
	}
	c.Flags().BoolVar(&stop, "stop", false, "stop draining: the node may be used again")
	c.Flags().StringVar(&to, "to", "", "node to move to (default: in turn to those with most space)")
	return c
}

// canTake refuses a target that can take nothing, before anything is changed.
func (t *talk) canTake(c *cobra.Command, from, to string) error {
	const op = "drain node"
	if to == "" {
		return nil
	}
	nodes, err := t.nodes(c)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == to })
	switch {
	case to == from:
		return &api.Error{Kind: api.Invalid, Op: op, Object: from, Reason: "its volumes cannot be moved to itself", Next: "name another node with --to, or leave it out"}
	case i < 0:
		return &api.Error{Kind: api.NotFound, Op: op, Object: from, Reason: "the cluster has no node " + to + " to move to", Next: "drover node ls lists them"}
	case nodes[i].Draining:
		return &api.Error{Kind: api.Conflict, Op: op, Object: from, Reason: to + " is being drained itself", Next: "name another node with --to, or drover node drain --stop " + to}
	}
	return nil
}

// drain moves every head of a node away, one after the other, and says what
// could not move and why.
func (t *talk) drain(c *cobra.Command, from, to string) error {
	ctx := c.Context()
	var list []api.Volume
	if err := t.do(ctx, http.MethodGet, "/v1/volumes", nil, &list); err != nil {
		return err
	}
	var failed []error
	moved := []string{}
	for _, v := range list {
		for _, branch := range slices.Sorted(maps.Keys(v.Heads)) {
			if v.Heads[branch].Node != from {
				continue
			}
			name := v.Name
			if len(v.Heads) > 1 {
				name += "@" + branch
			}
			target := to
			if target == "" {
				var err error
				if target, err = t.roomiest(c, from); err != nil {
					return err
				}
			}
			var plan api.MovePlan
			in := api.StartMove{To: target, Branch: branch, Options: api.MoveOptions{Users: api.UsersMove}}
			err := t.do(ctx, http.MethodPost, volumePath(v.ID, "/move"), in, &plan)
			if err == nil {
				_, err = t.followMove(ctx, c.ErrOrStderr(), plan)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("%s stays: %w", name, err))
				continue
			}
			moved = append(moved, name)
			if t.output == "table" {
				fmt.Fprintf(c.OutOrStdout(), "%s is on %s\n", name, target)
			}
		}
	}
	if t.output != "table" {
		failed = append(failed, t.print(c.OutOrStdout(), map[string]any{"node": from, "moved": moved}, nil))
	}
	return errors.Join(failed...)
}

// roomiest is the online node with most free space.
func (t *talk) roomiest(c *cobra.Command, not string) (string, error) {
	nodes, err := t.nodes(c)
	if err != nil {
		return "", err
	}
	best, free := "", int64(-1)
	for _, n := range nodes {
		if n.Name == not || !n.Status.Online || n.Draining {
			continue
		}
		for _, p := range n.Status.Pools {
			if p.State == api.PoolReady && p.Free > free {
				best, free = n.Name, p.Free
			}
		}
	}
	if best == "" {
		return "", &api.Error{Kind: api.Unavailable, Op: "drain node", Object: not, Reason: "no other node is online with a pool that is ready", Next: "add a node, or say where to with --to"}
	}
	return best, nil
}
