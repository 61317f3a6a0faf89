// Package s3server runs versitygw, a real S3 server, on a directory, for
// tests. A proxy before it does what servers do on bad days.
package s3server

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The key that the server knows.
const (
	Access = "drover"
	Secret = "drover-secret"
)

// Server is one that runs until the test ends.
type Server struct {
	URL string
	Dir string // buckets are directories in it
	// Before sees each request first; one that it answers goes no further.
	Before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

// Start runs a server with one bucket.
func Start(t testing.TB, bucket string, flags ...string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "s3") // short: the socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{Dir: filepath.Join(dir, "data")}
	if err := os.MkdirAll(filepath.Join(s.Dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	args := append([]string{"--access", Access, "--secret", Secret, "--port", socket, "--region", "us-east-1", "--quiet"}, flags...)
	cmd := exec.Command(binary(t), append(args, "posix", s.Dir)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Pdeathsig is sent when the thread ends that started it.
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	for range 500 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			s.proxy(t, socket)
			return s
		}
		select {
		case <-ended:
			t.Fatalf("versitygw: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatalf("versitygw does not answer: %s", out.String())
	return nil
}

func (s *Server) proxy(t testing.TB, socket string) {
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "s3"})
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
			DisableCompression: true, MaxIdleConnsPerHost: 32,
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.Before.Load(); f != nil && (*f)(w, r) {
			return
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	s.URL = h.URL
}

// binary builds the server from the tools' own go.mod; the build cache keeps it.
func binary(t testing.TB) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "tool", "-n", "versitygw")
	cmd.Dir = filepath.Join(filepath.Dir(here), "..", "tools")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go tool versitygw: %v", err)
	}
	return strings.TrimSpace(string(out))
}
