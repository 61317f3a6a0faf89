package front

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
)

// counts is what measures ask of the database.
type counts interface {
	Usage(ctx context.Context) (hub.Usage, error)
	LastSweep(ctx context.Context) (store.Sweep, error)
}

// measures are one process's.
type measures struct {
	registry       *prometheus.Registry
	requests       *prometheus.HistogramVec
	bytes          *prometheus.CounterVec
	wrong, refused prometheus.Counter
	usage          *usage
}

func newMeasures(version string) *measures {
	m := &measures{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "drover_hub_request_seconds", Help: "How long requests took, by what they were about.", Buckets: prometheus.ExponentialBuckets(.001, 3, 13),
		}, []string{"what", "method", "code"}),
		bytes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "drover_hub_bytes_total", Help: "Bytes of bodies; in: from clients."}, []string{"way"}),
		wrong:   prometheus.NewCounter(prometheus.CounterOpts{Name: "drover_hub_wrong_logins_total", Help: "Logins that were refused."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "drover_hub_refused_logins_total", Help: "Logins that were not looked at, after too many wrong ones from there."}),
		usage:   newUsage(),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "drover_hub_build_info", Help: "What runs."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.requests, m.bytes, m.wrong, m.refused, build)
	return m
}

// watch has the measures of the database given as well.
func (m *measures) watch(c counts) {
	m.usage.of = c
	m.registry.MustRegister(m.usage)
}

// methods that are counted by name: others are whatever a client makes up.
func method(of string) string {
	switch of {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return of
	}
	return "other"
}

func (m *measures) observe(what, of string, status int, took time.Duration, in, out int64) {
	m.requests.WithLabelValues(what, method(of), strconv.Itoa(status)).Observe(took.Seconds())
	m.bytes.WithLabelValues("in").Add(float64(max(in, 0)))
	m.bytes.WithLabelValues("out").Add(float64(max(out, 0)))
}

func (m *measures) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// usage gives what the database counts, not more often than it is worth.
type usage struct {
	of   counts
	desc map[string]*prometheus.Desc

	mu     sync.Mutex
	looked time.Time          // guarded by mu
	last   map[string]float64 // guarded by mu
}

const usageEvery = 15 * time.Second

func newUsage() *usage {
	u := &usage{desc: map[string]*prometheus.Desc{}}
	for name, help := range map[string]string{
		"database_up":  "1 if the database answers.",
		"users":        "Users.",
		"repositories": "Repositories.",
		"blobs":        "Blobs and manifests in the storage, each once.",
		"stored_bytes": "Bytes of them.",
		"uploads":      "Uploads on their way.",
		"unwritten":    "Names that the storage does not have yet as they are.",
		"deliveries":   "Deliveries to webhooks that are on their way.",
		"dead_letters": "Deliveries to webhooks that were given up.",
		"sweep_begun":  "When the last sweep began, in seconds since 1970.",
		"sweep_ended":  "When the last sweep ended; 0: it did not.",
	} {
		u.desc[name] = prometheus.NewDesc("drover_hub_"+name, help, nil, nil)
	}
	return u
}

// Describe implements prometheus.Collector.
func (u *usage) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range u.desc {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (u *usage) Collect(ch chan<- prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.looked) > usageEvery {
		u.looked, u.last = time.Now(), u.look()
	}
	for name, v := range u.last {
		ch <- prometheus.MustNewConstMetric(u.desc[name], prometheus.GaugeValue, v)
	}
}

func (u *usage) look() map[string]float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	x, err := u.of.Usage(ctx)
	if err != nil {
		return map[string]float64{"database_up": 0}
	}
	out := map[string]float64{
		"database_up": 1, "users": float64(x.Users), "repositories": float64(x.Repositories), "blobs": float64(x.Blobs), "stored_bytes": float64(x.Bytes),
		"uploads": float64(x.Uploads), "unwritten": float64(x.Unwritten), "deliveries": float64(x.Waiting), "dead_letters": float64(x.GivenUp),
	}
	if s, err := u.of.LastSweep(ctx); err == nil && !s.Begun.IsZero() {
		out["sweep_begun"], out["sweep_ended"] = float64(s.Begun.Unix()), 0
		if s.Ended != nil {
			out["sweep_ended"] = float64(s.Ended.Unix())
		}
	}
	return out
}
