package registry

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// request is one to the registry.
type request struct {
	method string
	path   string   // below /v2/<repository>/, with its query
	at     *url.URL // instead of path: where the registry told us to go
	header http.Header
	body   remote.Content // opened again for every try
	size   int64
	write  bool // needs the right to write
	remove bool // needs the right to remove
	once   bool // is tried again only when the registry has not looked at it: it limits its rate
}

// refusal is an answer that is not what was asked for.
type refusal struct {
	status int
	code   string // of the distribution specification, "" if the answer has none
	text   string
	after  time.Duration // that the registry asks to wait
}

func (r *refusal) Error() string {
	text := strings.TrimSpace(r.code + " " + r.text)
	if text == "" {
		text = http.StatusText(r.status)
	}
	return fmt.Sprintf("%d %s", r.status, text)
}

// ask sends a request, and again while what fails may pass.
func (s *Store) ask(ctx context.Context, op, object string, r request) (*http.Response, error) {
	for try := 1; ; try++ {
		if err := remote.Ended(ctx, op, object); err != nil {
			return nil, err
		}
		a, err := s.send(ctx, r)
		if err == nil {
			return a, nil
		}
		pause, passing := wait(err, try)
		if !passing || (r.once && !limited(err)) || try >= maxTries {
			return nil, s.broken(ctx, op, object, err)
		}
		if err := remote.Pause(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// wait says how long to wait before another try, if there is any use in it.
func wait(err error, try int) (time.Duration, bool) {
	pause := time.Duration(1<<try) * 100 * time.Millisecond
	var r *refusal
	var known *api.Error
	var denied *errcode.ErrorResponse
	switch {
	case errors.As(err, &r):
		if r.after > 0 {
			pause = min(r.after, 2*time.Minute)
		}
		return pause, passing(r.status)
	case errors.As(err, &denied): // the server of tokens
		return pause, passing(denied.StatusCode)
	case errors.As(err, &known), distrusted(err), errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, auth.ErrBasicCredentialNotFound):
		return 0, false
	}
	return pause, true // the connection broke
}

func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func limited(err error) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == http.StatusTooManyRequests
}

func distrusted(err error) bool {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid)
}

// send sends a request once.
func (s *Store) send(ctx context.Context, r request) (*http.Response, error) {
	s.mu.Lock()
	scheme := s.scheme
	s.mu.Unlock()
	a, err := s.sendBy(ctx, r, scheme)
	if err != nil && scheme == "https" && errors.Is(err, http.ErrSchemeMismatch) && loopback(s.ref.Host()) {
		// Nothing but a TLS greeting has been sent.
		s.mu.Lock()
		s.scheme = "http"
		s.mu.Unlock()
		return s.sendBy(ctx, r, "http")
	}
	return a, err
}

