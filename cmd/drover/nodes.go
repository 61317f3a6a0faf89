package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/apiserver"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/state"
)

func nodeCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Nodes: list, label, drain, remove; tokens that let hosts join"}
	t.flags(c)
	c.AddCommand(nodeList(t), nodeInspect(t), nodeLabel(t), nodeDrain(t), nodeRemove(t), nodeToken(t))
	return c
}

func nodeState(n api.Node) string {
	switch {
	case n.Status.Online && n.Draining:
		return "online, draining"
	case n.Status.Online:
		return "online"
	case n.Status.Seen.IsZero():
		return "unknown"
	}
	return "unknown since " + n.Status.Seen.Local().Format("2006-01-02 15:04:05")
}

func (t *talk) nodes(c *cobra.Command) ([]api.Node, error) {
	list := []api.Node{}
	return list, t.do(c.Context(), http.MethodGet, "/v1/nodes", nil, &list)
}

func nodeList(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List nodes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := t.nodes(c)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) { nodeRows(w, list) })
		},
	}
}

func nodeRows(w *tabwriter.Writer, list []api.Node) {
	row(w, "NAME", "ADDRESS", "STATE", "STORE", "POOLS", "VERSION")
	for _, n := range list {
		var pools []string
		for _, p := range n.Status.Pools {
			pools = append(pools, fmt.Sprintf("%s (%s)", p.Name, p.State))
		}
		row(w, n.Name, n.Address, nodeState(n), n.Member, joinWords(pools), n.Status.Software)
	}
}

func nodeInspect(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Show a node", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := t.nodes(c)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(n api.Node) bool { return n.Name == args[0] })
			if i < 0 {
				return &api.Error{Kind: api.NotFound, Op: "inspect node", Object: args[0], Reason: "the cluster has no node of that name", Next: "drover node ls lists them"}
			}
			n := list[i]
			return t.print(c.OutOrStdout(), n, func(w *tabwriter.Writer) {
				row(w, "name", n.Name)
				row(w, "address", n.Address)
				row(w, "state", nodeState(n))
				row(w, "state store", n.Member)
				row(w, "joined", n.Joined.Local().Format("2006-01-02 15:04:05"))
				row(w, "version", n.Status.Software)
				for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
					row(w, "label", k+"="+n.Labels[k])
				}
				for _, p := range n.Status.Pools {
					row(w, "pool", fmt.Sprintf("%s: %s, %s, %s free", p.Name, p.Kind, p.State, sizeText(p.Free)))
				}
			})
		},
	}
}

func (t *talk) changeNode(c *cobra.Command, name string, change cluster.NodeChange) error {
	var n api.Node
	if err := t.do(c.Context(), http.MethodPost, "/v1/nodes/"+url.PathEscape(name), change, &n); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), n, func(w *tabwriter.Writer) { nodeRows(w, []api.Node{n}) })
}

func nodeLabel(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "label NAME KEY=VALUE|KEY-...", Short: "Set labels, or remove those with a minus behind", Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			set, remove, err := splitLabels(args[1:])
			if err != nil {
				return err
			}
			change := cluster.NodeChange{Labels: map[string]*string{}}
			for k, v := range set {
				change.Labels[k] = &v
			}
			for _, k := range remove {
				change.Labels[k] = nil
			}
			return t.changeNode(c, args[0], change)
		},
	}
}

func nodeRemove(t *talk) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm NAME", Short: "Remove a node and revoke its certificate", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.do(c.Context(), http.MethodDelete, fmt.Sprintf("/v1/nodes/%s?force=%t", url.PathEscape(args[0]), force), nil, nil); err != nil {
				return err
			}
			return t.say(c.OutOrStdout(), map[string]string{"removed": args[0]}, "%s is removed, and its certificate revoked", args[0])
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also when volumes are on it: their data stays there, out of the cluster's reach")
	return c
}

func nodeToken(t *talk) *cobra.Command {
	var o cluster.TokenOptions
	var worker bool
	c := &cobra.Command{
		Use: "token", Short: "Make a token that lets one host join", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Worker = worker
			var out apiserver.NewToken
			if err := t.do(c.Context(), http.MethodPost, "/v1/tokens", o, &out); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) { row(w, out.Token) })
		},
	}
	c.Flags().DurationVar(&o.TTL, "expires", time.Hour, "how long it can be used")
	c.Flags().BoolVar(&worker, "worker", false, "the host may not become a member of the state store")
	c.AddCommand(
		&cobra.Command{
			Use: "ls", Short: "List tokens", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				list := []state.Token{}
				if err := t.do(c.Context(), http.MethodGet, "/v1/tokens", nil, &list); err != nil {
					return err
				}
				return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
					row(w, "ID", "EXPIRES", "USED BY", "MADE BY")
					for _, k := range list {
						row(w, k.ID, ago(k.Expires), k.Used, k.By)
					}
				})
			},
		},
		&cobra.Command{
			Use: "rm ID", Short: "Revoke a token", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				if err := t.do(c.Context(), http.MethodDelete, "/v1/tokens/"+url.PathEscape(args[0]), nil, nil); err != nil {
					return err
				}
				return t.say(c.OutOrStdout(), map[string]string{"revoked": args[0]}, "token %s is revoked", args[0])
			},
		})
	return c
}

func userCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "user", Short: "Users of the remote API: certificates with a role"}
	t.flags(c)
	var role, out string
	add := &cobra.Command{
		Use: "add NAME", Short: "Make a user: a key, and a certificate with a role", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := auth.NewRequest(auth.UserPrefix + args[0])
			if err != nil {
				return err
			}
			var a apiserver.AddedUser
			if err := t.do(c.Context(), http.MethodPost, "/v1/users", apiserver.AddUser{Name: args[0], Role: api.Role(role), CSR: r.CSR}, &a); err != nil {
				return err
			}
			bundle, err := r.Bundle(a.Chain)
			if err != nil {
				return err
			}
			if out == "" {
				out = args[0] + ".pem"
			}
			if err := os.WriteFile(filepath.Clean(out), bundle, 0o600); err != nil {
				return err
			}
			made := struct {
				api.User
				File string `json:"file"`
			}{a.User, out}
			return t.say(c.OutOrStdout(), made, "%s (%s): key, certificate and the cluster's CA are in %s\nuse it from anywhere: drover --host https://NODE:7433 --cert %s status", a.User.Name, a.User.Role, out, out)
		},
	}
	add.Flags().StringVar(&role, "role", string(api.Viewer), "viewer, operator or admin")
	add.Flags().StringVar(&out, "out", "", "file for key and certificate (default: NAME.pem)")
	c.AddCommand(add, &cobra.Command{
		Use: "ls", Short: "List users", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list := []api.User{}
			if err := t.do(c.Context(), http.MethodGet, "/v1/users", nil, &list); err != nil {
				return err
			}
			if list == nil {
				list = []api.User{} // null on the wire
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				row(w, "NAME", "ROLE", "CREATED")
				for _, u := range list {
					row(w, u.Name, u.Role, ago(u.Created))
				}
			})
		},
	}, &cobra.Command{
		Use: "rm NAME", Short: "Revoke a user's certificate", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.do(c.Context(), http.MethodDelete, "/v1/users/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			return t.say(c.OutOrStdout(), map[string]string{"revoked": args[0]}, "%s is removed, and the certificate revoked", args[0])
		},
	})
	return c
}
