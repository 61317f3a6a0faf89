package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

// volumeAt reads VOLUME or VOLUME@BRANCH; nothing may follow the branch.
func volumeAt(text string) (volume, branch string, err error) {
	ref, err := api.ParseRef(text)
	if err != nil {
		return "", "", err
	}
	if ref.Back != 0 {
		return "", "", &api.Error{Kind: api.Invalid, Op: "read reference", Object: text, Reason: "a branch is wanted here, not a commit", Next: "leave the ~ out"}
	}
	return ref.Volume, ref.At, nil
}

// volumeRef reads a whole reference; at is what follows the volume's name.
func volumeRef(text string) (volume, at string, err error) {
	ref, err := api.ParseRef(text)
	if err != nil {
		return "", "", err
	}
	at = ref.At
	if ref.Back != 0 {
		at += "~" + strconv.Itoa(ref.Back)
	}
	return ref.Volume, at, nil
}

// commitAt reads where something begins: a reference of the same volume, or
// only what would follow its '@'.
func commitAt(volume, text string) (string, error) {
	if text == volume || strings.HasPrefix(text, volume+"@") || strings.HasPrefix(text, volume+"~") {
		_, at, err := volumeRef(text)
		return at, err
	}
	whole := volume + "@" + text
	if strings.HasPrefix(text, "~") {
		whole = volume + text
	}
	if _, err := api.ParseRef(whole); err != nil {
		return "", err
	}
	return text, nil
}

// parsePeriod reads 7d, 2w, 36h or "never".
func parsePeriod(s string) (time.Duration, error) {
	if s == "" || s == "never" {
		return 0, nil
	}
	for unit, d := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, err := strconv.Atoi(strings.TrimSuffix(s, unit)); err == nil && strings.HasSuffix(s, unit) && n > 0 && n < 10000 {
			return time.Duration(n) * d, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, &api.Error{Kind: api.Invalid, Op: "read period", Object: fmt.Sprintf("%q", s), Reason: "not a period", Next: "write it as in 7d, 2w, 36h or never"}
	}
	return d, nil
}

func shortID(id string) string { return id[:min(12, len(id))] }

