// Package remote reaches other nodes over mutual TLS: their agents, and, for
// a node that may not change records itself, the control nodes' ledger. It
// knows names and addresses, not what is asked.
package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/transfer"
)

// Network is the way to the other nodes.
type Network struct {
	Self    string
	Store   *state.Store
	Keeper  *auth.Keeper
	Revoked auth.Revocations

	mu         sync.Mutex
	nodes      map[string]api.Node        // guarded by mu; as last read
	transports map[string]*http.Transport // guarded by mu; by node and address
}

var _ peer.Agents = (*Network)(nil)

// node looks a node up; when the store does not answer, as it was last known.
func (n *Network) node(ctx context.Context, name string) (api.Node, error) {
	var node api.Node
	const patience = time.Second
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := n.Store.View(asking, func(tx *state.Tx) (err error) {
		node, _, err = state.Nodes.Get(tx, name)
		return err
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes == nil {
		n.nodes, n.transports = map[string]api.Node{}, map[string]*http.Transport{}
	}
	if err == nil {
		n.nodes[name] = node
		return node, nil
	}
	if known, ok := n.nodes[name]; ok && !api.Is(err, api.NotFound) {
		return known, nil
	}
	return node, err
}

// Know keeps nodes for times when the store does not answer.
func (n *Network) Know(list []api.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes == nil {
		n.nodes, n.transports = map[string]api.Node{}, map[string]*http.Transport{}
	}
	for _, node := range list {
		n.nodes[node.Name] = node
	}
}

// Known are the nodes as they were last read.
func (n *Network) Known() []api.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.nodes))
}

const dialTimeout = 3 * time.Second

func (n *Network) dial(ctx context.Context, node api.Node, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: 10 * time.Second}, Config: n.Keeper.ClientTLS(n.Revoked, auth.OnlyNode(node.Name), protocol)}
	conn, err := d.DialContext(ctx, "tcp", node.Address)
	if err != nil {
		var e *api.Error
		if errors.As(err, &e) {
			return nil, e
		}
		return nil, &api.Error{Kind: api.Unavailable, Op: "reach node", Object: node.Name + " at " + node.Address, Err: err, Next: "drover node ls shows whether it is there"}
	}
	return conn, nil
}

// Dial opens a connection for a transfer session.
func (n *Network) Dial(ctx context.Context, name string) (net.Conn, error) {
	node, err := n.node(ctx, name)
	if err != nil {
		return nil, err
	}
	return n.dial(ctx, node, transfer.ALPN)
}

// Transport gives the way to a node's API; "" is any control node.
func (n *Network) Transport(name string) (http.RoundTripper, error) {
	if name == "" {
		return anyControl{n}, nil
	}
	return toNode{n, name}, nil
}

// toNode sends requests to one node, wherever it is.
type toNode struct {
	n    *Network
	name string
}

func (t toNode) RoundTrip(r *http.Request) (*http.Response, error) {
	node, err := t.n.node(r.Context(), t.name)
	if err != nil {
		return nil, err
	}
	return t.n.transport(node).RoundTrip(r)
}

func (n *Network) transport(node api.Node) *http.Transport {
	key := node.Name + " " + node.Address
	n.mu.Lock()
	defer n.mu.Unlock()
	if t, ok := n.transports[key]; ok {
		return t
	}
	t := &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dial(ctx, node, "http/1.1") },
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 4,
	}
	n.transports[key] = t
	return t
}

// Cut closes the idle connections to all nodes, as after a new certificate.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.transports {
		t.CloseIdleConnections()
	}
}

// anyControl sends a request to the first control node that answers.
type anyControl struct{ n *Network }

