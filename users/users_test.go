package users

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// fixture makes a procfs of plain files.
type fixture struct {
	t    *testing.T
	proc string
}

func (f fixture) process(pid int, ns uint64, mountinfo string, links map[string]string) {
	f.t.Helper()
	dir := filepath.Join(f.proc, fmt.Sprint(pid))
	write := func(name, content string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
	id := strings.Repeat("ab", 32)
	write("comm", fmt.Sprintf("proc%d\n", pid))
	write("cgroup", "4:memory:/docker/"+id+"\n0::/\n")
	write("stat", fmt.Sprintf("%d (a) b) S 1 1 1 0 -1 4194560 0", pid))
	write("maps", "")
	write("mountinfo", mountinfo)
	for _, d := range []string{"fd", "fdinfo", "ns", "map_files", fmt.Sprintf("task/%d", pid)} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	all := map[string]string{"exe": "/bin/sh", "cwd": "/", "root": "/", "ns/mnt": fmt.Sprintf("mnt:[%d]", ns)}
	for k, v := range links {
		all[k] = v
	}
	for name, target := range all {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			f.t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(f.proc, "self")); err != nil {
		if err := os.Symlink(fmt.Sprint(pid), filepath.Join(f.proc, "self")); err != nil {
			f.t.Fatal(err)
		}
	}
}

const rootMount = "1 0 8:1 / / rw - ext4 /dev/sda rw\n"

func TestMountsAreFoundOncePerNamespace(t *testing.T) {
	f := fixture{t, t.TempDir()}
	show := rootMount + "2 1 0:50 /vol /own rw - btrfs /dev/loop0 rw\n"
	f.process(100, 1, show, nil)
	f.process(101, 1, show, nil)
	f.process(102, 2, rootMount+"3 1 0:50 /vol/sub /data\\040x ro,noatime - btrfs /dev/loop0 rw\n4 1 0:50 /volume2 /no rw - btrfs /dev/loop0 rw\n", nil)
	id := storage.Identity{MountDevice: "0:50", Root: "/vol"}
	got, err := Mounts(t.Context(), id, Options{Proc: f.proc, IgnoreMounts: []string{"/own"}})
	if err != nil {
		t.Fatal(err)
	}
	want := User{PID: 102, Comm: "proc102", ContainerID: strings.Repeat("ab", 32), What: Mount, Path: "/data x"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v", got)
	}
	got, err = Mounts(t.Context(), id, Options{Proc: f.proc})
	if err != nil || len(got) != 2 {
		t.Errorf("without ignoring: %+v %v", got, err)
	}
}

func TestWhatCannotBeReadIsUnknown(t *testing.T) {
	f := fixture{t, t.TempDir()}
	f.process(100, 1, rootMount, nil)
	f.process(101, 2, "this is no mountinfo 0:50 line\n", nil)
	id := storage.Identity{MountDevice: "0:50", Root: "/vol"}
	if _, err := Mounts(t.Context(), id, Options{Proc: f.proc}); !api.Is(err, api.Unknown) {
		t.Errorf("got %v", err)
	}
	if _, err := Mounts(t.Context(), storage.Identity{}, Options{Proc: f.proc}); !api.Is(err, api.Unknown) {
		t.Errorf("an empty identity: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, id, Options{Proc: f.proc}); !api.Is(err, api.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestAProcessThatEndsMeanwhileUsesNothing(t *testing.T) {
	f := fixture{t, t.TempDir()}
	f.process(100, 1, rootMount, nil)
	if err := os.Mkdir(filepath.Join(f.proc, "101"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Scan(t.Context(), storage.Identity{MountDevice: "0:50", Root: "/"}, Options{Proc: f.proc}); err != nil || len(got) != 0 {
		t.Errorf("got %v %v", got, err)
	}
}

func TestContainerID(t *testing.T) {
	id := strings.Repeat("0f", 32)
	for cgroup, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope\n":                             id,
		"1:cpu:/docker/" + id + "\n":                                             id,
		"0::/machine.slice/libpod-" + id + ".scope/container":                    id,
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope": id,
		"0::/user.slice/session-1.scope":                                         "",
		"0::/" + id[:63]:                                                         "",
	} {
		if got := containerID(cgroup); got != want {
			t.Errorf("%q: got %q", cgroup, got)
		}
	}
}

func TestParseMap(t *testing.T) {
	m, ok := parseMap([]byte("00400000-0040b000 rw-s 00001000 fd:1f 1234     /data/a b (deleted)\n"))
	if want := (mapping{rang: "400000-40b000", device: "253:31", path: "/data/a b (deleted)", writes: true, shared: true}); !ok || m != want {
		t.Errorf("got %+v %v", m, ok)
	}
	if _, ok := parseMap([]byte("7ffc0000-7ffc1000 rw-p 00000000 00:00 0   [stack]\n")); ok {
		t.Error("memory without a file")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("00400000-0040b000 rw-s 00001000 fd:1f 1234 /x\n"))
	f.Add([]byte("pos:\t0\nflags:\t0100002\nmnt_id:\t22\n"))
	f.Add([]byte("mnt:[4026531840]"))
	f.Add([]byte("2 1 0:50 /vol /own rw - btrfs /dev/loop0 rw\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, ok := parseMap(data); ok && (m.rang == "" || !strings.Contains(m.rang, "-") || !strings.Contains(m.device, ":")) {
			t.Fatalf("%+v from %q", m, data)
		}
		if !writable(data) && !strings.Contains(string(data), "flags:") {
			t.Fatal("read-only without flags")
		}
		if id := containerID(string(data)); id != "" && len(id) != 64 {
			t.Fatal(id)
		}
		_, _ = parseNamespace(string(data))
		s := &scanner{id: storage.Identity{MountDevice: "0:50", Root: "/vol"}, o: Options{Proc: "/nowhere"}}
		_ = s.mounts(1, "1", 1, data)
		_, _ = mountinfo.GetMountsFromReader(strings.NewReader(string(data)), nil)
	})
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, root string
		want       bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/x", "/", true}} {
		if within(c.path, c.root) != c.want {
			t.Errorf("%+v", c)
		}
	}
}
