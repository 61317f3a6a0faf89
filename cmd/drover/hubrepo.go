package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
)

func hubRepositories(t *hubTalk) *cobra.Command {
	list := &cobra.Command{
		Use: "ls", Short: "List the repositories that you may read", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			list, err := h.Repositories(c.Context())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				row(w, "NAME", "READ BY", "USED", "QUOTA", "PUSHED", "FORKED FROM")
				for _, r := range list {
					row(w, r.Name, audience(r), sizeText(r.Used), limitText(r.Quota), agoOf(r.Pushed), dash(r.Forked))
				}
			})
		}),
	}
	inspect := &cobra.Command{
		Use: "inspect NAME", Short: "Look a repository up", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			r, err := h.Repository(c.Context(), args[0])
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), r, func(w *tabwriter.Writer) { printRepository(w, r) })
		}),
	}
	remove := &cobra.Command{
		Use: "rm NAME", Short: "Remove a repository with all its commits; forks of it stay whole", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			return h.DeleteRepository(c.Context(), args[0])
		}),
	}
	return t.group("repo", "Repositories: each holds one volume's commits", hubRepositoryWrite(t, false), list, inspect, hubRepositoryRefs(t), hubRepositoryWrite(t, true), remove)
}

func audience(r hub.Repository) string {
	if r.Public {
		return "everybody"
	}
	return "members"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printRepository(w io.Writer, r hub.RepositoryDetail) {
	row(w, "name:", r.Name)
	row(w, "your right:", r.Right)
	row(w, "read by:", audience(r.Repository))
	row(w, "room:", usedText(r.Used, r.Quota))
	row(w, "protected:", dash(strings.Join(r.Protected, ", ")))
	keep := "every commit"
	if r.Keep != nil {
		keep = keepText(*r.Keep)
	}
	row(w, "keeps:", keep)
	row(w, "made:", ago(r.Created))
	row(w, "pushed:", agoOf(r.Pushed))
	if r.Forked != "" {
		row(w, "forked from:", r.Forked)
	}
}

func hubRepositoryRefs(t *hubTalk) *cobra.Command {
	var commits bool
	c := &cobra.Command{
		Use: "refs NAME", Short: "List a repository's branches, tags and commits", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			all, err := h.Content(c.Context(), args[0])
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), all, func(w *tabwriter.Writer) {
				row(w, "KIND", "NAME", "COMMIT", "STORED", "SET", "RULE")
				show := func(kind string, names []hub.Name) {
					for _, n := range names {
						rule := "-"
						if n.Protected != "" {
							rule = "protected by " + n.Protected
						}
						row(w, kind, n.Name, dash(shortID(n.Commit)), sizeText(n.Bytes), ago(n.Time), rule)
					}
				}
				show("branch", all.Branches)
				show("tag", all.Tags)
				show("other", all.Others)
				if commits {
					for _, x := range all.Commits {
						row(w, "commit", "-", shortID(x.ID), sizeText(x.Bytes), ago(x.Pushed), "-")
					}
				} else if len(all.Commits) > 0 {
					row(w, "commits", strconv.Itoa(len(all.Commits)), "", "", "", "")
				}
			})
		}),
	}
	c.Flags().BoolVar(&commits, "commits", false, "each commit as well, and not just how many")
	return c
}

// hubRepositoryWrite is create, and set, which changes one.
func hubRepositoryWrite(t *hubTalk, change bool) *cobra.Command {
	var public, private, keepAll bool
	var quota string
	var protect []string
	var keep keepFlags
	c := &cobra.Command{
		Use: "create NAMESPACE/NAME", Short: "Make an empty repository; a first push does that as well", Args: cobra.ExactArgs(1), ValidArgsFunction: nothing,
		Example: "  drover hub repo create team/pg --protect main --protect 'release/*' --quota 200G",
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) (err error) {
			in := hub.NewRepository{Name: args[0]}
			f := c.Flags()
			if public || private {
				in.Public = &public
			}
			if f.Changed("quota") {
				n, err := parseSize(quota)
				if err != nil {
					return err
				}
				in.Quota = &n
			}
			if f.Changed("protect") {
				if protect == nil || (len(protect) == 1 && protect[0] == "") {
					protect = []string{}
				}
				in.Protected = &protect
			}
			if in.Keep, err = keep.read(); err != nil {
				return err
			}
			if keepAll && in.Keep == nil {
				in.Keep = &api.Keep{}
			}
			var r hub.RepositoryDetail
			if change {
				r, err = h.ChangeRepository(c.Context(), args[0], in.ChangeRepository)
			} else {
				r, err = h.CreateRepository(c.Context(), in)
			}
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), r, func(w *tabwriter.Writer) { printRepository(w, r) })
		}),
	}
	f := c.Flags()
	if change {
		c.Use, c.Short, c.ValidArgsFunction = "set NAME", "Change who reads a repository, its quota, protected branches and retention", t.names(hubRepositoryNames)
		c.Example = "  drover hub repo set team/pg --public\n  drover hub repo set team/pg --protect ''                  # no branch\n  drover hub repo set team/pg --keep-daily 7 --keep-weekly 4"
		f.BoolVar(&keepAll, "keep-all", false, "keep every commit again")
	}
	f.BoolVar(&public, "public", false, "everybody may read it")
	f.BoolVar(&private, "private", false, "its members alone may read it")
	c.MarkFlagsMutuallyExclusive("public", "private")
	f.StringVar(&quota, "quota", "", "room, as in 200G; 0: that of the namespace alone")
	f.StringSliceVar(&protect, "protect", nil, "branches that only move forward, with * for any part of a name; replaces those before")
	keep.flags(f, "", "")
	return c
}

