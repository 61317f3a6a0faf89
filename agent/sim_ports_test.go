package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/faulty"
	poolmemory "github.com/drover-data/drover/storage/memory"
)

// watched is a pool whose calls are compared with what is true.
type watched struct {
	storage.Backend
	l    *life
	pool string
}

func (p *watched) truth(volume, branch string) (api.Volume, api.Head, bool) {
	v, err := p.l.h.w.truth.Volume(context.Background(), volume)
	if err != nil {
		return v, api.Head{}, false
	}
	h, ok := v.Heads[branch]
	return v, h, ok
}

// used fails the run when a running container has the head.
func (p *watched) used(what string, key storage.HeadKey, paused bool) {
	if id := p.l.h.docker.writing(p.pool, key, paused); id != "" {
		p.l.h.w.fail("%s: %s of %s in pool %s while container %s uses it", p.l.h.name, what, key, p.pool, id)
	}
}

// CreateHead may make an empty head only for a volume that never had data.
func (p *watched) CreateHead(ctx context.Context, spec storage.HeadSpec) (storage.Head, error) {
	_, err := p.Backend.Head(ctx, spec.Key)
	v, h, known := p.truth(spec.Key.Volume, spec.Key.Branch)
	if api.Is(err, api.NotFound) {
		switch {
		case known && h.Node == p.l.h.name && h.Pool == p.pool && h.Ready && v.Deleted == nil:
			p.l.h.w.fail("%s: head %s is made in place of one that is missing", p.l.h.name, spec.Key)
		case spec.From == "" && known && h.Epoch > 1:
			p.l.h.w.fail("%s: head %s of epoch %d is made empty", p.l.h.name, spec.Key, h.Epoch)
		}
	}
	return p.Backend.CreateHead(ctx, spec)
}

// DestroyHead may not take the owner's data, nor the only copy.
func (p *watched) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	p.used("destroying the head", key, true)
	if hd, err := p.Backend.Head(ctx, key); err == nil {
		p.kept(key, agent.NoteEpoch(hd.Note))
		v, h, known := p.truth(key.Volume, key.Branch)
		if known && (v.Deleted == nil || time.Now().Before(v.Deleted.Purge)) {
			n := agent.NoteEpoch(hd.Note)
			if h.Node == p.l.h.name && h.Pool == p.pool && n == h.Epoch {
				p.l.h.w.fail("%s: the owner's head %s is destroyed", p.l.h.name, key)
			}
			if h.From == p.l.h.name && h.FromPool == p.pool && !h.Ready && n == h.Epoch-1 {
				p.l.h.w.fail("%s: head %s is destroyed before %s holds it", p.l.h.name, key, h.Node)
			}
		}
	}
	return p.Backend.DestroyHead(ctx, key)
}

func (p *watched) DestroySnapshot(ctx context.Context, volume, id string) error {
	if v, h, known := p.truth(volume, api.MainBranch); known && h.Node == p.l.h.name && h.Seed == id && !h.Ready && v.Deleted == nil {
		p.l.h.w.fail("%s: snapshot %s is destroyed from which the head is to be made", p.l.h.name, id)
	}
	return p.Backend.DestroySnapshot(ctx, volume, id)
}

func (p *watched) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	if p.l.h.slow[p.pool] {
		p.used("a snapshot that is not atomic", key, false)
	}
	p.l.h.w.mu.Lock()
	before := maps.Clone(p.l.h.w.lines[key.String()].records)
	p.l.h.w.mu.Unlock()
	s, err := p.Backend.Snapshot(ctx, key, id, note)
	if err == nil {
		p.snapped(key, id, note, before)
	}
	return s, err
}

func (p *watched) Resize(ctx context.Context, key storage.HeadKey, size int64) error {
	return p.Backend.(storage.Sizer).Resize(ctx, key, size)
}

type watchedNative struct{ watched }

func (p *watchedNative) native() *poolmemory.Backend { return p.Backend.(*poolmemory.Backend) }
func (p *watchedNative) Format() string              { return p.native().Format() }
func (p *watchedNative) Formats() []string           { return p.native().Formats() }
func (p *watchedNative) Send(ctx context.Context, s storage.SendSpec) (io.ReadCloser, error) {
	return p.native().Send(ctx, s)
}

func (p *watchedNative) Receive(ctx context.Context, s storage.ReceiveSpec, format string) (storage.Receive, error) {
	return p.native().Receive(ctx, s, format)
}

func (p *watchedNative) Estimate(ctx context.Context, s storage.SendSpec) (int64, error) {
	return p.native().Estimate(ctx, s)
}

type watchedDir struct{ watched }

func (p *watchedDir) Seal(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	p.used("sealing", key, true)
	return p.Backend.(storage.Sealer).Seal(ctx, key, id, note)
}

