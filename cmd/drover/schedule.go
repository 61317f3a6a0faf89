package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/drover-data/drover/api"
)

// keepFlags are the rules of a retention policy.
type keepFlags struct {
	keep   api.Keep
	within string
}

func (k *keepFlags) flags(f *pflag.FlagSet, prefix, where string) {
	f.IntVar(&k.keep.Last, prefix+"keep-last", 0, "keep the newest n commits"+where)
	f.StringVar(&k.within, prefix+"keep-within", "", "keep everything younger"+where+", as in 7d")
	f.IntVar(&k.keep.Hourly, prefix+"keep-hourly", 0, "keep the newest commit of each of the last n hours that have one"+where)
	f.IntVar(&k.keep.Daily, prefix+"keep-daily", 0, "the same for days")
	f.IntVar(&k.keep.Weekly, prefix+"keep-weekly", 0, "the same for weeks")
	f.IntVar(&k.keep.Monthly, prefix+"keep-monthly", 0, "the same for months")
	f.IntVar(&k.keep.Yearly, prefix+"keep-yearly", 0, "the same for years")
}

// read gives the policy, nil when no rule is given.
func (k *keepFlags) read() (*api.Keep, error) {
	var err error
	if k.keep.Within, err = parsePeriod(k.within); err != nil || k.keep == (api.Keep{}) {
		return nil, err
	}
	return &k.keep, nil
}

func scheduleCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "schedule", Short: "What happens to volumes by itself: commits, pushes, retention"}
	t.flags(c)
	c.AddCommand(scheduleSet(t), scheduleList(t), scheduleRemove(t))
	return c
}

func scheduleSet(t *talk) *cobra.Command {
	var s api.Schedule
	var keep, remoteKeep keepFlags
	var check checkFlags
	var level string
	c := &cobra.Command{
		Use:   "set VOLUME[@BRANCH] NAME",
		Short: "Say what happens to a volume by itself",
		Long: `Commit a volume, push it, and remove what a retention policy does not keep,
every so often. A run that was missed is made up for once. A failure is an event
and is tried again. Nothing is removed when a push has failed, and never what a
branch or tag points to. Without a change no commit is made.`,
		Example: `  drover schedule set pg hourly --every 1h --commit
  drover schedule set pg nightly --every '15 3 * * *' --commit --push backup --verify --keep-daily 7 --remote-keep-daily 7 --remote-keep-monthly 12`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if s.Every == "" {
				return &api.Error{Kind: api.Invalid, Op: "set schedule", Object: args[1], Reason: "it is not said how often", Next: "give --every, as in --every 1h"}
			}
			s.Branch, s.Consistency = branch, api.Consistency(level)
			if s.Check, err = check.read(); err != nil {
				return err
			}
			if s.Keep, err = keep.read(); err != nil {
				return err
			}
			if s.KeepRemote, err = remoteKeep.read(); err != nil {
				return err
			}
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPut, volumePath(volume, "/schedules/", url.PathEscape(args[1])), s, &v); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v.Schedules[args[1]], func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s of %s: every %s %s\n", args[1], v.Name, s.Every, scheduleText(v.Schedules[args[1]]))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&s.Every, "every", "", "a period (1h, 30m), five cron fields, or @daily and the like; in UTC")
	f.BoolVar(&s.Commit, "commit", false, "commit what has changed")
	f.StringSliceVar(&s.Push, "push", nil, "remote to push to")
	f.BoolVar(&s.Verify, "verify", false, "read back what was pushed, every byte")
	f.StringVar(&level, "consistency", "", "of the commits: crash, paused or application (default: the best there is)")
	check.flags(f)
	keep.flags(f, "", "")
	remoteKeep.flags(f, "remote-", " at the remotes")
	return c
}

// scheduleText says what a schedule does.
func scheduleText(s api.Schedule) string {
	var does []string
	if s.Commit {
		does = append(does, "commit")
	}
	if len(s.Push) > 0 {
		does = append(does, "push to "+strings.Join(s.Push, ", "))
	}
	if s.Check != nil {
		does = append(does, "restore and check in "+s.Check.Image)
	} else if s.Verify {
		does = append(does, "verify")
	}
	if s.Keep != nil {
		does = append(does, "keep "+keepText(*s.Keep))
	}
	if s.KeepRemote != nil {
		does = append(does, "keep at the remotes "+keepText(*s.KeepRemote))
	}
	return strings.Join(does, "; ")
}

