// Package node puts the parts of a host together: it is the one place, besides
// the commands, the lab and tests, that names concrete adapters. It decides
// nothing; each function is a unit's whole life.
package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/apiserver"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/container/docker"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/metrics"
	"github.com/drover-data/drover/peer/remote"
	plugin "github.com/drover-data/drover/plugin/docker"
	"github.com/drover-data/drover/recovery"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
	"github.com/drover-data/drover/transfer"
	"github.com/drover-data/drover/tree"
)

// Config is where a host's units find things; see docs/ARCHITECTURE.md.
type Config struct {
	DataDir   string // default /var/lib/drover
	RunDir    string // default /run/drover
	PluginDir string // default /run/docker/plugins
	Docker    string // address of the container engine; default unix:///run/docker.sock
	Version   string
	Grace     time.Duration // of deleted volumes; default a day
	Log       *slog.Logger
	// Progress is told, in words, how far a start has come. It may be nil.
	Ready func()
}

// WithDefaults fills in what was left out.
func (c Config) WithDefaults() Config {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&c.DataDir, "/var/lib/drover")
	set(&c.RunDir, "/run/drover")
	set(&c.PluginDir, "/run/docker/plugins")
	set(&c.Docker, "unix:///run/docker.sock")
	if c.Grace == 0 {
		c.Grace = 24 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Socket is the local API's.
func (c Config) Socket() string { return filepath.Join(c.RunDir, "drover.sock") }

// unit is the agent unit under construction.
type unit struct {
	cfg     Config
	node    cluster.Config
	keeper  *auth.Keeper
	revoked *auth.RevokedKeys
	kv      *etcd.KV
	store   *state.Store
	network *remote.Network
	cluster *cluster.Service
	agent   *agent.Agent
	api     *apiserver.Server
	events  *events.Log
	metrics *metrics.Metrics
	renew   chan struct{}

	pinned    atomic.Pointer[cluster.Incarnation]
	pinning   sync.Mutex // held while pinned is changed
	fence     *cluster.Fence
	recovery  *recovery.Service
	life      atomic.Pointer[api.Cluster] // as the state store last said
	leased    atomic.Bool                 // this node's lease is held
	isControl atomic.Bool                 // as its record says; its certificate has to say so as well
}

// Agent runs the agent unit until ctx ends. Mounts outlive it.
func Agent(ctx context.Context, cfg Config) error {
	for {
		err := runAgent(ctx, cfg)
		if !errors.Is(err, errLater) || ctx.Err() != nil {
			return err
		}
	}
}

// runAgent runs it within one incarnation of the cluster.
func runAgent(ctx context.Context, cfg Config) error {
	u := &unit{cfg: cfg.WithDefaults(), renew: make(chan struct{}, 1)}
	if err := u.open(); err != nil {
		return err
	}
	defer u.kv.Close()
	if err := u.build(); err != nil {
		return err
	}
	if err := u.fits(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return u.agent.Run(ctx) })
	listeners, err := u.listen(ctx)
	if err != nil {
		return err
	}
	for _, serve := range listeners {
		group.Go(func() error { return serve(ctx) })
	}
	group.Go(func() error { u.keepIdentity(ctx); return nil })
	group.Go(func() error { return u.heartbeat(ctx) })
	group.Go(func() error { return u.followRevoked(ctx) })
	group.Go(func() error { return u.lead(ctx) })
	group.Go(func() error { return u.followMembership(ctx) })
	group.Go(func() error { u.countEvents(ctx); return nil })
	group.Go(func() error { return u.followCluster(ctx) })
	group.Go(func() error { return u.seekLater(ctx) })
	if u.cfg.Ready != nil {
		u.cfg.Ready()
	}
	u.cfg.Log.Info("agent is ready", "node", u.node.Name, "address", u.node.APIAddress(), "version", u.cfg.Version)
	return group.Wait()
}

// fits refuses to run a version that cannot talk to the other nodes, before
// anything is touched. Without the store's answer nothing is known against it: the
// volumes of this host are served, and the question is asked again.
func (u *unit) fits(ctx context.Context) error {
	const patience = time.Second
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := u.cluster.Fits(asking); api.Is(err, api.Unsupported) {
		return err
	} else if err != nil {
		u.cfg.Log.Warn("whether this version fits the cluster is not known yet", "error", err)
	}
	return nil
}

