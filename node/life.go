package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
)

// keepIdentity renews the certificate before it ends, and when the node's
// part in the cluster changes.
func (u *unit) keepIdentity(ctx context.Context) {
	u.keeper.Run(ctx, u.sign, u.renew, func(err error) {
		if err != nil {
			u.events.Add(api.Event{Type: "certificate.not-renewed", Level: "warning", Object: u.node.Name, Message: "the certificate of " + u.node.Name + " could not be renewed: " + err.Error()})
			return
		}
		u.network.Cut()
		u.events.Add(api.Event{Type: "certificate.renewed", Object: u.node.Name, Message: "the certificate of " + u.node.Name + " was renewed, until " + u.keeper.Certificate().NotAfter.UTC().Format(time.DateTime)})
	})
}

func (u *unit) sign(ctx context.Context, csr []byte) ([]byte, error) {
	if u.control() {
		return u.cluster.Renew(ctx, u.keeper.Identity(), csr)
	}
	return u.network.Renew(ctx, csr)
}

// statusEvery is how often the node's own word about itself is looked at. It
// is written only when it says something new.
const statusEvery = 10 * time.Second

// heartbeat keeps the node's lease, with what the node says of itself.
func (u *unit) heartbeat(ctx context.Context) error {
	for ctx.Err() == nil {
		err := u.cluster.Fits(ctx)
		if api.Is(err, api.Unsupported) {
			return err
		}
		var lease int64
		var lost <-chan struct{}
		if err == nil {
			lease, lost, err = u.store.KV().Lease(ctx, state.LeaseTTL)
		}
		if err == nil {
			u.leased.Store(true)
			err = u.alive(ctx, lease, lost)
		}
		u.leased.Store(false)
		if ctx.Err() != nil {
			break
		}
		// After a recovery the store may not know this node until it has reported.
		if (api.Is(err, api.Denied) || api.Is(err, api.Unauthenticated)) && u.agent.OnHold() == "" {
			return err
		}
		u.cfg.Log.Warn("the node's lease is lost; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (u *unit) alive(ctx context.Context, lease int64, lost <-chan struct{}) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	var said api.NodeStatus
	ticker := time.NewTicker(statusEvery)
	defer ticker.Stop()
	for {
		now := api.NodeStatus{Online: true, Software: u.cfg.Version, API: api.Speaks().Newest, Oldest: api.Speaks().Oldest, Boot: string(boot[:len(boot)-1]), Pools: coarse(u.agent.Pools())}
		if !reflect.DeepEqual(now, said) {
			said = now
			now.Seen = time.Now().UTC()
			err := u.store.Update(ctx, func(tx *state.Tx) error {
				return state.Alive.PutLeased(tx, u.node.Name, now, lease)
			})
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			return &api.Error{Kind: api.Unavailable, Op: "keep lease", Object: u.node.Name, Reason: "it could not be renewed in time"}
		case <-ticker.C:
		case <-u.agent.PoolsChanged:
		}
	}
}

// coarse rounds what changes all the time, so that it is not written all the time.
func coarse(pools []api.Pool) []api.Pool {
	const grain, coarser = 64 << 20, 1 << 30
	for i := range pools {
		pools[i].Room = pools[i].Room / coarser * coarser // follows whatever the host writes
		pools[i].Used = pools[i].Used / grain * grain
		pools[i].Free = pools[i].Free / grain * grain
	}
	return pools
}

// followRevoked keeps the list of keys that are not to be trusted.
func (u *unit) followRevoked(ctx context.Context) error {
	warn := func(err error) {
		if err != nil {
			u.cfg.Log.Error("cannot keep the list of revoked keys", "error", err)
		}
	}
	for ctx.Err() == nil {
		err := state.Revoked.Follow(ctx, u.store, "", func(all map[string]state.Revocation) {
			reasons := map[string]string{}
			for key, r := range all {
				reasons[key] = r.Reason
			}
			warn(u.revoked.Set(reasons))
		}, func(c state.Change[state.Revocation]) {
			if !c.Gone {
				warn(u.revoked.Add(c.ID, c.Value.Reason))
			}
		})
		if ctx.Err() == nil {
			warn(err)
			pause(ctx, 5*time.Second)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// lead does the cluster's chores while this node is the leader.
func (u *unit) lead(ctx context.Context) error {
	for ctx.Err() == nil {
		if !u.control() {
			pause(ctx, 5*time.Second)
			continue
		}
		err := cluster.Bootstrap(ctx, u.node, state.New(u.kv)) // past the fence, which wants them to be there
		if err == nil {
			err = u.recovery.Restore(ctx, u.node)
		}
		if err != nil {
			u.cfg.Log.Warn("the cluster's first records are not written yet", "error", err)
			pause(ctx, time.Second)
			continue
		}
		err = state.Lead(ctx, u.store.KV(), "controller", u.node.Name, u.chores)
		if ctx.Err() == nil {
			u.cfg.Log.Warn("no longer a candidate for leading", "error", err)
			pause(ctx, 5*time.Second)
		}
	}
	return nil
}

func (u *unit) chores(ctx context.Context) error {
	u.events.Add(api.Event{Type: "controller.leads", Object: u.node.Name, Message: u.node.Name + " leads the cluster"})
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	seen := map[string]bool{}
	for {
		if err := u.recovery.Continue(ctx); err != nil && ctx.Err() == nil {
			u.cfg.Log.Warn("cannot end the recovery", "error", err)
		}
		did, err := u.cluster.Rebalance(ctx)
		if err != nil && ctx.Err() == nil {
			u.cfg.Log.Warn("cannot look after the members of the state store", "error", err)
		}
		for _, c := range did {
			u.events.Add(api.Event{Type: "state.member", Object: c.Node, Message: "state store: " + string(c.Op) + " " + c.Node})
		}
		if err := u.watchNodes(ctx, seen); err != nil && ctx.Err() == nil {
			u.cfg.Log.Warn("cannot look after the nodes", "error", err)
		}
		if len(did) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// watchNodes says in events which nodes come and go, and keeps since when.
func (u *unit) watchNodes(ctx context.Context, online map[string]bool) error {
	nodes, err := u.cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	u.network.Know(nodes)
	for _, n := range nodes {
		was, known := online[n.Name]
		online[n.Name] = n.Status.Online
		switch {
		case known && was && !n.Status.Online:
			u.events.Add(api.Event{Type: "node.silent", Level: "warning", Object: n.Name, Message: "node " + n.Name + " does not answer; what is on it is unknown, not lost"})
			if err := u.cluster.NoteSilence(ctx, n.Name); err != nil {
				return err
			}
		case known && !was && n.Status.Online:
			u.events.Add(api.Event{Type: "node.back", Object: n.Name, Message: "node " + n.Name + " answers"})
		case !known && !n.Status.Online && n.Status.Seen.IsZero():
			if err := u.cluster.NoteSilence(ctx, n.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// followMembership turns what the node's record says about its part in the
// state store into what the state unit needs to start, and into its certificate.
func (u *unit) followMembership(ctx context.Context) error {
	if u.node.External != nil {
		return nil
	}
	ticker := time.NewTicker(3 * time.Second)
	defer ticker.Stop()
	for {
		if err := u.startMember(ctx); err != nil && ctx.Err() == nil && !api.Is(err, api.Unavailable) {
			u.cfg.Log.Warn("cannot take the part in the state store that the node's record says", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (u *unit) startMember(ctx context.Context) error {
	if cluster.IsFirst(u.node) || Retired(u.node) {
		return nil
	}
	var rec api.Node
	err := u.store.View(ctx, func(tx *state.Tx) (err error) {
		rec, _, err = state.Nodes.Get(tx, u.node.Name)
		return err
	})
	if err != nil {
		return err
	}
	u.isControl.Store(rec.Control)
	if rec.Member == api.MemberNone || rec.Member == "" {
		return u.endMember(ctx, rec)
	}
	if !u.control() {
		if err := u.keeper.Renew(ctx, u.sign); err != nil {
			return err
		}
		u.network.Cut()
	}
	if hasMember(u.node) {
		return nil
	}
	start, err := u.network.MemberStart(ctx)
	if err != nil {
		return err
	}
	return writeStart(u.node, start)
}

// endMember clears up when this node has no part in the state store any more:
// what its member had cannot be used again, and a certificate that says
// "control" would promise what the store no longer grants.
func (u *unit) endMember(ctx context.Context, rec api.Node) error {
	if hasMember(u.node) {
		u.events.Add(api.Event{Type: "state.member", Object: u.node.Name, Message: u.node.Name + " is no member of the state store any more; its data of it is removed"})
	}
	if err := Retire(u.node, ""); err != nil {
		return err
	}
	if rec.Control || !u.keeper.Identity().Control {
		return nil
	}
	if err := u.keeper.Renew(ctx, u.sign); err != nil {
		return err
	}
	u.network.Cut()
	return nil
}

// startFile tells the state unit how to join the other members.
const startFile = "start.json"

func writeStart(c cluster.Config, start cluster.MemberStart) error {
	if err := durable.MkdirAll(c.StateDir(), 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(start)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(c.StateDir(), startFile), text, 0o600)
}

func readStart(c cluster.Config) (start cluster.MemberStart, found bool, err error) {
	text, err := os.ReadFile(filepath.Join(c.StateDir(), startFile))
	if errors.Is(err, fs.ErrNotExist) {
		return start, false, nil
	}
	if err != nil {
		return start, false, err
	}
	return start, true, json.Unmarshal(text, &start)
}

// CheckExternal finds out whether the etcd of a configuration will do, before
// anything is made that relies on it. It gives the endpoints that are silent.
func CheckExternal(ctx context.Context, c cluster.Config, control bool) ([]string, error) {
	config, err := externalTLS(*c.External)
	if err != nil {
		return nil, err
	}
	return etcd.Check(ctx, etcd.ClientConfig{Endpoints: c.Endpoints, TLS: config, Prefix: c.External.Prefix, External: true}, control)
}

func externalTLS(x cluster.External) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(x.Cert, x.Key)
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: "reach the external etcd", Object: x.Cert, Err: err}
	}
	ca, err := os.ReadFile(x.CA)
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: "reach the external etcd", Object: x.CA, Err: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, &api.Error{Kind: api.Invalid, Op: "reach the external etcd", Object: x.CA, Reason: "it holds no certificate"}
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}

// State runs the state unit until ctx ends: the embedded member, as soon as
// this node is given one.
func State(ctx context.Context, cfg Config) error {
	cfg = cfg.WithDefaults()
	for ctx.Err() == nil {
		node, err := cluster.LoadConfig(cfg.DataDir)
		if err != nil {
			return err
		}
		if node.External != nil {
			return &api.Error{Kind: api.Invalid, Op: "run the state store", Object: node.Name, Reason: "this cluster keeps its state in an external etcd"}
		}
		if err := ClearRetired(node, time.Now()); err != nil {
			return err
		}
		start, found, err := readStart(node)
		if err != nil {
			return err
		}
		_, statErr := os.Stat(filepath.Join(node.StateDir(), "member"))
		if !found && statErr != nil && !cluster.IsFirst(node) {
			pause(ctx, 500*time.Millisecond)
			continue
		}
		running, stop := context.WithCancel(ctx)
		go func() { defer stop(); untilRetired(running, node) }()
		err = member(running, cfg, node, start)
		stop()
		// A member that was removed stops by itself, before it is told why.
		if err != nil && !Retired(node) {
			return err
		}
	}
	return nil
}

func member(ctx context.Context, cfg Config, node cluster.Config, start cluster.MemberStart) error {
	keeper, err := openKeeper(node)
	if err != nil {
		return err
	}
	peers := start.Peers
	delete(peers, node.Name)
	seen, err := node.LoadIncarnation()
	if err != nil {
		return err
	}
	// The stores of two incarnations must never take each other's members.
	id := node.Cluster
	if seen.Number > 1 {
		id = fmt.Sprintf("%s-%d", id, seen.Number)
	}
	return etcd.Serve(ctx, etcd.Config{
		Name: node.Name, Dir: node.StateDir(), Address: node.Address, ClientPort: node.Ports.State, PeerPort: node.Ports.Peer,
		Identity: keeper, ClusterID: id, Peers: peers, Log: cfg.Log,
	})
}
