// Package manage is the hub's REST API under /api/v1: users, tokens, namespaces,
// repositories, webhooks, activity. It knows who asks, whether they may, and asks the
// database; which rules hold in a transaction it does not know. The OpenAPI
// description is made from the Go types.
package manage

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
	"github.com/drover-data/drover/internal/apierror"
)

// Options are what the server stands on.
type Options struct {
	Store   *store.Store
	Version string
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: none
	// Sweep begins a sweep, and returns at once; InUse while one runs.
	Sweep func(ctx context.Context) error
	// Ping sends a test to a webhook.
	Ping func(ctx context.Context, w hub.Webhook) hub.Attempt
	// CheckURL refuses an address that webhooks cannot have.
	CheckURL func(address string) error
	// PollEvery is how often the log is looked at for who waits for news; 0: a second. The news may
	// come from another process of the hub.
	PollEvery time.Duration
	// Stopping is closed when the hub goes down: who waits for news is answered then. Nil: never.
	Stopping <-chan struct{}
}

// Server serves the API.
type Server struct {
	o   Options
	mux *http.ServeMux
	api huma.API
	// guarded refuses what a page of another site has a browser send.
	guarded http.Handler
}

// Prefix is what paths of the API begin with.
const Prefix = "/api/v1"

// New makes the routes.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.PollEvery == 0 {
		o.PollEvery = time.Second
	}
	s := &Server{o: o, mux: http.NewServeMux()}
	hc := huma.DefaultConfig("Drover hub", "1")
	hc.Info.Description = "A registry with people: users, rights, repositories and what happens to them."
	hc.DocsPath, hc.CreateHooks = "", nil
	hc.OpenAPIPath = Prefix + "/openapi"
	hc.SchemasPath = ""
	hc.Components = &huma.Components{SecuritySchemes: map[string]*huma.SecurityScheme{
		"basic": {Type: "http", Scheme: "basic", Description: "a user's name and token"}, "bearer": {Type: "http", Scheme: "bearer", Description: "a token alone"},
	}}
	s.api = humago.New(s.mux, hc)
	s.userRoutes()
	s.namespaceRoutes()
	s.repositoryRoutes()
	s.webhookRoutes()
	s.activityRoutes()
	s.guarded = http.NewCrossOriginProtection().Handler(s.mux)
	return s
}

// OpenAPI is the description of the API, version 3.1, as YAML.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().YAML() }

type identityKey struct{}

func identityOf(ctx context.Context) hub.Identity {
	who, _ := ctx.Value(identityKey{}).(hub.Identity)
	return who
}

// ServeHTTP answers what is below Prefix.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	who, err := s.Identify(r)
	if err != nil {
		apierror.Write(w, err)
		return
	}
	if _, pattern := s.mux.Handler(r); pattern == "" {
		apierror.Write(w, &api.Error{Kind: api.NotFound, Op: "ask the hub", Object: r.Method + " " + r.URL.Path, Reason: "the API has no such path", Next: "drover hub openapi describes it"})
		return
	}
	s.guarded.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
}

// Identify finds who asks, by Basic authentication or by a token alone (RFC 6750).
func (s *Server) Identify(r *http.Request) (hub.Identity, error) {
	head := r.Header.Get("Authorization")
	if head == "" {
		return hub.Identity{}, nil
	}
	user, secret, ok := r.BasicAuth()
	if scheme, text, _ := strings.Cut(head, " "); !ok && strings.EqualFold(scheme, "Bearer") {
		user, secret, ok = "", strings.TrimSpace(text), true
	} else if user == "" {
		ok = false
	}
	if !ok || secret == "" {
		return hub.Identity{}, &api.Error{Kind: api.Unauthenticated, Op: "log in", Reason: "the login cannot be read", Next: "send a user's name and token (Basic), or a token (Bearer)"}
	}
	return s.o.Store.Identify(r.Context(), user, secret)
}

// route is one operation.
type route struct{ id, method, path, summary string }

// maxBody bounds a request's body.
const maxBody = 1 << 20