// open reads identity and configuration and reaches for the state store.
func (u *unit) open() (err error) {
	if u.node, err = cluster.LoadConfig(u.cfg.DataDir); err != nil {
		return err
	}
	if u.keeper, err = auth.Open(u.node.IdentityDir()); err != nil {
		return err
	}
	u.isControl.Store(true)
	pin, err := u.node.LoadIncarnation()
	if err != nil {
		return err
	}
	u.pinned.Store(&pin)
	if u.revoked, err = auth.OpenRevoked(filepath.Join(u.node.IdentityDir(), "revoked-agent.crl")); err != nil {
		return err
	}
	config := etcd.ClientConfig{Endpoints: u.node.Endpoints}
	if pin.Store != "" {
		if config.Store, err = strconv.ParseUint(pin.Store, 16, 64); err != nil {
			return &api.Error{Kind: api.Damaged, Op: "read incarnation", Object: pin.Store, Err: err}
		}
	}
	if x := u.node.External; x != nil {
		config.Sync, config.Prefix, config.External = -1, x.Prefix, true
		if config.TLS, err = externalTLS(*x); err != nil {
			return err
		}
	} else {
		config.TLS = u.keeper.ClientTLS(u.revoked, auth.OnlyControl)
	}
	if u.kv, err = etcd.Open(config); err != nil {
		return err
	}
	u.metrics = metrics.New(metrics.Sources{
		Node: u.node.Name, Version: u.cfg.Version, Volumes: u.assigned,
		Pools:   func() []api.Pool { return u.agent.Pools() },
		Expires: func() time.Time { return u.keeper.Certificate().NotAfter },
	})
	u.fence = cluster.NewFence(u.metrics.KV(u.kv), u.node.Cluster, pin.Number)
	u.store = state.New(u.fence)
	return nil
}

func (u *unit) control() bool { return u.keeper.Identity().Control && u.isControl.Load() }

// pin is the incarnation of the cluster that this node has seen.
func (u *unit) pin() cluster.Incarnation { return *u.pinned.Load() }

// report tells the cluster what this node's pools hold.
func (u *unit) report(ctx context.Context, r ledger.Report) error {
	r.Node = u.node.Record(u.keeper.Identity().KeyHash, time.Now())
	if u.control() {
		// The certificate may say "control" of a former incarnation.
		if err := u.recovery.Report(ctx, u.keeper.Identity(), r); !api.Is(err, api.Denied) {
			return err
		}
	}
	return u.network.Report(ctx, r)
}

// backup takes a backup of the cluster's state.
func (u *unit) backup(ctx context.Context, seal backup.Seal) ([]byte, backup.Header, error) {
	return recovery.Take(ctx, u.store, u.node.Name, u.cfg.Version, seal, time.Now())
}

// NewID is 128 random bits in hexadecimal.
func NewID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails, see its documentation
	return hex.EncodeToString(b)
}

// build makes the parts, which do nothing yet.
func (u *unit) build() error {
	u.network = &remote.Network{Self: u.node.Name, Store: u.store, Keeper: u.keeper, Revoked: u.revoked}
	u.events = events.New(u.node.Name, u.cfg.Log, time.Now)
	u.cluster = &cluster.Service{Store: u.store, Dialer: cluster.TLSDialer{}, Node: u.node.Name}
	if u.node.External == nil {
		u.cluster.Members, u.cluster.Access = u.kv.Members(), u.kv.Users()
	} else {
		u.cluster.Endpoints, u.cluster.Prefix = u.node.Endpoints, u.node.External.Prefix
	}
	engine, err := docker.New(docker.Options{Host: u.cfg.Docker})
	if err != nil {
		return err
	}
	books := ledgers{
		control: u.control, events: u.events, far: remote.Ledger{Network: u.network},
		Service: &ledger.Service{Store: u.store, Now: time.Now, NewID: NewID, Grace: u.cfg.Grace, Hold: u.recovering},
	}
	u.network.Know(u.pin().Controls)
	u.recovery = &recovery.Service{
		Store: u.store, Access: u.cluster.Access, Ledger: books.Service, Now: time.Now, Grace: u.cfg.Grace,
		Issued: u.cluster.Issued, Tell: u.events.Add,
	}
	u.agent, err = agent.New(agent.Config{
		Node: u.node.Name, Cluster: u.node.Cluster, Incarnation: u.pin().Number, DataDir: u.cfg.DataDir, VolatileDir: u.cfg.RunDir, PID: os.Getpid(),
	}, agent.Deps{
		Report: u.report, Remotes: places{},
		Store: u.store, Ledger: books, Peers: peers{u.network}, Engine: engine, Users: finder{},
		Open: opener{dataDir: u.cfg.DataDir}.open, Portable: tree.Streams{}, Events: u.events, Log: u.cfg.Log, Now: time.Now, NewID: NewID,
	})
	if err != nil {
		return err
	}
	u.api = apiserver.New(apiserver.Config{
		Node: u.node.Name, Version: u.cfg.Version, Control: u.control, Agent: u.agent, Ledger: books,
		Cluster: u.cluster, Events: u.events, Log: u.cfg.Log, Forward: u.network.Transport, Metrics: u.metrics.Handler(),
		Recovery: u.recovery, Incarnation: u.says, Backup: u.backup,
	})
	return nil
}

