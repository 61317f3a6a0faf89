package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t testing.TB, err error, want api.Kind, says string) {
	t.Helper()
	var e *api.Error
	if !api.Is(err, want) || !errors.As(err, &e) || !strings.Contains(err.Error(), says) {
		t.Fatalf("%q %v, want %s %q", api.KindOf(err), err, want, says)
	}
}

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// bench is a database with two users, for one test.
type bench struct {
	*testing.T
	*Store
	url   string
	clock *clock
}

var (
	root  = hub.Identity{User: "root", Root: true, Most: hub.Admin}
	alice = hub.Identity{User: "alice", Token: "k1", Most: hub.Admin}
)

func TestSQLite(t *testing.T) {
	suite(t, func(t *testing.T) string { return filepath.Join(t.TempDir(), "a b%20#?.db") })
}

func suite(t *testing.T, fresh func(t *testing.T) string) {
	for name, part := range map[string]func(*bench){
		"people": people, "rights": rights, "blobs": blobs, "manifests": manifests, "rules": rulesHold, "quota": quota,
		"sweep": sweep, "retention": retention, "fork": fork, "events": events, "letters": letters, "looking": looking, "mirror": mirrorNames, "races": races, "locks": locks, "reopen": reopen,
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{T: t, url: fresh(t), clock: &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
			b.Store = b.open()
			for _, u := range []string{"alice", "bob"} {
				must(t, b.CreateUser(ctx, root, hub.User{Name: u}))
			}
			must(t, b.CreateRepository(ctx, alice, hub.Repository{Name: "alice/pg"}))
			part(b)
			b.audit()
		})
	}
}