func commitCommand(t *talk) *cobra.Command {
	var in api.MakeCommit
	var labels []string
	var level string
	c := &cobra.Command{
		Use:   "commit VOLUME[@BRANCH] -m MESSAGE",
		Short: "Commit a volume's data as it is now",
		Long: `Make an immutable point of a volume's history. It takes no time and, until the
data changes, no space. Each commit says what an application finds in it:

  crash        one instant, as after a loss of power
  paused       one instant with the containers held
  application  what the volume's hook prepared (see drover volume hook)

Without --consistency it is application if the volume has a hook that can run,
otherwise crash, or paused where the pool's snapshots are not atomic.`,
		Example: `  drover commit pg -m "before the upgrade"
  drover commit pg@feature -m "with the new index" -d ticket=4711
  drover commit pg --with queue --with files -m "nightly, all in one instant"`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			volume, branch, err := volumeAt(args[0])
			if err != nil {
				return err
			}
			if err := api.CheckMessage(in.Message); err != nil {
				return err
			}
			in.Branch, in.Consistency = branch, api.Consistency(level)
			if in.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			for _, w := range in.With {
				if _, _, err := volumeAt(w); err != nil {
					return err
				}
			}
			var out []api.Committed
			if err := t.do(c.Context(), http.MethodPost, volumePath(volume, "/commits"), in, &out); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) {
				for _, x := range out {
					fmt.Fprintf(w, "[%s@%s %s] %s (%s)\n", x.Volume, x.Branch, shortID(x.Commit.ID), firstLine(x.Commit.Message), x.Commit.Consistency)
				}
			})
		},
	}
	t.flags(c)
	f := c.Flags()
	f.StringVarP(&in.Message, "message", "m", "", "what this commit is")
	f.StringArrayVarP(&labels, "data", "d", nil, "label KEY=VALUE; may be given several times")
	f.StringVar(&level, "consistency", "", "crash, paused or application (default: the best the volume is set up for)")
	f.StringArrayVar(&in.With, "with", nil, "further VOLUME[@BRANCH] to commit in the same instant; all or none")
	return c
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func logCommand(t *talk) *cobra.Command {
	var oneline, graph, all bool
	var limit int
	c := &cobra.Command{
		Use:   "log VOLUME[@REF]",
		Short: "List the commits that lead to a branch, tag or commit",
		Example: `  drover log pg
  drover log pg@feature --oneline -n 10
  drover log pg --graph --all
  drover log pg@main~5 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, at, err := volumeRef(args[0])
			if err != nil {
				return err
			}
			if limit < 0 {
				return &api.Error{Kind: api.Invalid, Op: "list commits", Object: fmt.Sprint(limit), Reason: "the number of commits is negative"}
			}
			list := []api.LoggedCommit{}
			path := fmt.Sprintf("/commits?at=%s&all=%t&limit=%d", url.QueryEscape(at), all, limit)
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, path), nil, &list); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				var g lanes
				for _, x := range list {
					text := strings.Split(strings.TrimSuffix(logText(x, oneline), "\n"), "\n")
					if !graph {
						fmt.Fprintln(w, strings.Join(text, "\n"))
						continue
					}
					g.draw(w, x, text)
				}
			})
		},
	}
	t.flags(c)
	f := c.Flags()
	f.BoolVar(&oneline, "oneline", false, "a line for each commit")
	f.BoolVar(&graph, "graph", false, "draw how commits follow each other")
	f.BoolVar(&all, "all", false, "of every branch and tag")
	f.IntVarP(&limit, "number", "n", 0, "how many (default: all)")
	return c
}

func logText(x api.LoggedCommit, oneline bool) string {
	refs := ""
	if len(x.Refs) > 0 {
		refs = " (" + strings.Join(x.Refs, ", ") + ")"
	}
	if oneline {
		return shortID(x.ID) + refs + " " + firstLine(x.Message)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "commit %s%s\n", x.ID, refs)
	fmt.Fprintf(&b, "Author: %s\nDate:   %s\nLevel:  %s\n", x.Author, x.Time.Local().Format("2006-01-02 15:04:05 -0700"), levelText(x.Commit))
	for _, k := range sortedKeys(x.Labels) {
		fmt.Fprintf(&b, "Label:  %s=%s\n", k, x.Labels[k])
	}
	for _, p := range x.Missing {
		fmt.Fprintf(&b, "Parent: %s (not here)\n", shortID(p))
	}
	fmt.Fprintf(&b, "\n    %s\n", strings.ReplaceAll(strings.TrimSpace(x.Message), "\n", "\n    "))
	return b.String() + " "
}

func levelText(c api.Commit) string {
	s := string(c.Consistency)
	if len(c.Hooks) > 0 {
		s += " (" + strings.Join(c.Hooks, ", ") + ")"
	}
	if c.Group != "" {
		s += ", with others in group " + shortID(c.Group)
	}
	if c.Stash != "" {
		s += ", stash of " + c.Stash
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// lanes are the lines of a graph: the commit that each leads to next.
type lanes []string

// draw prints a commit's text beside the lines of the graph.
func (g *lanes) draw(w io.Writer, x api.LoggedCommit, text []string) {
	at := slices.Index(*g, x.ID)
	if at < 0 {
		*g = append(*g, x.ID)
		at = len(*g) - 1
	}
	// Lines that lead here as well end in this one, from the right.
	for i := len(*g) - 1; i > at; i-- {
		if (*g)[i] != x.ID {
			continue
		}
		fmt.Fprintln(w, strings.Repeat("| ", i-1)+"|/"+strings.Repeat(" /", len(*g)-1-i))
		*g = slices.Delete(*g, i, i+1)
	}
	marks := func(star bool) string {
		var b strings.Builder
		for i := range *g {
			if star && i == at {
				b.WriteString("* ")
			} else {
				b.WriteString("| ")
			}
		}
		return b.String()
	}
	fmt.Fprintln(w, marks(true)+text[0])
	// What follows stands beside the lines that go on.
	var parents []string
	for _, p := range x.Parents {
		if !slices.Contains(x.Missing, p) {
			parents = append(parents, p)
		}
	}
	switch len(parents) {
	case 0:
		*g = slices.Delete(*g, at, at+1)
	default:
		(*g)[at] = parents[0]
	}
	for _, line := range text[1:] {
		fmt.Fprintln(w, strings.TrimRight(marks(false)+line, " "))
	}
	for i, p := range parents[min(1, len(parents)):] {
		fmt.Fprintln(w, strings.Repeat("| ", at+i)+"|\\")
		*g = slices.Insert(*g, at+1+i, p)
	}
}

func showCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use:   "show VOLUME[@REF]",
		Short: "Show a commit",
		Example: `  drover show pg
  drover show pg@before-upgrade
  drover show pg@main~2 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			volume, at, err := volumeRef(args[0])
			if err != nil {
				return err
			}
			list := []api.LoggedCommit{}
			if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/commits?limit=1&at="+url.QueryEscape(at)), nil, &list); err != nil {
				return err
			}
			if len(list) == 0 {
				return &api.Error{Kind: api.NotFound, Op: "show commit", Object: args[0], Reason: "the branch has no commit yet", Next: "drover commit " + volume + " -m … makes the first"}
			}
			return t.print(c.OutOrStdout(), list[0], func(w *tabwriter.Writer) {
				x := list[0]
				fmt.Fprintln(w, strings.TrimSpace(logText(x, false)))
				for _, p := range x.Parents {
					if !slices.Contains(x.Missing, p) {
						fmt.Fprintln(w, "Parent: "+shortID(p))
					}
				}
				fmt.Fprintln(w, "Branch: "+x.Branch)
			})
		},
	}
	t.flags(c)
	return c
}

func statusOf(t *talk, c *cobra.Command, arg string) error {
	volume, branch, err := volumeAt(arg)
	if err != nil {
		return err
	}
	var s api.BranchStatus
	if err := t.do(c.Context(), http.MethodGet, volumePath(volume, "/status?branch="+url.QueryEscape(branch)), nil, &s); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), s, func(w *tabwriter.Writer) {
		current := ""
		if s.Current {
			current = " (current)"
		}
		row(w, "branch", s.Branch+current+" on "+s.Node)
		switch {
		case s.Tip == "":
			row(w, "commit", "none yet")
		case s.Commit == nil:
			row(w, "commit", shortID(s.Tip)+" (not here)")
		default:
			row(w, "commit", shortID(s.Tip)+" "+firstLine(s.Commit.Message)+", "+ago(s.Commit.Time))
		}
		switch {
		case s.Tip == "":
			row(w, "changes", "nothing is committed yet")
		case !s.Dirty:
			row(w, "changes", "none since the commit")
		case s.Sure:
			row(w, "changes", "not committed")
		default:
			row(w, "changes", "perhaps; the pool cannot tell")
		}
		row(w, "used by", joinWords(s.Users))
		if s.Stashes > 0 {
			row(w, "stashes", s.Stashes)
		}
		if !s.Expires.IsZero() {
			row(w, "deleted", ago(s.Expires))
		}
		if s.Waiting != "" {
			row(w, "waits for", s.Waiting)
		}
	})
}
