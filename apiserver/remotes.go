package apiserver

import (
	"context"
	"net/http"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/ledger"
)

// Remotes is what this node's agent does with places outside the cluster.
type Remotes interface {
	SetRemote(ctx context.Context, volume string, r api.NameRemote) (api.Volume, error)
	Push(ctx context.Context, volume string, r api.StartPush, by string) (api.Job, error)
	Fetch(ctx context.Context, volume string, r api.StartFetch, by string) (api.Job, error)
	Clone(ctx context.Context, r api.CloneVolume, by string) (api.Job, error)
	Verify(ctx context.Context, volume string, r api.VerifyRemote, by string) (api.Job, error)
	LsRemote(ctx context.Context, volume, remote string, commits bool) (api.RemoteListing, error)
	PruneRemote(ctx context.Context, volume, remote string, k api.Keep, dryRun bool, by string) (api.Job, error)
	Job(ctx context.Context, id string, wait bool) (api.Job, error)
	Jobs() []api.Job
	CancelJob(id string) error
}

func (s *Server) remoteRoutes() {
	volume := func(id, method, path, summary string, need auth.Permission) route {
		return route{id, method, "/v1/volumes/{ref}/" + path, summary, need, false, false}
	}
	add(s, volume("set-remote", http.MethodPost, "remotes", "Name a place that keeps a volume's commits", auth.Change), s.setRemote)
	add(s, volume("remove-remote", http.MethodDelete, "remotes/{remote}", "Forget the name of a place that keeps commits; what is there stays", auth.Change), s.removeRemote)
	add(s, volume("list-remote", http.MethodGet, "remotes/{remote}/refs", "List what a remote has", auth.Look), s.lsRemote)
	add(s, volume("prune-remote", http.MethodPost, "remotes/{remote}/prune", "Drop the commits at a remote that a retention policy does not keep, and what nothing leads to", auth.Change), s.pruneRemote)
	add(s, volume("push", http.MethodPost, "push", "Bring a branch's commits to a remote", auth.Change), s.push)
	add(s, volume("fetch", http.MethodPost, "fetch", "Bring a remote's branch here, and let a branch follow it", auth.Change), s.fetch)
	add(s, volume("verify", http.MethodPost, "verify", "Read a remote's branch back and check every byte", auth.Look), s.verify)
	add(s, route{"clone-volume", http.MethodPost, "/v1/clone", "Make a volume from a branch of a remote", auth.Change, false, false}, s.clone)
	add(s, route{"list-jobs", http.MethodGet, "/v1/jobs", "List pushes, fetches and the like of a node", auth.Look, false, true}, s.jobs)
	add(s, route{"get-job", http.MethodGet, "/v1/jobs/{job}", "How a push, fetch or the like stands", auth.Look, false, true}, s.job)
	add(s, route{"cancel-job", http.MethodDelete, "/v1/jobs/{job}", "End a push, fetch or the like; it can be begun again", auth.Change, false, false}, s.cancelJob)
}

func (s *Server) setRemote(ctx context.Context, in *struct {
	VolumeRef
	Body api.NameRemote
},
) (api.Volume, error) {
	const op = "set remote"
	v, node, _, err := s.at(ctx, op, in.Ref, "")
	if err != nil {
		return v, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "remotes", in.Body, func() (api.Volume, error) {
		return s.cfg.Agent.SetRemote(ctx, v.ID, in.Body)
	})
}

// RemoteRef names a remote of a volume in a path.
type RemoteRef struct {
	VolumeRef
	Remote string `path:"remote" doc:"its name; - is origin, or the only one there is"`
}

// remote is the name as the agent takes it.
func (in RemoteRef) remote() string {
	if in.Remote == "-" {
		return ""
	}
	return in.Remote
}

func (in RemoteRef) path(rest string) string { return "remotes/" + escape(in.Remote) + rest }

// keeper is a volume with the node that speaks to its remotes.
func (s *Server) keeper(ctx context.Context, op string, in RemoteRef) (api.Volume, string, error) {
	v, node, _, err := s.at(ctx, op, in.Ref, "")
	return v, node, err
}

func (s *Server) removeRemote(ctx context.Context, in *RemoteRef) (api.Volume, error) {
	v, err := s.cfg.Ledger.Volume(ctx, in.Ref)
	if err != nil {
		return v, err
	}
	if _, known := v.Remotes[in.Remote]; !known {
		return v, &api.Error{Kind: api.NotFound, Op: "remove remote", Object: v.Name, Reason: "it has no remote " + in.Remote, Next: "drover remote ls " + v.Name + " shows those it has"}
	}
	return s.cfg.Ledger.Change(ctx, v.ID, ledger.Change{Remote: &ledger.SetRemote{Name: in.Remote}})
}

