package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

func volumeCommand(t *talk) *cobra.Command {
	c := &cobra.Command{Use: "volume", Aliases: []string{"vol"}, Short: "Volumes: create, move, resize, remove, restore"}
	t.flags(c)
	c.AddCommand(
		volumeCreate(t), volumeList(t), volumeInspect(t), volumeMove(t), volumeRemove(t),
		volumeRestore(t), volumeRecover(t), volumePurge(t), volumeResize(t), volumeLabel(t), volumeHook(t),
	)
	return c
}

// volumePath is a volume's place in the API.
func volumePath(ref string, more ...string) string {
	return "/v1/volumes/" + url.PathEscape(ref) + strings.Join(more, "")
}

func parseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, _ := strings.Cut(s, "=")
		out[k] = v
	}
	return out, api.CheckLabels(out)
}

func volumeCreate(t *talk) *cobra.Command {
	var in api.CreateVolume
	var size string
	var labels []string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a volume, empty or as a copy of another",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			in.Name = args[0]
			if in.Size, err = parseSize(size); err != nil {
				return err
			}
			if in.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPost, "/v1/volumes", in, &v); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v, func(w *tabwriter.Writer) { row(w, v.Name) })
		},
	}
	f := c.Flags()
	f.StringVar(&size, "size", "", "limit, as in 10G or 512MiB (default: none of its own)")
	f.StringVar(&in.Pool, "pool", "", "pool on the node (default: its default pool)")
	f.StringVar(&in.Node, "node", "", "node to make it on (default: this one)")
	f.StringVar(&in.From, "from", "", "volume to begin as a copy of")
	f.StringSliceVar(&labels, "label", nil, "label KEY=VALUE; may be given several times")
	return c
}

func volumeList(t *talk) *cobra.Command {
	var deleted, quiet bool
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list := []api.Volume{}
			if err := t.do(c.Context(), http.MethodGet, fmt.Sprintf("/v1/volumes?deleted=%t", deleted), nil, &list); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
				if !quiet {
					header := []any{"NAME", "BRANCH", "NODE", "POOL", "SIZE", "STATE", "CREATED"}
					if deleted {
						header = append(header, "ID")
					}
					row(w, header...)
				}
				for _, v := range list {
					volumeRows(w, v, quiet)
				}
			})
		},
	}
	c.Flags().BoolVar(&deleted, "deleted", false, "those that can still be restored instead")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	return c
}

func volumeRows(w *tabwriter.Writer, v api.Volume, quiet bool) {
	if quiet {
		row(w, v.Name)
		return
	}
	for _, branch := range slices.Sorted(maps.Keys(v.Heads)) {
		h := v.Heads[branch]
		shown := branch
		if branch == v.Branch && len(v.Heads) > 1 {
			shown += " (current)"
		}
		cells := []any{v.Name, shown, h.Node, h.Pool, limitText(v.Size), headState(v, h), ago(v.Created)}
		if v.Deleted != nil {
			cells = append(cells, v.ID)
		}
		row(w, cells...)
	}
}

func headState(v api.Volume, h api.Head) string {
	switch {
	case v.Deleted != nil:
		return "deleted, purged " + ago(v.Deleted.Purge)
	case h.Move != nil:
		return "moving to " + h.Move.To
	case !h.Ready:
		return "being made"
	}
	return "ready"
}

func volumeInspect(t *talk) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show a volume, who uses it, and what it waits for",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var d api.VolumeDetail
			if err := t.do(c.Context(), http.MethodGet, volumePath(args[0]), nil, &d); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), d, func(w *tabwriter.Writer) { inspectRows(w, d) })
		},
	}
}

