package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
)

func hubLog(t *hubTalk) *cobra.Command {
	var q client.Activity
	var follow bool
	c := &cobra.Command{
		Use: "log [REPOSITORY]", Short: "Show what happened: in a repository, or everywhere (for operators)",
		Long: `Show the activity log, the newest at the end: of a repository, for those who may write
it; with --of of a user, for them and for operators; everything, for operators.`,
		Example: "  drover hub log team/pg\n  drover hub log --of ann -n 20\n  drover hub log --follow -o json",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: t.names(hubRepositoryNames),
		RunE: t.asking(func(c *cobra.Command, h *client.Client, args []string) error {
			if len(args) > 0 {
				q.Repository = args[0]
			}
			if q.Limit < 1 || q.Limit > 1000 {
				return &api.Error{Kind: api.Invalid, Op: "show log", Reason: "between 1 and 1000 lines can be shown", Next: "give -n 100"}
			}
			list, err := h.Activity(c.Context(), q)
			if err != nil {
				return err
			}
			slices.Reverse(list)
			if !follow {
				return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) { printActivity(w, list) })
			}
			return t.follow(c, h, q, list)
		}),
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&q.User, "of", "", "what this user did")
	f.IntVarP(&q.Limit, "lines", "n", 50, "how many lines at most")
	f.Int64Var(&q.Before, "before", 0, "those before the line with this id")
	f.BoolVarP(&follow, "follow", "f", false, "go on with each line as it comes")
	complete(c, "of", t.names(hubUserNames))
	return c
}

// follow shows lines as they come: a JSON object each with -o json.
func (t *hubTalk) follow(c *cobra.Command, h *client.Client, q client.Activity, list []hub.Event) error {
	q.Before, q.Follow, q.Wait, q.Limit = 0, true, 55, 1000
	for {
		for _, e := range list {
			q.After = max(q.After, e.ID)
			switch t.output {
			case "json":
				text, err := json.Marshal(e)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), string(text))
			case "table":
				fmt.Fprintln(c.OutOrStdout(), activityLine(e))
			default:
				return &api.Error{Kind: api.Invalid, Op: "follow", Object: t.output, Reason: "lines are shown as table or json", Next: "give -o json"}
			}
		}
		var err error
		if list, err = h.Activity(c.Context(), q); err != nil {
			if c.Context().Err() != nil {
				return nil // the user has seen enough
			}
			return err
		}
	}
}

func printActivity(w io.Writer, list []hub.Event) {
	row(w, "ID", "TIME", "USER", "WHAT", "REPOSITORY", "DETAILS")
	for _, e := range list {
		row(w, e.ID, e.Time.Local().Format(time.DateTime), dash(e.User), e.Kind, dash(e.Repository), detailsText(e.Details))
	}
}

func activityLine(e hub.Event) string {
	return strings.Join([]string{e.Time.Local().Format(time.DateTime), dash(e.User), e.Kind, dash(e.Repository), detailsText(e.Details)}, "  ")
}

func detailsText(d map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(d)) {
		v := d[k]
		if strings.HasPrefix(v, "sha256:") {
			v = v[:min(len(v), 19)]
		}
		if v != "" {
			parts = append(parts, k+"="+v)
		}
	}
	return dash(strings.Join(parts, " "))
}

func hubStatus(t *hubTalk) *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show how the hub is: room, the last sweep, what is damaged (for operators)", Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			s, err := h.Status(c.Context())
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), s, func(w *tabwriter.Writer) { printHubStatus(w, s) })
		}),
	}
	t.flags(c)
	return c
}

func printHubStatus(w io.Writer, s hub.Status) {
	u := s.Usage
	row(w, "version:", s.Version)
	row(w, "stored:", fmt.Sprintf("%s in %d blobs", sizeText(u.Bytes), u.Blobs))
	row(w, "repositories:", u.Repositories)
	row(w, "users:", u.Users)
	row(w, "uploads on their way:", u.Uploads)
	if u.Unwritten > 0 {
		row(w, "names to be written to the storage:", u.Unwritten)
	}
	row(w, "webhooks:", fmt.Sprintf("%d on their way, %d given up", u.Waiting, u.GivenUp))
	row(w, "last sweep:", sweepText(s.Sweep))
	if len(s.Damaged) == 0 {
		row(w, "damaged:", "nothing that was read")
	}
	for _, d := range s.Damaged {
		row(w, "damaged:", string(d)+": push what has it again")
	}
}

func sweepText(s *hub.SweepReport) string {
	switch {
	case s == nil:
		return "none yet"
	case s.Ended == nil:
		return "began " + ago(s.Begun) + ", and is on its way or broke off"
	}
	return fmt.Sprintf("%s: %d commits by retention, %d blobs removed (%s), %d uploads ended", ago(*s.Ended), s.Commits, s.Removed, sizeText(s.Bytes), s.Uploads)
}

func hubSweep(t *hubTalk) *cobra.Command {
	var noWait bool
	c := &cobra.Command{
		Use: "sweep", Short: "Remove what nothing needs any more, now (for operators)",
		Long: `Begin a sweep: retention, then what no branch, tag or upload needs and is older than a day.
The hub does this by itself every hour. Pushes go on meanwhile.`,
		Args: cobra.NoArgs,
		RunE: t.asking(func(c *cobra.Command, h *client.Client, _ []string) error {
			before, err := h.Status(c.Context())
			if err != nil {
				return err
			}
			if err := h.Sweep(c.Context()); err != nil || noWait {
				return err
			}
			s, err := awaitSweep(c.Context(), h, before.Sweep)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), s, func(w *tabwriter.Writer) { fmt.Fprintln(w, "swept", sweepText(s)) })
		}),
	}
	t.flags(c)
	c.Flags().BoolVar(&noWait, "no-wait", false, "return once it has begun")
	return c
}

// awaitSweep asks until a sweep has ended that began after the one before.
func awaitSweep(ctx context.Context, h *client.Client, before *hub.SweepReport) (*hub.SweepReport, error) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		s, err := h.Status(ctx)
		if err != nil {
			return nil, err
		}
		// One that was on its way already, of another process, is as good.
		if s.Sweep != nil && s.Sweep.Ended != nil && (before == nil || before.Ended == nil || s.Sweep.Begun.After(before.Begun)) {
			return s.Sweep, nil
		}
		select {
		case <-ctx.Done():
			return nil, &api.Error{Kind: api.Canceled, Op: "await sweep", Reason: "it goes on", Next: "drover hub status shows it"}
		case <-again.C:
		}
	}
}
