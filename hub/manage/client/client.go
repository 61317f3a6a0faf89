// Package client asks a hub's REST API for the commands. It knows its paths and errors,
// not who serves them.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/drover-data/drover/api"
	plain "github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/hub"
)

// Client speaks to one hub.
type Client struct {
	at string
	c  *plain.Client
}

// prefix is that of the API (manage.Prefix).
const prefix = "/api/v1"

// New makes a client for the hub at a URL, as a user with a token; without a user, as nobody.
func New(at, user, token string, transport http.RoundTripper) *Client {
	h := http.Header{}
	if user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+token)))
	}
	return &Client{at, plain.New(at+prefix, transport, h)}
}

// URL reads where a hub is: https://host[:port], or a host alone.
func URL(text string) (string, error) {
	bad := func(reason string) (string, error) {
		return "", &api.Error{Kind: api.Invalid, Op: "read the hub's URL", Object: strings.ReplaceAll(text[:min(len(text), 200)], "\n", " "), Reason: reason, Next: "give it as in https://hub.example.com"}
	}
	full := strings.TrimPrefix(text, "hub://")
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		text = "" // it may hold anything
		return bad("it is not a URL")
	case u.User != nil:
		text = ""
		return bad("a login does not belong into it")
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("hubs speak https")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return bad("a token would cross the network in clear: with http:// a hub is asked on this host alone")
	case u.Hostname() == "" || strings.ContainsAny(u.Host, " %\t\r\n"):
		return bad("it has no host")
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "":
		return bad("it is the hub's address alone, without a path")
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && a.IsLoopback())
}

// Do asks, and says of errors of the way what to do about them.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	err := c.c.Do(ctx, method, path, in, out)
	if !api.Is(err, api.Unavailable) {
		return err
	}
	if e, ok := errors.AsType[*api.Error](err); ok && e.Reason != "no answer" {
		return err // the hub's own word
	}
	host := strings.TrimPrefix(c.at, "https://")
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		var name x509.HostnameError
		if errors.As(v, &name) {
			return &api.Error{Kind: api.Unauthenticated, Op: "ask the hub", Object: c.at, Reason: "its certificate is not for that name", Err: v.Err, Next: "use the name that it is for"}
		}
		return &api.Error{Kind: api.Unauthenticated, Op: "ask the hub", Object: c.at, Reason: "its certificate is not trusted here", Err: v.Err, Next: "put the certificate that signed it into /etc/docker/certs.d/" + host + "/ca.crt, where Drover, Docker and Podman look; with the fingerprint that the hub printed, drover hub login --fingerprint does it"}
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return &api.Error{Kind: api.Unavailable, Op: "ask the hub", Object: c.at, Reason: "what answers there speaks no TLS", Err: err, Next: "on this host alone, give its URL with http://"}
	}
	return &api.Error{Kind: api.Unavailable, Op: "ask the hub", Object: c.at, Err: err, Next: "is the URL right, the hub up (drover hub serve), and its port open from here?"}
}

// get asks for something.
func get[T any](ctx context.Context, c *Client, path ...string) (out T, err error) {
	err = c.Do(ctx, http.MethodGet, Path(path...), nil, &out)
	return out, err
}

func send[T any](ctx context.Context, c *Client, method string, in any, path ...string) (out T, err error) {
	err = c.Do(ctx, method, Path(path...), in, &out)
	return out, err
}

