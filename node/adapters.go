package node

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/peer/remote"
	plugin "github.com/drover-data/drover/plugin/docker"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs"
	"github.com/drover-data/drover/storage/dir"
	"github.com/drover-data/drover/storage/loopfile"
	"github.com/drover-data/drover/storage/zfs"
	"github.com/drover-data/drover/trace"
	"github.com/drover-data/drover/users"
)

func openKeeper(c cluster.Config) (*auth.Keeper, error) { return auth.Open(c.IdentityDir()) }

// ledgers changes records itself on a control node, and asks one elsewhere.
// The methods that are not here are reached on control nodes only.
type ledgers struct {
	*ledger.Service
	control func() bool
	far     remote.Ledger
	events  *events.Log
}

func (l ledgers) near() agent.Ledger {
	if l.control() {
		return l.Service
	}
	return l.far
}

func (l ledgers) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return l.near().Volume(ctx, ref)
}

func (l ledgers) Create(ctx context.Context, c ledger.Create) (api.Volume, error) {
	return l.near().Create(ctx, c)
}

func (l ledgers) RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error) {
	if m.Trace == "" {
		m.Trace = trace.ID(ctx)
	}
	l.events.Relate(m.ID, m.Trace)
	return l.near().RequestMove(ctx, id, branch, m)
}

func (l ledgers) CancelMove(ctx context.Context, id, branch, move string) (api.Volume, error) {
	return l.near().CancelMove(ctx, id, branch, move)
}

func (l ledgers) Hand(ctx context.Context, id, branch string, o ledger.HandOver) (api.Volume, error) {
	return l.near().Hand(ctx, id, branch, o)
}

func (l ledgers) Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return l.near().Ready(ctx, id, branch, node, epoch)
}

func (l ledgers) Settled(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return l.near().Settled(ctx, id, branch, node, epoch)
}

func (l ledgers) Returned(ctx context.Context, id, branch, node string) (api.Volume, error) {
	return l.near().Returned(ctx, id, branch, node)
}

func (l ledgers) Resize(ctx context.Context, id string, size int64) (api.Volume, error) {
	return l.near().Resize(ctx, id, size)
}

func (l ledgers) Delete(ctx context.Context, id, by string) (api.Volume, error) {
	return l.near().Delete(ctx, id, by)
}

func (l ledgers) BeginPurge(ctx context.Context, id string) (api.Volume, error) {
	return l.near().BeginPurge(ctx, id)
}

func (l ledgers) Forget(ctx context.Context, id, branch, node string, epoch uint64) error {
	return l.near().Forget(ctx, id, branch, node, epoch)
}

func (l ledgers) Change(ctx context.Context, id string, c ledger.Change) (api.Volume, error) {
	return l.near().Change(ctx, id, c)
}

// peers hands the trace of the request behind a move on to the node that it
// moves to: the agent works on it long after the request was answered.
type peers struct{ *remote.Network }

func (p peers) Prepare(ctx context.Context, node string, q peer.Preparation) error {
	if m := q.Volume.Heads[q.Branch].Move; m != nil && m.Trace != "" {
		ctx = trace.With(ctx, trace.Continue(m.Trace))
	}
	return p.Network.Prepare(ctx, node, q)
}

// finder asks the kernel who uses a head.
type finder struct{}

func (finder) Find(ctx context.Context, id storage.Identity) ([]agent.User, error) {
	found, err := users.Scan(ctx, id, users.Options{})
	if err != nil {
		return nil, err
	}
	out := make([]agent.User, len(found))
	for i, u := range found {
		what := string(u.What)
		if u.What == users.Mount {
			what = agent.UserMount
		}
		out[i] = agent.User{PID: u.PID, Command: u.Comm, Container: u.ContainerID, What: what, Path: u.Path}
	}
	return out, nil
}

// volumes gives the agent to Docker's plugin.
type volumes struct{ a *agent.Agent }

func (v volumes) Create(ctx context.Context, r plugin.CreateRequest) error {
	return v.a.Create(ctx, api.CreateVolume{Name: r.Name, Node: r.Node, Size: r.Size, Pool: r.Pool, From: r.From, Labels: r.Labels})
}

