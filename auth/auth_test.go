package auth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
)

func newCA(t *testing.T, name string) *auth.CA {
	t.Helper()
	ca, err := auth.NewCA(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *auth.CA, s auth.Subject, life time.Duration) *auth.Keeper {
	t.Helper()
	r, err := auth.NewRequest(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Sign(r.CSR, s, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "identity")
	if err := auth.WriteIdentity(dir, bundle, ca.PEM()); err != nil {
		t.Fatal(err)
	}
	k, err := auth.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func node(name string, control bool) auth.Subject {
	return auth.Subject{Kind: auth.NodeKind, Name: name, Control: control, Addresses: []string{"127.0.0.1"}}
}

func user(name string, role api.Role) auth.Subject {
	return auth.Subject{Kind: auth.UserKind, Name: name, Role: role}
}

func TestIdentities(t *testing.T) {
	ca := newCA(t, "test")
	for _, c := range []struct {
		subject auth.Subject
		want    auth.Identity
	}{
		{node("n1", false), auth.Identity{Kind: auth.NodeKind, Name: "n1"}},
		{node("n1", true), auth.Identity{Kind: auth.NodeKind, Name: "n1", Control: true}},
		{user("ann", api.Viewer), auth.Identity{Kind: auth.UserKind, Name: "ann", Role: api.Viewer}},
		{user("n1", api.Admin), auth.Identity{Kind: auth.UserKind, Name: "n1", Role: api.Admin}},
	} {
		k := issue(t, ca, c.subject, time.Hour)
		got := k.Identity()
		c.want.KeyHash = auth.KeyHash(k.Certificate())
		if got != c.want {
			t.Errorf("%+v became %+v", c.subject, got)
		}
		isNode := c.subject.Kind == auth.NodeKind
		if server := k.Certificate().VerifyHostname("127.0.0.1") == nil; server != isNode {
			t.Errorf("%s can serve: %v", got, server)
		}
		if control := k.Certificate().VerifyHostname(auth.ControlHost) == nil; control != c.subject.Control {
			t.Errorf("%s has the name of control nodes: %v", got, control)
		}
		if got.Kind == auth.UserKind && api.CheckNodeName(k.Certificate().Subject.CommonName) == nil {
			t.Errorf("the common name %s could be a node's", k.Certificate().Subject.CommonName)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	ca := newCA(t, "test")
	r, err := auth.NewRequest("x")
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]auth.Subject{
		"nobody":          {},
		"root":            node("root", false),
		"no name":         node("", false),
		"a bad name":      node("a/b", false),
		"control by name": {Kind: auth.NodeKind, Name: "n1", Addresses: []string{auth.ControlHost}},
		"unknown role":    user("ann", "god"),
		"bad user":        user("a/b", api.Viewer),
	} {
		if _, err := ca.Sign(r.CSR, s, time.Now(), time.Hour); !api.Is(err, api.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, csr := range [][]byte{nil, []byte("x"), ca.PEM(), append(r.CSR, r.CSR...)} {
		if _, err := ca.Sign(csr, node("n1", false), time.Now(), time.Hour); !api.Is(err, api.Invalid) {
			t.Errorf("request %.20q: %v", csr, err)
		}
	}
}

func TestCARoundTrip(t *testing.T) {
	ca := newCA(t, "test")
	secret, err := ca.Secret()
	if err != nil {
		t.Fatal(err)
	}
	again, err := auth.ParseCA(secret)
	if err != nil || again.Hash() != ca.Hash() {
		t.Fatal(err)
	}
	issue(t, again, node("n1", false), time.Hour)
	for _, back := range []int{80, 130, 300} { // in the certificate
		broken := append([]byte(nil), secret...)
		broken[len(broken)-back] ^= 1
		if _, err := auth.ParseCA(broken); err == nil {
			t.Errorf("a damaged CA was read")
		}
	}
	other, err := newCA(t, "other").Secret()
	if err != nil {
		t.Fatal(err)
	}
	key, _, _ := strings.Cut(string(other), "-----BEGIN CERTIFICATE")
	if _, err := auth.ParseCA([]byte(key + string(ca.PEM()))); !api.Is(err, api.Damaged) {
		t.Errorf("the key of another CA: %v", err)
	}
}

// talk makes one connection and gives what each side thinks of it.
func talk(t *testing.T, server, client *tls.Config) (who tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if serverErr = conn.Handshake(); serverErr == nil {
			who = conn.ConnectionState()
			_, serverErr = conn.Write([]byte("hello"))
		}
	}()
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 5))
		_ = conn.Close()
	}
	<-done
	return who, serverErr, clientErr
}

type revoked map[string]string

func (r revoked) Revoked(key string) string { return r[key] }

func TestMutualTLS(t *testing.T) {
	ca, other := newCA(t, "test"), newCA(t, "other")
	server := issue(t, ca, node("n1", true), time.Hour)
	plain := issue(t, ca, node("n2", false), time.Hour)
	ann := issue(t, ca, user("ann", api.Viewer), time.Hour)
	stranger := issue(t, other, node("n2", false), time.Hour)
	bad := revoked{ann.Identity().KeyHash: "gone"}

	who, serverErr, clientErr := talk(t, server.ServerTLS(nil, auth.OnlyNodes), plain.ClientTLS(nil, auth.OnlyNode("n1")))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if id, err := auth.OfConnection(who, nil); err != nil || id.Name != "n2" || who.Version != tls.VersionTLS13 {
		t.Fatalf("%+v, %v", id, err)
	}
	anonymous := &tls.Config{RootCAs: server.ClientTLS(nil, nil).RootCAs}
	old := plain.ClientTLS(nil, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	unverified := stranger.ClientTLS(nil, nil)
	unverified.RootCAs = server.ClientTLS(nil, nil).RootCAs
	for name, c := range map[string]struct{ server, client *tls.Config }{
		"no certificate":       {server.ServerTLS(nil, nil), anonymous},
		"a user to a node":     {server.ServerTLS(nil, auth.OnlyNodes), ann.ClientTLS(nil, nil)},
		"a revoked one":        {server.ServerTLS(bad, nil), ann.ClientTLS(nil, nil)},
		"open, revoked":        {server.OpenServerTLS(bad), ann.ClientTLS(nil, nil)},
		"another cluster's":    {server.ServerTLS(nil, nil), unverified},
		"open, another's":      {server.OpenServerTLS(nil), unverified},
		"TLS 1.2":              {server.ServerTLS(nil, nil), old},
		"server another's":     {stranger.ServerTLS(nil, nil), plain.ClientTLS(nil, nil)},
		"server another node":  {server.ServerTLS(nil, nil), plain.ClientTLS(nil, auth.OnlyNode("n3"))},
		"server no control":    {plain.ServerTLS(nil, nil), server.ClientTLS(nil, auth.OnlyControl)},
		"server is revoked":    {server.ServerTLS(nil, nil), plain.ClientTLS(revoked{server.Identity().KeyHash: "x"}, nil)},
		"pinned to another CA": {server.OpenServerTLS(nil), auth.PinnedTLS(other.Hash(), "127.0.0.1", func([]byte) {})},
		"pinned, no control":   {plain.OpenServerTLS(nil), auth.PinnedTLS(ca.Hash(), "127.0.0.1", func([]byte) {})},
		"pinned, other host":   {server.OpenServerTLS(nil), auth.PinnedTLS(ca.Hash(), "127.0.0.2", func([]byte) {})},
		"user as server":       {ann.OpenServerTLS(nil), plain.ClientTLS(nil, nil)},
	} {
		_, serverErr, clientErr := talk(t, c.server, c.client)
		if clientErr == nil {
			t.Errorf("%s: accepted (server: %v)", name, serverErr)
		}
	}
	if _, serverErr, clientErr := talk(t, server.OpenServerTLS(bad), anonymous); serverErr != nil || clientErr != nil {
		t.Errorf("a joining node: %v, %v", serverErr, clientErr)
	}
	var pinned []byte
	if _, _, err := talk(t, server.OpenServerTLS(nil), auth.PinnedTLS(ca.Hash(), "127.0.0.1", func(pem []byte) { pinned = pem })); err != nil || string(pinned) != string(ca.PEM()) {
		t.Errorf("the pinned CA: %v", err)
	}
}

func TestPinnedNeedsProof(t *testing.T) {
	// Somebody in the middle has the true CA's certificate, which is public,
	// but a leaf of his own.
	ca, mallory := newCA(t, "test"), newCA(t, "test")
	fake := issue(t, mallory, node("n1", true), time.Hour)
	cfg := fake.OpenServerTLS(nil)
	get := cfg.GetCertificate
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := get(h)
		forged := *c
		real := issue(t, ca, node("x", false), time.Hour)
		ocert, err2 := real.ServerTLS(nil, nil).GetCertificate(h)
		forged.Certificate = append([][]byte{c.Certificate[0]}, ocert.Certificate[1])
		return &forged, errors.Join(err, err2)
	}
	if _, _, err := talk(t, cfg, auth.PinnedTLS(ca.Hash(), "127.0.0.1", func([]byte) {})); err == nil {
		t.Fatal("a forged chain was believed")
	}
}

func TestRenewalIsHot(t *testing.T) {
	ca := newCA(t, "test")
	server, client := issue(t, ca, node("n1", false), time.Hour), issue(t, ca, node("n2", false), time.Hour)
	serverTLS, clientTLS := server.ServerTLS(nil, nil), client.ClientTLS(nil, nil)
	before, _, err := talk(t, serverTLS, clientTLS)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string) func(context.Context, []byte) ([]byte, error) {
		return func(_ context.Context, csr []byte) ([]byte, error) {
			return ca.Sign(csr, node(name, true), time.Now(), time.Hour)
		}
	}
	if err := client.Renew(t.Context(), sign("n3")); !api.Is(err, api.Invalid) {
		t.Fatalf("a certificate of another node was installed: %v", err)
	}
	if err := client.Renew(t.Context(), sign("n2")); err != nil {
		t.Fatal(err)
	}
	after, _, err := talk(t, serverTLS, clientTLS)
	if err != nil {
		t.Fatal(err)
	}
	if auth.KeyHash(before.PeerCertificates[0]) == auth.KeyHash(after.PeerCertificates[0]) {
		t.Fatal("the old key is still in use")
	}
	again, err := auth.Open(client.Dir())
	if err != nil || again.Identity() != client.Identity() || !again.Identity().Control {
		t.Fatalf("on disk: %v", err)
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, auth.IdentityFile: 0o600, auth.CAFile: 0o600} {
		info, err := os.Stat(filepath.Join(client.Dir(), name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestNextRenewal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(1_700_000_000, 0)
		life := time.Duration(rapid.Int64Range(int64(time.Minute), int64(400*24*time.Hour)).Draw(t, "life"))
		now := start.Add(time.Duration(rapid.Int64Range(0, int64(2*life)).Draw(t, "now")))
		failures := rapid.IntRange(0, 100).Draw(t, "failures")
		end := start.Add(life)
		wait := auth.NextRenewal(start, end, now, failures)
		switch due := auth.RenewAt(start, end); {
		case wait < 0:
			t.Fatalf("%v", wait)
		case now.Before(due) && now.Add(wait) != due:
			t.Fatalf("due at %v, not %v", due, now.Add(wait))
		case !now.Before(due) && failures == 0 && wait != 0:
			t.Fatalf("overdue, but waits %v", wait)
		case !now.Before(due) && failures > 0 && wait < time.Second:
			t.Fatalf("a busy loop: %v", wait)
		case !now.Before(due) && end.Sub(now) > time.Minute && now.Add(wait).After(end):
			t.Fatalf("would let the certificate end")
		}
	})
}

func TestRunRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "test")
		k := issue(t, ca, node("n1", false), 90*24*time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex // guards what follows
		failing, calls := true, 0
		var reports []error
		done := make(chan struct{})
		go func() {
			defer close(done)
			k.Run(ctx, func(_ context.Context, csr []byte) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				calls++
				if failing {
					return nil, errors.New("nobody there")
				}
				return ca.Sign(csr, node("n1", false), time.Now(), 90*24*time.Hour)
			}, nil, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, err)
			})
		}()
		sleep := func(days int) {
			mu.Unlock()
			time.Sleep(time.Duration(days) * 24 * time.Hour)
			synctest.Wait()
			mu.Lock()
		}
		mu.Lock()
		sleep(59)
		if calls != 0 {
			t.Fatalf("%d renewals before two thirds", calls)
		}
		sleep(2)
		if calls < 10 || calls > 100 {
			t.Fatalf("%d attempts in a day", calls)
		}
		failing = false
		old := k.Identity().KeyHash
		sleep(1)
		if k.Identity().KeyHash == old || reports[len(reports)-1] != nil {
			t.Fatal("not renewed")
		}
		if !k.Certificate().NotAfter.After(time.Now().Add(80 * 24 * time.Hour)) {
			t.Fatal("the new one is not new")
		}
		cancel()
		mu.Unlock()
		<-done
	})
}

