package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
)

// errLater ends the agent's parts when the cluster was recovered: they begin
// anew, with nothing that they remembered of the incarnation before.
var errLater = errors.New("the cluster has a later incarnation")

// followCluster keeps what the state store says of the cluster as a whole.
func (u *unit) followCluster(ctx context.Context) error {
	take := func(c api.Cluster) {
		u.life.Store(&c)
		if err := u.fence.Look(c); err == nil && u.pin().Store == "" && u.pin().Number <= c.Incarnation && u.node.External == nil {
			u.notePin(c)
		}
	}
	for ctx.Err() == nil {
		err := state.TheCluster.Follow(ctx, u.store, "", func(all map[string]api.Cluster) {
			if c, ok := all["cluster"]; ok {
				take(c)
			}
		}, func(c state.Change[api.Cluster]) {
			if !c.Gone {
				take(c.Value)
			}
		})
		if ctx.Err() == nil {
			u.cfg.Log.Warn("cannot follow the cluster's record", "error", err)
			pause(ctx, 5*time.Second)
		}
	}
	return nil
}

// notePin remembers which store is meant, by its own id.
func (u *unit) notePin(c api.Cluster) {
	u.changePin(func(pin *cluster.Incarnation) {
		pin.Number, pin.Store = c.Incarnation, strconv.FormatUint(u.kv.StoreID(), 16)
	})
	u.kv.Pin(u.kv.StoreID())
}

// changePin changes what this node remembers of the cluster's incarnation.
func (u *unit) changePin(change func(*cluster.Incarnation)) {
	u.pinning.Lock()
	defer u.pinning.Unlock()
	pin := u.pin()
	change(&pin)
	if reflect.DeepEqual(pin, u.pin()) {
		return
	}
	if err := u.node.SaveIncarnation(pin); err != nil {
		u.cfg.Log.Error("cannot note the cluster's incarnation", "error", err)
		return
	}
	u.pinned.Store(&pin)
}

// recovering is why no record may change now; nil: they may.
func (u *unit) recovering() error {
	c := u.life.Load()
	if c == nil || c.Recovery == nil {
		return nil
	}
	waits := "for its records to be written"
	if !c.Recovery.Restoring {
		waits = "for reports of"
		for _, n := range sortedKeys(c.Recovery.Awaiting) {
			waits += " " + n
		}
	}
	return &api.Error{Kind: api.Unavailable, Op: "change record", Object: c.Name, Reason: "the cluster is being recovered from a backup, and waits " + waits, Next: "drover status shows how far it is; drover recover --without NODE goes on without one that is gone"}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// seekLater looks for a later incarnation of the cluster: in the store that
// answers, in what drover recover wrote here, and, while this node has no lease,
// at the nodes that it knows.
func (u *unit) seekLater(ctx context.Context) error {
	const every = 5 * time.Second
	const rememberTurns = 120 // ten minutes
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	turn := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case number := <-u.fence.Later():
			later := u.pin()
			later.Number = number
			return u.goOver(later, u.node.Endpoints)
		case <-ticker.C:
		}
		written, err := u.node.LoadIncarnation()
		if err == nil && written.Number > u.pin().Number {
			return errLater // drover recover made this host the first node
		}
		if u.leased.Load() {
			if turn%rememberTurns == 0 {
				u.remember(ctx)
			}
			turn++
			continue
		}
		if later, found := u.askLater(ctx); found {
			return u.goOver(later, later.Endpoints)
		}
	}
}

// remember keeps, for a time when no state store answers, some of the nodes
// that are there now: control nodes, then others.
func (u *unit) remember(ctx context.Context) {
	nodes, err := u.cluster.Nodes(ctx)
	if err != nil {
		return // it is tried again, and what is remembered may still be right
	}
	u.network.Know(nodes)
	const most = 16
	var some []api.Node
	for _, control := range []bool{true, false} {
		for _, n := range nodes {
			if n.Control == control && n.Name != u.node.Name && len(some) < most {
				some = append(some, api.Node{Name: n.Name, Address: n.Address, Control: n.Control})
			}
		}
	}
	u.changePin(func(pin *cluster.Incarnation) { pin.Controls = some })
}

// askLater asks the nodes that are known whether they have seen a later incarnation.
func (u *unit) askLater(ctx context.Context) (cluster.Incarnation, bool) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	answers := make(chan cluster.Incarnation)
	asked := 0
	for _, address := range u.addresses() {
		asked++
		go func() {
			a, err := AskIncarnation(ctx, u.keeper, u.revoked, address)
			if err != nil || a.Cluster != u.node.Cluster {
				a = peer.Incarnation{}
			}
			answers <- a.Incarnation
		}()
	}
	var best cluster.Incarnation
	for range asked {
		if a := <-answers; a.Number > best.Number {
			best = a
		}
	}
	return best, best.Number > u.pin().Number && len(best.Endpoints) > 0
}

