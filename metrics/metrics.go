// Package metrics names what an agent measures, in Prometheus' format. It is
// given values and functions that give them, and must not know who they are:
// neither the agent nor the store behind them.
package metrics

import (
	"context"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Sources give what is measured at the moment somebody asks.
type Sources struct {
	Node    string
	Version string
	// Pools are the node's.
	Pools func() []api.Pool
	// Volumes are those that concern the node.
	Volumes func(ctx context.Context) ([]api.Volume, error)
	// Expires is when the node's certificate ends.
	Expires func() time.Time
}

// patience bounds how long a scrape waits for Volumes.
const patience = 2 * time.Second

// Metrics are one agent's measures.
type Metrics struct {
	sources  Sources
	registry *prometheus.Registry

	plugin   *prometheus.HistogramVec
	api      *prometheus.HistogramVec
	commits  *prometheus.CounterVec
	events   *prometheus.CounterVec
	moves    *prometheus.CounterVec
	sent     prometheus.Counter
	resent   prometheus.Counter
	downtime prometheus.Histogram

	volumes, heads, moving, store *prometheus.Desc
	poolBytes, poolState          *prometheus.Desc
	certificate, build            *prometheus.Desc
}

// New makes the measures of an agent.
func New(s Sources) *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("drover_"+name, help, labels, nil)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "drover_" + name, Help: help}, labels)
	}
	seconds := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "drover_" + name, Help: help, Buckets: buckets}, labels)
	}
	quick := prometheus.ExponentialBuckets(0.0005, 2, 18) // half a millisecond to a minute
	m := &Metrics{
		sources: s, registry: prometheus.NewRegistry(),
		plugin:  seconds("plugin_call_seconds", "How long Docker waited for the volume plugin.", quick, "call", "outcome"),
		api:     seconds("api_request_seconds", "How long API requests took.", quick, "method", "code"),
		commits: counter("state_commits_total", "Transactions of this node on the state store; conflict: others changed the record first, and it is read anew.", "outcome"),
		events:  counter("events_total", "Events of this node.", "type", "level"),
		moves:   counter("moves_total", "Moves that ended and that began on this node.", "outcome"),

		volumes:     desc("volumes", "Volumes that concern this node.", "state"),
		heads:       desc("heads", "Heads that this node owns.", "pool"),
		moving:      desc("moves_in_flight", "Moves on their way from this node."),
		store:       desc("state_store_up", "1 if the state store answers this node."),
		poolBytes:   desc("pool_bytes", "Bytes of a pool.", "pool", "kind", "what"),
		poolState:   desc("pool_state", "1 for the state that a pool is in.", "pool", "kind", "state"),
		certificate: desc("certificate_expiry_timestamp_seconds", "When the node's certificate ends."),
		build:       desc("build_info", "What runs.", "version", "node"),
	}
	moved := counter("moved_bytes_total", "Bytes that moves sent from this node; resent: a second time, after a break.", "what")
	m.sent, m.resent = moved.WithLabelValues("sent"), moved.WithLabelValues("resent")
	m.downtime = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "drover_move_downtime_seconds", Help: "From the last user stopped to the volume ready at the target.",
		Buckets: []float64{.05, .1, .2, .3, .4, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300},
	})
	for _, outcome := range []string{"ok", "conflict", "error"} {
		m.commits.WithLabelValues(outcome)
	}
	for _, outcome := range []string{"done", "failed"} {
		m.moves.WithLabelValues(outcome)
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m, m.plugin, m.api, m.commits, m.events, m.moves, moved, m.downtime,
	)
	return m
}

// Handler serves the measures.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.volumes, m.heads, m.moving, m.store, m.poolBytes, m.poolState, m.certificate, m.build} {
		ch <- d
	}
}