func TestAllow(t *testing.T) {
	who := map[string]auth.Identity{
		"nobody":   {},
		"viewer":   {Kind: auth.UserKind, Role: api.Viewer},
		"operator": {Kind: auth.UserKind, Role: api.Operator},
		"admin":    {Kind: auth.UserKind, Role: api.Admin},
		"no role":  {Kind: auth.UserKind},
		"local":    auth.Local("root"),
		"node":     {Kind: auth.NodeKind, Name: "n1"},
		"control":  {Kind: auth.NodeKind, Name: "n1", Control: true},
		"strange":  {Kind: "other", Role: api.Admin, Control: true},
	}
	want := map[auth.Permission]string{
		auth.Join:     "nobody viewer operator admin local node control",
		auth.Look:     "viewer operator admin local node control",
		auth.Change:   "operator admin local control",
		auth.Manage:   "admin local control",
		auth.Transfer: "node control",
		auth.Report:   "node control",
		auth.Secrets:  "control",
		auth.Members:  "control",
		"unheard of":  "",
	}
	for p, allowed := range want {
		for name, id := range who {
			expect := false
			for _, a := range strings.Fields(allowed) {
				expect = expect || a == name
			}
			err := auth.Allow(id, p)
			if (err == nil) != expect {
				t.Errorf("%s, %s: %v", name, p, err)
			}
			kind := api.Denied
			if name == "nobody" {
				kind = api.Unauthenticated
			}
			if err != nil && !api.Is(err, kind) {
				t.Errorf("%s, %s: %v", name, p, err)
			}
		}
	}
}

