// Package serve puts a hub together from its rooms: a database, a storage, the face of
// a registry, and what goes on behind them. Flags, listeners and certificates are
// whose business it is that runs it.
package serve

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net/http"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub/collect"
	"github.com/drover-data/drover/hub/engine"
	"github.com/drover-data/drover/hub/registry"
	"github.com/drover-data/drover/hub/store"
)

// Options say what a hub is made of.
type Options struct {
	Database string // store.Options.URL
	Storage  string // engine.Options.URL
	// URL is how clients reach the hub, as in https://hub.example.com; "": as they asked.
	URL string
	// ReadOnly refuses writes while it says so; nil: never.
	ReadOnly   func() bool
	Redirect   bool             // clients read blobs from the storage itself, where it can do that
	SweepEvery time.Duration    // 0: an hour
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: none
	Observe    func(registry.Observation)
}

// Server is one process of a hub.
type Server struct {
	Store     *store.Store
	Engine    *engine.Engine
	Collector *collect.Collector
	// Registry answers what is below /v2/.
	Registry http.Handler
}

// Open opens what a hub is made of. A storage without a hub is taken by a new database.
func Open(ctx context.Context, o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.SweepEvery == 0 {
		o.SweepEvery = time.Hour
	}
	e, err := engine.Open(ctx, engine.Options{URL: o.Storage})
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Options{URL: o.Database, Now: o.Now})
	if err != nil {
		return nil, err
	}
	s, err := assemble(ctx, o, st, e)
	if err != nil {
		_ = st.Close()
		return nil, err
	}
	return s, nil
}

func assemble(ctx context.Context, o Options, st *store.Store, e *engine.Engine) (*Server, error) {
	if err := st.Alone(); err != nil {
		return nil, err
	}
	owner, err := st.Setting(ctx, "owner")
	if err != nil {
		return nil, err
	}
	secret, err := st.Setting(ctx, "bearer")
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(secret)
	if err != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: "open the hub's database", Reason: "its secret cannot be read", Err: err}
	}
	empty, err := st.Empty(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.Claim(ctx, owner, empty); err != nil {
		return nil, err
	}
	return &Server{
		Store: st, Engine: e,
		Collector: &collect.Collector{Store: st, Bytes: e, Owner: owner, Now: o.Now, Log: o.Log, Every: o.SweepEvery},
		Registry: registry.New(registry.Options{
			Store: st, Engine: e, Secret: key, Owner: owner, URL: o.URL, ReadOnly: o.ReadOnly, Redirect: o.Redirect,
			Now: o.Now, Log: o.Log, Observe: o.Observe,
		}),
	}, nil
}

// Run does what goes on behind a hub until its context ends.
func (s *Server) Run(ctx context.Context) { s.Collector.Run(ctx) }

// Close lets go of the database.
func (s *Server) Close() error { return s.Store.Close() }

// Rebuild fills an empty database from a storage.
func Rebuild(ctx context.Context, o Options) (collect.Rebuilt, error) {
	e, err := engine.Open(ctx, engine.Options{URL: o.Storage})
	if err != nil {
		return collect.Rebuilt{}, err
	}
	st, err := store.Open(ctx, store.Options{URL: o.Database, Now: o.Now})
	if err != nil {
		return collect.Rebuilt{}, err
	}
	defer st.Close()
	owner, err := st.Setting(ctx, "owner")
	if err != nil {
		return collect.Rebuilt{}, err
	}
	return collect.Rebuild(ctx, st, e, owner)
}
