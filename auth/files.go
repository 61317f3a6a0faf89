package auth

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/drover-data/drover/api"
)

// Files of an identity directory (DATA/identity). Key and certificate lie in
// one file, so that one rename changes both.
const (
	IdentityFile = "node.pem"  // private key, certificate, CA's certificate
	CAFile       = "ca.pem"    // whom this node trusts
	CRLFile      = "revoked"   // revoked keys, DER; written by the state unit
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
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
		if err := renameio.WriteFile(path, f.data, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
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
	list := &x509.RevocationList{Number: serialOf(sha256.Sum256(nil))}
	for _, h := range keyHashes {
		sum, err := hex.DecodeString(h)
		if err != nil || len(sum) != sha256.Size {
			return damaged("revocation", "it does not name a key: "+h)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serialOf([sha256.Size]byte(sum))})
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "drover revocations"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, der, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return ioError("write revocations", path, err)
	}
	return nil
}
