package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
)

func hubUsers(t *hubTalk) *cobra.Command {
	list := &cobra.Command{
		Use: "ls", Short: "List users", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			users, err := h.Users(c.Context())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), users, func(w *tabwriter.Writer) {
				row(w, "NAME", "OPERATOR", "STATE", "MADE")
				for _, u := range users {
					row(w, u.Name, yesNo(u.Root), map[bool]string{true: "disabled", false: "active"}[u.Disabled], ago(u.Created))
				}
			})
		}),
	}
	remove := &cobra.Command{
		Use: "rm NAME", Short: "Remove a user with their tokens and rights; their namespace becomes the operators'", Args: cobra.ExactArgs(1),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			return h.DeleteUser(c.Context(), args[0])
		}),
	}
	disable := hubUserSet(t, "disable", "Have no token of a user count, until they are enabled again", hub.ChangeUser{Disabled: new(true)})
	enable := hubUserSet(t, "enable", "Have a user's tokens count again", hub.ChangeUser{Disabled: new(false)})
	promote := hubUserSet(t, "promote", "Make a user an operator, who may do everything", hub.ChangeUser{Root: new(true)})
	demote := hubUserSet(t, "demote", "Make an operator a user like others", hub.ChangeUser{Root: new(false)})
	for _, c := range []*cobra.Command{remove, disable, enable, promote, demote} {
		c.ValidArgsFunction = t.names(hubUserNames)
	}
	return t.group("user", "Users of the hub (for its operators)", hubUserCreate(t), list, disable, enable, promote, demote, remove)
}

func hubUserCreate(t *hubTalk) *cobra.Command {
	var in hub.NewUser
	var bare bool
	var expires string
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a user, a namespace of their name, and a token to begin with", Args: cobra.ExactArgs(1), ValidArgsFunction: nothing,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			in.Name = args[0]
			end, err := endOf(expires)
			if err != nil {
				return err
			}
			u, err := h.CreateUser(c.Context(), in)
			if err != nil {
				return err
			}
			if bare {
				return t.print(c.OutOrStdout(), u, func(w *tabwriter.Writer) { fmt.Fprintf(w, "user %s is made\n", u.Name) })
			}
			k, err := h.CreateToken(c.Context(), u.Name, hub.NewToken{Label: "the first", Most: hub.Admin, Expires: end})
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), k, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "user %s is made; a token of theirs, shown this once:\n  %s\n", u.Name, k.Secret)
			})
		}),
	}
	c.Flags().BoolVar(&in.Root, "operator", false, "who may do everything on the hub")
	c.Flags().BoolVar(&bare, "no-token", false, "make no token yet")
	c.Flags().StringVar(&expires, "expires", "never", "when the token ends, as in 90d; never")
	return c
}

func hubUserSet(t *hubTalk, verb, short string, to hub.ChangeUser) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			_, err := h.ChangeUser(c.Context(), args[0], to)
			return err
		}),
	}
}

// endOf reads how long something counts.
func endOf(period string) (*time.Time, error) {
	d, err := parsePeriod(period)
	if err != nil || d == 0 {
		return nil, err
	}
	return new(time.Now().Add(d).UTC().Truncate(time.Second)), nil
}

// rightOf reads a right.
func rightOf(text string) (r hub.Right, err error) {
	if err := r.UnmarshalText([]byte(text)); err != nil {
		return r, &api.Error{Kind: api.Invalid, Op: "read right", Object: fmt.Sprintf("%.50q", text), Reason: "no such right", Next: "there are none, read, write and admin"}
	}
	return r, nil
}

func hubTokens(t *hubTalk) *cobra.Command {
	var of string
	// whose are the tokens of: one's own, unless somebody is named.
	whose := func(c *cobra.Command, h *client.Client) (string, error) {
		if of != "" {
			return of, nil
		}
		self, err := h.Self(c.Context())
		if err == nil && self.User == "" {
			err = &api.Error{Kind: api.Unauthenticated, Op: "find tokens", Reason: "nobody is logged in", Next: "drover hub login URL --user NAME"}
		}
		return self.User, err
	}
	list := &cobra.Command{
		Use: "ls", Short: "List tokens, without their secrets", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			user, err := whose(c, h)
			if err != nil {
				return err
			}
			tokens, err := h.Tokens(c.Context(), user)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), tokens, func(w *tabwriter.Writer) {
				row(w, "ID", "LABEL", "ALLOWS", "MADE", "ENDS", "USED")
				for _, k := range tokens {
					row(w, k.ID, orNothing(k.Label), k.Most, ago(k.Created), endText(k.Expires), agoOf(k.Used))
				}
			})
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "Revoke a token: it counts no more from this moment on", Args: cobra.ExactArgs(1),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			user, err := whose(c, h)
			if err != nil {
				return err
			}
			return h.RevokeToken(c.Context(), user, args[0])
		}),
	}
	create := hubTokenCreate(t, whose)
	for _, c := range []*cobra.Command{list, revoke, create} {
		c.Flags().StringVar(&of, "of", "", "whose tokens are meant (default: yours; others' for operators)")
		complete(c, "of", t.names(hubUserNames))
	}
	return t.group("token", "Tokens that people and programs log in with", create, list, revoke)
}

func endText(t *time.Time) string {
	switch {
	case t == nil:
		return "never"
	case t.Before(time.Now()):
		return "ended " + ago(*t)
	}
	return ago(*t)
}

