package front

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
	"github.com/drover-data/drover/hub/webhook"
)

// receiver is where webhooks go.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	key    []byte            // guarded by mu
	fail   int               // guarded by mu; how many are refused first
	tries  int               // guarded by mu
	got    []webhook.Message // guarded by mu
	wrong  []error           // guarded by mu
	ids    map[string]int    // guarded by mu; how often each came
	status int               // guarded by mu
}

func receive(t testing.TB) *receiver {
	r := &receiver{ids: map[string]int{}, status: http.StatusInternalServerError}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tries++
		id := q.Header.Get(webhook.HeaderID)
		if err := webhook.Verify(r.key, id, q.Header.Get(webhook.HeaderTimestamp), q.Header.Get(webhook.HeaderSignature), body, time.Now()); err != nil {
			r.wrong = append(r.wrong, err)
		}
		r.ids[id]++
		if r.fail > 0 {
			r.fail--
			w.WriteHeader(r.status)
			return
		}
		var m webhook.Message
		if err := json.Unmarshal(body, &m); err != nil {
			r.wrong = append(r.wrong, err)
		}
		r.got = append(r.got, m)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() (got, tries int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got), r.tries
}

func (r *receiver) set(fail int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail, r.tries = fail, 0
}

func TestWebhooks(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann := p.user(root, "ann")
	from := newPool(t)
	one := from.commit(t, 1, []byte("one"))
	to := receive(t)
	_, err := ann.CreateRepository(ctx, hub.NewRepository{Name: "ann/pg"})
	must(t, err)
	_, err = ann.CreateWebhook(ctx, "ann/pg", hub.NewWebhook{URL: to.URL, Kinds: []string{"ref.made"}})
	kind(t, err, api.Invalid, "ref.create")
	_, err = ann.CreateWebhook(ctx, "ann/pg", hub.NewWebhook{URL: to.URL, Secret: "short"})
	kind(t, err, api.Invalid, "base64")
	_, err = ann.CreateWebhook(ctx, "ann/pg", hub.NewWebhook{URL: "https://[fd00::1]/"})
	kind(t, err, api.Denied, "public")
	w, err := ann.CreateWebhook(ctx, "ann/pg", hub.NewWebhook{URL: to.URL, Kinds: []string{"ref.create"}})
	must(t, err)
	to.key = keyOf(t, w.Secret)
	if a, err := ann.TestWebhook(ctx, "ann/pg", w.ID); err != nil || a.Status != 200 || a.Error != "" {
		t.Errorf("%+v %v", a, err)
	}
	to.set(2)
	must(t, p.push(ann, "ann/pg", from, one)) // two names are made: that of the commit, and the branch
	await(t, func() bool { got, _ := to.count(); return got == 3 })
	to.mu.Lock()
	if len(to.wrong) > 0 || to.tries != 4 || to.got[0].Type != hub.PingKind || to.got[1].Type != "ref.create" || to.got[1].Data.Repository != "ann/pg" || to.got[1].Data.User != "ann" {
		t.Errorf("%v %d %+v", to.wrong, to.tries, to.got)
	}
	to.mu.Unlock()

	// Given up after three tries; sent again when somebody says so; the process is another one by then.
	to.set(3)
	two := from.commit(t, 2, []byte("two"), one)
	must(t, p.push(ann, "ann/pg", from, two))
	await(t, func() bool {
		list, err := ann.Webhooks(ctx, "ann/pg")
		return err == nil && len(list[0].Letters) == 1 && list[0].Letters[0].GivenUp != nil && strings.Contains(list[0].Letters[0].Said, "500")
	})
	p.stop()
	p = at.run(t)
	ann = p.as("ann", ann.secret)
	list, err := ann.Webhooks(ctx, "ann/pg")
	must(t, err)
	if len(list) != 1 || len(list[0].Letters) != 1 {
		t.Fatalf("%+v", list)
	}
	if n, err := ann.ResendWebhook(ctx, "ann/pg", w.ID); err != nil || n != 1 {
		t.Errorf("%d %v", n, err)
	}
	await(t, func() bool { got, _ := to.count(); return got == 4 })

	// One that wants no more.
	to.mu.Lock()
	to.fail, to.status = 1, http.StatusGone
	to.mu.Unlock()
	must(t, p.push(ann, "ann/pg", from, from.commit(t, 3, []byte("three"), two)))
	await(t, func() bool { list, err := ann.Webhooks(ctx, "ann/pg"); return err == nil && list[0].Disabled })
	must(t, ann.DeleteWebhook(ctx, "ann/pg", w.ID))
}

