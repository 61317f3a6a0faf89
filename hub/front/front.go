// Package front is one process of a hub on the network: its rooms behind one HTTP
// server, with TLS, limits, logs and measures, and what goes on in the background. Flags
// and files of configuration are whose business it is that runs it.
package front

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage"
	"github.com/drover-data/drover/hub/registry"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/hub/webhook"
)

// Options say how a hub is reached, and what it is made of.
type Options struct {
	Serve   serve.Options // Now, Log and Observe are those below
	Version string
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: none

	Listen string // host:port
	// Metrics is where measures are given to everybody, host:port; "": to operators alone, on Listen.
	Metrics string
	// CertFile and KeyFile are read anew when they change. Without them SelfSigned is a
	// directory in which a certificate is made and kept; without that either, the hub
	// speaks plain HTTP, on loopback alone unless InsecureHTTP.
	CertFile, KeyFile string
	SelfSigned        string
	InsecureHTTP      bool
	// Proxies are believed about who asks (X-Forwarded-For).
	Proxies []netip.Prefix

	Webhooks     webhook.Options // Outbox, Now and Log are those of the hub
	KeepActivity time.Duration   // 0: for ever
	Patience     time.Duration   // for requests on their way when it goes down; 0: 30 seconds
	// Ready is told when the hub answers; nil: nobody.
	Ready func(Listening)
	// First is told of the first operator, who is made when the hub knows nobody.
	First func(user, secret string) error
}

// Listening is how a hub is reached.
type Listening struct {
	URL         string // as far as the process knows
	Address     string
	Metrics     string // address
	Fingerprint string // SHA-256 of its certificate, when it made that itself
	Certificate string // file
}

// FirstOperator is what the first operator is called.
const FirstOperator = "admin"

// server is a process of a hub.
type server struct {
	o        Options
	rooms    *serve.Server
	manage   *manage.Server
	sender   *webhook.Sender
	measures *measures
	limits   *limits
	stopping chan struct{} // closed when it goes down
	work     sync.WaitGroup
	sweeping atomic.Bool
	health   health
}

// Run runs a hub until its context ends.
func Run(ctx context.Context, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	secured, err := secure(o)
	if err != nil {
		return err
	}
	release, err := lockDatabase(o.Serve.Database)
	if err != nil {
		return err
	}
	defer release()
	s := &server{o: o, stopping: make(chan struct{}), limits: newLimits(o.Now)}
	if err := s.open(ctx); err != nil {
		return err
	}
	defer s.rooms.Close()
	if err := s.firstOperator(ctx); err != nil {
		return err
	}
	return s.listen(ctx, secured)
}

func (s *server) open(ctx context.Context) error {
	s.measures = newMeasures(s.o.Version)
	so := s.o.Serve
	so.Now, so.Log = s.o.Now, s.o.Log
	so.Observe = func(x registry.Observation) {
		s.measures.observe("registry "+x.What, x.Method, x.Status, x.Took, x.In, x.Out)
	}
	var err error
	if s.rooms, err = serve.Open(ctx, so); err != nil {
		return err
	}
	s.measures.watch(s.rooms.Store)
	wo := s.o.Webhooks
	wo.Outbox, wo.Now, wo.Log, wo.Agent = s.rooms.Store, s.o.Now, s.o.Log, "drover-hub/"+s.o.Version
	s.sender = webhook.New(wo)
	s.manage = manage.New(manage.Options{
		Store: s.rooms.Store, Version: s.o.Version, Now: s.o.Now, Log: s.o.Log, Stopping: s.stopping,
		Ping: s.sender.Ping, CheckURL: s.sender.CheckURL,
		Sweep: func(context.Context) error { return s.sweep(ctx) },
	})
	return nil
}

// sweep begins a sweep that goes on when whoever asked for it has gone.
func (s *server) sweep(ctx context.Context) error {
	if !s.sweeping.CompareAndSwap(false, true) {
		return &api.Error{Kind: api.InUse, Op: "sweep", Reason: "one is on its way", Next: "drover hub status shows what the last one did"}
	}
	s.work.Go(func() {
		defer s.sweeping.Store(false)
		if f, err := s.rooms.Collector.Sweep(ctx); err != nil {
			s.o.Log.Warn("a sweep that was asked for did not end", "error", err)
		} else {
			s.o.Log.Info("swept, as was asked for", "removed", f.Removed, "bytes", f.Bytes)
		}
	})
	return nil
}

// firstOperator makes one when the hub knows nobody.
func (s *server) firstOperator(ctx context.Context) error {
	users, err := s.rooms.Store.Users(ctx)
	if err != nil || len(users) > 0 || s.o.First == nil {
		return err
	}
	secret, err := NewOperator(ctx, s.rooms, FirstOperator)
	if api.Is(err, api.Exists) { // another process of the hub was first
		return nil
	}
	if err != nil {
		return err
	}
	return s.o.First(FirstOperator, secret)
}

