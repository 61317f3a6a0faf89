package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/drover-data/drover/lab"
)

func labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Several hosts on this machine, for trying Drover out",
	}
	cmd.AddCommand(labUpCommand(), labExecCommand(), labListCommand(), labPowerCommand(true), labPowerCommand(false),
		labLinkCommand(true), labLinkCommand(false), labDownCommand(), labDemoCommand())
	return cmd
}

func labName(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", "lab", "which lab, when there are several")
}

// nameFlag is what commands for that lab need.
func nameFlag(name string) string {
	if name == "lab" {
		return ""
	}
	return "--name " + name + " "
}

func labUpCommand() *cobra.Command {
	var o lab.Options
	var c lab.ClusterOptions
	var bare bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a lab: hosts node1 to nodeN, each with its own Docker and agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("nodes") && o.Nodes < 1 {
				return wrongUse(cmd, fmt.Sprintf("%d hosts are asked for, 1 to 200 are possible", o.Nodes), usageOf(cmd))
			}
			o.Progress = cmd.ErrOrStderr()
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			if bare {
				fmt.Fprintf(cmd.OutOrStdout(), "lab %s is up; try: drover lab exec %snode1 docker info\n", l.Name(), nameFlag(l.Name()))
				return nil
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "making one cluster of them")
			if c.Binary, err = os.Executable(); err != nil {
				return err
			}
			if err := l.StartCluster(cmd.Context(), c); err != nil {
				return errors.Join(err, fmt.Errorf("the hosts are left as they are: drover lab down %s removes them", l.Name()))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lab %s is up; try: drover lab exec %snode1 drover status\n", l.Name(), nameFlag(l.Name()))
			return nil
		},
	}
	labName(cmd, &o.Name)
	cmd.Flags().BoolVar(&bare, "bare", false, "only hosts and Docker, no cluster")
	cmd.Flags().StringVar(&c.PoolSize, "pool-size", "", "size of each host's default pool, which grows")
	cmd.Flags().BoolVar(&c.Verbose, "verbose", false, "agents log every action")
	cmd.Flags().IntVar(&o.Nodes, "nodes", 3, "number of hosts, 1 to 200")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory for the hosts' data (default /var/tmp/drover-lab/NAME)")
	cmd.Flags().BoolVar(&o.NoDocker, "no-docker", false, "leave Docker out")
	cmd.Flags().BoolVar(&o.LiveRestore, "live-restore", false, "let containers survive a restart of Docker")
	return cmd
}

func labExecCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "exec NODE [COMMAND [ARG...]]",
		Short: "Run a command, or a shell, in a host",
		Long:  "Run a command in a host of the lab, with this terminal's input and output.\nWithout a command it is a shell. The exit code is the command's.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			h, err := l.Host(args[0])
			if err != nil {
				return err
			}
			c := lab.Cmd{Args: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
			if len(c.Args) > 0 && c.Args[0] == "--" {
				c.Args = c.Args[1:]
			}
			if len(c.Args) == 0 {
				c.Args = []string{"bash"}
			}
			if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
				err = h.RunTerminal(cmd.Context(), c)
			} else {
				err = h.Run(cmd.Context(), c)
			}
			return err
		},
	}
	labName(cmd, &name)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func labListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List labs and their hosts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "LAB\tHOST\tADDRESS\tPOWER\tSERVICES")
			for _, name := range names {
				l, err := lab.Open(name)
				if err != nil {
					fmt.Fprintf(w, "%s\t-\t-\t%v\t-\n", name, err)
					continue
				}
				for _, h := range l.Hosts() {
					power, services := "off", "-"
					if h.On() {
						power = "on"
						if list, err := h.Services(cmd.Context()); err == nil {
							services = serviceSummary(list)
						}
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, h.Name(), h.Address(), power, services)
				}
			}
			return w.Flush()
		},
	}
}

func serviceSummary(list []lab.ServiceStatus) string {
	var parts []string
	for _, s := range list {
		switch {
		case s.Ready:
			parts = append(parts, s.Name)
		case s.Running:
			parts = append(parts, s.Name+" (starting)")
		default:
			parts = append(parts, s.Name+" ("+s.Last+")")
		}
	}
	return strings.Join(parts, ", ")
}

func labPowerCommand(on bool) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "power-off NODE",
		Short: "Pull a host's plug",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			h, err := l.Host(args[0])
			if err != nil {
				return err
			}
			if on {
				return h.PowerOn(cmd.Context())
			}
			return h.PowerOff(cmd.Context())
		},
	}
	if on {
		cmd.Use, cmd.Short = "power-on NODE", "Start a host that is off"
	}
	labName(cmd, &name)
	return cmd
}

func labLinkCommand(cut bool) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "heal NODE NODE",
		Short: "Mend the link between two hosts",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			if cut {
				return l.Partition(cmd.Context(), args[0], args[1])
			}
			return l.Heal(cmd.Context(), args[0], args[1])
		},
	}
	if cut {
		cmd.Use, cmd.Short = "partition NODE NODE", "Cut the link between two hosts"
	}
	labName(cmd, &name)
	return cmd
}

func labDownCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down [NAME]",
		Short: "Remove a lab with everything in it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "lab"
			if len(args) > 0 {
				name = args[0]
			}
			return lab.Down(cmd.Context(), name)
		},
	}
	return cmd
}
