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

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
	"github.com/drover-data/drover/trace"
)

// version is set by the linker in releases.
var version = ""

func main() {
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	os.Exit(run())
}

// run runs the command line and gives the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx = trace.With(ctx, trace.New())
	c, err := rootCommand().ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if o, ok := errors.AsType[*outcome](err); ok {
		return o.code
	}
	// A command in a lab host has said itself what went wrong.
	if exit, ok := errors.AsType[*lab.ExitError](err); !ok || exit.Output != "" {
		printError(os.Stderr, c, err)
		if e, ok := errors.AsType[*api.Error](err); ok && e.Kind == api.Internal {
			fmt.Fprintln(os.Stderr, "drover: this is a defect; the nodes' logs have more under trace", trace.ID(ctx))
		}
	}
	return exitCode(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "drover",
		Short:         "Volumes that follow their containers across hosts",
		Version:       versionText(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var t talk
	root.AddCommand(
		initCommand(), joinCommand(), statusCommand(&t), volumeCommand(&t), poolCommand(&t), nodeCommand(&t), userCommand(&t), eventsCommand(&t), doctorCommand(&t),
		backupCommand(&t), recoverCommand(&t), hubCommand(),
		commitCommand(&t), logCommand(&t), showCommand(&t), branchCommand(&t), checkoutCommand(&t), resetCommand(&t), stashCommand(&t), undoCommand(&t), reflogCommand(&t), tagCommand(&t),
		diffCommand(&t), catCommand(&t), revertFileCommand(&t), mountCommand(&t), umountCommand(),
		remoteCommand(&t), lsRemoteCommand(&t), pushCommand(&t), fetchCommand(&t, false), fetchCommand(&t, true), cloneCommand(&t), verifyCommand(&t), jobCommand(&t), scheduleCommand(&t), pruneCommand(&t),
		openapiCommand(), labCommand(), labClientCommand(), agentCommand(), stateCommand(), unitsCommand(),
	)
	completions(root, &t)
	strict(root)
	arrange(root)
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
