package apiserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"regexp"
)

// trace is the W3C trace context of a request (https://www.w3.org/TR/trace-context/).
type trace struct{ id, span string }

type traceKey struct{}

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

func traceOf(r *http.Request) trace {
	if m := traceparent.FindStringSubmatch(r.Header.Get("Traceparent")); m != nil {
		return trace{m[1], m[2]}
	}
	return trace{random(16), random(8)}
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails, see its documentation
	return hex.EncodeToString(b)
}

func (t trace) header() string { return "00-" + t.id + "-" + t.span + "-01" }

func traceFrom(ctx context.Context) trace {
	t, ok := ctx.Value(traceKey{}).(trace)
	if !ok {
		return trace{random(16), random(8)}
	}
	return t
}

// TraceID is the id of the request's trace, for logs.
func TraceID(ctx context.Context) string { return traceFrom(ctx).id }
