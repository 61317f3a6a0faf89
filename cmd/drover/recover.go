package main

import (
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

func volumeRecover(t *talk) *cobra.Command {
	var in api.RecoverVolume
	c := &cobra.Command{
		Use:   "recover NAME NODE",
		Short: "Let a volume go on elsewhere when its owner is gone for good",
		Long: `Let a volume go on at another node, from the last snapshot that node holds of
it, when its owner is gone for good. What was written after that snapshot is
missing then. If the owner comes back, its copy is kept and never mounted.

Only a person can know that a host which does not answer has really stopped: if
it has not, its containers go on writing to a copy that nobody will look for.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeArgs(t, false, volumeNames(), nodeNames()),
		RunE: func(c *cobra.Command, args []string) error {
			in.Node = args[1]
			var r api.Recovery
			if err := t.do(c.Context(), http.MethodPost, volumePath(args[0], "/recover"), in, &r); err != nil {
				return err
			}
			return t.print(c.OutOrStdout(), r, func(w *tabwriter.Writer) {
				row(w, "volume", r.Volume)
				row(w, "from", r.From)
				row(w, "to", r.To)
				row(w, "snapshot", r.Snapshot.ID+" of "+r.Snapshot.Created.Local().Format("2006-01-02 15:04:05"))
				row(w, "lost", r.Loss)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&in.OwnerIsDead, "owner-is-dead", false, "the owner has stopped for certain: it is powered off, not merely unreachable")
	f.BoolVar(&in.AcceptLoss, "accept-loss", false, "what was written after that snapshot may be missing")
	f.BoolVar(&in.DryRun, "dry-run", false, "only show what would be lost")
	return c
}
