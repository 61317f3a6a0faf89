package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/node"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/recovery"
)

// recoverOptions are what recover is told besides where the node keeps things.
type recoverOptions struct {
	membership
	key             keyFlags
	incarnation     uint64
	dryRun, abandon bool
	without, follow string
}

func recoverCommand(t *talk) *cobra.Command {
	var o recoverOptions
	c := &cobra.Command{
		Use:   "recover FILE",
		Short: "Bring the cluster's state back from a backup",
		Long: `Bring the cluster's state back from a file that drover backup wrote, when the
state store is lost. This host, a node of that cluster or a fresh one, becomes
the first node of a new incarnation of the cluster. The other nodes find it by
themselves, or with drover recover --follow ADDRESS on each.

No stale owner comes back: every node reports what its pools remember, and for
each volume the latest owner holds, whatever the backup says. Volumes that were
made after the backup come back. Until all nodes have reported nothing new is
mounted, moved or removed; what runs keeps running. drover status shows who is
waited for; a node that is gone for good is left out with --without NODE.`,
		Example: `  drover recover --dry-run /mnt/offsite/drover.backup --passphrase-file /root/backup.pass
  drover recover /mnt/offsite/drover.backup --passphrase-file /root/backup.pass
  drover recover --without node3`,
		Args: func(_ *cobra.Command, args []string) error {
			if want := o.without == "" && o.follow == ""; want != (len(args) == 1) {
				return &api.Error{Kind: api.Invalid, Op: "recover cluster", Reason: "one of a FILE, --without and --follow is needed", Next: "see drover recover --help"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case o.without != "":
				return t.do(c.Context(), http.MethodPost, "/v1/recovery/without/"+url.PathEscape(o.without), nil, nil)
			case o.follow != "":
				return followIncarnation(c.Context(), o)
			}
			return o.run(c, t, args[0])
		},
	}
	f := c.Flags()
	f.StringVar(&t.socket, "socket", envOr("DROVER_SOCKET", "/run/drover/drover.sock"), "the agent's socket, for --without")
	f.StringVarP(&t.output, "output", "o", "table", "table, json or yaml")
	o.membership.flags(c)
	o.key.flags(f)
	f.Uint64Var(&o.incarnation, "incarnation", 0, "number of the new incarnation, when the nodes have seen later ones than can be found out")
	f.BoolVar(&o.dryRun, "dry-run", false, "only show what would come back, and as what, from what the nodes' agents say now")
	f.BoolVar(&o.abandon, "abandon-living", false, "recover although a node says that its state store answers: that one is given up")
	f.StringVar(&o.without, "without", "", "go on with the recovery without this node; what it holds stays unknown until it comes back")
	f.StringVar(&o.follow, "follow", "", "on another node: go over to the incarnation that the node at this address has seen")
	return c
}

func (o *recoverOptions) run(c *cobra.Command, t *talk, file string) error {
	ctx := c.Context()
	b, err := readBackup(file)
	if err != nil {
		return err
	}
	key, err := o.key.read()
	if err != nil {
		return err
	}
	secrets, err := b.Open(key)
	if err != nil {
		return err
	}
	ca, err := recovery.CA(secrets)
	if err != nil {
		return err
	}
	contents, err := recovery.Read(b)
	if err != nil {
		return err
	}
	cfg, err := o.node(contents)
	if err != nil {
		return err
	}
	seen, err := o.ask(ctx, ca, cfg, contents)
	if err != nil {
		return err
	}
	if o.dryRun {
		return o.show(c, t, contents, seen)
	}
	if seen.living != "" && !o.abandon {
		return &api.Error{Kind: api.InUse, Op: "recover cluster", Object: contents.Cluster.Name, Reason: "node " + seen.living + " says that the state store answers: there is nothing to recover, and two state stores would give out the same volumes", Next: "if that store must be given up, stop its state units (drover-state) and say --abandon-living"}
	}
	number := max(o.incarnation, seen.incarnation+1, contents.Cluster.Incarnation+1)
	return o.revive(ctx, b, file, ca, contents, cfg, number)
}

// node is this host's configuration: the one that it has, or a fresh one.
func (o *recoverOptions) node(contents recovery.Contents) (cluster.Config, error) {
	cfg, err := cluster.LoadConfig(o.dataDir)
	switch {
	case err == nil && cfg.Cluster != contents.Cluster.ID:
		return cfg, &api.Error{Kind: api.Exists, Op: "recover cluster", Object: cfg.Name, Reason: "this host belongs to cluster " + cfg.Cluster + ", the backup is of cluster " + contents.Cluster.ID, Next: "recover on a host of that cluster, or on a fresh one"}
	case err == nil || !api.Is(err, api.NotFound):
		return cfg, err
	}
	if cfg, err = o.config(); err != nil {
		return cfg, err
	}
	if n, known := contents.Nodes[cfg.Name]; known {
		fmt.Fprintf(os.Stderr, "drover: this host takes the place of node %s (%s); what that host's pools held is missing here\n", cfg.Name, n.Address)
	}
	return cfg.WithDefaults(), nil
}

// asked is what the nodes' agents say before anything is done.
type asked struct {
	incarnation uint64
	living      string // a node whose state store answers
	copies      []ledger.Copy
	reported    map[string]bool
	silent      map[string]string
}

// ask asks every node of the backup, with a certificate made for the purpose.
func (o *recoverOptions) ask(ctx context.Context, ca []byte, cfg cluster.Config, contents recovery.Contents) (asked, error) {
	out := asked{reported: map[string]bool{}, silent: map[string]string{}}
	keeper, err := temporary(ca, cfg)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, n := range contents.Nodes {
		wg.Go(func() {
			h, i, lives, err := askNode(ctx, keeper, n)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.silent[name] = err.Error()
				return
			}
			out.incarnation = max(out.incarnation, i.Number)
			if lives {
				out.living = name
			}
			for _, c := range h.Copies {
				c.Node = name
				out.copies = append(out.copies, c)
			}
			out.reported[name] = len(h.Gone) == 0
		})
	}
	wg.Wait()
	if here, err := cfg.LoadIncarnation(); err == nil {
		out.incarnation = max(out.incarnation, here.Number)
	}
	return out, nil
}

