package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

func branchCommand(t *talk) *cobra.Command {
	var in api.MakeBranch
	var expire string
	var remove, rename bool
	c := &cobra.Command{
		Use:   "branch VOLUME [NAME [FROM]]",
		Short: "List, make, delete and rename branches",
		Long: `Without NAME, list the branches. With it, make one that begins at FROM, or at
the current branch's newest commit: instantly, and without copying data where
the pool can clone. It is mounted as VOLUME@NAME, beside all others.`,
		Example: `  drover branch pg
  drover branch pg feature
  drover branch pg test before-upgrade --expire 7d
  drover branch pg -m test trial
  drover branch pg trial --expire never
  drover branch pg -d trial`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, at, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if at != "" {
				return &api.Error{Kind: api.Invalid, Op: "make branch", Object: args[0], Reason: "the volume alone is wanted here", Next: "drover branch " + volume + " NAME " + at}
			}
			switch {
			case remove && rename:
				return &api.Error{Kind: api.Invalid, Op: "change branch", Object: volume, Reason: "-d and -m exclude each other"}
			case remove:
				return deleteBranches(t, c, volume, args[1:])
			case rename:
				return renameBranch(t, c, volume, args[1:])
			case len(args) == 1 && c.Flags().Changed("expire"):
				return &api.Error{Kind: api.Invalid, Op: "let branch expire", Object: volume, Reason: "no branch is named"}
			case len(args) == 1:
				return listBranches(t, c, volume)
			}
			in.Name = args[1]
			if err := api.CheckBranchName(in.Name); err != nil {
				return err
			}
			if in.Expire, err = parsePeriod(expire); err != nil {
				return err
			}
			if len(args) == 2 && c.Flags().Changed("expire") {
				if there, err := hasBranch(t, c.Context(), volume, in.Name); err != nil {
					return err
				} else if there {
					out := api.ExpireBranch{Name: in.Name, Expire: in.Expire}
					if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/branches/expire"), out, nil); err != nil {
						return err
					}
					if out.Expire == 0 {
						return t.say(c.OutOrStdout(), out, "%s@%s stays until it is deleted", volume, in.Name)
					}
					return t.say(c.OutOrStdout(), out, "%s@%s is deleted by itself %s from now", volume, in.Name, expire)
				}
			}
			if len(args) == 3 {
				if in.From, err = commitAt(volume, args[2]); err != nil {
					return err
				}
			}
			return makeBranch(t, c, volume, in)
		},
	}
	t.flags(c)
	f := c.Flags()
	f.BoolVarP(&remove, "delete", "d", false, "delete the branches NAME...; drover undo brings them back for a day")
	f.BoolVarP(&rename, "move", "m", false, "rename a branch: OLD NEW")
	f.StringVar(&expire, "expire", "", "when it is deleted by itself, as in 7d; never takes that back")
	return c
}

func makeBranch(t *talk, c *cobra.Command, volume string, in api.MakeBranch) error {
	var b api.Branch
	if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/branches"), in, &b); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), b, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "%s@%s begins at %s on %s\n", volume, b.Name, orNone(b.Commit), b.Node)
		if in.Checkout {
			fmt.Fprintf(w, "%s means %s@%s now\n", volume, volume, b.Name)
		}
	})
}

func orNone(id string) string {
	if id == "" {
		return "nothing"
	}
	return shortID(id)
}

func branchList(ctx context.Context, t *talk, volume string) ([]api.Branch, error) {
	list := []api.Branch{}
	err := t.do(ctx, http.MethodGet, volumePath(volume, "/branches"), nil, &list)
	return list, err
}

func hasBranch(t *talk, ctx context.Context, volume, name string) (bool, error) {
	list, err := branchList(ctx, t, volume)
	return slices.ContainsFunc(list, func(b api.Branch) bool { return b.Name == name && b.Deleted.IsZero() }), err
}

func listBranches(t *talk, c *cobra.Command, volume string) error {
	list, err := branchList(c.Context(), t, volume)
	if err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
		for _, b := range list {
			mark, note := " ", ""
			switch {
			case b.Current:
				mark = "*"
			case !b.Deleted.IsZero():
				mark, note = "-", "deleted "+ago(b.Deleted)+", undo brings it back until "+b.Purge.Local().Format(time.DateTime)
			}
			if !b.Expires.IsZero() {
				note = "deleted by itself " + ago(b.Expires)
			}
			if b.Tip != nil && note == "" {
				note = b.Tip.Op + " by " + b.Tip.By + " " + ago(b.Tip.At)
			}
			row(w, mark+" "+b.Name, orNone(b.Commit), b.Node, note)
		}
	})
}

