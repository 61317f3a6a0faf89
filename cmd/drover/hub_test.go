package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote/registry"
)

func TestHubSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hub.yaml")
	if err := os.WriteFile(file, []byte("listen: :1\nurl: https://file\ntls-self-signed: true\nwebhook-allow: [10.0.0.0/8, 192.168.0.0/16]\npatience: 5s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := hubServe()
	if err := c.Flags().Parse([]string{"--url", "https://flag"}); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"DROVER_HUB_URL": "https://env", "DROVER_HUB_LISTEN": ":2", "DROVER_HUB_REDIRECT": "true"}
	look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	if err := settings(c.Flags(), file, look); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"url": "https://flag", "listen": ":2", "tls-self-signed": "true", "webhook-allow": "[10.0.0.0/8,192.168.0.0/16]", "patience": "5s", "redirect": "true", "read-only": "false"} {
		if got := c.Flags().Lookup(name).Value.String(); got != want {
			t.Errorf("--%s is %s, want %s", name, got, want)
		}
	}
	for text, says := range map[string]string{
		"listn: x": "there is no", "listen: {a: b}": "no value", "patience: soon": "patience", "- a": "", "config: x": "there is no", "listen: x\nlisten: y": "already set", "listen: ~": "no value",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := settings(hubServe().Flags(), file, func(string) (string, bool) { return "", false }); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
	env = map[string]string{"DROVER_HUB_SWEEP_EVERY": "x"}
	if err := settings(hubServe().Flags(), "", look); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "DROVER_HUB_SWEEP_EVERY") {
		t.Errorf("%v", err)
	}
	if _, err := networks("webhook-allow", []string{"10.0.0.0/8", "192.168.1.1", "::1"}); err != nil {
		t.Error(err)
	}
	if _, err := networks("webhook-allow", []string{"ten"}); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
}

func FuzzHubSettings(f *testing.F) {
	f.Add("listen: :7440\nwebhook-allow: [a, b]\n")
	f.Add("a: &x [*x]\n")
	f.Add("1: 2\nx: 1e999\n")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parseSettings([]byte(text))
		if err != nil {
			return
		}
		flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
		for name, v := range values {
			if name != "" && flags.Lookup(name) == nil {
				flags.String(name, "", "")
			}
			_ = settingText(v)
		}
	})
}

func TestHubTokenText(t *testing.T) {
	for text, want := range map[string]string{"drover_hub_1\n": "drover_hub_1", "  a  ": "a", "": "", "a b": "", "a\nb": "", "é": "", strings.Repeat("x", maxToken+1): ""} {
		if got, err := parseToken(text); got != want || (want == "") != api.Is(err, api.Unauthenticated) {
			t.Errorf("%.20q: %q %v", text, got, err)
		}
	}
}

func FuzzHubToken(f *testing.F) {
	f.Add("drover_hub_0123\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := parseToken(text); err == nil && (k == "" || strings.ContainsAny(k, " \r\n\x00")) {
			t.Errorf("%q gives %q", text, k)
		}
	})
}

func TestHubLoginIsDockers(t *testing.T) {
	file, ctx := filepath.Join(t.TempDir(), "config.json"), context.Background()
	if err := os.WriteFile(file, []byte(`{"auths":{"other.example.com":{"auth":"YTpi"}},"x":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := registry.SaveLogin(ctx, file, "hub.example.com:7440", "ann", "secret"); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"hub.example.com:7440": "ann secret", "other.example.com": "a b", "third.example.com": " "} {
		if user, secret, err := registry.FindLogin(ctx, file, host); err != nil || user+" "+secret != want {
			t.Errorf("%s: %s %s %v", host, user, secret, err)
		}
	}
	if err := registry.DropLogin(ctx, file, "hub.example.com:7440"); err != nil {
		t.Error(err)
	}
	if user, _, err := registry.FindLogin(ctx, file, "hub.example.com:7440"); err != nil || user != "" {
		t.Errorf("%q %v", user, err)
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"x"`) {
		t.Errorf("%s %v", text, err)
	}
}
