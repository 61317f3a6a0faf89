package powerloss

import (
	"os/exec"
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
