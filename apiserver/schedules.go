package apiserver

import (
	"context"
	"net/http"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/ledger"
)

// Schedules is what this node's agent does with what happens by itself.
type Schedules interface {
	Prune(ctx context.Context, volume string, k api.Keep, dryRun bool) ([]string, error)
}

func (s *Server) scheduleRoutes() {
	volume := func(id, method, path, summary string) route {
		return route{id, method, "/v1/volumes/{ref}/" + path, summary, auth.Change, false, false}
	}
	add(s, volume("set-schedule", http.MethodPut, "schedules/{name}", "Say what happens to a volume by itself"), s.setSchedule)
	add(s, volume("remove-schedule", http.MethodDelete, "schedules/{name}", "End what happens to a volume by itself"), s.removeSchedule)
	add(s, volume("prune-commits", http.MethodPost, "prune", "Remove the commits that a retention policy does not keep"), s.prune)
}

type scheduleIn struct {
	VolumeRef
	Name string `path:"name" doc:"the schedule's"`
	Body api.Schedule
}

func (s *Server) setSchedule(ctx context.Context, in *scheduleIn) (api.Volume, error) {
	return s.changeSchedule(ctx, in.Ref, ledger.SetSchedule{Name: in.Name, Schedule: &in.Body})
}

func (s *Server) removeSchedule(ctx context.Context, in *struct {
	VolumeRef
	Name string `path:"name" doc:"the schedule's"`
},
) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	if _, known := v.Schedules[in.Name]; !known {
		return v, &api.Error{Kind: api.NotFound, Op: "remove schedule", Object: v.Name, Reason: "it has no schedule " + in.Name, Next: "drover schedule ls " + v.Name + " shows those it has"}
	}
	return s.changeSchedule(ctx, v.ID, ledger.SetSchedule{Name: in.Name})
}

func (s *Server) changeSchedule(ctx context.Context, ref string, c ledger.SetSchedule) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, ref)
	if err != nil {
		return v, err
	}
	return s.cfg.Ledger.Change(ctx, v.ID, ledger.Change{Schedule: &c})
}

func (s *Server) prune(ctx context.Context, in *struct {
	VolumeRef
	Body api.PruneCommits
},
) (api.Pruned, error) {
	const op = "prune commits"
	v, node, _, err := s.at(ctx, op, in.Ref, "")
	if err != nil {
		return api.Pruned{}, err
	}
	if in.Body.Keep == (api.Keep{}) {
		return api.Pruned{}, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "no rule says what to keep", Next: "give one, such as --keep-daily 7"}
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "prune", in.Body, func() (api.Pruned, error) {
		ids, err := s.cfg.Agent.Prune(ctx, v.ID, in.Body.Keep, in.Body.DryRun)
		if ids == nil {
			ids = []string{}
		}
		return api.Pruned{Volume: v.Name, Commits: ids, DryRun: in.Body.DryRun}, err
	})
}
