package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/front"
	"github.com/drover-data/drover/hub/manage"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/hub/store"
	"github.com/drover-data/drover/internal/durable"
	"github.com/drover-data/drover/trace"
)

// hubPlacesFlags say where a hub keeps things.
type hubPlacesFlags struct {
	data, storage, database string
}

func (p *hubPlacesFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&p.data, "data", "/var/lib/drover-hub", "directory for what is not elsewhere: hub.db, storage/, tls/")
	f.StringVar(&p.storage, "storage", "", "where bytes are: a directory, s3://bucket/prefix?region=…&regionendpoint=https://…, gs://bucket/prefix or azure://container/prefix (default: DATA/storage)")
	f.StringVar(&p.database, "database", "", "SQLite file, or postgres://… which several processes share (default: DATA/hub.db)")
}

// complete fills in what was left out, and makes the directory if it is needed.
func (p *hubPlacesFlags) complete() error {
	const op = "find the hub's places"
	var err error
	if p.data, err = filepath.Abs(p.data); err != nil {
		return err
	}
	if p.storage == "" {
		p.storage = filepath.Join(p.data, "storage")
	} else if !strings.Contains(p.storage, ":") {
		if p.storage, err = filepath.Abs(p.storage); err != nil {
			return err
		}
	}
	if p.database == "" {
		p.database = filepath.Join(p.data, "hub.db")
	} else if !strings.Contains(p.database, "://") {
		if p.database, err = filepath.Abs(p.database); err != nil {
			return err
		}
	}
	if strings.HasPrefix(p.storage, p.data) || strings.HasPrefix(p.database, p.data) {
		if err := durable.MkdirAll(p.data, 0o700); err != nil {
			return &api.Error{Kind: api.Unavailable, Op: op, Object: p.data, Err: err, Next: "give a directory that can be made: --data"}
		}
	}
	return nil
}

func (p *hubPlacesFlags) options() serve.Options {
	return serve.Options{Database: p.database, Storage: p.storage}
}

// hubServeFlags are those of drover hub serve.
type hubServeFlags struct {
	hubPlacesFlags
	config, listen, url, metrics, adminFile, logFormat string
	cert, key                                          string
	selfSigned, insecure, redirect, readOnly, verbose  bool
	allow, proxies                                     []string
	sweep, patience                                    time.Duration
	keep                                               string
}

