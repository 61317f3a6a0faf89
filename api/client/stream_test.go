package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

func TestStream(t *testing.T) {
	var last string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last = r.Header.Get("Last-Event-ID")
		fmt.Fprint(w, ": hello\n\nid: 1-1\ndata: {\"a\":1}\n\nevent: x\nid: 1-2\r\ndata: one\r\ndata:two\r\n\r\n\n\nid: 1-3\ndata: cut")
	}))
	defer server.Close()
	s, err := New(server.URL, nil, nil).Stream(t.Context(), "/x", "1-0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	for {
		m, err := s.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			break
		}
		got = append(got, fmt.Sprintf("%v %s %q", m.Comment, m.ID, m.Data))
	}
	if want := `true  "";false 1-1 "{\"a\":1}";false 1-2 "one\ntwo"`; strings.Join(got, ";") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ";"), want)
	}
	if last != "1-0" {
		t.Errorf("asked for what follows %q", last)
	}
}

func TestStreamRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"denied","op":"look"}`)
	}))
	defer server.Close()
	if _, err := New(server.URL, nil, nil).Stream(t.Context(), "/x", ""); !api.Is(err, api.Denied) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(server.URL, nil, nil).Stream(ctx, "/x", ""); err == nil {
		t.Error("a cancelled request gives a stream")
	}
}

func FuzzStream(f *testing.F) {
	f.Add("id: 1\ndata: x\n\n")
	f.Add(": c\n\ndata\ndata: \r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := newStream(io.NopCloser(strings.NewReader(text)))
		for range len(text) + 2 {
			if _, err := s.Next(); err != nil {
				return
			}
		}
		t.Error("it never ends")
	})
}
