package etcd_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/auth"
)

// listeners gives the TCP addresses that this process listens on, from the
// kernel's own tables.
func listeners(t *testing.T) []string {
	t.Helper()
	mine := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			mine[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	var out []string
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // no IPv6
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			const listening = "0A"
			if len(f) < 10 || f[3] != listening || !mine[f[9]] {
				continue
			}
			host, port, _ := strings.Cut(f[1], ":")
			raw, err := hex.DecodeString(host)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(raw); i += 4 { // words in the host's (little-endian) order
				raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
			}
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			ip := net.IP(raw)
			if ip.IsUnspecified() {
				ip = net.IPv4(127, 0, 0, 1)
			}
			out = append(out, net.JoinHostPort(ip.String(), fmt.Sprint(n)))
		}
	}
	return out
}

// TestNothingInClear speaks to every port that a running member has opened.
func TestNothingInClear(t *testing.T) {
	before := map[string]bool{}
	for _, a := range listeners(t) {
		before[a] = true
	}
	w := newWorld(t)
	cfg := w.config("n1", w.identity("n1", true))
	w.start(cfg)
	plain := w.identity("n2", false)
	seen := 0
	for _, address := range listeners(t) {
		if before[address] {
			continue
		}
		seen++
		t.Run(address, func(t *testing.T) {
			for _, greeting := range []string{"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.WriteString(conn, greeting)
				answer, _ := io.ReadAll(io.LimitReader(conn, 512))
				_ = conn.Close()
				// Go tells a client that speaks HTTP to a TLS port so; nothing else is said.
				if len(answer) > 0 && answer[0] != 0x15 && !strings.Contains(string(answer), "HTTP request to an HTTPS server") {
					t.Errorf("answers in clear: %q", answer)
				}
			}
			for name, c := range map[string]*tls.Config{
				"without a certificate": {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
				"with TLS 1.2":          {InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12, GetClientCertificate: cfg.Identity.ClientTLS(nil, nil).GetClientCertificate},
			} {
				if speaks(address, c) {
					t.Errorf("speaks %s", name)
				}
			}
			if _, port, _ := net.SplitHostPort(address); port == fmt.Sprint(cfg.PeerPort) {
				client := plain.ClientTLS(nil, nil)
				client.InsecureSkipVerify = true
				if speaks(address, client) {
					t.Error("a plain node can speak to members as one of them")
				}
				if !speaks(address, cfg.Identity.ClientTLS(nil, auth.OnlyControl)) {
					t.Error("a control node cannot, so this test proves nothing")
				}
			}
		})
	}
	if seen < 3 {
		t.Fatalf("only %d listeners found", seen)
	}
}

// speaks reports whether a request gets any answer. In TLS 1.3 a client knows
// that it was refused only when it reads.
func speaks(address string, c *tls.Config) bool {
	conn, err := tls.Dial("tcp", address, c)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		n, _ := conn.Read(make([]byte, 1))
		return n > 0
	}
	_, _ = io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}
