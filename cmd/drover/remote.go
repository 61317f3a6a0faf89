package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/drover-data/drover/api"
)

func remoteCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "remote", Short: "Places outside the cluster that keep a volume's commits"}
	t.flags(c)
	c.AddCommand(remoteAdd(t, "add", false), remoteAdd(t, "set-url", true), remoteList(t), remoteRemove(t), remoteKeyCommand(t))
	return c
}

func remoteAdd(t *talk, verb string, replace bool) *cobra.Command {
	in := api.NameRemote{Replace: replace}
	var open openFlags
	c := &cobra.Command{
		Use:   verb + " VOLUME NAME URL",
		Short: map[bool]string{false: "Name a place that keeps commits", true: "Point a name to another place"}[replace],
		Long: `Name a place outside the cluster that keeps a volume's commits:

  registry.example.com/team/pg   any OCI registry; logins come from the Docker
                                 configuration of the volume's node
  s3://bucket/prefix             an S3 bucket; ?endpoint=https://… for others than
                                 Amazon's; credentials from the usual AWS variables
                                 and files of the volume's node
  file:///path                   a directory of the volume's node
  hub://host/team/pg             a Drover hub

What is pushed to a remote that is sealed already is sealed with its key: say what
opens it, unless the volume's node has it. A remote that is new is sealed from
drover remote key new on.`,
		Example: "  drover remote " + verb + " pg origin registry.example.com/team/pg\n  drover remote " + verb + " pg backup 's3://backups/pg?region=eu-central-1'",
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in.Name, in.URL = args[1], args[2]
			if in.Open, err = open.read(); err != nil {
				return err
			}
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/remotes"), in, &v); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v.Remotes[in.Name], func(w *tabwriter.Writer) {
				r := v.Remotes[in.Name]
				sealed := "in clear"
				if r.Key != "" {
					sealed = "sealed with key " + r.Key
				}
				fmt.Fprintf(w, "%s of %s is %s, %s\n", in.Name, v.Name, r.URL, sealed)
			})
		},
	}
	c.Flags().StringVar(&in.Key, "key", "", "id of the key that seals what is pushed, one that the volume's node has (default: the one that what is there is sealed with)")
	open.flags(c.Flags())
	return c
}

func remoteList(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "ls VOLUME", Short: "List a volume's remotes", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var v api.VolumeDetail
			if err := t.do(c.Context(), http.MethodGet, volumePath(args[0], ""), nil, &v); err != nil {
				return err
			}
			remotes := v.Volume.Remotes
			if remotes == nil {
				remotes = map[string]api.Remote{}
			}
			return t.print(c.OutOrStdout(), remotes, func(w *tabwriter.Writer) {
				row(w, "NAME", "URL", "SEALED")
				var names []string
				for name := range remotes {
					names = append(names, name)
				}
				slices.Sort(names)
				for _, name := range names {
					sealed := "no"
					if remotes[name].Key != "" {
						sealed = "with key " + remotes[name].Key
					}
					row(w, name, remotes[name].URL, sealed)
				}
			})
		},
	}
}

func remoteRemove(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "rm VOLUME NAME", Short: "Forget a remote; what it keeps stays there", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return t.do(c.Context(), http.MethodDelete, volumePath(args[0], "/remotes/", url.PathEscape(args[1])), nil, nil)
		},
	}
}

