package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

// remotePath is a volume's remote in the API; without a name it is origin, or
// the only one there is.
func remotePath(volume string, name []string, rest string) string {
	remote := "-"
	if len(name) > 0 {
		remote = name[0]
	}
	return volumePath(volume, "/remotes/", url.PathEscape(remote), rest)
}

func lsRemoteCommand(t *talk) *cobra.Command {
	var commits bool
	c := &cobra.Command{
		Use: "ls-remote VOLUME [REMOTE]", Short: "List what a remote has: branches, tags, keys, damage",
		Long: `List the branches and tags that a remote has, its keys, and what cannot be read
there. With --commits every commit is looked at. It works without the keys, but
then shows no messages.`,
		Example: "  drover ls-remote pg\n  drover ls-remote pg backup --commits",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path := remotePath(args[0], args[1:], "/refs")
			if commits {
				path += "?commits=true"
			}
			var l api.RemoteListing
			if err := t.do(c.Context(), http.MethodGet, path, nil, &l); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), l, func(w *tabwriter.Writer) { listingRows(w, l) })
		},
	}
	t.flags(c)
	c.Flags().BoolVar(&commits, "commits", false, "list every commit, too")
	return c
}

func listingRows(w *tabwriter.Writer, l api.RemoteListing) {
	here := map[string]bool{}
	for _, k := range l.Keys {
		here[k.ID] = k.Here
	}
	sealed := func(id string) string {
		switch {
		case id == "":
			return "no"
		case here[id]:
			return id
		}
		return id + " (not here)"
	}
	row(w, "KIND", "NAME", "COMMIT", "SIZE", "STORED", "MADE", "SEALED", "MESSAGE")
	for _, list := range [][]api.RemoteRef{l.Refs, l.Commits} {
		for _, r := range list {
			row(w, r.Kind, r.Name, shortID(r.Commit), sizeText(r.Bytes), sizeText(r.Stored), ago(r.Time), sealed(r.Sealed), firstLine(r.Message))
		}
	}
	for _, k := range l.Keys {
		state := k.Use
		if !k.Here {
			state += ", not here"
		}
		if k.Wrapped != "" {
			state += ", opened by " + k.Wrapped
		}
		row(w, "key", k.ID, "", "", "", "", "", state)
	}
	for _, d := range l.Damaged {
		row(w, "damaged", d.Name, "", "", "", "", "", d.Reason)
	}
}

// prunedText says what a retention at a remote did.
func prunedText(j api.Job) string {
	p := j.Result.Pruned
	dropped, removed := "dropped", "removed"
	if j.Result.DryRun {
		dropped, removed = "would drop", "would remove"
	}
	text := fmt.Sprintf("%s of %s: %s %d commits, %d stay", j.Remote, j.Volume, dropped, len(p.Dropped), p.Kept)
	if p.Collects {
		text += "; the remote frees the room by its own means"
	} else {
		text += fmt.Sprintf("; %s %d objects, %s", removed, p.Blobs, sizeText(p.Bytes))
	}
	if p.Waiting > 0 {
		text += fmt.Sprintf("; %s go when they are a day old", sizeText(p.Waiting))
	}
	for _, id := range p.Dropped {
		text += "\n" + shortID(id)
	}
	for _, w := range p.Warnings {
		text += "\n" + w
	}
	return text
}
