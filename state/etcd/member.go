package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/state"
)

// Config of the embedded member. Zero values mean the defaults.
type Config struct {
	Name       string       // the node's
	Dir        string       // DATA/state
	Address    string       // IP address or host name under which the other nodes reach it
	ClientPort int          // default 7434
	PeerPort   int          // default 7435
	Identity   *auth.Keeper // a control node's, in a directory
	ClusterID  string       // keeps clusters apart that were cloned from one disk image
	// Peers are the other members' peer URLs by name, when this one joins an
	// existing store. Empty: this is the first. It matters only until Dir has data.
	Peers map[string]string

	// Tick and Election pace the members. Defaults 500 ms and 5 s: slow enough to
	// cost an idle host half of what etcd's own defaults do, fast enough that
	// a lost leader is replaced within the patience of one operation or two.
	Tick     time.Duration
	Election time.Duration
	// Quota is the limit of the store's size in bytes. Default 2 GiB.
	Quota int64
	// Keep is how long past revisions stay readable. Default 30 min.
	Keep time.Duration
	// NoSync leaves out fsync: for tests only.
	NoSync bool
	Log    *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.ClientPort == 0 {
		c.ClientPort = 7434
	}
	if c.PeerPort == 0 {
		c.PeerPort = 7435
	}
	if c.Tick == 0 {
		c.Tick = 500 * time.Millisecond
	}
	if c.Election == 0 {
		c.Election = 5 * time.Second
	}
	if c.Quota == 0 {
		c.Quota = 2 << 30
	}
	if c.Keep == 0 {
		c.Keep = 30 * time.Minute
	}
	return c
}

// Validate reports all that is wrong.
func (c Config) Validate() error {
	var wrong []string
	if err := auth.CheckNode(c.Name); err != nil {
		wrong = append(wrong, err.Error())
	}
	if c.Dir == "" {
		wrong = append(wrong, "no directory")
	}
	if c.Address == "" {
		wrong = append(wrong, "no address")
	}
	if c.ClusterID == "" {
		wrong = append(wrong, "no cluster id")
	}
	if c.Identity == nil {
		wrong = append(wrong, "no identity")
	} else if id := c.Identity.Identity(); !id.Control || id.Name != c.Name {
		wrong = append(wrong, fmt.Sprintf("the certificate is of %s, which is not control node %s", id, c.Name))
	}
	if c.Tick < 0 || c.Election < 5*c.Tick {
		wrong = append(wrong, "the election time is under five ticks")
	}
	if wrong != nil {
		return &api.Error{Kind: api.Invalid, Op: "run the state store", Object: c.Name, Reason: strings.Join(wrong, "; ")}
	}
	return nil
}

// PeerURL is where other members reach the one at that address.
func PeerURL(address string, port int) string {
	return "https://" + net.JoinHostPort(address, strconv.Itoa(port))
}

// ClientURL is where clients reach the member at that address.
func ClientURL(address string, port int) string { return PeerURL(address, port) }

// Member is the running embedded member.
type Member struct {
	cfg     Config
	etcd    *embed.Etcd
	guard   *guard
	revoked *auth.RevokedKeys
	kv      *KV
	open    atomic.Bool // clients are let in
	stop    context.CancelFunc
	done    sync.WaitGroup
	closed  sync.Once
}

// Serve runs the member until ctx ends or it fails.
func Serve(ctx context.Context, cfg Config) error {
	m, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Ready(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-m.Failed():
		return &api.Error{Kind: api.Unavailable, Op: "run the state store", Object: cfg.Name, Err: err}
	}
}

// Start starts the member; Ready tells when it answers. Close it.
func Start(ctx context.Context, cfg Config) (*Member, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	fail := func(err error) (*Member, error) {
		return nil, &api.Error{Kind: api.Unavailable, Op: "start the state store", Object: cfg.Name, Err: err, Next: "see drover doctor"}
	}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fail(err)
	}
	revoked, err := auth.OpenRevoked(filepath.Join(cfg.Identity.Dir(), auth.CRLFile))
	if err != nil {
		return nil, err
	}
	m := &Member{cfg: cfg, revoked: revoked}
	m.guard = newGuard(cfg.Identity.ServerTLS(revoked, m.accept, "h2"), revoked)
	m.etcd, err = embed.StartEtcd(m.embedConfig())
	if err != nil {
		return fail(err)
	}
	m.kv, err = Open(ClientConfig{
		Endpoints: []string{ClientURL(cfg.Address, cfg.ClientPort)},
		TLS:       cfg.Identity.ClientTLS(revoked, auth.OnlyNode(cfg.Name)),
		Sync:      -1,
	})
	if err != nil {
		m.etcd.Close()
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	m.done.Go(func() { m.followRevoked(background) })
	return m, nil
}

// accept lets only nodes in, and until the store knows its users only this one.
func (m *Member) accept(id auth.Identity) error {
	if err := auth.OnlyNodes(id); err != nil {
		return err
	}
	if !m.open.Load() && id.Name != m.cfg.Name {
		return &api.Error{Kind: api.Unavailable, Op: "connect to the state store", Reason: "it is being set up"}
	}
	return nil
}

