package client

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

func TestURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://hub.example.com": "https://hub.example.com", "hub.example.com": "https://hub.example.com", "HUB.example.com:7440/": "https://hub.example.com:7440",
		"http://localhost:7440": "http://localhost:7440", "http://[::1]:7440": "http://[::1]:7440", "http://hub.example.com": "", "hub://hub.example.com": "https://hub.example.com", "[::1]:7440": "https://[::1]:7440",
		"": "", "https://": "", "ftp://x": "", "https://u:hunter2@x": "", "https://x/y": "", "https://x?y": "", "https://x#y": "", "a b": "", "hub.example.com/team/pg": "",
	} {
		got, err := URL(text)
		if got != want || (want == "" && !api.Is(err, api.Invalid)) || (err != nil && strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{"https://hub.example.com", "hub://x", "u@x", "http://[::1%25eth0]:1", "//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := URL(text)
		if err != nil {
			return
		}
		if again, err := URL(got); err != nil || again != got {
			t.Errorf("%q is %q, and that is %q %v", text, got, again, err)
		}
	})
}

func TestErrorsOfTheWay(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	s.Config.ErrorLog = nil
	if _, err := New(s.URL, "a", "b", nil).Self(t.Context()); !api.Is(err, api.Unauthenticated) || !strings.Contains(err.Error(), "certs.d") {
		t.Errorf("%v", err)
	}
	plain := httptest.NewServer(nil)
	defer plain.Close()
	if _, err := New("https://"+strings.TrimPrefix(plain.URL, "http://"), "a", "b", nil).Self(t.Context()); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "http://") {
		t.Errorf("%v", err)
	}
	plain.Close()
	if _, err := New(plain.URL, "a", "b", nil).Self(t.Context()); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "drover hub serve") {
		t.Errorf("%v", err)
	}
}