func (t anyControl) RoundTrip(r *http.Request) (*http.Response, error) {
	list, err := t.n.controls(r.Context())
	if err != nil {
		return nil, err
	}
	for _, node := range list {
		attempt := r.Clone(r.Context())
		if r.GetBody != nil {
			if attempt.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		var answer *http.Response
		if answer, err = t.n.transport(node).RoundTrip(attempt); err == nil || r.Context().Err() != nil {
			return answer, err
		}
		if r.Body != nil && r.GetBody == nil {
			break // it may have been sent in part
		}
	}
	return nil, &api.Error{Kind: api.Unavailable, Op: "ask a control node", Reason: fmt.Sprintf("none of %d answers", len(list)), Err: err, Next: "drover node ls shows which nodes are there"}
}

func (n *Network) controls(ctx context.Context) ([]api.Node, error) {
	var list []api.Node
	const patience = time.Second
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := state.Nodes.All(asking, n.Store, "", func(_ string, node api.Node, _ int64) error {
		list = append(list, node)
		return nil
	})
	if err != nil {
		list = nil
		n.mu.Lock()
		for _, node := range n.nodes {
			list = append(list, node)
		}
		n.mu.Unlock()
	} else {
		n.Know(list)
	}
	list = slices.DeleteFunc(list, func(node api.Node) bool { return !node.Control || node.Name == n.Self })
	if len(list) == 0 {
		return nil, &api.Error{Kind: api.Unavailable, Op: "ask a control node", Reason: "no control node is known", Err: err}
	}
	return list, nil
}

func (n *Network) call(ctx context.Context, node, method, path string, in, out any) error {
	transport, err := n.Transport(node)
	if err != nil {
		return err
	}
	return client.New("https://node", transport, nil).Do(ctx, method, path, in, out)
}

// Pull implements peer.Agents.
func (n *Network) Pull(ctx context.Context, node string, r peer.Pull) error {
	return n.call(ctx, node, http.MethodPost, "/v1/peer/pull", r, nil)
}

// Prepare implements peer.Agents.
func (n *Network) Prepare(ctx context.Context, node string, p peer.Preparation) error {
	return n.call(ctx, node, http.MethodPost, "/v1/peer/prepare", p, nil)
}

// Status implements peer.Agents.
func (n *Network) Status(ctx context.Context, node, volume, branch string) (s api.HeadStatus, err error) {
	err = n.call(ctx, node, http.MethodGet, "/v1/peer/heads/"+url.PathEscape(volume)+"?branch="+url.QueryEscape(branch), nil, &s)
	return s, err
}

// Delete implements peer.Agents.
func (n *Network) Delete(ctx context.Context, node, volume, by string) error {
	return n.call(ctx, node, http.MethodPost, "/v1/peer/delete", peer.Delete{Volume: volume, By: by}, nil)
}

// Held implements peer.Agents.
func (n *Network) Held(ctx context.Context, node, volume string) (list []api.HeldSnapshot, err error) {
	err = n.call(ctx, node, http.MethodGet, "/v1/peer/held/"+url.PathEscape(volume), nil, &list)
	return list, err
}

// Hold implements peer.Agents.
func (n *Network) Hold(ctx context.Context, node string, r peer.Hold) (held peer.Held, err error) {
	err = n.call(ctx, node, http.MethodPost, "/v1/peer/hold", r, &held)
	return held, err
}

// Take implements peer.Agents.
func (n *Network) Take(ctx context.Context, node string, r peer.Take) error {
	return n.call(ctx, node, http.MethodPost, "/v1/peer/take", r, nil)
}

// Release implements peer.Agents.
func (n *Network) Release(ctx context.Context, node string, r peer.Release) error {
	return n.call(ctx, node, http.MethodPost, "/v1/peer/release", r, nil)
}

// Key implements peer.Agents.
func (n *Network) Key(ctx context.Context, node string, r peer.KeyRequest) (k peer.Key, err error) {
	err = n.call(ctx, node, http.MethodPost, "/v1/peer/key", r, &k)
	return k, err
}

// Renew has a certificate request signed by a control node.
func (n *Network) Renew(ctx context.Context, csr []byte) ([]byte, error) {
	var out peer.Renewal
	err := n.call(ctx, "", http.MethodPost, "/v1/peer/renew", peer.Renewal{CSR: csr}, &out)
	return out.Chain, err
}

// Report tells a control node what this node's pools hold.
func (n *Network) Report(ctx context.Context, r ledger.Report) error {
	return n.call(ctx, "", http.MethodPost, "/v1/peer/report", r, nil)
}

// MemberStart asks a control node how this node starts its member of the
// state store.
func (n *Network) MemberStart(ctx context.Context) (cluster.MemberStart, error) {
	var out cluster.MemberStart
	err := n.call(ctx, "", http.MethodPost, "/v1/peer/member", struct{}{}, &out)
	return out, err
}

// Ledger asks control nodes to change records in this node's name.
type Ledger struct{ Network *Network }

func (l Ledger) call(ctx context.Context, c peer.LedgerCall) (v api.Volume, err error) {
	err = l.Network.call(ctx, "", http.MethodPost, "/v1/peer/ledger", c, &v)
	return v, err
}

// Volume looks a volume up by name or id.
func (l Ledger) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "volume", ID: ref})
}

// Create writes the record of a new volume on this node.
func (l Ledger) Create(ctx context.Context, c ledger.Create) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "create", Create: &c})
}

// RequestMove writes down a wish.
func (l Ledger) RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "move", ID: id, Branch: branch, Move: &m})
}

// CancelMove withdraws a wish.
func (l Ledger) CancelMove(ctx context.Context, id, branch, move string) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "cancel", ID: id, Branch: branch, Move: &api.Move{ID: move}})
}

// Hand changes a head's owner.
func (l Ledger) Hand(ctx context.Context, id, branch string, o ledger.HandOver) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "hand", ID: id, Branch: branch, HandOver: &o})
}

// Ready notes that this node holds the head durably.
func (l Ledger) Ready(ctx context.Context, id, branch, _ string, epoch uint64) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "ready", ID: id, Branch: branch, Epoch: epoch})
}

// Settled notes that this node has cleared up.
func (l Ledger) Settled(ctx context.Context, id, branch, _ string, epoch uint64) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "settled", ID: id, Branch: branch, Epoch: epoch})
}

// Returned forgets that this node's containers moved away.
func (l Ledger) Returned(ctx context.Context, id, branch, _ string) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "returned", ID: id, Branch: branch})
}

// Resize sets the wished limit.
func (l Ledger) Resize(ctx context.Context, id string, size int64) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "resize", ID: id, Size: size})
}

// Delete begins a volume's grace.
func (l Ledger) Delete(ctx context.Context, id, by string) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "delete", ID: id, By: by})
}

// Change changes a volume's references.
func (l Ledger) Change(ctx context.Context, id string, c ledger.Change) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "change", ID: id, Change: &c})
}

// BeginPurge notes that this node is about to remove a deleted volume's data.
func (l Ledger) BeginPurge(ctx context.Context, id string) (api.Volume, error) {
	return l.call(ctx, peer.LedgerCall{Op: "purge", ID: id})
}

// Forget notes that this node destroyed a head whose grace ended.
func (l Ledger) Forget(ctx context.Context, id, branch, _ string, epoch uint64) error {
	_, err := l.call(ctx, peer.LedgerCall{Op: "forget", ID: id, Branch: branch, Epoch: epoch})
	return err
}
