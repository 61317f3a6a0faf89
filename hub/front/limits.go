package front

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub/manage"
	"github.com/drover-data/drover/internal/apierror"
)

// How many wrong logins are taken: of one name from one address, and of one address in all. Tokens
// cannot be guessed; this keeps the database and the logs from those who try.
const (
	wrongOfName, wrongOfAddress = 10, 100
	forgiven                    = 6 * time.Second // for one of a name; a tenth of it for one of an address
	maxKnown                    = 20000           // of either that are remembered
)

// limits remembers wrong logins.
type limits struct {
	now func() time.Time
	mu  sync.Mutex
	all map[string]*rate.Limiter // guarded by mu
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, all: map[string]*rate.Limiter{}}
}

func limiter(key string) *rate.Limiter {
	if strings.HasPrefix(key, "name ") {
		return rate.NewLimiter(rate.Every(forgiven), wrongOfName)
	}
	return rate.NewLimiter(rate.Every(forgiven/10), wrongOfAddress)
}

// wait says how long none of the keys may log in.
func (l *limits) wait(keys ...string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	var longest time.Duration
	for _, k := range keys {
		if x := l.all[k]; x != nil {
			if missing := 1 - x.TokensAt(now); missing > 0 {
				longest = max(longest, time.Duration(missing/float64(x.Limit())*float64(time.Second)))
			}
		}
	}
	return longest
}

// wrong notes a wrong login.
func (l *limits) wrong(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if len(l.all)+len(keys) > maxKnown {
		for k, x := range l.all {
			if x.TokensAt(now) >= float64(x.Burst()) {
				delete(l.all, k)
			}
		}
	}
	for _, k := range keys {
		if l.all[k] == nil {
			if len(l.all) >= maxKnown { // rather forget somebody than grow
				for other := range l.all {
					delete(l.all, other)
					break
				}
			}
			l.all[k] = limiter(k)
		}
		l.all[k].AllowN(now, 1)
	}
}

// limited refuses who logged in wrongly too often, before anything is asked of the database.
func (s *server) limited(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, _, basic := r.BasicAuth()
		// What /v2/token gives ends every few minutes: that is no wrong login.
		if r.Header.Get("Authorization") == "" || (!basic && strings.HasPrefix(r.URL.Path, "/v2/")) {
			h.ServeHTTP(w, r)
			return
		}
		from := network(s.client(r))
		keys := []string{"name " + from + " " + user[:min(len(user), 200)], "address " + from}
		if wait := s.limits.wait(keys...); wait > 0 {
			s.measures.refused.Inc()
			w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
			tooMany(w, r)
			return
		}
		rec := &recorder{ResponseWriter: w}
		h.ServeHTTP(rec, r)
		if rec.code() == http.StatusUnauthorized {
			s.measures.wrong.Inc()
			s.limits.wrong(keys...)
		}
	})
}

func tooMany(w http.ResponseWriter, r *http.Request) {
	const text = "too many wrong logins from there"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusTooManyRequests)
	if strings.HasPrefix(r.URL.Path, manage.Prefix) {
		apierror.Encode(w, &api.Error{Kind: api.Denied, Op: "log in", Reason: text, Next: "wait a minute, and see whether the name and the token are right"})
		return
	}
	_, _ = w.Write([]byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"` + text + `"}]}`))
}

// client is who asks: who is connected, or whom a proxy names that is believed.
func (s *server) client(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a := at.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.believed(a); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		a = next.Unmap()
	}
	return a
}

func (s *server) believed(a netip.Addr) bool {
	for _, p := range s.o.Proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// network is what one subscriber has: of IPv6 a /64.
func network(a netip.Addr) string {
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
