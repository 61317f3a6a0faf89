// Package peer is what the agents of two nodes ask of each other: the words
// and the port, without the way they travel.
package peer

import (
	"context"
	"net"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/storage"
)

// Agents are the other nodes' agents. Unavailable means that the node does not
// answer; nothing is known of it then.
type Agents interface {
	// Pull asks a head's owner to send it here, if nobody uses it.
	Pull(ctx context.Context, node string, r Pull) error
	// Prepare asks a target whether it can take a head and its users, and
	// leaves with it what it needs to make them.
	Prepare(ctx context.Context, node string, p Preparation) error
	// Status asks an owner how a head is.
	Status(ctx context.Context, node, volume, branch string) (api.HeadStatus, error)
	// Delete asks an owner to delete a volume that nobody uses.
	Delete(ctx context.Context, node, volume, by string) error
	// Held lists the snapshots of a volume that a node holds.
	Held(ctx context.Context, node, volume string) ([]api.HeldSnapshot, error)
	// Hold holds a head's users for a commit of several volumes, Take makes its
	// snapshot, Release lets them go; see agent.
	Hold(ctx context.Context, node string, r Hold) (Held, error)
	Take(ctx context.Context, node string, r Take) error
	Release(ctx context.Context, node string, r Release) error
	// Key asks for a key of a remote. Only who has a part in a volume that is
	// sealed with it is given it.
	Key(ctx context.Context, node string, r KeyRequest) (Key, error)
	// Dial opens a connection for a transfer session.
	Dial(ctx context.Context, node string) (net.Conn, error)
}

// Hold asks an owner to hold a head's users.
type Hold struct {
	Token       string          `json:"token"` // names the hold
	Volume      string          `json:"volume"`
	Branch      string          `json:"branch"`
	Consistency api.Consistency `json:"consistency,omitempty"`
}

// Held is a head that is held, or is to be.
type Held struct {
	Token  string          `json:"token"`
	Node   string          `json:"node"`
	Volume string          `json:"volume"` // id
	Name   string          `json:"name"`
	Branch string          `json:"branch"`
	Level  api.Consistency `json:"level,omitempty"`
	Hooks  []string        `json:"hooks,omitempty"`
	Epoch  uint64          `json:"epoch,omitempty"`
	Tip    string          `json:"tip,omitempty"`
}

// Take asks for the snapshot of a head that is held.
type Take struct {
	Token  string     `json:"token"`
	Commit api.Commit `json:"commit"`
}

// Release ends a hold. Drop removes the snapshots that it was held for.
type Release struct {
	Token string `json:"token"`
	Drop  bool   `json:"drop,omitempty"`
}

// KeyRequest asks for a key that a volume's remote needs.
type KeyRequest struct {
	Volume string `json:"volume"` // id
	ID     string `json:"id"`     // of the key
}

// Key is the answer: a secret, which is kept from logs by not printing.
type Key struct {
	Secret []byte `json:"secret"`
}

// String hides the secret.
func (Key) String() string { return "(a key)" }

// Pull asks an owner for a head that somebody wants to use elsewhere.
type Pull struct {
	Volume string `json:"volume"` // id
	Branch string `json:"branch"`
	To     string `json:"to"`
	Pool   string `json:"pool"`
	By     string `json:"by"`
}

// Preparation is what a target of a move is told beforehand.
type Preparation struct {
	Move       string           `json:"move"`
	Volume     api.Volume       `json:"volume"`
	Branch     string           `json:"branch"`
	Epoch      uint64           `json:"epoch"` // the source's; the target's will be the next
	Pool       string           `json:"pool"`
	Bytes      int64            `json:"bytes"` // what is to come, about
	Fidelity   storage.Fidelity `json:"fidelity"`
	AllowLoss  bool             `json:"allowLoss"`
	Containers []container.Spec `json:"containers,omitempty"` // to be made once the head is there
	// Restart gives the restart policies that they had, by name.
	Restart map[string]string `json:"restart,omitempty"`
}

// LedgerCall asks a control node for a change of a record.
type LedgerCall struct {
	Op       string           `json:"op"`
	ID       string           `json:"id,omitempty"`
	Branch   string           `json:"branch,omitempty"`
	Epoch    uint64           `json:"epoch,omitempty"`
	Size     int64            `json:"size,omitempty"`
	By       string           `json:"by,omitempty"`
	Create   *ledger.Create   `json:"create,omitempty"`
	Move     *api.Move        `json:"move,omitempty"`
	HandOver *ledger.HandOver `json:"handOver,omitempty"`
	Change   *ledger.Change   `json:"change,omitempty"`
}

// Delete asks an owner to delete a volume.
type Delete struct {
	Volume string `json:"volume"`
	By     string `json:"by"`
}

// Incarnation is a node's answer to the question which life of the cluster it
// has seen, and how it found it.
type Incarnation struct {
	cluster.Incarnation
	Cluster string `json:"cluster"` // id
}

// Holdings is what a node's pools hold, as they remember it.
type Holdings struct {
	Copies []ledger.Copy     `json:"copies"`
	Gone   map[string]string `json:"gone,omitempty"`
}

// Renewal asks for a certificate, and is the answer.
type Renewal struct {
	CSR   []byte `json:"csr,omitempty"`
	Chain []byte `json:"chain,omitempty"`
}
