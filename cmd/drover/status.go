package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
)

func statusCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use: "status [VOLUME[@BRANCH]]", Short: "The cluster at a glance, or a volume: what is committed, who uses it", Args: cobra.MaximumNArgs(1),
		Example: `  drover status
  drover status pg
  drover status pg@feature -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				return statusOf(t, c, args[0])
			}
			var s api.ClusterStatus
			if err := t.do(c.Context(), http.MethodGet, "/v1/status", nil, &s); err != nil {
				return err
			}
			err := t.print(c.OutOrStdout(), s, func(w *tabwriter.Writer) {
				row(w, "cluster", fmt.Sprintf("%s (%.12s), incarnation %d", s.Cluster.Name, s.Cluster.ID, s.Cluster.Incarnation))
				recoveryRows(w, s.Cluster)
				row(w, "answered by", fmt.Sprintf("%s, version %s", s.Node, s.Version))
				row(w, "state store", s.State)
				row(w, "volumes", fmt.Sprintf("%d, %d moving", s.Volumes, s.Moving))
				if err := w.Flush(); err != nil {
					return
				}
				nodeRows(w, s.Nodes)
			})
			if err == nil && s.State != "healthy" {
				err = &api.Error{Kind: api.Unavailable, Op: "ask the state store", Reason: "it does not answer; what runs keeps running", Next: "drover doctor looks for the cause"}
			}
			return err
		},
	}
	t.flags(c)
	return c
}

// recoveryRows say how far a recovery of the cluster's state is.
func recoveryRows(w *tabwriter.Writer, c api.Cluster) {
	r := c.Recovery
	if r == nil {
		return
	}
	text := "from the backup of " + r.Backup.Local().Format("2006-01-02 15:04:05")
	if r.Restoring {
		text += ", its records are being written"
	}
	row(w, "recovery", text+"; nothing new is mounted, moved or removed until it is over")
	for _, node := range slices.Sorted(maps.Keys(r.Awaiting)) {
		row(w, "waiting for", fmt.Sprintf("%s: %s (if it is gone for good, on a control node: drover recover --without %s)", node, r.Awaiting[node], node))
	}
}

func poolCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "pool", Short: "Pools: where nodes keep data"}
	t.flags(c)
	var in api.AddPool
	var size string
	add := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Short: "Give a node a pool", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in.Name = args[0]
			if in.Size, err = parseSize(size); err != nil {
				return err
			}
			var p api.Pool
			if err := t.do(c.Context(), http.MethodPost, "/v1/pools", in, &p); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), p, func(w *tabwriter.Writer) { poolRows(w, []api.Pool{p}) })
		},
	}
	f := add.Flags()
	f.StringVar(&in.Kind, "kind", "btrfs", "btrfs, zfs or dir")
	f.StringVar(&in.Source, "source", "", "directory on a mounted btrfs, ZFS data set, or directory (default: a btrfs on a file)")
	f.StringVar(&in.Node, "node", "", "node (default: this one)")
	f.StringVar(&size, "size", "", "size of the file that is made when no source is given; it grows")
	var node string
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Let go of a pool; its data stays where it is", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.do(c.Context(), http.MethodDelete, "/v1/pools/"+url.PathEscape(args[0])+"?node="+url.QueryEscape(node), nil, nil); err != nil {
				return err
			}
			return t.say(c.OutOrStdout(), map[string]string{"removed": args[0]}, "pool %s is no longer used; what lies in it stays there", args[0])
		},
	}
	rm.Flags().StringVar(&node, "node", "", "node (default: this one)")
	c.AddCommand(add, rm, poolGrow(t), &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the pools of all nodes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list := []api.Pool{}
			if err := t.do(c.Context(), http.MethodGet, "/v1/pools", nil, &list); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) { poolRows(w, list) })
		},
	})
	return c
}

func poolGrow(t *talk) *cobra.Command {
	var in api.GrowPool
	c := &cobra.Command{
		Use: "grow NAME SIZE", Short: "Make a pool on a file larger", Args: cobra.ExactArgs(2),
		Long: "Make a pool on a file larger, while it is in use. SIZE is what the file has then. Such a pool grows by itself when it is 70 % full, as long as its host keeps enough free; this command also takes what the host would keep. The space is reserved at once. A pool does not shrink.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			if in.Size, err = parseSize(args[1]); err != nil {
				return err
			}
			var p api.Pool
			if err := t.do(c.Context(), http.MethodPost, "/v1/pools/"+url.PathEscape(args[0])+"/grow", in, &p); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), p, func(w *tabwriter.Writer) { poolRows(w, []api.Pool{p}) })
		},
	}
	c.Flags().StringVar(&in.Node, "node", "", "node (default: this one)")
	return c
}

func poolRows(w *tabwriter.Writer, list []api.Pool) {
	row(w, "NODE", "NAME", "KIND", "STATE", "USED", "FREE", "GROWS BY", "SIZES", "SNAPSHOTS", "SOURCE")
	for _, p := range list {
		state := string(p.State)
		if p.Reason != "" {
			state += ": " + p.Reason
		}
		if p.Held != "" {
			state += "; cannot grow: " + p.Held
		}
		grows := "-"
		if p.Grows {
			grows = sizeText(p.Room)
		}
		row(w, p.Node, p.Name, p.Kind, state, sizeText(p.Used), sizeText(p.Free), grows, p.Sizes, p.Snapshot, p.Source)
	}
}

func eventsCommand(t *talk) *cobra.Command {
	var node, after string
	var follow bool
	c := &cobra.Command{
		Use: "events", Short: "What happened on a node, and with --follow what happens", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if follow {
				return t.followEvents(c, node, after)
			}
			list := []api.Event{}
			if err := t.do(c.Context(), http.MethodGet, "/v1/events?after="+url.QueryEscape(after)+"&node="+url.QueryEscape(node), nil, &list); err != nil {
				return err
			}
			for _, e := range list {
				if err := t.printEvent(c, e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	t.flags(c)
	c.Flags().StringVar(&node, "node", "", "node (default: this one)")
	c.Flags().StringVar(&after, "after", "", "only events after the one with this id")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on showing what happens")
	return c
}

// followEvents shows events as they happen. When the connection breaks it
// comes back, and goes on after the last one that it has shown.
func (t *talk) followEvents(c *cobra.Command, node, after string) error {
	ctx := c.Context()
	cl, err := t.client()
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		s, err := cl.Stream(ctx, "/v1/events/stream?node="+url.QueryEscape(node), after)
		if err == nil {
			after, err = t.showEvents(c, s, after)
		} else if first || !api.Is(err, api.Unavailable) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !api.Is(err, api.Unavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (t *talk) showEvents(c *cobra.Command, s *client.Stream, after string) (string, error) {
	defer s.Close()
	for {
		m, err := s.Next()
		if err != nil {
			return after, err
		}
		if m.Comment {
			continue
		}
		var e api.Event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			return after, &api.Error{Kind: api.Damaged, Op: "read events", Object: m.ID, Err: err}
		}
		after = e.ID
		if err := t.printEvent(c, e); err != nil {
			return after, err
		}
	}
}

func (t *talk) printEvent(c *cobra.Command, e api.Event) error {
	if t.output == "table" {
		_, err := fmt.Fprintf(c.OutOrStdout(), "%s  %-7s  %-8s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05"), e.Level, e.Node, e.Message)
		return err
	}
	return json.NewEncoder(c.OutOrStdout()).Encode(e)
}