func (b *bench) open() *Store {
	b.Helper()
	s, err := Open(ctx, Options{URL: b.url, Now: b.clock.now})
	must(b, err)
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// audit counts all bytes anew.
func (b *bench) audit() {
	b.Helper()
	sums := map[string]int64{}
	list, err := b.Repositories(ctx, root, "", 0)
	must(b, err)
	for _, r := range list {
		full, err := b.reading().find(ctx, r.Name, "")
		must(b, err)
		var used int64
		must(b, b.reading().row(ctx, usedBy, full.id, full.id).Scan(&used))
		if used != r.Used {
			b.Errorf("%s counts %d bytes and has %d", r.Name, r.Used, used)
		}
		sums[hub.NamespaceOf(r.Name)] += used
	}
	spaces, err := b.Namespaces(ctx)
	must(b, err)
	for _, n := range spaces {
		if n.Used != sums[n.Name] {
			b.Errorf("namespace %s counts %d bytes and has %d", n.Name, n.Used, sums[n.Name])
		}
	}
}

func sum(text string) digest.Digest { return digest.FromString(text) }

// blob brings a blob as an upload does.
func (b *bench) blob(repo, text string) digest.Digest {
	b.Helper()
	d := sum(text)
	_, err := b.HoldBlob(ctx, repo, d, int64(len(text)))
	must(b, err)
	must(b, b.BlobStored(ctx, repo, d, ""))
	return d
}

// commit pushes one with a blob of its own.
func (b *bench) commit(repo, tag, id string, parents ...string) (digest.Digest, error) {
	b.Helper()
	m := hub.Manifest{Digest: sum("manifest " + id), Media: "m", Size: 10, Blobs: []digest.Digest{b.blob(repo, "blob "+id)}, Commit: &hub.Commit{ID: commitID(id), Time: b.clock.now()}}
	for _, p := range parents {
		m.Commit.Parents = append(m.Commit.Parents, commitID(p))
	}
	return m.Digest, b.put(repo, tag, m, Condition{})
}

func (b *bench) put(repo, tag string, m hub.Manifest, c Condition) error {
	b.Helper()
	if _, err := b.HoldManifest(ctx, repo, m); err != nil {
		return err
	}
	return b.PutManifest(ctx, Put{Repository: repo, By: alice, Right: hub.Write, Manifest: m, Tag: tag, If: c})
}

func commitID(text string) string { return sum(text).Encoded()[:40] }

func people(b *bench) {
	kind(b, b.CreateUser(ctx, root, hub.User{Name: "alice"}), api.Exists, "alice")
	for _, bad := range []string{"", "Alice", "a/b", "-a", strings.Repeat("a", 65)} {
		kind(b, b.CreateUser(ctx, root, hub.User{Name: bad}), api.Invalid, "name")
	}
	kind(b, b.SetUser(ctx, root, hub.User{Name: "nobody"}), api.NotFound, "user")
	_, _, err := b.CreateToken(ctx, root, hub.Token{User: "nobody", Most: hub.Read})
	kind(b, err, api.NotFound, "user")
	_, _, err = b.CreateToken(ctx, root, hub.Token{User: "alice"})
	kind(b, err, api.Invalid, "read, write or admin")
	end := b.clock.now().Add(time.Hour)
	k, secret, err := b.CreateToken(ctx, root, hub.Token{User: "alice", Label: "laptop", Most: hub.Write, Expires: &end})
	must(b, err)
	if !strings.HasPrefix(secret, SecretPrefix) || len(secret) != len(SecretPrefix)+64 {
		b.Errorf("%d", len(secret))
	}
	who, err := b.Identify(ctx, "alice", secret)
	must(b, err)
	if want := (hub.Identity{User: "alice", Token: k.ID, Most: hub.Write}); who != want {
		b.Errorf("%+v", who)
	}
	if again, err := b.Recall(ctx, k.ID); err != nil || again != who {
		b.Errorf("%+v %v", again, err)
	}
	if none, err := b.Identify(ctx, "", ""); err != nil || none != (hub.Identity{}) {
		b.Errorf("%+v %v", none, err)
	}
	list, err := b.Tokens(ctx, "alice")
	must(b, err)
	if len(list) != 1 || list[0].Used == nil || list[0].Label != "laptop" || !list[0].Expires.Equal(end) {
		b.Errorf("%+v", list)
	}
	for _, x := range [][2]string{{"bob", secret}, {"alice", secret + "0"}, {"alice", ""}, {"alice", k.ID}, {"", "x"}} {
		_, err := b.Identify(ctx, x[0], x[1])
		kind(b, err, api.Unauthenticated, "wrong")
		if strings.Contains(err.Error(), secret) {
			b.Errorf("%v has the secret", err)
		}
	}
	// Nowhere in the database is the secret.
	var n int
	must(b, b.reading().row(ctx, "SELECT COUNT(*) FROM tokens WHERE hash = ? OR id = ?", secret, secret).Scan(&n))
	if n != 0 {
		b.Error("the secret is kept")
	}
	ends := func(what string) {
		b.Helper()
		_, err := b.Identify(ctx, "alice", secret)
		kind(b, err, api.Unauthenticated, "")
		if _, err = b.Recall(ctx, k.ID); !api.Is(err, api.Unauthenticated) {
			b.Errorf("%s: %v", what, err)
		}
	}
	must(b, b.SetUser(ctx, root, hub.User{Name: "alice", Disabled: true}))
	ends("disabled")
	must(b, b.SetUser(ctx, root, hub.User{Name: "alice", Root: true}))
	if who, err = b.Recall(ctx, k.ID); err != nil || !who.Root {
		b.Errorf("%+v %v", who, err)
	}
	b.clock.add(time.Hour)
	ends("expired")
	k, secret, err = b.CreateToken(ctx, root, hub.Token{User: "alice", Most: hub.Admin})
	must(b, err)
	kind(b, b.DeleteToken(ctx, root, "bob", k.ID), api.NotFound, "token")
	must(b, b.DeleteToken(ctx, root, "alice", k.ID))
	ends("revoked")
	must(b, b.SetGrant(ctx, root, "alice/pg", hub.Member{User: "bob", Right: hub.Write}))
	k, secret, err = b.CreateToken(ctx, root, hub.Token{User: "alice", Most: hub.Admin})
	must(b, err)
	must(b, b.DeleteUser(ctx, root, "alice"))
	ends("deleted")
	// Who has the name later owns nothing of it.
	must(b, b.CreateUser(ctx, root, hub.User{Name: "alice"}))
	if r, err := b.Right(ctx, alice, "alice/pg"); err != nil || r != hub.None {
		b.Errorf("%v %v", r, err)
	}
	users, err := b.Users(ctx)
	must(b, err)
	if len(users) != 2 || users[0].Name != "alice" || users[1].Name != "bob" {
		b.Errorf("%+v", users)
	}
}

func rights(b *bench) {
	bob := hub.Identity{User: "bob", Most: hub.Admin}
	is := func(who hub.Identity, repo string, want hub.Right) {
		b.Helper()
		got, err := b.Right(ctx, who, repo)
		must(b, err)
		if got != want {
			b.Errorf("%+v on %s: %s, want %s", who, repo, got, want)
		}
	}
	sees := func(who hub.Identity, want ...string) {
		b.Helper()
		list, err := b.Repositories(ctx, who, "", 0)
		must(b, err)
		names := []string{}
		for _, r := range list {
			names = append(names, r.Name)
		}
		if !slices.Equal(names, append([]string{}, want...)) {
			b.Errorf("%s sees %v, want %v", who.User, names, want)
		}
	}
	must(b, b.CreateNamespace(ctx, root, hub.Namespace{Name: "team"}))
	for _, r := range []string{"team/a", "team/b", "team/a/deep"} {
		must(b, b.CreateRepository(ctx, root, hub.Repository{Name: r}))
	}
	nobody := hub.Identity{}
	is(alice, "alice/pg", hub.Admin)
	is(alice, "alice/not-there", hub.Admin)
	is(hub.Identity{User: "alice", Most: hub.Read}, "alice/pg", hub.Read)
	is(bob, "alice/pg", hub.None)
	is(nobody, "alice/pg", hub.None)
	is(nobody, "nowhere/pg", hub.None)
	is(root, "alice/pg", hub.Admin)
	is(hub.Identity{User: "root", Root: true, Most: hub.Read}, "alice/pg", hub.Read)
	sees(alice, "alice/pg")
	sees(bob)
	sees(root, "alice/pg", "team/a", "team/a/deep", "team/b")
	must(b, b.SetMember(ctx, root, "team", hub.Member{User: "bob", Right: hub.Write}))
	must(b, b.SetGrant(ctx, root, "team/b", hub.Member{User: "alice", Right: hub.Read}))
	is(bob, "team/b", hub.Write)
	is(bob, "team/new", hub.Write)
	is(alice, "team/b", hub.Read)
	is(alice, "team/a", hub.None)
	sees(bob, "team/a", "team/a/deep", "team/b")
	sees(alice, "alice/pg", "team/b")
	must(b, b.SetMember(ctx, root, "team", hub.Member{User: "bob", Right: hub.Admin}))
	is(bob, "team/b", hub.Admin)
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: "alice/pg", Public: true}))
	is(nobody, "alice/pg", hub.Read)
	is(bob, "alice/pg", hub.Read)
	sees(nobody, "alice/pg")
	must(b, b.SetMember(ctx, root, "team", hub.Member{User: "bob"}))
	is(bob, "team/b", hub.None)
	must(b, b.SetGrant(ctx, root, "team/b", hub.Member{User: "alice"}))
	sees(alice, "alice/pg")
	kind(b, b.SetMember(ctx, root, "team", hub.Member{User: "nobody", Right: hub.Read}), api.NotFound, "nobody")
	kind(b, b.SetGrant(ctx, root, "team/none", hub.Member{User: "bob", Right: hub.Read}), api.NotFound, "team/none")
	kind(b, b.SetGrant(ctx, root, "team/a", hub.Member{User: "nobody", Right: hub.Read}), api.NotFound, "nobody")
	kind(b, b.DeleteNamespace(ctx, root, "team"), api.InUse, "repositories")
	kind(b, b.CreateRepository(ctx, root, hub.Repository{Name: "nowhere/x"}), api.NotFound, "namespace")
	kind(b, b.CreateRepository(ctx, root, hub.Repository{Name: "alice/pg"}), api.Exists, "alice/pg")
	for _, bad := range []string{"alice", "alice/", "/x", "alice/UP", "alice/../x", "a//b", "alice/" + strings.Repeat("x", 200)} {
		kind(b, b.CreateRepository(ctx, root, hub.Repository{Name: bad}), api.Invalid, "name")
	}
	page, err := b.Repositories(ctx, root, "alice/pg", 2)
	must(b, err)
	if len(page) != 2 || page[0].Name != "team/a" || page[1].Name != "team/a/deep" {
		b.Errorf("%+v", page)
	}
	must(b, b.SetNamespace(ctx, root, hub.Namespace{Name: "team", Owner: "alice"}))
	is(alice, "team/a", hub.Admin)
	kind(b, b.SetNamespace(ctx, root, hub.Namespace{Name: "team", Owner: "nobody"}), api.NotFound, "user")
	for _, r := range []string{"team/a", "team/b", "team/a/deep"} {
		must(b, b.DeleteRepository(ctx, root, r))
	}
	must(b, b.DeleteNamespace(ctx, root, "team"))
	is(alice, "team/a", hub.None)
}

