package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/node"
)

// membership are the flags that init and join share.
type membership struct {
	places
	name, advertise              string
	apiPort, statePort, peerPort int
	detach, noPool, noStart      bool
	endpoints                    []string
	etcdCA, etcdCert, etcdKey    string
	etcdPrefix                   string
	poolSize                     string
}

func (m *membership) flags(c *cobra.Command) {
	f := c.Flags()
	m.places.flags(f)
	f.StringVar(&m.name, "name", "", "name of this node (default: the host's name)")
	f.StringVar(&m.advertise, "advertise", "", "address under which other nodes reach this one (default: that of the default route)")
	f.IntVar(&m.apiPort, "api-port", cluster.APIPort, "port of the agent")
	f.IntVar(&m.statePort, "state-port", cluster.StatePort, "port of the state store for clients")
	f.IntVar(&m.peerPort, "peer-port", cluster.PeerPort, "port of the state store for its members")
	f.BoolVar(&m.detach, "detach", false, "without systemd: run the units in the background")
	f.BoolVar(&m.noStart, "no-start", false, "only set the host up; something else starts the units")
	f.BoolVar(&m.noPool, "no-pool", false, "make no default pool")
	f.StringVar(&m.poolSize, "pool-size", "", "size of the default pool's file, which grows (default: a tenth of what is free)")
	f.StringSliceVar(&m.endpoints, "etcd-endpoints", nil, "https URLs of an existing etcd cluster to keep the state in")
	f.StringVar(&m.etcdCA, "etcd-ca", "", "file with the CA of that etcd, PEM")
	f.StringVar(&m.etcdCert, "etcd-cert", "", "file with the client certificate for it, PEM")
	f.StringVar(&m.etcdKey, "etcd-key", "", "file with the key of that certificate, PEM")
	f.StringVar(&m.etcdPrefix, "etcd-prefix", "", "prefix of all keys there, ending in / (default: drover/ and the cluster's name; a joining node is told)")
}

func (m *membership) config() (cluster.Config, error) {
	if m.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return cluster.Config{}, err
		}
		m.name = strings.ToLower(host)
	}
	if m.advertise == "" {
		ip, err := ownAddress()
		if err != nil {
			return cluster.Config{}, err
		}
		m.advertise = ip
	}
	c := cluster.Config{
		Name: m.name, Address: m.advertise, DataDir: m.dataDir, Candidate: true,
		Ports: cluster.Ports{API: m.apiPort, State: m.statePort, Peer: m.peerPort},
	}
	if len(m.endpoints) > 0 {
		c.Endpoints, c.Candidate = m.endpoints, false
		c.External = &cluster.External{CA: m.etcdCA, Cert: m.etcdCert, Key: m.etcdKey, Prefix: m.etcdPrefix}
	}
	return c, nil
}

// ownAddress is the address that packets to elsewhere would come from; no
// packet is sent to find it.
func ownAddress() (string, error) {
	conn, err := net.Dial("udp", "198.51.100.1:9") // TEST-NET-2, RFC 5737
	if err == nil {
		defer conn.Close()
		return conn.LocalAddr().(*net.UDPAddr).IP.String(), nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String(), nil
		}
	}
	return "", &api.Error{Kind: api.Invalid, Op: "find this host's address", Reason: "it has none that others could reach", Next: "give one with --advertise"}
}

func initCommand() *cobra.Command {
	var m membership
	var clusterName string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster of this one node and start its units",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := m.config()
			if err != nil {
				return err
			}
			if cfg.External != nil {
				if cfg.External.Prefix == "" {
					cfg.External.Prefix = cluster.DefaultPrefix(clusterName)
				}
				if err := checkExternal(c.Context(), cfg, true); err != nil {
					return err
				}
			}
			cfg, err = cluster.Init(c.Context(), cluster.InitConfig{Node: cfg, ClusterName: clusterName, Now: time.Now()})
			if err != nil {
				return err
			}
			fmt.Printf("cluster %s (%s): this host is node %s at %s\n", clusterName, cfg.Cluster[:12], cfg.Name, cfg.APIAddress())
			return m.start(c.Context(), cfg)
		},
	}
	m.flags(c)
	c.Flags().StringVar(&clusterName, "cluster-name", "drover", "name of the cluster, for people")
	return c
}