// Path makes a path of its parts, each escaped.
func Path(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// Self says who asks.
func (c *Client) Self(ctx context.Context) (hub.Self, error) { return get[hub.Self](ctx, c, "self") }

// Status says how the hub is.
func (c *Client) Status(ctx context.Context) (hub.Status, error) {
	return get[hub.Status](ctx, c, "status")
}

// Sweep begins a sweep.
func (c *Client) Sweep(ctx context.Context) error {
	return c.Do(ctx, http.MethodPost, "/sweep", nil, nil)
}

// Users lists all users.
func (c *Client) Users(ctx context.Context) ([]hub.User, error) {
	return get[[]hub.User](ctx, c, "users")
}

// CreateUser makes a user.
func (c *Client) CreateUser(ctx context.Context, u hub.NewUser) (hub.User, error) {
	return send[hub.User](ctx, c, http.MethodPost, u, "users")
}

// ChangeUser changes what a user is.
func (c *Client) ChangeUser(ctx context.Context, name string, to hub.ChangeUser) (hub.User, error) {
	return send[hub.User](ctx, c, http.MethodPatch, to, "users", name)
}

// DeleteUser removes a user.
func (c *Client) DeleteUser(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodDelete, Path("users", name), nil, nil)
}

// Tokens lists a user's tokens.
func (c *Client) Tokens(ctx context.Context, user string) ([]hub.Token, error) {
	return get[[]hub.Token](ctx, c, "users", user, "tokens")
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, user string, k hub.NewToken) (hub.TokenSecret, error) {
	return send[hub.TokenSecret](ctx, c, http.MethodPost, k, "users", user, "tokens")
}

// RevokeToken revokes a token.
func (c *Client) RevokeToken(ctx context.Context, user, id string) error {
	return c.Do(ctx, http.MethodDelete, Path("users", user, "tokens", id), nil, nil)
}

// Namespaces lists those that one has a right in.
func (c *Client) Namespaces(ctx context.Context) ([]hub.Namespace, error) {
	return get[[]hub.Namespace](ctx, c, "namespaces")
}

// Namespace looks one up.
func (c *Client) Namespace(ctx context.Context, name string) (hub.Namespace, error) {
	return get[hub.Namespace](ctx, c, "namespaces", name)
}

// CreateNamespace makes a namespace.
func (c *Client) CreateNamespace(ctx context.Context, n hub.NewNamespace) (hub.Namespace, error) {
	return send[hub.Namespace](ctx, c, http.MethodPost, n, "namespaces")
}

// ChangeNamespace changes owner and quota.
func (c *Client) ChangeNamespace(ctx context.Context, name string, to hub.ChangeNamespace) (hub.Namespace, error) {
	return send[hub.Namespace](ctx, c, http.MethodPatch, to, "namespaces", name)
}

// DeleteNamespace removes one without repositories.
func (c *Client) DeleteNamespace(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodDelete, Path("namespaces", name), nil, nil)
}

// Members lists who has a right: on a namespace, or on a repository (with a slash in its name).
func (c *Client) Members(ctx context.Context, of string) ([]hub.Member, error) {
	if strings.Contains(of, "/") {
		return get[[]hub.Member](ctx, c, "repositories", of, "grants")
	}
	return get[[]hub.Member](ctx, c, "namespaces", of, "members")
}

// SetMember gives a right on a namespace or a repository; none takes it away.
func (c *Client) SetMember(ctx context.Context, of, user string, right hub.Right) (hub.Member, error) {
	if strings.Contains(of, "/") {
		return send[hub.Member](ctx, c, http.MethodPut, hub.SetRight{Right: right}, "repositories", of, "grants", user)
	}
	return send[hub.Member](ctx, c, http.MethodPut, hub.SetRight{Right: right}, "namespaces", of, "members", user)
}

// Repositories lists all that one may read.
func (c *Client) Repositories(ctx context.Context) ([]hub.Repository, error) {
	out := []hub.Repository{}
	for after := ""; ; {
		var page []hub.Repository
		if err := c.Do(ctx, http.MethodGet, "/repositories?after="+url.QueryEscape(after), nil, &page); err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return out, nil
		}
		out = append(out, page...)
		after = page[len(page)-1].Name
	}
}

// Repository looks one up.
func (c *Client) Repository(ctx context.Context, name string) (hub.RepositoryDetail, error) {
	return get[hub.RepositoryDetail](ctx, c, "repositories", name)
}