func reopen(b *bench) {
	one, err := b.Setting(ctx, "secret")
	must(b, err)
	must(b, b.Ping(ctx))
	other := b.open()
	if two, err := other.Setting(ctx, "secret"); err != nil || two != one || len(one) != 64 {
		b.Errorf("%q %v", two, err)
	}
	if _, err := other.Repository(ctx, "alice/pg"); err != nil {
		b.Error(err)
	}
	must(b, b.write(ctx, "", "", func(t tx) error {
		_, err := t.exec(ctx, "INSERT INTO versions (version) VALUES (?)", 1000)
		return err
	}))
	_, err = Open(ctx, Options{URL: b.url})
	kind(b, err, api.Unsupported, "upgrade")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	kind(b, b.SetUser(ended, root, hub.User{Name: "alice"}), api.Canceled, "")
}

func TestOpenErrors(t *testing.T) {
	_, err := Open(ctx, Options{URL: filepath.Join(t.TempDir(), "no", "such", "dir.db")})
	kind(t, err, api.Unavailable, "no such file")
	junk := filepath.Join(t.TempDir(), "junk.db")
	must(t, os.WriteFile(junk, []byte(strings.Repeat("no database ", 1000)), 0o600))
	_, err = Open(ctx, Options{URL: junk})
	kind(t, err, api.Unavailable, "not a database")
	c, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = Open(c, Options{URL: "postgres://somebody:hunter2@127.0.0.1:1/x?password=hunter2"})
	kind(t, err, api.Unavailable, "database")
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v has the password", err)
	}
}
