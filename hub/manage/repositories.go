package manage

import (
	"context"
	"net/http"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func (s *Server) repositoryRoutes() {
	add(s, route{"list-repositories", http.MethodGet, "/repositories", "List the repositories that you may read, in order"}, s.listRepositories)
	add(s, route{"create-repository", http.MethodPost, "/repositories", "Make an empty repository; a first push makes it as well"}, s.createRepository)
	add(s, route{"inspect-repository", http.MethodGet, "/repositories/{repository}", "Look a repository up; slashes in its name are written %2F, here and below"}, s.getRepository)
	add(s, route{"change-repository", http.MethodPatch, "/repositories/{repository}", "Change who reads it, quota, protected branches, retention (its admins)"}, s.changeRepository)
	add(s, route{"delete-repository", http.MethodDelete, "/repositories/{repository}", "Remove a repository; forks of it stay whole (its admins)"}, s.deleteRepository)
	add(s, route{"repository-content", http.MethodGet, "/repositories/{repository}/content", "List branches, tags and commits"}, s.content)
	add(s, route{"fork-repository", http.MethodPost, "/repositories/{repository}/forks", "Make a repository with all that another has; no bytes are copied"}, s.fork)
	add(s, route{"list-grants", http.MethodGet, "/repositories/{repository}/grants", "List who has a right on a repository of their own (its admins)"}, s.listGrants)
	add(s, route{"set-grant", http.MethodPut, "/repositories/{repository}/grants/{user}", "Give a user a right on a repository; none takes it away (its admins)"}, s.setGrant)
}

// maxPage bounds a page of a list.
const maxPage = 1000

func (s *Server) listRepositories(ctx context.Context, in *struct {
	After string `query:"after" doc:"the last name of the page before"`
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"0: 1000"`
},
) ([]hub.Repository, error) {
	if in.Limit == 0 {
		in.Limit = maxPage
	}
	return s.o.Store.Repositories(ctx, identityOf(ctx), in.After, in.Limit)
}

func checkKeep(op, object string, k *api.Keep) error {
	if k != nil && (min(k.Last, k.Hourly, k.Daily, k.Weekly, k.Monthly, k.Yearly) < 0 || k.Within < 0) {
		return &api.Error{Kind: api.Invalid, Op: op, Object: object, Reason: "a rule of retention is below 0"}
	}
	return nil
}

type createRepository struct{ Body hub.NewRepository }

func (in *createRepository) object() string { return in.Body.Name }

func (s *Server) createRepository(ctx context.Context, in *createRepository) (hub.RepositoryDetail, error) {
	const op = "create repository"
	r := hub.Repository{Name: in.Body.Name, Protected: []string{}}
	in.Body.Apply(&r)
	need := hub.Write
	if r.Public || r.Quota != 0 || len(r.Protected) > 0 || r.Keep != nil {
		need = hub.Admin // rules are for admins, from the beginning on
	}
	who, right, err := s.may(ctx, op, r.Name, need)
	if err == nil {
		err = checkKeep(op, r.Name, in.Body.Keep)
	}
	if err != nil {
		return hub.RepositoryDetail{}, err
	}
	if err := s.o.Store.CreateRepository(ctx, who, r); err != nil {
		return hub.RepositoryDetail{}, err
	}
	r, err = s.o.Store.Repository(ctx, r.Name)
	return hub.RepositoryDetail{Repository: r, Right: right}, err
}

// RepositoryIn names a repository.
type RepositoryIn struct {
	Repository string `path:"repository" doc:"namespace%2Fname…"`
}

func (in *RepositoryIn) object() string { return in.Repository }

func (s *Server) getRepository(ctx context.Context, in *RepositoryIn) (hub.RepositoryDetail, error) {
	_, right, err := s.may(ctx, "inspect repository", in.Repository, hub.Read)
	if err != nil {
		return hub.RepositoryDetail{}, err
	}
	r, err := s.o.Store.Repository(ctx, in.Repository)
	return hub.RepositoryDetail{Repository: r, Right: right}, err
}

type changeRepository struct {
	RepositoryIn
	Body hub.ChangeRepository
}

func (s *Server) changeRepository(ctx context.Context, in *changeRepository) (hub.RepositoryDetail, error) {
	who, right, err := s.may(ctx, "change repository", in.Repository, hub.Admin)
	if err != nil {
		return hub.RepositoryDetail{}, err
	}
	if err := checkKeep("change repository", in.Repository, in.Body.Keep); err != nil {
		return hub.RepositoryDetail{}, err
	}
	r, err := s.o.Store.ChangeRepository(ctx, who, in.Repository, in.Body.Apply)
	return hub.RepositoryDetail{Repository: r, Right: right}, err
}

func (s *Server) deleteRepository(ctx context.Context, in *RepositoryIn) (done, error) {
	who, _, err := s.may(ctx, "delete repository", in.Repository, hub.Admin)
	if err != nil {
		return done{}, err
	}
	return done{}, s.o.Store.DeleteRepository(ctx, who, in.Repository)
}

func (s *Server) content(ctx context.Context, in *RepositoryIn) (hub.Content, error) {
	if _, _, err := s.may(ctx, "list names", in.Repository, hub.Read); err != nil {
		return hub.Content{}, err
	}
	return s.o.Store.Content(ctx, in.Repository)
}

type fork struct {
	RepositoryIn
	Body hub.NewFork
}

func (s *Server) fork(ctx context.Context, in *fork) (hub.RepositoryDetail, error) {
	const op = "fork repository"
	if _, _, err := s.may(ctx, op, in.Repository, hub.Read); err != nil {
		return hub.RepositoryDetail{}, err
	}
	need := hub.Write
	if in.Body.Public {
		need = hub.Admin
	}
	who, right, err := s.may(ctx, op, in.Body.Name, need)
	if err != nil {
		return hub.RepositoryDetail{}, err
	}
	if err := s.o.Store.Fork(ctx, who, in.Repository, hub.Repository{Name: in.Body.Name, Public: in.Body.Public}); err != nil {
		return hub.RepositoryDetail{}, err
	}
	r, err := s.o.Store.Repository(ctx, in.Body.Name)
	return hub.RepositoryDetail{Repository: r, Right: right}, err
}

func (s *Server) listGrants(ctx context.Context, in *RepositoryIn) ([]hub.Member, error) {
	if _, _, err := s.may(ctx, "list rights", in.Repository, hub.Admin); err != nil {
		return nil, err
	}
	if _, err := s.o.Store.Repository(ctx, in.Repository); err != nil {
		return nil, err
	}
	return s.o.Store.Grants(ctx, in.Repository)
}

type setGrant struct {
	RepositoryIn
	User string `path:"user"`
	Body hub.SetRight
}

func (s *Server) setGrant(ctx context.Context, in *setGrant) (hub.Member, error) {
	m := hub.Member{User: in.User, Right: in.Body.Right}
	who, _, err := s.may(ctx, "set right", in.Repository, hub.Admin)
	if err != nil {
		return m, err
	}
	return m, s.o.Store.SetGrant(ctx, who, in.Repository, m)
}
