package main

import (
	"errors"
	"fmt"
	"net/http"

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
			if err := t.changeNode(c, args[0], cluster.NodeChange{Draining: &draining}); err != nil || stop {
				return err
			}
			return t.drain(c, args[0], to)
		},
	}
	c.Flags().BoolVar(&stop, "stop", false, "stop draining: the node may be used again")
	c.Flags().StringVar(&to, "to", "", "node to move to (default: in turn to those with most space)")
	return c
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
	for _, v := range list {
		for branch, h := range v.Heads {
			if h.Node != from {
				continue
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
				failed = append(failed, fmt.Errorf("%s stays: %w", v.Name, err))
				continue
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is on %s\n", v.Name, target)
		}
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