func TestRestartInTheMiddle(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann := p.user(root, "ann")
	first := p.at.Fingerprint
	// Somebody waits for news while the hub goes down.
	begun, waited := make(chan struct{}), make(chan error, 1)
	go func() {
		close(begun)
		last, err := root.Activity(ctx, client.Activity{Limit: 1})
		if err == nil {
			_, err = root.Activity(ctx, client.Activity{Follow: true, After: last[0].ID, Wait: 60})
		}
		waited <- err
	}()
	<-begun
	await(t, func() bool { return strings.Contains(p.log.String(), "path=/api/v1/activity") })
	p.stop()
	if err := <-waited; err != nil && !api.Is(err, api.Unavailable) {
		t.Error(err)
	}
	kind(t, func() error { _, err := ann.Self(ctx); return err }(), api.Unavailable, "is the URL right")
	p = at.run(t)
	if p.at.Fingerprint != first {
		t.Error("it made another certificate")
	}
	from := newPool(t)
	must(t, p.push(p.as("ann", ann.secret), "ann/pg", from, from.commit(t, 1, []byte("one"))))
	if self, err := p.as("ann", ann.secret).Self(ctx); err != nil || self.User != "ann" || self.Root || self.Most != hub.Admin {
		t.Errorf("%+v %v", self, err)
	}
}

func TestActivity(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann, bob := p.user(root, "ann"), p.user(root, "bob")
	last, err := root.Activity(ctx, client.Activity{Limit: 1})
	must(t, err)
	news := make(chan []hub.Event, 1)
	go func() {
		list, err := root.Activity(ctx, client.Activity{Follow: true, After: last[0].ID, Wait: 30})
		if err != nil {
			t.Error(err)
		}
		news <- list
	}()
	_, err = ann.CreateRepository(ctx, hub.NewRepository{Name: "ann/pg"})
	must(t, err)
	if list := <-news; len(list) != 1 || list[0].Kind != "repo.create" || list[0].User != "ann" {
		t.Errorf("%+v", list)
	}
	_, err = bob.Activity(ctx, client.Activity{Repository: "ann/pg"})
	kind(t, err, api.NotFound, "")
	_, err = bob.Activity(ctx, client.Activity{})
	kind(t, err, api.Denied, "no operator")
	if list, err := ann.Activity(ctx, client.Activity{User: "ann"}); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if list, err := ann.Activity(ctx, client.Activity{Repository: "ann/pg", Limit: 10}); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	_, err = p.as("", "").Activity(ctx, client.Activity{})
	kind(t, err, api.Unauthenticated, "login")
	_, err = bob.Status(ctx)
	kind(t, err, api.Denied, "")
	kind(t, bob.Sweep(ctx), api.Denied, "")
}