// temporary is an identity for asking: this node's, for an hour.
func temporary(secret []byte, cfg cluster.Config) (*auth.Keeper, error) {
	ca, err := auth.ParseCA(secret)
	if err != nil {
		return nil, err
	}
	r, err := auth.NewRequest(cfg.Name)
	if err != nil {
		return nil, err
	}
	chain, err := ca.Sign(r.CSR, auth.Subject{Kind: auth.NodeKind, Name: cfg.Name, Control: true, Addresses: []string{cfg.Address}}, time.Now(), time.Hour)
	if err != nil {
		return nil, err
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		return nil, err
	}
	return auth.OpenBundle(bundle, ca.PEM())
}

func askNode(ctx context.Context, k *auth.Keeper, n api.Node) (h peer.Holdings, i peer.Incarnation, lives bool, err error) {
	transport := &http.Transport{TLSClientConfig: k.ClientTLS(nil, auth.OnlyNodes, "http/1.1"), TLSHandshakeTimeout: 3 * time.Second, DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext}
	defer transport.CloseIdleConnections()
	cl := client.New("https://"+n.Address, transport, nil)
	if err = cl.Do(ctx, http.MethodGet, "/v1/peer/incarnation", nil, &i); err != nil {
		return h, i, false, err
	}
	if err = cl.Do(ctx, http.MethodGet, "/v1/peer/holdings", nil, &h); err != nil {
		return h, i, false, err
	}
	var s api.ClusterStatus
	return h, i, cl.Do(ctx, http.MethodGet, "/v1/status", nil, &s) == nil && s.State == "healthy", nil
}

// foreseen is what a dry run shows.
type foreseen struct {
	Incarnation uint64            `json:"incarnation"`
	Findings    []ledger.Finding  `json:"findings"`
	Silent      map[string]string `json:"silent,omitempty"`
	Living      string            `json:"living,omitempty"`
}

func (o *recoverOptions) show(c *cobra.Command, t *talk, contents recovery.Contents, seen asked) error {
	_, found := recovery.Round{Known: contents.Volumes, Copies: seen.copies, Reported: seen.reported, Now: time.Now().UTC(), Grace: 24 * time.Hour}.Decide()
	out := foreseen{Incarnation: max(o.incarnation, seen.incarnation+1, contents.Cluster.Incarnation+1), Findings: found, Silent: seen.silent, Living: seen.living}
	return t.print(c.OutOrStdout(), out, func(w *tabwriter.Writer) {
		row(w, "incarnation", fmt.Sprint(out.Incarnation))
		if out.Living != "" {
			row(w, "but", "node "+out.Living+" says that the state store answers: nothing is to be recovered")
		}
		for _, n := range slices.Sorted(maps.Keys(out.Silent)) {
			row(w, "silent", n+": "+out.Silent[n]+"; what it holds is unknown")
		}
		if w.Flush() != nil {
			return
		}
		row(w, "VOLUME", "BRANCH", "NODE", "EPOCH", "FINDING", "WHY")
		for _, f := range found {
			row(w, f.Volume, f.Branch, f.Node, fmt.Sprint(f.Epoch), string(f.Kind), f.Text)
		}
	})
}