// listen opens the three doors: mutual TLS for other nodes and users, the
// unix socket for this host, the plugin's socket for Docker.
func (u *unit) listen(ctx context.Context) ([]func(context.Context) error, error) {
	public, err := u.listenPublic(ctx)
	if err != nil {
		return nil, err
	}
	local, err := u.listenLocal()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(u.cfg.PluginDir, agent.Driver+".sock")
	if err := os.MkdirAll(u.cfg.PluginDir, 0o755); err != nil {
		return nil, err
	}
	l, err := plugin.Listen(path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: u.metrics.Plugin(plugin.New(volumes{u.agent})), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	return []func(context.Context) error{public, local, serving(server, l)}, nil
}

// serving runs a server on a listener until ctx ends.
func serving(server *http.Server, l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() {
			closing, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if server.Shutdown(closing) != nil {
				server.Close()
			}
		})
		defer stop()
		err := server.Serve(l)
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
}

func (u *unit) listenPublic(ctx context.Context) (func(context.Context) error, error) {
	l, err := net.Listen("tcp", u.node.APIAddress())
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: "listen", Object: u.node.APIAddress(), Err: err, Next: "the address must be this host's, and the port free: see drover doctor"}
	}
	served := u.metrics.API(u.api)
	config := u.keeper.OpenServerTLS(u.revoked, transfer.ALPN, "http/1.1")
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(u.cfg.Log.Handler(), slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := auth.OfConnection(*r.TLS, u.revoked)
			if err != nil {
				http.Error(w, err.Error(), http.StatusUnauthorized)
				return
			}
			served.ServeHTTP(w, r.WithContext(apiserver.WithIdentity(r.Context(), id)))
		}),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			transfer.ALPN: func(_ *http.Server, conn *tls.Conn, _ http.Handler) { u.session(ctx, conn) },
		},
	}
	return serving(server, tls.NewListener(l, config)), nil
}

// session takes a transfer of another node.
func (u *unit) session(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	id, err := auth.OfConnection(conn.ConnectionState(), u.revoked)
	if err == nil {
		err = auth.Allow(id, auth.Transfer)
	}
	if err == nil {
		err = u.agent.Target.Serve(ctx, conn, id.Name)
	}
	if err != nil && ctx.Err() == nil {
		u.cfg.Log.Info("a transfer session ended", "peer", id.Name, "error", err)
	}
}

// Group may use the local API besides root.
const Group = "drover"

func (u *unit) listenLocal() (func(context.Context) error, error) {
	if err := os.MkdirAll(u.cfg.RunDir, 0o755); err != nil {
		return nil, err
	}
	path := u.cfg.Socket()
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, &api.Error{Kind: api.Exists, Op: "listen", Object: path, Reason: "another agent serves this socket", Next: "stop it first"}
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := protect(path); err != nil {
		l.Close()
		return nil, err
	}
	served := u.metrics.API(u.api)
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served.ServeHTTP(w, r.WithContext(apiserver.WithIdentity(r.Context(), auth.Local(localName(r)))))
		}),
	}
	return serving(server, l), nil
}

// protect lets root and the group in, and nobody else.
func protect(path string) error {
	gid := 0
	if g, err := user.LookupGroup(Group); err == nil {
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return err
		}
	}
	if err := os.Chown(path, 0, gid); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}

// UserHeader carries the name of the local user, for the audit log only: who
// can open the socket may do everything anyway.
const UserHeader = "Drover-User"

func localName(r *http.Request) string {
	if name := r.Header.Get(UserHeader); name != "" {
		return fmt.Sprintf("%.64s", name)
	}
	return "root"
}
