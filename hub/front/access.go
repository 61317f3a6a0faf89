package front

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/internal/apierror"
)

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	n      int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.n += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

// logged writes a line for each request. Headers and queries are left out: they hold
// tokens. So is the name of who could not log in: people paste tokens there.
func (s *server) logged(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun, rec := s.o.Now(), &recorder{ResponseWriter: w}
		whole := false
		defer func() { // also when it is broken off
			user, _, _ := r.BasicAuth()
			if c := rec.code(); c == http.StatusUnauthorized || c == http.StatusTooManyRequests {
				user = ""
			}
			s.o.Log.InfoContext(r.Context(), "request", "from", s.client(r).String(), "user", user, "method", r.Method, "path", r.URL.Path,
				"status", rec.code(), "bytes", rec.n, "took", s.o.Now().Sub(begun).Round(time.Microsecond), "proto", r.Proto, "whole", whole)
		}()
		h.ServeHTTP(rec, r)
		whole = true
	})
}

// health asks whether the hub can do what it is there for, not more often than every few seconds.
type health struct {
	mu     sync.Mutex
	looked time.Time // guarded by mu
	err    error     // guarded by mu
}

const healthEvery = 2 * time.Second

func (s *server) healthy(ctx context.Context) error {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	if now := s.o.Now(); now.Sub(s.health.looked) >= healthEvery {
		s.health.looked = now
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		s.health.err = s.rooms.Store.Ping(ctx)
		if s.health.err == nil {
			s.health.err = s.rooms.Collector.Bytes.Claim(ctx, s.rooms.Collector.Owner, false)
		}
	}
	return s.health.err
}

func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.stopping:
		apierror.Write(w, &api.Error{Kind: api.Unavailable, Op: "serve", Reason: "the hub goes down"})
		return
	default:
	}
	if err := s.healthy(r.Context()); err != nil {
		s.o.Log.WarnContext(r.Context(), "not ready", "error", err)
		// Who asks need not be known: what is wrong is in the log.
		apierror.Write(w, &api.Error{Kind: api.Unavailable, Op: "serve", Reason: "the database or the storage does not answer", Next: "the hub's log says more"})
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// metrics gives measures to operators.
func (s *server) metrics(w http.ResponseWriter, r *http.Request) {
	who, err := s.manage.Identify(r)
	if err == nil && (!who.Root || who.Most < hub.Read) {
		err = &api.Error{Kind: api.Unauthenticated, Op: "read metrics", Reason: "they are for the hub's operators", Next: "send an operator's token, or give them a port of their own: drover hub serve --metrics-listen"}
	}
	if err != nil {
		w.Header().Set("WWW-Authenticate", `Bearer realm="metrics"`)
		apierror.Write(w, err)
		return
	}
	s.measures.handler().ServeHTTP(w, r)
}