func (p *watchedDir) Unseal(ctx context.Context, volume, id string, key storage.HeadKey) (storage.Head, error) {
	return p.Backend.(storage.Sealer).Unseal(ctx, volume, id, key)
}

// portable is a portable stream between memory pools of any kind.
type portable struct{ h *host }

func (p *portable) files(s storage.Snapshot) (poolmemory.Files, error) {
	for _, b := range p.h.pools {
		if f, err := b.SnapshotFiles(s.Volume, s.ID); err == nil {
			return f, nil
		}
	}
	return nil, &api.Error{Kind: api.NotFound, Op: "send snapshot", Object: s.ID}
}

func (p *portable) Send(_ context.Context, s storage.Snapshot, base *storage.Snapshot, offset int64) (io.ReadCloser, error) {
	files, err := p.files(s)
	if err != nil {
		return nil, err
	}
	var d delta
	if base != nil {
		old, err := p.files(*base)
		if err != nil {
			return nil, err
		}
		for path, text := range old {
			if now, there := files[path]; !there {
				d.Gone = append(d.Gone, path)
			} else if now == text {
				delete(files, path)
			}
		}
		slices.Sort(d.Gone)
	}
	d.Put = files
	text, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(newReader(text[min(int(offset), len(text)):])), nil
}

// delta is what such a stream carries.
type delta struct {
	Put  poolmemory.Files `json:"put"`
	Gone []string         `json:"gone,omitempty"`
}

func (p *portable) Receive(_ context.Context, s storage.Stage, _ storage.Fidelity, _ bool) (storage.Receive, error) {
	return &portableIn{stage: s, data: append([]byte(nil), s.Marked()...), kept: int64(len(s.Marked()))}, nil
}

type portableIn struct {
	stage storage.Stage
	data  []byte
	kept  int64
}

func (r *portableIn) Offset() int64 { return r.kept }
func (r *portableIn) Write(p []byte) (int, error) {
	r.data = append(r.data, p...)
	return len(p), nil
}

func (r *portableIn) Checkpoint(ctx context.Context) (int64, error) {
	if err := r.stage.Mark(ctx, r.data); err != nil {
		return r.kept, err
	}
	r.kept = int64(len(r.data))
	return r.kept, nil
}

func (r *portableIn) Commit(ctx context.Context) (storage.Snapshot, error) {
	var d delta
	if err := json.Unmarshal(r.data, &d); err != nil {
		return storage.Snapshot{}, &api.Error{Kind: api.Damaged, Op: "receive", Err: err}
	}
	stage := r.stage.(*faulty.Stage).Stage.(*poolmemory.Stage)
	stage.Remove(d.Gone...)
	stage.Put(d.Put)
	return r.stage.Commit(ctx)
}

func (r *portableIn) Abort(ctx context.Context) error { return r.stage.Abort(ctx) }
func (r *portableIn) Close() error                    { return r.stage.Close() }

// kernel finds users as /proc would show them.
type kernel struct{ h *host }

func (k *kernel) Find(_ context.Context, id storage.Identity) ([]agent.User, error) {
	var out []agent.User
	for name, p := range k.h.pools {
		for _, key := range p.Keys() {
			if id.Root != "/"+k.h.name+"-"+name+"/"+key.String() {
				continue
			}
			for _, path := range p.Mounted(key) {
				out = append(out, agent.User{PID: 1, Command: "init", What: agent.UserMount, Path: path})
			}
			for _, c := range k.h.docker.boundTo(name, key) {
				out = append(out, agent.User{PID: 99, Command: "db", Container: c, What: agent.UserMount, Path: "/data"})
			}
		}
	}
	return out, nil
}

// storeView is the state store as a process on a host reaches it.
type storeView struct {
	*state.Memory
	l *life
}

func (s *storeView) reach() error {
	if s.l.isDead() || s.l.h.w.isCut(s.l.h.name, "store") {
		return &api.Error{Kind: api.Unavailable, Op: "reach the state store", Reason: "it does not answer"}
	}
	return nil
}

func (s *storeView) Get(ctx context.Context, keys ...string) ([]state.Item, int64, error) {
	if err := s.reach(); err != nil {
		return nil, 0, err
	}
	return s.Memory.Get(ctx, keys...)
}

func (s *storeView) List(ctx context.Context, prefix string, revision int64, each func(state.Item) error) (int64, error) {
	if err := s.reach(); err != nil {
		return 0, err
	}
	return s.Memory.List(ctx, prefix, revision, each)
}

func (s *storeView) Commit(ctx context.Context, txn state.Txn) (int64, error) {
	if err := s.reach(); err != nil {
		return 0, err
	}
	return s.Memory.Commit(ctx, txn)
}

