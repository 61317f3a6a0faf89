package cluster

import (
	"context"
	"fmt"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// versions is what a node said that it speaks.
func versions(newest, oldest int) api.Versions {
	if oldest == 0 {
		oldest = newest
	}
	return api.Versions{Oldest: oldest, Newest: newest}
}

// spoken is what each node speaks that is there now.
func (s *Service) spoken(ctx context.Context) (map[string]api.Versions, map[string]string, error) {
	speak, software := map[string]api.Versions{}, map[string]string{}
	_, err := state.Alive.All(ctx, s.Store, "", func(name string, n api.NodeStatus, _ int64) error {
		if n.API > 0 {
			speak[name], software[name] = versions(n.API, n.Oldest), n.Software
		}
		return nil
	})
	return speak, software, err
}

// Fits refuses, with the reason, that this binary takes part: the records are of
// a format that it does not know, or a node that is there speaks nothing that
// it speaks. What runs on this host goes on meanwhile, without its agent.
func (s *Service) Fits(ctx context.Context) error {
	const op = "take part in the cluster"
	var c api.Cluster
	err := s.Store.View(ctx, func(tx *state.Tx) (err error) {
		c, _, err = state.TheCluster.Get(tx, "cluster")
		return err
	})
	if api.Is(err, api.NotFound) {
		return nil // the first node, which is about to make it
	}
	if err != nil {
		return err
	}
	if c.Format > RecordFormat {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: s.Node, Reason: fmt.Sprintf("the cluster's records have format %d, this version of Drover knows formats up to %d", c.Format, RecordFormat), Next: "install the version that the other nodes run"}
	}
	speak, software, err := s.spoken(ctx)
	if err != nil {
		return err
	}
	for name, theirs := range speak {
		if _, ok := api.Speaks().Common(theirs); !ok && name != s.Node {
			return api.Apart(op, s.Node, api.Speaks(), fmt.Sprintf("%s (Drover %s)", name, software[name]), theirs)
		}
	}
	return nil
}
