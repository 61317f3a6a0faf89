// Command drover keeps containers and their data together across hosts. Each
// command has a file of its own here; this one puts them together.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/lab"
)

// version is set by the linker in releases.
var version = ""

func main() {
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		// A command in a lab host has said itself what went wrong.
		if exit, ok := errors.AsType[*lab.ExitError](err); !ok || exit.Output != "" {
			fmt.Fprintln(os.Stderr, "drover:", err)
		}
		os.Exit(exitCode(err))
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "drover",
		Short:         "Volumes that follow their containers across hosts",
		Version:       versionText(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		initCommand(), joinCommand(), statusCommand(), volumeCommand(), poolCommand(), nodeCommand(), userCommand(), eventsCommand(),
		labCommand(), labClientCommand(), agentCommand(), stateCommand(), unitsCommand(),
	)
	return root
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