func (s *Server) lsRemote(ctx context.Context, in *struct {
	RemoteRef
	Commits bool `query:"commits" doc:"every commit, too"`
},
) (api.RemoteListing, error) {
	const op = "list remote"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return api.RemoteListing{}, err
	}
	path := in.path("/refs")
	if in.Commits {
		path += "?commits=true"
	}
	return near(ctx, s, op, node, v.ID, http.MethodGet, path, nil, func() (api.RemoteListing, error) {
		return s.cfg.Agent.LsRemote(ctx, v.ID, in.remote(), in.Commits)
	})
}

func (s *Server) pruneRemote(ctx context.Context, in *struct {
	RemoteRef
	Body api.PruneCommits
},
) (api.Job, error) {
	const op = "prune remote"
	v, node, err := s.keeper(ctx, op, in.RemoteRef)
	if err != nil {
		return api.Job{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, in.path("/prune"), in.Body, func() (api.Job, error) {
		return s.cfg.Agent.PruneRemote(ctx, v.ID, in.remote(), in.Body.Keep, in.Body.DryRun, by(ctx))
	})
}

func (s *Server) push(ctx context.Context, in *struct {
	VolumeRef
	Body api.StartPush
},
) (api.Job, error) {
	const op = "push"
	if named, err := s.cfg.Ledger.Volume(ctx, in.Ref); err == nil {
		// What is no branch but a tag is pushed as a tag.
		_, head := named.Heads[in.Body.Branch]
		if _, tag := named.Tags[in.Body.Branch]; tag && !head {
			in.Body.Tags, in.Body.Branch = append(in.Body.Tags, in.Body.Branch), ""
		}
	}
	v, node, branch, err := s.at(ctx, op, in.Ref, in.Body.Branch)
	if err != nil {
		return api.Job{}, err
	}
	in.Body.Branch = branch
	return near(ctx, s, op, node, v.ID, http.MethodPost, "push", in.Body, func() (api.Job, error) {
		return s.cfg.Agent.Push(ctx, v.ID, in.Body, by(ctx))
	})
}

func (s *Server) fetch(ctx context.Context, in *struct {
	VolumeRef
	Body api.StartFetch
},
) (api.Job, error) {
	const op = "fetch"
	v, node, _, err := s.at(ctx, op, in.Ref, in.Body.Into)
	if err != nil {
		return api.Job{}, err
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "fetch", in.Body, func() (api.Job, error) {
		return s.cfg.Agent.Fetch(ctx, v.ID, in.Body, by(ctx))
	})
}

func (s *Server) verify(ctx context.Context, in *struct {
	VolumeRef
	Body api.VerifyRemote
},
) (api.Job, error) {
	const op = "verify"
	v, node, _, err := s.at(ctx, op, in.Ref, "")
	if err != nil {
		return api.Job{}, err
	}
	if in.Body.Check != nil {
		if err := auth.Allow(identityOf(ctx), auth.Change); err != nil {
			return api.Job{}, err // it runs a command of the user's
		}
	}
	return near(ctx, s, op, node, v.ID, http.MethodPost, "verify", in.Body, func() (api.Job, error) {
		return s.cfg.Agent.Verify(ctx, v.ID, in.Body, by(ctx))
	})
}

func (s *Server) clone(ctx context.Context, in *struct{ Body api.CloneVolume }) (out api.Job, err error) {
	if node := in.Body.Node; node != "" && node != s.cfg.Node {
		err = s.call(ctx, node, http.MethodPost, "/v1/clone", in.Body, &out)
		return out, err
	}
	return s.cfg.Agent.Clone(ctx, in.Body, by(ctx))
}

type jobIn struct {
	Job  string `path:"job"`
	Node string `query:"node" doc:"that does it; empty is the node that is asked"`
	Wait bool   `query:"wait" doc:"answer when it is over"`
}

func (s *Server) jobs(ctx context.Context, in *struct {
	Node string `query:"node" doc:"empty is the node that is asked"`
},
) (out []api.Job, err error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		err = s.call(ctx, in.Node, http.MethodGet, "/v1/jobs", nil, &out)
		return out, err
	}
	return s.cfg.Agent.Jobs(), nil
}

func (s *Server) job(ctx context.Context, in *jobIn) (out api.Job, err error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		path := "/v1/jobs/" + escape(in.Job)
		if in.Wait {
			path += "?wait=true"
		}
		err = s.call(ctx, in.Node, http.MethodGet, path, nil, &out)
		return out, err
	}
	return s.cfg.Agent.Job(ctx, in.Job, in.Wait)
}

func (s *Server) cancelJob(ctx context.Context, in *jobIn) (none, error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		return none{}, s.call(ctx, in.Node, http.MethodDelete, "/v1/jobs/"+escape(in.Job), nil, nil)
	}
	return none{}, s.cfg.Agent.CancelJob(in.Job)
}
