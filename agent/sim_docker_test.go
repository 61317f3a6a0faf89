package agent_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/container/memory"
	"github.com/drover-data/drover/storage"
)

// docker is a host's container engine: it asks the plugin to mount, and its
// containers write records to the volume that was mounted when they started.
type docker struct {
	*memory.Engine
	h *host

	mu     sync.Mutex
	off    bool                // guarded by mu; the host is being rebooted
	starts int                 // guarded by mu
	bound  map[string]*binding // guarded by mu; by container id, while it runs
}

// binding is a running container's volume.
type binding struct {
	pool   string
	key    storage.HeadKey
	volume string // name for the plugin
	mount  string // id for the plugin
	stop   chan struct{}
	over   chan struct{}
}

func newDocker(h *host) *docker {
	return &docker{Engine: memory.New(h.name, time.Now, nil), h: h, bound: map[string]*binding{}}
}

// plugin gives the agent behind the plugin's socket.
func (d *docker) plugin() (*agent.Agent, error) {
	if l := d.h.current(); l != nil {
		return l.a, nil
	}
	return nil, fmt.Errorf("error while mounting volume: VolumeDriver.Mount: dial unix /run/docker/plugins/drover.sock: connection refused")
}

// boundTo lists the running containers that have the head.
func (d *docker) boundTo(pool string, key storage.HeadKey) (ids []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, b := range d.bound {
		if b.pool == pool && b.key == key {
			ids = append(ids, id)
		}
	}
	return ids
}

// writing gives a container that can write the head now; paused ones count
// when told so.
func (d *docker) writing(pool string, key storage.HeadKey, paused bool) string {
	for _, id := range d.boundTo(pool, key) {
		c, err := d.Engine.Inspect(context.Background(), id)
		if err == nil && (c.State == container.Running || paused && c.State == container.Paused) {
			return c.Name
		}
	}
	return ""
}

// start is docker start.
func (d *docker) start(ctx context.Context, id string) error {
	c, err := d.Engine.Inspect(ctx, id)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.starts++
	mount := fmt.Sprintf("%s.%d", c.ID, d.starts)
	if d.off || d.bound[c.ID] != nil {
		off := d.off
		d.mu.Unlock()
		if off {
			return &api.Error{Kind: api.Unavailable, Op: "start container", Object: c.Name, Reason: "the host goes down"}
		}
		return nil
	}
	b := &binding{volume: c.Mounts[0].Volume, mount: mount, stop: make(chan struct{}), over: make(chan struct{})}
	d.bound[c.ID] = b // a second start finds it
	b.pool = "?"
	d.mu.Unlock()
	if err := d.bring(ctx, c, b); err != nil {
		d.mu.Lock()
		delete(d.bound, c.ID)
		d.mu.Unlock()
		close(b.over)
		_ = d.Engine.Fail(c.ID, err.Error())
		return &api.Error{Kind: api.Internal, Op: "start container", Object: c.Name, Err: err}
	}
	return nil
}

func (d *docker) bring(ctx context.Context, c container.Container, b *binding) error {
	a, err := d.plugin()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 120*time.Second)
	defer cancel()
	path, err := a.Mount(ctx, b.volume, b.mount)
	if err != nil {
		return err
	}
	undo := func() { go func() { _ = a.Unmount(context.Background(), b.volume, b.mount) }() }
	time.Sleep(time.Duration(d.h.w.rand(1500)) * time.Millisecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	pool, key, ok := d.h.mountAt(path)
	if !ok || d.off {
		undo()
		return fmt.Errorf("the mount point %s does not exist", path)
	}
	b.pool, b.key = pool, key
	if err := d.Engine.Start(ctx, c.ID); err != nil {
		undo()
		return err
	}
	d.h.w.logf("%s: container %s runs", d.h.name, c.Name)
	go d.write(c, b)
	return nil
}

// write is the program in the container: a database that says "committed"
// only for what it wrote, and looks on each step that nothing is missing.
func (d *docker) write(c container.Container, b *binding) {
	defer close(b.over)
	for {
		select {
		case <-b.stop:
			return
		case <-time.After(d.h.w.pace()):
		}
		if now, err := d.Engine.Inspect(context.Background(), c.ID); err != nil || now.State != container.Running {
			continue
		}
		d.record(c, b)
	}
}

// pace is how long a container thinks between two records.
func (w *world) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.quiet {
		return 5 * time.Second
	}
	return time.Duration(100+w.rng.IntN(900)) * time.Millisecond
}

func record(n int) string { return fmt.Sprintf("r%06d", n) }

