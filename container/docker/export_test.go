package docker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	moby "github.com/moby/moby/api/types/container"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

const inspected = `{
 "Id": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "Name": "/pg", "Image": "sha256:aa",
 "State": {"Status": "running", "StartedAt": "2026-01-02T03:04:05.6Z"},
 "Config": {"Hostname": "0123456789ab", "Image": "pg:15", "MacAddress": "02:42:ac:11:00:99", "Labels": {"com.docker.compose.project": "shop", "io.drover.import": "x"}, "NewField": 9007199254740993},
 "HostConfig": {"NetworkMode": "shop_default", "RestartPolicy": {"Name": "always"}, "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "Binds": ["pg:/data"], "KernelMemoryTCP": 7},
 "Mounts": [{"Type": "volume", "Name": "pg", "Driver": "drover", "Source": "/x", "Destination": "/data", "RW": true}, {"Type": "bind", "Source": "/srv/conf", "Destination": "/conf"}],
 "NetworkSettings": {"Networks": {"shop_default": {"Aliases": ["db", "0123456789ab"], "IPAMConfig": {"IPv4Address": "10.5.0.9"}, "IPAddress": "10.5.0.9", "NetworkID": "ffff", "EndpointID": "eeee"}, "bridge": {}}}
}`

func inspectedContainer(t *testing.T, text string) moby.InspectResponse {
	t.Helper()
	var c moby.InspectResponse
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDocumentKeepsWhatUsersSayAndDropsWhatEnginesGive(t *testing.T) {
	d, err := readDocument([]byte(inspected), inspectedContainer(t, inspected))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"config":{"Image":"pg:15","Labels":{"com.docker.compose.project":"shop"},"MacAddress":"02:42:ac:11:00:99","NewField":9007199254740993},` +
		`"hostConfig":{"Binds":["pg:/data"],"KernelMemoryTCP":7,"NetworkMode":"shop_default","RestartPolicy":{"Name":"always"},"Ulimits":[{"Hard":2,"Name":"nofile","Soft":1}],"VolumeDriver":"drover"},` +
		`"networks":{"shop_default":{"IPAMConfig":{"IPv4Address":"10.5.0.9"},"Aliases":["db"]}},"binds":["/srv/conf"],"volumes":["pg"]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTiesAreRefusedByName(t *testing.T) {
	text := strings.Replace(inspected, `"NetworkMode": "shop_default"`, `"NetworkMode": "container:abc", "VolumesFrom": ["other"]`, 1)
	_, err := readDocument([]byte(text), inspectedContainer(t, text))
	if !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "network of abc") || !strings.Contains(err.Error(), "volumes of other") {
		t.Errorf("got %v", err)
	}
}

func TestVolumesThatWouldStayBehind(t *testing.T) {
	full, empty := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("a", 64)
	c := moby.InspectResponse{Name: "/x", Mounts: []moby.MountPoint{
		{Type: "volume", Name: id, Driver: "local", Source: empty, Destination: "/e"},
		{Type: "volume", Name: "pg", Driver: "drover", Source: full, Destination: "/p"},
	}}
	if err := checkVolumes(c); err != nil {
		t.Errorf("empty ones and Drover's are fine: %v", err)
	}
	c.Mounts = append(c.Mounts, moby.MountPoint{Type: "volume", Name: id, Driver: "local", Source: full, Destination: "/f"},
		moby.MountPoint{Type: "volume", Name: "nfs", Driver: "nfs", Source: "/no/such/path", Destination: "/n"})
	err := checkVolumes(c)
	if !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "anonymous volume aaaaaaaaaaaa at /f") || !strings.Contains(err.Error(), "nfs at /n") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"config":{},"hostConfig":{}}`))
	f.Add([]byte(`{"config":{"Labels":3},"hostConfig":{"NetworkMode":[]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := parseSpec(container.Spec{Engine: "docker", Name: "x", ImageID: "sha256:a", Data: data})
		if err != nil {
			if !api.Is(err, api.Invalid) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		if d.Config == nil || d.Host == nil {
			t.Fatal("accepted without a configuration")
		}
	})
}

func FuzzReadDocument(f *testing.F) {
	f.Add([]byte(inspected))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c moby.InspectResponse
		if json.Unmarshal(data, &c) != nil {
			return
		}
		_, _ = readDocument(data, c)
	})
}