// Watch is late now and then, as a real one: answers of calls overtake it.
func (s *storeView) Watch(ctx context.Context, prefix string, after int64) <-chan state.Batch {
	in, out := s.Memory.Watch(ctx, prefix, after), make(chan state.Batch)
	go func() {
		defer close(out)
		for b := range in {
			if s.l.h.w.rand(4) == 0 {
				time.Sleep(time.Duration(s.l.h.w.rand(2000)) * time.Millisecond)
			}
			for s.reach() != nil && ctx.Err() == nil {
				time.Sleep(100 * time.Millisecond)
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// books is the ledger as an agent reaches it.
type books struct {
	w *world
	l *life
}

func (b *books) service() *ledger.Service {
	return &ledger.Service{Store: state.New(&storeView{b.w.kv, b.l}), Now: time.Now, NewID: b.w.newID, Grace: b.w.truth.Grace}
}

func (b *books) call(name string, f func(*ledger.Service) (api.Volume, error)) (api.Volume, error) {
	return through(b.l, "ledger "+name, func() (api.Volume, error) {
		v, err := f(b.service())
		if err == nil {
			h := v.Heads[api.MainBranch]
			b.w.logf("%s: ledger %s: owner %s/%s epoch %d ready %v from %q move %v", b.l.h.name, name, h.Node, h.Pool, h.Epoch, h.Ready, h.From, h.Move != nil)
		}
		return v, err
	})
}

func (b *books) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return b.service().Volume(ctx, ref)
}

func (b *books) Create(ctx context.Context, c ledger.Create) (api.Volume, error) {
	return b.call("Create", func(s *ledger.Service) (api.Volume, error) { return s.Create(ctx, c) })
}

func (b *books) RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error) {
	return b.call("RequestMove", func(s *ledger.Service) (api.Volume, error) { return s.RequestMove(ctx, id, branch, m) })
}

func (b *books) CancelMove(ctx context.Context, id, branch, move string) (api.Volume, error) {
	return b.call("CancelMove", func(s *ledger.Service) (api.Volume, error) { return s.CancelMove(ctx, id, branch, move) })
}

func (b *books) Hand(ctx context.Context, id, branch string, o ledger.HandOver) (api.Volume, error) {
	return b.call("Hand", func(s *ledger.Service) (api.Volume, error) { return s.Hand(ctx, id, branch, o) })
}

func (b *books) Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return b.call("Ready", func(s *ledger.Service) (api.Volume, error) { return s.Ready(ctx, id, branch, node, epoch) })
}

func (b *books) Settled(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return b.call("Settled", func(s *ledger.Service) (api.Volume, error) { return s.Settled(ctx, id, branch, node, epoch) })
}

func (b *books) Returned(ctx context.Context, id, branch, node string) (api.Volume, error) {
	return b.call("Returned", func(s *ledger.Service) (api.Volume, error) { return s.Returned(ctx, id, branch, node) })
}

func (b *books) Resize(ctx context.Context, id string, size int64) (api.Volume, error) {
	return b.call("Resize", func(s *ledger.Service) (api.Volume, error) { return s.Resize(ctx, id, size) })
}

func (b *books) Delete(ctx context.Context, id, by string) (api.Volume, error) {
	return b.call("Delete", func(s *ledger.Service) (api.Volume, error) { return s.Delete(ctx, id, by) })
}

func (b *books) BeginPurge(ctx context.Context, id string) (api.Volume, error) {
	return b.call("BeginPurge", func(s *ledger.Service) (api.Volume, error) { return s.BeginPurge(ctx, id) })
}

func (b *books) Change(ctx context.Context, id string, c ledger.Change) (api.Volume, error) {
	return b.call("Change "+c.What(), func(s *ledger.Service) (api.Volume, error) {
		v, err := s.Change(ctx, id, c.For(b.l.h.name))
		if err == nil {
			b.w.told(v, c)
		}
		return v, err
	})
}

func (b *books) AdvanceAll(ctx context.Context, moves map[string]ledger.Advance) (map[string]api.Volume, error) {
	return through(b.l, "ledger AdvanceAll", func() (map[string]api.Volume, error) { return b.service().AdvanceAll(ctx, moves) })
}

func (b *books) Forget(ctx context.Context, id, branch, node string, epoch uint64) error {
	_, err := b.call("Forget", func(s *ledger.Service) (api.Volume, error) {
		return api.Volume{}, s.Forget(ctx, id, branch, node, epoch)
	})
	return err
}

// network is the other hosts' agents as one agent reaches them.
type network struct {
	w *world
	l *life
}

func (n *network) to(name string) (*life, error) {
	h := n.w.hosts[name]
	if h == nil || n.w.isCut(n.l.h.name, name) || n.l.isDead() {
		return nil, &api.Error{Kind: api.Unavailable, Op: "reach node", Object: name, Reason: "no answer"}
	}
	if l := h.current(); l != nil {
		return l, nil
	}
	return nil, &api.Error{Kind: api.Unavailable, Op: "reach node", Object: name, Reason: "connection refused"}
}

func (n *network) call(name, what string, f func(*life) error) error {
	_, err := through(n.l, "peer "+what, func() (struct{}, error) {
		l, err := n.to(name)
		if err != nil {
			return struct{}{}, err
		}
		err = f(l)
		if l.isDead() {
			err = &api.Error{Kind: api.Unavailable, Op: "reach node", Object: name, Reason: "connection reset"}
		}
		return struct{}{}, err
	})
	return err
}

func (n *network) Pull(ctx context.Context, node string, r peer.Pull) error {
	return n.call(node, "Pull", func(l *life) error { return l.a.Pull(ctx, r) })
}

func (n *network) Prepare(ctx context.Context, node string, p peer.Preparation) error {
	return n.call(node, "Prepare", func(l *life) error { return l.a.Prepare(ctx, p) })
}

func (n *network) Status(ctx context.Context, node, volume, branch string) (s api.HeadStatus, err error) {
	err = n.call(node, "Status", func(l *life) error {
		s, err = l.a.Status(ctx, volume, branch)
		return err
	})
	return s, err
}

func (n *network) Delete(ctx context.Context, node, volume, by string) error {
	return n.call(node, "Delete", func(l *life) error { return l.a.Delete(ctx, volume, by) })
}

func (n *network) Held(ctx context.Context, node, volume string) (list []api.HeldSnapshot, err error) {
	err = n.call(node, "Held", func(l *life) error { list, err = l.a.Held(ctx, volume); return err })
	return list, err
}

func (n *network) Hold(ctx context.Context, node string, r peer.Hold) (held peer.Held, err error) {
	err = n.call(node, "Hold", func(l *life) error { held, err = l.a.Hold(ctx, r); return err })
	return held, err
}

func (n *network) Take(ctx context.Context, node string, r peer.Take) error {
	return n.call(node, "Take", func(l *life) error { return l.a.Take(ctx, r) })
}

func (n *network) Release(ctx context.Context, node string, r peer.Release) error {
	return n.call(node, "Release", func(l *life) error { return l.a.Release(ctx, r) })
}

func (n *network) Key(_ context.Context, node string, r peer.KeyRequest) (k peer.Key, err error) {
	err = n.call(node, "Key", func(l *life) error { k, err = l.a.KeyFor(r.ID); return err })
	return k, err
}

func (n *network) Dial(_ context.Context, node string) (net.Conn, error) {
	return through(n.l, "peer Dial", func() (net.Conn, error) {
		l, err := n.to(node)
		if err != nil {
			return nil, err
		}
		mine, theirs := net.Pipe()
		n.w.mu.Lock()
		left := n.w.wire
		n.w.mu.Unlock()
		if !n.l.hold(mine) || !l.hold(theirs) {
			mine.Close()
			theirs.Close()
			return nil, &api.Error{Kind: api.Unavailable, Op: "reach node", Object: node}
		}
		go func() {
			err := l.a.Target.Serve(l.ctx(), theirs, n.l.h.name)
			n.w.logf("%s: session from %s ended: %v", l.h.name, n.l.h.name, err)
			l.letGo(theirs)
		}()
		return &wire{Conn: mine, n: n, peer: node, left: left, counts: left > 0}, nil
	})
}

func (l *life) ctx() context.Context { return l.alive }

func (l *life) hold(c io.Closer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return false
	}
	l.conns[c] = true
	return true
}

func (l *life) letGo(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// wire is a connection that partitions and the script cut.
type wire struct {
	net.Conn
	n      *network
	peer   string
	left   int64
	counts bool
}

func (c *wire) Write(p []byte) (int, error) {
	if c.n.w.isCut(c.n.l.h.name, c.peer) {
		c.Conn.Close()
		return 0, fmt.Errorf("the connection was reset")
	}
	if c.counts && int64(len(p)) > c.left {
		n, _ := c.Conn.Write(p[:c.left])
		c.left = 0
		c.Conn.Close()
		return n, fmt.Errorf("the connection was cut")
	}
	c.left -= int64(len(p))
	return c.Conn.Write(p)
}

func (c *wire) Close() error {
	c.n.l.letGo(c.Conn)
	return c.Conn.Close()
}

type sliceReader struct{ data []byte }

func newReader(data []byte) io.Reader { return &sliceReader{data} }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
