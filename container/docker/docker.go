// Package docker implements container.Engine on Docker's API, as Docker and
// Podman serve it. It must not know volumes' history or clusters: it describes
// containers, stops and starts them, and makes the same ones elsewhere.
package docker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// Options says where the engine listens.
type Options struct {
	// Host is the engine's address. Default unix:///run/docker.sock.
	Host string
	// Patience is how long it may take to say what containers there are, and
	// what one of them is. An engine that hangs must not hang whoever only
	// wants to know who uses a volume. Default 10 s.
	Patience time.Duration
}

// Engine speaks to one engine. It may be used by several goroutines.
type Engine struct {
	host     string
	patience time.Duration
	cli      *client.Client
}

var (
	_ container.Engine   = (*Engine)(nil)
	_ container.Sessions = (*Engine)(nil)
	_ container.Runs     = (*Engine)(nil)
)

// New makes an Engine. It does not connect: an engine that is down now may be
// there later.
func New(o Options) (*Engine, error) {
	if o.Host == "" {
		o.Host = "unix:///run/docker.sock"
	}
	cli, err := client.New(client.WithHost(o.Host))
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: "connect to the container engine", Object: o.Host, Err: err}
	}
	return &Engine{host: o.Host, patience: cmp.Or(o.Patience, 10*time.Second), cli: cli}, nil
}

// Close lets go of idle connections.
func (e *Engine) Close() error { return e.cli.Close() }

// fail translates the engine's error once.
func (e *Engine) fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*api.Error](err); ok {
		return own
	}
	out := &api.Error{Kind: api.Internal, Op: op, Object: object, Err: err}
	switch {
	case errors.Is(err, context.Canceled):
		out.Kind = api.Canceled
	case client.IsErrConnectionFailed(err), errdefs.IsUnavailable(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		out.Kind, out.Reason, out.Next = api.Unavailable, "the container engine at "+e.host+" does not answer", "look whether it runs, then repeat"
	case errdefs.IsNotFound(err):
		out.Kind = api.NotFound
	case errdefs.IsConflict(err):
		out.Kind = api.Conflict
	case errdefs.IsInvalidArgument(err):
		out.Kind = api.Invalid
	case errdefs.IsNotImplemented(err):
		out.Kind = api.Unsupported
	case errdefs.IsPermissionDenied(err):
		out.Kind = api.Denied
	}
	return out
}

// Ping gives name, version and API version.
func (e *Engine) Ping(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	v, err := e.cli.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return "", e.fail("ask the container engine", e.host, err)
	}
	name := "Docker"
	for _, c := range v.Components {
		if strings.Contains(strings.ToLower(c.Name), "podman") {
			name = "Podman"
		}
	}
	return fmt.Sprintf("%s %s (API %s)", name, v.Version, v.APIVersion), nil
}

// List gives what the engine's own list says. It asks nothing of the
// containers themselves: one that is just starting would not answer before
// its volumes are mounted, and those who mount them call this.
func (e *Engine) List(ctx context.Context, driver string) ([]container.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	res, err := e.cli.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, e.fail("list containers", "", err)
	}
	var all []container.Container
	for _, item := range res.Items {
		if driver != "" && !usesDriver(item.Mounts, driver) {
			continue
		}
		c := container.Container{ID: item.ID, Image: item.Image, ImageID: item.ImageID, State: state(item.State), Labels: item.Labels, Mounts: mounts(item.Mounts)}
		if len(item.Names) > 0 {
			c.Name = strings.TrimPrefix(item.Names[0], "/")
		}
		all = append(all, c)
	}
	return all, nil
}

func mounts(list []moby.MountPoint) []container.Mount {
	var out []container.Mount
	for _, m := range list {
		out = append(out, container.Mount{Volume: m.Name, Driver: m.Driver, Source: m.Source, Target: m.Destination, ReadOnly: !m.RW})
	}
	return out
}

func usesDriver(mounts []moby.MountPoint, driver string) bool {
	for _, m := range mounts {
		if m.Driver == driver {
			return true
		}
	}
	return false
}

// Inspect gives one container.
func (e *Engine) Inspect(ctx context.Context, id string) (container.Container, error) {
	c, err := e.inspect(ctx, id)
	if err != nil {
		return container.Container{}, err
	}
	return describe(c), nil
}

