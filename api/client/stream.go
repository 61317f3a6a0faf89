package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/trace"
)

// Message is one server-sent event, or a sign of life between them.
type Message struct {
	ID      string
	Data    []byte
	Comment bool // a sign of life: ID and Data are empty
}

// Stream is a stream of server-sent events.
type Stream struct {
	body  io.Closer
	lines *bufio.Scanner
}

// maxLine bounds a line of a stream, which a server can make us keep.
const maxLine = 1 << 20

// Stream opens a stream of server-sent events after the one with that id.
// Close it.
func (c *Client) Stream(ctx context.Context, path, after string) (*Stream, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	for k, list := range c.header {
		r.Header[k] = list
	}
	r.Header.Set("Accept", "text/event-stream")
	if after != "" {
		r.Header.Set("Last-Event-ID", after)
	}
	if t, ok := trace.From(ctx); ok {
		r.Header.Set(trace.Header, t.Step().String())
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, refused(err)
	}
	if answer.StatusCode >= http.StatusBadRequest {
		defer answer.Body.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Body, maxLine))
		if err != nil {
			return nil, refused(err)
		}
		var e api.Error
		if json.Unmarshal(text, &e) != nil || e.Kind == "" {
			e = api.Error{Kind: kindOf(answer.StatusCode), Op: "ask the API", Reason: answer.Status + ": " + detail(text)}
		}
		return nil, &e
	}
	return newStream(answer.Body), nil
}

func newStream(body io.ReadCloser) *Stream {
	s := &Stream{body: body, lines: bufio.NewScanner(body)}
	s.lines.Buffer(nil, maxLine)
	return s
}

// Close ends the stream.
func (s *Stream) Close() error { return s.body.Close() }

// Next waits for the next message, as the HTML standard has them (section
// 9.2.6): fields a line, an empty line at the end.
func (s *Stream) Next() (Message, error) {
	var m Message
	some := false
	for s.lines.Scan() {
		line := bytes.TrimSuffix(s.lines.Bytes(), []byte("\r"))
		if len(line) == 0 {
			if some {
				return m, nil
			}
			continue
		}
		if line[0] == ':' {
			return Message{Comment: true}, nil
		}
		field, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			m.ID, some = value, true
		case "data":
			if len(m.Data)+len(value) > maxLine {
				return m, &api.Error{Kind: api.Damaged, Op: "read events", Reason: "a message is longer than 1 MiB"}
			}
			if m.Data != nil {
				m.Data = append(m.Data, '\n')
			}
			m.Data, some = append(m.Data, value...), true
		}
	}
	err := s.lines.Err()
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return m, refused(err)
}
