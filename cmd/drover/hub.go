package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/remote/registry"
)

func hubCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hub",
		Short: "A registry with people: users, rights, rules for branches",
		Long: `A hub keeps volumes' commits for people who work together: an OCI registry whose
branches two pushers cannot lose, with users, tokens, rights, quotas, protected
branches, forks, webhooks and retention. drover hub serve runs one; drover hub
login makes it known here, and drover push and clone use it as hub://HOST/NAMESPACE/NAME.`,
	}
	var t hubTalk
	c.AddCommand(
		hubServe(), hubOperator(), hubRebuild(), hubLogin(&t), hubLogout(&t), hubWhoami(&t), hubUsers(&t), hubTokens(&t), hubNamespaces(&t), hubMembers(&t),
		hubRepositories(&t), hubFork(&t), hubWebhooks(&t), hubLog(&t), hubStatus(&t), hubSweep(&t), hubOpenAPI(),
	)
	return c
}

// hubTalk is what commands need that ask a hub.
type hubTalk struct {
	talk
	hub, user, tokenFile string
}

func (t *hubTalk) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&t.hub, "hub", os.Getenv("DROVER_HUB"), "the hub, as in https://hub.example.com (also DROVER_HUB; default: where you logged in last)")
	f.StringVar(&t.user, "user", os.Getenv("DROVER_HUB_USER"), "log in as this user, with --token-file or DROVER_HUB_TOKEN (also DROVER_HUB_USER)")
	f.StringVar(&t.tokenFile, "token-file", "", "file that holds the token (default: DROVER_HUB_TOKEN, or where drover hub login keeps it)")
	t.outputFlag(f, c)
}

// outputFlag is the one of what shows something.
func (t *hubTalk) outputFlag(f *pflag.FlagSet, c *cobra.Command) {
	f.StringVarP(&t.output, "output", "o", "table", "table, json or yaml")
	complete(c, "output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// group is a command that holds others which ask a hub.
func (t *hubTalk) group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	t.flags(c)
	c.AddCommand(commands...)
	return c
}

// knownHub is what drover hub login leaves for the commands after it.
type knownHub struct {
	Hub string `json:"hub"`
}

func knownHubFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", &api.Error{Kind: api.Unavailable, Op: "find the hub", Reason: "there is no directory for configuration", Err: err, Next: "give --hub"}
	}
	return filepath.Join(dir, "drover", "hub.json"), nil
}

func rememberHub(at string) error {
	file, err := knownHubFile()
	if err != nil {
		return err
	}
	text, err := json.Marshal(knownHub{at})
	if err == nil {
		err = durable.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: "remember the hub", Object: file, Err: err, Next: "give --hub from now on"}
	}
	return nil
}

// at is the URL of the hub that is meant.
func (t *hubTalk) at() (string, error) {
	if t.hub != "" {
		return client.URL(t.hub)
	}
	file, err := knownHubFile()
	if err != nil {
		return "", err
	}
	var k knownHub
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if errors.Is(err, os.ErrNotExist) || (err == nil && k.Hub == "") {
		return "", &api.Error{Kind: api.Invalid, Op: "find the hub", Reason: "no hub is known here", Next: "drover hub login https://HUB --user NAME, or give --hub"}
	}
	if err != nil {
		return "", &api.Error{Kind: api.Damaged, Op: "find the hub", Object: file, Err: err, Next: "drover hub login https://HUB --user NAME writes it anew"}
	}
	return client.URL(k.Hub)
}

// hostOf is the host of a hub's URL, as registries' logins are kept under.
func hostOf(at string) string {
	_, host, _ := strings.Cut(at, "://")
	return host
}

// transport trusts what Docker would trust.
func hubTransport(at string) (http.RoundTripper, error) {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	trust, err := registry.Trust(certsDir(), hostOf(at))
	if err != nil {
		return nil, err
	}
	if trust != nil {
		tr.TLSClientConfig = trust
	}
	return tr, nil
}

func certsDir() string { return envOr("DROVER_CERTS_DIR", registry.CertsDir) }

// maxToken bounds what is read as a token.
const maxToken = 4096

func readToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", &api.Error{Kind: api.Unauthenticated, Op: "read token", Object: file, Err: err, Next: "give the file that holds it"}
	}
	return parseToken(string(text))
}

// parseToken takes a token as people give it: with spaces around it, but of one word.
func parseToken(text string) (string, error) {
	token := strings.TrimSpace(text)
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", &api.Error{Kind: api.Unauthenticated, Op: "read token", Reason: "it is not one token", Next: "give it as drover hub token create shows it, and nothing else"}
	}
	return token, nil
}

// login finds as whom the hub is asked; nobody is possible.
func (t *hubTalk) login(ctx context.Context, at string) (user, token string, err error) {
	token = os.Getenv("DROVER_HUB_TOKEN")
	if t.tokenFile != "" {
		if token, err = readToken(t.tokenFile); err != nil {
			return "", "", err
		}
	}
	if token != "" {
		if t.user == "" {
			return "", "", &api.Error{Kind: api.Invalid, Op: "log in", Object: at, Reason: "there is a token and no user", Next: "give --user NAME as well"}
		}
		return t.user, token, nil
	}
	user, token, err = registry.FindLogin(ctx, "", hostOf(at))
	if err == nil && t.user != "" && t.user != user {
		return "", "", &api.Error{Kind: api.Unauthenticated, Op: "log in", Object: at, Reason: "no token of " + t.user + " is kept here", Next: "give --token-file, or drover hub login --user " + t.user}
	}
	return user, token, err
}

func (t *hubTalk) client(ctx context.Context) (*client.Client, error) {
	at, err := t.at()
	if err != nil {
		return nil, err
	}
	user, token, err := t.login(ctx, at)
	if err != nil {
		return nil, err
	}
	tr, err := hubTransport(at)
	if err != nil {
		return nil, err
	}
	return client.New(at, user, token, tr), nil
}

// asking is what a command does with a client.
func (t *hubTalk) asking(f func(c *cobra.Command, hub *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		h, err := t.client(c.Context())
		if err != nil {
			return err
		}
		return f(c, h, args)
	}
}

// names completes arguments from lists of the hub's: the first argument from the first list,
// and so on.
func (t *hubTalk) names(lists ...hubList) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(lists) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx := c.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionPatience)
		defer cancel()
		h, err := t.client(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := lists[len(args)](ctx, h, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		slices.Sort(list)
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// hubList lists what an argument can be.
type hubList func(ctx context.Context, h *client.Client, args []string) ([]string, error)

func hubRepositoryNames(ctx context.Context, h *client.Client, _ []string) ([]string, error) {
	list, err := h.Repositories(ctx)
	return textOf(list, func(r hub.Repository) string { return r.Name }), err
}

func hubNamespaceNames(ctx context.Context, h *client.Client, _ []string) ([]string, error) {
	list, err := h.Namespaces(ctx)
	return textOf(list, func(n hub.Namespace) string { return n.Name }), err
}

func hubPlaces(ctx context.Context, h *client.Client, args []string) ([]string, error) {
	one, err := hubNamespaceNames(ctx, h, args)
	if err != nil {
		return nil, err
	}
	two, err := hubRepositoryNames(ctx, h, args)
	return append(one, two...), err
}

func hubUserNames(ctx context.Context, h *client.Client, _ []string) ([]string, error) {
	list, err := h.Users(ctx)
	return textOf(list, func(u hub.User) string { return u.Name }), err
}

func hubRights(context.Context, *client.Client, []string) ([]string, error) {
	return []string{"none", "read", "write", "admin"}, nil
}

func textOf[T any](list []T, text func(T) string) []string {
	out := make([]string, 0, len(list))
	for _, x := range list {
		out = append(out, text(x))
	}
	return out
}

// agoOf is ago of a time that may be missing.
func agoOf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return ago(*t)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func hubWebhookIDs(ctx context.Context, h *client.Client, args []string) ([]string, error) {
	list, err := h.Webhooks(ctx, args[0])
	return textOf(list, func(w hub.WebhookDetail) string { return strconv.FormatInt(w.ID, 10) }), err
}