func (m *Member) embedConfig() *embed.Config {
	cfg, c := m.cfg, embed.NewConfig()
	c.Name, c.Dir = cfg.Name, cfg.Dir
	c.TickMs, c.ElectionMs = uint(cfg.Tick.Milliseconds()), uint(cfg.Election.Milliseconds())
	c.QuotaBackendBytes = cfg.Quota
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, cfg.Keep.String()
	c.UnsafeNoFsync = cfg.NoSync
	c.EnableGRPCGateway = false
	c.StrictReconfigCheck = true
	c.MaxLearners = maxLearners
	c.TlsMinVersion = "TLS1.3"
	c.MaxTxnOps = 2 * state.MaxOps

	listen := cfg.Address
	if net.ParseIP(listen) == nil {
		listen = "0.0.0.0" // a name may resolve to what is not this host's own
	}
	c.ListenClientUrls = []url.URL{httpsURL(listen, cfg.ClientPort)}
	c.ListenPeerUrls = []url.URL{httpsURL(listen, cfg.PeerPort)}
	c.AdvertiseClientUrls = []url.URL{httpsURL(cfg.Address, cfg.ClientPort)}
	c.AdvertisePeerUrls = []url.URL{httpsURL(cfg.Address, cfg.PeerPort)}
	// With a listener of its own for plain HTTP requests, the client port
	// speaks gRPC only, and gRPC takes the guard in place of etcd's own TLS.
	c.ListenClientHttpUrls = []url.URL{httpsURL("127.0.0.1", 0)}
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.Creds(m.guard)}

	dir := cfg.Identity.Dir()
	identity := filepath.Join(dir, auth.IdentityFile) // key and certificate in one, read anew for each handshake
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = identity, identity
	c.ClientTLSInfo.TrustedCAFile = filepath.Join(dir, auth.CAFile)
	c.ClientTLSInfo.ClientCertAuth = true
	c.ClientTLSInfo.CRLFile = filepath.Join(dir, auth.CRLFile)
	c.ClientTLSInfo.AllowedHostnames = []string{auth.ControlHost}
	c.PeerTLSInfo = c.ClientTLSInfo
	c.PeerTLSInfo.SkipClientSANVerify = true // a peer may connect from another of its addresses

	all := []string{cfg.Name + "=" + c.AdvertisePeerUrls[0].String()}
	for name, u := range cfg.Peers {
		if name != cfg.Name {
			all = append(all, name+"="+u)
		}
	}
	slices.Sort(all)
	c.InitialCluster, c.InitialClusterToken = strings.Join(all, ","), cfg.ClusterID
	c.ClusterState = embed.ClusterStateFlagNew
	if len(cfg.Peers) > 0 {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	c.LogLevel = "warn"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newLogger(cfg.Log))
	return c
}

func httpsURL(host string, port int) url.URL {
	return url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port))}
}

// Ready waits until the member answers: the first one when its users are set
// up, one that joins when it has found the others.
func (m *Member) Ready(ctx context.Context) error {
	select {
	case <-m.etcd.Server.ReadyNotify():
	case err := <-m.etcd.Err():
		return &api.Error{Kind: api.Unavailable, Op: "start the state store", Object: m.cfg.Name, Err: err}
	case <-m.etcd.Server.StopNotify():
		return &api.Error{Kind: api.Unavailable, Op: "start the state store", Object: m.cfg.Name, Reason: "it stopped; it may have been removed from the cluster"}
	case <-ctx.Done():
		return &api.Error{Kind: api.Canceled, Op: "start the state store", Object: m.cfg.Name, Reason: "it was waiting for the other members", Err: context.Cause(ctx)}
	}
	if len(m.cfg.Peers) == 0 {
		if err := m.setUp(ctx); err != nil {
			return err
		}
	}
	m.open.Store(true)
	return nil
}

// Failed tells that the member ended by itself.
func (m *Member) Failed() <-chan error {
	out := make(chan error, 1)
	go func() {
		select {
		case err, ok := <-m.etcd.Err():
			if !ok {
				err = errors.New("it was closed")
			}
			out <- err
		case <-m.etcd.Server.StopNotify():
			out <- errors.New("it stopped; it may have been removed from the cluster")
		}
	}()
	return out
}

// KV is a client of this member alone.
func (m *Member) KV() *KV { return m.kv }

// Close stops the member. Its data stays.
func (m *Member) Close() {
	m.closed.Do(func() {
		m.stop()
		_ = m.kv.Close()
		m.done.Wait()
		// etcd waits for clients to go by themselves, which watches never do.
		m.guard.closeAll()
		// Nor does it end while it still waits for the other members: its
		// listeners first wait for it to be ready.
		select {
		case <-m.etcd.Server.ReadyNotify():
		default:
			m.etcd.Server.HardStop()
		}
		m.etcd.Close()
	})
}

func (g *guard) closeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.raw.Close()
	}
}

// followRevoked keeps the set of revoked keys as the store says, and cuts
// whoever is in it.
func (m *Member) followRevoked(ctx context.Context) {
	report := func(err error) {
		if err != nil && m.cfg.Log != nil {
			m.cfg.Log.Error("cannot keep the list of revoked keys", "error", err)
		}
	}
	for ctx.Err() == nil {
		err := state.Revoked.Follow(ctx, state.New(m.kv), "", func(all map[string]state.Revocation) {
			reasons := make(map[string]string, len(all))
			for key, r := range all {
				reasons[key] = r.Reason
			}
			report(m.revoked.Set(reasons))
			m.guard.cut()
		}, func(c state.Change[state.Revocation]) {
			if !c.Gone {
				report(m.revoked.Add(c.ID, c.Value.Reason))
				m.guard.cut()
			}
		})
		if ctx.Err() == nil {
			report(err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}
