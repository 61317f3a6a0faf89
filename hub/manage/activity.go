package manage

import (
	"context"
	"net/http"
	"time"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
)

func (s *Server) activityRoutes() {
	add(s, route{"list-activity", http.MethodGet, "/activity", "What happened: of a repository (those who may write it), of yourself, or everything (operators)"}, s.activity)
	add(s, route{"status", http.MethodGet, "/status", "How the hub is (operators)"}, s.status)
	add(s, route{"sweep", http.MethodPost, "/sweep", "Begin a sweep now; status says when it has ended (operators)"}, s.sweep)
}

// maxWait bounds how long a request waits for news.
const maxWait = time.Minute

type activityIn struct {
	Repository string `query:"repository" doc:"left out: all that you may see"`
	User       string `query:"user" doc:"left out: everybody's"`
	Before     int64  `query:"before" minimum:"0" doc:"the newest first, with a smaller id than this"`
	After      int64  `query:"after" minimum:"-1" default:"-1" doc:"the oldest first, with a larger id than this"`
	Limit      int    `query:"limit" minimum:"0" maximum:"1000" doc:"0: 100"`
	Wait       int    `query:"wait" minimum:"0" maximum:"60" doc:"with after: seconds to wait for news, when there is none yet"`
}

func (s *Server) activity(ctx context.Context, in *activityIn) ([]hub.Event, error) {
	const op = "list activity"
	who := identityOf(ctx)
	var err error
	switch {
	case in.Repository != "":
		_, _, err = s.may(ctx, op, in.Repository, hub.Write)
	case who.User == "":
		err = logIn(op)
	case in.User != who.User:
		_, err = operator(ctx, op, in.User)
	}
	if err != nil {
		return nil, err
	}
	q := store.ActivityQuery{Repository: in.Repository, User: in.User, Before: in.Before, Limit: in.Limit}
	if q.Limit == 0 {
		q.Limit = 100
	}
	if in.After >= 0 {
		q.After = &in.After
	}
	list, err := s.o.Store.Activity(ctx, q)
	if err != nil || len(list) > 0 || q.After == nil || in.Wait == 0 {
		return list, err
	}
	return s.news(ctx, q, min(time.Duration(in.Wait)*time.Second, maxWait))
}

// news waits for lines of the log. They may be written by another process of the hub, of
// which nobody here is told: so the database is asked again and again.
func (s *Server) news(ctx context.Context, q store.ActivityQuery, wait time.Duration) ([]hub.Event, error) {
	end := time.NewTimer(wait)
	defer end.Stop()
	again := time.NewTicker(s.o.PollEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return []hub.Event{}, nil // nobody listens any more
		case <-end.C:
			return []hub.Event{}, nil
		case <-s.o.Stopping:
			return []hub.Event{}, nil
		case <-again.C:
			list, err := s.o.Store.Activity(ctx, q)
			if err != nil || len(list) > 0 {
				return list, err
			}
		}
	}
}

func (s *Server) status(ctx context.Context, _ *struct{}) (hub.Status, error) {
	out := hub.Status{Version: s.o.Version}
	if _, err := operator(ctx, "look at the hub", ""); err != nil {
		return out, err
	}
	var err error
	if out.Usage, err = s.o.Store.Usage(ctx); err != nil {
		return out, err
	}
	if out.Damaged, err = s.o.Store.Damaged(ctx); err != nil {
		return out, err
	}
	last, err := s.o.Store.LastSweep(ctx)
	if err != nil {
		return out, err
	}
	if f := last.Figures; !last.Begun.IsZero() {
		out.Sweep = &hub.SweepReport{
			Begun: last.Begun, Ended: last.Ended, Commits: f.Commits, Manifests: f.Manifests, Blobs: f.Blobs,
			Removed: f.Removed, Bytes: f.Bytes, Uploads: f.Uploads,
		}
	}
	return out, nil
}

func (s *Server) sweep(ctx context.Context, _ *struct{}) (done, error) {
	if _, err := operator(ctx, "sweep", ""); err != nil {
		return done{}, err
	}
	return done{}, s.o.Sweep(ctx)
}
