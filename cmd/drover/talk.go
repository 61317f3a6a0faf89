package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/node"
	"github.com/drover-data/drover/trace"
)

// talk is what commands need that ask an agent: this host's through its
// socket, or with host any node's through the network.
type talk struct {
	socket, host, cert string
	output             string
	verbose            bool

	made *client.Client
}

func (t *talk) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&t.socket, "socket", envOr("DROVER_SOCKET", "/run/drover/drover.sock"), "the agent's socket")
	f.StringVar(&t.host, "host", os.Getenv("DROVER_HOST"), "ask this node instead, as in https://node1:7433 (also DROVER_HOST)")
	f.StringVar(&t.cert, "cert", os.Getenv("DROVER_CERT"), "file that drover user add wrote, for --host (also DROVER_CERT)")
	f.StringVarP(&t.output, "output", "o", "table", "table, json or yaml")
	f.BoolVar(&t.verbose, "verbose", false, "say on standard error what is asked, and the trace id under which every node logs it")
	complete(c, "output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// complete gives a flag its completion.
func complete(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag is not there: seen by the first test
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// client speaks to this host's agent, in the name of whoever runs the command,
// or to another node's with a user's certificate.
func (t *talk) client() (*client.Client, error) {
	if t.made != nil {
		return t.made, nil
	}
	if t.host != "" {
		var err error
		t.made, err = remoteClient(t.host, t.cert)
		return t.made, err
	}
	header := http.Header{}
	if u, err := user.Current(); err == nil {
		header.Set(node.UserHeader, u.Username)
	}
	t.made = client.Unix(t.socket, header)
	return t.made, nil
}

// remoteClient speaks to a node over mutual TLS.
func remoteClient(host, file string) (*client.Client, error) {
	address, err := hostAddress(host)
	if err != nil {
		return nil, err
	}
	if file == "" {
		return nil, &api.Error{Kind: api.Unauthenticated, Op: "ask " + address, Reason: "no certificate is given", Next: "drover user add NAME, on one of the cluster's nodes, writes one; pass it with --cert or DROVER_CERT"}
	}
	keeper, err := userIdentity(file)
	if err != nil {
		return nil, err
	}
	return client.New("https://"+address, &http.Transport{TLSClientConfig: keeper.ClientTLS(nil, auth.OnlyNodes, "http/1.1")}, nil), nil
}

// hostAddress reads https://node:7433, node:7433 or node.
func hostAddress(host string) (string, error) {
	bad := func(reason string) (string, error) {
		return "", &api.Error{Kind: api.Invalid, Op: "read host", Object: host, Reason: reason, Next: "give it as in https://node1:7433"}
	}
	text := host
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return bad(err.Error())
	case u.Scheme != "https":
		return bad("nodes speak https only")
	case u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "":
		return bad("it is not the address of a node")
	}
	port := u.Port()
	if port == "" {
		port = strconv.Itoa(cluster.APIPort)
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// userIdentity reads what drover user add wrote: key, certificate, and as the
// last part the cluster's CA.
func userIdentity(file string) (*auth.Keeper, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &api.Error{Kind: api.Unauthenticated, Op: "read certificate", Object: file, Err: err, Next: "give the file that drover user add wrote"}
	}
	var ca []byte
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			ca = pem.EncodeToMemory(block)
		}
	}
	keeper, err := auth.OpenBundle(text, ca)
	if err != nil {
		return nil, &api.Error{Kind: api.Unauthenticated, Op: "read certificate", Object: file, Err: err, Next: "give the file that drover user add wrote"}
	}
	return keeper, nil
}

func (t *talk) do(ctx context.Context, method, path string, in, out any) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	if t.verbose {
		fmt.Fprintf(os.Stderr, "%s %s (trace %s)\n", method, path, trace.ID(ctx))
	}
	err = c.Do(ctx, method, path, in, out)
	if ctx.Err() != nil && err != nil && method != http.MethodGet {
		return &api.Error{Kind: api.Canceled, Op: "wait for the answer", Reason: "it was interrupted, and what was asked for may have been done all the same", Next: "look before you repeat it: drover status VOLUME, drover events"}
	}
	if !api.Is(err, api.Unavailable) {
		return err
	}
	if t.host == "" {
		if strings.Contains(err.Error(), t.socket) {
			return t.unheard(err)
		}
		return err
	}
	return t.unreached(err)
}

// unheard says why this host's agent could not be asked.
func (t *talk) unheard(err error) error {
	const op = "ask the agent"
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &api.Error{Kind: api.Denied, Op: op, Object: t.socket, Reason: "you may not use its socket; root and the group drover may", Next: "use sudo, or let an administrator add you: usermod -aG drover NAME"}
	case errors.Is(err, fs.ErrNotExist):
		return &api.Error{Kind: api.Unavailable, Op: op, Object: t.socket, Reason: "there is no such socket, so no agent runs here", Next: "start it (systemctl start drover-agent); drover init makes a cluster, drover join TOKEN enters one; --host asks another node"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &api.Error{Kind: api.Unavailable, Op: op, Object: t.socket, Reason: "it does not run: its socket is there, and nobody listens", Next: "start it (systemctl start drover-agent)"}
	}
	return &api.Error{Kind: api.Unavailable, Op: op, Object: t.socket, Err: err, Next: "see whether it runs: systemctl status drover-agent, drover doctor"}
}

// unreached says why a node could not be asked over the network.
func (t *talk) unreached(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &api.Error{Kind: api.Unauthenticated, Op: "ask", Object: t.host, Reason: "what answers there cannot prove that it is that node of your cluster", Err: err, Next: "check the address; use the one that drover node ls shows, and the certificate of this cluster"}
	}
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		return &api.Error{Kind: api.Unauthenticated, Op: "ask", Object: t.host, Reason: "the node refuses " + t.cert, Err: alert, Next: "it was revoked or is over, or belongs to another cluster: drover user add makes a new one"}
	}
	var e *api.Error
	if errors.As(err, &e) && e.Reason != "no answer" {
		return err // the node's own word
	}
	return &api.Error{Kind: api.Unavailable, Op: "ask", Object: t.host, Err: err, Next: "is the node up, and its port open from here? --host takes any other node just as well"}
}
