package auth

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/durable"
)

// Files of an identity directory (DATA/identity). Key and certificate lie in
// one file, so that one rename changes both.
const (
	IdentityFile = "node.pem" // private key, certificate, CA's certificate
	CAFile       = "ca.pem"   // whom this node trusts
	CRLFile      = "revoked"  // revoked keys, DER; written by the state unit
)

// Request is a new private key and the request for its certificate.
type Request struct {
	key crypto.Signer
	CSR []byte // PEM
}

// NewRequest makes a key. The name is only for whoever reads the request; the
// CA decides what the certificate says.
func NewRequest(name string) (*Request, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return requestOf(key, name)
}

func requestOf(key crypto.Signer, name string) (*Request, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, err
	}
	return &Request{key: key, CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}, nil
}

// Bundle joins the key with the chain that the CA answered: the contents of
// IdentityFile, and what a user's client is given.
func (r *Request) Bundle(chain []byte) ([]byte, error) {
	key, err := keyPEM(r.key)
	if err != nil {
		return nil, err
	}
	bundle := append(key, chain...)
	if _, _, err := parsePair(bundle); err != nil {
		return nil, err
	}
	return bundle, nil
}

// WriteIdentity puts key, certificate and CA into the directory, which it
// makes if needed (mode 0700; the files have 0600).
func WriteIdentity(dir string, bundle, ca []byte) error {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return ioError("write identity", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return ioError("write identity", dir, err)
	}
	// The CA first: an identity without it is of no use, the reverse is harmless.
	for _, f := range []struct {
		name string
		data []byte
	}{{CAFile, ca}, {IdentityFile, bundle}} {
		path := filepath.Join(dir, f.name)
		if err := durable.WriteFile(path, f.data, 0o600); err != nil {
			return ioError("write identity", path, err)
		}
	}
	return nil
}

func ioError(op, object string, err error) error {
	kind := api.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = api.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = api.Denied
	}
	return &api.Error{Kind: kind, Op: op, Object: object, Err: err}
}

// WriteCRL writes a list of revoked keys in the form that etcd's peer port
// reads at each handshake. Whoever can write the file decides what it says,
// so its signature means nothing; it is made with a key of the moment.
func WriteCRL(path string, keyHashes []string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	anyTime := time.Unix(1, 0) // the format wants one; nobody reads it
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: anyTime, NextUpdate: anyTime.Add(time.Second)}
	for _, h := range keyHashes {
		sum, err := hex.DecodeString(h)
		if err != nil || len(sum) != sha256.Size {
			return damaged("revocation", "it does not name a key: "+h)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serialOf([sha256.Size]byte(sum)), RevocationTime: anyTime})
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "drover revocations"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, der, 0o600); err != nil {
		return ioError("write revocations", path, err)
	}
	return nil
}

// Key is the private key in PEM, for keeping a request that is under way.
func (r *Request) Key() ([]byte, error) { return keyPEM(r.key) }

// ParseRequest makes the same request again from what Key gave.
func ParseRequest(keyData []byte, name string) (*Request, error) {
	block, _ := pem.Decode(keyData)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, damaged("private key", "it is not PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged("private key", err.Error())
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, damaged("private key", "it cannot sign")
	}
	return requestOf(signer, name)
}

// Temporary is a certificate that the key has signed itself, good for an
// hour: it proves nothing but that its holder has the key.
func (r *Request) Temporary() (tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, r.key.Public(), r.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: r.key}, nil
}