func (e *Engine) inspect(ctx context.Context, id string) (moby.InspectResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	res, err := e.cli.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return moby.InspectResponse{}, e.fail("inspect container", id, err)
	}
	c := res.Container
	if c.Config == nil || c.HostConfig == nil || c.State == nil {
		return c, &api.Error{Kind: api.Internal, Op: "inspect container", Object: id, Reason: "the engine's answer lacks its configuration or state"}
	}
	return c, nil
}

func describe(c moby.InspectResponse) container.Container {
	out := container.Container{
		ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), Image: c.Config.Image, ImageID: c.Image,
		State: state(c.State.Status), Error: c.State.Error, Exit: c.State.ExitCode, Labels: c.Config.Labels,
		Restart: string(c.HostConfig.RestartPolicy.Name),
	}
	if out.Restart == "" {
		out.Restart = "no"
	}
	if t, err := time.Parse(time.RFC3339Nano, c.State.StartedAt); err == nil && t.Year() > 1 {
		out.Started = t
	}
	out.Mounts = mounts(c.Mounts)
	return out
}

func state(s moby.ContainerState) container.State {
	switch s {
	case moby.StateRemoving:
		return container.Dead
	case "initialized", "configured": // Podman's
		return container.Created
	case "stopped", "stopping":
		// Podman: "stopping" still runs.
		if s == "stopping" {
			return container.Running
		}
		return container.Exited
	}
	return container.State(s)
}

// Pause holds all processes. Paused already is success.
func (e *Engine) Pause(ctx context.Context, id string) error {
	_, err := e.cli.ContainerPause(ctx, id, client.ContainerPauseOptions{})
	return e.unless(ctx, "pause container", id, err, func(c container.Container) bool { return c.State == container.Paused })
}

// Unpause lets processes go on. Not paused is success.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	_, err := e.cli.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
	return e.unless(ctx, "unpause container", id, err, func(c container.Container) bool { return c.State == container.Running })
}

// unless forgives an error when the container is already as it was to become.
func (e *Engine) unless(ctx context.Context, op, id string, err error, fine func(container.Container) bool) error {
	if err == nil {
		return nil
	}
	if c, look := e.Inspect(ctx, id); look == nil && fine(c) {
		return nil
	}
	return e.fail(op, id, err)
}

// Stop ends a container. A paused one gets the chance to end in order.
func (e *Engine) Stop(ctx context.Context, id string, timeout time.Duration) error {
	c, err := e.Inspect(ctx, id)
	if err != nil {
		return err
	}
	if c.State == container.Paused {
		if err := e.Unpause(ctx, id); err != nil {
			return err
		}
	}
	var o client.ContainerStopOptions
	if timeout > 0 {
		seconds := int((timeout + time.Second - 1) / time.Second)
		o.Timeout = &seconds
	}
	_, err = e.cli.ContainerStop(ctx, id, o)
	return e.unless(ctx, "stop container", id, err, func(c container.Container) bool { return !c.State.Uses() })
}

// Start starts a container. Running already is success.
func (e *Engine) Start(ctx context.Context, id string) error {
	_, err := e.cli.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return e.unless(ctx, "start container", id, err, func(c container.Container) bool { return c.State == container.Running })
}

// SetRestart changes the restart policy: "no", "always", "unless-stopped" or
// "on-failure[:n]".
func (e *Engine) SetRestart(ctx context.Context, id, policy string) error {
	name, count, _ := strings.Cut(policy, ":")
	p := moby.RestartPolicy{Name: moby.RestartPolicyMode(name)}
	if count != "" {
		if _, err := fmt.Sscan(count, &p.MaximumRetryCount); err != nil {
			return &api.Error{Kind: api.Invalid, Op: "set restart policy", Object: id, Reason: fmt.Sprintf("%q is not a number of tries", count)}
		}
	}
	const op = "set restart policy"
	_, err := e.cli.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{RestartPolicy: &p})
	if !errdefs.IsNotFound(err) {
		return e.fail(op, id, err)
	}
	// Podman before version 4.4 does not know the call. Most containers need
	// none: without a policy there is nothing to change.
	c, gone := e.Inspect(ctx, id)
	switch {
	case gone != nil:
		return gone
	case cmp.Or(c.Restart, "no") == cmp.Or(name, "no"):
		return nil
	}
	return &api.Error{Kind: api.Unsupported, Op: op, Object: c.Name, Reason: "this container engine cannot change the restart policy of a container, which has " + c.Restart, Next: "use Podman 4.4 or later, or make the container without a restart policy"}
}

