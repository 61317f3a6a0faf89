package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Oldest is the oldest version of an etcd that others run which will do: older
// ones lose track of who may do what while users change, and are not mended
// any more.
const Oldest = "3.4"

// Check finds out whether an etcd that others run will do, and says of what it
// is in want otherwise. write asks for the rights of a control node. It gives
// the endpoints that do not answer, as long as one does.
func Check(ctx context.Context, cfg ClientConfig, write bool) (silent []string, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var good []string
	var last error
	for _, e := range cfg.Endpoints {
		err := checkEndpoint(ctx, cfg, e)
		switch {
		case err == nil:
			good = append(good, e)
		case api.Is(err, api.Unavailable):
			silent, last = append(silent, e), err
		default:
			return nil, err
		}
	}
	if len(good) == 0 {
		return silent, last
	}
	cfg.Endpoints = good
	return silent, checkRights(ctx, cfg, write)
}

const opCheck = "reach the external etcd"

// checkEndpoint looks at one endpoint: what answers there, who it is, and how old.
func checkEndpoint(ctx context.Context, cfg ClientConfig, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return &api.Error{Kind: api.Invalid, Op: opCheck, Object: endpoint, Err: err}
	}
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := checkTLS(ctx, cfg.TLS, u); err != nil {
		return err
	}
	cfg.Endpoints, cfg.Sync, cfg.Timeout = []string{endpoint}, -1, patience
	kv, err := Open(cfg)
	if err != nil {
		return err
	}
	defer kv.Close()
	status, err := kv.client.Status(ctx, endpoint)
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: opCheck, Object: endpoint, Reason: "what answers there is no healthy member of an etcd cluster", Err: err, Next: "check the endpoint: it is the client port, as in https://host:2379"}
	}
	if older(status.Version, Oldest) {
		return &api.Error{Kind: api.Unsupported, Op: opCheck, Object: endpoint, Reason: fmt.Sprintf("it is etcd %s, and Drover needs %s or later", status.Version, Oldest), Next: "upgrade it, or leave out --etcd-endpoints: Drover then runs its own"}
	}
	return nil
}

// checkTLS shakes hands and hears whether the certificate is taken, which in
// TLS 1.3 the server says only afterwards.
func checkTLS(ctx context.Context, config *tls.Config, u *url.URL) error {
	fail := func(kind api.Kind, err error, reason, next string) error {
		return &api.Error{Kind: kind, Op: opCheck, Object: u.String(), Reason: reason, Err: err, Next: next}
	}
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", u.Host)
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var name x509.HostnameError
	var alert *net.OpError
	switch {
	case err == nil:
	case errors.As(err, &name):
		return fail(api.Unauthenticated, err, "its certificate is not for that address", "use the name or address that stands in it")
	case errors.As(err, &verify):
		return fail(api.Unauthenticated, err, "its certificate was not signed by the CA that was given", "give that etcd's CA with --etcd-ca")
	case errors.As(err, &record):
		return fail(api.Invalid, err, "it does not speak TLS", "Drover never sends the cluster's state in clear: give that etcd a certificate (--cert-file, --key-file, --client-cert-auth)")
	case errors.As(err, &alert) && alert.Op == "remote error":
		return fail(api.Unauthenticated, err, "it refuses the handshake: it speaks no TLS 1.3, or not with this certificate", "check --etcd-cert and --etcd-key, and that etcd was not told to use older ciphers only")
	default:
		return fail(api.Unavailable, err, "nothing answers there", "check address, port and firewall; it is the client port, as in https://host:2379")
	}
	defer conn.Close()
	const moment = 300 * time.Millisecond
	_ = conn.SetReadDeadline(time.Now().Add(moment))
	var one [1]byte
	if _, err := conn.Read(one[:]); errors.As(err, &alert) && alert.Op == "remote error" {
		return fail(api.Unauthenticated, err, "it refuses the certificate that was given", "give one that its CA signed for clients, with --etcd-cert and --etcd-key")
	}
	return nil
}

// checkRights reads, and for a control node writes, below the prefix.
func checkRights(ctx context.Context, cfg ClientConfig, write bool) error {
	cfg.Sync = -1
	kv, err := Open(cfg)
	if err != nil {
		return err
	}
	defer kv.Close()
	if _, _, err := kv.Get(ctx, state.TheCluster.Key("cluster")); err != nil {
		return err
	}
	if !write {
		return nil
	}
	probe := state.Root + "probe"
	if _, err := kv.Commit(ctx, state.Txn{Put: []state.Put{{Key: probe, Value: []byte("{}")}}}); err != nil {
		return err
	}
	_, err = kv.Commit(ctx, state.Txn{Delete: []string{probe}})
	return err
}

// older compares versions by their first two numbers; one that cannot be read
// is taken for old.
func older(version, than string) bool {
	read := func(v string) (major, minor int, ok bool) {
		part := strings.SplitN(v, ".", 3)
		if len(part) < 2 {
			return 0, 0, false
		}
		major, err1 := strconv.Atoi(part[0])
		minor, err2 := strconv.Atoi(part[1])
		return major, minor, err1 == nil && err2 == nil
	}
	major, minor, ok := read(version)
	wantMajor, wantMinor, _ := read(than)
	return !ok || major < wantMajor || (major == wantMajor && minor < wantMinor)
}
