package docker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// importLabel marks a container that Import made, with the digest of its
// spec. Export leaves it out again.
const importLabel = "io.drover.import"

// movingDriver is the volume driver whose volumes follow their containers.
const movingDriver = "drover"

var (
	anonymous   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	builtinNets = []string{"", "default", "bridge", "host", "none", "nat", "slirp4netns", "pasta", "private"}
)

// document is Spec.Data. Config and HostConfig are the engine's own words, so
// that fields which this program does not know travel as well.
type document struct {
	Config   map[string]any      `json:"config"`
	Host     map[string]any      `json:"hostConfig"`
	Networks map[string]endpoint `json:"networks,omitempty"`
	Digests  []string            `json:"digests,omitempty"` // where the image can be pulled from
	Binds    []string            `json:"binds,omitempty"`   // host paths that must exist
	Links    []string            `json:"links,omitempty"`   // containers that must exist
	Volumes  []string            `json:"volumes,omitempty"` // that follow it, by the names it has for them
}

// endpoint is what a user says of a container's place in a network.
type endpoint struct {
	IPAMConfig *network.EndpointIPAMConfig `json:",omitempty"`
	Links      []string                    `json:",omitempty"`
	Aliases    []string                    `json:",omitempty"`
	DriverOpts map[string]string           `json:",omitempty"`
}

// Export describes a container. What the engine assigned is left out: ids,
// addresses that the user did not fix, the default host name. Volumes of
// drivers other than Drover's stay behind and are refused unless empty.
func (e *Engine) Export(ctx context.Context, id string) (container.Spec, error) {
	res, err := e.cli.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return container.Spec{}, e.fail("describe container", id, err)
	}
	c := res.Container
	doc, err := readDocument(res.Raw, c)
	if err != nil {
		return container.Spec{}, e.fail("describe container", id, err)
	}
	if err := checkVolumes(c); err != nil {
		return container.Spec{}, err
	}
	if img, err := e.cli.ImageInspect(ctx, c.Image); err == nil {
		doc.Digests = img.RepoDigests
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return container.Spec{}, e.fail("describe container", id, err)
	}
	return container.Spec{Engine: "docker", Name: strings.TrimPrefix(c.Name, "/"), Image: c.Config.Image, ImageID: c.Image, Data: data}, nil
}

// readDocument is pure: it turns what inspect says into what create takes.
func readDocument(raw []byte, c moby.InspectResponse) (document, error) {
	var in struct {
		Config     map[string]any
		HostConfig map[string]any
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&in); err != nil {
		return document{}, err
	}
	if in.Config == nil || in.HostConfig == nil || c.Config == nil || c.HostConfig == nil || c.NetworkSettings == nil {
		return document{}, fmt.Errorf("the engine's answer lacks the configuration")
	}
	name := strings.TrimPrefix(c.Name, "/")
	if err := checkTies(name, c.HostConfig); err != nil {
		return document{}, err
	}
	d := document{Config: in.Config, Host: in.HostConfig, Networks: map[string]endpoint{}}
	short := c.ID[:min(12, len(c.ID))]
	if c.Config.Hostname == short {
		delete(d.Config, "Hostname")
	}
	delete(d.Host, "ContainerIDFile")
	if labels, ok := d.Config["Labels"].(map[string]any); ok {
		delete(labels, importLabel)
	}
	d.nameNetworks(c, short)
	others := false
	for _, m := range c.Mounts {
		switch {
		case m.Type == "bind":
			d.Binds = append(d.Binds, m.Source)
		case m.Type == "volume" && m.Driver != movingDriver:
			others = true
		case m.Type == "volume":
			d.Volumes = append(d.Volumes, m.Name)
		}
	}
	// With the driver named, an engine whose plugin is silent asks again
	// instead of making an empty local volume of that name.
	if driver, _ := d.Host["VolumeDriver"].(string); driver == "" && !others && slices.ContainsFunc(c.Mounts, func(m moby.MountPoint) bool { return m.Driver == movingDriver }) {
		d.Host["VolumeDriver"] = movingDriver
	}
	for _, l := range c.HostConfig.Links {
		peer, _, _ := strings.Cut(strings.TrimPrefix(l, "/"), ":")
		d.Links = append(d.Links, peer)
	}
	return d, nil
}

// nameNetworks keeps the networks by name and what the user said of them.
func (d *document) nameNetworks(c moby.InspectResponse, short string) {
	for name, ep := range c.NetworkSettings.Networks {
		if ep == nil {
			continue
		}
		if ep.NetworkID != "" && string(c.HostConfig.NetworkMode) == ep.NetworkID {
			d.Host["NetworkMode"] = name
		}
		if slices.Contains(builtinNets, name) || name == "podman" {
			continue
		}
		aliases := slices.DeleteFunc(slices.Clone(ep.Aliases), func(a string) bool { return a == short })
		d.Networks[name] = endpoint{IPAMConfig: ep.IPAMConfig, Links: ep.Links, Aliases: aliases, DriverOpts: ep.DriverOpts}
	}
}

// checkTies refuses a container that shares something with another one, which
// would not be there at the target.
func checkTies(name string, h *moby.HostConfig) error {
	var ties []string
	for what, mode := range map[string]string{"network": string(h.NetworkMode), "processes": string(h.PidMode), "IPC": string(h.IpcMode)} {
		if peer, ok := strings.CutPrefix(mode, "container:"); ok {
			ties = append(ties, what+" of "+peer)
		}
	}
	for _, v := range h.VolumesFrom {
		ties = append(ties, "volumes of "+v)
	}
	if len(ties) == 0 {
		return nil
	}
	slices.Sort(ties)
	return &api.Error{Kind: api.Unsupported, Op: "describe container", Object: name, Reason: "it shares the " + strings.Join(ties, ", the "), Next: "give it its own, or move it by hand"}
}

// checkVolumes refuses volumes whose data would stay behind. An empty one is
// let through: the target's engine makes an empty one again.
func checkVolumes(c moby.InspectResponse) error {
	var left []string
	for _, m := range c.Mounts {
		if m.Type != "volume" || m.Driver == movingDriver || emptyDir(m.Source) {
			continue
		}
		label := m.Name
		if anonymous.MatchString(label) {
			label = "anonymous volume " + label[:12]
		}
		left = append(left, fmt.Sprintf("%s at %s (driver %s)", label, m.Destination, m.Driver))
	}
	if len(left) == 0 {
		return nil
	}
	return &api.Error{
		Kind: api.Unsupported, Op: "describe container", Object: strings.TrimPrefix(c.Name, "/"),
		Reason: "these volumes hold data and would stay behind: " + strings.Join(left, ", "),
		Next:   "make them Drover volumes, or empty them",
	}
}

func emptyDir(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

func parseSpec(s container.Spec) (document, error) {
	bad := &api.Error{Kind: api.Invalid, Op: "read container description", Object: s.Name}
	if s.Engine != "docker" {
		bad.Reason = fmt.Sprintf("it is for engine %q", s.Engine)
		return document{}, bad
	}
	var d document
	dec := json.NewDecoder(bytes.NewReader(s.Data))
	dec.UseNumber()
	if err := dec.Decode(&d); err != nil {
		bad.Err = err
		return d, bad
	}
	if d.Config == nil || d.Host == nil || s.ImageID == "" {
		bad.Reason = "configuration or image is missing"
		return d, bad
	}
	return d, nil
}

// digest is of all that makes the container what it is.
func digest(s container.Spec) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", s.Name, s.ImageID, s.Data)
	return hex.EncodeToString(h.Sum(nil))
}