func deleteBranches(t *talk, c *cobra.Command, volume string, names []string) error {
	if len(names) == 0 {
		return &api.Error{Kind: api.Invalid, Op: "delete branch", Object: volume, Reason: "no branch is named"}
	}
	gone := []api.Dropped{}
	var failed error
	for _, name := range names {
		var d api.Dropped
		if failed = t.do(c.Context(), http.MethodDelete, volumePath(volume, "/branches?name="+url.QueryEscape(name)), nil, &d); failed != nil {
			break
		}
		gone = append(gone, d)
	}
	err := t.print(c.OutOrStdout(), gone, func(w *tabwriter.Writer) {
		for i, d := range gone {
			fmt.Fprintf(w, "%s@%s was at %s", volume, names[i], orNone(d.Commit))
			if d.Kept != "" {
				fmt.Fprintf(w, ", what was not committed is in stash %s", shortID(d.Kept))
			}
			fmt.Fprintf(w, "; drover undo %s@%s brings it back until %s\n", volume, names[i], d.Purge.Local().Format(time.DateTime))
		}
	})
	return errors.Join(failed, err)
}

func renameBranch(t *talk, c *cobra.Command, volume string, names []string) error {
	if len(names) != 2 {
		return &api.Error{Kind: api.Invalid, Op: "rename branch", Object: volume, Reason: "the old and the new name are wanted", Next: "drover branch " + volume + " -m OLD NEW"}
	}
	if err := api.CheckBranchName(names[1]); err != nil {
		return err
	}
	in := api.Rename{From: names[0], To: names[1]}
	if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/branches/rename"), in, nil); err != nil {
		return err
	}
	return t.say(c.OutOrStdout(), in, "%s@%s is %s@%s now", volume, in.From, volume, in.To)
}

func checkoutCommand(t *talk) *cobra.Command {
	var create bool
	c := &cobra.Command{
		Use:   "checkout VOLUME BRANCH [FROM]",
		Short: "Change which branch the plain name means",
		Long: `Stop the containers that use the volume by its plain name, make BRANCH the
current one, and start them again. Containers that name a branch (VOLUME@BRANCH)
are left alone. What was not committed stays in the branch that is left.`,
		Example: `  drover checkout pg feature
  drover checkout -b pg trial
  drover checkout -b pg rescue main~3`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, at, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if err := api.CheckBranchName(args[1]); err != nil {
				return err
			}
			if at != "" {
				return &api.Error{Kind: api.Invalid, Op: "check branch out", Object: args[0], Reason: "the volume alone is wanted here", Next: "drover checkout " + volume + " " + args[1]}
			}
			if create {
				in := api.MakeBranch{Name: args[1]}
				if len(args) == 3 {
					if in.From, err = commitAt(volume, args[2]); err != nil {
						return err
					}
				}
				if t.output != "table" { // one document: what was checked out
					if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/branches"), in, nil); err != nil {
						return err
					}
				} else if err := makeBranch(t, c, volume, in); err != nil {
					return err
				}
			} else if len(args) == 3 {
				return &api.Error{Kind: api.Invalid, Op: "check branch out", Object: args[2], Reason: "where a branch begins is said when it is made", Next: "drover checkout -b " + strings.Join(args, " ")}
			}
			var out api.CheckedOut
			if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/checkout"), api.Checkout{Branch: args[1]}, &out); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) { checkedOut(w, out) })
		},
	}
	t.flags(c)
	c.Flags().BoolVarP(&create, "branch", "b", false, "make the branch first")
	return c
}

func checkedOut(w io.Writer, out api.CheckedOut) {
	if out.From == out.To {
		fmt.Fprintf(w, "%s means %s@%s already\n", out.Volume, out.Volume, out.To)
		return
	}
	fmt.Fprintf(w, "%s means %s@%s now\n", out.Volume, out.Volume, out.To)
	if len(out.Restart) > 0 {
		fmt.Fprintf(w, "restarted: %s\n", strings.Join(out.Restart, ", "))
	}
	if out.Dirty {
		fmt.Fprintf(w, "what is not committed stays in %s@%s\n", out.Volume, out.From)
	}
}