func TestRevokedKeysSurvive(t *testing.T) {
	ca := newCA(t, "test")
	a, b := issue(t, ca, node("n1", false), time.Hour), issue(t, ca, node("n2", false), time.Hour)
	path := filepath.Join(t.TempDir(), "revoked")
	r, err := auth.OpenRevoked(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Add(a.Identity().KeyHash, "removed"); err != nil {
		t.Fatal(err)
	}
	if r.Revoked(a.Identity().KeyHash) != "removed" || r.Revoked(b.Identity().KeyHash) != "" {
		t.Fatal("the wrong ones are revoked")
	}
	r, err = auth.OpenRevoked(path)
	if err != nil || r.Revoked(a.Identity().KeyHash) == "" || r.Revoked(b.Identity().KeyHash) != "" {
		t.Fatalf("after a restart: %v", err)
	}
	// The file names the serial numbers that the CA really gave.
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(a.Certificate().SerialNumber) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	if err := r.Set(map[string]string{"nonsense": ""}); !api.Is(err, api.Damaged) {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	ca := newCA(t, "test")
	tok, err := auth.NewToken([]string{"10.0.0.1:7433", "[fd00::1]:7433", "host.example:7433"}, ca.Hash())
	if err != nil {
		t.Fatal(err)
	}
	s := tok.String()
	got, err := auth.ParseToken(s)
	if err != nil || got.String() != s || got.Secret != tok.Secret || len(got.Addresses) != 3 || got.Addresses[1] != "[fd00::1]:7433" {
		t.Fatalf("%+v, %v", got, err)
	}
	if strings.ContainsAny(s, " \t\n\"'$`\\;&|<>(){}[]*?!#~%,:/+=") {
		t.Fatalf("%s is not one plain word", s)
	}
	if !auth.SecretMatches(tok.Secret, auth.SecretHash(tok.Secret)) || auth.SecretMatches("x", auth.SecretHash(tok.Secret)) || auth.SecretMatches("", "") {
		t.Fatal("secrets")
	}
	// Whatever single mistake is made in copying is noticed.
	for i := range len(s) {
		for _, wrong := range []string{s[:i], s[:i] + s[i+1:], s[:i] + "x" + s[i+1:], s[:i] + "x" + s[i:]} {
			if _, err := auth.ParseToken(wrong); wrong != s && !api.Is(err, api.Invalid) {
				t.Fatalf("%s was accepted: %v", wrong, err)
			}
		}
	}
	if _, err := auth.NewToken([]string{"0.0.0.0:7433"}, ca.Hash()); err == nil {
		t.Fatal("an address that nobody can dial")
	}
	if _, err := auth.NewToken(nil, ca.Hash()); err == nil {
		t.Fatal("no address")
	}
}

func FuzzParseToken(f *testing.F) {
	ca, err := auth.NewCA("test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	for _, addresses := range [][]string{{"10.0.0.1:7433"}, {"[::1]:1", "a:65535"}} {
		t, err := auth.NewToken(addresses, ca.Hash())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(t.String())
	}
	f.Add("drover-join-1.....")
	f.Add("drover-join-2.a.b.c.d.e")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := auth.ParseToken(s)
		if err != nil {
			if !api.Is(err, api.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if tok.String() != s {
			t.Fatalf("%q reads back as %q", s, tok.String())
		}
		if len(tok.Addresses) == 0 || tok.Secret == "" {
			t.Fatal("an empty token")
		}
	})
}

func FuzzParseCA(f *testing.F) {
	ca, err := auth.NewCA("test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	secret, err := ca.Secret()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(secret)
	f.Add(ca.PEM())
	f.Fuzz(func(t *testing.T, data []byte) {
		if ca, err := auth.ParseCA(data); err == nil && ca.Hash() == "" {
			t.Fatal("a CA without a hash")
		}
	})
}
