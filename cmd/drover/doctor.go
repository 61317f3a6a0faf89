package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/container/docker"
	"github.com/drover-data/drover/doctor"
)

// outcome ends a command with a code of its own and without a message.
type outcome struct{ code int }

func (o *outcome) Error() string { return fmt.Sprintf("exit code %d", o.code) }

// Codes of doctor, apart from those of errors.
const (
	exitWarning = 10
	exitError   = 11
)

func doctorCommand(t *talk) *cobra.Command {
	var p places
	var fix bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with this host and its cluster, and say how to mend it",
		Long: `Look for what is wrong with this host and its cluster, and say how to mend it.
Run it as root: certificates and Docker's directories are not for everybody.

The exit code is 0 when all is well, 10 with warnings and 11 with errors.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if t.host != "" {
				return &api.Error{Kind: api.Invalid, Op: "examine", Object: t.host, Reason: "doctor looks at the host it runs on", Next: "run it there"}
			}
			ports, err := doctorPorts(t, p)
			if err != nil {
				return err
			}
			facts := doctor.Gather(c.Context(), ports)
			if fix {
				did, err := doctor.Fix(c.Context(), ports, facts)
				for _, line := range did {
					fmt.Fprintln(c.ErrOrStderr(), line)
				}
				if err != nil {
					return err
				}
				facts = doctor.Gather(c.Context(), ports)
			}
			list := doctor.Examine(facts)
			if err := t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) { checkRows(w, list) }); err != nil {
				return err
			}
			switch doctor.Worst(list) {
			case doctor.Warning:
				return &outcome{exitWarning}
			case doctor.Error:
				return &outcome{exitError}
			}
			return nil
		},
	}
	t.flags(c)
	f := c.Flags()
	f.BoolVar(&fix, "fix", false, "remove empty, unused volumes that Docker made in place of the cluster's")
	f.StringVar(&p.dataDir, "data-dir", defaultDataDir, "where the node keeps its data")
	f.StringVar(&p.pluginDir, "plugin-dir", "/run/docker/plugins", "where the container engine looks for plugins")
	f.StringVar(&p.docker, "docker", "unix:///run/docker.sock", "address of the container engine")
	return c
}

const defaultDataDir = "/var/lib/drover"

func checkRows(w *tabwriter.Writer, list []api.Check) {
	for _, c := range list {
		row(w, c.Level, c.Name, c.Detail)
		if c.Mend != "" {
			row(w, "", "", "-> "+c.Mend)
		}
	}
}

func doctorPorts(t *talk, p places) (doctor.Ports, error) {
	engine, err := docker.New(docker.Options{Host: p.docker})
	if err != nil {
		return doctor.Ports{}, err
	}
	self := doctor.Self{DataDir: p.dataDir, Ports: []int{cluster.APIPort, cluster.StatePort, cluster.PeerPort}}
	if cfg, err := cluster.LoadConfig(p.dataDir); err == nil {
		self.Node, self.External = cfg.Name, cfg.External != nil
		if keeper, err := auth.Open(cfg.IdentityDir()); err == nil {
			cert := keeper.Certificate()
			self.Cert = doctor.Certificate{NotBefore: cert.NotBefore, Expiry: cert.NotAfter}
		} else {
			self.Cert.Err = err
		}
	} else if errors.Is(err, fs.ErrPermission) {
		// What cannot be read would be taken for what is not there.
		return doctor.Ports{}, notRoot(err)
	} else if !api.Is(err, api.NotFound) {
		self.Err = err
	}
	return doctor.Ports{
		Self: self, Host: doctor.Linux{PluginSocket: filepath.Join(p.pluginDir, "drover.sock")},
		Engine: doctorEngine{engine}, Cluster: doctorCluster{t}, Now: time.Now,
	}, nil
}

func notRoot(err error) error {
	return &api.Error{Kind: api.Denied, Op: "examine this host", Reason: "only root can see all that is to be looked at", Err: err, Next: "sudo drover doctor"}
}

// doctorEngine gives Docker to the doctor.
type doctorEngine struct{ *docker.Engine }

func (e doctorEngine) Local(ctx context.Context) ([]doctor.Local, error) {
	list, err := e.LocalVolumes(ctx)
	out := make([]doctor.Local, 0, len(list))
	for _, v := range list {
		out = append(out, doctor.Local(v))
	}
	return out, err
}

// doctorCluster gives the agent to the doctor.
type doctorCluster struct{ t *talk }

func (d doctorCluster) Status(ctx context.Context) (s api.ClusterStatus, err error) {
	err = d.t.do(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

func (d doctorCluster) Pools(ctx context.Context) (list []api.Pool, err error) {
	err = d.t.do(ctx, http.MethodGet, "/v1/pools", nil, &list)
	return list, err
}

func (d doctorCluster) Volumes(ctx context.Context) ([]api.Volume, error) {
	var live, deleted []api.Volume
	if err := d.t.do(ctx, http.MethodGet, "/v1/volumes", nil, &live); err != nil {
		return nil, err
	}
	err := d.t.do(ctx, http.MethodGet, "/v1/volumes?deleted=true", nil, &deleted)
	return append(live, deleted...), err
}

func (d doctorCluster) Probe(ctx context.Context, node string) (p api.NodeProbe, err error) {
	err = d.t.do(ctx, http.MethodGet, "/v1/nodes/"+url.PathEscape(node)+"/probe", nil, &p)
	return p, err
}
