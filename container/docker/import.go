package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// CheckImport finds everything that would keep Import from working and names
// it all at once. It pulls a missing image by its digest.
func (e *Engine) CheckImport(ctx context.Context, s container.Spec) error {
	d, err := parseSpec(s)
	if err != nil {
		return err
	}
	if id, err := e.made(ctx, s); err != nil || id != "" {
		return err
	}
	if _, err := e.image(ctx, s, d, true); err != nil {
		return err
	}
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(d.Networks)) {
		_, err := e.cli.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
		if err = e.fail("check network", name, err); api.Is(err, api.NotFound) {
			missing = append(missing, "network "+name)
		} else if err != nil {
			return err
		}
	}
	for _, path := range d.Binds {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, "path "+path)
		}
	}
	for _, peer := range d.Links {
		_, err := e.inspect(ctx, peer)
		if api.Is(err, api.NotFound) {
			missing = append(missing, "container "+peer)
		} else if err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return &api.Error{Kind: api.NotFound, Op: "make container", Object: s.Name, Reason: "this host lacks " + strings.Join(missing, ", "), Next: "make them here and repeat"}
	}
	return nil
}

// made looks for a container of the spec's name: its id when an Import of the
// same spec made it, "" when there is none, Exists when it is another one.
func (e *Engine) made(ctx context.Context, s container.Spec) (string, error) {
	c, err := e.inspect(ctx, s.Name)
	if api.Is(err, api.NotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if c.Config.Labels[importLabel] == digest(s) {
		return c.ID, nil
	}
	return "", &api.Error{Kind: api.Exists, Op: "make container", Object: s.Name, Reason: "this host has another container of that name, " + c.ID[:min(12, len(c.ID))], Next: "rename or remove that one"}
}

// image gives the reference to use: the user's own where it means the same
// image here, otherwise the image's id.
func (e *Engine) image(ctx context.Context, s container.Spec, d document, pull bool) (string, error) {
	if img, err := e.cli.ImageInspect(ctx, s.Image); err == nil && img.ID == s.ImageID {
		return s.Image, nil
	}
	_, err := e.cli.ImageInspect(ctx, s.ImageID)
	if err == nil {
		return s.ImageID, nil
	}
	if err := e.fail("look for image", s.Image, err); !api.Is(err, api.NotFound) {
		return "", err
	}
	var cause error
	if pull {
		for _, ref := range d.Digests {
			if cause = e.pull(ctx, ref); cause != nil {
				continue
			}
			if img, err := e.cli.ImageInspect(ctx, ref); err == nil && img.ID == s.ImageID {
				return s.ImageID, nil
			}
			cause = fmt.Errorf("%s is another image now", ref)
		}
	}
	return "", &api.Error{
		Kind: api.NotFound, Op: "make container", Object: s.Name, Reason: fmt.Sprintf("this host does not have its image %s (%s)", s.Image, s.ImageID), Err: cause,
		Next: fmt.Sprintf("bring it: docker save %s | ssh HOST docker load", s.Image),
	}
}

func (e *Engine) pull(ctx context.Context, ref string) error {
	res, err := e.cli.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer res.Close()
	return res.Wait(ctx)
}

// Import makes the container, stopped.
func (e *Engine) Import(ctx context.Context, s container.Spec) (string, error) {
	d, err := parseSpec(s)
	if err != nil {
		return "", err
	}
	if id, err := e.made(ctx, s); err != nil || id != "" {
		return id, err
	}
	ref, err := e.image(ctx, s, d, false)
	if err != nil {
		return "", err
	}
	// An engine that has not seen the name may not ask the plugin for it, and
	// make an empty volume of its own (Podman does): so it is told first.
	for _, name := range d.Volumes {
		if _, err := e.cli.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name, Driver: movingDriver}); err != nil {
			return "", e.fail("make volume known to the container engine", name, err)
		}
	}
	d.Config["Image"] = ref
	labels, _ := d.Config["Labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels[importLabel] = digest(s)
	d.Config["Labels"] = labels
	// The engine takes one network with create; the others follow. The mark
	// that the container is whole is its name, which it gets last.
	mode, _ := d.Host["NetworkMode"].(string)
	body := maps.Clone(d.Config)
	body["HostConfig"] = d.Host
	if ep, ok := d.Networks[mode]; ok {
		body["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]endpoint{mode: ep}}
	}
	_, first := d.Networks[mode]
	whole := len(d.Networks) == 0 || len(d.Networks) == 1 && first
	name := s.Name
	if !whole {
		name = s.Name + ".drover-" + digest(s)[:12]
		if _, err := e.cli.ContainerRemove(ctx, name, client.ContainerRemoveOptions{}); err != nil && !api.Is(e.fail("", "", err), api.NotFound) {
			return "", e.fail("remove unfinished container", name, err)
		}
	}
	id, err := e.create(ctx, name, body)
	if err != nil {
		return "", e.fail("make container", s.Name, err)
	}
	if whole {
		return id, nil
	}
	return id, e.finish(ctx, id, s.Name, mode, d)
}

// finish connects the remaining networks and gives the container its name. A
// container that cannot be finished is removed.
func (e *Engine) finish(ctx context.Context, id, name, mode string, d document) error {
	err := func() error {
		for _, net := range slices.Sorted(maps.Keys(d.Networks)) {
			if net == mode {
				continue
			}
			ep := d.Networks[net]
			_, err := e.cli.NetworkConnect(ctx, net, client.NetworkConnectOptions{Container: id, EndpointConfig: &network.EndpointSettings{
				IPAMConfig: ep.IPAMConfig, Links: ep.Links, Aliases: ep.Aliases, DriverOpts: ep.DriverOpts,
			}})
			if err != nil {
				return e.fail("connect container "+name, "to network "+net, err)
			}
		}
		_, err := e.cli.ContainerRename(ctx, id, client.ContainerRenameOptions{NewName: name})
		return e.fail("name container", name, err)
	}()
	if err != nil {
		_, _ = e.cli.ContainerRemove(context.WithoutCancel(ctx), id, client.ContainerRemoveOptions{})
	}
	return err
}

// create posts the engine's own words back to it: the client's types would
// drop fields that they do not know.
func (e *Engine) create(ctx context.Context, name string, body map[string]any) (string, error) {
	if _, err := e.cli.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return "", err
	}
	data, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	dial := e.cli.Dialer()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, DisableKeepAlives: true}
	target := "http://engine/v" + e.cli.ClientVersion() + "/containers/create?name=" + url.QueryEscape(name)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", err
	}
	var answer struct {
		ID      string `json:"Id"`
		Message string `json:"message"`
	}
	_ = json.Unmarshal(text, &answer)
	if res.StatusCode != http.StatusCreated || answer.ID == "" {
		kinds := map[int]api.Kind{http.StatusNotFound: api.NotFound, http.StatusConflict: api.Conflict, http.StatusBadRequest: api.Invalid}
		kind := kinds[res.StatusCode]
		if kind == "" {
			kind = api.Internal
		}
		return "", &api.Error{Kind: kind, Op: "make container", Object: name, Reason: answer.Message}
	}
	return answer.ID, nil
}