func resetCommand(t *talk) *cobra.Command {
	var hard bool
	c := &cobra.Command{
		Use:   "reset --hard VOLUME[@BRANCH] REF",
		Short: "Replace a branch's data by that of a commit",
		Long: `Stop the containers that use the branch, replace its data by that of REF, and
start them again. What was not committed is kept in a stash, and drover undo
takes all of it back.`,
		Example: `  drover reset --hard pg before-upgrade
  drover reset --hard pg ~1
  drover reset --hard pg@feature main`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if !hard {
				return &api.Error{Kind: api.Invalid, Op: "reset branch", Object: args[0], Reason: "the containers that use it are stopped and its data is replaced", Next: "say --hard if that is meant; what is not committed is kept in a stash"}
			}
			in := api.ResetBranch{Branch: branch}
			if in.To, err = commitAt(volume, args[1]); err != nil {
				return err
			}
			return moved(t, c, volumePath(volume, "/reset"), in)
		},
	}
	t.flags(c)
	c.Flags().BoolVar(&hard, "hard", false, "yes, replace the data")
	return c
}

func moved(t *talk, c *cobra.Command, path string, in any) error {
	var m api.Moved
	if err := t.do(c.Context(), http.MethodPost, path, in, &m); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), m, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "%s@%s is at %s (%s", m.Volume, m.Branch, orNone(m.To), m.Op)
		if m.Note != "" && !api.IsCommitID(m.Note) {
			fmt.Fprintf(w, " %s", m.Note)
		}
		fmt.Fprintln(w, ")")
		if m.Kept != "" {
			fmt.Fprintf(w, "what was not committed is in stash %s; drover undo takes this back\n", shortID(m.Kept))
		}
	})
}

func stashCommand(t *talk) *cobra.Command {
	var message string
	c := &cobra.Command{
		Use:   "stash VOLUME[@BRANCH]",
		Short: "Put aside what is not committed",
		Long: `Keep what a branch has on top of its newest commit in a stash, and bring the
branch back to that commit. The containers that use it are stopped meanwhile.`,
		Example: `  drover stash pg -m "half of the import"
  drover stash list pg
  drover stash pop pg`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			return moved(t, c, volumePath(volume, "/stash"), api.StashChanges{Branch: branch, Message: message})
		},
	}
	t.flags(c)
	c.Flags().StringVarP(&message, "message", "m", "", "what it is")
	named := func(c *cobra.Command, in api.StashChanges, args []string) error {
		volume, branch, err := volumeAt(args[0])
		if err != nil {
			return err
		}
		in.Branch = branch
		if len(args) == 2 {
			if !api.IsCommitPrefix(args[1]) {
				return &api.Error{Kind: api.Invalid, Op: "find a stash", Object: args[1], Reason: "not the beginning of an id", Next: "drover stash list " + volume + " shows them"}
			}
			in.Stash = args[1]
		}
		return moved(t, c, volumePath(volume, "/stash"), in)
	}
	c.AddCommand(&cobra.Command{
		Use: "pop VOLUME[@BRANCH] [STASH]", Short: "Take the newest stash back, or the one that is named", Args: cobra.RangeArgs(1, 2),
		Example: "  drover stash pop pg\n  drover stash pop pg@feature 1a2b3c4d",
		RunE:    func(c *cobra.Command, args []string) error { return named(c, api.StashChanges{Pop: true}, args) },
	}, &cobra.Command{
		Use: "drop VOLUME[@BRANCH] STASH", Short: "Forget a stash, so that its space can be freed", Args: cobra.ExactArgs(2),
		Example: "  drover stash drop pg 1a2b3c4d",
		RunE:    func(c *cobra.Command, args []string) error { return named(c, api.StashChanges{Drop: true}, args) },
	}, &cobra.Command{
		Use: "list VOLUME[@BRANCH]", Short: "List what was put aside, the newest first", Args: cobra.ExactArgs(1),
		Example: "  drover stash list pg",
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			list := []api.Commit{}
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/stash?branch="+url.QueryEscape(branch)), nil, &list); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				for _, s := range list {
					on := "nothing"
					if len(s.Parents) > 0 {
						on = shortID(s.Parents[0])
					}
					row(w, shortID(s.ID), "on "+on, ago(s.Time), s.Stash, firstLine(s.Message))
				}
			})
		},
	})
	return c
}

func undoCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use:   "undo VOLUME[@BRANCH]",
		Short: "Take back what happened last to a branch",
		Long: `Take the last entry of the reflog back, or bring the branch back that was
deleted after it. Taking a commit back leaves the data as it is; taking a reset
back restores what it replaced. A second undo takes the first one back.`,
		Example: `  drover undo pg
  drover undo pg@feature`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			return moved(t, c, volumePath(volume, "/undo"), api.UndoLast{Branch: branch})
		},
	}
	t.flags(c)
	return c
}

func reflogCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use:     "reflog VOLUME[@BRANCH]",
		Short:   "List where a branch pointed, the newest first",
		Example: "  drover reflog pg\n  drover reflog pg@feature -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			list := []api.RefLogEntry{}
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/reflog?branch="+url.QueryEscape(branch)), nil, &list); err != nil {
				return err
			}
			slices.Reverse(list)
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				for _, e := range list {
					note := e.Note
					if api.IsCommitID(note) {
						note = shortID(note)
					}
					if e.Kept != "" {
						note = strings.TrimSpace(note + " (kept " + shortID(e.Kept) + ")")
					}
					row(w, orNone(e.To), e.Op, e.By, ago(e.At), note)
				}
			})
		},
	}
	t.flags(c)
	return c
}

func tagCommand(t *talk) *cobra.Command {
	var force, remove bool
	c := &cobra.Command{
		Use:   "tag VOLUME [NAME [REF]]",
		Short: "List, make and delete names of commits",
		Example: `  drover tag pg
  drover tag pg v1.0
  drover tag pg before-upgrade main~2
  drover tag pg -d v1.0`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, at, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if at != "" {
				return &api.Error{Kind: api.Invalid, Op: "tag commit", Object: args[0], Reason: "the volume alone is wanted here", Next: "drover tag " + volume + " NAME " + at}
			}
			if remove {
				if len(args) != 2 {
					return &api.Error{Kind: api.Invalid, Op: "delete tag", Object: volume, Reason: "one tag is to be named", Next: "drover tag " + volume + " -d NAME"}
				}
				if err := t.do(c.Context(), http.MethodDelete, volumePath(volume, "/tags?name="+url.QueryEscape(args[1])), nil, nil); err != nil {
					return err
				}
				return t.say(c.OutOrStdout(), map[string]string{"deleted": args[1]}, "tag %s is deleted", args[1])
			}
			if len(args) == 1 {
				return listTags(t, c, volume)
			}
			in := api.MakeTag{Name: args[1], Force: force}
			if err := api.CheckTagName(in.Name); err != nil {
				return err
			}
			if len(args) == 3 {
				if in.At, err = commitAt(volume, args[2]); err != nil {
					return err
				}
			}
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/tags"), in, &v); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v.Tags, func(w *tabwriter.Writer) { row(w, in.Name, shortID(v.Tags[in.Name])) })
		},
	}
	t.flags(c)
	c.Flags().BoolVarP(&remove, "delete", "d", false, "delete the tag NAME")
	c.Flags().BoolVar(&force, "force", false, "move a tag that names another commit")
	return c
}

func listTags(t *talk, c *cobra.Command, volume string) error {
	var d api.VolumeDetail
	if err := t.do(c.Context(), http.MethodGet, volumePath(volume), nil, &d); err != nil {
		return err
	}
	tags := d.Volume.Tags
	if tags == nil {
		tags = map[string]string{}
	}
	return t.print(c.OutOrStdout(), tags, func(w *tabwriter.Writer) {
		for _, name := range sortedKeys(tags) {
			row(w, name, shortID(tags[name]))
		}
	})
}