func pushCommand(t *talk) *cobra.Command {
	var in api.StartPush
	var noWait bool
	c := &cobra.Command{
		Use:   "push VOLUME[@BRANCH|@TAG] [REMOTE [TAG...]]",
		Short: "Bring a branch's commits, or tags, to a remote",
		Long: `Bring the commits that a remote lacks to it, and move its branch. What is read
and sent is what changed. A push that was interrupted goes on where it was when
it is repeated. Where the remote's branch has commits that this one lacks, nothing
is moved; --branch-on-divergence keeps both.

Tags are pushed when they are named, then without the branch, or all of them beside
it with --tags. A tag that the remote has for another commit is refused and named,
after the others are done; --force moves it.`,
		Example: "  drover push pg\n  drover push pg@feature origin --to tests\n  drover push pg origin v1.0\n  drover push pg --tags\n  drover push pg --dry-run",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			in.Branch = branch
			if len(args) > 1 {
				in.Remote, in.Tags = args[1], args[2:]
			}
			if len(in.Tags) > 0 && (branch != "" || in.To != "" || in.OnDivergence != "") {
				return &api.Error{Kind: api.Invalid, Op: "push", Object: args[0], Reason: "with tags no branch is pushed", Next: "push the branch by itself, or all tags beside it with --tags"}
			}
			return t.run(c, volumePath(volume, "/push"), in, noWait)
		},
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&in.To, "to", "", "branch of the remote (default: the same name)")
	f.StringVar(&in.OnDivergence, "branch-on-divergence", "", "branch of the remote that ours becomes when both have gone on")
	f.BoolVar(&in.AllTags, "tags", false, "push all tags, too")
	f.BoolVar(&in.Force, "force", false, "move tags of the remote that point to other commits")
	f.BoolVar(&in.DryRun, "dry-run", false, "only show what would be sent")
	f.BoolVar(&noWait, "no-wait", false, "return once it has begun")
	return c
}

// fetchCommand is fetch, and pull, which also lets the branch follow.
func fetchCommand(t *talk, pull bool) *cobra.Command {
	var in api.StartFetch
	var noWait bool
	c := &cobra.Command{
		Use: "fetch VOLUME [REMOTE]", Short: "Bring a remote's branch here, and move nothing",
		Long:    "Bring what a remote's branch points to into the volume's pool, as a commit\nthat can be looked at, branched from or pulled. Tags of commits that are here come\nalong; --tags brings all, with their commits.",
		Example: "  drover fetch pg\n  drover fetch pg backup --branch main && drover branch pg restored origin/main",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if !pull && branch != "" {
				return &api.Error{Kind: api.Invalid, Op: "fetch", Object: args[0], Reason: "a fetch moves no branch", Next: "name the remote's branch with --branch, or pull"}
			}
			if len(args) > 1 {
				in.Remote = args[1]
			}
			if pull {
				if branch == "" {
					var v api.VolumeDetail
					if err := t.do(c.Context(), http.MethodGet, volumePath(volume, ""), nil, &v); err != nil {
						return err
					}
					branch = v.Volume.Branch
				}
				in.Into = branch
				if in.Branch == "" {
					in.Branch = branch
				}
			}
			return t.run(c, volumePath(volume, "/fetch"), in, noWait)
		},
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&in.Branch, "branch", "", "branch of the remote (default: the same name)")
	f.BoolVar(&in.AllTags, "tags", false, "bring all tags, with their commits (default: those of commits that are here)")
	f.BoolVar(&in.Force, "force", false, "move tags here that name other commits")
	f.BoolVar(&in.AllowLoss, "allow-loss", false, "take what the pool cannot keep; it is stored beside the data")
	f.BoolVar(&noWait, "no-wait", false, "return once it has begun")
	if pull {
		c.Use, c.Short = "pull VOLUME[@BRANCH] [REMOTE]", "Bring a remote's branch here, and let the branch follow it"
		c.Long = `Bring what a remote's branch points to here and replace the branch's content by
it. Containers that use the branch are stopped and started again. What was not
committed is kept in a stash, and drover undo takes all of it back.`
		c.Example = "  drover pull pg\n  drover pull pg@feature origin --branch tests"
		f.StringVar(&in.OnDivergence, "branch-on-divergence", "", "branch here that theirs becomes when both have gone on")
	}
	return c
}

