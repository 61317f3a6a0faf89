// Package apiserver is Drover's REST API: it knows who asks, whether they
// may, and whom to pass the question on to. How things are done it leaves to
// the ports behind it. The OpenAPI description is made from the Go types.
package apiserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/trace"
)

// Config is what the server stands on.
type Config struct {
	Node    string
	Version string
	// Control says whether this node may change the state store.
	Control func() bool
	Agent   Agent
	Ledger  Ledger
	Cluster Cluster
	Events  *events.Log
	Log     *slog.Logger
	// Forward reaches another node's API; a request that only a control node
	// can answer goes to the node "".
	Forward func(node string) (http.RoundTripper, error)
	// Recovery brings the cluster back from a backup, Backup takes one;
	// Incarnation says which life of the cluster this node has seen.
	Recovery    Recovery
	Backup      func(ctx context.Context, seal backup.Seal) ([]byte, backup.Header, error)
	Incarnation func(ctx context.Context) (peer.Incarnation, error)
	// Metrics serves /metrics; nil leaves it out.
	Metrics http.Handler
}

// Server serves the API.
type Server struct {
	cfg     Config
	mux     *http.ServeMux
	api     huma.API
	control map[string]bool // patterns that only a control node answers
}

// New makes the routes.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), control: map[string]bool{}}
	hc := huma.DefaultConfig("Drover", "1")
	hc.Info.Description = "Volumes that follow their containers across hosts."
	hc.DocsPath = ""
	hc.CreateHooks = nil // no $schema links in answers
	s.api = humago.New(s.mux, hc)
	s.volumeRoutes()
	s.historyRoutes()
	s.lookingRoutes()
	s.remoteRoutes()
	s.remoteKeyRoutes()
	s.scheduleRoutes()
	s.nodeRoutes()
	s.peerRoutes()
	s.recoverRoutes()
	s.backupRoutes()
	s.eventRoutes()
	if cfg.Metrics != nil {
		s.mux.HandleFunc("GET /metrics", s.metrics)
	}
	return s
}

// metrics is for whoever may look; it is no part of the API's description
// because its format is Prometheus'.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if err := auth.Allow(identityOf(r.Context()), auth.Look); err != nil {
		writeError(w, err)
		return
	}
	s.cfg.Metrics.ServeHTTP(w, r)
}

// OpenAPI is the description of the API, version 3.1, as YAML.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().YAML() }

type identityKey struct{}

// ServeHTTP takes a request of the identity that WithIdentity put into its context.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, err := effective(identityOf(r.Context()), r.Header.Get(BehalfHeader))
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set(api.VersionHeader, api.Speaks().String())
	if err := s.understands(r); err != nil {
		writeError(w, err)
		return
	}
	tr := trace.Of(r)
	w.Header().Set(trace.Header, tr.String())
	ctx := trace.With(WithIdentity(r.Context(), id), tr)
	r = r.WithContext(ctx)
	if _, pattern := s.mux.Handler(r); s.control[pattern] && !s.cfg.Control() {
		s.pass(w, r, "")
		return
	}
	s.mux.ServeHTTP(w, r)
}

// understands refuses whoever speaks no version of the API that this node
// speaks. Other clients than Drover's own say nothing of versions.
func (s *Server) understands(r *http.Request) error {
	said := r.Header.Get(api.VersionHeader)
	if said == "" {
		return nil
	}
	asker, ok := api.ParseVersions(said)
	if !ok {
		return &api.Error{Kind: api.Invalid, Op: "read request", Object: said, Reason: "the header " + api.VersionHeader + " cannot be read"}
	}
	if _, ok := asker.Common(api.Speaks()); !ok {
		return api.Apart("ask node "+s.cfg.Node, "", asker, "node "+s.cfg.Node, api.Speaks())
	}
	return nil
}

