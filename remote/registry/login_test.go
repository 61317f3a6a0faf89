package registry

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

// TestTrust: a registry whose certificate the host does not know is trusted by a file where Docker has it.
func TestTrust(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"tags":[]}`)) }))
	defer server.Close()
	server.Config.ErrorLog = nil
	host := strings.TrimPrefix(server.URL, "https://")
	dir := t.TempDir()
	check := func() error {
		s, err := Open(Options{Reference: host + "/a/b", CertsDir: dir, DockerConfig: filepath.Join(dir, "config.json")})
		if err != nil {
			return err
		}
		defer s.Close()
		return s.Check(t.Context(), false)
	}
	if check() == nil {
		t.Error("it is trusted by nothing")
	}
	file := filepath.Join(dir, host, "ca.crt")
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte("no certificate"), 0o644))
	if err := check(); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), file) {
		t.Errorf("%v", err)
	}
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	must(t, check())
	for _, h := range []string{"", "../" + host, ".", "a/b", "[::1]:5000", "a*"} {
		if c, err := Trust(dir, h); c != nil || err != nil {
			t.Errorf("%q: %v %v", h, c, err)
		}
	}
	must(t, os.MkdirAll(filepath.Join(dir, "[::1]:5000"), 0o755))
	must(t, os.Link(file, filepath.Join(dir, "[::1]:5000", "x.crt")))
	if c, err := Trust(dir, "[::1]:5000"); c == nil || err != nil {
		t.Errorf("%v %v", c, err)
	}
}
