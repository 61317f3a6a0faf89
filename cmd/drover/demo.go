package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/demo"
)

func labDemoCommand() *cobra.Command {
	o := demo.Options{Name: "demo"}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Move a database with a writing client through a lab, and count what was lost",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			o.Out = c.OutOrStdout()
			r, err := demo.Run(c.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintln(o.Out, r)
			if r.Lost != 0 {
				return &api.Error{Kind: api.Damaged, Op: "demo", Reason: fmt.Sprintf("%d acknowledged writes are missing", r.Lost)}
			}
			return nil
		},
	}
	c.Flags().IntVar(&o.Scale, "scale", 50, "of pgbench; 50 is 750 MB")
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab up")
	return c
}

// labClientCommand is the writing client inside a lab host.
func labClientCommand() *cobra.Command {
	return &cobra.Command{
		Use: demo.ClientCommand + " ADDRESS...", Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return demo.Client(c.Context(), args, c.OutOrStdout()) },
	}
}
