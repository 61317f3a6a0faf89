package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
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
)

// node is a node's API with nothing behind it but events.
type node struct {
	log  *events.Log
	http *httptest.Server
}

// newNode serves in the name of whoever as gives; it reaches others by name.
func newNode(t *testing.T, name string, as auth.Identity, others map[string]*node) *node {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	n := &node{log: events.New(name, quiet, time.Now)}
	s := New(Config{
		Node: name, Control: func() bool { return true }, Events: n.log, Log: quiet,
		Forward: func(node string) (http.RoundTripper, error) {
			if others[node] == nil {
				return nil, &api.Error{Kind: api.NotFound, Op: "look up node", Object: node}
			}
			return to{others[node].http.URL}, nil
		},
	})
	n.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r.WithContext(WithIdentity(r.Context(), as)))
	}))
	t.Cleanup(func() { n.http.CloseClientConnections(); n.http.Close() })
	return n
}

// to sends requests to a server whatever host they name.
type to struct{ url string }

func (t to) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", strings.TrimPrefix(t.url, "http://")
	return http.DefaultTransport.RoundTrip(out)
}

// next gives the message of the next event.
func next(t *testing.T, s *client.Stream) api.Event {
	t.Helper()
	for {
		m, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if m.Comment {
			continue
		}
		var e api.Event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Fatal(err)
		}
		if e.ID != m.ID {
			t.Errorf("the message's id is %q, the event's %q", m.ID, e.ID)
		}
		return e
	}
}

func open(t *testing.T, n *node, path, after string) *client.Stream {
	t.Helper()
	s, err := client.New(n.http.URL, nil, nil).Stream(t.Context(), path, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A stream gives what was kept, then what happens; who comes back goes on
// after the last event that it has seen.
func TestStream(t *testing.T) {
	local := auth.Local("root")
	far := newNode(t, "n2", auth.Identity{Kind: auth.NodeKind, Name: "n1"}, nil)
	near := newNode(t, "n1", local, map[string]*node{"n2": far})
	for _, c := range []struct {
		name string
		log  *events.Log
		path string
	}{{"own", near.log, StreamPath}, {"another node's", far.log, StreamPath + "?node=n2"}} {
		t.Run(c.name, func(t *testing.T) {
			for i := range 3 {
				c.log.Add(api.Event{Type: "x", Message: fmt.Sprintf("kept %d\nin two lines", i)})
			}
			s := open(t, near, c.path, "")
			var last api.Event
			for i := range 3 {
				if last = next(t, s); last.Message != fmt.Sprintf("kept %d\nin two lines", i) {
					t.Fatalf("event %d is %q", i, last.Message)
				}
			}
			c.log.Add(api.Event{Type: "x", Message: "live"})
			if e := next(t, s); e.Message != "live" {
				t.Errorf("got %q", e.Message)
			}
			s.Close()
			c.log.Add(api.Event{Type: "x", Message: "missed"})
			again := open(t, near, c.path, last.ID)
			for _, want := range []string{"live", "missed"} {
				if e := next(t, again); e.Message != want {
					t.Errorf("got %q, want %q", e.Message, want)
				}
			}
		})
	}
}

// Who may not look is told so before any stream begins.
func TestStreamRefused(t *testing.T) {
	n := newNode(t, "n1", auth.Identity{}, nil)
	if _, err := client.New(n.http.URL, nil, nil).Stream(t.Context(), StreamPath, ""); !api.Is(err, api.Unauthenticated) {
		t.Errorf("nobody: %v", err)
	}
	known := newNode(t, "n1", auth.Local("root"), nil)
	if _, err := client.New(known.http.URL, nil, nil).Stream(t.Context(), StreamPath+"?node=n9", ""); !api.Is(err, api.NotFound) {
		t.Errorf("a node that is none: %v", err)
	}
}

// A client that is gone leaves nothing behind.
func TestStreamEnds(t *testing.T) {
	n := newNode(t, "n1", auth.Local("root"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := client.New(n.http.URL, nil, nil).Stream(ctx, StreamPath, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); err != nil { // that it is through
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Next(); err == nil {
		t.Error("it goes on")
	}
	n.http.Close() // waits for every request to end
}