// Content lists a repository's branches, tags and commits.
func (c *Client) Content(ctx context.Context, name string) (hub.Content, error) {
	return get[hub.Content](ctx, c, "repositories", name, "content")
}

// CreateRepository makes an empty one.
func (c *Client) CreateRepository(ctx context.Context, r hub.NewRepository) (hub.RepositoryDetail, error) {
	return send[hub.RepositoryDetail](ctx, c, http.MethodPost, r, "repositories")
}

// ChangeRepository changes its rules.
func (c *Client) ChangeRepository(ctx context.Context, name string, to hub.ChangeRepository) (hub.RepositoryDetail, error) {
	return send[hub.RepositoryDetail](ctx, c, http.MethodPatch, to, "repositories", name)
}

// DeleteRepository removes one.
func (c *Client) DeleteRepository(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodDelete, Path("repositories", name), nil, nil)
}

// Fork makes a repository with all that another has.
func (c *Client) Fork(ctx context.Context, from string, to hub.NewFork) (hub.RepositoryDetail, error) {
	return send[hub.RepositoryDetail](ctx, c, http.MethodPost, to, "repositories", from, "forks")
}

// Webhooks lists those of a repository.
func (c *Client) Webhooks(ctx context.Context, repository string) ([]hub.WebhookDetail, error) {
	return get[[]hub.WebhookDetail](ctx, c, "repositories", repository, "webhooks")
}

// CreateWebhook adds one.
func (c *Client) CreateWebhook(ctx context.Context, repository string, w hub.NewWebhook) (hub.WebhookSecret, error) {
	return send[hub.WebhookSecret](ctx, c, http.MethodPost, w, "repositories", repository, "webhooks")
}

func webhookPath(repository string, id int64, more ...string) []string {
	return append([]string{"repositories", repository, "webhooks", strconv.FormatInt(id, 10)}, more...)
}

// ChangeWebhook stops sending to one, or goes on.
func (c *Client) ChangeWebhook(ctx context.Context, repository string, id int64, disabled bool) (hub.Webhook, error) {
	return send[hub.Webhook](ctx, c, http.MethodPatch, hub.ChangeWebhook{Disabled: disabled}, webhookPath(repository, id)...)
}

// DeleteWebhook removes one.
func (c *Client) DeleteWebhook(ctx context.Context, repository string, id int64) error {
	return c.Do(ctx, http.MethodDelete, Path(webhookPath(repository, id)...), nil, nil)
}

// TestWebhook sends a test.
func (c *Client) TestWebhook(ctx context.Context, repository string, id int64) (hub.Attempt, error) {
	return send[hub.Attempt](ctx, c, http.MethodPost, nil, webhookPath(repository, id, "test")...)
}

// ResendWebhook sends what was given up once more, and says how many that is.
func (c *Client) ResendWebhook(ctx context.Context, repository string, id int64) (int64, error) {
	out, err := send[struct{ Resent int64 }](ctx, c, http.MethodPost, nil, webhookPath(repository, id, "resend")...)
	return out.Resent, err
}

// Activity says which lines of the log are meant.
type Activity struct {
	Repository, User string
	Before           int64
	After            int64 // with Follow: only what is newer, the oldest first
	Follow           bool
	Limit            int
	Wait             int // with Follow: seconds to wait for news
}

// Activity lists lines of the log.
func (c *Client) Activity(ctx context.Context, a Activity) ([]hub.Event, error) {
	q := url.Values{}
	set := func(name, v string) {
		if v != "" && v != "0" {
			q.Set(name, v)
		}
	}
	set("repository", a.Repository)
	set("user", a.User)
	set("limit", strconv.Itoa(a.Limit))
	set("before", strconv.FormatInt(a.Before, 10))
	if a.Follow {
		q.Set("after", strconv.FormatInt(a.After, 10))
		set("wait", strconv.Itoa(a.Wait))
	}
	var out []hub.Event
	err := c.Do(ctx, http.MethodGet, "/activity?"+q.Encode(), nil, &out)
	return out, err
}
