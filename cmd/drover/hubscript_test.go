package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// hubProcess is drover hub serve beside a script.
type hubProcess struct {
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
	cmd *exec.Cmd
}

func (h *hubProcess) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out.Write(p)
}

func (h *hubProcess) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out.String()
}

func (h *hubProcess) stop() error {
	if h.cmd == nil {
		return nil
	}
	c := h.cmd
	h.cmd = nil
	_ = c.Process.Signal(os.Interrupt)
	return c.Wait()
}

// TestHubScripts runs testdata/hub with real hubs: "hub serve …" starts one and sets HUB and
// FINGERPRINT, "stophub" ends it.
func TestHubScripts(t *testing.T) {
	type key struct{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/hub",
		Setup: func(e *testscript.Env) error {
			h := &hubProcess{}
			e.Values[key{}] = h
			e.Defer(func() { _ = h.stop() })
			for k, v := range map[string]string{"HOME": e.WorkDir, "XDG_CONFIG_HOME": e.WorkDir + "/config", "DROVER_CERTS_DIR": e.WorkDir + "/certs.d", "TZ": "UTC"} {
				e.Setenv(k, v)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"hub": func(ts *testscript.TestScript, _ bool, args []string) {
				h := ts.Value(key{}).(*hubProcess)
				ts.Check(h.start(ts, args))
			},
			"stophub": func(ts *testscript.TestScript, _ bool, _ []string) {
				ts.Check(ts.Value(key{}).(*hubProcess).stop())
			},
			"secret": func(ts *testscript.TestScript, _ bool, args []string) {
				var k struct{ Secret string }
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &k))
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(k.Secret), 0o600))
			},
		},
	})
}

func (h *hubProcess) start(ts *testscript.TestScript, args []string) error {
	program, err := exec.LookPath("drover")
	if err != nil {
		program = filepath.Join(ts.Getenv("TESTSCRIPT_BIN"), "drover")
	}
	h.cmd = exec.CommandContext(context.Background(), program, append([]string{"hub"}, append(args, "--listen", "127.0.0.1:0")...)...)
	h.cmd.Dir, h.cmd.Stdout = ts.MkAbs("."), h
	h.cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"))
	if err := h.cmd.Start(); err != nil {
		return err
	}
	at := regexp.MustCompile(`answers at (https?://\S+)\n`)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if m := at.FindStringSubmatch(h.text()); m != nil && (!strings.Contains(m[1], "https") || strings.Contains(h.text(), "SHA256:")) {
			ts.Setenv("HUB", m[1])
			break
		}
		if time.Now().After(end) {
			ts.Fatalf("the hub does not answer: %s", h.text())
		}
	}
	ts.Setenv("FINGERPRINT", regexp.MustCompile(`SHA256:\w+`).FindString(h.text()))
	return nil
}