func hubFork(t *hubTalk) *cobra.Command {
	var in hub.NewFork
	c := &cobra.Command{
		Use: "fork FROM TO", Short: "Make a repository with all that another has; no bytes are copied",
		Example: "  drover hub fork team/pg ann/pg-experiment",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			in.Name = args[1]
			r, err := h.Fork(c.Context(), args[0], in)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), r, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s has all that %s has: %s\n", r.Name, r.Forked, sizeText(r.Used))
			})
		}),
	}
	t.flags(c)
	c.Flags().BoolVar(&in.Public, "public", false, "everybody may read it")
	return c
}

func hubWebhooks(t *hubTalk) *cobra.Command {
	remove := hubWebhookDo(t, "rm", "Remove a webhook with what is on its way to it", func(c *cobra.Command, h *client.Client, repo string, id int64) error {
		return h.DeleteWebhook(c.Context(), repo, id)
	})
	off := hubWebhookDo(t, "disable", "Send nothing to a webhook for now; what happens meanwhile is not sent later", func(c *cobra.Command, h *client.Client, repo string, id int64) error {
		_, err := h.ChangeWebhook(c.Context(), repo, id, true)
		return err
	})
	on := hubWebhookDo(t, "enable", "Send to a webhook again", func(c *cobra.Command, h *client.Client, repo string, id int64) error {
		_, err := h.ChangeWebhook(c.Context(), repo, id, false)
		return err
	})
	again := hubWebhookDo(t, "resend", "Send what was given up once more", func(c *cobra.Command, h *client.Client, repo string, id int64) error {
		n, err := h.ResendWebhook(c.Context(), repo, id)
		if err != nil {
			return err
		}
		return t.print(c.OutOrStdout(), map[string]int64{"resent": n}, func(w *tabwriter.Writer) { fmt.Fprintf(w, "%d are sent again\n", n) })
	})
	test := hubWebhookDo(t, "test", "Send a test now, and say how it went", func(c *cobra.Command, h *client.Client, repo string, id int64) error {
		a, err := h.TestWebhook(c.Context(), repo, id)
		if err != nil {
			return err
		}
		if a.Error != "" {
			return &api.Error{Kind: api.Unavailable, Op: "test webhook", Object: strconv.FormatInt(id, 10), Reason: a.Error, Next: "see whether the receiver is up, and answers with 2xx"}
		}
		return t.print(c.OutOrStdout(), a, func(w *tabwriter.Writer) {
			fmt.Fprintf(w, "answered %d in %v\n", a.Status, a.Took.Round(time.Millisecond))
		})
	})
	return t.group("webhook", "Where a repository's events are sent", hubWebhookAdd(t), hubWebhookList(t), test, again, off, on, remove)
}

func hubWebhookDo(t *hubTalk, verb, short string, do func(c *cobra.Command, h *client.Client, repo string, id int64) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " REPOSITORY ID", Short: short, Args: cobra.ExactArgs(2), ValidArgsFunction: t.names(hubRepositoryNames, hubWebhookIDs),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			id, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return &api.Error{Kind: api.Invalid, Op: verb + " webhook", Object: args[1], Reason: "not the id of a webhook", Next: "drover hub webhook ls " + args[0] + " shows them"}
			}
			return do(c, h, args[0], id)
		}),
	}
}

func hubWebhookAdd(t *hubTalk) *cobra.Command {
	var in hub.NewWebhook
	var secretFile string
	c := &cobra.Command{
		Use: "add REPOSITORY URL", Short: "Have a repository's events sent, signed with a secret that is shown this once", Args: cobra.ExactArgs(2), ValidArgsFunction: t.names(hubRepositoryNames),
		Example: "  drover hub webhook add team/pg https://ci.example.com/hooks/drover --kind ref.create,ref.move",
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) (err error) {
			in.URL = args[1]
			if secretFile != "" {
				if in.Secret, err = readToken(secretFile); err != nil {
					return err
				}
			}
			w, err := h.CreateWebhook(c.Context(), args[0], in)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), w, func(out *tabwriter.Writer) {
				fmt.Fprintf(out, "webhook %d of %s; what is sent is signed with this secret, shown this once:\n  %s\n", w.ID, args[0], w.Secret)
			})
		}),
	}
	c.Flags().StringSliceVar(&in.Kinds, "kind", nil, "kinds of events: "+strings.Join(hub.EventKinds, ", ")+" (default: all)")
	c.Flags().StringVar(&secretFile, "secret-file", "", "file with the secret: whsec_ and base64 of 24 to 64 bytes (default: one is made)")
	complete(c, "kind", cobra.FixedCompletions(hub.EventKinds, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func hubWebhookList(t *hubTalk) *cobra.Command {
	return &cobra.Command{
		Use: "ls REPOSITORY", Short: "List webhooks, with what did not arrive", Args: cobra.ExactArgs(1), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			list, err := h.Webhooks(c.Context(), args[0])
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				row(w, "ID", "URL", "KINDS", "STATE", "WAITING", "GIVEN UP", "LAST FAILURE")
				for _, x := range list {
					waiting, dead, said := 0, 0, "-"
					for _, l := range x.Letters {
						if l.GivenUp != nil {
							dead++
						} else {
							waiting++
						}
						if said == "-" && l.Said != "" {
							said = l.Said
						}
					}
					kinds := strings.Join(x.Kinds, ",")
					if kinds == "" {
						kinds = "all"
					}
					row(w, x.ID, x.URL, kinds, map[bool]string{true: "disabled", false: "active"}[x.Disabled], waiting, dead, said)
				}
			})
		}),
	}
}

func usedText(used, quota int64) string {
	if quota == 0 {
		return sizeText(used) + " used, without a limit"
	}
	return sizeText(used) + " of " + sizeText(quota) + " used"
}
