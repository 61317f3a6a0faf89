//go:build root

package users

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// spawn starts a shell script, in namespaces of its own when flags say so, and
// returns when it has printed a line.
func spawn(t testing.TB, flags uintptr, script string) int {
	t.Helper()
	cmd := exec.Command("/bin/bash", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return cmd.Process.Pid
}

func mount(t testing.TB, source, target, kind string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func identityOf(t testing.TB, dir, root string, shared bool) storage.Identity {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	id := storage.Identity{MountDevice: formatDevice(st.Dev), Root: root}
	if !shared {
		id.Devices = []uint64{st.Dev}
	}
	return id
}

// opaque are processes that were there before and that even root may not look
// at, as in some sandboxes.
func opaque() []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, l := range links {
		if _, err := os.Readlink(l); os.IsPermission(err) {
			var pid int
			_, _ = fmt.Sscanf(l, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestRealUsers(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) { realUsers(t, shared) })
	}
}

func realUsers(t *testing.T, shared bool) {
	base := t.TempDir()
	pool, head := filepath.Join(base, "pool"), filepath.Join(base, "head")
	for _, d := range []string{pool, head} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, "tmpfs", pool, "tmpfs", 0)
	vol, other := filepath.Join(pool, "vol"), filepath.Join(pool, "volume2")
	for _, d := range []string{vol, other} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, vol, head, "", unix.MS_BIND)
	id := identityOf(t, pool, "/vol", shared)
	o := Options{IgnoreMounts: []string{head}, Skip: opaque()}
	if !shared {
		id.Root = "/"
		o.IgnoreMounts = append(o.IgnoreMounts, pool)
	}
	has := func(pid int, what What, writes bool) {
		t.Helper()
		got, err := Scan(t.Context(), id, o)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(got, func(u User) bool { return u.PID == pid && u.What == what && u.Writes == writes }) {
			t.Errorf("%s of %d (writes %v) is missing in %+v", what, pid, writes, got)
		}
	}
	if got, err := Scan(t.Context(), id, o); err != nil || len(got) != 0 {
		t.Fatalf("nobody uses it, but %+v %v", got, err)
	}
	writer := spawn(t, 0, "exec 3>"+head+"/w; echo; exec sleep 1000")
	has(writer, File, true)
	reader := spawn(t, 0, "exec 3<"+head+"/w; echo; exec sleep 1000")
	has(reader, File, false)
	cwd := spawn(t, 0, "cd "+head+"; echo; exec sleep 1000")
	has(cwd, Cwd, false)
	deleted := spawn(t, 0, "exec 3>"+head+"/gone; rm "+head+"/gone; echo; exec sleep 1000")
	has(deleted, File, true)
	program := spawn(t, 0, "cp /bin/sleep "+head+"/prog; "+head+"/prog 1000 & echo; wait")
	got, err := Scan(t.Context(), id, o)
	if err != nil || !slices.ContainsFunc(got, func(u User) bool { return u.What == Program && strings.HasSuffix(u.Path, "/prog") }) {
		t.Errorf("the program of a child of %d is missing in %+v %v", program, got, err)
	}
	inside := spawn(t, syscall.CLONE_NEWNS, "mount --make-rprivate / && mkdir "+base+"/elsewhere && mount --bind "+vol+" "+base+"/elsewhere && umount "+head+" && echo; exec sleep 1000")
	has(inside, Mount, true)
	lazy := spawn(t, syscall.CLONE_NEWNS, "mount --make-rprivate / && exec 3>"+head+"/lazy && umount -l "+head+" && umount -l "+pool+" && echo; exec sleep 1000")
	has(lazy, File, true)
	if shared {
		stranger := spawn(t, 0, "exec 3>"+other+"/w; echo; exec sleep 1000")
		got, err := Files(t.Context(), id, o)
		if err != nil || slices.ContainsFunc(got, func(u User) bool { return u.PID == stranger }) {
			t.Errorf("a user of other data on the device is named: %+v %v", got, err)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	for range 300 {
		spawn(b, 0, "echo; exec sleep 1000")
	}
	dir := b.TempDir()
	mount(b, "tmpfs", dir, "tmpfs", 0)
	id := identityOf(b, dir, "/", false)
	o := Options{IgnoreMounts: []string{dir}, Skip: opaque()}
	for b.Loop() {
		if _, err := Scan(b.Context(), id, o); err != nil {
			b.Fatal(err)
		}
	}
}
