package apiserver

import (
	"context"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
)

// Agent is this node's agent.
type Agent interface {
	History
	Looking
	Remotes
	RemoteKeys
	Schedules
	NewVolume(ctx context.Context, c api.CreateVolume) (api.Volume, error)
	StartMove(ctx context.Context, volume string, r api.StartMove, by string) (api.MovePlan, error)
	Move(id string) (api.MoveProgress, error)
	Status(ctx context.Context, volume, branch string) (api.HeadStatus, error)
	Delete(ctx context.Context, volume, by string) error
	Resize(ctx context.Context, volume string, size int64) (api.Volume, error)
	Held(ctx context.Context, volume string) ([]api.HeldSnapshot, error)
	Pull(ctx context.Context, r peer.Pull) error
	Prepare(ctx context.Context, p peer.Preparation) error
	Pools() []api.Pool
	Holdings(ctx context.Context) ([]ledger.Copy, map[string]string, error)
	AddPool(ctx context.Context, p api.AddPool) (api.Pool, error)
	RemovePool(ctx context.Context, name string) error
	GrowPool(ctx context.Context, name string, size int64) (api.Pool, error)
}

// Recovery is what control nodes do to bring the cluster back from a backup.
type Recovery interface {
	Report(ctx context.Context, caller auth.Identity, r ledger.Report) error
	GiveUp(ctx context.Context, node string) error
}

// Ledger is where volumes' records are read and changed; on a node without
// the right to do so it asks a control node.
type Ledger interface {
	Volume(ctx context.Context, ref string) (api.Volume, error)
	Volumes(ctx context.Context, deleted bool) ([]api.Volume, error)
	Create(ctx context.Context, c ledger.Create) (api.Volume, error)
	RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error)
	CancelMove(ctx context.Context, id, branch, move string) (api.Volume, error)
	Hand(ctx context.Context, id, branch string, o ledger.HandOver) (api.Volume, error)
	Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error)
	Settled(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error)
	Returned(ctx context.Context, id, branch, node string) (api.Volume, error)
	Delete(ctx context.Context, id, by string) (api.Volume, error)
	Restore(ctx context.Context, id, name string) (api.Volume, error)
	Purge(ctx context.Context, id string) (api.Volume, error)
	Resize(ctx context.Context, id string, size int64) (api.Volume, error)
	Label(ctx context.Context, id string, set map[string]string, remove []string) (api.Volume, error)
	Adopt(ctx context.Context, id, branch, node, pool, snapshot, proof, loss string) (api.Volume, error)
	BeginPurge(ctx context.Context, id string) (api.Volume, error)
	Forget(ctx context.Context, id, branch, node string, epoch uint64) error
	Change(ctx context.Context, id string, c ledger.Change) (api.Volume, error)
}

// Cluster is nodes, tokens and users: what control nodes do for the cluster.
type Cluster interface {
	Join(ctx context.Context, r cluster.JoinRequest) (cluster.JoinAnswer, error)
	Renew(ctx context.Context, caller auth.Identity, csr []byte) ([]byte, error)
	MemberStart(ctx context.Context, caller auth.Identity) (cluster.MemberStart, error)
	Nodes(ctx context.Context) ([]api.Node, error)
	ChangeNode(ctx context.Context, name string, c cluster.NodeChange) (api.Node, error)
	RemoveNode(ctx context.Context, name string, force bool) error
	CreateToken(ctx context.Context, by string, o cluster.TokenOptions) (string, state.Token, error)
	Tokens(ctx context.Context) ([]state.Token, error)
	RevokeToken(ctx context.Context, id string) error
	AddUser(ctx context.Context, name string, role api.Role, csr []byte) (api.User, []byte, error)
	Users(ctx context.Context) ([]api.User, error)
	RemoveUser(ctx context.Context, name string) error
	Describe(ctx context.Context) (api.Cluster, error)
}
