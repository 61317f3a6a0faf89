// Package client is Drover's one REST client: the command line uses it, and
// agents use it to ask each other. It knows the API's paths and errors, not
// who serves them.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/trace"
)

// Client speaks to one node's API.
type Client struct {
	base   string
	http   *http.Client
	header http.Header
}

// New makes a client for the API at base, by way of transport. header is sent
// with every request.
func New(base string, transport http.RoundTripper, header http.Header) *Client {
	return &Client{base: strings.TrimSuffix(base, "/"), http: &http.Client{Transport: transport}, header: header}
}

// Unix makes a client for the API at a node's own socket.
func Unix(path string, header http.Header) *Client {
	var d net.Dialer
	return New("http://drover", &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", path)
	}}, header)
}

// maxAnswer bounds what a server can make us read.
const maxAnswer = 256 << 20

// Do sends in as JSON, unless it is nil, and reads the answer into out,
// unless that is nil. An error that the server sent comes back as the
// *api.Error it was.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	for k, list := range c.header {
		r.Header[k] = list
	}
	r.Header.Set(api.VersionHeader, api.Speaks().String())
	if t, ok := trace.From(ctx); ok {
		r.Header.Set(trace.Header, t.Step().String())
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return refused(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return refused(err)
	}
	if answer.StatusCode >= http.StatusBadRequest {
		var e api.Error
		if json.Unmarshal(text, &e) != nil || e.Kind == "" {
			e = api.Error{Kind: kindOf(answer.StatusCode), Op: "ask the API", Reason: answer.Status + ": " + detail(text)}
		}
		return &e
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// detail is what a server's own error page (RFC 9457) says, or its text.
func detail(text []byte) string {
	var p struct {
		Detail string `json:"detail"`
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	if json.Unmarshal(text, &p) != nil || p.Detail == "" {
		return strings.TrimSpace(string(text[:min(len(text), 300)]))
	}
	var wrong []string
	for _, e := range p.Errors {
		wrong = append(wrong, strings.TrimPrefix(e.Location, "body.")+": "+e.Message)
	}
	if len(wrong) == 0 {
		return p.Detail
	}
	return strings.Join(wrong, "; ")
}

func kindOf(status int) api.Kind {
	switch {
	case status == http.StatusNotFound:
		return api.Unsupported // no such route: an older node
	case status < http.StatusInternalServerError:
		return api.Invalid
	}
	return api.Internal
}

// refused is an error of the way, not of the server.
func refused(err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return &api.Error{Kind: api.Canceled, Op: "ask the API", Err: err}
	}
	return &api.Error{Kind: api.Unavailable, Op: "ask the API", Reason: "no answer", Err: err}
}
