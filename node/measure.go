package node

import (
	"context"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// assigned gives the volumes that concern this node.
func (u *unit) assigned(ctx context.Context) ([]api.Volume, error) {
	var list []api.Volume
	_, err := state.Assigned.All(ctx, u.store, u.node.Name+"/", func(_ string, v api.Volume, _ int64) error {
		list = append(list, v)
		return nil
	})
	return list, err
}

// countEvents measures what the events tell of: moves that ended, above all.
func (u *unit) countEvents(ctx context.Context) {
	after := ""
	for {
		list, more := u.events.After(after)
		for _, e := range list {
			after = e.ID
			u.metrics.Event(e)
			if e.Type != "volume.moved" && e.Type != "volume.move-cancelled" {
				continue
			}
			if p, err := u.agent.Move(e.Data["move"]); err == nil {
				u.metrics.Moved(p)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
	}
}