// AskIncarnation asks a node's agent which incarnation it has seen.
func AskIncarnation(ctx context.Context, k *auth.Keeper, revoked auth.Revocations, address string) (a peer.Incarnation, err error) {
	transport := &http.Transport{TLSClientConfig: k.ClientTLS(revoked, auth.OnlyNodes, "http/1.1"), TLSHandshakeTimeout: 3 * time.Second}
	defer transport.CloseIdleConnections()
	err = client.New("https://"+address, transport, nil).Do(ctx, http.MethodGet, "/v1/peer/incarnation", nil, &a)
	return a, err
}

// addresses are where other agents may be: of nodes that are known, and of the
// hosts that had the state store, at the usual port.
func (u *unit) addresses() []string {
	own := u.node.APIAddress()
	set := map[string]bool{}
	for _, n := range append(u.network.Known(), u.pin().Controls...) {
		set[n.Address] = true
	}
	for _, e := range append(slices.Clone(u.node.Endpoints), u.kv.Client().Endpoints()...) {
		if parsed, err := url.Parse(e); err == nil && u.node.External == nil {
			set[net.JoinHostPort(parsed.Hostname(), strconv.Itoa(u.node.Ports.API))] = true
		}
	}
	delete(set, own)
	delete(set, "")
	return sortedKeys(set)
}

// goOver makes a later incarnation this host's, and ends the agent's parts.
func (u *unit) goOver(later cluster.Incarnation, endpoints []string) error {
	u.cfg.Log.Warn("the cluster was recovered; going over to its later incarnation", "seen", u.pin().Number, "later", later.Number, "endpoints", endpoints)
	later.Endpoints = endpoints
	if err := GoOver(u.node, u.pin(), later); err != nil {
		return err
	}
	return errLater
}

// GoOver makes a later incarnation a host's. What its member of the former
// state store had is set aside.
func GoOver(c cluster.Config, seen, later cluster.Incarnation) error {
	if err := Retire(c, fmt.Sprintf("incarnation-%d", seen.Number)); err != nil {
		return err
	}
	c.Endpoints = later.Endpoints
	if err := c.Save(); err != nil {
		return err
	}
	return c.SaveIncarnation(later)
}

// says is this node's answer to AskIncarnation.
func (u *unit) says(ctx context.Context) (peer.Incarnation, error) {
	a := peer.Incarnation{Cluster: u.node.Cluster, Incarnation: u.pin()}
	a.Endpoints, a.Controls = slices.Clone(u.node.Endpoints), nil
	for _, n := range u.network.Known() {
		if n.Control {
			a.Controls = append(a.Controls, api.Node{Name: n.Name, Address: n.Address, Control: true})
		}
	}
	if u.control() && !slices.ContainsFunc(a.Controls, func(n api.Node) bool { return n.Name == u.node.Name }) {
		a.Controls = append(a.Controls, api.Node{Name: u.node.Name, Address: u.node.APIAddress(), Control: true})
	}
	return a, ctx.Err()
}

// retiredFile tells the state unit that its member's data is of no use any
// more. It holds the name under which to set it aside; empty: remove it.
const retiredFile = "retired"

// Retire has the state unit stop its member, if there is one, and clear its
// data away: set aside under a name, or removed when there is none.
func Retire(c cluster.Config, aside string) error {
	if _, err := os.Stat(c.StateDir()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !hasMember(c) {
		err := os.Remove(filepath.Join(c.StateDir(), startFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.WriteFile(filepath.Join(c.StateDir(), retiredFile), []byte(aside), 0o600)
}

func hasMember(c cluster.Config) bool {
	_, err := os.Stat(filepath.Join(c.StateDir(), "member"))
	return err == nil
}

// Retired reports whether the member's data waits to be cleared away.
func Retired(c cluster.Config) bool {
	_, err := os.Stat(filepath.Join(c.StateDir(), retiredFile))
	return err == nil
}

// ClearRetired does what Retire asks for; the member must not run.
func ClearRetired(c cluster.Config, now time.Time) error {
	aside, err := os.ReadFile(filepath.Join(c.StateDir(), retiredFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(aside) == 0 {
		return os.RemoveAll(c.StateDir())
	}
	name := fmt.Sprintf("%s.%s-%s", c.StateDir(), filepath.Base(string(aside)), now.UTC().Format("20060102T150405"))
	if err := os.Rename(c.StateDir(), name); err != nil {
		return err
	}
	return os.Remove(filepath.Join(name, retiredFile))
}

// untilRetired ends when the member's data is to be cleared away.
func untilRetired(ctx context.Context, c cluster.Config) {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for !Retired(c) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