func hubTokenCreate(t *hubTalk, whose func(*cobra.Command, *client.Client) (string, error)) *cobra.Command {
	var in hub.NewToken
	var most, expires string
	c := &cobra.Command{
		Use: "create", Short: "Make a token and show it, this once", Args: cobra.NoArgs,
		Example: "  drover hub token create --label ci --most write --expires 90d\n  drover hub token create --label monitoring --most read",
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) (err error) {
			if in.Most, err = rightOf(most); err != nil {
				return err
			}
			if in.Expires, err = endOf(expires); err != nil {
				return err
			}
			user, err := whose(c, h)
			if err != nil {
				return err
			}
			k, err := h.CreateToken(c.Context(), user, in)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), k, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "token %s of %s, which allows %s and ends %s; shown this once:\n  %s\n", k.ID, k.User, k.Most, endText(k.Expires), k.Secret)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&in.Label, "label", "", "what it is for")
	f.StringVar(&most, "most", "write", "what it allows at most: read, write or admin")
	f.StringVar(&expires, "expires", "never", "when it ends, as in 90d; never")
	complete(c, "most", cobra.FixedCompletions([]string{"read", "write", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func hubNamespaces(t *hubTalk) *cobra.Command {
	show := func(w io.Writer, n ...hub.Namespace) {
		row(w, "NAME", "OWNER", "USED", "QUOTA", "MADE")
		for _, n := range n {
			owner := n.Owner
			if owner == "" {
				owner = "(operators)"
			}
			row(w, n.Name, owner, sizeText(n.Used), limitText(n.Quota), ago(n.Created))
		}
	}
	list := &cobra.Command{
		Use: "ls", Short: "List the namespaces in which you have a right; operators: all", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			list, err := h.Namespaces(c.Context())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) { show(w, list...) })
		}),
	}
	inspect := &cobra.Command{
		Use: "inspect NAME", Short: "Look a namespace up", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubNamespaceNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			n, err := h.Namespace(c.Context(), args[0])
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), n, func(w *tabwriter.Writer) { show(w, n) })
		}),
	}
	remove := &cobra.Command{
		Use: "rm NAME", Short: "Remove a namespace without repositories", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubNamespaceNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			return h.DeleteNamespace(c.Context(), args[0])
		}),
	}
	return t.group("namespace", "Namespaces: the first part of repositories' names", hubNamespaceWrite(t, false), list, inspect, hubNamespaceWrite(t, true), remove)
}

// hubNamespaceWrite is create, and set, which changes one.
func hubNamespaceWrite(t *hubTalk, change bool) *cobra.Command {
	var owner, quota string
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a namespace (for operators)", Args: cobra.ExactArgs(1), ValidArgsFunction: nothing,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			bytes, err := parseSize(quota)
			if err != nil {
				return err
			}
			var n hub.Namespace
			if change {
				var to hub.ChangeNamespace
				if c.Flags().Changed("owner") {
					to.Owner = &owner
				}
				if c.Flags().Changed("quota") {
					to.Quota = &bytes
				}
				n, err = h.ChangeNamespace(c.Context(), args[0], to)
			} else {
				n, err = h.CreateNamespace(c.Context(), hub.NewNamespace{Name: args[0], Owner: owner, Quota: bytes})
			}
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), n, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "namespace %s: %s\n", n.Name, usedText(n.Used, n.Quota))
			})
		}),
	}
	if change {
		c.Use, c.Short, c.ValidArgsFunction = "set NAME", "Change owner and quota of a namespace (for operators)", t.names(hubNamespaceNames)
	}
	c.Flags().StringVar(&owner, "owner", "", "user who administers it; empty: the operators")
	c.Flags().StringVar(&quota, "quota", "", "room of all its repositories, as in 500G; 0: no limit")
	complete(c, "owner", t.names(hubUserNames))
	return c
}

func hubMembers(t *hubTalk) *cobra.Command {
	list := &cobra.Command{
		Use: "ls NAMESPACE[/REPOSITORY]", Short: "List who has a right on a namespace, or on a repository of their own", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubPlaces),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			list, err := h.Members(c.Context(), args[0])
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				row(w, "USER", "RIGHT")
				for _, m := range list {
					row(w, m.User, m.Right)
				}
			})
		}),
	}
	set := &cobra.Command{
		Use: "set NAMESPACE[/REPOSITORY] USER RIGHT", Short: "Give a user read, write or admin; none takes it away",
		Example: "  drover hub member set team bob write\n  drover hub member set team/pg carol read",
		Args:    cobra.ExactArgs(3), ValidArgsFunction: t.names(hubPlaces, hubUserNames, hubRights),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			right, err := rightOf(args[2])
			if err != nil {
				return err
			}
			_, err = h.SetMember(c.Context(), args[0], args[1], right)
			return err
		}),
	}
	remove := &cobra.Command{
		Use: "rm NAMESPACE[/REPOSITORY] USER", Short: "Take a user's right away", Args: cobra.ExactArgs(2), ValidArgsFunction: t.names(hubPlaces, hubUserNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			_, err := h.SetMember(c.Context(), args[0], args[1], hub.None)
			return err
		}),
	}
	return t.group("member", "Who may do what in a namespace or a repository", list, set, remove)
}
