package state

import (
	"encoding/json"
	"time"

	"github.com/drover-data/drover/api"
)

// Root is the first part of every key, so that Drover can live in an etcd that
// serves others too. The version is that of the layout.
const Root = "drover/v1/"

// The tables. Who may write is kept by the store's own access rules: control
// nodes everything, other nodes only Alive under their own name; every node
// reads Cluster, Nodes, Alive, Names, Revoked (it has to refuse those keys too)
// and its own part of Assigned.
var (
	// TheCluster has one record, with the id "cluster".
	TheCluster = Table[api.Cluster]{Root + "meta/", "cluster"}
	// Nodes by name. Status is empty here.
	Nodes = Table[api.Node]{Root + "nodes/", "node"}
	// Alive by node name, bound to the node's lease.
	Alive = Table[api.NodeStatus]{Root + "alive/", "node status"}
	// Names maps a volume's name to its id.
	Names = Table[string]{Root + "names/", "volume"}
	// Volumes by id: all that is authoritative about a volume.
	Volumes = Table[api.Volume]{Root + "volumes/", "volume"}
	// Assigned by "node/volume id": a copy of the volume's record for each
	// node that it concerns, written in the same transaction, so that a node
	// watches its own part only.
	Assigned = Table[api.Volume]{Root + "assigned/", "assignment"}
	// Tokens by id: permissions to join.
	Tokens = Table[Token]{Root + "tokens/", "join token"}
	// Users by name.
	Users = Table[api.User]{Root + "users/", "user"}
	// Revoked by the hash of a public key: certificates that end nowhere well.
	Revoked = Table[Revocation]{Root + "revoked/", "revocation"}
	// Issued by "node/name" or "user/name": the keys of all certificates that
	// are not over yet, so that a removal revokes every one of them.
	Issued = Table[[]IssuedKey]{Root + "issued/", "issued keys"}
	// Reports by "node/part": what nodes said after a recovery that their pools
	// hold, until everybody has.
	Reports = Table[json.RawMessage]{Root + "recovery/", "report"}
	// Secrets holds what control nodes share: the key of the cluster's CA.
	Secrets = Table[[]byte]{Root + "secrets/", "secret"}
)

// Token is a permission to join once.
type Token struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash"` // SHA-256 of the secret half, hexadecimal
	Expires time.Time `json:"expires"`
	By      string    `json:"by"`
	Control bool      `json:"control,omitempty"` // the node may become a control node
	Used    string    `json:"used,omitempty"`    // by which node
}

// Revocation says since when and why a key is not to be trusted.
type Revocation struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"` // from then on the certificate is over anyway
}

// IssuedKey is the key of a certificate and when that ends.
type IssuedKey struct {
	Key   string    `json:"key"` // SHA-256 of the public key, hexadecimal
	Until time.Time `json:"until"`
}