func TestFace(t *testing.T) {
	at := newPlace(t)
	at.change = func(o *Options) { o.Metrics = "127.0.0.1:0" }
	p := at.run(t)
	root := p.admin(at)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 200, "/nothing": 404, "/api/v1/nothing": 404, "/metrics": 401, "/v2/": 401, "/api/v1/openapi.json": 200} {
		if status, text := p.get(path, "", ""); status != want {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if status, text := p.get("/metrics", root.name, root.secret); status != 200 || !strings.Contains(text, "drover_hub_users 1") || !strings.Contains(text, `drover_hub_request_seconds_count{code="401",method="GET",what="registry base"} 1`) {
		t.Errorf("%d %s", status, text)
	}
	a, err := http.Get("http://" + p.at.Metrics + "/metrics")
	must(t, err)
	a.Body.Close()
	if a.StatusCode != 200 {
		t.Error(a.Status)
	}
	// A page of another site has a browser ask.
	r, err := http.NewRequest(http.MethodPost, "https://"+p.host+"/api/v1/sweep", nil)
	must(t, err)
	r.SetBasicAuth(root.name, root.secret)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	a, err = (&http.Client{Transport: p.transport}).Do(r)
	must(t, err)
	a.Body.Close()
	if a.StatusCode != http.StatusForbidden {
		t.Error(a.Status)
	}
	// The storage goes away: the hub says so.
	must(t, os.RemoveAll(filepath.Join(at.dir, "storage")))
	p.clock.add(time.Minute)
	if status, text := p.get("/readyz", "", ""); status != http.StatusServiceUnavailable || strings.Contains(text, at.dir) {
		t.Errorf("%d %s", status, text)
	}
}

func TestWrongLogins(t *testing.T) {
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	for _, path := range []string{"/v2/", "/api/v1/self"} {
		name := "guess" + path[1:3]
		for i := range wrongOfName {
			if status, _ := p.get(path, name, "drover_hub_wrong"); status != http.StatusUnauthorized {
				t.Fatalf("%s try %d: %d", path, i, status)
			}
		}
		if status, _ := p.get(path, name, "drover_hub_wrong"); status != http.StatusTooManyRequests {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := p.get("/api/v1/self", root.name, root.secret); status != 200 {
		t.Errorf("another user of that address: %d", status)
	}
	p.clock.add(time.Minute)
	if status, _ := p.get("/v2/", "guessv2", "drover_hub_wrong"); status != http.StatusUnauthorized {
		t.Errorf("a minute later: %d", status)
	}
	if strings.Contains(p.log.String(), "user=guess") {
		t.Error("the log names who could not log in")
	}
}

func TestLimitsAreBounded(t *testing.T) {
	c := &clock{}
	l := newLimits(c.now)
	for i := range maxKnown + 100 {
		l.wrong("name " + commitID(i))
	}
	if len(l.all) > maxKnown {
		t.Errorf("%d are remembered", len(l.all))
	}
}

func TestWhoIsAsking(t *testing.T) {
	s := &server{o: Options{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	for _, c := range []struct{ remote, header, want string }{
		{"192.0.2.1:5", "", "192.0.2.1"},
		{"192.0.2.1:5", "198.51.100.7", "192.0.2.1"},
		{"10.1.1.1:5", "198.51.100.7", "198.51.100.7"},
		{"10.1.1.1:5", "203.0.113.9, 198.51.100.7, 10.2.2.2", "198.51.100.7"},
		{"10.1.1.1:5", "nonsense", "10.1.1.1"},
		{"[::ffff:10.1.1.1]:5", "2001:db8::1", "2001:db8::1"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.remote
		if c.header != "" {
			r.Header.Set("X-Forwarded-For", c.header)
		}
		if got := s.client(r).String(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	if network(netip.MustParseAddr("2001:db8::1:2:3:4")) != network(netip.MustParseAddr("2001:db8::ffff")) {
		t.Error("one subscriber has many addresses of IPv6")
	}
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	c := &clock{}
	made := func(name string) (string, string) {
		cert, key, err := selfSigned(Options{SelfSigned: filepath.Join(dir, name), Listen: "127.0.0.1:0", Now: c.now})
		must(t, err)
		return cert, key
	}
	cert, key := made("a")
	at := newPlace(t)
	at.clock = c
	at.change = func(o *Options) { o.SelfSigned, o.CertFile, o.KeyFile = "", cert, key }
	p := func() *process { // it has no certificate of its own to trust
		at.change = func(o *Options) { o.SelfSigned, o.CertFile, o.KeyFile = "", cert, key }
		ready, done := make(chan Listening, 1), make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		o := Options{Listen: "127.0.0.1:0", CertFile: cert, KeyFile: key, Now: c.now, Ready: func(l Listening) { ready <- l }}
		o.Serve.Database, o.Serve.Storage = at.database, filepath.Join(at.dir, "storage")
		go func() { done <- Run(ctx, o) }()
		t.Cleanup(func() { cancel(); <-done })
		select {
		case l := <-ready:
			return &process{TB: t, at: l, host: l.Address}
		case err := <-done:
			t.Fatal(err)
			return nil
		}
	}()
	shown := func() string {
		conn, err := tls.Dial("tcp", p.host, &tls.Config{InsecureSkipVerify: true})
		must(t, err)
		defer conn.Close()
		return Fingerprint(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	first := shown()
	newCert, newKey := made("b")
	swap := func(from, to string) {
		text, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(to, text, 0o600))
		later := time.Now().Add(time.Hour) // whatever the file system's grain
		must(t, os.Chtimes(to, later, later))
	}
	swap(newCert, cert) // the key does not fit yet
	c.add(time.Minute)
	if shown() != first {
		t.Error("a certificate without its key is shown")
	}
	swap(newKey, key)
	c.add(time.Minute)
	if shown() == first {
		t.Error("the new certificate is not shown")
	}

	for _, o := range []Options{
		{Listen: "0.0.0.0:0"}, {Listen: ":0"}, {Listen: "127.0.0.1:0", CertFile: "x"}, {Listen: "127.0.0.1:0", CertFile: cert, KeyFile: key, SelfSigned: dir}, {Listen: "127.0.0.1:0", CertFile: key, KeyFile: cert},
	} {
		o.Now = time.Now
		if _, err := secure(o); !api.Is(err, api.Invalid) && !api.Is(err, api.Denied) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if s, err := secure(Options{Listen: "[::1]:0"}); err != nil || s.config != nil {
		t.Errorf("%v", err)
	}
}

func TestOneProcessOfSQLite(t *testing.T) {
	at := newPlace(t)
	at.run(t)
	err := Run(context.Background(), Options{Listen: "127.0.0.1:0"}.with(at))
	kind(t, err, api.InUse, "PostgreSQL")
}

func (o Options) with(p *place) Options {
	o.Serve.Database, o.Serve.Storage = p.database, filepath.Join(p.dir, "storage")
	return o
}

func TestReachable(t *testing.T) {
	name, err := os.Hostname()
	must(t, err)
	for address, want := range map[string]string{"127.0.0.1:5": "127.0.0.1:5", "[::]:7440": name + ":7440", "0.0.0.0:1": name + ":1", "[::1]:2": "[::1]:2"} {
		if got := reachable(address); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}

func TestSlowClients(t *testing.T) {
	r := &steadyReader{ReadCloser: io.NopCloser(strings.NewReader("x")), begun: time.Now().Add(-2 * stall), n: 10}
	if _, err := r.Read(make([]byte, 1)); err != errSlow {
		t.Errorf("%v", err)
	}
	w := httptest.NewRecorder()
	r = &steadyReader{ReadCloser: io.NopCloser(strings.NewReader("x")), begun: time.Now().Add(-2 * stall), n: 1 << 30, c: http.NewResponseController(w)}
	if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

func keyOf(t testing.TB, secret string) []byte {
	t.Helper()
	key, err := webhook.ParseSecret(secret)
	must(t, err)
	return key
}
