// Package trace carries the id by which one request is found again in the logs
// and events of every node it touched: the W3C trace context
// (https://www.w3.org/TR/trace-context/). It records no spans and knows no
// collector; it only hands the id on.
package trace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
)

// Header is the HTTP header that carries a trace.
const Header = "Traceparent"

// Trace is one request's trace and the step of it that is being done.
type Trace struct {
	ID   string // 32 hexadecimal digits
	Span string // 16 hexadecimal digits
}

// New begins a trace.
func New() Trace { return Trace{random(16), random(8)} }

// Continue is a step of the trace with that id; a new trace if id is none.
func Continue(id string) Trace {
	t := New()
	if len(id) == 32 && traceparent.MatchString("00-"+id+"-"+t.Span+"-01") {
		t.ID = id
	}
	return t
}

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

// Parse reads a header. An id of zeros only is none, as the specification says.
func Parse(header string) (Trace, bool) {
	m := traceparent.FindStringSubmatch(header)
	if m == nil || strings.Trim(m[1], "0") == "" || strings.Trim(m[2], "0") == "" {
		return Trace{}, false
	}
	return Trace{m[1], m[2]}, true
}

// Of is the trace of a request, or a new one.
func Of(r *http.Request) Trace {
	if t, ok := Parse(r.Header.Get(Header)); ok {
		return t
	}
	return New()
}

// String is the trace as the header carries it.
func (t Trace) String() string { return "00-" + t.ID + "-" + t.Span + "-01" }

// Step is the next step of the same trace.
func (t Trace) Step() Trace { return Trace{t.ID, random(8)} }

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails, see its documentation
	return hex.EncodeToString(b)
}

type key struct{}

// With puts a trace into a context.
func With(ctx context.Context, t Trace) context.Context { return context.WithValue(ctx, key{}, t) }

// From gives the context's trace.
func From(ctx context.Context) (Trace, bool) {
	t, ok := ctx.Value(key{}).(Trace)
	return t, ok
}

// ID is the id of the context's trace, "" without one.
func ID(ctx context.Context) string {
	t, _ := From(ctx)
	return t.ID
}

// Logs adds the context's trace id to what is logged with one.
func Logs(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if id := ID(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("trace", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(a []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(a)} }

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
