// Package memory is a container.Engine that exists in memory, for simulations
// and tests. It has no clock and no goroutines: what happens is what its
// callers do, in their order. It must not know Docker.
package memory

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// Hook is called before each operation, without locks held; an error it
// returns is the operation's. It may block, or call the engine.
type Hook func(op, id string) error

// Engine is one host's engine. The zero value is not usable; see New.
type Engine struct {
	now  func() time.Time
	hook Hook

	mu         sync.Mutex // guards all below
	down       bool
	next       int
	host       string
	containers map[string]*record
	images     map[string]bool
	exec       func(id string, command []string) ([]byte, error)
	watchers   map[int]func(id string)
}

type record struct {
	container.Container
	Digest string // of the spec that Import made it from
}

var _ container.Engine = (*Engine)(nil)

// New makes an engine of a host. now gives Container.Started; hook may be nil.
func New(host string, now func() time.Time, hook Hook) *Engine {
	if hook == nil {
		hook = func(string, string) error { return nil }
	}
	return &Engine{
		now: now, hook: hook, host: host, containers: map[string]*record{}, images: map[string]bool{},
		watchers: map[int]func(string){},
	}
}

// Add makes a container as a user would. Its ID is given when it has none, its
// image becomes known here.
func (e *Engine) Add(c container.Container) (string, error) {
	e.mu.Lock()
	if e.find(c.Name) != nil {
		e.mu.Unlock()
		return "", &api.Error{Kind: api.Exists, Op: "make container", Object: c.Name}
	}
	if c.ID == "" {
		e.next++
		c.ID = fmt.Sprintf("%s-%06d", e.host, e.next)
	}
	if c.State == "" {
		c.State = container.Created
	}
	if c.Restart == "" {
		c.Restart = "no"
	}
	e.images[c.ImageID] = true
	e.containers[c.ID] = &record{Container: clone(c)}
	e.mu.Unlock()
	e.tell(c.ID)
	return c.ID, nil
}

// AddImage makes an image present.
func (e *Engine) AddImage(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[id] = true
}

// SetDown makes the engine answer Unavailable, as a daemon that is stopped:
// its containers go on. Up again, watchers hear that they may have missed something.
func (e *Engine) SetDown(down bool) {
	e.mu.Lock()
	e.down = down
	e.mu.Unlock()
	if !down {
		e.tell("")
	}
}

// End makes a running container end by itself with an exit code.
func (e *Engine) End(id string, exit int) error {
	_, err := e.edit("end", id, func(c *record) error {
		c.State, c.Exit = container.Exited, exit
		return nil
	})
	return err
}

// Fail makes a container that does not run remember why its last start failed.
func (e *Engine) Fail(id, text string) error {
	_, err := e.edit("fail", id, func(c *record) error {
		c.Error = text
		return nil
	})
	return err
}

// OnExec sets what Exec does; without it every command succeeds silently.
func (e *Engine) OnExec(f func(id string, command []string) ([]byte, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exec = f
}

func clone(c container.Container) container.Container {
	c.Labels, c.Mounts = maps.Clone(c.Labels), slices.Clone(c.Mounts)
	return c
}

// find looks up by id or name. The caller holds mu.
func (e *Engine) find(id string) *record {
	if c := e.containers[id]; c != nil {
		return c
	}
	for _, c := range e.containers {
		if c.Name == id && id != "" {
			return c
		}
	}
	return nil
}

// begin is the start of every operation.
func (e *Engine) begin(ctx context.Context, op, id string) error {
	if err := ctx.Err(); err != nil {
		return &api.Error{Kind: api.Canceled, Op: op + " container", Object: id, Err: context.Cause(ctx)}
	}
	if err := e.hook(op, id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return &api.Error{Kind: api.Unavailable, Op: op + " container", Object: id, Reason: "the container engine does not answer"}
	}
	return nil
}

func notFound(op, id string) error {
	return &api.Error{Kind: api.NotFound, Op: op + " container", Object: id, Reason: "there is no such container"}
}

// edit changes one container and tells watchers.
func (e *Engine) edit(op, id string, f func(*record) error) (container.Container, error) {
	e.mu.Lock()
	c := e.find(id)
	if c == nil {
		e.mu.Unlock()
		return container.Container{}, notFound(op, id)
	}
	before := c.State
	err := f(c)
	out, changed := clone(c.Container), c.State != before
	e.mu.Unlock()
	if changed {
		e.tell(out.ID)
	}
	return out, err
}

func (e *Engine) tell(id string) {
	e.mu.Lock()
	calls := make([]func(string), 0, len(e.watchers))
	for _, k := range slices.Sorted(maps.Keys(e.watchers)) {
		calls = append(calls, e.watchers[k])
	}
	e.mu.Unlock()
	for _, f := range calls {
		f(id)
	}
}

func (e *Engine) change(ctx context.Context, op, id string, f func(*record) error) error {
	if err := e.begin(ctx, op, id); err != nil {
		return err
	}
	_, err := e.edit(op, id, f)
	return err
}

// List gives all containers with a mount of the driver, in the order of ids.
func (e *Engine) List(ctx context.Context, driver string) ([]container.Container, error) {
	if err := e.begin(ctx, "list", ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []container.Container
	for _, id := range slices.Sorted(maps.Keys(e.containers)) {
		c := e.containers[id]
		if driver == "" || slices.ContainsFunc(c.Mounts, func(m container.Mount) bool { return m.Driver == driver }) {
			all = append(all, clone(c.Container))
		}
	}
	return all, nil
}

// Inspect gives one.
func (e *Engine) Inspect(ctx context.Context, id string) (container.Container, error) {
	if err := e.begin(ctx, "inspect", id); err != nil {
		return container.Container{}, err
	}
	return e.edit("inspect", id, func(*record) error { return nil })
}

// Pause holds a running container.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.change(ctx, "pause", id, func(c *record) error {
		if !c.State.Uses() {
			return &api.Error{Kind: api.Conflict, Op: "pause container", Object: id, Reason: "it does not run"}
		}
		c.State = container.Paused
		return nil
	})
}

