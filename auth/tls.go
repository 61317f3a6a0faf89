package auth

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/drover-data/drover/api"
)

// ServerTLS is for a server whose clients show a certificate of the cluster.
// accept decides at the handshake whether somebody may speak at all.
func (k *Keeper) ServerTLS(revoked Revocations, accept func(Identity) error, protocols ...string) *tls.Config {
	return k.serverTLS(tls.RequireAndVerifyClientCert, revoked, accept, protocols)
}

// OpenServerTLS is the same for the agent's port, where a joining node, which
// has no certificate yet, may connect too. Each route asks Allow.
func (k *Keeper) OpenServerTLS(revoked Revocations, protocols ...string) *tls.Config {
	return k.serverTLS(tls.VerifyClientCertIfGiven, revoked, nil, protocols)
}

func (k *Keeper) serverTLS(clients tls.ClientAuthType, revoked Revocations, accept func(Identity) error, protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ClientAuth: clients,
		ClientCAs:  k.current.Load().pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &k.current.Load().cert, nil
		},
		// Tickets would let a revoked certificate in without its being shown;
		// VerifyConnection runs for resumed connections too, but a full
		// handshake is cheap enough to leave no doubt.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := OfConnection(cs, revoked)
			if err != nil || accept == nil {
				return err
			}
			return accept(id)
		},
	}
}

// ClientTLS is for dialing a server of this cluster. The server must have the
// address that was dialed in its certificate; accept, which may be nil,
// decides whether it is the right one otherwise.
func (k *Keeper) ClientTLS(revoked Revocations, accept func(Identity) error, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		RootCAs:    k.current.Load().pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &k.current.Load().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := OfConnection(cs, revoked)
			if err != nil || accept == nil {
				return err
			}
			return accept(id)
		},
	}
}

// OnlyControl accepts control nodes.
func OnlyControl(id Identity) error {
	if id.Kind != NodeKind || !id.Control {
		return &api.Error{Kind: api.Denied, Op: "connect", Object: id.String(), Reason: "it is not a control node"}
	}
	return nil
}

// OnlyNodes accepts nodes.
func OnlyNodes(id Identity) error {
	if id.Kind != NodeKind {
		return &api.Error{Kind: api.Denied, Op: "connect", Object: id.String(), Reason: "it is not a node"}
	}
	return nil
}

// OnlyNode accepts the node of that name.
func OnlyNode(name string) func(Identity) error {
	return func(id Identity) error {
		if id.Kind != NodeKind || id.Name != name {
			return &api.Error{Kind: api.Denied, Op: "connect to node " + name, Object: id.String(), Reason: "another one answers at its address"}
		}
		return nil
	}
}

// PinnedTLS is for the first connection of a joining node, which knows only
// the CA's hash: the server must show a chain to that CA and be a control
// node with the dialed host in its certificate. ca is called with the CA's
// certificate (PEM) during a handshake that succeeds.
func PinnedTLS(caHash, host string, ca func(pem []byte), protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ServerName: host,
		// The usual verification has no root to begin with; VerifyConnection
		// does all of it, with the pinned CA.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			certs := cs.PeerCertificates
			bad := func(why string) error {
				return &api.Error{Kind: api.Unauthenticated, Op: "join cluster", Object: host, Reason: why, Next: "make a new token on the cluster that this node shall join"}
			}
			var pinned *x509.Certificate
			for _, c := range certs[min(1, len(certs)):] {
				if hashOf(c) == caHash && c.IsCA {
					pinned = c
				}
			}
			if pinned == nil {
				return bad("the server there is not of the cluster that made the token")
			}
			roots := x509.NewCertPool()
			roots.AddCert(pinned)
			if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return bad(fmt.Sprintf("its certificate is not good: %v", err))
			}
			id, err := OfCertificate(certs[0])
			if err != nil {
				return err
			}
			if err := OnlyControl(id); err != nil {
				return err
			}
			ca(certPEM(pinned.Raw))
			return nil
		},
	}
}
