package manage

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is a server with a private repository of ann's, and the tokens of people.
type bench struct {
	*Server
	tokens map[string]string
}

func newBench(t testing.TB) *bench {
	ctx := context.Background()
	st, err := store.Open(ctx, store.Options{URL: filepath.Join(t.TempDir(), "hub.db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	b := &bench{New(Options{
		Store: st, Sweep: func(context.Context) error { return nil }, CheckURL: func(string) error { return nil },
		Ping: func(context.Context, hub.Webhook) hub.Attempt { return hub.Attempt{Status: 200} },
	}), map[string]string{}}
	for _, name := range []string{"root", "ann", "eve"} {
		must(t, st.CreateUser(ctx, hub.Identity{}, hub.User{Name: name, Root: name == "root"}))
		_, secret, err := st.CreateToken(ctx, hub.Identity{}, hub.Token{User: name, Most: hub.Admin})
		must(t, err)
		b.tokens[name] = secret
	}
	must(t, st.CreateRepository(ctx, hub.Identity{}, hub.Repository{Name: "ann/pg"}))
	_, err = st.AddWebhook(ctx, hub.Identity{}, hub.Webhook{Repository: "ann/pg", URL: "https://example.com", Secret: "s"})
	must(t, err)
	return b
}

func (b *bench) ask(method, path, user, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body == "" {
		r.Body = http.NoBody
	}
	r.Header.Set("Content-Type", "application/json")
	if user != "" {
		r.SetBasicAuth(user, b.tokens[user])
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// bodies are requests that would do something.
var bodies = map[string]string{
	"create-user": `{"name":"x"}`, "change-user": `{"root":true}`, "create-token": `{"most":"read"}`, "create-namespace": `{"name":"x"}`, "change-namespace": `{"quota":1}`,
	"set-member": `{"right":"admin"}`, "create-repository": `{"name":"ann/x"}`, "change-repository": `{"public":true}`, "fork-repository": `{"name":"ann/y"}`,
	"set-grant": `{"right":"admin"}`, "create-webhook": `{"url":"https://example.com"}`, "change-webhook": `{"disabled":true}`,
}

// TestNobodyAndOutsiders asks for everything that the description has: nobody in particular gets
// nothing, and somebody without a right gets nothing of others'.
func TestNobodyAndOutsiders(t *testing.T) {
	b := newBench(t)
	type operation struct {
		OperationID string `json:"operationId"`
	}
	var doc struct {
		Paths map[string]map[string]operation `json:"paths"`
	}
	must(t, json.Unmarshal(b.ask(http.MethodGet, Prefix+"/openapi.json", "", "").Body.Bytes(), &doc))
	fill := strings.NewReplacer("{user}", "ann", "{id}", "1", "{namespace}", "ann", "{repository}", "ann%2Fpg")
	open := map[string]bool{"whoami": true, "list-repositories": true, "list-namespaces": true} // of oneself
	seen := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			seen++
			for _, who := range []string{"", "eve"} {
				w := b.ask(strings.ToUpper(method), fill.Replace(path), who, bodies[op.OperationID])
				if strings.Contains(w.Body.String(), `"name":"ann/pg"`) || (w.Code < 400) != (open[op.OperationID] && (who != "" || op.OperationID != "list-namespaces")) || w.Code >= 500 {
					t.Errorf("%q asks %s %s: %d %s", who, method, path, w.Code, w.Body)
				}
				var e api.Error
				if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &e) != nil || (e.Kind != api.Unauthenticated && e.Kind != api.Denied && e.Kind != api.NotFound)) {
					t.Errorf("%q asks %s %s: %s", who, method, path, w.Body)
				}
			}
			// What was asked is something that could be done.
			if w := b.ask(strings.ToUpper(method), fill.Replace(path), "root", bodies[op.OperationID]); w.Code >= 500 || w.Code == http.StatusUnprocessableEntity || w.Code == http.StatusBadRequest {
				t.Errorf("root asks %s %s: %d %s", method, path, w.Code, w.Body)
			}
			b = newBench(t)
		}
	}
	if seen < 30 {
		t.Errorf("only %d operations are described", seen)
	}
}

func TestLogins(t *testing.T) {
	b := newBench(t)
	for head, want := range map[string]int{
		"": 200, "Bearer " + b.tokens["ann"]: 200, "bearer  " + b.tokens["ann"]: 200, "Bearer x": 401, "Bearer": 401, "Basic !": 401, "Digest x": 401, "Basic OnA=": 401,
	} {
		r := httptest.NewRequest(http.MethodGet, Prefix+"/self", nil)
		if head != "" {
			r.Header.Set("Authorization", head)
		}
		w := httptest.NewRecorder()
		b.ServeHTTP(w, r)
		if w.Code != want || (want == 200 && head != "") != strings.Contains(w.Body.String(), `"user":"ann"`) {
			t.Errorf("%.20q: %d %s", head, w.Code, w.Body)
		}
	}
	for body, want := range map[string]int{`{"most":"all"}`: 422, `{"most":7}`: 422, `{"most":"none"}`: 400, `{}`: 422, `{"most":"read","x":1}`: 422, `[`: 400, strings.Repeat(" ", 2<<20): 413} {
		if w := b.ask(http.MethodPost, Prefix+"/users/ann/tokens", "ann", body); w.Code != want {
			t.Errorf("%.30q: %d %s", body, w.Code, w.Body)
		}
	}
}

// FuzzIdentify: no header is taken for a login that it is not.
func FuzzIdentify(f *testing.F) {
	b := newBench(f)
	for _, s := range []string{"Basic YW5uOng=", "Bearer x", "Bearer \x00", "basic", "Basic Og=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, head string) {
		r := httptest.NewRequest(http.MethodGet, Prefix+"/self", nil)
		r.Header["Authorization"] = []string{head}
		if who, err := b.Identify(r); who.User != "" || (head != "" && err == nil) {
			t.Errorf("%q is %+v", head, who)
		}
	})
}