func hubServe() *cobra.Command {
	var s hubServeFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run a hub",
		Long: `Run a hub: registry, REST API, webhooks and collection in one process. Several
processes may share one --storage and one PostgreSQL --database.

The first start makes the operator "` + front.FirstOperator + `" and prints their token once, or writes it to
--admin-token-file.

Every flag can also be given in the file --config, as in "listen: :7440", or in the
environment, as in DROVER_HUB_LISTEN=:7440. A flag goes before the environment, and that
before the file.

SIGTERM ends it when requests on their way are done, after --patience at the latest.`,
		Example: `  drover hub serve --data ./hub                        # plain HTTP, for this host alone
  drover hub serve --data /srv/hub --tls-self-signed
  drover hub serve --tls-cert hub.crt --tls-key hub.key --url https://hub.example.com
  drover hub serve --storage 's3://hub?region=eu-central-1' --database postgres://hub@db/hub --tls-cert … --tls-key …`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return s.run(c) },
	}
	s.hubPlacesFlags.flags(c.Flags())
	f := c.Flags()
	f.StringVar(&s.config, "config", "", "file with the values of flags, in YAML")
	f.StringVar(&s.listen, "listen", "", "address to answer at (default: :7440 with TLS, 127.0.0.1:7440 without)")
	f.StringVar(&s.url, "url", "", "how clients reach the hub, as in https://hub.example.com (default: as they ask)")
	f.StringVar(&s.cert, "tls-cert", "", "certificate chain, PEM; read anew when it changes")
	f.StringVar(&s.key, "tls-key", "", "its key, PEM")
	f.BoolVar(&s.selfSigned, "tls-self-signed", false, "make a certificate, keep it in DATA/tls, and print its fingerprint")
	f.BoolVar(&s.insecure, "insecure-http", false, "speak plain HTTP beyond this host: behind a proxy that speaks TLS")
	f.StringVar(&s.metrics, "metrics-listen", "", "address to give measures at, to everybody (default: /metrics, to operators)")
	f.StringVar(&s.adminFile, "admin-token-file", "", "write the first operator's token to this file instead of printing it")
	f.StringSliceVar(&s.allow, "webhook-allow", nil, "networks that webhooks may reach though they are private, as in 10.0.0.0/8")
	f.StringSliceVar(&s.proxies, "trusted-proxy", nil, "networks of proxies that are believed about who asks (X-Forwarded-For)")
	f.DurationVar(&s.sweep, "sweep-every", time.Hour, "how long after a sweep the next begins")
	f.StringVar(&s.keep, "keep-activity", "never", "forget activity after this time, as in 365d; never")
	f.DurationVar(&s.patience, "patience", 30*time.Second, "how long requests on their way may take when it ends")
	f.BoolVar(&s.redirect, "redirect", false, "have clients read blobs from the bucket itself, where it can do that")
	f.BoolVar(&s.readOnly, "read-only", false, "take no pushes")
	f.StringVar(&s.logFormat, "log-format", "text", "text or json")
	f.BoolVar(&s.verbose, "verbose", false, "log more")
	complete(c, "log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// envPrefix is what variables of the hub's flags begin with.
const envPrefix = "DROVER_HUB_"

// settings fills in the flags that were not given: from the environment, then from a file.
func settings(f *pflag.FlagSet, file string, env func(string) (string, bool)) error {
	const op = "read configuration"
	values := map[string]any{}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return &api.Error{Kind: api.Invalid, Op: op, Object: file, Err: err}
		}
		if values, err = parseSettings(text); err != nil {
			return &api.Error{Kind: api.Invalid, Op: op, Object: file, Err: err, Next: `write a line for each flag, as in "listen: :7440"`}
		}
	}
	for name := range values {
		if f.Lookup(name) == nil || name == "config" || name == "help" {
			return &api.Error{Kind: api.Invalid, Op: op, Object: file, Reason: fmt.Sprintf("there is no %.100q", name), Next: "drover hub serve --help lists what there is, without --"}
		}
	}
	var failed error
	f.VisitAll(func(one *pflag.Flag) {
		if one.Changed || failed != nil || one.Name == "help" {
			return
		}
		text, from := "", ""
		variable := envPrefix + strings.ToUpper(strings.ReplaceAll(one.Name, "-", "_"))
		if v, ok := env(variable); ok {
			text, from = v, variable
		} else if v, ok := values[one.Name]; ok {
			text, from = settingText(v), file+": "+one.Name
		} else {
			return
		}
		if err := f.Set(one.Name, text); err != nil {
			failed = &api.Error{Kind: api.Invalid, Op: op, Object: from, Err: err}
		}
	})
	return failed
}

// parseSettings reads a file of settings: names with a value or a list of values.
func parseSettings(text []byte) (map[string]any, error) {
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return nil, err
	}
	for name, v := range values {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, x := range list {
			switch x.(type) {
			case string, bool, float64, int64:
			default:
				return nil, fmt.Errorf("%.100q has no value that a flag could have", name)
			}
		}
	}
	return values, nil
}

func settingText(v any) string {
	list, ok := v.([]any)
	if !ok {
		return fmt.Sprint(v)
	}
	parts := make([]string, 0, len(list))
	for _, x := range list {
		parts = append(parts, fmt.Sprint(x))
	}
	return strings.Join(parts, ",")
}