// WithIdentity says who asks.
func WithIdentity(ctx context.Context, id auth.Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

func identityOf(ctx context.Context) auth.Identity {
	id, _ := ctx.Value(identityKey{}).(auth.Identity)
	return id
}

// BehalfHeader names the user for whom a node asks: "kind name role".
const BehalfHeader = "Drover-On-Behalf-Of"

// behalf is the header's text for an identity.
func behalf(id auth.Identity) string {
	return string(id.Kind) + " " + id.Name + " " + string(id.Role)
}

// effective is for whom a request is made: a node may ask for a user. A node
// that is no control node is believed up to the role of an operator, so that
// one that was broken into cannot change users or nodes.
func effective(id auth.Identity, header string) (auth.Identity, error) {
	if header == "" || id.Kind != auth.NodeKind {
		return id, nil
	}
	part := strings.Fields(header)
	if len(part) != 3 || !auth.KnownRole(api.Role(part[2])) || (part[0] != string(auth.UserKind) && part[0] != string(auth.LocalKind)) {
		return id, &api.Error{Kind: api.Invalid, Op: "ask for a user", Object: header, Reason: "the header cannot be read"}
	}
	user := auth.Identity{Kind: auth.UserKind, Name: part[1] + " through " + id.Name, Role: api.Role(part[2])}
	if !id.Control && user.Role == api.Admin {
		user.Role = api.Operator
	}
	return user, nil
}

// pass hands a request to another node and its answer back.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, node string) {
	answer, err := s.roundTrip(r, node)
	if err != nil {
		writeError(w, err)
		return
	}
	defer answer.Body.Close()
	for k, list := range answer.Header {
		w.Header()[k] = list
	}
	w.WriteHeader(answer.StatusCode)
	if _, err := io.Copy(w, answer.Body); err != nil {
		s.cfg.Log.Debug("answer cut short", "error", err)
	}
}

// maxBody bounds a request's body.
const maxBody = 4 << 20

func (s *Server) roundTrip(r *http.Request, node string) (*http.Response, error) {
	transport, err := s.cfg.Forward(node)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, &api.Error{Kind: api.Invalid, Op: "read request", Reason: "its body is larger than 4 MiB"}
	}
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Scheme, out.URL.Host, out.Host = "", "https", "node", ""
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	id := identityOf(r.Context())
	out.Header.Del(BehalfHeader)
	out.Header.Set(api.VersionHeader, api.Speaks().String())
	if id.Kind == auth.UserKind || id.Kind == auth.LocalKind {
		out.Header.Set(BehalfHeader, behalf(auth.Identity{Kind: id.Kind, Name: strings.ReplaceAll(id.Name, " ", "+"), Role: id.Role}))
	}
	if tr, ok := trace.From(r.Context()); ok {
		out.Header.Set(trace.Header, tr.Step().String())
	}
	answer, err := transport.RoundTrip(out)
	if err != nil {
		return nil, unanswered(node, err)
	}
	return answer, nil
}

func unanswered(node string, err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	object := "node " + node
	if node == "" {
		object = "the control nodes"
	}
	return &api.Error{Kind: api.Unavailable, Op: "ask", Object: object, Reason: "no answer", Err: err, Next: "drover node ls shows which nodes are there"}
}

// route is one operation.
type route struct {
	id, method, path, summary string
	need                      auth.Permission
	control                   bool // only a control node answers it
	quiet                     bool // too frequent for the audit log
}

// tolerant routes are asked by nodes, which may be of a newer version and say
// more than this one understands: that is ignored. A user's option that is not
// known is refused instead.
func (r route) tolerant() bool {
	return strings.HasPrefix(r.path, "/v1/peer/") || r.path == "/v1/join"
}

// add registers a route: its permission is asked, changes are audited, errors
// get their status.
func add[I, O any](s *Server, r route, f func(ctx context.Context, in *I) (O, error)) {
	type output struct{ Body O }
	if r.control {
		s.control[r.method+" "+r.path] = true
	}
	huma.Register(s.api, huma.Operation{OperationID: r.id, Method: r.method, Path: r.path, Summary: r.summary, MaxBodyBytes: maxBody, DefaultStatus: http.StatusOK, SkipValidateBody: r.tolerant()},
		func(ctx context.Context, in *I) (*output, error) {
			id := identityOf(ctx)
			err := auth.Allow(id, r.need)
			var out O
			if err == nil {
				out, err = f(ctx, in)
			}
			if r.method != http.MethodGet && !r.quiet {
				s.audit(ctx, r, id, in, err)
			}
			if err != nil {
				return nil, statusOf(err)
			}
			return &output{out}, nil
		})
}

// named is a request that can say what it is about, for the audit line.
type named interface{ object() string }

func (s *Server) audit(ctx context.Context, r route, id auth.Identity, in any, err error) {
	object, outcome := "", "ok"
	if n, ok := in.(named); ok {
		object = n.object()
	}
	if err != nil {
		outcome = string(api.KindOf(err))
	}
	s.cfg.Log.InfoContext(ctx, "audit", "who", id.String(), "did", r.id, "object", object, "outcome", outcome)
}