// checkExternal looks at an external etcd before anything relies on it.
func checkExternal(ctx context.Context, cfg cluster.Config, control bool) error {
	if err := cfg.WithDefaults().Validate(); err != nil {
		return err
	}
	silent, err := node.CheckExternal(ctx, cfg, control)
	for _, e := range silent {
		if err == nil {
			fmt.Fprintln(os.Stderr, "drover: endpoint", e, "of the external etcd does not answer; another one does")
		}
	}
	return err
}

// start brings up the units, and the default pool once the agent answers.
func (m *membership) start(ctx context.Context, cfg cluster.Config) error {
	if m.noStart {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	socket := m.places.config(os.Stderr).Socket()
	foreground := !m.detach
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		foreground = false
	}
	if foreground {
		go func() { over <- startUnits(ctx, m.places, false, cfg.External != nil) }()
	} else if err := startUnits(ctx, m.places, m.detach, cfg.External != nil); err != nil {
		return err
	}
	if err := awaitAgent(ctx, socket, 60*time.Second); err != nil {
		return err
	}
	if !m.noPool {
		if err := m.defaultPool(ctx, socket); err != nil {
			return err
		}
	}
	fmt.Println("ready; drover status shows the cluster, drover node token lets another host join")
	if foreground {
		return <-over
	}
	return nil
}

func (m *membership) defaultPool(ctx context.Context, socket string) error {
	size, err := parseSize(m.poolSize)
	if err != nil {
		return err
	}
	var p api.Pool
	err = client.Unix(socket, nil).Do(ctx, http.MethodPost, "/v1/pools", api.AddPool{Name: "default", Kind: "btrfs", Size: size}, &p)
	if api.Is(err, api.Exists) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the node is up, but its default pool could not be made: %w", err)
	}
	fmt.Printf("pool default: btrfs on %s, %s\n", p.Source, sizeText(p.Capacity))
	return nil
}

func joinCommand() *cobra.Command {
	var m membership
	var worker bool
	c := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this host a node of the cluster that made the token, and start its units",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			token, err := auth.ParseToken(args[0])
			if err != nil {
				return err
			}
			cfg, err := m.config()
			if err != nil {
				return err
			}
			cfg.Candidate = cfg.Candidate && !worker
			if cfg, err = join(c.Context(), cfg, token); err != nil {
				return err
			}
			if cfg.External != nil {
				if err := checkExternal(c.Context(), cfg, false); err != nil {
					return err
				}
			}
			fmt.Printf("this host is node %s of cluster %s, at %s\n", cfg.Name, cfg.Cluster[:12], cfg.APIAddress())
			return m.start(c.Context(), cfg)
		},
	}
	m.flags(c)
	c.Flags().BoolVar(&worker, "worker", false, "never make this node a member of the state store")
	return c
}

// join asks the cluster to let this host in, answering its call back meanwhile.
func join(ctx context.Context, cfg cluster.Config, token auth.Token) (cluster.Config, error) {
	request, key, err := cluster.PrepareJoin(cfg, token, versionText(), time.Now())
	if err != nil {
		return cfg, err
	}
	l, err := net.Listen("tcp", cfg.APIAddress())
	if err != nil {
		return cfg, &api.Error{Kind: api.Invalid, Op: "join cluster", Object: cfg.APIAddress(), Reason: "this host cannot listen there", Err: err, Next: "give one of this host's own addresses with --advertise, and a free port with --api-port"}
	}
	answering, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- cluster.AnswerDialBack(answering, l, key) }()
	answer, err := askToJoin(ctx, token, request)
	stop()
	<-done
	if err != nil {
		return cfg, err
	}
	return cluster.FinishJoin(cfg, token, key, answer)
}

func askToJoin(ctx context.Context, token auth.Token, request cluster.JoinRequest) (cluster.JoinAnswer, error) {
	var errs []error
	for _, address := range token.Addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		transport := &http.Transport{TLSClientConfig: auth.PinnedTLS(token.CA, host, func([]byte) {}, "http/1.1"), TLSHandshakeTimeout: 5 * time.Second}
		asking, cancel := context.WithTimeout(ctx, 30*time.Second)
		var answer cluster.JoinAnswer
		err = client.New("https://"+address, transport, nil).Do(asking, http.MethodPost, "/v1/join", request, &answer)
		cancel()
		transport.CloseIdleConnections()
		if err == nil {
			return answer, nil
		}
		if !api.Is(err, api.Unavailable) {
			return answer, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return cluster.JoinAnswer{}, &api.Error{Kind: api.Unavailable, Op: "join cluster", Reason: "no control node answers", Err: errors.Join(errs...), Next: "check that this host reaches those addresses"}
}
