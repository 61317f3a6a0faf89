package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// Outbox holds what is to be sent; store.Store is one.
type Outbox interface {
	TakeDeliveries(ctx context.Context, limit int, hold time.Duration) ([]hub.Delivery, error)
	Delivered(ctx context.Context, id int64) error
	Retry(ctx context.Context, id int64, due time.Time, said string) error
	GiveUp(ctx context.Context, id int64, said string) error
	SetWebhook(ctx context.Context, by hub.Identity, repository string, id int64, disabled bool) error
}

// Options say how things are sent.
type Options struct {
	Outbox Outbox
	// Allow are networks that webhooks may reach though they are not public.
	Allow   []netip.Prefix
	TLS     *tls.Config      // nil: as the host trusts
	Timeout time.Duration    // of one try; 0: 15 seconds
	Every   time.Duration    // how often the outbox is looked at, which others fill as well; 0: 2 seconds
	Backoff []time.Duration  // nil: Backoff()
	Workers int              // 0: 16
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: none
	Agent   string           // what it calls itself
}

// Sender sends what the outbox holds.
type Sender struct {
	o      Options
	client *http.Client
}

// New makes a sender.
func New(o Options) *Sender {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Timeout, 15*time.Second)
	def(&o.Every, 2*time.Second)
	if o.Backoff == nil {
		o.Backoff = Backoff()
	}
	if o.Workers == 0 {
		o.Workers = 16
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Agent == "" {
		o.Agent = "drover-hub"
	}
	s := &Sender{o: o}
	s.client = &http.Client{
		Transport: s.transport(), Timeout: o.Timeout,
		// Where it leads could be anything.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s
}

// Run sends until its context ends. What is on its way then is sent again later: receivers
// know it by its id.
func (s *Sender) Run(ctx context.Context) {
	free := make(chan struct{}, s.o.Workers)
	var busy sync.WaitGroup
	defer busy.Wait()
	again := time.NewTicker(s.o.Every)
	defer again.Stop()
	for {
		n := s.o.Workers - len(free)
		var list []hub.Delivery
		if n > 0 {
			var err error
			// Nobody else takes it while it is tried, and for a while after.
			list, err = s.o.Outbox.TakeDeliveries(ctx, n, s.o.Timeout+time.Minute)
			if err != nil && ctx.Err() == nil {
				s.o.Log.Warn("webhooks are sent later", "error", err)
			}
		}
		for _, d := range list {
			free <- struct{}{}
			busy.Go(func() {
				defer func() { <-free }()
				s.deliver(ctx, d)
			})
		}
		if n > 0 && len(list) == n {
			select { // there may be more
			case <-ctx.Done():
				return
			default:
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

// notePatience is how long noting may take.
const notePatience = 5 * time.Second

// deliver tries once, and notes how it went.
func (s *Sender) deliver(running context.Context, d hub.Delivery) {
	// What was learned is noted also when the hub goes down: otherwise it would be sent twice.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(running), s.o.Timeout+notePatience)
	defer cancel()
	if d.Hook.Disabled {
		s.note(ctx, s.o.Outbox.GiveUp(ctx, d.ID, "the webhook is disabled"))
		return
	}
	status, after, err := s.send(running, d.Hook, idOf(d.Hook.ID, d.Event.ID), d.Event)
	tries := d.Tries + 1
	switch {
	case err == nil:
		s.note(ctx, s.o.Outbox.Delivered(ctx, d.ID))
	case running.Err() != nil: // nothing was learned; it comes again
	case status == http.StatusGone: // the specification: it wants no more
		s.note(ctx, s.o.Outbox.GiveUp(ctx, d.ID, "the receiver wants no more: "+err.Error()))
		s.note(ctx, s.o.Outbox.SetWebhook(ctx, hub.Identity{}, d.Hook.Repository, d.Hook.ID, true))
	case tries > len(s.o.Backoff):
		s.o.Log.Warn("a webhook's event is given up", "repository", d.Hook.Repository, "webhook", d.Hook.ID, "event", d.Event.ID, "tries", tries, "error", err)
		s.note(ctx, s.o.Outbox.GiveUp(ctx, d.ID, tooMany(tries)+err.Error()))
	default:
		wait := s.o.Backoff[tries-1]
		wait += time.Duration(rand.Int64N(int64(wait)/10 + 1)) // not all at once
		s.note(ctx, s.o.Outbox.Retry(ctx, d.ID, s.o.Now().Add(max(wait, after)), err.Error()))
	}
}

func (s *Sender) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !api.Is(err, api.NotFound) { // it was deleted meanwhile
		s.o.Log.Warn("how a webhook went is not noted: it may be sent again", "error", err)
	}
}

// Ping sends a test to a webhook, and says how it went.
func (s *Sender) Ping(ctx context.Context, w hub.Webhook) hub.Attempt {
	begun := s.o.Now()
	id := "ping_" + strconv.FormatInt(w.ID, 10) + "_" + strconv.FormatInt(begun.UnixNano(), 36)
	status, _, err := s.send(ctx, w, id, hub.Event{Time: begun.UTC(), Kind: hub.PingKind, Repository: w.Repository})
	out := hub.Attempt{Status: status, Took: s.o.Now().Sub(begun)}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}

// maxAfter bounds how long a receiver can have us wait.
const maxAfter = time.Hour

// send tries once. Any status of 200 to 299 is success.
func (s *Sender) send(ctx context.Context, w hub.Webhook, id string, e hub.Event) (status int, after time.Duration, err error) {
	key, err := ParseSecret(w.Secret)
	if err != nil {
		return 0, 0, err
	}
	body, err := bodyOf(e)
	if err != nil {
		return 0, 0, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return 0, 0, errors.New("its URL cannot be used")
	}
	now := s.o.Now()
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", s.o.Agent)
	r.Header.Set(HeaderID, id)
	r.Header.Set(HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	r.Header.Set(HeaderSignature, Sign(key, id, now, body))
	a, err := s.client.Do(r)
	if err != nil {
		if known, ok := errors.AsType[*api.Error](err); ok {
			return 0, 0, known
		}
		return 0, 0, fmt.Errorf("no answer: %w", withoutURL(err))
	}
	defer a.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(a.Body, 64<<10)) // what it says is nobody's business here
	if a.StatusCode >= 200 && a.StatusCode < 300 {
		return a.StatusCode, 0, nil
	}
	if seconds, bad := strconv.Atoi(a.Header.Get("Retry-After")); bad == nil && seconds > 0 {
		after = min(time.Duration(min(seconds, 1<<20))*time.Second, maxAfter)
	}
	return a.StatusCode, after, fmt.Errorf("it answered %d %s", a.StatusCode, http.StatusText(a.StatusCode))
}

// withoutURL leaves out the address, which may hold a secret in its path or query.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
