package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
)

const (
	// CAValidity is how long the CA lasts. Nothing rotates it yet: a cluster
	// older than that has to be given a new identity node by node.
	CAValidity = 10 * 365 * 24 * time.Hour
	// Validity is how long a certificate lasts unless told otherwise.
	Validity = 90 * 24 * time.Hour
	// backdate makes a new certificate good on hosts whose clock is behind.
	backdate = 5 * time.Minute
)

// CA signs for one cluster.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes the CA of a new cluster.
func NewCA(cluster string, now time.Time) (*CA, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Drover cluster " + cluster, Organization: []string{"drover:ca"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CAValidity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "Drover cluster " + cluster, Organization: []string{"drover:ca"}}}, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{cert: cert, key: key}, err
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// ParseCA reads what Secret wrote.
func ParseCA(secret []byte) (*CA, error) {
	cert, key, err := parsePair(secret)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || cert.CheckSignatureFrom(cert) != nil {
		return nil, damaged("the cluster's CA", "it is not a CA that signed itself")
	}
	return &CA{cert: cert, key: key}, nil
}

func damaged(what, why string) error {
	return &api.Error{Kind: api.Damaged, Op: "read", Object: what, Reason: why}
}

// parsePair reads one private key and the first certificate, which must fit.
func parsePair(data []byte) (*x509.Certificate, crypto.Signer, error) {
	var cert *x509.Certificate
	var key crypto.Signer
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE" && cert == nil:
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, damaged("certificate", err.Error())
			}
			cert = c
		case block.Type == "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, damaged("private key", err.Error())
			}
			signer, ok := k.(crypto.Signer)
			if !ok {
				return nil, nil, damaged("private key", "it cannot sign")
			}
			key = signer
		}
	}
	if cert == nil || key == nil {
		return nil, nil, damaged("key and certificate", "one of them is missing")
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, nil, damaged("key and certificate", "they do not belong together")
	}
	return cert, key, nil
}

// Secret is the CA with its key, for the state store's secrets.
func (ca *CA) Secret() ([]byte, error) {
	key, err := keyPEM(ca.key)
	if err != nil {
		return nil, err
	}
	return append(key, ca.PEM()...), nil
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// PEM is the CA's certificate.
func (ca *CA) PEM() []byte { return certPEM(ca.cert.Raw) }

// Hash is how join tokens pin the CA.
func (ca *CA) Hash() string { return hashOf(ca.cert) }

func hashOf(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Subject is whom a certificate is for. The CA decides it; of a request only
// the key counts.
type Subject struct {
	Kind      IdentityKind // NodeKind or UserKind
	Name      string
	Role      api.Role // of a user
	Control   bool     // of a node
	Addresses []string // of a node: IP addresses and host names, without ports
}

// Sign issues a certificate for the key that signed the request (PEM). Its
// serial number is derived from the key, so that a revocation by key and a
// revocation list by serial number name the same thing; each renewal has a
// new key. What it returns is the chain: the certificate and the CA's.
func (ca *CA) Sign(request []byte, s Subject, now time.Time, validity time.Duration) ([]byte, error) {
	csr, err := parseRequest(request)
	if err != nil {
		return nil, err
	}
	name, hosts, err := s.names()
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(keyDER)
	notAfter := now.Add(validity)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber:          serialOf(sum),
		Subject:               name,
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if s.Kind == NodeKind {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return append(certPEM(der), ca.PEM()...), nil
}

// serialOf turns the hash of a key into a serial number: positive, at most 20 bytes.
func serialOf(keyHash [sha256.Size]byte) *big.Int {
	b := slices.Clone(keyHash[:16])
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func parseRequest(request []byte) (*x509.CertificateRequest, error) {
	bad := func(why string) (*x509.CertificateRequest, error) {
		return nil, &api.Error{Kind: api.Invalid, Op: "read certificate request", Reason: why}
	}
	block, rest := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return bad("it is not one request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return bad(err.Error())
	}
	if err := csr.CheckSignature(); err != nil {
		return bad("its signature is wrong")
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return bad("its key is not ECDSA on P-256")
	}
	return csr, nil
}

// RequestKeyHash is KeyHash of the certificate that a request will become.
func RequestKeyHash(request []byte) (string, error) {
	csr, err := parseRequest(request)
	if err != nil {
		return "", err
	}
	return KeyHash(&x509.Certificate{RawSubjectPublicKeyInfo: csr.RawSubjectPublicKeyInfo}), nil
}

func (s Subject) names() (pkix.Name, []string, error) {
	invalid := func(why string) (pkix.Name, []string, error) {
		return pkix.Name{}, nil, &api.Error{Kind: api.Invalid, Op: "sign certificate", Object: s.Name, Reason: why}
	}
	switch s.Kind {
	case NodeKind:
		if err := CheckNode(s.Name); err != nil {
			return pkix.Name{}, nil, err
		}
		hosts := append([]string{s.Name}, s.Addresses...)
		for _, h := range hosts {
			if h == ControlHost || h == "" {
				return invalid(fmt.Sprintf("%q cannot be an address", h))
			}
		}
		orgs := []string{orgNode}
		if s.Control {
			orgs = append(orgs, orgControl)
			hosts = append(hosts, ControlHost)
		}
		slices.Sort(hosts)
		return pkix.Name{CommonName: s.Name, Organization: orgs}, slices.Compact(hosts), nil
	case UserKind:
		if err := CheckUser(s.Name); err != nil {
			return pkix.Name{}, nil, err
		}
		if !KnownRole(s.Role) {
			return invalid(fmt.Sprintf("%q is not a role; there are viewer, operator and admin", s.Role))
		}
		return pkix.Name{CommonName: UserPrefix + s.Name, Organization: []string{orgUser + string(s.Role)}}, nil, nil
	}
	return invalid("only nodes and users have certificates")
}

// CheckNode is api.CheckNodeName without the names that mean something to the
// state store or the CA.
func CheckNode(name string) error {
	if err := api.CheckNodeName(name); err != nil {
		return err
	}
	if name == "root" || name == ControlHost {
		return &api.Error{Kind: api.Invalid, Op: "name a node", Object: name, Reason: "the name has a meaning of its own", Next: "give --name"}
	}
	return nil
}

// CheckUser allows what can stand in a certificate and a key of the store.
func CheckUser(name string) error {
	if err := api.CheckVolumeName(name); err != nil {
		return &api.Error{Kind: api.Invalid, Op: "name a user", Object: fmt.Sprintf("%q", name), Reason: "not a valid name", Next: "use letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 128"}
	}
	return nil
}
