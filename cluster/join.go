package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

// MaxSkew is how far the clocks of two nodes may be apart.
const MaxSkew = 5 * time.Second

// dialBackProtocol (ALPN) is spoken for as long as a handshake takes: the
// control node dials the joining one under its advertised address.
const dialBackProtocol = "drover-join/1"

// JoinRequest is what a joining node sends to a control node.
type JoinRequest struct {
	Token    string    `json:"token" doc:"id of the token"`
	Secret   string    `json:"secret" doc:"secret half of the token"`
	Name     string    `json:"name"`
	Address  string    `json:"address" doc:"host:port where its agent will serve"`
	StateURL string    `json:"stateURL" doc:"where clients would reach its member of the state store"`
	PeerURL  string    `json:"peerURL" doc:"where members would reach its member of the state store"`
	CSR      []byte    `json:"csr" doc:"certificate request, PEM"`
	Clock    time.Time `json:"clock" doc:"its time when it sent this"`
	Software string    `json:"software" doc:"version of its binary"`
	API      int       `json:"api" doc:"newest version of API and transfer protocol it speaks"`
	Oldest   int       `json:"oldestAPI,omitempty" doc:"oldest version that it still speaks; 0: only the newest"`
	External bool      `json:"external,omitempty" doc:"it was given the TLS files of an etcd that is not Drover's"`
	Worker   bool      `json:"worker,omitempty" doc:"it does not want to be a member of the state store, whatever the token allows"`
}

// JoinAnswer is what the joining node is given.
type JoinAnswer struct {
	Cluster   api.Cluster `json:"cluster"`
	Node      api.Node    `json:"node"`
	Chain     []byte      `json:"chain" doc:"its certificate and the CA's, PEM"`
	CA        []byte      `json:"ca" doc:"PEM"`
	Endpoints []string    `json:"endpoints" doc:"of the state store"`
	Prefix    string      `json:"prefix,omitempty" doc:"of all keys in an external state store"`
	External  bool        `json:"external,omitempty" doc:"the state store is not Drover's own: its TLS files have to be given to this node"`
}

// joinFacts is what the decision about a request rests on.
type joinFacts struct {
	now       time.Time
	token     *state.Token // nil: there is none of that id
	node      *api.Node    // of the name wanted; nil: it is free
	byAddress string       // node that has one of the addresses already
	key       string       // hash of the request's key
	// speak is what the nodes speak that it would have to talk to.
	speak map[string]api.Versions
}

// check decides about a request, all but the dialing back. It is pure. replay
// means that the same node asks again because it never saw the answer.
func (r JoinRequest) check(f joinFacts) (replay bool, err error) {
	refuse := func(kind api.Kind, reason, next string) (bool, error) {
		return false, &api.Error{Kind: kind, Op: "join cluster", Object: r.Name, Reason: reason, Next: next}
	}
	const newToken = "make a new token with drover node token on a node of the cluster"
	// Whoever does not know the secret learns nothing else.
	if f.token == nil || !auth.SecretMatches(r.Secret, f.token.Hash) {
		return refuse(api.Unauthenticated, "the token is not known here; it was mistyped, revoked or made by another cluster", newToken)
	}
	replay = f.token.Used == r.Name && f.node != nil && f.node.Key == f.key
	switch {
	case replay:
	case f.token.Used != "":
		return refuse(api.Denied, "the token was used already, by node "+f.token.Used, newToken)
	case !f.now.Before(f.token.Expires):
		return refuse(api.Denied, "the token expired at "+f.token.Expires.UTC().Format(time.RFC3339), newToken)
	}
	if err := r.Validate(); err != nil {
		return false, err
	}
	theirs := versions(r.API, r.Oldest)
	for _, name := range slices.Sorted(maps.Keys(f.speak)) {
		if _, ok := theirs.Common(f.speak[name]); !ok {
			return refuse(api.Unsupported, fmt.Sprintf("its version %s speaks API %s, and %s of this cluster API %s", r.Software, theirs, name, f.speak[name]), "install the cluster's version of Drover")
		}
	}
	if skew := r.Clock.Sub(f.now); skew.Abs() > MaxSkew {
		return refuse(api.Invalid, fmt.Sprintf("its clock says %s and the cluster's %s, %v apart; at most %v are allowed", r.Clock.UTC().Format(time.RFC3339Nano), f.now.UTC().Format(time.RFC3339Nano), skew.Abs().Round(time.Millisecond), MaxSkew), "set the clocks, for instance with chrony or systemd-timesyncd")
	}
	if f.node != nil && !replay {
		return refuse(api.Exists, fmt.Sprintf("there is a node of that name already, at %s since %s", f.node.Address, f.node.Joined.UTC().Format(time.RFC3339)), "give another --name, or remove the old node with drover node rm "+r.Name)
	}
	if f.byAddress != "" && f.byAddress != r.Name {
		return refuse(api.Exists, fmt.Sprintf("node %s has the address %s already", f.byAddress, r.Address), "give another --advertise, or remove the old node with drover node rm "+f.byAddress)
	}
	return replay, nil
}

// Validate reports all that is malformed.
func (r JoinRequest) Validate() error {
	var errs []error
	errs = append(errs, auth.CheckNode(r.Name), auth.CheckAddress(r.Address))
	host, _, _ := net.SplitHostPort(r.Address)
	for what, u := range map[string]string{"state": r.StateURL, "peer": r.PeerURL} {
		rest, ok := cutPrefix(u, "https://")
		h, _, err := net.SplitHostPort(rest)
		if !ok || err != nil || h != host || auth.CheckAddress(rest) != nil {
			errs = append(errs, fmt.Errorf("%s URL %q is not https at the host of its address %q", what, u, r.Address))
		}
	}
	if _, err := auth.RequestKeyHash(r.CSR); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return &api.Error{Kind: api.Invalid, Op: "join cluster", Object: r.Name, Err: err}
	}
	return nil
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return s, false
	}
	return s[len(prefix):], true
}

