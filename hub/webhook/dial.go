package webhook

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/drover-data/drover/api"
)

// special are addresses that are not of the public internet and that netip does not name
// (https://www.iana.org/assignments/iana-ipv4-special-registry, and -ipv6-).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("5f00::/16"), netip.MustParsePrefix("fec0::/10"),
}

// Public says that an address is one of the public internet. What wraps an IPv4 address
// into another (NAT64, 6to4, Teredo) is not.
func Public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() { // loopback, link-local, multicast are not global unicast
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// allowed says whether webhooks may reach an address.
func (s *Sender) allowed(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range s.o.Allow {
		if p.Contains(a) {
			return true
		}
	}
	return Public(a)
}

// forbidden is the answer to who wants the hub to look into its own network.
func forbidden(address string) error {
	return &api.Error{Kind: api.Denied, Op: "send webhook", Object: address, Reason: "the hub sends to public addresses only", Next: "the hub's operator can allow others: drover hub serve --webhook-allow"}
}

// control is asked when the name is resolved and before anything is sent, so that no name
// can mean one address when it is looked at and another when it is used.
func (s *Sender) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !s.allowed(at.Addr()) {
		return forbidden(address)
	}
	return nil
}

// CheckURL refuses what cannot be the address of a webhook.
func (s *Sender) CheckURL(address string) error {
	bad := func(reason string) error {
		return &api.Error{Kind: api.Invalid, Op: "add webhook", Reason: reason, Next: "give it as in https://example.com/hook"}
	}
	u, err := url.Parse(address)
	switch {
	case err != nil || len(address) > 2000:
		return bad("its URL cannot be read")
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("its URL is neither https nor http")
	case u.Hostname() == "" || u.Opaque != "":
		return bad("its URL has no host")
	case u.User != nil:
		return bad("a login does not belong into its URL: what is sent is signed")
	case u.Fragment != "":
		return bad("its URL has a fragment")
	}
	// What is plain already; names are looked at when they are used.
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && !s.allowed(a) {
		return forbidden(u.Host)
	}
	return nil
}

// transport sends through no proxy: one would resolve names out of sight.
func (s *Sender) transport() *http.Transport {
	d := &net.Dialer{Timeout: s.o.Timeout, Control: s.control, KeepAlive: -1}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return d.DialContext(ctx, network, address)
		},
		TLSClientConfig: s.o.TLS, TLSHandshakeTimeout: s.o.Timeout, ResponseHeaderTimeout: s.o.Timeout,
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
	}
}

// Backoff is how long after each try the next one comes, as the specification proposes; after the last, no more.
func Backoff() []time.Duration {
	return []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}
}

func tooMany(n int) string { return fmt.Sprintf("given up after %d tries: ", n) }