func inspectRows(w *tabwriter.Writer, d api.VolumeDetail) {
	v := d.Volume
	row(w, "name", v.Name)
	row(w, "id", v.ID)
	row(w, "created", v.Created.Local().Format("2006-01-02 15:04:05"))
	for _, k := range slices.Sorted(maps.Keys(v.Labels)) {
		row(w, "label", k+"="+v.Labels[k])
	}
	if v.Hook != nil {
		row(w, "hook", hookText(*v.Hook))
	}
	for _, branch := range slices.Sorted(maps.Keys(v.Heads)) {
		h := v.Heads[branch]
		if branch == v.Branch && len(v.Heads) > 1 {
			row(w, "branch", branch+" (current)")
		} else {
			row(w, "branch", branch)
		}
		row(w, "  node", fmt.Sprintf("%s, pool %s, epoch %d", h.Node, h.Pool, h.Epoch))
		row(w, "  state", headState(v, h))
		if text, ok := d.Unknown[branch]; ok {
			row(w, "  now", text)
			continue
		}
		s := d.Status[branch]
		if s.Size == 0 {
			row(w, "  size", sizeText(s.Used)+", no limit")
		} else {
			row(w, "  size", fmt.Sprintf("%s of %s (%s)", sizeText(s.Used), limitText(s.Size), s.Sizes))
		}
		if s.Path != "" {
			row(w, "  mounted", s.Path)
		}
		for _, u := range s.Users {
			row(w, "  used by", u)
		}
		for _, p := range s.Nested {
			row(w, "  nested", p+" (a snapshot would leave it out)")
		}
		for node, a := range h.Away {
			row(w, "  left behind", fmt.Sprintf("%s on %s, stopped", strings.Join(a.Containers, ", "), node))
		}
		if s.Waiting != "" {
			row(w, "  waits for", s.Waiting)
		}
		if s.Alarm != "" {
			row(w, "  alarm", s.Alarm)
		}
		if s.Move != nil {
			row(w, "  move", progressLine(*s.Move))
		}
	}
}

func volumeRemove(t *talk) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME...",
		Short: "Delete volumes; they can be restored for a day",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			gone := []string{}
			var failed []error
			for _, ref := range args {
				if err := t.do(c.Context(), http.MethodDelete, volumePath(ref), nil, nil); err != nil {
					failed = append(failed, err) // one that cannot go keeps no other
					continue
				}
				gone = append(gone, ref)
			}
			err := t.print(c.OutOrStdout(), map[string][]string{"deleted": gone}, func(w *tabwriter.Writer) {
				for _, ref := range gone {
					fmt.Fprintf(w, "%s is deleted; drover volume restore %s brings it back within its grace\n", ref, ref)
				}
			})
			return errors.Join(append(failed, err)...)
		},
	}
}

func volumeRestore(t *talk) *cobra.Command {
	var in struct {
		Name string `json:"name,omitempty"`
	}
	c := &cobra.Command{
		Use:   "restore NAME|ID",
		Short: "Bring a deleted volume back",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/restore"), in, &v); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v, func(w *tabwriter.Writer) { fmt.Fprintf(w, "%s is restored\n", v.Name) })
		},
	}
	c.Flags().StringVar(&in.Name, "as", "", "under another name")
	return c
}

func volumePurge(t *talk) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "purge NAME|ID",
		Short: "Remove a deleted volume's data now, for good",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				return &api.Error{Kind: api.Invalid, Op: "purge volume", Object: args[0], Reason: "this cannot be undone", Next: "say --yes if that is meant"}
			}
			var v api.Volume
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/purge"), struct{}{}, &v); err != nil {
				return err
			}
			return t.say(c.OutOrStdout(), v, "%s is removed for good", args[0])
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "yes, remove the data")
	return c
}

func volumeResize(t *talk) *cobra.Command {
	return &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Change a volume's limit; 0 removes it",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			size := int64(0)
			if args[1] != "0" {
				var err error
				if size, err = parseSize(args[1]); err != nil {
					return err
				}
			}
			var v api.Volume
			err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/resize"), map[string]int64{"size": size}, &v)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v, func(w *tabwriter.Writer) {
				if v.Size == 0 {
					row(w, v.Name, "no limit")
				} else {
					row(w, v.Name, limitText(v.Size))
				}
			})
		},
	}
}

func volumeLabel(t *talk) *cobra.Command {
	return &cobra.Command{
		Use:   "label NAME KEY=VALUE|KEY-...",
		Short: "Set labels, or remove those with a minus behind",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			set, remove, err := splitLabels(args[1:])
			if err != nil {
				return err
			}
			var v api.Volume
			err = t.do(c.Context(), http.MethodPost, volumePath(args[0], "/labels"), map[string]any{"set": set, "remove": remove}, &v)
			if err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), v, func(w *tabwriter.Writer) {
				for _, k := range slices.Sorted(maps.Keys(v.Labels)) {
					row(w, k, v.Labels[k])
				}
			})
		},
	}
}

// splitLabels tells KEY=VALUE from KEY-.
func splitLabels(list []string) (set map[string]string, remove []string, err error) {
	set = map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		minus := strings.TrimSuffix(s, "-")
		switch {
		case ok:
			set[k] = v
		case minus == s || minus == "":
			return nil, nil, &api.Error{Kind: api.Invalid, Op: "set label", Object: fmt.Sprintf("%q", s), Reason: "it neither sets a label nor removes one", Next: "write KEY=VALUE to set it, KEY- to remove it"}
		default:
			remove = append(remove, minus)
		}
	}
	return set, remove, nil
}