// Dialer finds out whether an address leads to the node that it should.
type Dialer interface {
	// DialBack succeeds when whoever answers at address holds the key.
	DialBack(ctx context.Context, address, keyHash string) error
}

// TLSDialer dials for real.
type TLSDialer struct {
	Timeout time.Duration // default 5 s
}

// DialBack implements Dialer.
func (d TLSDialer) DialBack(ctx context.Context, address, keyHash string) error {
	if d.Timeout == 0 {
		d.Timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{dialBackProtocol},
		// Nobody has signed the other's key yet; that it holds the key of its
		// request is all there is to know, and VerifyConnection asks for it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 || auth.KeyHash(cs.PeerCertificates[0]) != keyHash {
				return errors.New("another server answers there")
			}
			return nil
		},
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return &api.Error{Kind: api.Invalid, Op: "reach the joining node", Object: address, Reason: "its advertised address does not lead to it from here", Err: err, Next: "open the port in its firewall, or give the address that other nodes see with --advertise"}
	}
	_ = conn.Close()
	return nil
}

// AnswerDialBack lets a control node find the joining one: it completes
// handshakes on the listener until ctx ends, and closes the listener.
func AnswerDialBack(ctx context.Context, l net.Listener, r *auth.Request) error {
	cert, err := r.Temporary()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{dialBackProtocol}, Certificates: []tls.Certificate{cert}}
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_ = tls.Server(conn, cfg).Handshake()
		}()
	}
}

// PrepareJoin checks that this host may join, and gives the request to send
// and the key behind it. The key is kept, so that a join that was interrupted
// goes on when it is repeated with the same token.
func PrepareJoin(c Config, token auth.Token, software string, now time.Time) (JoinRequest, *auth.Request, error) {
	c = c.WithDefaults()
	if err := c.Validate(); err != nil {
		return JoinRequest{}, nil, err
	}
	if err := refuseMember(c.DataDir); err != nil {
		return JoinRequest{}, nil, err
	}
	path := filepath.Join(c.IdentityDir(), joinKeyFile)
	var r *auth.Request
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		r, err = auth.ParseRequest(data, c.Name)
	case errors.Is(err, fs.ErrNotExist):
		if r, err = auth.NewRequest(c.Name); err == nil {
			if data, err = r.Key(); err == nil {
				err = writeFile(path, data)
			}
		}
	default:
		err = fileError("join cluster", path, err)
	}
	if err != nil {
		return JoinRequest{}, nil, err
	}
	return JoinRequest{
		Token: token.ID, Secret: token.Secret, Name: c.Name, Address: c.APIAddress(),
		StateURL: c.StateURL(), PeerURL: c.PeerURL(), CSR: r.CSR, Clock: now.UTC(),
		Software: software, API: api.Speaks().Newest, Oldest: api.Speaks().Oldest, External: c.External != nil, Worker: !c.Candidate,
	}, r, nil
}

// storeMismatch refuses a node that expects another kind of state store.
func storeMismatch(node string, external bool) error {
	e := &api.Error{Kind: api.Invalid, Op: "join cluster", Object: node, Reason: "this cluster runs its own state store", Next: "leave out --etcd-endpoints"}
	if external {
		e.Reason, e.Next = "this cluster keeps its state in an external etcd", "give --etcd-endpoints, and its TLS files with --etcd-ca, --etcd-cert and --etcd-key"
	}
	return e
}

// FinishJoin checks the answer against the token and writes this node's
// identity and configuration.
func FinishJoin(c Config, token auth.Token, r *auth.Request, a JoinAnswer) (Config, error) {
	c = c.WithDefaults()
	bad := func(why string) (Config, error) {
		return Config{}, &api.Error{Kind: api.Unauthenticated, Op: "join cluster", Object: c.Name, Reason: "the answer cannot be trusted: " + why, Next: "make a new token on the cluster that this node shall join"}
	}
	bundle, err := r.Bundle(a.Chain)
	if err != nil {
		return bad(err.Error())
	}
	k, err := auth.OpenBundle(bundle, a.CA)
	if err != nil {
		return bad(err.Error())
	}
	if k.CAHash() != token.CA {
		return bad("its CA is not the one in the token")
	}
	if id := k.Identity(); id.Kind != auth.NodeKind || id.Name != c.Name {
		return bad("the certificate is for " + id.String())
	}
	c.Cluster, c.Candidate = a.Cluster.ID, a.Node.Candidate
	if c.External == nil {
		if a.External {
			return Config{}, storeMismatch(c.Name, true)
		}
		c.Endpoints = a.Endpoints
	} else {
		if len(c.Endpoints) == 0 {
			c.Endpoints = a.Endpoints
		}
		x := *c.External
		x.Prefix = a.Prefix
		c.External = &x
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	if err := auth.WriteIdentity(c.IdentityDir(), bundle, bytes.Clone(a.CA)); err != nil {
		return Config{}, err
	}
	if err := c.SaveIncarnation(Incarnation{Number: a.Cluster.Incarnation}); err != nil {
		return Config{}, err
	}
	if err := c.Save(); err != nil {
		return Config{}, err
	}
	if err := os.Remove(filepath.Join(c.IdentityDir(), joinKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Config{}, fileError("join cluster", joinKeyFile, err)
	}
	return c, nil
}