func keepText(k api.Keep) string {
	var rules []string
	for _, r := range []struct {
		n    int
		name string
	}{{k.Last, "last"}, {k.Hourly, "hourly"}, {k.Daily, "daily"}, {k.Weekly, "weekly"}, {k.Monthly, "monthly"}, {k.Yearly, "yearly"}} {
		if r.n > 0 {
			rules = append(rules, fmt.Sprintf("%d %s", r.n, r.name))
		}
	}
	if k.Within > 0 {
		rules = append(rules, "all of "+k.Within.String())
	}
	return strings.Join(rules, ", ")
}

func scheduleList(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "ls VOLUME", Short: "List a volume's schedules", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var v api.VolumeDetail
			if err := t.do(c.Context(), http.MethodGet, volumePath(args[0], ""), nil, &v); err != nil {
				return err
			}
			list := v.Volume.Schedules
			if list == nil {
				list = map[string]api.Schedule{}
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				row(w, "NAME", "BRANCH", "EVERY", "DOES")
				for _, name := range slices.Sorted(maps.Keys(list)) {
					branch := list[name].Branch
					if branch == "" {
						branch = "(current)"
					}
					row(w, name, branch, list[name].Every, scheduleText(list[name]))
				}
			})
		},
	}
}

func scheduleRemove(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "rm VOLUME NAME", Short: "End a schedule", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return t.do(c.Context(), http.MethodDelete, volumePath(args[0], "/schedules/", url.PathEscape(args[1])), nil, nil)
		},
	}
}

func pruneCommand(t *talk) *cobra.Command {
	var in api.PruneCommits
	var keep keepFlags
	var remote string
	var noWait bool
	c := &cobra.Command{
		Use:   "prune VOLUME",
		Short: "Remove the commits that a retention policy does not keep, here or at a remote",
		Long: `Remove commits of a volume from its pool that none of the rules keeps. What a
branch, a tag or a remote's branch points to stays.

With --remote the commits at a remote are looked at instead, and the pool is left
alone: what a branch or tag of the remote points to stays, and what nothing leads to
any more goes after a day, also without any rule. It takes no key. A push that is on its
way goes first.`,
		Example: "  drover prune pg --keep-daily 7 --keep-weekly 4 --dry-run\n  drover prune pg --remote backup --keep-daily 30 --keep-monthly 12",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			k, err := keep.read()
			if err != nil {
				return err
			}
			if k != nil {
				in.Keep = *k
			}
			if remote != "" {
				return t.run(c, remotePath(args[0], []string{remote}, "/prune"), in, noWait)
			}
			if k == nil {
				return &api.Error{Kind: api.Invalid, Op: "prune commits", Object: args[0], Reason: "no rule says what to keep", Next: "give one, such as --keep-daily 7"}
			}
			if noWait {
				return &api.Error{Kind: api.Invalid, Op: "prune commits", Object: args[0], Reason: "only a remote takes a while", Next: "leave --no-wait out"}
			}
			return t.pruneHere(c, args[0], in)
		},
	}
	t.flags(c)
	keep.flags(c.Flags(), "", "")
	c.Flags().StringVar(&remote, "remote", "", "look at this remote instead of the pool")
	c.Flags().BoolVar(&in.DryRun, "dry-run", false, "only show which")
	c.Flags().BoolVar(&noWait, "no-wait", false, "with --remote: return once it has begun")
	return c
}

func (t *talk) pruneHere(c *cobra.Command, volume string, in api.PruneCommits) error {
	var out api.Pruned
	if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/prune"), in, &out); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) {
		verb := "removed"
		if out.DryRun {
			verb = "would remove"
		}
		fmt.Fprintf(w, "%s %d commits of %s\n", verb, len(out.Commits), out.Volume)
		for _, id := range out.Commits {
			row(w, shortID(id))
		}
	})
}
