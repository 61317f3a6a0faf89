package auth

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
)

// IdentityKind is what sort of somebody it is.
type IdentityKind string

// The kinds. The zero value is nobody: a connection without a certificate.
const (
	Nobody    IdentityKind = ""
	NodeKind  IdentityKind = "node"
	UserKind  IdentityKind = "user"
	LocalKind IdentityKind = "local" // through the unix socket, which root and the group drover can open
)

// Identity is who is on the other end of a connection.
type Identity struct {
	Kind    IdentityKind
	Name    string
	Role    api.Role // of users
	Control bool     // of nodes
	KeyHash string   // SHA-256 of the public key, hexadecimal
}

// Local is whoever opened the unix socket.
func Local(name string) Identity { return Identity{Kind: LocalKind, Name: name, Role: api.Admin} }

// String is the identity as audit lines show it.
func (i Identity) String() string {
	if i.Kind == Nobody {
		return "nobody"
	}
	return string(i.Kind) + " " + i.Name
}

// Organisations in certificates. Prefixes keep them apart from certificates
// that an outside CA may have issued for the same hosts.
const (
	orgNode    = "drover:node"
	orgControl = "drover:control"
	orgUser    = "drover:user:"
)

// UserPrefix begins the common name of users' certificates. It cannot be part
// of a node's name, so that a user can never pass for a node at a server that
// looks at common names only, as etcd does.
const UserPrefix = "user:"

// ControlHost is a name in the certificates of control nodes. Where a server
// can only be told which host names it may accept, it is told this one.
const ControlHost = "control.drover.internal"

// KeyHash is how a public key is named in the state store.
func KeyHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// OfCertificate reads an identity from a certificate of the cluster's CA,
// which has been verified.
func OfCertificate(cert *x509.Certificate) (Identity, error) {
	id := Identity{KeyHash: KeyHash(cert)}
	bad := func(why string) (Identity, error) {
		return Identity{}, &api.Error{Kind: api.Unauthenticated, Op: "recognise certificate", Object: cert.Subject.CommonName, Reason: why}
	}
	orgs := cert.Subject.Organization
	switch {
	case slices.Contains(orgs, orgNode):
		id.Kind, id.Name, id.Control = NodeKind, cert.Subject.CommonName, slices.Contains(orgs, orgControl)
		if err := api.CheckNodeName(id.Name); err != nil {
			return bad("its name is not that of a node")
		}
	case len(orgs) == 1 && strings.HasPrefix(orgs[0], orgUser):
		name, ok := strings.CutPrefix(cert.Subject.CommonName, UserPrefix)
		id.Kind, id.Name, id.Role = UserKind, name, api.Role(strings.TrimPrefix(orgs[0], orgUser))
		if !ok || name == "" || !KnownRole(id.Role) {
			return bad("it names no user with a role")
		}
	default:
		return bad("it is neither a node's nor a user's")
	}
	return id, nil
}

// Revocations says which keys are not to be trusted any more.
type Revocations interface {
	// Revoked gives the reason, or "" when the key is good.
	Revoked(keyHash string) string
}

// OfConnection is who is at the other end of a TLS connection that was
// verified against the cluster's CA: Nobody when it showed no certificate.
func OfConnection(cs tls.ConnectionState, revoked Revocations) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, nil
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, &api.Error{Kind: api.Unauthenticated, Op: "recognise certificate", Reason: "it was not verified"}
	}
	id, err := OfCertificate(cs.PeerCertificates[0])
	if err != nil {
		return Identity{}, err
	}
	if revoked != nil {
		if why := revoked.Revoked(id.KeyHash); why != "" {
			return Identity{}, &api.Error{Kind: api.Unauthenticated, Op: "recognise certificate", Object: id.String(), Reason: "it was revoked: " + why, Next: "a removed node can join again with a new token; a removed user needs a new certificate"}
		}
	}
	return id, nil
}