func (o *recoverOptions) revive(ctx context.Context, b backup.Backup, file string, ca []byte, contents recovery.Contents, cfg cluster.Config, number uint64) error {
	awaiting := map[string]string{cfg.Name: "the report of its pools"}
	for name := range contents.Nodes {
		awaiting[name] = "the report of its pools"
	}
	if err := clearMember(ctx, cfg); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.IdentityDir(), 0o700); err != nil {
		return err
	}
	if err := renameio.WriteFile(recovery.File(cfg), text, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return err
	}
	cfg, err = cluster.Revive(cluster.ReviveConfig{
		Node: cfg, Cluster: contents.Cluster, Incarnation: number, CA: ca, Taken: b.Header.Taken, Awaiting: awaiting, Now: time.Now(),
	})
	if err != nil {
		return err
	}
	fmt.Printf("cluster %s (%.12s) begins incarnation %d on node %s at %s, from the backup of %s\n", contents.Cluster.Name, cfg.Cluster, number, cfg.Name, cfg.APIAddress(), b.Header.Taken.Local().Format("2006-01-02 15:04:05"))
	fmt.Printf("waiting for %d nodes to report what their pools hold; drover status shows which\n", len(awaiting))
	fmt.Printf("a node that does not come by itself: drover recover --follow %s, there\n", cfg.APIAddress())
	o.noPool = true
	if o.noStart {
		return nil
	}
	if conn, err := net.DialTimeout("unix", o.places.config(os.Stderr).Socket(), time.Second); err == nil {
		return conn.Close() // the units run, and go over by themselves
	}
	return o.start(ctx, cfg)
}

// clearMember sets aside what this host's member of the lost state store has.
func clearMember(ctx context.Context, cfg cluster.Config) error {
	seen, err := cfg.LoadIncarnation()
	if err != nil {
		return err
	}
	if err := node.Retire(cfg, fmt.Sprintf("incarnation-%d", seen.Number)); err != nil || !node.Retired(cfg) {
		return err
	}
	// The state unit does it when it runs; its port tells.
	state, err := url.Parse(cfg.StateURL())
	if err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for node.Retired(cfg) {
		conn, err := net.DialTimeout("tcp", state.Host, time.Second)
		if err != nil {
			if node.Retired(cfg) {
				return node.ClearRetired(cfg, time.Now())
			}
			return nil
		}
		_ = conn.Close()
		select {
		case <-deadline.Done():
			return &api.Error{Kind: api.InUse, Op: "recover cluster", Object: cfg.StateDir(), Reason: "this host's member of the lost state store still runs", Next: "stop it (systemctl stop drover-state) and say it again"}
		case <-ticker.C:
		}
	}
	return nil
}

// followIncarnation makes this node go over to the incarnation that another
// one has seen; the agent, if it runs, notices.
func followIncarnation(ctx context.Context, o recoverOptions) error {
	address, err := hostAddress(o.follow)
	if err != nil {
		return err
	}
	cfg, err := cluster.LoadConfig(o.dataDir)
	if err != nil {
		return err
	}
	keeper, err := auth.Open(cfg.IdentityDir())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	a, err := node.AskIncarnation(ctx, keeper, nil, address)
	if err != nil {
		return err
	}
	seen, err := cfg.LoadIncarnation()
	switch {
	case err != nil:
		return err
	case a.Cluster != cfg.Cluster:
		return &api.Error{Kind: api.Invalid, Op: "follow the cluster", Object: address, Reason: "that node belongs to cluster " + a.Cluster + ", this one to " + cfg.Cluster}
	case a.Number <= seen.Number:
		return &api.Error{Kind: api.Exists, Op: "follow the cluster", Object: address, Reason: fmt.Sprintf("that node has seen incarnation %d, this one %d: there is nothing to follow", a.Number, seen.Number)}
	}
	if err := node.GoOver(cfg, seen, a.Incarnation); err != nil {
		return err
	}
	fmt.Printf("node %s goes over to incarnation %d; drover status shows how far it is\n", cfg.Name, a.Number)
	return nil
}