func (d *docker) record(c container.Container, b *binding) {
	w := d.h.w
	v, err := w.truth.Volume(context.Background(), b.key.Volume)
	if err != nil {
		w.fail("%s: container %s writes to a volume without a record: %v", d.h.name, c.Name, err)
		return
	}
	h := v.Heads[b.key.Branch]
	if h.Node != d.h.name || h.Pool != b.pool {
		w.fail("%s: container %s writes in pool %s while %s/%s owns epoch %d", d.h.name, c.Name, b.pool, h.Node, h.Pool, h.Epoch)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	line := b.key.String()
	if h.Epoch != w.lines[line].epoch || w.lines[line].records == nil {
		// A new epoch begins as what the history says.
		w.lines[line] = w.begun(b.key.Branch, v, h)
	}
	want := w.lines[line]
	files, err := d.h.pools[b.pool].Files(b.key)
	if err != nil {
		if !api.Is(err, api.Unavailable) {
			w.broken = append(w.broken, fmt.Sprintf("%s: container %s lost its head: %v", d.h.name, c.Name, err))
		}
		return
	}
	if lost := missingRecords(want.records, files); lost != "" {
		w.broken = append(w.broken, fmt.Sprintf("%s: container %s does not see record %s of %d acknowledged ones in %s epoch %d", d.h.name, c.Name, lost, len(want.records), line, h.Epoch))
		w.lines[line] = contentLine{h.Epoch, maps.Clone(files)}
		return
	}
	w.records++
	if d.h.pools[b.pool].Put(b.key, map[string]string{record(w.records): c.Name}) == nil {
		want.records[record(w.records)] = c.Name
	}
}

// finish ends a container's program after what the engine did with it.
func (d *docker) finish(id string) {
	d.mu.Lock()
	b := d.bound[id]
	d.mu.Unlock()
	if b == nil || b.pool == "?" {
		return
	}
	select {
	case <-b.stop:
	default:
		close(b.stop)
	}
	<-b.over
	d.mu.Lock()
	delete(d.bound, id)
	d.mu.Unlock()
	if a, err := d.plugin(); err == nil {
		go func() { _ = a.Unmount(context.Background(), b.volume, b.mount) }()
	}
}

// stop is docker stop.
func (d *docker) stop(ctx context.Context, id string) error {
	c, err := d.Engine.Inspect(ctx, id)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !c.State.Uses() {
		return nil
	}
	time.Sleep(time.Duration(d.h.w.rand(2500)) * time.Millisecond)
	if err := d.Engine.Stop(context.WithoutCancel(ctx), c.ID, 0); err != nil {
		return err
	}
	d.h.w.logf("%s: container %s has stopped", d.h.name, c.Name)
	d.finish(c.ID)
	return nil
}

// powerOff ends everything at once.
func (d *docker) powerOff() {
	d.mu.Lock()
	d.off = true
	all := map[string]*binding{}
	for id, b := range d.bound {
		all[id] = b
	}
	d.mu.Unlock()
	for id, b := range all {
		if b.pool == "?" {
			<-b.over
			continue
		}
		select {
		case <-b.stop:
		default:
			close(b.stop)
		}
		<-b.over
		_ = d.Engine.Stop(context.Background(), id, 0)
		d.mu.Lock()
		delete(d.bound, id)
		d.mu.Unlock()
	}
}

// boot starts what has to run again, and returns when the engine has tried.
func (d *docker) boot() {
	d.mu.Lock()
	d.off = false
	d.mu.Unlock()
	list, _ := d.Engine.List(context.Background(), "")
	var started sync.WaitGroup
	defer started.Wait()
	for _, c := range list {
		if c.Restart == "always" {
			started.Go(func() {
				time.Sleep(time.Duration(d.h.w.rand(2000)) * time.Millisecond)
				err := d.start(context.Background(), c.ID)
				d.h.w.logf("%s: docker starts %s after the boot: %v", d.h.name, c.Name, err)
			})
		}
	}
}

// engine is docker as an agent reaches it.
type engine struct {
	*docker
	l *life
}

func (e *engine) List(ctx context.Context, driver string) ([]container.Container, error) {
	if e.l.isDead() {
		return nil, gone("list")
	}
	return e.docker.Engine.List(ctx, driver)
}

func (e *engine) Inspect(ctx context.Context, id string) (container.Container, error) {
	if e.l.isDead() {
		return container.Container{}, gone("inspect")
	}
	return e.docker.Engine.Inspect(ctx, id)
}

func (e *engine) do(name string, f func() error) error {
	_, err := through(e.l, "engine "+name, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (e *engine) Pause(ctx context.Context, id string) error {
	return e.do("Pause", func() error { return e.docker.Engine.Pause(ctx, id) })
}

func (e *engine) Unpause(ctx context.Context, id string) error {
	return e.do("Unpause", func() error { return e.docker.Engine.Unpause(ctx, id) })
}

func (e *engine) Stop(ctx context.Context, id string, _ time.Duration) error {
	return e.do("Stop", func() error { return e.stop(ctx, id) })
}

func (e *engine) Start(ctx context.Context, id string) error {
	return e.do("Start", func() error { return e.start(ctx, id) })
}

func (e *engine) SetRestart(ctx context.Context, id, policy string) error {
	return e.do("SetRestart", func() error { return e.docker.Engine.SetRestart(ctx, id, policy) })
}

func (e *engine) Exec(ctx context.Context, id string, command []string) (out []byte, err error) {
	err = e.do("Exec", func() error { out, err = e.docker.Engine.Exec(ctx, id, command); return err })
	return out, err
}

func (e *engine) Export(ctx context.Context, id string) (s container.Spec, err error) {
	err = e.do("Export", func() error { s, err = e.docker.Engine.Export(ctx, id); return err })
	return s, err
}

func (e *engine) CheckImport(ctx context.Context, s container.Spec) error {
	return e.do("CheckImport", func() error { return e.docker.Engine.CheckImport(ctx, s) })
}

func (e *engine) Import(ctx context.Context, s container.Spec) (id string, err error) {
	err = e.do("Import", func() error { id, err = e.docker.Engine.Import(ctx, s); return err })
	return id, err
}

func (e *engine) Remove(ctx context.Context, id string) error {
	return e.do("Remove", func() error { return e.docker.Engine.Remove(ctx, id) })
}
