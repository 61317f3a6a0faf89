package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/state"
)

// RecordFormat is the version of the records in the state store.
const RecordFormat = 1

// caSecret is the CA with its key among the shared secrets.
const caSecret = "ca"

// InitConfig is what `drover init` knows.
type InitConfig struct {
	Node        Config // Cluster and Endpoints are filled in
	ClusterName string
	Now         time.Time
	Validity    time.Duration // of the certificate; default auth.Validity
}

// bootstrap is what has to go into the state store once there is one. It lies
// in a file in between, so that a crash loses nothing.
type bootstrap struct {
	Cluster api.Cluster `json:"cluster"`
	Node    api.Node    `json:"node"`
	CA      []byte      `json:"ca"`
	Until   time.Time   `json:"until"`
}

// Init makes the CA, this node's identity and its configuration, all on disk.
// It starts nothing; when the state store answers, Bootstrap completes it.
// Repeated before that it begins anew; afterwards it refuses.
func Init(ctx context.Context, cfg InitConfig) (Config, error) {
	node := cfg.Node.WithDefaults()
	if cfg.Validity == 0 {
		cfg.Validity = auth.Validity
	}
	if err := refuseMember(node.DataDir); err != nil {
		return Config{}, err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	node.Cluster = hex.EncodeToString(id)
	if node.External == nil {
		node.Endpoints, node.Candidate = []string{node.StateURL()}, true
	}
	if cfg.ClusterName == "" {
		cfg.ClusterName = "drover"
	}
	if x := node.External; x != nil && x.Prefix == "" {
		y := *x
		y.Prefix = DefaultPrefix(cfg.ClusterName)
		node.External = &y
	}
	if err := node.Validate(); err != nil {
		return Config{}, err
	}
	ca, err := auth.NewCA(cfg.ClusterName, cfg.Now)
	if err != nil {
		return Config{}, err
	}
	bundle, key, err := signFirst(ca, node, cfg.Now, cfg.Validity)
	if err != nil {
		return Config{}, err
	}
	secret, err := ca.Secret()
	if err != nil {
		return Config{}, err
	}
	b := bootstrap{
		Cluster: api.Cluster{ID: node.Cluster, Name: cfg.ClusterName, Incarnation: 1, Created: cfg.Now.UTC(), Format: RecordFormat},
		Node:    nodeRecord(node, key, cfg.Now),
		CA:      secret,
		Until:   cfg.Now.Add(cfg.Validity).UTC(),
	}
	b.Node.Control, b.Node.Incarnation = true, 1
	if node.External == nil {
		b.Node.Member = api.MemberVoter
	}
	data, err := json.Marshal(b)
	if err != nil {
		return Config{}, err
	}
	// The configuration comes last: with it the host belongs to a cluster.
	if err := auth.WriteIdentity(node.IdentityDir(), bundle, ca.PEM()); err != nil {
		return Config{}, err
	}
	if err := writeFile(node.bootstrapPath(), data); err != nil {
		return Config{}, err
	}
	if err := node.SaveIncarnation(Incarnation{Number: 1}); err != nil {
		return Config{}, err
	}
	return node, node.Save()
}

// Record is how the node of this configuration is recorded.
func (c Config) Record(key string, now time.Time) api.Node { return nodeRecord(c, key, now) }

func nodeRecord(c Config, key string, now time.Time) api.Node {
	n := api.Node{Name: c.Name, Address: c.APIAddress(), Joined: now.UTC(), Candidate: c.Candidate, Member: api.MemberNone, Key: key, Version: 1}
	if c.External == nil {
		n.StateURL, n.PeerURL = c.StateURL(), c.PeerURL()
	}
	return n
}

// refuseMember refuses when the host belongs to a cluster already.
func refuseMember(dataDir string) error {
	c, err := LoadConfig(dataDir)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.bootstrapPath()); err == nil {
		if _, err := os.Stat(filepath.Join(c.StateDir(), "member")); errors.Is(err, fs.ErrNotExist) {
			return nil // an init that never got as far as having a state store
		}
	}
	return &api.Error{Kind: api.Exists, Op: "set up node", Object: c.Name, Reason: "this host belongs to cluster " + c.Cluster + " already", Next: "remove it there with drover node rm, then remove " + dataDir}
}

// Bootstrap writes the cluster's first records if Init was here and they have
// not been written yet. Whoever has the state store calls it at each start.
func Bootstrap(ctx context.Context, c Config, store *state.Store) error {
	path := c.bootstrapPath()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fileError("set up the cluster", path, err)
	}
	var b bootstrap
	if err := json.Unmarshal(data, &b); err != nil {
		return &api.Error{Kind: api.Damaged, Op: "set up the cluster", Object: path, Err: err}
	}
	err = store.Update(ctx, func(tx *state.Tx) error {
		there, _, err := state.TheCluster.Get(tx, "cluster")
		switch {
		case err == nil && there.ID == b.Cluster.ID && there.Incarnation > b.Cluster.Incarnation:
			return EarlierIncarnation(b.Cluster.Incarnation, there.Incarnation)
		case err == nil && there.ID == b.Cluster.ID && there.Incarnation == b.Cluster.Incarnation:
			return nil
		case err == nil && there.ID == b.Cluster.ID:
			// The store outlived its cluster, as an external one can; a recovery
			// replaces what is in it.
		case err == nil:
			return &api.Error{Kind: api.Exists, Op: "set up the cluster", Object: b.Cluster.ID, Reason: "that state store already holds cluster " + there.ID, Next: "join that one with drover join, or give another --etcd-prefix or --cluster-name"}
		case !api.Is(err, api.NotFound):
			return err
		}
		return errors.Join(
			state.TheCluster.Put(tx, "cluster", b.Cluster),
			state.Nodes.Put(tx, b.Node.Name, b.Node),
			state.Issued.Put(tx, issuedNode(b.Node.Name), []state.IssuedKey{{Key: b.Node.Key, Until: b.Until}}),
			state.Secrets.Put(tx, caSecret, b.CA),
		)
	})
	if err != nil {
		return err
	}
	// The CA's key is in the store now and has no business on disk.
	if err := os.Remove(path); err != nil {
		return fileError("set up the cluster", path, err)
	}
	return nil
}

func (c Config) bootstrapPath() string { return filepath.Join(c.IdentityDir(), bootstrapFile) }

func issuedNode(name string) string { return "node/" + name }
func issuedUser(name string) string { return "user/" + name }

// IsFirst reports whether this node was made by Init and its cluster has no
// state store yet: its member is the first one.
func IsFirst(c Config) bool {
	_, err := os.Stat(c.bootstrapPath())
	return err == nil
}
