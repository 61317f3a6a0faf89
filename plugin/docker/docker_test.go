package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// memoryVolumes keeps volumes as directories below dir and every call.
type memoryVolumes struct {
	dir string

	mu     sync.Mutex // guards all below
	all    map[string]CreateRequest
	mounts map[string]map[string]bool // ids by name
	calls  []string
	fail   error // what Mount answers
}

func newMemoryVolumes(dir string) *memoryVolumes {
	return &memoryVolumes{dir: dir, all: map[string]CreateRequest{}, mounts: map[string]map[string]bool{}}
}

func (v *memoryVolumes) path(name string) string {
	return filepath.Join(v.dir, strings.NewReplacer("/", "_", "@", "+").Replace(name))
}

func (v *memoryVolumes) begin(call, name string) error {
	v.calls = append(v.calls, call+" "+name)
	if _, ok := v.all[name]; !ok && name != "" && call != "Create" {
		return &api.Error{Kind: api.NotFound, Op: strings.ToLower(call) + " volume", Object: name, Reason: "there is no such volume", Next: "see drover volume ls"}
	}
	return nil
}

func (v *memoryVolumes) Create(_ context.Context, r CreateRequest) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if strings.HasSuffix(r.Name, "typo") {
		return &api.Error{Kind: api.NotFound, Op: "create volume", Object: r.Name, Reason: "volume pg has no branch typo", Next: "its branches are main, feature"}
	}
	_ = v.begin("Create", r.Name)
	v.all[r.Name] = r
	return os.MkdirAll(v.path(r.Name), 0o755)
}

func (v *memoryVolumes) Get(_ context.Context, name string) (Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return Volume{Name: name, Created: time.Unix(1e9, 0), Status: map[string]any{"size": v.all[name].Size}}, v.begin("Get", name)
}

func (v *memoryVolumes) List(context.Context) ([]Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []Volume
	for _, name := range slices.Sorted(maps.Keys(v.all)) {
		out = append(out, Volume{Name: name})
	}
	return out, v.begin("List", "")
}

func (v *memoryVolumes) Path(_ context.Context, name string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.begin("Path", name); err != nil || len(v.mounts[name]) == 0 {
		return "", err
	}
	return v.path(name), nil
}

func (v *memoryVolumes) Mount(_ context.Context, name, id string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.begin("Mount", name); err != nil || v.fail != nil {
		return "", max2(err, v.fail)
	}
	if v.mounts[name] == nil {
		v.mounts[name] = map[string]bool{}
	}
	v.mounts[name][id] = true
	return v.path(name), nil
}

func max2(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (v *memoryVolumes) Unmount(_ context.Context, name, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mounts[name], id)
	return v.begin("Unmount", name)
}

func (v *memoryVolumes) Remove(_ context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.begin("Remove", name)
	delete(v.all, name)
	return err
}