// Collect implements prometheus.Collector: it asks the sources.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.build, 1, m.sources.Version, m.sources.Node)
	gauge(m.certificate, float64(m.sources.Expires().Unix()))
	for _, p := range m.sources.Pools() {
		for what, v := range map[string]int64{"capacity": p.Capacity, "used": p.Used, "free": p.Free} {
			gauge(m.poolBytes, float64(v), p.Name, p.Kind, what)
		}
		for _, s := range []api.PoolState{api.PoolReady, api.PoolFull, api.PoolReadOnly, api.PoolGone} {
			gauge(m.poolState, truth(s == p.State), p.Name, p.Kind, string(s))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := m.sources.Volumes(ctx)
	gauge(m.store, truth(err == nil))
	if err != nil {
		return // not knowing is not zero
	}
	c := count(m.sources.Node, list)
	for s, n := range c.volumes {
		gauge(m.volumes, float64(n), s)
	}
	for pool, n := range c.heads {
		gauge(m.heads, float64(n), pool)
	}
	gauge(m.moving, float64(c.moving))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

type counts struct {
	volumes, heads map[string]int
	moving         int
}

// count sorts a node's volumes by what they are to it.
func count(node string, list []api.Volume) counts {
	c := counts{volumes: map[string]int{"ready": 0, "making": 0, "moving": 0, "elsewhere": 0, "deleted": 0}, heads: map[string]int{}}
	for _, v := range list {
		state := "elsewhere"
		for _, h := range v.Heads {
			if h.Node != node {
				continue
			}
			c.heads[h.Pool]++
			switch {
			case h.Move != nil:
				c.moving++
				state = "moving"
			case !h.Ready && state != "moving":
				state = "making"
			case state == "elsewhere":
				state = "ready"
			}
		}
		if v.Deleted != nil {
			state = "deleted"
		}
		c.volumes[state]++
	}
	return c
}

// Event counts an event.
func (m *Metrics) Event(e api.Event) { m.events.WithLabelValues(e.Type, e.Level).Inc() }

// Moved counts a move that ended.
func (m *Metrics) Moved(p api.MoveProgress) {
	m.sent.Add(float64(p.Sent))
	m.resent.Add(float64(p.Resent))
	if p.Err != nil {
		m.moves.WithLabelValues("failed").Inc()
		return
	}
	m.moves.WithLabelValues("done").Inc()
	if !p.Stopped.IsZero() {
		m.downtime.Observe(p.Downtime.Seconds())
	}
}

// Plugin measures the calls of Docker's volume plugin.
func (m *Metrics) Plugin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := path.Base(r.URL.Path)
		if !pluginCall[call] {
			call = "other" // whoever can open the socket shall not fill our memory
		}
		started, seen := time.Now(), &status{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(seen, r)
		outcome := "ok"
		if seen.code >= http.StatusBadRequest {
			outcome = "error"
		}
		m.plugin.WithLabelValues(call, outcome).Observe(time.Since(started).Seconds())
	})
}

var pluginCall = map[string]bool{
	"Plugin.Activate": true, "VolumeDriver.Create": true, "VolumeDriver.Get": true, "VolumeDriver.List": true, "VolumeDriver.Path": true,
	"VolumeDriver.Mount": true, "VolumeDriver.Unmount": true, "VolumeDriver.Remove": true, "VolumeDriver.Capabilities": true,
}

// API measures the requests of the API. Those that wait for events are left
// out: they are long because nothing happens.
func (m *Metrics) API(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/events/stream" {
			next.ServeHTTP(w, r)
			return
		}
		started, seen := time.Now(), &status{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(seen, r)
		method := r.Method
		if method != http.MethodGet && method != http.MethodPost && method != http.MethodDelete {
			method = "other"
		}
		m.api.WithLabelValues(method, strconv.Itoa(seen.code)).Observe(time.Since(started).Seconds())
	})
}

// status remembers the status of an answer.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// KV counts what a node commits.
func (m *Metrics) KV(kv state.KV) state.KV { return counted{kv, m.commits} }

type counted struct {
	state.KV
	commits *prometheus.CounterVec
}

func (c counted) Commit(ctx context.Context, txn state.Txn) (int64, error) {
	revision, err := c.KV.Commit(ctx, txn)
	switch {
	case err == nil:
		c.commits.WithLabelValues("ok").Inc()
	case api.Is(err, api.Conflict):
		c.commits.WithLabelValues("conflict").Inc()
	default:
		c.commits.WithLabelValues("error").Inc()
	}
	return revision, err
}