// add registers a route: changes are logged, errors get their status.
func add[I, O any](s *Server, r route, f func(ctx context.Context, in *I) (O, error)) {
	type output struct{ Body O }
	op := huma.Operation{
		OperationID: r.id, Method: r.method, Path: Prefix + r.path, Summary: r.summary, MaxBodyBytes: maxBody, DefaultStatus: http.StatusOK,
		Security: []map[string][]string{{"basic": {}}, {"bearer": {}}},
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*output, error) {
		out, err := f(ctx, in)
		if r.method != http.MethodGet {
			s.audit(ctx, r, in, err)
		}
		if err != nil {
			if k := api.KindOf(err); k == api.Internal || k == api.Unavailable {
				s.o.Log.ErrorContext(ctx, "request failed", "did", r.id, "error", err)
			}
			return nil, apierror.Of(err)
		}
		return &output{out}, nil
	})
}

// done is the answer of what has nothing to say.
type done struct{}

// named is a request that can say what it is about.
type named interface{ object() string }

func (s *Server) audit(ctx context.Context, r route, in any, err error) {
	object, outcome := "", "ok"
	if n, ok := in.(named); ok {
		object = n.object()
	}
	if err != nil {
		outcome = string(api.KindOf(err))
	}
	who := identityOf(ctx)
	s.o.Log.InfoContext(ctx, "audit", "user", who.User, "token", who.Token, "did", r.id, "object", object, "outcome", outcome)
}

func logIn(op string) error {
	return &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "nobody is logged in", Next: "drover hub login URL --user NAME"}
}

// operator lets the hub's operators through.
func operator(ctx context.Context, op, object string) (hub.Identity, error) {
	who := identityOf(ctx)
	switch {
	case who.User == "":
		return who, logIn(op)
	case !who.Root:
		return who, &api.Error{Kind: api.Denied, Op: op, Object: object, Reason: who.User + " is no operator of the hub", Next: "ask one"}
	case who.Most < hub.Admin:
		return who, &api.Error{Kind: api.Denied, Op: op, Object: object, Reason: "the token allows " + who.Most.String() + " at most", Next: "use one that allows admin"}
	}
	return who, nil
}

// may lets those through who have a right on a repository, there or not.
func (s *Server) may(ctx context.Context, op, repository string, need hub.Right) (hub.Identity, hub.Right, error) {
	who := identityOf(ctx)
	if err := hub.CheckRepository(repository); err != nil {
		return who, hub.None, err
	}
	return s.allowed(ctx, op, "repository", repository, repository, need)
}

// governs lets those through who have a right on all of a namespace.
func (s *Server) governs(ctx context.Context, op, namespace string, need hub.Right) (hub.Identity, hub.Right, error) {
	if err := hub.CheckUser(namespace); err != nil {
		return identityOf(ctx), hub.None, err
	}
	// No repository has an empty name, so none adds a right of its own.
	return s.allowed(ctx, op, "namespace", namespace, namespace+"/", need)
}

func (s *Server) allowed(ctx context.Context, op, what, object, asked string, need hub.Right) (hub.Identity, hub.Right, error) {
	who := identityOf(ctx)
	right, err := s.o.Store.Right(ctx, who, asked)
	switch {
	case err != nil:
		return who, right, err
	case right >= need:
		return who, right, nil
	case who.User == "":
		return who, right, logIn(op)
	case right < hub.Read:
		return who, right, &api.Error{Kind: api.NotFound, Op: op, Object: object, Reason: "there is no such " + what + ", or it is not yours to see"}
	case who.Most < need:
		return who, right, &api.Error{Kind: api.Denied, Op: op, Object: object, Reason: "this needs the right to " + need.String() + ", and the token allows " + who.Most.String() + " at most", Next: "use a token that allows more"}
	}
	return who, right, &api.Error{Kind: api.Denied, Op: op, Object: object, Reason: who.User + " has the right to " + right.String() + " here, and this needs " + need.String(), Next: "ask an admin of it"}
}
