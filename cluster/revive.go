package cluster

import (
	"encoding/json"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
)

// ReviveConfig is what `drover recover` knows.
type ReviveConfig struct {
	Node    Config      // Cluster and Endpoints are filled in
	Cluster api.Cluster // as the backup has it
	// Incarnation is the new one; it must be later than any that ever was.
	Incarnation uint64
	CA          []byte    // of the cluster, with its key, as Secrets has it
	Taken       time.Time // the backup
	// Awaiting are the nodes that have to report before the cluster goes on.
	Awaiting map[string]string
	Now      time.Time
	Validity time.Duration // of the certificate; default auth.Validity
}

// Revive makes this host the first node of a new incarnation of a cluster, on
// disk: identity, configuration, and the records that Bootstrap writes. The
// host may belong to that cluster, or to none. Like Init it starts nothing.
func Revive(cfg ReviveConfig) (Config, error) {
	node := cfg.Node.WithDefaults()
	if cfg.Validity == 0 {
		cfg.Validity = auth.Validity
	}
	if err := refuseOther(node.DataDir, cfg.Cluster.ID); err != nil {
		return Config{}, err
	}
	node.Cluster = cfg.Cluster.ID
	if node.External == nil {
		node.Endpoints, node.Candidate = []string{node.StateURL()}, true
	}
	if err := node.Validate(); err != nil {
		return Config{}, err
	}
	seen, err := node.LoadIncarnation()
	if err != nil {
		return Config{}, err
	}
	if cfg.Incarnation <= max(seen.Number, cfg.Cluster.Incarnation) {
		return Config{}, EarlierIncarnation(cfg.Incarnation, max(seen.Number, cfg.Cluster.Incarnation))
	}
	ca, err := auth.ParseCA(cfg.CA)
	if err != nil {
		return Config{}, err
	}
	bundle, key, err := signFirst(ca, node, cfg.Now, cfg.Validity)
	if err != nil {
		return Config{}, err
	}
	c := cfg.Cluster
	c.Incarnation = cfg.Incarnation
	c.Recovery = &api.ClusterRecovery{Backup: cfg.Taken, Started: cfg.Now.UTC(), Restoring: true, Awaiting: cfg.Awaiting}
	b := bootstrap{Cluster: c, Node: nodeRecord(node, key, cfg.Now), CA: cfg.CA, Until: cfg.Now.Add(cfg.Validity).UTC()}
	b.Node.Control = true
	if node.External == nil {
		b.Node.Member = api.MemberVoter
	}
	data, err := json.Marshal(b)
	if err != nil {
		return Config{}, err
	}
	if err := auth.WriteIdentity(node.IdentityDir(), bundle, ca.PEM()); err != nil {
		return Config{}, err
	}
	if err := writeFile(node.bootstrapPath(), data); err != nil {
		return Config{}, err
	}
	if err := node.Save(); err != nil {
		return Config{}, err
	}
	// What runs here looks for this file: it comes last.
	return node, node.SaveIncarnation(Incarnation{Number: cfg.Incarnation, Endpoints: node.Endpoints})
}

// signFirst makes the certificate of a first node.
func signFirst(ca *auth.CA, node Config, now time.Time, validity time.Duration) (bundle []byte, key string, err error) {
	request, err := auth.NewRequest(node.Name)
	if err != nil {
		return nil, "", err
	}
	chain, err := ca.Sign(request.CSR, auth.Subject{Kind: auth.NodeKind, Name: node.Name, Control: true, Addresses: []string{node.Address}}, now, validity)
	if err != nil {
		return nil, "", err
	}
	if bundle, err = request.Bundle(chain); err != nil {
		return nil, "", err
	}
	key, err = auth.RequestKeyHash(request.CSR)
	return bundle, key, err
}

// refuseOther refuses when the host belongs to another cluster.
func refuseOther(dataDir, id string) error {
	c, err := LoadConfig(dataDir)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.Cluster != id {
		return &api.Error{Kind: api.Exists, Op: "recover cluster", Object: c.Name, Reason: "this host belongs to cluster " + c.Cluster + ", the backup is of cluster " + id, Next: "recover on a host of that cluster, or on a fresh one"}
	}
	return nil
}
