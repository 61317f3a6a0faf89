package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/drover-data/drover/api"
)

// checkFlags say what is run on restored data.
type checkFlags struct {
	check    api.RestoreCheck
	command  string
	deadline string
}

func (k *checkFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&k.check.Image, "check-image", "", "restore into a scratch volume, and run --check-cmd in a container of this image")
	f.StringVar(&k.command, "check-cmd", "", "shell command that ends with 0 when the data is good; the container has no network")
	f.StringVar(&k.check.Path, "check-path", "", "where the container has the data (default: "+api.CheckPath+")")
	f.StringVar(&k.deadline, "check-deadline", "", "how long the command may take (default: 10m)")
}

// read gives the check, nil when none is wanted.
func (k *checkFlags) read() (*api.RestoreCheck, error) {
	c := k.check
	if k.command != "" {
		c.Command = []string{"sh", "-c", k.command}
	}
	var err error
	if c.Deadline, err = parsePeriod(k.deadline); err != nil {
		return nil, err
	}
	if c.Image == "" && k.command == "" && c.Path == "" && c.Deadline == 0 {
		return nil, nil
	}
	return &c, c.Check()
}

func verifyCommand(t *talk) *cobra.Command {
	var in api.VerifyRemote
	var check checkFlags
	c := &cobra.Command{
		Use: "verify VOLUME [REMOTE]", Short: "Read a remote's branch back and check every byte",
		Long: `Read everything of a remote's branch back and check it against its digests. With
--check-image and --check-cmd it is restored into a scratch volume too, and the
command has to find it good. The scratch volume goes in any case.`,
		Example: `  drover verify pg
  drover verify pg backup --check-image postgres:17 --check-path /var/lib/postgresql/data --check-cmd 'su postgres -c "pg_ctl -w start && psql -c \"select count(*) from orders\""'`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if len(args) > 1 {
				in.Remote = args[1]
			}
			if in.Check, err = check.read(); err != nil {
				return err
			}
			return t.run(c, volumePath(args[0], "/verify"), in, false)
		},
	}
	t.flags(c)
	c.Flags().StringVar(&in.Branch, "branch", "", "branch of the remote (default: the volume's current one)")
	check.flags(c.Flags())
	return c
}