func call(h http.Handler, method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestProtocol(t *testing.T) {
	p := New(newMemoryVolumes(t.TempDir()))
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/Plugin.Activate", "", 200, `{"Implements":["VolumeDriver"]}`},
		{"POST", "/VolumeDriver.Capabilities", "{}", 200, `{"Capabilities":{"Scope":"global"}}`},
		{"POST", "/VolumeDriver.List", "", 200, `{"Volumes":[]}`},
		{"POST", "/VolumeDriver.Create", `{"Name":"pg@feature","Opts":{"size":"1G","label.a":"b"}}`, 200, `{}`},
		{"POST", "/VolumeDriver.Create", `{"Name":"pg","Opts":null}`, 200, `{}`},
		{"POST", "/VolumeDriver.Get", `{"Name":"pg@feature"}`, 200, `{"Volume":{"Name":"pg@feature","CreatedAt":"2001-09-09T01:46:40Z","Status":{"size":1073741824}}}`},
		{"POST", "/VolumeDriver.List", `{}`, 200, `{"Volumes":[{"Name":"pg"},{"Name":"pg@feature"}]}`},
		{"POST", "/VolumeDriver.Path", `{"Name":"pg"}`, 200, `{"Mountpoint":""}`},
		{"POST", "/VolumeDriver.Unmount", `{"Name":"pg","ID":"x"}`, 200, `{}`},
		{"POST", "/VolumeDriver.Remove", `{"Name":"pg"}`, 200, `{}`},
		{"POST", "/VolumeDriver.Get", `{"Name":"pg"}`, 500, `{"Err":"get volume pg: there is no such volume (see drover volume ls)"}`},
		{"POST", "/VolumeDriver.Get", `{}`, 500, `{"Err":"look for volume: the request has no name"}`},
		{"POST", "/VolumeDriver.Create", `{"Name":"x","Opts":{"sise":"1G"}}`, 500, `{"Err":"create volume x: option \"sise\" is unknown (` + strings.NewReplacer("<", `\u003c`, ">", `\u003e`).Replace(optionHelp) + `)"}`},
		{"GET", "/VolumeDriver.List", "", 405, `{"Err":"call /VolumeDriver.List: the method is GET instead of POST"}`},
		{"POST", "/NetworkDriver.GetCapabilities", "", 404, `{"Err":"call /NetworkDriver.GetCapabilities: this plugin has no such method"}`},
	} {
		if status, got := call(p, c.method, c.path, c.body); status != c.status || got != c.want {
			t.Errorf("%s %s %s\n got %d %s\nwant %d %s", c.method, c.path, c.body, status, got, c.status, c.want)
		}
	}
	if status, _ := call(p, "POST", "/VolumeDriver.Get", strings.Repeat(" ", maxBody+1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a huge body: %d", status)
	}
}

func TestParseCreate(t *testing.T) {
	r, err := ParseCreate("pg@feature", map[string]string{"size": "1.5G", "pool": "fast", "node": "host2", "from": "pg@main~2", "labels": "a=1,b=", "label.c": "x=y"})
	want := fmt.Sprint(CreateRequest{Name: "pg@feature", Size: 3 << 29, Pool: "fast", Node: "host2", From: "pg@main~2", Labels: map[string]string{"a": "1", "b": "", "c": "x=y"}})
	if err != nil || fmt.Sprint(r) != want {
		t.Errorf("got %v %v, want %v", r, err, want)
	}
	for _, opts := range []map[string]string{
		{"size": ""},
		{"size": "10"},
		{"size": "-1G"},
		{"size": "1e9"},
		{"size": "9999999P"},
		{"size": "1GG"},
		{"size": "G"},
		{"size": "1.G"},
		{"size": "64MiBB"},
		{"size": "NaN"},
		{"pool": ""},
		{"pool": "a/b"},
		{"node": "Host"},
		{"from": "x@"},
		{"labels": "a"},
		{"labels": "a=1,a=2"},
		{"label.": "x"},
		{"labels": "a=1", "label.a": "2"},
		{"Size": "1G"},
		{"": ""},
	} {
		_, err := ParseCreate("pg", opts)
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "valid options are size=") {
			t.Errorf("%v: %v", opts, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"64M": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20, "67108864": 64 << 20, "67108864B": 64 << 20, "2T": 2 << 40, "0.5G": 512 << 20, "7P": 7 << 50} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", s, got, err, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(MinSize, math.MaxInt64).Draw(t, "n")
		if got, err := ParseSize(fmt.Sprint(n)); err != nil || got != n {
			t.Fatalf("%d: %d %v", n, got, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "512MiB", "1.5T", "99999999999999999999", "0x10G", "8388607T", "9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < MinSize {
			t.Fatalf("%q: %d", s, n)
		}
	})
}

func FuzzProtocol(f *testing.F) {
	paths := []string{"Activate", "Capabilities", "Create", "Get", "List", "Path", "Mount", "Unmount", "Remove"}
	for i := range paths {
		f.Add(uint8(i), []byte(`{"Name":"pg","ID":"1","Opts":{"size":"1G"}}`))
	}
	f.Add(uint8(2), []byte(`{"Name":3}`))
	f.Add(uint8(2), []byte(`{"Name":"a","Opts":[]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		p := New(newMemoryVolumes(dir))
		path := "/VolumeDriver." + paths[int(which)%len(paths)]
		if path == "/VolumeDriver.Activate" {
			path = "/Plugin.Activate"
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("POST", path, bytes.NewReader(body)))
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%s answers %q", path, w.Body.Bytes())
		}
		if _, failed := answer["Err"]; failed != (w.Code != 200) {
			t.Fatalf("%s answers %d %v", path, w.Code, answer)
		}
	})
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "x.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if _, err := Listen(path); !api.Is(err, api.InUse) {
		t.Errorf("a socket in use: %v", err)
	}
	_ = l.Close() // the socket's file stays: stale
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	defer l.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !api.Is(err, api.InUse) {
		t.Errorf("a file in its place: %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "keep" {
		t.Error("the file was replaced")
	}
}