func cloneCommand(t *talk) *cobra.Command {
	var in api.CloneVolume
	var open openFlags
	var size string
	var noWait bool
	c := &cobra.Command{
		Use:     "clone URL NAME",
		Short:   "Make a volume from a branch of a remote",
		Example: "  drover clone registry.example.com/team/pg pg\n  drover clone 's3://backups/pg' pg-restored --branch main --node host2\n  drover clone registry.example.com/team/pg pg --passphrase-file /root/pg.pass",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in.URL, in.Name = args[0], args[1]
			if in.Size, err = parseSize(size); err != nil {
				return err
			}
			if in.Open, err = open.read(); err != nil {
				return err
			}
			return t.run(c, "/v1/clone", in, noWait)
		},
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&in.Branch, "branch", "", "branch of the remote (default: main)")
	f.StringVar(&in.Node, "node", "", "node that it is made on (default: this one)")
	f.StringVar(&in.Pool, "pool", "", "pool on the node (default: its default pool)")
	f.StringVar(&size, "size", "", "limit, as in 10G (default: none)")
	f.StringVar(&in.Key, "key", "", "id of the key that seals what is pushed (default: the one that what is there is sealed with)")
	open.flags(f)
	f.BoolVar(&in.AllowLoss, "allow-loss", false, "take what the pool cannot keep; it is stored beside the data")
	f.BoolVar(&in.AllTags, "tags", false, "bring all tags, with their commits (default: those of the branch's newest)")
	f.BoolVar(&noWait, "no-wait", false, "return once it has begun")
	return c
}

func jobCommand(t *talk) *cobra.Command {
	var node string
	c := &cobra.Command{Use: "job", Short: "Pushes, fetches and the like, as they run"}
	list := &cobra.Command{
		Use: "ls", Short: "List those of a node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			jobs := []api.Job{}
			if err := t.do(c.Context(), http.MethodGet, "/v1/jobs?node="+url.QueryEscape(node), nil, &jobs); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), jobs, func(w *tabwriter.Writer) {
				row(w, "ID", "KIND", "VOLUME", "REMOTE", "STARTED", "STATE")
				for _, j := range jobs {
					row(w, j.ID, j.Kind, j.Volume, j.Remote, ago(j.Started), jobLine(j))
				}
			})
		},
	}
	cancel := &cobra.Command{
		Use: "cancel ID", Short: "End one; what it has brought stays", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return t.do(c.Context(), http.MethodDelete, "/v1/jobs/"+url.PathEscape(args[0])+"?node="+url.QueryEscape(node), nil, nil)
		},
	}
	t.flags(c)
	c.PersistentFlags().StringVar(&node, "node", "", "node that does it (default: this one)")
	c.AddCommand(list, cancel)
	return c
}

// run begins a job and shows it until it is over.
func (t *talk) run(c *cobra.Command, path string, in any, noWait bool) error {
	var j api.Job
	if err := t.do(c.Context(), http.MethodPost, path, in, &j); err != nil {
		return err
	}
	if !noWait {
		var err error
		if j, err = t.followJob(c.Context(), c.ErrOrStderr(), j); err != nil {
			return err
		}
	}
	return t.print(c.OutOrStdout(), j, func(w *tabwriter.Writer) {
		if noWait {
			row(w, j.ID)
			return
		}
		fmt.Fprintln(w, jobResult(j))
	})
}