// NewOperator makes an operator, and a token of theirs.
func NewOperator(ctx context.Context, rooms *serve.Server, name string) (secret string, err error) {
	if err := rooms.Store.CreateUser(ctx, hub.Identity{}, hub.User{Name: name, Root: true}); err != nil {
		return "", err
	}
	_, secret, err = rooms.Store.CreateToken(ctx, hub.Identity{}, hub.Token{User: name, Label: "the first", Most: hub.Admin})
	return secret, err
}

// background is what goes on behind the server; it ends with ctx.
func (s *server) background(ctx context.Context) {
	s.work.Go(func() { s.rooms.Run(ctx) })
	s.work.Go(func() { s.sender.Run(ctx) })
	s.work.Go(func() { s.forget(ctx) })
}

// keepLetters is how long what was given up can be seen.
const keepLetters = 30 * 24 * time.Hour

// forget removes what is too old to be shown.
func (s *server) forget(ctx context.Context) {
	every := time.NewTicker(time.Hour)
	defer every.Stop()
	for {
		err := s.rooms.Store.ForgetLetters(ctx, s.o.Now().Add(-keepLetters))
		if err == nil && s.o.KeepActivity > 0 {
			err = s.rooms.Store.ForgetEvents(ctx, s.o.Now().Add(-s.o.KeepActivity))
		}
		if err != nil && ctx.Err() == nil {
			s.o.Log.Warn("old activity is removed later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// listen serves until ctx ends, and then as long as requests are on their way.
func (s *server) listen(ctx context.Context, secured *secured) error {
	behind, end := context.WithCancel(context.WithoutCancel(ctx))
	defer s.work.Wait()
	defer end()
	main, err := s.start(s.o.Listen, s.handler(), secured)
	if err != nil {
		return err
	}
	servers := []*http.Server{main.Server}
	at := Listening{URL: s.o.Serve.URL, Address: main.address, Fingerprint: secured.fingerprint, Certificate: secured.file}
	if at.URL == "" {
		at.URL = map[bool]string{true: "https://", false: "http://"}[secured.config != nil] + reachable(main.address)
	}
	failed := main.failed
	if s.o.Metrics != "" {
		m, err := s.start(s.o.Metrics, s.measures.handler(), plain())
		if err != nil {
			_ = main.Close()
			return err
		}
		servers, at.Metrics = append(servers, m.Server), m.address
		failed = either(main.failed, m.failed)
	}
	s.background(behind)
	if s.o.Ready != nil {
		s.o.Ready(at)
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	close(s.stopping)
	s.o.Log.Info("the hub goes down", "patience", s.o.Patience)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.Patience)
	defer cancel()
	for _, h := range servers {
		if e := h.Shutdown(last); e != nil {
			s.o.Log.Warn("requests were cut off", "error", e)
			_ = h.Close()
		}
	}
	return err
}

// reachable is an address that others can ask: for all of a host's it is the host's name.
func reachable(address string) string {
	at, err := netip.ParseAddrPort(address)
	name, none := os.Hostname()
	if err != nil || none != nil || !at.Addr().IsUnspecified() {
		return address
	}
	return net.JoinHostPort(name, strconv.Itoa(int(at.Port())))
}

func either(a, b <-chan error) <-chan error {
	out := make(chan error, 2)
	for _, c := range []<-chan error{a, b} {
		go func() { out <- <-c }()
	}
	return out
}

// listening is a server that answers.
type listening struct {
	*http.Server
	address string
	failed  <-chan error
}

func (s *server) start(address string, h http.Handler, secured *secured) (*listening, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: "listen", Object: address, Err: err, Next: "another program may have the port: give another one with --listen"}
	}
	h1 := &http.Server{
		Handler: h, TLSConfig: secured.config, ErrorLog: log.New(noise{s.o.Log}, "", 0),
		// Bodies may take long; how slow they may be is what steady sees to.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	failed := make(chan error, 1)
	go func() {
		var err error
		if secured.config != nil {
			err = h1.ServeTLS(l, "", "")
		} else {
			err = h1.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			failed <- &api.Error{Kind: api.Unavailable, Op: "serve", Object: address, Err: err}
		}
	}()
	return &listening{h1, l.Addr().String(), failed}, nil
}

// noise is what net/http has to say: of strangers' broken handshakes mostly.
type noise struct{ log *slog.Logger }

func (n noise) Write(p []byte) (int, error) {
	n.log.Debug("http", "said", strings.TrimSpace(string(p)))
	return len(p), nil
}

// handler is the hub's one handler.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v2/", s.rooms.Registry)
	mux.Handle(manage.Prefix+"/", s.measured("api", s.manage))
	for _, form := range []string{".json", ".yaml", "-3.0.json", "-3.0.yaml"} {
		mux.Handle("GET "+manage.Prefix+"/openapi"+form, s.manage)
	}
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "This is a Drover hub, %s. See drover hub --help.\n", s.o.Version)
	})
	return s.logged(steady(s.limited(mux)))
}

func (s *server) measured(what string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun, rec := s.o.Now(), &recorder{ResponseWriter: w}
		h.ServeHTTP(rec, r)
		s.measures.observe(what, r.Method, rec.code(), s.o.Now().Sub(begun), max(r.ContentLength, 0), rec.n)
	})
}