func (s *Store) sendBy(ctx context.Context, r request, scheme string) (*http.Response, error) {
	target := scheme + "://" + s.ref.Host() + "/v2/" + s.ref.Repository + "/" + r.path
	if r.at != nil {
		target = r.at.String()
	}
	actions := []string{auth.ActionPull}
	if r.write {
		actions = append(actions, auth.ActionPush)
	}
	if r.remove {
		actions = append(actions, auth.ActionDelete)
	}
	ctx = auth.AppendRepositoryScope(ctx, s.ref, actions...)
	req, err := http.NewRequestWithContext(ctx, r.method, target, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.body != nil {
		// Opened again when the registry first wants to know who we are.
		req.GetBody = func() (io.ReadCloser, error) { return r.body() }
		if req.Body, err = r.body(); err != nil {
			return nil, err
		}
		req.ContentLength = r.size
		if r.size == 0 {
			req.Body.Close()
			req.Body, req.GetBody = http.NoBody, nil
		}
	}
	a, err := s.auth.Do(req)
	if err != nil {
		return nil, err
	}
	if a.Header.Get(hubHeader) != "" {
		s.mu.Lock()
		s.hub = true
		s.mu.Unlock()
	}
	if a.StatusCode < 300 {
		return a, nil
	}
	defer a.Body.Close()
	return nil, refused(a)
}

func refused(a *http.Response) *refusal {
	r := &refusal{status: a.StatusCode}
	text, _ := io.ReadAll(io.LimitReader(a.Body, 64<<10))
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		r.code, r.text = body.Errors[0].Code, body.Errors[0].Message
	}
	if h := a.Header.Get("Retry-After"); h != "" {
		if n, err := strconv.Atoi(h); err == nil {
			r.after = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(h); err == nil {
			if sent, err := http.ParseTime(a.Header.Get("Date")); err == nil {
				r.after = t.Sub(sent) // by the registry's clock alone
			}
		}
	}
	return r
}

// broken makes an *api.Error of what went wrong.
func (s *Store) broken(ctx context.Context, op, object string, err error) error {
	if ended := remote.Ended(ctx, op, object); ended != nil {
		return ended
	}
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: s.ref.Host() + " does not answer as a registry does", Err: err, Next: "see whether it can be reached"}
	var r *refusal
	var denied *errcode.ErrorResponse
	switch {
	case errors.As(err, &r):
		s.explain(e, r)
	case errors.As(err, &denied): // the server of tokens
		text := &refusal{status: denied.StatusCode}
		if len(denied.Errors) > 0 {
			text.code, text.text = denied.Errors[0].Code, denied.Errors[0].Message
		}
		e.Err = text
		s.explain(e, text)
	case distrusted(err):
		e.Reason, e.Next = "the certificate of "+s.ref.Host()+" is not trusted", "add its authority to the host's certificates"
	case errors.Is(err, http.ErrSchemeMismatch):
		e.Kind, e.Reason, e.Next = api.Invalid, s.ref.Host()+" speaks plain HTTP, which is for loopback only", "give the registry a certificate"
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		e.Kind, e.Reason, e.Err, e.Next = api.Unauthenticated, s.ref.Host()+" wants a login, and there is none", nil, "docker login "+s.ref.Registry
	}
	return e
}

// explain says what a refusal means.
func (s *Store) explain(e *api.Error, r *refusal) {
	set := func(kind api.Kind, reason, next string) { e.Kind, e.Reason, e.Next = kind, reason, next }
	host := s.ref.Host()
	switch r.code {
	case "DIGEST_INVALID":
		set(api.Damaged, host+" got other bytes than the digest says", "try again")
		return
	case "SIZE_INVALID", "NAME_INVALID", "MANIFEST_INVALID", "TAG_INVALID":
		set(api.Invalid, host+" refuses it", "")
		return
	case "MANIFEST_BLOB_UNKNOWN":
		set(api.NotFound, host+" lacks a blob that it names", "push again")
		return
	case "TOOMANYREQUESTS":
		r.status = http.StatusTooManyRequests
	case "DENIED":
		r.status = http.StatusForbidden
	}
	switch r.status {
	case http.StatusNotFound:
		if r.code == "" && e.Op == "use remote" {
			set(api.Invalid, "there is no registry at "+host, "check the name")
			return
		}
		set(api.NotFound, s.o.Reference+" does not have it", "")
		e.Err = nil
	case http.StatusUnauthorized:
		set(api.Unauthenticated, host+" does not accept the login, or wants one", "docker login "+s.ref.Registry)
	case http.StatusForbidden:
		set(api.Denied, "the login has no right to do that on "+s.o.Reference, "ask who runs the registry for the right")
	case http.StatusMethodNotAllowed:
		set(api.ReadOnly, host+" does not accept writes", "see whether it is in read-only mode, or a mirror")
	case http.StatusTooManyRequests:
		set(api.Exhausted, host+" limits the rate of requests, and did so after several tries", "try again later")
	case http.StatusRequestEntityTooLarge:
		set(api.Invalid, host+" does not take anything so large", "")
	case http.StatusInsufficientStorage:
		set(api.Exhausted, host+" is full", "make room there, or raise its limit")
	case http.StatusPreconditionFailed:
		set(api.Conflict, "a condition was not so", "")
	default:
		e.Reason = host + " cannot do it now"
	}
}
