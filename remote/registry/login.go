package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/drover-data/drover/api"
)

// CertsDir is where Docker looks for what signs a registry's certificate: host:port/*.crt.
const CertsDir = "/etc/docker/certs.d"

// Trust is what a registry's certificate may be signed by: what the host trusts, and the
// certificates in dir/host/*.crt, as Docker and Podman have them. Nil: what the host trusts.
func Trust(dir, host string) (*tls.Config, error) {
	const op = "trust registry"
	if strings.ContainsAny(host, "/\\") || host == "" || host[0] == '.' {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(escapeGlob(filepath.Join(dir, host)), "*.crt"))
	if err != nil || len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: f, Err: err}
		}
		if b, _ := pem.Decode(text); b == nil || !pool.AppendCertsFromPEM(text) {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Object: f, Reason: "there is no certificate in it", Next: "put one there as PEM, or remove the file"}
		}
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// escapeGlob has a path mean itself in a pattern; brackets are in addresses of IPv6.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "[", `\[`, "]", `\]`, "*", `\*`, "?", `\?`).Replace(path)
}

// store opens Docker's config; "" is where docker has it. put says that something is to be written.
func loginStore(config string, put bool) (*credentials.DynamicStore, error) {
	// As docker does where it has no helper.
	o := credentials.StoreOptions{AllowPlaintextPut: put, DetectDefaultNativeStore: put}
	if config != "" {
		return credentials.NewStore(config, o)
	}
	return credentials.NewStoreFromDocker(o)
}

func loginError(op, host string, err error) error {
	if err == nil {
		return nil
	}
	return &api.Error{Kind: api.Unavailable, Op: op, Object: host, Reason: "the Docker config or its credential helper does not do it", Err: err, Next: "look at ~/.docker/config.json"}
}

// SaveLogin keeps a login for a host where Docker does, and where Open looks for it.
func SaveLogin(ctx context.Context, config, host, user, secret string) error {
	s, err := loginStore(config, true)
	if err == nil {
		err = s.Put(ctx, host, auth.Credential{Username: user, Password: secret})
	}
	return loginError("keep login", host, err)
}

// FindLogin gives the login for a host; empty when there is none.
func FindLogin(ctx context.Context, config, host string) (user, secret string, err error) {
	s, err := loginStore(config, false)
	if err != nil {
		return "", "", loginError("find login", host, err)
	}
	c, err := s.Get(ctx, host)
	return c.Username, c.Password, loginError("find login", host, err)
}

// DropLogin forgets the login for a host.
func DropLogin(ctx context.Context, config, host string) error {
	s, err := loginStore(config, true)
	if err == nil {
		err = s.Delete(ctx, host)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return loginError("forget login", host, err)
}
