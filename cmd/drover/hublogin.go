package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/front"
	"github.com/drover-data/drover/hub/manage/client"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/remote/registry"
)

func hubLogin(t *hubTalk) *cobra.Command {
	var fingerprint string
	c := &cobra.Command{
		Use:   "login URL",
		Short: "Log in to a hub, for drover hub and for drover push",
		Long: `Check a user's token at a hub and keep it where docker login keeps logins: in the
Docker configuration, by its credential helper where there is one. drover push and
clone read it there on the volume's node, as root: run this there with sudo. The hub
is also what drover hub asks from now on.

The token is read from --token-file, from DROVER_HUB_TOKEN, or asked for.

A hub that made its certificate itself (--tls-self-signed) printed a fingerprint. With
--fingerprint the certificate that answers is compared with it and kept where Drover,
Docker and Podman look: ` + registry.CertsDir + `/HOST/ca.crt.`,
		Example: "  sudo drover hub login https://hub.example.com --user ann\n  drover hub login https://10.0.0.5:7440 --user ann --token-file token --fingerprint SHA256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := client.URL(args[0])
			if err != nil {
				return err
			}
			if fingerprint != "" {
				if err := trustHub(c.Context(), at, fingerprint); err != nil {
					return err
				}
			}
			return t.logIn(c, at)
		},
	}
	f := c.Flags()
	f.StringVar(&t.user, "user", os.Getenv("DROVER_HUB_USER"), "name of the user (also DROVER_HUB_USER)")
	f.StringVar(&t.tokenFile, "token-file", "", "file that holds the token; - is standard input")
	f.StringVar(&fingerprint, "fingerprint", "", "trust the hub's certificate if this is its fingerprint")
	return c
}

func (t *hubTalk) logIn(c *cobra.Command, at string) error {
	if t.user == "" {
		return &api.Error{Kind: api.Invalid, Op: "log in", Object: at, Reason: "no user is named", Next: "give --user NAME"}
	}
	token, err := t.askToken(c)
	if err != nil {
		return err
	}
	tr, err := hubTransport(at)
	if err != nil {
		return err
	}
	self, err := client.New(at, t.user, token, tr).Self(c.Context())
	if err != nil {
		return err
	}
	if err := registry.SaveLogin(c.Context(), "", hostOf(at), t.user, token); err != nil {
		return err
	}
	if err := rememberHub(at); err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "logged in to %s as %s; the token allows %s\n", at, self.User, self.Most)
	return nil
}

func (t *hubTalk) askToken(c *cobra.Command) (string, error) {
	switch {
	case t.tokenFile == "-":
		text, err := io.ReadAll(io.LimitReader(c.InOrStdin(), maxToken+1))
		if err != nil {
			return "", err
		}
		return parseToken(string(text))
	case t.tokenFile != "":
		return readToken(t.tokenFile)
	case os.Getenv("DROVER_HUB_TOKEN") != "":
		return parseToken(os.Getenv("DROVER_HUB_TOKEN"))
	}
	fmt.Fprintf(c.ErrOrStderr(), "token of %s: ", t.user)
	if f, ok := c.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(c.ErrOrStderr())
		if err != nil {
			return "", err
		}
		return parseToken(string(text))
	}
	line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), maxToken+1)).ReadString('\n')
	if err != nil && line == "" {
		return "", &api.Error{Kind: api.Unauthenticated, Op: "read token", Reason: "none was given", Next: "give --token-file, or type it"}
	}
	return parseToken(line)
}

// trustHub keeps the certificate that a hub shows, if it has the fingerprint.
func trustHub(ctx context.Context, at, fingerprint string) error {
	const op = "trust hub"
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" {
		return &api.Error{Kind: api.Invalid, Op: op, Object: at, Reason: "without https it has no certificate", Next: "leave out --fingerprint"}
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	// What it shows is compared with what its operator said; nothing is sent to it.
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: u.Hostname()}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: at, Err: err, Next: "is the URL right, and the hub up?"}
	}
	defer c.Close()
	tc, ok := c.(*tls.Conn)
	if !ok || len(tc.ConnectionState().PeerCertificates) == 0 {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: at, Reason: "it shows no certificate"}
	}
	der := tc.ConnectionState().PeerCertificates[0].Raw
	if got := front.Fingerprint(der); !strings.EqualFold(got, strings.TrimSpace(fingerprint)) {
		return &api.Error{Kind: api.Denied, Op: op, Object: at, Reason: "its certificate has the fingerprint " + got, Next: "compare with what drover hub serve printed: something else may answer there"}
	}
	file := filepath.Join(certsDir(), u.Host, "ca.crt")
	err = os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = durable.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	}
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: file, Err: err, Next: "run it with sudo"}
	}
	return nil
}

func hubLogout(t *hubTalk) *cobra.Command {
	return &cobra.Command{
		Use: "logout [URL]", Short: "Forget the login to a hub; the token goes on counting until it is revoked", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				t.hub = args[0]
			}
			at, err := t.at()
			if err != nil {
				return err
			}
			return registry.DropLogin(c.Context(), "", hostOf(at))
		},
	}
}

func hubWhoami(t *hubTalk) *cobra.Command {
	c := &cobra.Command{
		Use: "whoami", Short: "Say as whom the hub knows you, and what your token allows", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			self, err := h.Self(c.Context())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), self, func(w *tabwriter.Writer) { printSelf(w, self) })
		}),
	}
	t.flags(c)
	return c
}

func printSelf(w io.Writer, s hub.Self) {
	switch {
	case s.User == "":
		fmt.Fprintln(w, "nobody is logged in: public repositories can be read")
	case s.Root:
		fmt.Fprintf(w, "%s, an operator; the token %s allows %s\n", s.User, s.Token, s.Most)
	default:
		fmt.Fprintf(w, "%s; the token %s allows %s\n", s.User, s.Token, s.Most)
	}
}
