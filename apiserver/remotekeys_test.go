package apiserver

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/peer"
)

const (
	theKey    = "0123456789abcdef"
	theOldKey = "fedcba9876543210"
	theSecret = "the-secret-of-the-key-is-32-long"
	thePhrase = "a passphrase for tests"
)

// keyAgent has every key.
type keyAgent struct{ Agent }

func (keyAgent) KeyFor(string) (peer.Key, error) { return peer.Key{Secret: []byte(theSecret)}, nil }

func (keyAgent) ExportKey(context.Context, string, string, string, string) (api.KeyCopy, error) {
	return api.KeyCopy{Copy: theSecret}, nil
}

func (keyAgent) UnlockKey(_ context.Context, _, _ string, open api.OpenKey, _ string) ([]api.RemoteKey, error) {
	if open.Passphrase != thePhrase {
		return nil, &api.Error{Kind: api.Unauthenticated, Op: "open key", Reason: "the passphrase is wrong"}
	}
	return []api.RemoteKey{{ID: theKey}}, nil
}

// keyLedger has one volume on n1, which moves to n2; n3 has what is left of a branch.
type keyLedger struct{ Ledger }

func (keyLedger) Volume(_ context.Context, ref string) (api.Volume, error) {
	if ref != "pg" {
		return api.Volume{}, &api.Error{Kind: api.NotFound, Op: "look up volume", Object: ref}
	}
	return api.Volume{
		ID: "pg", Name: "pg", Branch: "main",
		Heads:   map[string]api.Head{"main": {Node: "n1", Move: &api.Move{To: "n2"}}},
		Dropped: []api.Dropped{{Branch: "old", Node: "n3"}},
		Remotes: map[string]api.Remote{"origin": {URL: "file:///x", Key: theKey, Old: []string{theOldKey}}},
	}, nil
}

// keyServer is n1 as somebody sees it, with what it logs.
func keyServer(t *testing.T, as auth.Identity, behalf string) (*client.Client, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s := New(Config{
		Node: "n1", Control: func() bool { return true }, Agent: keyAgent{}, Ledger: keyLedger{},
		Events: events.New("n1", slog.New(slog.DiscardHandler), time.Now), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r.WithContext(WithIdentity(r.Context(), as)))
	}))
	t.Cleanup(h.Close)
	header := http.Header{}
	if behalf != "" {
		header.Set(BehalfHeader, behalf)
	}
	return client.New(h.URL, nil, header), &log
}

// Who may have a key: only a node with a part in a volume that needs it, and
// for export only an administrator.
func TestWhoGetsKeys(t *testing.T) {
	node := func(name string, control bool) auth.Identity {
		return auth.Identity{Kind: auth.NodeKind, Name: name, Control: control}
	}
	user := func(role api.Role) auth.Identity {
		return auth.Identity{Kind: auth.UserKind, Name: "u", Role: role}
	}
	for _, x := range []struct {
		name   string
		as     auth.Identity
		volume string
		key    string
		kind   api.Kind
	}{
		{"the owner", node("n1", false), "pg", theKey, ""},
		{"where it moves to", node("n2", false), "pg", theKey, ""},
		{"an old key", node("n2", false), "pg", theOldKey, ""},
		{"who has an old branch", node("n3", false), "pg", theKey, ""},
		{"another node", node("n4", false), "pg", theKey, api.Denied},
		{"a control node", node("n4", true), "pg", theKey, api.Denied},
		{"another key", node("n1", false), "pg", "aaaaaaaaaaaaaaaa", api.Denied},
		{"no key", node("n1", false), "pg", "", api.Denied},
		{"another volume", node("n1", false), "other", theKey, api.NotFound},
		{"an administrator", user(api.Admin), "pg", theKey, api.Denied},
		{"this host", auth.Local("root"), "pg", theKey, api.Denied},
		{"nobody", auth.Identity{}, "pg", theKey, api.Unauthenticated},
	} {
		c, log := keyServer(t, x.as, "")
		var k peer.Key
		err := c.Do(t.Context(), http.MethodPost, "/v1/peer/key", peer.KeyRequest{Volume: x.volume, ID: x.key}, &k)
		if api.KindOf(err) != x.kind || (err == nil) != (string(k.Secret) == theSecret) {
			t.Errorf("%s: %v", x.name, err)
		}
		if strings.Contains(log.String(), theSecret) {
			t.Errorf("%s: the log has the key in it", x.name)
		}
	}
	for _, x := range []struct {
		name, behalf string
		as           auth.Identity
		kind         api.Kind
	}{
		{"an administrator", "", user(api.Admin), ""},
		{"an operator", "", user(api.Operator), api.Denied},
		{"this host", "", auth.Local("root"), ""},
		{"an administrator through a control node", "user u admin", node("n2", true), ""},
		{"an administrator, says a plain node", "user u admin", node("n2", false), api.Denied},
		{"a plain node", "", node("n2", false), api.Denied},
	} {
		c, _ := keyServer(t, x.as, x.behalf)
		var k api.KeyCopy
		err := c.Do(t.Context(), http.MethodPost, "/v1/volumes/pg/remotes/-/keys/export", nil, &k)
		if api.KindOf(err) != x.kind || (err == nil) != (k.Copy == theSecret) {
			t.Errorf("export, %s: %v", x.name, err)
		}
	}
}

// What was said to open a key is in no log, whatever comes of it.
func TestPassphrasesAreNotLogged(t *testing.T) {
	c, log := keyServer(t, auth.Local("root"), "")
	for _, phrase := range []string{thePhrase, "wrong-" + thePhrase} {
		var list []api.RemoteKey
		err := c.Do(t.Context(), http.MethodPost, "/v1/volumes/pg/remotes/origin/keys/unlock", api.OpenKey{Passphrase: phrase}, &list)
		if (err == nil) != (phrase == thePhrase) {
			t.Errorf("%v", err)
		}
		if err != nil && strings.Contains(err.Error(), thePhrase) {
			t.Errorf("the error has it: %v", err)
		}
	}
	if text := log.String(); strings.Contains(text, thePhrase) || strings.Count(text, "unlock-remote-key") != 2 {
		t.Errorf("the log:\n%s", text)
	}
	if err := c.Do(t.Context(), http.MethodPost, "/v1/volumes/pg/remotes/origin/keys/unlock", api.OpenKey{}, nil); !api.Is(err, api.Invalid) {
		t.Errorf("nothing to open it with: %v", err)
	}
}