// Unpause lets it go on.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.change(ctx, "unpause", id, func(c *record) error {
		if c.State == container.Paused {
			c.State = container.Running
		}
		return nil
	})
}

// Stop ends it at once: there is no clock.
func (e *Engine) Stop(ctx context.Context, id string, _ time.Duration) error {
	return e.change(ctx, "stop", id, func(c *record) error {
		if c.State.Uses() {
			c.State, c.Exit = container.Exited, 0
		}
		return nil
	})
}

// Start starts it.
func (e *Engine) Start(ctx context.Context, id string) error {
	now := e.now()
	return e.change(ctx, "start", id, func(c *record) error {
		if c.State != container.Running {
			c.State, c.Started, c.Error, c.Exit = container.Running, now, "", 0
		}
		return nil
	})
}

// SetRestart changes the policy.
func (e *Engine) SetRestart(ctx context.Context, id, policy string) error {
	return e.change(ctx, "set restart of", id, func(c *record) error {
		c.Restart = policy
		return nil
	})
}

// Exec runs what OnExec set.
func (e *Engine) Exec(ctx context.Context, id string, command []string) ([]byte, error) {
	if err := e.begin(ctx, "exec", id); err != nil {
		return nil, err
	}
	c, err := e.edit("exec", id, func(*record) error { return nil })
	if err != nil {
		return nil, err
	}
	if c.State != container.Running {
		return nil, &api.Error{Kind: api.Conflict, Op: "run in container", Object: id, Reason: "it does not run"}
	}
	e.mu.Lock()
	f := e.exec
	e.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	return f(c.ID, command)
}

// Export describes a container.
func (e *Engine) Export(ctx context.Context, id string) (container.Spec, error) {
	c, err := e.Inspect(ctx, id)
	if err != nil {
		return container.Spec{}, err
	}
	s := container.Spec{Engine: "memory", Name: c.Name, Image: c.Image, ImageID: c.ImageID}
	// What the engine gave and what happened to it stays behind.
	c.ID, c.State, c.Error, c.Exit, c.Started = "", "", "", 0, time.Time{}
	s.Data, err = json.Marshal(c)
	return s, err
}

// CheckImport says whether Import would work.
func (e *Engine) CheckImport(ctx context.Context, s container.Spec) error {
	if err := e.begin(ctx, "check import of", s.Name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err := e.importable(s)
	return err
}

// importable gives the id of what an earlier Import made. The caller holds mu.
func (e *Engine) importable(s container.Spec) (string, error) {
	if s.Engine != "memory" {
		return "", &api.Error{Kind: api.Invalid, Op: "make container", Object: s.Name, Reason: fmt.Sprintf("it is for engine %q", s.Engine)}
	}
	if c := e.find(s.Name); c != nil {
		if c.Digest == digest(s) {
			return c.ID, nil
		}
		return "", &api.Error{Kind: api.Exists, Op: "make container", Object: s.Name, Reason: "this host has another container of that name"}
	}
	if !e.images[s.ImageID] {
		return "", &api.Error{Kind: api.NotFound, Op: "make container", Object: s.Name, Reason: "this host does not have its image " + s.Image}
	}
	return "", nil
}

func digest(s container.Spec) string { return s.Name + "\x00" + s.ImageID + "\x00" + string(s.Data) }

// Import makes the container, stopped.
func (e *Engine) Import(ctx context.Context, s container.Spec) (string, error) {
	if err := e.begin(ctx, "import", s.Name); err != nil {
		return "", err
	}
	e.mu.Lock()
	id, err := e.importable(s)
	e.mu.Unlock()
	if err != nil || id != "" {
		return id, err
	}
	var c container.Container
	if err := json.Unmarshal(s.Data, &c); err != nil {
		return "", &api.Error{Kind: api.Invalid, Op: "make container", Object: s.Name, Err: err}
	}
	c.Name, c.Image, c.ImageID = s.Name, s.Image, s.ImageID
	id, err = e.Add(c)
	if err != nil {
		return "", err
	}
	_, err = e.edit("import", id, func(r *record) error {
		r.Digest = digest(s)
		return nil
	})
	return id, err
}

// Remove removes a stopped container.
func (e *Engine) Remove(ctx context.Context, id string) error {
	if err := e.begin(ctx, "remove", id); err != nil {
		return err
	}
	e.mu.Lock()
	c := e.find(id)
	if c == nil {
		e.mu.Unlock()
		return nil
	}
	if c.State.Uses() {
		e.mu.Unlock()
		return &api.Error{Kind: api.InUse, Op: "remove container", Object: id, Reason: "it runs", Next: "stop it first"}
	}
	delete(e.containers, c.ID)
	e.mu.Unlock()
	e.tell(c.ID)
	return nil
}

// Watch calls changed from within the calls that change something.
func (e *Engine) Watch(ctx context.Context, changed func(id string)) error {
	e.mu.Lock()
	e.next++
	k := e.next
	e.watchers[k] = changed
	e.mu.Unlock()
	changed("")
	<-ctx.Done()
	e.mu.Lock()
	delete(e.watchers, k)
	e.mu.Unlock()
	return &api.Error{Kind: api.Canceled, Op: "watch containers", Err: context.Cause(ctx)}
}

// Ping answers unless the engine is down.
func (e *Engine) Ping(ctx context.Context) (string, error) {
	if err := e.begin(ctx, "ping", ""); err != nil {
		return "", err
	}
	return "memory on " + e.host, nil
}
