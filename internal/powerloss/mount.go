package powerloss

import (
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Format makes a file system on the disk.
func (d *Disk) Format(t testing.TB, mkfs ...string) {
	t.Helper()
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], d.path)...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", mkfs, err, out)
	}
}

// Attach gives a loop device on the disk, which whoever cannot see the file may
// mount. detach lets go of it, once it is not mounted anywhere.
func (d *Disk) Attach(t testing.TB) (device string, detach func()) {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", d.path).CombinedOutput()
	if err != nil {
		t.Fatalf("attach the disk: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	detach = sync.OnceFunc(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach the disk: %v: %s", err, out)
		}
	})
	t.Cleanup(detach)
	return device, detach
}

// Mount attaches the disk to a loop device and mounts it. What is still
// mounted when the test ends is unmounted.
func (d *Disk) Mount(t testing.TB, dir string, options string) {
	t.Helper()
	if options != "" {
		options = "," + options
	}
	if out, err := exec.Command("mount", "-o", "loop"+options, d.path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount the disk: %v: %s", err, out)
	}
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
}

// Unmount unmounts it; the loop device lets go of the disk then.
func (d *Disk) Unmount(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount the disk: %v", err)
	}
}
