package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/hub/webhook"
	"github.com/drover-data/drover/remote/registry"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t testing.TB, err error, want api.Kind, says string) {
	t.Helper()
	if api.KindOf(err) != want || (err != nil && !strings.Contains(err.Error(), says)) {
		t.Fatalf("%q %v, want %q %q", api.KindOf(err), err, want, says)
	}
}

// clock is the time, moved by hand.
type clock struct {
	mu   sync.Mutex
	more time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.more)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more += d
}

// lines are what a hub logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// process is a hub that runs.
type process struct {
	testing.TB
	at        Listening
	host      string
	transport *http.Transport
	log       *lines
	stop      func()
	clock     *clock
}

// place is what outlives a process: its directory, and what the first one told of its operator.
type place struct {
	dir, database, secret string
	clock                 *clock
	mu                    sync.Mutex
	change                func(*Options)
}

func newPlace(t testing.TB) *place {
	dir := t.TempDir()
	return &place{dir: dir, database: filepath.Join(dir, "hub.db"), clock: &clock{}, change: func(*Options) {}}
}

// run starts a process of a hub with TLS, and ends it with the test.
func (p *place) run(t testing.TB) *process {
	t.Helper()
	out := &process{TB: t, log: &lines{}, clock: p.clock}
	ready, done := make(chan Listening, 1), make(chan error, 1)
	o := Options{
		Serve:  serve.Options{Database: p.database, Storage: filepath.Join(p.dir, "storage"), SweepEvery: 1000 * time.Hour},
		Listen: "127.0.0.1:0", SelfSigned: filepath.Join(p.dir, "tls"), Version: "tests", Now: p.clock.now, Log: slog.New(slog.NewTextHandler(out.log, nil)),
		Patience: 5 * time.Second, Ready: func(at Listening) { ready <- at },
		First: func(_, secret string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.secret = secret
			return nil
		},
		Webhooks: webhook.Options{Every: 10 * time.Millisecond, Backoff: []time.Duration{time.Millisecond, time.Millisecond}, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
	p.change(&o)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- Run(ctx, o) }()
	out.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case out.at = <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(out.stop)
	out.host = out.at.Address
	text, err := os.ReadFile(out.at.Certificate)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	out.transport = http.DefaultTransport.(*http.Transport).Clone()
	out.transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	t.Cleanup(out.transport.CloseIdleConnections)
	return out
}

// person is a user with a token.
type person struct {
	*client.Client
	name, secret string
}

func (p *process) as(name, secret string) person {
	return person{client.New("https://"+p.host, name, secret, p.transport), name, secret}
}

func (p *process) admin(of *place) person {
	of.mu.Lock()
	defer of.mu.Unlock()
	return p.as(FirstOperator, of.secret)
}

// user makes a user.
func (p *process) user(root person, name string) person {
	p.Helper()
	_, err := root.CreateUser(context.Background(), hub.NewUser{Name: name})
	must(p, err)
	k, err := root.CreateToken(context.Background(), name, hub.NewToken{Most: hub.Admin})
	must(p, err)
	return p.as(name, k.Secret)
}

// pool keeps commits as directories.
type pool struct {
	dir     string
	commits repo.Graph
}

func commitID(n int) string { return fmt.Sprintf("%040x", 0xabc000+n) }

func (p *pool) Find(_ context.Context, id string) (exchange.Local, error) {
	c, ok := p.commits[id]
	if !ok {
		return exchange.Local{}, &api.Error{Kind: api.NotFound, Op: "find commit", Object: id}
	}
	return exchange.Local{Commit: c, Snapshot: storage.Snapshot{ID: id, Dir: filepath.Join(p.dir, id)}}, nil
}

func (p *pool) Hints(context.Context, string, string) (*tree.Hints, error) { return nil, nil }

func newPool(t testing.TB) *pool { return &pool{t.TempDir(), repo.Graph{}} }

func (p *pool) commit(t testing.TB, n int, content []byte, parents ...string) string {
	t.Helper()
	id := commitID(n)
	p.commits[id] = api.Commit{ID: id, Volume: "v", Parents: parents, Branch: "main", Message: "x", Author: "t", Time: time.Unix(int64(n), 0).UTC(), Consistency: api.ConsistencyCrash}
	must(t, os.MkdirAll(filepath.Join(p.dir, id), 0o755))
	must(t, os.WriteFile(filepath.Join(p.dir, id, "data"), content, 0o600))
	return id
}

// remote is a repository as somebody reaches it.
func (p *process) remote(who person, name string) *exchange.Remote {
	p.Helper()
	s, err := registry.Open(registry.Options{
		Reference: p.host + "/" + name, Hub: true, Username: who.name, Password: who.secret, Transport: p.transport,
		DockerConfig: filepath.Join(p.TempDir(), "config.json"),
	})
	must(p, err)
	p.Cleanup(func() { _ = s.Close() })
	return &exchange.Remote{Store: s, Cache: p.TempDir(), Now: time.Now}
}

func (p *process) push(who person, name string, from *pool, tip string) error {
	p.Helper()
	_, err := p.remote(who, name).Push(context.Background(), from, exchange.Push{Branch: "main", Tip: tip, Graph: from.commits})
	return err
}

// get asks by plain HTTP.
func (p *process) get(path, user, secret string) (int, string) {
	p.Helper()
	r, err := http.NewRequest(http.MethodGet, "https://"+p.host+path, nil)
	must(p, err)
	if user != "" || secret != "" {
		r.SetBasicAuth(user, secret)
	}
	a, err := (&http.Client{Transport: p.transport}).Do(r)
	must(p, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	must(p, err)
	return a.StatusCode, string(text)
}

func TestPeopleAndTheirData(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann, bob, eve := p.user(root, "ann"), p.user(root, "bob"), p.user(root, "eve")
	from := newPool(t)
	one := from.commit(t, 1, []byte("one"))
	two := from.commit(t, 2, []byte("two"), one)

	must(t, p.push(ann, "ann/pg", from, one))
	_, err := ann.SetMember(ctx, "ann/pg", "bob", hub.Read)
	must(t, err)
	list, err := p.remote(bob, "ann/pg").List(ctx, true)
	must(t, err)
	if len(list.Branches) != 1 || list.Branches[0].ID != one {
		t.Errorf("%+v", list)
	}
	kind(t, p.push(bob, "ann/pg", from, two), api.Denied, "")
	if status, text := p.get("/v2/ann/pg/manifests/b-main", eve.name, eve.secret); status != http.StatusNotFound || text != strings.ReplaceAll(missing(p, eve), "none", "pg") {
		t.Errorf("%d %s", status, text)
	}
	_, err = eve.Repository(ctx, "ann/pg")
	kind(t, err, api.NotFound, "not yours to see")
	_, err = bob.ChangeRepository(ctx, "ann/pg", hub.ChangeRepository{Public: new(true)})
	kind(t, err, api.Denied, "needs admin")
	kind(t, p.push(eve, "ann/new", from, one), api.NotFound, "")
	nobody := p.as("", "")
	if _, err = p.remote(nobody, "ann/pg").List(ctx, true); err == nil {
		t.Error("nobody reads a private repository")
	}
	_, err = ann.ChangeRepository(ctx, "ann/pg", hub.ChangeRepository{Public: new(true)})
	must(t, err)
	if list, err = p.remote(nobody, "ann/pg").List(ctx, true); err != nil || len(list.Branches) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if r, err := nobody.Repositories(ctx); err != nil || len(r) != 1 || r[0].Name != "ann/pg" {
		t.Errorf("%+v %v", r, err)
	}
	kind(t, p.push(eve, "ann/pg", from, two), api.Denied, "")
	must(t, p.push(ann, "ann/pg", from, two))
	c, err := ann.Content(ctx, "ann/pg")
	must(t, err)
	if len(c.Commits) != 2 || len(c.Branches) != 1 || c.Branches[0].Commit != two || c.Branches[0].Bytes == 0 {
		t.Errorf("%+v", c)
	}
	for _, secret := range []string{root.secret, ann.secret, bob.secret} {
		if strings.Contains(p.log.String(), secret) {
			t.Error("the log holds a secret")
		}
	}
	if !strings.Contains(p.log.String(), "msg=request") || !strings.Contains(p.log.String(), "user=bob") {
		t.Error(p.log.String())
	}
}

// missing is what is said of what is not there.
func missing(p *process, who person) string {
	_, text := p.get("/v2/ann/none/manifests/b-main", who.name, who.secret)
	return text
}

func TestRulesForkAndQuota(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann, bob := p.user(root, "ann"), p.user(root, "bob")
	from := newPool(t)
	one := from.commit(t, 1, []byte("one"))
	two := from.commit(t, 2, []byte("two"), one)
	must(t, p.push(ann, "ann/pg", from, two))
	_, err := ann.SetMember(ctx, "ann/pg", "bob", hub.Write)
	must(t, err)
	_, err = ann.ChangeRepository(ctx, "ann/pg", hub.ChangeRepository{Protected: &[]string{"ma*"}})
	must(t, err)

	// Backwards, and to a line that does not come from there, by hand: exchange would not try.
	for _, n := range []int{3} {
		other := newPool(t)
		aside := other.commit(t, n, []byte("aside"), one)
		other.commits[one] = from.commits[one]
		must(t, os.MkdirAll(filepath.Join(other.dir, one), 0o755))
		must(t, os.WriteFile(filepath.Join(other.dir, one, "data"), []byte("one"), 0o600))
		r := p.remote(bob, "ann/pg")
		_, err := r.Push(ctx, other, exchange.Push{Branch: "aside", Tip: aside, Graph: other.commits})
		must(t, err)
		main, err := r.Store.Ref(ctx, "b-main")
		must(t, err)
		to, err := r.Store.Ref(ctx, "c-"+aside)
		must(t, err)
		kind(t, r.Store.SetRef(ctx, "b-main", to.Desc, main.Desc.Digest), api.Denied, "ma*")
	}
	three := from.commit(t, 4, []byte("three"), two)
	must(t, p.push(bob, "ann/pg", from, three))

	// A fork outlives its parent.
	_, err = bob.Fork(ctx, "ann/pg", hub.NewFork{Name: "ann/mine"})
	kind(t, err, api.NotFound, "")
	f, err := bob.Fork(ctx, "ann/pg", hub.NewFork{Name: "bob/pg"})
	must(t, err)
	if f.Forked != "ann/pg" || f.Right != hub.Admin || f.Used == 0 || f.Public {
		t.Errorf("%+v", f)
	}
	kind(t, bob.DeleteRepository(ctx, "ann/pg"), api.Denied, "")
	must(t, ann.DeleteRepository(ctx, "ann/pg"))
	p.clock.add(2*hub.Grace + time.Hour)
	must(t, root.Sweep(ctx))
	await(t, func() bool {
		s, err := root.Status(ctx)
		return err == nil && s.Sweep != nil && s.Sweep.Ended != nil && s.Sweep.Begun.After(time.Now())
	})
	r := p.remote(bob, "bob/pg")
	list, err := r.List(ctx, true)
	must(t, err)
	if len(list.Commits) != 4 || len(list.Damaged) > 0 {
		t.Errorf("%+v", list)
	}
	found, err := r.Find(ctx, three)
	must(t, err)
	must(t, r.Verify(ctx, found))

	// A namespace that is full.
	_, err = root.ChangeNamespace(ctx, "ann", hub.ChangeNamespace{Quota: new(int64(20000))})
	must(t, err)
	_, err = ann.ChangeNamespace(ctx, "ann", hub.ChangeNamespace{Quota: new(int64(0))})
	kind(t, err, api.Denied, "no operator")
	big := newPool(t)
	text := make([]byte, 100000)
	for i := range text {
		text[i] = byte(i*i>>7*31>>3 ^ i*7919>>5)
	}
	must(t, p.push(ann, "ann/small", from, one))
	kind(t, p.push(ann, "ann/big", big, big.commit(t, 9, text)), api.Exhausted, "quota")
}

// await asks until something holds; the test's own deadline ends it.
func await(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}

func TestTokens(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	p := at.run(t)
	root := p.admin(at)
	ann := p.user(root, "ann")
	from := newPool(t)
	one := from.commit(t, 1, []byte("one"))

	reader, err := ann.CreateToken(ctx, "ann", hub.NewToken{Label: "r", Most: hub.Read})
	must(t, err)
	kind(t, p.push(p.as("ann", reader.Secret), "ann/pg", from, one), api.Denied, "")
	must(t, p.push(ann, "ann/pg", from, one))
	_, err = p.as("ann", reader.Secret).CreateToken(ctx, "ann", hub.NewToken{Most: hub.Read})
	kind(t, err, api.Denied, "made with one that allows admin")
	kind(t, p.as("ann", reader.Secret).RevokeToken(ctx, "ann", "0123"), api.Denied, "itself alone")
	_, err = p.as("ann", reader.Secret).ChangeRepository(ctx, "ann/pg", hub.ChangeRepository{Public: new(true)})
	kind(t, err, api.Denied, "the token allows read")
	must(t, p.as("ann", reader.Secret).RevokeToken(ctx, "ann", reader.ID))
	_, err = p.as("ann", reader.Secret).Self(ctx)
	kind(t, err, api.Unauthenticated, "")

	end := p.clock.now().Add(time.Hour).UTC()
	short, err := ann.CreateToken(ctx, "ann", hub.NewToken{Most: hub.Admin, Expires: &end})
	must(t, err)
	late := end.Add(time.Hour)
	for _, e := range []*time.Time{nil, &late} {
		_, err = p.as("ann", short.Secret).CreateToken(ctx, "ann", hub.NewToken{Most: hub.Admin, Expires: e})
		kind(t, err, api.Denied, "lasts longer")
	}
	must(t, p.push(p.as("ann", short.Secret), "ann/pg", from, one))
	p.clock.add(2 * time.Hour)
	_, err = p.as("ann", short.Secret).Self(ctx)
	kind(t, err, api.Unauthenticated, "ended")
	kind(t, p.push(p.as("ann", short.Secret), "ann/pg", from, one), api.Unauthenticated, "")
	past := time.Now().Add(-time.Hour)
	_, err = ann.CreateToken(ctx, "ann", hub.NewToken{Most: hub.Admin, Expires: &past})
	kind(t, err, api.Invalid, "ended already")

	bob := p.user(root, "bob")
	_, err = bob.Tokens(ctx, "ann")
	kind(t, err, api.Denied, "no operator")
	_, err = root.ChangeUser(ctx, "bob", hub.ChangeUser{Disabled: new(true)})
	must(t, err)
	_, err = bob.Self(ctx)
	kind(t, err, api.Unauthenticated, "")
	_, err = root.ChangeUser(ctx, FirstOperator, hub.ChangeUser{Root: new(false)})
	kind(t, err, api.Denied, "to themselves")
	kind(t, root.DeleteUser(ctx, FirstOperator), api.Denied, "to themselves")
	must(t, root.DeleteUser(ctx, "bob"))
}