func volumeHook(t *talk) *cobra.Command {
	var hook api.Hook
	var before, after string
	var none bool
	c := &cobra.Command{
		Use:   "hook NAME",
		Short: "Set what prepares the application for a commit",
		Long: `Without flags, show the hook. With them, set what runs in the container that uses the volume, so that a commit is
consistent for the application: a checkpoint of PostgreSQL, the read lock of
MySQL and MariaDB, a background save of Redis, or commands of your own. When it
fails or its deadline ends, nothing is committed and the application goes on.`,
		Example: `  drover volume hook pg --kind postgresql
  drover volume hook shop --kind mysql --container shop-db --deadline 10s
  drover volume hook files --kind command --before "fsfreeze-app" --after "thaw-app"
  drover volume hook pg
  drover volume hook pg --none`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var in struct {
				Hook *api.Hook `json:"hook,omitempty"`
			}
			if err := exclusive(c, "none", "kind"); err != nil {
				return err
			}
			changed := false
			for _, f := range []string{"kind", "container", "user", "before", "after", "deadline", "none"} {
				changed = changed || c.Flags().Changed(f)
			}
			if !changed {
				var d api.VolumeDetail
				if err := t.do(c.Context(), http.MethodGet, volumePath(args[0]), nil, &d); err != nil {
					return err
				}
				return t.hookIs(c, args[0], d.Volume.Hook)
			}
			if !none {
				if before != "" {
					hook.Before = []string{"sh", "-c", before}
				}
				if after != "" {
					hook.After = []string{"sh", "-c", after}
				}
				if err := hook.Check(); err != nil {
					return err
				}
				in.Hook = &hook
			}
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/hook"), in, nil); err != nil {
				return err
			}
			return t.hookIs(c, args[0], in.Hook)
		},
	}
	f := c.Flags()
	f.StringVar(&hook.Kind, "kind", "", "postgresql, mysql, redis or command")
	f.StringVar(&hook.Container, "container", "", "container it runs in (default: the only one that uses the volume)")
	f.StringVar(&hook.User, "user", "", "database user (default: the usual one)")
	f.StringVar(&before, "before", "", "shell command before the commit, with --kind command")
	f.StringVar(&after, "after", "", "shell command after it, whatever happened")
	f.DurationVar(&hook.Deadline, "deadline", 0, "how long all of it may take (default 30s)")
	f.BoolVar(&none, "none", false, "remove the hook")
	return c
}

// hookIs shows a volume's hook.
func (t *talk) hookIs(c *cobra.Command, volume string, hook *api.Hook) error {
	if hook == nil {
		return t.say(c.OutOrStdout(), struct{}{}, "%s has no hook of its own; labels of its containers may give one", volume)
	}
	return t.say(c.OutOrStdout(), hook, "%s is prepared by %s", volume, hookText(*hook))
}

// hookText is a hook in words.
func hookText(h api.Hook) string {
	s := h.Kind
	if h.Container != "" {
		s += " in container " + h.Container
	}
	if h.User != "" {
		s += " as " + h.User
	}
	for _, x := range []struct {
		when    string
		command []string
	}{{"before", h.Before}, {"after", h.After}} {
		if len(x.command) > 0 {
			s += fmt.Sprintf(", %s: %s", x.when, x.command[len(x.command)-1])
		}
	}
	if h.Deadline > 0 {
		s += ", within " + h.Deadline.String()
	}
	return s
}

// refs completes VOLUME and VOLUME@BRANCH.
func refNames() source {
	return func(ctx context.Context, t *talk) ([]string, error) {
		var list []api.Volume
		if err := t.do(ctx, http.MethodGet, "/v1/volumes", nil, &list); err != nil {
			return nil, err
		}
		var out []string
		for _, v := range list {
			out = append(out, v.Name)
			for b := range v.Heads {
				out = append(out, v.Name+"@"+b)
			}
		}
		slices.Sort(out)
		return out, nil
	}
}

// completeBranches completes the first argument from volumes and further ones
// from that volume's branches, and with tags from its tags too.
func completeBranches(t *talk, first source, tags bool) cobra.CompletionFunc {
	return completeOf(t, first, func(v api.Volume, _ int) []string {
		out := sortedKeys(v.Heads)
		if tags {
			out = append(out, sortedKeys(v.Tags)...)
		}
		return out
	})
}

// completeOf completes the first argument from volumes and the i-th one from what
// that volume has.
func completeOf(t *talk, first source, has func(v api.Volume, i int) []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return t.complete(c, first, nil)
		}
		name, _, _ := strings.Cut(args[0], "@")
		return t.complete(c, func(ctx context.Context, t *talk) ([]string, error) {
			var list []api.Volume
			if err := t.do(ctx, http.MethodGet, "/v1/volumes", nil, &list); err != nil {
				return nil, err
			}
			var out []string
			for _, v := range list {
				if v.Name == name {
					out = append(out, has(v, len(args))...)
				}
			}
			slices.Sort(out)
			return out, nil
		}, args[1:])
	}
}
