package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/drover-data/drover/node"
	"github.com/drover-data/drover/trace"
)

// places are the flags that say where a host's units keep things.
type places struct {
	dataDir, runDir, pluginDir, docker string
	verbose                            bool
}

func (p *places) flags(f *pflag.FlagSet) {
	f.StringVar(&p.dataDir, "data-dir", "/var/lib/drover", "where the node keeps its data")
	f.StringVar(&p.runDir, "run-dir", "/run/drover", "where sockets are made")
	f.StringVar(&p.pluginDir, "plugin-dir", "/run/docker/plugins", "where the container engine looks for plugins")
	f.StringVar(&p.docker, "docker", "unix:///run/docker.sock", "address of the container engine")
	f.BoolVar(&p.verbose, "verbose", false, "log every action")
}

func (p *places) config(log io.Writer) node.Config {
	level := slog.LevelInfo
	if p.verbose {
		level = slog.LevelDebug
	}
	return node.Config{
		DataDir: p.dataDir, RunDir: p.runDir, PluginDir: p.pluginDir, Docker: p.docker, Version: versionText(),
		Log: slog.New(trace.Logs(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))),
	}
}

// args gives the flags back, for starting units.
func (p *places) args() []string {
	return []string{"--data-dir", p.dataDir, "--run-dir", p.runDir, "--plugin-dir", p.pluginDir, "--docker", p.docker}
}

func agentCommand() *cobra.Command {
	var p places
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's agent: pools, volumes, moves, Docker's plugin, the API",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := p.config(os.Stderr)
			cfg.Ready = func() { notify(cfg.Log) }
			return node.Agent(c.Context(), cfg)
		},
	}
	p.flags(c.Flags())
	return c
}

func stateCommand() *cobra.Command {
	var p places
	c := &cobra.Command{
		Use:   "state",
		Short: "Run this node's member of the state store, as soon as it is given one",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := p.config(os.Stderr)
			notify(cfg.Log)
			return node.State(c.Context(), cfg)
		},
	}
	p.flags(c.Flags())
	return c
}

// notify tells systemd, where it started us, that the unit is ready.
func notify(log *slog.Logger) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("cannot tell systemd that the unit is ready", "error", fmt.Sprint(err))
	}
}
