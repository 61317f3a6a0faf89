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

func volumeMove(t *talk) *cobra.Command {
	var in api.StartMove
	var bandwidth, hook string
	var refuse, leave, cancel, noWait bool
	c := &cobra.Command{
		Use:   "move NAME NODE",
		Short: "Move a volume, with the containers that use it, to another node",
		Long: `Move a volume to another node while its containers run: snapshots are sent
round after round, then the containers are stopped, the last difference is sent,
the owner changes, and the containers start on the other node.`,
		Example: `  drover volume move pg node2
  drover volume move pg@trial node2
  drover volume move pg node2 --dry-run
  drover volume move pg --cancel`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if err := contradictsMove(c); err != nil {
				return err
			}
			if volume, branch, found := strings.Cut(args[0], "@"); found && !c.Flags().Changed("branch") {
				args[0], in.Branch = volume, branch
			}
			if cancel {
				return cancelMove(t, c, args[0], in.Branch)
			}
			if len(args) < 2 {
				return &api.Error{Kind: api.Invalid, Op: "move volume", Object: args[0], Reason: "no node is given", Next: "drover volume move " + args[0] + " NODE; drover node ls lists them"}
			}
			in.To = args[1]
			if err := moveOptions(&in.Options, bandwidth, hook, refuse, leave); err != nil {
				return err
			}
			var plan api.MovePlan
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/move"), in, &plan); err != nil {
				return err
			}
			if in.DryRun {
				return t.print(c.OutOrStdout(), plan, func(w *tabwriter.Writer) { planRows(w, plan) })
			}
			if noWait {
				return t.print(c.OutOrStdout(), plan, func(w *tabwriter.Writer) { row(w, plan.Move) })
			}
			p, err := t.followMove(c.Context(), c.ErrOrStderr(), plan)
			if err != nil {
				return err
			}
			if in.Options.Users == api.UsersMove {
				if late := t.awaitUsers(c.Context(), args[0], in.Branch, plan.Users); len(late) > 0 {
					fmt.Fprintf(c.ErrOrStderr(), "not seen running on %s yet: %s; drover volume inspect %s shows why\n", p.To, strings.Join(late, ", "), args[0])
				}
			}
			return t.print(c.OutOrStdout(), p, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s is on %s: %s in %s, away for %d ms\n", p.Volume, p.To, sizeText(p.Sent), count(p.Round, "round"), p.Downtime.Milliseconds())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Pool, "pool", "", "pool on the node (default: its default pool)")
	f.StringVar(&in.Branch, "branch", "", "branch (default: the current one)")
	f.StringVar(&bandwidth, "bandwidth", "", "limit for the live rounds, in bytes a second, as in 50M")
	f.StringVar(&hook, "hook", "", "shell command to run in each container before it is stopped, such as a CHECKPOINT; it runs twice, so that the second time has little to do")
	f.DurationVar(&in.Options.HookTimeout, "hook-timeout", 0, "how long the hook may take (default 30s)")
	f.DurationVar(&in.Options.StopTimeout, "stop-timeout", 0, "how long a container may take to stop (default: its own setting)")
	f.BoolVar(&in.Options.AllowLoss, "allow-loss", false, "allow a pool that cannot keep everything; what it cannot is stored beside the data")
	f.BoolVar(&refuse, "refuse-users", false, "fail when a container uses the volume")
	f.BoolVar(&leave, "stop-users", false, "stop the containers and do not start them on the other node")
	f.BoolVar(&in.DryRun, "dry-run", false, "only show what would be done")
	f.BoolVar(&cancel, "cancel", false, "cancel the move that is on its way")
	f.BoolVar(&noWait, "no-wait", false, "return once the move has begun")
	return c
}

// contradictsMove refuses flags of which only one can be meant.
func contradictsMove(c *cobra.Command) error {
	for _, pair := range [][2]string{{"refuse-users", "stop-users"}, {"cancel", "dry-run"}, {"cancel", "no-wait"}, {"dry-run", "no-wait"}} {
		if err := exclusive(c, pair[:]...); err != nil {
			return err
		}
	}
	return nil
}

// moveOptions reads what is said about the way of a move.
func moveOptions(o *api.MoveOptions, bandwidth, hook string, refuse, leave bool) (err error) {
	if o.Bandwidth, err = parseSize(bandwidth); err != nil {
		return err
	}
	if b := o.Bandwidth; bandwidth != "" && b < 1<<10 {
		return &api.Error{Kind: api.Invalid, Op: "limit bandwidth", Object: bandwidth, Reason: fmt.Sprintf("these are %d bytes a second", b), Next: "give a unit, as in 50M"}
	}
	if hook != "" {
		o.Hook = []string{"sh", "-c", hook}
	}
	o.Users = api.UsersMove
	if refuse {
		o.Users = api.UsersRefuse
	}
	if leave {
		o.Users = api.UsersStop
	}
	return nil
}

// awaitUsers waits until the containers that moved along use the volume again,
// so that the next command of a script finds them running. It gives those that
// do not after a while: one that has ended at once never will.
func (t *talk) awaitUsers(ctx context.Context, volume, branch string, users []string) []string {
	const patience, step = 15 * time.Second, 100 * time.Millisecond
	late := users
	for waited := time.Duration(0); len(late) > 0 && waited < patience; waited += step {
		var d api.VolumeDetail
		if err := t.do(ctx, http.MethodGet, volumePath(volume), nil, &d); err == nil {
			at := branch
			if at == "" {
				at = d.Volume.Branch
			}
			s := d.Status[at]
			late = slices.DeleteFunc(slices.Clone(users), func(u string) bool { return slices.Contains(s.Users, "container "+u) })
			if len(late) == 0 || s.Alarm != "" {
				break
			}
		}
		select {
		case <-ctx.Done():
			return late
		case <-time.After(step):
		}
	}
	return late
}

// cancelMove ends a move that is on its way, and says so when there is none.
func cancelMove(t *talk, c *cobra.Command, volume, branch string) error {
	var d api.VolumeDetail
	if err := t.do(c.Context(), http.MethodGet, volumePath(volume), nil, &d); err != nil {
		return err
	}
	if branch == "" {
		branch = d.Volume.Branch
	}
	h, there := d.Volume.Heads[branch]
	switch {
	case !there:
		return &api.Error{Kind: api.NotFound, Op: "cancel move", Object: volume + "@" + branch, Reason: "the volume has no such branch", Next: "drover branch " + volume + " lists them"}
	case h.Move == nil:
		return &api.Error{Kind: api.Conflict, Op: "cancel move", Object: volume + "@" + branch, Reason: "it is not moving; it is on " + h.Node, Next: "drover volume inspect " + volume + " shows it"}
	}
	if err := t.do(c.Context(), http.MethodDelete, volumePath(volume, "/move?branch=", url.QueryEscape(branch)), nil, nil); err != nil {
		return err
	}
	return t.say(c.OutOrStdout(), map[string]string{"volume": d.Volume.Name, "branch": branch, "cancelled": h.Move.ID}, "%s stays on %s: its move to %s is cancelled", volume, h.Node, h.Move.To)
}

func planRows(w io.Writer, p api.MovePlan) {
	row(w, "from", p.From)
	row(w, "to", fmt.Sprintf("%s, pool %s", p.To, p.Pool))
	size := sizeText(p.Bytes)
	if p.Base != "" {
		size = "what changed since snapshot " + p.Base
	}
	row(w, "data", fmt.Sprintf("%s, as %s", size, p.Format))
	for _, u := range p.Users {
		row(w, "container", u)
	}
	for i, a := range p.Actions {
		row(w, i+1, a)
	}
}

func progressLine(p api.MoveProgress) string {
	s := fmt.Sprintf("%s, round %d, %s sent", p.Phase, p.Round, sizeText(p.Sent+p.RoundSent))
	if p.RoundSize > 0 {
		s += fmt.Sprintf(" (%d %%)", min(100, 100*p.RoundSent/p.RoundSize))
	}
	if p.Rate > 0 && p.Phase == api.MoveCopying {
		s += fmt.Sprintf(", %s/s", sizeText(int64(p.Rate)))
	}
	if p.Remaining > 0 {
		s += fmt.Sprintf(", about %s left", p.Remaining.Round(time.Second))
	}
	if p.Waiting != "" {
		s += ", waits for " + p.Waiting
	}
	return s
}

// followMove shows a move until it has ended: one line that changes on a
// terminal, a line for each phase elsewhere.
func (t *talk) followMove(ctx context.Context, w io.Writer, plan api.MovePlan) (api.MoveProgress, error) {
	terminal := false
	if f, ok := w.(*os.File); ok {
		terminal = term.IsTerminal(int(f.Fd()))
	}
	last := ""
	path := "/v1/moves/" + url.PathEscape(plan.Move) + "?node=" + url.QueryEscape(plan.From)
	for {
		var p api.MoveProgress
		err := t.do(ctx, http.MethodGet, path, nil, &p)
		switch {
		case ctx.Err() != nil:
			return p, &api.Error{Kind: api.Canceled, Op: "follow move", Object: plan.Move, Reason: "the move goes on", Next: "drover volume inspect shows it, drover volume move --cancel ends it"}
		case api.Is(err, api.Unavailable):
			p.Phase, p.Waiting = "unknown", err.Error()
		case err != nil && !api.Is(err, api.NotFound):
			return p, err
		}
		line := progressLine(p)
		switch {
		case terminal:
			fmt.Fprintf(w, "\r\x1b[K%s", line)
		case last != string(p.Phase)+p.Waiting && p.Phase != "":
			fmt.Fprintln(w, line)
		}
		last = string(p.Phase) + p.Waiting
		if p.Phase == api.MoveDone || p.Phase == api.MoveFailed {
			if terminal {
				fmt.Fprint(w, "\r\x1b[K")
			}
			if p.Err != nil {
				return p, p.Err
			}
			return p, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(150 * time.Millisecond):
		}
	}
}

// joinWords is a list for a table's cell.
func joinWords(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ", ")
}
