package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/events"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/etcd"
	"github.com/drover-data/drover/storage"
	pool "github.com/drover-data/drover/storage/memory"
	"github.com/drover-data/drover/tree"
)

// control measures the control plane: agents in this process, with pools and
// engines in memory, on one real embedded etcd member on the disk.
func (b *bench) control(ctx context.Context) error {
	b.say("| nodes | volumes | from nothing to all ready | one volume's change, median of 50 | its range | operations on etcd a change |\n|---|---|---|---|---|---|")
	var small float64
	for _, size := range []struct{ nodes, volumes int }{{10, 1000}, {1000, 100_000}} {
		w, err := newFleet(ctx, size.nodes)
		if err != nil {
			return err
		}
		took, err := w.fill(ctx, size.volumes)
		var list []float64
		var ops int64
		if err == nil {
			list, ops, err = w.changes(ctx, 50)
		}
		if err := errors.Join(err, w.close()); err != nil {
			return err
		}
		mid, low, high := median(list)
		b.say("| %d | %d | %.1f s | %.2f ms | %.2f to %.2f | %.1f |", size.nodes, size.volumes, took.Seconds(), mid, low, high, float64(ops)/50)
		if small == 0 {
			small = mid
			continue
		}
		b.say("\na change among 100,000 volumes takes %.2f times what it takes among 1,000", mid/small)
	}
	return nil
}

// fleet is a cluster in this process.
type fleet struct {
	dir    string
	member *etcd.Member
	kv     *counting
	store  *state.Store
	books  *ledger.Service
	ids    atomic.Int64
	ready  atomic.Int64
	group  *errgroup.Group
	end    context.CancelFunc
	names  []string
}

// counting counts what is asked of the state store.
type counting struct {
	state.KV
	n atomic.Int64
}

func (c *counting) Get(ctx context.Context, keys ...string) ([]state.Item, int64, error) {
	c.n.Add(1)
	return c.KV.Get(ctx, keys...)
}

func (c *counting) Commit(ctx context.Context, txn state.Txn) (int64, error) {
	c.n.Add(1)
	return c.KV.Commit(ctx, txn)
}

func (w *fleet) newID() string { return fmt.Sprintf("%032x", w.ids.Add(1)) }