func known(k agent.Known) plugin.Volume {
	return plugin.Volume{Name: k.Name, Mountpoint: k.Path, Created: k.Created, Status: k.Status}
}

func (v volumes) Get(ctx context.Context, name string) (plugin.Volume, error) {
	k, err := v.a.Get(ctx, name)
	return known(k), err
}

func (v volumes) List(ctx context.Context) ([]plugin.Volume, error) {
	list, err := v.a.List(ctx)
	out := make([]plugin.Volume, len(list))
	for i, k := range list {
		out[i] = known(k)
	}
	return out, err
}

func (v volumes) Path(ctx context.Context, name string) (string, error) { return v.a.Path(ctx, name) }

func (v volumes) Mount(ctx context.Context, name, id string) (string, error) {
	return v.a.Mount(ctx, name, id)
}

func (v volumes) Unmount(ctx context.Context, name, id string) error {
	return v.a.Unmount(ctx, name, id)
}

func (v volumes) Remove(ctx context.Context, name string) error { return v.a.Remove(ctx, name) }

// opener opens pools by their kind.
type opener struct {
	dataDir string
	growth  loopfile.Policy // of pools on files
}

func (o opener) open(ctx context.Context, p api.AddPool, create bool) (storage.Backend, error) {
	var b interface {
		storage.Backend
		Init(context.Context) error
	}
	var err error
	switch {
	case p.Kind == "btrfs" && p.Source == "":
		b, err = o.file(ctx, p, create)
	case p.Kind == "btrfs":
		b, err = btrfs.New(btrfs.Config{Dir: p.Source})
	case p.Kind == "dir":
		b, err = dir.New(dir.Config{Dir: p.Source})
	case p.Kind == "zfs":
		b, err = zfs.New(zfs.Config{Source: p.Source, Dir: filepath.Join(o.dataDir, "pools", p.Name)})
	default:
		err = &api.Error{Kind: api.Unsupported, Op: "open pool", Object: p.Name, Reason: "there is no pool of kind " + p.Kind, Next: "the kinds are btrfs, zfs and dir"}
	}
	if err != nil {
		return nil, err
	}
	if create {
		if err := b.Init(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := b.Recover(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// file is a btrfs on a file of the data directory. It is made only when that
// is wished: a file that is out of sight is not one that never was.
func (o opener) file(ctx context.Context, p api.AddPool, create bool) (*btrfs.Growing, error) {
	pools := filepath.Join(o.dataDir, "pools")
	if err := os.MkdirAll(pools, 0o700); err != nil {
		return nil, err
	}
	file := &loopfile.File{Config: loopfile.Config{File: filepath.Join(pools, p.Name+".img"), Dir: filepath.Join(pools, p.Name), Size: p.Size}, Policy: o.growth}
	cfg := &file.Config
	st, err := os.Stat(cfg.File)
	switch {
	case err == nil:
		cfg.Size = max(st.Size(), loopfile.MinSize) // what it was made with does not matter any more
	case !os.IsNotExist(err):
		return nil, err
	case !create:
		return nil, &api.Error{Kind: api.Unavailable, Op: "open pool", Object: p.Name, Reason: "its file " + cfg.File + " is not there", Next: "bring the file back (is its file system mounted?); to begin with an empty pool, remove the pool and add it again"}
	case cfg.Size == 0:
		var fs unix.Statfs_t
		if err := unix.Statfs(pools, &fs); err != nil {
			return nil, err
		}
		cfg.Size = o.growth.Initial(int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize)
		if cfg.Size == 0 {
			return nil, &api.Error{Kind: api.Exhausted, Op: "make pool", Object: p.Name, Reason: pools + " has too little room for a pool", Next: "free space, or add a pool elsewhere with drover pool add"}
		}
	}
	if err := loopfile.Ensure(ctx, *cfg); err != nil {
		return nil, err
	}
	b, err := btrfs.New(btrfs.Config{Dir: cfg.Dir, Source: cfg.File})
	if err != nil {
		return nil, err
	}
	return b.On(file), nil
}