func networks(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, single := netip.ParseAddr(text); single == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, &api.Error{Kind: api.Invalid, Op: "read --" + flag, Object: text, Reason: "not a network", Next: "write it as in 10.0.0.0/8"}
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (s *hubServeFlags) options() (front.Options, error) {
	o := front.Options{
		Version: versionText(), Listen: s.listen, Metrics: s.metrics, CertFile: s.cert, KeyFile: s.key, InsecureHTTP: s.insecure, Patience: s.patience,
	}
	if err := s.complete(); err != nil {
		return o, err
	}
	o.Serve = s.hubPlacesFlags.options()
	o.Serve.URL, o.Serve.Redirect, o.Serve.SweepEvery = strings.TrimSuffix(s.url, "/"), s.redirect, s.sweep
	if s.readOnly {
		o.Serve.ReadOnly = func() bool { return true }
	}
	if s.selfSigned {
		o.SelfSigned = filepath.Join(s.data, "tls")
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:7440"
		if s.cert != "" || s.selfSigned || s.insecure {
			o.Listen = ":7440"
		}
	}
	var err error
	if o.Webhooks.Allow, err = networks("webhook-allow", s.allow); err != nil {
		return o, err
	}
	if o.Proxies, err = networks("trusted-proxy", s.proxies); err != nil {
		return o, err
	}
	o.KeepActivity, err = parsePeriod(s.keep)
	return o, err
}

func (s *hubServeFlags) run(c *cobra.Command) error {
	if !c.Flags().Changed("config") {
		s.config = os.Getenv(envPrefix + "CONFIG")
	}
	if err := settings(c.Flags(), s.config, os.LookupEnv); err != nil {
		return err
	}
	o, err := s.options()
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if s.verbose {
		level = slog.LevelDebug
	}
	var h slog.Handler = slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level})
	switch s.logFormat {
	case "json":
		h = slog.NewJSONHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level})
	case "text":
	default:
		return &api.Error{Kind: api.Invalid, Op: "log", Object: s.logFormat, Reason: "no such format", Next: "use text or json"}
	}
	o.Log = slog.New(trace.Logs(h))
	out := c.OutOrStdout()
	o.First = func(user, secret string) error {
		if s.adminFile != "" {
			if err := durable.WriteFile(s.adminFile, []byte(secret+"\n"), 0o600); err != nil {
				return &api.Error{Kind: api.Unavailable, Op: "write the operator's token", Object: s.adminFile, Err: err, Next: "drover hub operator " + user + " makes another one"}
			}
			fmt.Fprintf(out, "the operator is %s; their token is in %s\n", user, s.adminFile)
			return nil
		}
		fmt.Fprintf(out, "the operator is %s; their token, shown this once:\n  %s\n", user, secret)
		return nil
	}
	o.Ready = func(at front.Listening) {
		fmt.Fprintf(out, "the hub answers at %s\n", at.URL)
		if at.Fingerprint != "" {
			fmt.Fprintf(out, "its certificate is %s\n  %s\n", at.Certificate, at.Fingerprint)
		}
		if at.Metrics != "" {
			fmt.Fprintf(out, "measures are at http://%s/metrics\n", at.Metrics)
		}
		notify(o.Log)
	}
	return front.Run(c.Context(), o)
}

func hubOperator() *cobra.Command {
	var p hubPlacesFlags
	c := &cobra.Command{
		Use:   "operator NAME",
		Short: "Make an operator of a hub and a token of theirs, on the hub's host",
		Long: `Make a user an operator of the hub, and a new token of theirs, in the hub's database:
for when no operator's token is left. It may run beside the hub.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := settings(c.Flags(), "", os.LookupEnv); err != nil {
				return err
			}
			if err := p.complete(); err != nil {
				return err
			}
			secret, err := makeOperator(c.Context(), p.database, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is an operator; a token of theirs, shown this once:\n  %s\n", args[0], secret)
			return nil
		},
	}
	p.flags(c.Flags())
	return c
}

func makeOperator(ctx context.Context, database, name string) (string, error) {
	if !strings.Contains(database, "://") {
		if _, err := os.Stat(database); err != nil {
			return "", &api.Error{Kind: api.NotFound, Op: "make operator", Object: database, Reason: "there is no hub's database", Next: "give --data or --database as drover hub serve has it"}
		}
	}
	st, err := store.Open(ctx, store.Options{URL: database})
	if err != nil {
		return "", err
	}
	defer st.Close()
	u := hub.User{Name: name, Root: true}
	if err = st.CreateUser(ctx, hub.Identity{}, u); api.Is(err, api.Exists) {
		err = st.SetUser(ctx, hub.Identity{}, u)
	}
	if err != nil {
		return "", err
	}
	_, secret, err := st.CreateToken(ctx, hub.Identity{}, hub.Token{User: name, Label: "made on the hub's host", Most: hub.Admin})
	return secret, err
}

func hubRebuild() *cobra.Command {
	var p hubPlacesFlags
	var t hubTalk
	c := &cobra.Command{
		Use:   "rebuild",
		Short: "Build a hub's database anew from its storage, when the database is lost",
		Long: `Fill an empty database with the repositories, names and commits that a storage has.
Users, tokens, rights, rules and activity are in the database alone: they come back with a
backup of it, or are made anew. The hub must not run.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := settings(c.Flags(), "", os.LookupEnv); err != nil {
				return err
			}
			if err := p.complete(); err != nil {
				return err
			}
			out, err := serve.Rebuild(c.Context(), p.options())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%d repositories, %d names, %d manifests\n", out.Repositories, out.Names, out.Manifests)
				for _, x := range out.Warnings {
					fmt.Fprintln(w, "left out:", x)
				}
			})
		},
	}
	p.flags(c.Flags())
	t.outputFlag(c.Flags(), c)
	return c
}

func hubOpenAPI() *cobra.Command {
	return &cobra.Command{
		Use: "openapi", Short: "Print the description of the hub's REST API (OpenAPI 3.1)", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			text, err := manage.New(manage.Options{Version: versionText()}).OpenAPI()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
}
