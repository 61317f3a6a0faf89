package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/drover-data/drover/auth"
)

// guard is what stands at the client port of the embedded member: it lets in
// only nodes whose keys are good, and it can cut what is already open. etcd
// itself asks for the permission of a watch only when the watch begins, so
// without this a removed node would go on reading.
type guard struct {
	credentials.TransportCredentials
	revoked auth.Revocations

	mu    sync.Mutex // guards conns
	conns map[*guardedConn]struct{}
}

func newGuard(cfg *tls.Config, revoked auth.Revocations) *guard {
	return &guard{TransportCredentials: credentials.NewTLS(cfg), revoked: revoked, conns: map[*guardedConn]struct{}{}}
}

type guardedConn struct {
	net.Conn
	guard *guard
	raw   net.Conn
	id    auth.Identity
}

// Close forgets the connection.
func (c *guardedConn) Close() error {
	c.guard.mu.Lock()
	delete(c.guard.conns, c)
	c.guard.mu.Unlock()
	return c.Conn.Close()
}

// ServerHandshake implements credentials.TransportCredentials.
func (g *guard) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := g.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	id, err := auth.OfConnection(info.(credentials.TLSInfo).State, g.revoked)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	guarded := &guardedConn{Conn: conn, guard: g, raw: raw, id: id}
	g.mu.Lock()
	g.conns[guarded] = struct{}{}
	g.mu.Unlock()
	// A revocation between the handshake and here would otherwise miss it.
	if _, err := auth.OfConnection(info.(credentials.TLSInfo).State, g.revoked); err != nil {
		_ = guarded.Close()
		return nil, nil, err
	}
	return guarded, info, nil
}

// cut closes, without a word, the connections of keys that are revoked.
func (g *guard) cut() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if g.revoked.Revoked(c.id.KeyHash) != "" {
			_ = c.raw.Close() // the readers above notice and clear up
			n++
		}
	}
	return n
}

// Clone implements credentials.TransportCredentials.
func (g *guard) Clone() credentials.TransportCredentials { return g }

// reconnect is how a client comes back to a member that was away: soon, as
// members are few and a lost leader is noticed within seconds.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: 3 * time.Second,
}

// watchfulCreds notice that a server refused our certificate. In TLS 1.3 this
// arrives as an alert after the handshake, which gRPC takes for one more
// broken connection and retries for ever.
type watchfulCreds struct {
	tls     *tls.Config
	refused func()
}

func (w watchfulCreds) build() credentials.TransportCredentials {
	return &watchful{TransportCredentials: credentials.NewTLS(w.tls), refused: w.refused}
}

type watchful struct {
	credentials.TransportCredentials
	refused func()
}

// ClientHandshake implements credentials.TransportCredentials.
func (w *watchful) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return &watchfulConn{Conn: conn, refused: w.refused}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (w *watchful) Clone() credentials.TransportCredentials {
	return &watchful{TransportCredentials: w.TransportCredentials.Clone(), refused: w.refused}
}

type watchfulConn struct {
	net.Conn
	refused func()
}

// badCertificate is the alert (RFC 8446, 6.2) that a Go server sends when its
// VerifyConnection says no; one that is merely out of date gets another.
const badCertificate = "tls: bad certificate"

func (c *watchfulConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == badCertificate {
		c.refused()
	}
	return n, err
}
