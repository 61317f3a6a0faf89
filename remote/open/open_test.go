package open

import (
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

func TestOpen(t *testing.T) {
	for address, want := range map[string]struct{ kind, url string }{
		"file:///srv/backups":                            {"directory", "file:///srv/backups"},
		"file:///srv/a%20b/":                             {"directory", "file:///srv/a%20b"},
		"s3://bucket":                                    {"s3", "s3://bucket"},
		"s3://bucket/a/b/":                               {"s3", "s3://bucket/a/b"},
		"s3://bucket/a?region=eu-central-1":              {"s3", "s3://bucket/a?region=eu-central-1"},
		"s3://b/a?endpoint=http://minio:9000":            {"s3", "s3://b/a?endpoint=http://minio:9000"},
		"registry.example.com/team/pg":                   {"registry", "registry.example.com/team/pg"},
		"localhost:5000/pg":                              {"registry", "localhost:5000/pg"},
		"127.0.0.1:5000/team/pg":                         {"registry", "127.0.0.1:5000/team/pg"},
		"s3://b/a?region=x&endpoint=https://minio:9000/": {"s3", "s3://b/a?endpoint=https://minio:9000&region=x"},
		"docker.io/user/pg":                              {"registry", "docker.io/user/pg"},
		"hub://hub.example.com/team/pg":                  {"hub", "hub://hub.example.com/team/pg"},
		"hub://localhost:7440/team/pg-replica":           {"hub", "hub://localhost:7440/team/pg-replica"},
	} {
		s, err := Open(address, Options{})
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if i := s.Info(); i.Kind != want.kind || i.URL != want.url {
			t.Errorf("%s: %+v", address, i)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		// What is kept of it leads to the same place.
		if again, err := Open(want.url, Options{}); err != nil || again.Info().URL != want.url {
			t.Errorf("%s, kept as %s: %v", address, want.url, err)
		}
	}
	for address, says := range map[string]string{
		"":                                           "empty",
		"team/pg":                                    "docker.io/team/pg",
		"registry.example.com":                       "repository",
		"registry.example.com/":                      "repository",
		"registry.example.com/team/pg:latest":        "tag",
		"registry.example.com/Team/pg":               "host/path",
		"https://registry.example.com/team/pg":       "give registry.example.com/team/pg",
		"ftp://x/y":                                  "ftp://",
		"file://srv/backups":                         "three slashes",
		"file:///":                                   "root",
		"s3:///prefix":                               "bucket",
		"s3://b/a/../c":                              "dots",
		"s3://b/a//c":                                "empty part",
		"s3://b/a?endpoint=minio:9000":               "endpoint",
		"hub://hub.example.com/pg":                   "namespace",
		"registry.example.com/team pg":               "space",
		"registry.example.com/team\npg":              "control",
		"s3://AKIAX:hunter2@bucket/a":                "secret",
		"user:hunter2@registry.example.com/team/pg":  "secret",
		"hub://user:hunter2@hub.example.com/team/pg": "secret",
		"s3://b/a?secret=hunter2":                    "secret",
		"s3://b/a?endpoint=https://u:hunter2@minio":  "secret",
	} {
		_, err := Open(address, Options{})
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want something of %q", address, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v shows the secret", address, err)
		}
	}
}

// FuzzOpen: no address panics, and what is opened shows no login.
func FuzzOpen(f *testing.F) {
	for _, s := range []string{"file:///x", "s3://b/p?endpoint=http://h&region=x", "hub://h.x/a/b", "h.x/a", "u:p@h.x/a", "s3://%zz", "://", "h.x/a@b?c#d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		if Shown(Shown(address)) != Shown(address) {
			t.Errorf("%q is shown as %q, and that as %q", address, Shown(address), Shown(Shown(address)))
		}
		s, err := Open(address, Options{})
		if err == nil {
			if at := s.Info().URL; !strings.HasPrefix(at, "file://") && strings.Contains(strings.SplitN(strings.TrimPrefix(at, "hub://"), "/", 2)[0], "@") {
				t.Errorf("%q shows %q", address, at)
			}
			_ = s.Close()
		}
	})
}