// followJob shows a job: one line that changes on a terminal, nothing elsewhere.
func (t *talk) followJob(ctx context.Context, w io.Writer, j api.Job) (api.Job, error) {
	terminal := false
	if f, ok := w.(*os.File); ok {
		terminal = term.IsTerminal(int(f.Fd()))
	}
	path := "/v1/jobs/" + url.PathEscape(j.ID) + "?node=" + url.QueryEscape(j.Node)
	for {
		err := t.do(ctx, http.MethodGet, path, nil, &j)
		switch {
		case ctx.Err() != nil:
			return j, &api.Error{Kind: api.Canceled, Op: "follow " + j.Kind, Object: j.Volume, Reason: "it goes on", Next: "drover job ls --node " + j.Node + " shows it, drover job cancel --node " + j.Node + " " + j.ID + " ends it"}
		case err != nil:
			return j, err
		}
		if terminal {
			fmt.Fprintf(w, "\r\x1b[K%s", jobLine(j))
		}
		if !j.Ended.IsZero() {
			if terminal {
				fmt.Fprint(w, "\r\x1b[K")
			}
			if j.Err != nil {
				return j, j.Err
			}
			return j, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// jobLine says how a job stands.
func jobLine(j api.Job) string {
	line := j.Phase
	if j.Err != nil {
		return line + ": " + j.Err.Error()
	}
	if j.Read > 0 {
		line += ", " + sizeText(j.Read) + " read"
	}
	if j.ToSend > 0 {
		line += fmt.Sprintf(", %s of %s sent", sizeText(j.Sent), sizeText(max(j.Sent, j.ToSend)))
	}
	if j.ToGet > 0 {
		line += fmt.Sprintf(", %s of %s fetched", sizeText(j.Got), sizeText(max(j.Got, j.ToGet)))
	}
	if j.ToFree > 0 {
		line += fmt.Sprintf(", %s of %s removed", sizeText(j.Freed), sizeText(j.ToFree))
	}
	if j.Wrote > 0 {
		line += ", " + sizeText(j.Wrote) + " written"
	}
	return line
}

// jobResult says what a job did.
func jobResult(j api.Job) string {
	r := j.Result
	if r == nil {
		return j.Kind + ": done"
	}
	took := j.Ended.Sub(j.Started).Round(10 * time.Millisecond)
	text := ""
	switch {
	case r.Pruned != nil:
		return prunedText(j)
	case j.Kind == "verify":
		text = fmt.Sprintf("%s of %s on %s is whole: %s read back in %v", r.Branch, j.Volume, j.Remote, sizeText(j.Got), took)
		if r.Checked != "" {
			text += "; the check says:\n" + r.Checked
		}
		return text
	case r.DryRun && len(r.Commits)+len(r.Tags) > 0:
		what := r.Branch
		if what == "" {
			what = "tags"
		}
		return fmt.Sprintf("would push %d commits to %s of %s: %s of content changed", len(r.Commits), what, j.Remote, sizeText(r.Changed)) + tagsText(r)
	case j.Kind == "push" && r.Branch == "": // tags alone
		if len(r.Tags) == 0 {
			return "the tags are up to date"
		}
		text = fmt.Sprintf("%s: %d commits, %s sent in %v", j.Remote, len(r.Commits), sizeText(j.Sent), took)
	case j.Kind == "clone":
		text = fmt.Sprintf("volume %s is at %s: %s fetched in %v", r.Volume, shortID(r.To), sizeText(j.Got), took)
	case len(r.Commits) == 0 && r.Relation == "up-to-date":
		return r.Branch + " is up to date at " + shortID(r.To) + tagsText(r)
	case j.Kind == "push" && r.Relation == "ahead":
		return fmt.Sprintf("%s of %s is ahead at %s: nothing to push; drover pull %s brings it here", r.Branch, j.Remote, shortID(r.To), j.Volume)
	case j.Kind == "push":
		text = fmt.Sprintf("%s of %s: %s -> %s, %d commits, %s sent in %v", r.Branch, j.Remote, orNothing(shortID(r.From)), shortID(r.To), len(r.Commits), sizeText(j.Sent), took)
	default:
		text = fmt.Sprintf("%s: %s -> %s, %s fetched in %v", r.Branch, orNothing(shortID(r.From)), shortID(r.To), sizeText(j.Got), took)
	}
	text += tagsText(r)
	if r.Kept != "" {
		text += "; what was not committed is kept in stash " + shortID(r.Kept)
	}
	if len(r.Skipped) > 0 {
		text += fmt.Sprintf("; of %d older commits no data is here", len(r.Skipped))
	}
	if r.Warning != "" {
		text += "; " + r.Warning
	}
	return text
}

// tagsText says which tags were made or moved.
func tagsText(r *api.Synced) string {
	var list []string
	for _, t := range r.Tags {
		text := t.Name + " -> " + shortID(t.Commit)
		if t.Was != "" {
			text += " (was " + shortID(t.Was) + ")"
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return ""
	}
	return "; tags " + strings.Join(list, ", ")
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
