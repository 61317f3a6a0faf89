package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
)

func (s *Server) eventRoutes() {
	add(s, route{"list-events", http.MethodGet, "/v1/events", "Events of a node after a given one; waits for the next when there are none", auth.Look, false, true}, s.listEvents)
}

// listEvents answers at once when there are events, and otherwise when one
// comes or the wait is over: a client asks again with the last id it got.
func (s *Server) listEvents(ctx context.Context, in *struct {
	After string `query:"after" doc:"id of the last event that is known"`
	Wait  int    `query:"wait" minimum:"0" maximum:"60" doc:"seconds to wait for an event"`
	Node  string `query:"node" doc:"empty is the node that is asked"`
},
) ([]api.Event, error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		var list []api.Event
		path := fmt.Sprintf("/v1/events?after=%s&wait=%d", escape(in.After), in.Wait)
		err := s.call(ctx, in.Node, http.MethodGet, path, nil, &list)
		return list, err
	}
	deadline := time.After(time.Duration(in.Wait) * time.Second)
	for {
		list, more := s.cfg.Events.After(in.After)
		if len(list) > 0 || in.Wait == 0 {
			if list == nil {
				list = []api.Event{}
			}
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-deadline:
			return []api.Event{}, nil
		case <-more:
		}
	}
}