func newFleet(ctx context.Context, nodes int) (w *fleet, err error) {
	w = &fleet{}
	if w.dir, err = os.MkdirTemp("", "drover-bench-"); err != nil {
		return nil, err
	}
	if err := w.startStore(ctx); err != nil {
		return nil, err
	}
	ctx, w.end = context.WithCancel(ctx)
	w.group, ctx = errgroup.WithContext(ctx)
	// A thousand agents have a thousand disks; here their indexes share memory.
	data, err := os.MkdirTemp("/dev/shm", "drover-bench-")
	if err != nil {
		return nil, err
	}
	w.group.Go(func() error { <-ctx.Done(); return os.RemoveAll(data) })
	start, startCtx := errgroup.WithContext(ctx)
	start.SetLimit(2 * runtime.NumCPU())
	for i := range nodes {
		name := fmt.Sprintf("node%04d", i)
		w.names = append(w.names, name)
		start.Go(func() error { return w.startAgent(startCtx, ctx, name, filepath.Join(data, name)) })
	}
	if err := start.Wait(); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *fleet) startStore(ctx context.Context) error {
	ca, err := auth.NewCA("bench", time.Now())
	if err != nil {
		return err
	}
	r, err := auth.NewRequest("control")
	if err != nil {
		return err
	}
	chain, err := ca.Sign(r.CSR, auth.Subject{Kind: auth.NodeKind, Name: "control", Control: true, Addresses: []string{"127.0.0.1"}}, time.Now(), 24*time.Hour)
	if err != nil {
		return err
	}
	bundle, err := r.Bundle(chain)
	if err != nil {
		return err
	}
	id := filepath.Join(w.dir, "identity")
	if err := auth.WriteIdentity(id, bundle, ca.PEM()); err != nil {
		return err
	}
	keeper, err := auth.Open(id)
	if err != nil {
		return err
	}
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	w.member, err = etcd.Start(ctx, etcd.Config{
		Name: "control", Dir: filepath.Join(w.dir, "state"), Address: "127.0.0.1", ClientPort: ports[0], PeerPort: ports[1],
		Identity: keeper, ClusterID: "bench", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if err := w.member.Ready(ctx); err != nil {
		return err
	}
	kv, err := etcd.Open(etcd.ClientConfig{Endpoints: []string{etcd.ClientURL("127.0.0.1", ports[0])}, TLS: keeper.ClientTLS(nil, auth.OnlyControl), Timeout: time.Minute})
	if err != nil {
		return err
	}
	w.kv = &counting{KV: kv}
	w.store = state.New(w.kv)
	w.books = &ledger.Service{Store: w.store, Now: time.Now, NewID: w.newID, Grace: time.Hour}
	return nil
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// startAgent starts one, and returns when its pool is there.
func (w *fleet) startAgent(ctx, life context.Context, name, dir string) error {
	err := w.store.Update(ctx, func(tx *state.Tx) error {
		if err := state.Nodes.Put(tx, name, api.Node{Name: name}); err != nil {
			return err
		}
		return state.Alive.Put(tx, name, api.NodeStatus{Online: true, Pools: []api.Pool{{Name: "default"}}})
	})
	if err != nil {
		return err
	}
	p := pool.New(pool.Config{Name: name, Now: time.Now})
	quiet := slog.New(slog.DiscardHandler)
	a, err := agent.New(agent.Config{Node: name, Cluster: "bench", DataDir: dir, VolatileDir: dir}, agent.Deps{
		Store: w.store, Ledger: books{w.books, w}, Peers: nobody{}, Engine: memory.New(name, time.Now, nil), Users: nobody{},
		Portable: tree.Streams{}, Mounted: func(string) (bool, error) { return false, nil },
		Open:   func(context.Context, api.AddPool, bool) (storage.Backend, error) { return p, nil },
		Events: events.New(name, quiet, time.Now), Log: quiet, Now: time.Now, NewID: w.newID,
	})
	if err != nil {
		return err
	}
	w.group.Go(func() error { return a.Run(life) })
	for {
		if _, err := a.AddPool(ctx, api.AddPool{Name: "default", Kind: "memory"}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond): // Run has just begun
		}
	}
}

// books is a node's ledger, which counts the heads that were made.
type books struct {
	*ledger.Service
	w *fleet
}

func (b books) Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	v, err := b.Service.Ready(ctx, id, branch, node, epoch)
	if err == nil {
		b.w.ready.Add(1)
	}
	return v, err
}

// nobody stands for other nodes and for users: there are none.
type nobody struct{ peer.Agents }

func (nobody) Find(context.Context, storage.Identity) ([]agent.User, error) { return nil, nil }

// fill makes volumes, spread over the nodes, and waits until all are ready.
func (w *fleet) fill(ctx context.Context, volumes int) (time.Duration, error) {
	start := time.Now()
	group, making := errgroup.WithContext(ctx)
	group.SetLimit(128)
	for i := range volumes {
		group.Go(func() error {
			_, err := w.books.Create(making, ledger.Create{ID: randomID(), Name: fmt.Sprintf("v%06d", i), Node: w.names[i%len(w.names)], Pool: "default"})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	for w.ready.Load() < int64(volumes) {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return time.Since(start), nil
}

func randomID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// changes makes volumes, one after the other, and measures how long each takes
// to be ready on its node.
func (w *fleet) changes(ctx context.Context, n int) (list []float64, ops int64, err error) {
	before := w.kv.n.Load()
	for i := range n {
		had := w.ready.Load()
		start := time.Now()
		_, err := w.books.Create(ctx, ledger.Create{ID: randomID(), Name: fmt.Sprintf("change%d", i), Node: w.names[i%len(w.names)], Pool: "default"})
		if err != nil {
			return nil, 0, err
		}
		for w.ready.Load() == had {
			runtime.Gosched()
			if err := ctx.Err(); err != nil {
				return nil, 0, context.Cause(ctx)
			}
		}
		list = append(list, float64(time.Since(start).Microseconds())/1000)
	}
	return list, w.kv.n.Load() - before, nil
}

// close ends everything and says what an agent ended with before.
func (w *fleet) close() error {
	w.end()
	err := w.group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	w.member.Close()
	return errors.Join(err, os.RemoveAll(w.dir))
}
