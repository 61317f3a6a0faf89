package webhook

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// TestSign holds the signature against the example of the specification's own libraries.
func TestSign(t *testing.T) {
	key, err := ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	at, body := time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)
	const id, want = "msg_p5jXN8AQM9LWM0D4loKWxJek", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	if got := Sign(key, id, at, body); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, c := range []struct {
		id, at, signature string
		body              string
		now               time.Time
		ok                bool
	}{
		{id, "1614265330", want, string(body), at, true},
		{id, "1614265330", "v1,AAAA " + want, string(body), at.Add(4 * time.Minute), true},
		{id, "1614265330", want, string(body), at.Add(6 * time.Minute), false},
		{id, "1614265330", want, string(body), at.Add(-6 * time.Minute), false},
		{id, "1614265331", want, string(body), at, false},
		{id + "x", "1614265330", want, string(body), at, false},
		{id, "1614265330", want, string(body) + " ", at, false},
		{id, "yesterday", want, string(body), at, false},
		{id, "1614265330", "", string(body), at, false},
	} {
		if err := Verify(key, c.id, c.at, c.signature, []byte(c.body), c.now); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	if a, b := NewSecret(), NewSecret(); a == b {
		t.Error("two secrets are one")
	} else if key, err := ParseSecret(a); err != nil || len(key) != 32 {
		t.Errorf("%v", err)
	}
	for _, s := range []string{"", "whsec_", "whsec_!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 23)), "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		if _, err := ParseSecret(s); !api.Is(err, api.Invalid) || (len(s) > 10 && strings.Contains(err.Error(), s)) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	f.Add("whsec_\n")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseSecret(text)
		if err == nil && (len(key) < minSecret || len(key) > maxSecret) {
			t.Errorf("%q: %d bytes", text, len(key))
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add("1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", []byte("x"))
	f.Add("-9223372036854775808", "v1, v1a,", []byte{})
	key := make([]byte, 32)
	f.Fuzz(func(t *testing.T, at, signature string, body []byte) {
		if Verify(key, "id", at, signature, body, time.Unix(1614265330, 0)) == nil && !strings.Contains(signature, "v1,") {
			t.Error("it is taken without a signature")
		}
	})
}

func TestPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700:4700::1111": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "127.1.2.3": false, "::1": false, "0.0.0.0": false, "0.1.2.3": false, "::": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:ec2::254": false, "100.64.0.1": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001:0:1::": false, "198.18.0.1": false, "240.0.0.1": false,
		"192.0.2.1": false, "2001:db8::1": false,
	} {
		if got := Public(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestCheckURL(t *testing.T) {
	s := New(Options{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	for text, want := range map[string]api.Kind{
		"https://example.com/hook": "", "http://example.com:8080/": "", "https://10.1.2.3/": "", "https://10.2.2.3/": api.Denied, "http://[::1]:80/": api.Denied,
		"ftp://example.com": api.Invalid, "example.com": api.Invalid, "https://": api.Invalid, "https://u:p@example.com/": api.Invalid, "https://example.com/#x": api.Invalid,
		"javascript:alert(1)": api.Invalid, "https:example.com": api.Invalid, "https://example.com/" + strings.Repeat("x", 2000): api.Invalid, "http://\x7f": api.Invalid,
	} {
		if err := s.CheckURL(text); api.KindOf(err) != want {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"https://example.com", "http://[::ffff:127.0.0.1]/", "https://%31%30.0.0.1", "http://0x7f.1/"} {
		f.Add(s)
	}
	s := New(Options{})
	f.Fuzz(func(t *testing.T, text string) {
		err := s.CheckURL(text)
		if err == nil && !strings.HasPrefix(strings.ToLower(text), "http") {
			t.Errorf("%q is taken", text)
		}
	})
}

// outbox is one in memory.
type outbox struct {
	mu   sync.Mutex
	list []hub.Delivery
	done map[int64]string
}

func (o *outbox) TakeDeliveries(context.Context, int, time.Duration) ([]hub.Delivery, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.list
	o.list = nil
	return out, nil
}

func (o *outbox) note(id int64, what string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done[id] = what
	return nil
}
func (o *outbox) Delivered(_ context.Context, id int64) error { return o.note(id, "delivered") }
func (o *outbox) Retry(_ context.Context, id int64, _ time.Time, said string) error {
	return o.note(id, "retry: "+said)
}

func (o *outbox) GiveUp(_ context.Context, id int64, said string) error {
	return o.note(id, "given up: "+said)
}

func (o *outbox) SetWebhook(_ context.Context, _ hub.Identity, _ string, id int64, _ bool) error {
	return o.note(-id, "disabled")
}

// TestNoWayInside: neither a name that means an address inside, nor an answer that leads there.
func TestNoWayInside(t *testing.T) {
	reached := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer inside.Close()
	w := hub.Webhook{ID: 1, Secret: NewSecret(), URL: strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)}
	s := New(Options{})
	if err := s.CheckURL(w.URL); err != nil {
		t.Errorf("a name is looked at when it is used: %v", err)
	}
	if a := s.Ping(t.Context(), w); reached || !strings.Contains(a.Error, "public addresses only") {
		t.Errorf("%+v", a)
	}
	outside := httptest.NewServer(http.RedirectHandler(inside.URL, http.StatusTemporaryRedirect))
	defer outside.Close()
	s = New(Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	w.URL = outside.URL + "/secret-path?token=secret"
	if a := s.Ping(t.Context(), w); reached || a.Status != http.StatusTemporaryRedirect || a.Error == "" {
		t.Errorf("%+v", a)
	}
	outside.Close()
	if a := s.Ping(t.Context(), w); a.Error == "" || strings.Contains(a.Error, "secret") {
		t.Errorf("%+v", a)
	}
}

func TestDeliveries(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone":
			w.WriteHeader(http.StatusGone)
		case "/busy":
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/hang":
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}
	}))
	defer server.Close()
	defer close(hang)
	at := func(id int64, path string, tries int) hub.Delivery {
		return hub.Delivery{ID: id, Tries: tries, Hook: hub.Webhook{ID: id, Repository: "a/b", URL: server.URL + path, Secret: NewSecret()}, Event: hub.Event{ID: id, Kind: "ref.move", Repository: "a/b"}}
	}
	off := at(6, "/", 0)
	off.Hook.Disabled = true
	o := &outbox{done: map[int64]string{}, list: []hub.Delivery{at(1, "/", 0), at(2, "/gone", 0), at(3, "/busy", 0), at(4, "/hang", 0), at(5, "/busy", 2), off}}
	s := New(Options{Outbox: o, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Timeout: 300 * time.Millisecond, Every: 5 * time.Millisecond, Backoff: []time.Duration{1, 1}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	want := map[int64]string{1: "delivered", 2: "given up: the receiver wants no more", -2: "disabled", 3: "retry: it answered 429", 4: "retry: no answer", 5: "given up: given up after 3 tries", 6: "given up: the webhook is disabled"}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		o.mu.Lock()
		n := len(o.done)
		o.mu.Unlock()
		if n == len(want) || time.Now().After(end) {
			break
		}
	}
	cancel()
	<-ended
	for id, says := range want {
		if !strings.HasPrefix(o.done[id], says) {
			t.Errorf("%d: %q, want %q", id, o.done[id], says)
		}
	}
}
