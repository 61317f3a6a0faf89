package front

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/durable"
)

// secured is how a listener is secured; without a config it is not.
type secured struct {
	config      *tls.Config
	fingerprint string
	file        string
}

// plain is a listener for whoever reaches it.
func plain() *secured { return &secured{} }

// secure decides how the hub is secured.
func secure(o Options) (*secured, error) {
	const op = "secure the hub"
	switch {
	case (o.CertFile == "") != (o.KeyFile == ""):
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "a certificate needs its key, and a key its certificate", Next: "give both --tls-cert and --tls-key"}
	case o.CertFile != "" && o.SelfSigned != "":
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "there is a certificate already", Next: "give either --tls-cert with --tls-key, or --tls-self-signed"}
	case o.CertFile == "" && o.SelfSigned == "":
		if !o.InsecureHTTP && !onLoopback(o.Listen) {
			return nil, &api.Error{Kind: api.Denied, Op: op, Object: o.Listen, Reason: "tokens would cross the network in clear", Next: "give --tls-cert and --tls-key, or --tls-self-signed; --insecure-http if a proxy in front of it speaks TLS"}
		}
		return plain(), nil
	}
	out := &secured{}
	certificate, key := o.CertFile, o.KeyFile
	if o.SelfSigned != "" {
		var err error
		if certificate, key, err = selfSigned(o); err != nil {
			return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: o.SelfSigned, Reason: "no certificate can be kept there", Err: err}
		}
		out.file = certificate
	}
	k := &keeper{certificate: certificate, key: key, now: o.Now, log: o.Log}
	first, err := k.load()
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: certificate, Reason: "certificate and key cannot be used", Err: err, Next: "give both as PEM, the hub's own certificate first"}
	}
	if o.SelfSigned != "" {
		out.fingerprint = Fingerprint(first.Certificate[0])
	}
	out.config = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current(), nil }}
	return out, nil
}

// Fingerprint is SHA-256 over a certificate, as people compare it.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

func onLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && a.IsLoopback())
}

// keeper reads a certificate anew when its files change.
type keeper struct {
	certificate, key string
	now              func() time.Time
	log              *slog.Logger

	mu     sync.Mutex
	have   *tls.Certificate // guarded by mu
	mark   string           // guarded by mu; of the files that have is from
	looked time.Time        // guarded by mu
}

// lookEvery is how often the files are looked at, at most.
const lookEvery = time.Second

func (k *keeper) marks() string {
	out := ""
	for _, f := range []string{k.certificate, k.key} {
		if i, err := os.Stat(f); err == nil {
			out += i.ModTime().String() + " "
		}
	}
	return out
}

// load reads the files; what was there stays when they cannot be used.
func (k *keeper) load() (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read()
}

// read is load. The caller holds mu.
func (k *keeper) read() (*tls.Certificate, error) {
	k.mark, k.looked = k.marks(), k.now()
	c, err := tls.LoadX509KeyPair(k.certificate, k.key)
	if err != nil {
		return nil, err
	}
	k.have = &c
	return k.have, nil
}

func (k *keeper) current() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Sub(k.looked) < lookEvery {
		return k.have
	}
	k.looked = k.now()
	if k.marks() == k.mark {
		return k.have
	}
	// Two files are not changed at once: a pair that does not fit is tried again.
	if _, err := k.read(); err != nil {
		k.mark = ""
		k.log.Warn("the certificate changed and cannot be used; the old one stays", "file", k.certificate, "error", err)
	} else {
		k.log.Info("the certificate changed", "file", k.certificate)
	}
	return k.have
}

// selfSigned makes a certificate for all that this host is called, once.
func selfSigned(o Options) (certificate, key string, err error) {
	dir := o.SelfSigned
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := os.Stat(certificate); err == nil {
		return certificate, key, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return "", "", err
	}
	names, addresses := called(o)
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0], Organization: []string{"Drover hub"}}, DNSNames: names, IPAddresses: addresses,
		NotBefore: o.Now().Add(-time.Hour), NotAfter: o.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	// The certificate last: it says that both are there.
	if err := durable.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return "", "", err
	}
	return certificate, key, durable.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// called is what clients may call this host.
func called(o Options) (names []string, addresses []net.IP) {
	add := func(name string) {
		if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
			if !ip.IsUnspecified() {
				addresses = append(addresses, ip)
			}
		} else if name != "" {
			names = append(names, name)
		}
	}
	if u, err := url.Parse(o.Serve.URL); err == nil {
		add(u.Hostname())
	}
	if host, _, err := net.SplitHostPort(o.Listen); err == nil {
		add(host)
	}
	if host, err := os.Hostname(); err == nil {
		add(host)
	}
	add("localhost")
	list, err := net.InterfaceAddrs()
	if err != nil {
		list = nil // fewer names
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			addresses = append(addresses, n.IP)
		}
	}
	return names, addresses
}

// lockDatabase keeps two processes from one SQLite file: what they tell each other goes
// through PostgreSQL.
func lockDatabase(at string) (release func(), err error) {
	const op = "open the hub's database"
	if strings.Contains(at, "://") && !strings.HasPrefix(at, "sqlite://") {
		return func() {}, nil
	}
	path := strings.TrimPrefix(at, "sqlite://") + ".lock"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: path, Err: err, Next: "see whether its directory is there and may be written"}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &api.Error{Kind: api.InUse, Op: op, Object: path, Reason: "another process of the hub has it", Next: "several processes share a PostgreSQL database: --database postgres://…"}
		}
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: path, Err: err}
	}
	return func() { _ = f.Close() }, nil
}
