package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %v: %s", w.Code, err, text)
	}
	return string(text)
}

func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(text, l+"\n") {
			t.Errorf("%q is missing", l)
		}
	}
}

func sample(err error) *Metrics {
	return New(Sources{
		Node: "n1", Version: "v1", Expires: func() time.Time { return time.Unix(4000000000, 0) },
		Pools: func() []api.Pool {
			return []api.Pool{{Name: "fast", Kind: "btrfs", State: api.PoolFull, Capacity: 100, Used: 90, Free: 10}}
		},
		Volumes: func(context.Context) ([]api.Volume, error) {
			return []api.Volume{
				{Heads: map[string]api.Head{"main": {Node: "n1", Pool: "fast", Ready: true}, "b": {Node: "n1", Pool: "fast", Move: &api.Move{}}}},
				{Heads: map[string]api.Head{"main": {Node: "n1", Pool: "fast", Ready: true}}},
				{Heads: map[string]api.Head{"main": {Node: "n1", Pool: "slow"}}},
				{Heads: map[string]api.Head{"main": {Node: "n2", Move: &api.Move{To: "n1"}}}},
				{Heads: map[string]api.Head{"main": {Node: "n1", Pool: "fast", Ready: true}}, Deleted: &api.Deletion{}},
			}, err
		},
	})
}

func TestScrape(t *testing.T) {
	m := sample(nil)
	m.Event(api.Event{Type: "volume.moved", Level: "info"})
	m.Moved(api.MoveProgress{Sent: 1000, Resent: 10, Stopped: time.Unix(1, 0), Downtime: 250 * time.Millisecond})
	m.Moved(api.MoveProgress{Sent: 24, Err: &api.Error{}})
	has(t, scrape(t, m),
		`drover_volumes{state="ready"} 1`, `drover_volumes{state="moving"} 1`, `drover_volumes{state="making"} 1`,
		`drover_volumes{state="elsewhere"} 1`, `drover_volumes{state="deleted"} 1`, `drover_heads{pool="fast"} 4`, `drover_moves_in_flight 1`,
		`drover_pool_bytes{kind="btrfs",pool="fast",what="free"} 10`, `drover_pool_state{kind="btrfs",pool="fast",state="full"} 1`,
		`drover_pool_state{kind="btrfs",pool="fast",state="ready"} 0`, `drover_certificate_expiry_timestamp_seconds 4e+09`,
		`drover_build_info{node="n1",version="v1"} 1`, `drover_state_store_up 1`, `drover_events_total{level="info",type="volume.moved"} 1`,
		`drover_moved_bytes_total{what="sent"} 1024`, `drover_moved_bytes_total{what="resent"} 10`,
		`drover_moves_total{outcome="done"} 1`, `drover_moves_total{outcome="failed"} 1`,
		`drover_move_downtime_seconds_bucket{le="0.3"} 1`, `drover_move_downtime_seconds_count 1`,
	)
}

func TestWithoutTheStoreNothingIsZero(t *testing.T) {
	text := scrape(t, sample(errors.New("no quorum")))
	has(t, text, `drover_state_store_up 0`, `drover_pool_bytes{kind="btrfs",pool="fast",what="used"} 90`)
	if strings.Contains(text, "drover_volumes{") || strings.Contains(text, "drover_moves_in_flight 0") {
		t.Error("what is unknown is shown as a number")
	}
}

func TestCalls(t *testing.T) {
	m := sample(nil)
	answer := func(code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	call := func(h http.Handler, method, path string) {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
	}
	call(m.Plugin(answer(200)), "POST", "/VolumeDriver.Mount")
	call(m.Plugin(answer(500)), "POST", "/VolumeDriver.Get")
	call(m.Plugin(answer(404)), "POST", "/made/up")
	call(m.API(answer(404)), "GET", "/v1/volumes/x")
	call(m.API(answer(200)), "BREW", "/v1/volumes")
	call(m.API(answer(200)), "GET", "/v1/events/stream")
	has(t, scrape(t, m),
		`drover_plugin_call_seconds_count{call="VolumeDriver.Mount",outcome="ok"} 1`, `drover_plugin_call_seconds_count{call="VolumeDriver.Get",outcome="error"} 1`,
		`drover_plugin_call_seconds_count{call="other",outcome="error"} 1`, `drover_api_request_seconds_count{code="404",method="GET"} 1`,
		`drover_api_request_seconds_count{code="200",method="other"} 1`,
	)
}

func TestConflictsAreCounted(t *testing.T) {
	m := sample(nil)
	kv := m.KV(state.NewMemory())
	txn := state.Txn{If: []state.Cond{{Key: "k"}}, Put: []state.Put{{Key: "k", Value: []byte("v")}}}
	if _, err := kv.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Commit(t.Context(), txn); !api.Is(err, api.Conflict) {
		t.Fatalf("got %v", err)
	}
	has(t, scrape(t, m), `drover_state_commits_total{outcome="ok"} 1`, `drover_state_commits_total{outcome="conflict"} 1`, `drover_state_commits_total{outcome="error"} 0`)
}
