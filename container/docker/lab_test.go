//go:build lab

package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/lab"
)

func hosts(t *testing.T, n int) (*lab.Lab, []*Engine) {
	t.Helper()
	name := fmt.Sprintf("e%d-%x", os.Getpid(), len(t.Name()))
	dir := "/var/tmp/drover-test-" + name
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Dir: dir, Nodes: n, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	image, err := lab.BusyboxImage(t.Context(), "", t.Output())
	if err == nil {
		err = l.LoadImage(t.Context(), image)
	}
	if err != nil {
		t.Fatal(err)
	}
	var engines []*Engine
	for _, h := range l.Hosts() {
		e, err := New(Options{Host: h.DockerHost()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		engines = append(engines, e)
	}
	return l, engines
}

func TestAgainstDocker(t *testing.T) {
	l, engines := hosts(t, 2)
	ctx := t.Context()
	a, b := engines[0], engines[1]
	ha, hb := l.Hosts()[0], l.Hosts()[1]
	docker := func(h *lab.Host, args ...string) string {
		t.Helper()
		out, err := h.Docker(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if who, err := a.Ping(ctx); err != nil || !strings.HasPrefix(who, "Docker 20.10") {
		t.Errorf("ping: %q %v", who, err)
	}
	shared := filepath.Join(l.Dir(), "shared") // the same path on both hosts
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shared) })
	docker(ha, "network", "create", "--subnet", "10.55.0.0/24", "front")
	docker(ha, "network", "create", "back")
	docker(ha, "create", "--name", "app", "--network", "front", "--network-alias", "db", "--ip", "10.55.0.77",
		"--restart", "on-failure:3", "-e", "A=b c", "-l", "com.docker.compose.project=shop", "--ulimit", "nofile=1000:2000", "--tmpfs", "/t:size=1m",
		"--log-opt", "max-size=1m", "--health-cmd", "true", "--health-interval", "1h", "--device", "/dev/null:/dev/n", "--cap-add", "NET_ADMIN", "--memory", "64m",
		"--stop-signal", "SIGKILL", "--stop-timeout", "3", "-p", "8081:80", "--add-host", "x:10.0.0.1", "--dns", "10.0.0.53", "--init", "--user", "0:0", "-w", "/tmp", "--shm-size", "32m", "--sysctl", "net.core.somaxconn=99",
		"-v", shared+":/conf:ro", lab.BusyboxImageName, "sleep", "1000")
	docker(ha, "network", "connect", "--alias", "deep", "back", "app")

	spec, err := a.Export(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	err = b.CheckImport(ctx, spec)
	if !api.Is(err, api.NotFound) || !strings.Contains(err.Error(), "network back, network front") {
		t.Errorf("missing networks: %v", err)
	}
	docker(hb, "network", "create", "--subnet", "10.55.0.0/24", "front")
	docker(hb, "network", "create", "back")
	if err := b.CheckImport(ctx, spec); err != nil {
		t.Fatal(err)
	}
	id, err := b.Import(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.Import(ctx, spec); err != nil || again != id {
		t.Errorf("importing again gives %q, %v instead of %q", again, err, id)
	}
	same(t, docker(ha, "inspect", "app"), docker(hb, "inspect", "app"))
	back, err := b.Export(ctx, "app")
	if err != nil || string(back.Data) != string(spec.Data) {
		t.Errorf("exporting the copy: %v\n got %s\nwant %s", err, back.Data, spec.Data)
	}
	other := spec
	other.Data = []byte(strings.Replace(string(spec.Data), "A=b c", "A=other", 1))
	if _, err := b.Import(ctx, other); !api.Is(err, api.Exists) {
		t.Errorf("another container of that name: %v", err)
	}
	other.Name, other.ImageID, other.Image = "y", "sha256:"+strings.Repeat("0", 64), "nowhere:1"
	if err := b.CheckImport(ctx, other); !api.Is(err, api.NotFound) || !strings.Contains(err.Error(), "docker save") {
		t.Errorf("a missing image: %v", err)
	}
	lifeCycle(t, hb, b, id)
}

// same compares all that a user can say; ids and addresses differ.
func same(t *testing.T, a, b string) {
	t.Helper()
	read := func(text string) map[string]any {
		var all []map[string]any
		if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 {
			t.Fatalf("%v: %s", err, text)
		}
		c := all[0]
		config := c["Config"].(map[string]any)
		delete(config, "Hostname")
		delete(config["Labels"].(map[string]any), importLabel)
		nets := map[string]any{}
		for name, n := range c["NetworkSettings"].(map[string]any)["Networks"].(map[string]any) {
			ep := n.(map[string]any)
			var aliases []any
			if all, ok := ep["Aliases"].([]any); ok {
				for _, x := range all {
					if !strings.HasPrefix(c["Id"].(string), x.(string)) {
						aliases = append(aliases, x)
					}
				}
			}
			nets[name] = map[string]any{"aliases": aliases, "ipam": ep["IPAMConfig"]}
		}
		return map[string]any{"Config": config, "HostConfig": c["HostConfig"], "Networks": nets, "Name": c["Name"], "Image": c["Image"]}
	}
	ra, rb := read(a), read(b)
	for key := range ra {
		x, _ := json.Marshal(ra[key])
		y, _ := json.Marshal(rb[key])
		if string(x) != string(y) {
			t.Errorf("%s differs:\n%s\n%s", key, x, y)
		}
	}
}

func lifeCycle(t *testing.T, h *lab.Host, e *Engine, id string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := make(chan string, 100)
	watched := make(chan error, 1)
	go func() {
		watched <- e.Watch(ctx, func(id string) {
			select {
			case events <- id:
			default: // enough seen
			}
		})
	}()
	expect := func(want string) {
		t.Helper()
		for got := range events {
			if got == want {
				return
			}
		}
	}
	state := func(want container.State) {
		t.Helper()
		if c, err := e.Inspect(ctx, id); err != nil || c.State != want {
			t.Errorf("state %q (%v), want %q", c.State, err, want)
		}
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	expect("")
	for range 2 {
		check(e.Start(ctx, id))
		state(container.Running)
	}
	out, err := e.Exec(ctx, id, []string{"sh", "-c", "echo $A; pwd"})
	if err != nil || string(out) != "b c\n/tmp\n" {
		t.Errorf("exec: %q %v", out, err)
	}
	if _, err := e.Exec(ctx, id, []string{"sh", "-c", "echo why >&2; exit 3"}); err == nil || !strings.Contains(err.Error(), "exit code 3: why") {
		t.Errorf("a failing command: %v", err)
	}
	for range 2 {
		check(e.Pause(ctx, id))
		state(container.Paused)
	}
	if err := e.Remove(ctx, id); !api.Is(err, api.InUse) && !api.Is(err, api.Conflict) {
		t.Errorf("removing a running container: %v", err)
	}
	check(e.SetRestart(ctx, id, "no"))
	if c, err := e.Inspect(ctx, id); err != nil || c.Restart != "no" {
		t.Errorf("restart policy %q %v", c.Restart, err)
	}
	for range 2 {
		check(e.Stop(ctx, id, 0)) // paused, too
		state(container.Exited)
	}
	expect(id)
	// The watch outlives the daemon.
	for len(events) > 0 {
		<-events
	}
	check(h.StopService(ctx, "dockerd"))
	if _, err := e.List(ctx, ""); !api.Is(err, api.Unavailable) {
		t.Errorf("an engine that is down: %v", err)
	}
	check(h.StartService(ctx, lab.Service{Name: "dockerd"}))
	expect("")
	for range 2 {
		check(e.Remove(ctx, id))
	}
	if _, err := e.Inspect(ctx, id); !api.Is(err, api.NotFound) {
		t.Errorf("a removed container: %v", err)
	}
	cancel()
	if err := <-watched; !api.Is(err, api.Canceled) {
		t.Errorf("watch ends with %v", err)
	}
}