// maxOutput bounds what Exec keeps of a command's output.
const maxOutput = 1 << 20

// Exec runs a command inside.
func (e *Engine) Exec(ctx context.Context, id string, command []string) ([]byte, error) {
	op := "run " + strings.Join(command, " ") + " in container"
	created, err := e.cli.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: command, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return nil, e.fail(op, id, err)
	}
	att, err := e.cli.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return nil, e.fail(op, id, err)
	}
	defer att.Close()
	stop := context.AfterFunc(ctx, att.Close)
	defer stop()
	var out limited
	_, err = stdcopy.StdCopy(&out, &out, att.Reader)
	if ctx.Err() != nil {
		return out.Bytes(), e.fail(op, id, context.Cause(ctx))
	}
	if err != nil {
		return out.Bytes(), e.fail(op, id, err)
	}
	res, err := e.cli.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return out.Bytes(), e.fail(op, id, err)
	}
	if res.ExitCode != 0 {
		text := strings.TrimSpace(out.String())
		return out.Bytes(), &api.Error{Kind: api.Internal, Op: op, Object: id, Reason: fmt.Sprintf("exit code %d", res.ExitCode), Err: errors.New(text[max(0, len(text)-1000):])}
	}
	return out.Bytes(), nil
}

// Session begins a command whose input stays open.
func (e *Engine) Session(ctx context.Context, id string, command []string) (io.ReadWriteCloser, error) {
	op := "begin a session in container"
	created, err := e.cli.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: command, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return nil, e.fail(op, id, err)
	}
	att, err := e.cli.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return nil, e.fail(op, id, err)
	}
	out, in := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(in, in, att.Reader)
		if err == nil {
			err = io.EOF
		}
		in.CloseWithError(err)
	}()
	return &session{att.HijackedResponse, out}, nil
}

// session is a command's input and output.
type session struct {
	att client.HijackedResponse
	out *io.PipeReader
}

func (s *session) Read(p []byte) (int, error)  { return s.out.Read(p) }
func (s *session) Write(p []byte) (int, error) { return s.att.Conn.Write(p) }
func (s *session) Close() error {
	_ = s.att.CloseWrite()
	s.att.Close()
	return s.out.Close()
}

// limited keeps the first maxOutput bytes and swallows the rest, so that the
// command is not held up.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, maxOutput-l.Len()))])
	return len(p), nil
}

// Remove removes a stopped container, never its volumes.
func (e *Engine) Remove(ctx context.Context, id string) error {
	_, err := e.cli.ContainerRemove(ctx, id, client.ContainerRemoveOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if errdefs.IsConflict(err) {
		return &api.Error{Kind: api.InUse, Op: "remove container", Object: id, Reason: "it runs", Next: "stop it first", Err: err}
	}
	return e.fail("remove container", id, err)
}

// Watch follows the engine's events.
func (e *Engine) Watch(ctx context.Context, changed func(id string)) error {
	const maxWait = 5 * time.Second
	wait := 50 * time.Millisecond
	for {
		stream, cancel := context.WithCancel(ctx)
		events := e.cli.Events(stream, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container")})
		// The stream is open from here on as far as can be known; what came
		// between two streams is unknown.
		changed("")
		if follow(stream, events, changed) {
			wait = 50 * time.Millisecond
		}
		cancel()
		select {
		case <-ctx.Done():
			return &api.Error{Kind: api.Canceled, Op: "watch containers", Err: context.Cause(ctx)}
		case <-time.After(wait):
			wait = min(2*wait, maxWait)
		}
	}
}

// follow reports events until the stream breaks, and whether there was any.
func follow(ctx context.Context, events client.EventsResult, changed func(id string)) (heard bool) {
	for {
		select {
		case m := <-events.Messages:
			heard = true
			// exec and health checks make many events that change no state.
			action, _, _ := strings.Cut(string(m.Action), ":")
			if strings.HasPrefix(action, "exec_") || action == "top" || action == "health_status" {
				continue
			}
			changed(m.Actor.ID)
		case <-events.Err:
			return heard
		case <-ctx.Done():
			return heard
		}
	}
}
