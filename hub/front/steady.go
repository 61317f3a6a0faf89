package front

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// How slow a client may be: one that says nothing for as long as stall, or that is, after
// this time, below minRate on the average, is given up. How long a body takes in all is not bounded.
const (
	stall   = 2 * time.Minute
	minRate = 256 // bytes a second
	touch   = 5 * time.Second
)

var errSlow = errors.New("the client is too slow")

// steady gives up clients that stall, in the middle of a body of theirs or of ours. With
// timeouts of the whole request a large push could not be told from a client that holds
// connections to keep others out.
func steady(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.SetWriteDeadline(time.Time{}) // of the request before, on this connection
		out := &steadyWriter{ResponseWriter: w, c: c}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &steadyReader{ReadCloser: r.Body, c: c, begun: time.Now()}
		}
		h.ServeHTTP(out, r)
		if r.ProtoMajor == 1 {
			_ = c.SetWriteDeadline(time.Now().Add(stall)) // what is buffered goes out after us
		}
	})
}

type steadyReader struct {
	io.ReadCloser
	c     *http.ResponseController
	begun time.Time
	last  time.Time // when the deadline was set
	n     int64
}

func (s *steadyReader) Read(p []byte) (int, error) {
	now := time.Now()
	if took := now.Sub(s.begun); took > stall && float64(s.n) < minRate*took.Seconds() {
		return 0, errSlow
	}
	if now.Sub(s.last) > touch {
		s.last = now
		_ = s.c.SetReadDeadline(now.Add(stall))
	}
	n, err := s.ReadCloser.Read(p)
	s.n += int64(n)
	if errors.Is(err, io.EOF) { // what comes now is our own time
		_ = s.c.SetReadDeadline(time.Time{})
	}
	return n, err
}

type steadyWriter struct {
	http.ResponseWriter
	c    *http.ResponseController
	last time.Time
}

func (s *steadyWriter) touch() {
	if now := time.Now(); now.Sub(s.last) > touch {
		s.last = now
		_ = s.c.SetWriteDeadline(now.Add(stall))
	}
}

func (s *steadyWriter) WriteHeader(status int) {
	s.touch()
	s.ResponseWriter.WriteHeader(status)
}

func (s *steadyWriter) Write(p []byte) (int, error) {
	s.touch()
	return s.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (s *steadyWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
