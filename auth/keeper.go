package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/drover-data/drover/api"
)

// Keeper holds this node's identity and gives TLS configurations that use
// whatever certificate is the newest, also for connections that are made long
// after a renewal. It is safe for concurrent use.
type Keeper struct {
	dir     string
	current atomic.Pointer[held]
}

type held struct {
	cert tls.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool
	id   Identity
}

// Open reads the identity in dir.
func Open(dir string) (*Keeper, error) {
	k := &Keeper{dir: dir}
	if err := k.Reload(); err != nil {
		return nil, err
	}
	return k, nil
}

// OpenBundle is a Keeper of an identity that lies in no directory: a user's.
func OpenBundle(bundle, ca []byte) (*Keeper, error) {
	k := &Keeper{}
	h, err := hold(bundle, ca)
	if err != nil {
		return nil, err
	}
	k.current.Store(h)
	return k, nil
}

// Reload reads the files again, for processes other than the one that renews.
func (k *Keeper) Reload() error {
	path := filepath.Join(k.dir, IdentityFile)
	bundle, err := os.ReadFile(path)
	if err != nil {
		return ioError("read identity", path, err)
	}
	path = filepath.Join(k.dir, CAFile)
	ca, err := os.ReadFile(path)
	if err != nil {
		return ioError("read identity", path, err)
	}
	h, err := hold(bundle, ca)
	if err != nil {
		return err
	}
	k.current.Store(h)
	return nil
}

func hold(bundle, caPEM []byte) (*held, error) {
	cert, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		return nil, &api.Error{Kind: api.Damaged, Op: "read identity", Err: err}
	}
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return nil, damaged("CA certificate", "it is not PEM")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, damaged("CA certificate", err.Error())
	}
	h := &held{cert: cert, ca: ca, pool: x509.NewCertPool()}
	h.pool.AddCert(ca)
	if err := cert.Leaf.CheckSignatureFrom(ca); err != nil {
		return nil, damaged("identity", "it was signed by another CA: "+err.Error())
	}
	h.id, err = OfCertificate(cert.Leaf)
	return h, err
}

// Identity is who this node is.
func (k *Keeper) Identity() Identity { return k.current.Load().id }

// Certificate is the one in use.
func (k *Keeper) Certificate() *x509.Certificate { return k.current.Load().cert.Leaf }

// CAHash pins the cluster's CA, for join tokens.
func (k *Keeper) CAHash() string { return hashOf(k.current.Load().ca) }

// CAPEM is the cluster's CA certificate.
func (k *Keeper) CAPEM() []byte { return certPEM(k.current.Load().ca.Raw) }

// Dir is where the identity lies.
func (k *Keeper) Dir() string { return k.dir }

// Install takes a new certificate into use: new connections have it at once.
func (k *Keeper) Install(r *Request, chain []byte) error {
	bundle, err := r.Bundle(chain)
	if err != nil {
		return err
	}
	ca := k.CAPEM()
	h, err := hold(bundle, ca)
	if err != nil {
		return err
	}
	if h.id.Kind != k.Identity().Kind || h.id.Name != k.Identity().Name {
		return &api.Error{Kind: api.Invalid, Op: "renew certificate", Object: k.Identity().String(), Reason: "the answer is for " + h.id.String()}
	}
	if err := WriteIdentity(k.dir, bundle, ca); err != nil {
		return err
	}
	k.current.Store(h)
	return nil
}

// RenewAt is when a certificate should be replaced: at two thirds of its life.
func RenewAt(notBefore, notAfter time.Time) time.Time {
	return notBefore.Add(notAfter.Sub(notBefore) / 3 * 2)
}

// NextRenewal says how long to wait before trying to renew, after so many
// failed attempts in a row. It is pure. Failures are repeated ever more
// slowly, but at least eight times in what is left of the life.
func NextRenewal(notBefore, notAfter, now time.Time, failures int) time.Duration {
	due := RenewAt(notBefore, notAfter)
	if now.Before(due) {
		return due.Sub(now)
	}
	if failures == 0 {
		return 0
	}
	wait := time.Second << min(failures, 12) // up to about an hour
	if left := notAfter.Sub(now) / 8; left > 0 && left < wait {
		wait = left
	}
	return max(wait, time.Second)
}

// Run renews until ctx ends, with sign sending the request to whoever holds
// the CA's key. report is told of every attempt; its error is nil on success.
// wake, which may be nil, asks for a renewal now, as when the node's part in
// the cluster has changed.
func (k *Keeper) Run(ctx context.Context, sign func(ctx context.Context, csr []byte) (chain []byte, err error), wake <-chan struct{}, report func(error)) {
	failures := 0
	for {
		c := k.Certificate()
		timer := time.NewTimer(NextRenewal(c.NotBefore, c.NotAfter, time.Now(), failures))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-wake:
			timer.Stop()
		case <-timer.C:
		}
		err := k.Renew(ctx, sign)
		if ctx.Err() != nil {
			return
		}
		report(err)
		failures++
		if err == nil {
			failures = 0
		}
	}
}

// Renew makes a new key, has it signed and takes it into use.
func (k *Keeper) Renew(ctx context.Context, sign func(ctx context.Context, csr []byte) ([]byte, error)) error {
	r, err := NewRequest(k.Identity().Name)
	if err != nil {
		return err
	}
	chain, err := sign(ctx, r.CSR)
	if err != nil {
		return err
	}
	return k.Install(r, chain)
}
