package docker

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// onceLabel marks containers that Drover runs for itself.
const onceLabel = "drover.once"

// Run runs a command once.
func (e *Engine) Run(ctx context.Context, o container.Once) (ran container.Ran, err error) {
	const op = "run container"
	if err := e.forget(ctx, o.Name); err != nil {
		return ran, err
	}
	if _, err := e.cli.ImageInspect(ctx, o.Image); errdefs.IsNotFound(err) {
		if err := e.pull(ctx, o.Image); err != nil {
			return ran, &api.Error{Kind: api.NotFound, Op: op, Object: o.Image, Reason: "this host does not have the image, and cannot pull it", Err: err, Next: "bring it: docker save " + o.Image + " | ssh HOST docker load"}
		}
	} else if err != nil {
		return ran, e.fail(op, o.Image, err)
	}
	// What happens to ctx, nothing of it stays.
	defer func() {
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err2 := e.forget(clearing, o.Name); err == nil {
			err = err2
		}
	}()
	made, err := e.cli.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:   o.Name,
		Config: &moby.Config{Image: o.Image, Entrypoint: o.Command[:1], Cmd: o.Command[1:], Labels: map[string]string{onceLabel: "true"}},
		HostConfig: &moby.HostConfig{
			NetworkMode: "none",
			Mounts:      []mount.Mount{{Type: mount.TypeBind, Source: o.Source, Target: o.Target}},
		},
	})
	if err != nil {
		return ran, e.fail(op, o.Name, err)
	}
	wait := e.cli.ContainerWait(ctx, made.ID, client.ContainerWaitOptions{Condition: moby.WaitConditionNextExit})
	if _, err := e.cli.ContainerStart(ctx, made.ID, client.ContainerStartOptions{}); err != nil {
		return ran, e.fail(op, o.Name, err)
	}
	select {
	case err := <-wait.Error:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return ran, e.fail(op, o.Name, err)
	case end := <-wait.Result:
		ran.Exit = int(end.StatusCode)
	}
	ran.Output, err = e.output(ctx, made.ID)
	return ran, err
}

// output is the end of what a container said.
func (e *Engine) output(ctx context.Context, id string) ([]byte, error) {
	logs, err := e.cli.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "50"})
	if err != nil {
		return nil, e.fail("read container's output", id, err)
	}
	defer logs.Close()
	var out limited
	if _, err := stdcopy.StdCopy(&out, &out, io.LimitReader(logs, 1<<20)); err != nil && out.Len() == 0 {
		return nil, e.fail("read container's output", id, err)
	}
	return bytes.TrimSpace(out.Bytes()), nil
}

// forget removes a container that Run made, running or not.
func (e *Engine) forget(ctx context.Context, name string) error {
	const op = "remove container"
	c, err := e.inspect(ctx, name)
	if api.Is(err, api.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.Config == nil || c.Config.Labels[onceLabel] == "" {
		return &api.Error{Kind: api.Exists, Op: op, Object: name, Reason: "a container of that name is not Drover's", Next: "rename it"}
	}
	_, err = e.cli.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true})
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return e.fail(op, name, err)
}
