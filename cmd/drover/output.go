package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/node"
	plugin "github.com/drover-data/drover/plugin/docker"
)

// talk is what commands need that ask the agent.
type talk struct {
	socket string
	output string
}

func (t *talk) flags(c *cobra.Command) {
	c.PersistentFlags().StringVar(&t.socket, "socket", envOr("DROVER_SOCKET", "/run/drover/drover.sock"), "the agent's socket")
	c.PersistentFlags().StringVarP(&t.output, "output", "o", "table", "table, json or yaml")
	if err := c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was made a line above
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// client speaks to this host's agent, in the name of whoever runs the command.
func (t *talk) client() *client.Client {
	header := http.Header{}
	if u, err := user.Current(); err == nil {
		header.Set(node.UserHeader, u.Username)
	}
	return client.Unix(t.socket, header)
}

func (t *talk) do(ctx context.Context, method, path string, in, out any) error {
	err := t.client().Do(ctx, method, path, in, out)
	if api.Is(err, api.Unavailable) && strings.Contains(err.Error(), t.socket) {
		return &api.Error{Kind: api.Unavailable, Op: "ask the agent", Object: t.socket, Err: err, Next: "is it running, and may you use its socket (root and group drover)? drover init makes a cluster"}
	}
	return err
}

// print shows a value: as JSON or YAML whole, as a table by rows.
func (t *talk) print(w io.Writer, v any, rows func(w *tabwriter.Writer)) error {
	switch t.output {
	case "json":
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, string(text))
		return err
	case "yaml":
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	case "table":
		tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
		rows(tw)
		return tw.Flush()
	}
	return &api.Error{Kind: api.Invalid, Op: "print", Object: t.output, Reason: "no such output", Next: "use table, json or yaml"}
}

func sizeText(n int64) string {
	if n < 0 {
		return "unknown"
	}
	return humanize.IBytes(uint64(n))
}

func limitText(n int64) string {
	if n == 0 {
		return "-"
	}
	return sizeText(n)
}

// parseSize reads 10G, 512MiB or a number of bytes; empty is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	return plugin.ParseSize(s)
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return humanize.Time(t)
}

func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}
