package docker

import (
	"context"

	"github.com/moby/moby/client"

	"github.com/drover-data/drover/api"
)

// LocalVolume is a volume of Docker's own driver.
type LocalVolume struct {
	Name string
	Dir  string // where its data lies on the host
	// UsedBy are the containers that name it, running or not.
	UsedBy []string
}

// localDriver is Docker's own.
const localDriver = "local"

// LocalVolumes lists the volumes of Docker's own driver.
func (e *Engine) LocalVolumes(ctx context.Context) ([]LocalVolume, error) {
	res, err := e.cli.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("driver", localDriver)})
	if err != nil {
		return nil, e.fail("list volumes", "", err)
	}
	users := map[string][]string{}
	list, err := e.cli.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, e.fail("list containers", "", err)
	}
	for _, c := range list.Items {
		name := c.ID
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		for _, m := range c.Mounts {
			if m.Name != "" {
				users[m.Name] = append(users[m.Name], name)
			}
		}
	}
	var out []LocalVolume
	for _, v := range res.Items {
		if v.Driver == localDriver {
			out = append(out, LocalVolume{Name: v.Name, Dir: v.Mountpoint, UsedBy: users[v.Name]})
		}
	}
	return out, nil
}

// RemoveLocal removes a volume of Docker's own driver that no container
// names. It asks first which driver Docker would remove the name from: the
// other one may be Drover's, where it would delete somebody's data.
func (e *Engine) RemoveLocal(ctx context.Context, name string) error {
	v, err := e.cli.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
	if err != nil {
		return e.fail("look at volume", name, err)
	}
	if v.Volume.Driver != localDriver {
		return &api.Error{Kind: api.Conflict, Op: "remove Docker's own volume", Object: name, Reason: "Docker takes the name for one of the driver " + v.Volume.Driver, Next: "nothing needs to be removed"}
	}
	_, err = e.cli.VolumeRemove(ctx, name, client.VolumeRemoveOptions{})
	return e.fail("remove Docker's own volume", name, err)
}
