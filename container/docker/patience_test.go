package docker

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
)

// TestAnEngineThatHangs accepts connections and never answers, as a daemon does
// that was stopped with SIGSTOP or waits for a disk.
func TestAnEngineThatHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := New(Options{Host: "unix://" + socket, Patience: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.List(t.Context(), "drover"); !api.Is(err, api.Unavailable) {
		t.Errorf("list: %v", err)
	}
	if _, err := e.Inspect(t.Context(), "db"); !api.Is(err, api.Unavailable) {
		t.Errorf("inspect: %v", err)
	}
	if _, err := e.Ping(t.Context()); !api.Is(err, api.Unavailable) {
		t.Errorf("ping: %v", err)
	}
}
