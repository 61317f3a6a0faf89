//go:build root

package powerloss

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func content(t *testing.T, d *Disk, n int) []byte {
	t.Helper()
	f, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	return buf
}

// TestDiskForgets proves that what is not flushed is lost, that what is
// flushed is not, and that nothing is served while the power is off.
func TestDiskForgets(t *testing.T) {
	d := New(t, 1<<20)
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(s string) {
		t.Helper()
		if _, err := f.WriteAt([]byte(s), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	write("two")
	d.Cut(t, 0)
	if _, err := f.WriteAt([]byte("no"), 0); !errors.Is(err, unix.EIO) {
		t.Fatalf("a write without power: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatalf("a flush without power: %v", err)
	}
	if _, err := f.ReadAt(make([]byte, 3), 0); !errors.Is(err, unix.EIO) {
		t.Fatalf("a read without power: %v", err)
	}
	f.Close()
	tape := d.Eject(t)
	for mode, want := range map[Mode]string{Drop: "one", Keep: "two"} {
		tape.Load(t, tape.End, mode, 0)
		if got := content(t, d, 3); string(got) != want {
			t.Fatalf("%s: %q is there", mode, got)
		}
	}
	seen := map[string]bool{}
	for seed := range uint64(50) {
		tape.Load(t, tape.End, Reorder, seed)
		seen[string(content(t, d, 3))] = true
	}
	if !seen["one"] || !seen["two"] || len(seen) != 2 {
		t.Fatalf("reorder gave %v", seen)
	}
}

// TestFileSystemForgets is the same through the loop driver and each file
// system: a file that nobody flushed is gone, one that was is there.
func TestFileSystemForgets(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"btrfs": {"mkfs.btrfs", "-q"}, "xfs": {"mkfs.xfs", "-q"}, "ext4": {"mkfs.ext4", "-q", "-F"},
	} {
		t.Run(name, func(t *testing.T) {
			d, dir := New(t, 320<<20), t.TempDir()
			d.Format(t, mkfs...)
			d.Mount(t, dir, "")
			data := bytes.Repeat([]byte("drover"), 1000)
			kept, lost := filepath.Join(dir, "kept"), filepath.Join(dir, "lost")
			for _, path := range []string{kept, lost} {
				f, err := os.Create(path)
				if err == nil {
					_, err = f.Write(data)
				}
				if err == nil && path == kept {
					err = f.Sync()
				}
				if err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			at := d.Position(t)
			d.Unmount(t, dir) // writes all out, after the moment we go back to
			tape := d.Eject(t)
			tape.Load(t, at, Drop, 0)
			d.Mount(t, dir, "")
			if got, err := os.ReadFile(kept); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the flushed file: %d bytes, %v", len(got), err)
			}
			if got, err := os.ReadFile(lost); err == nil && len(got) > 0 {
				t.Errorf("a file that nobody flushed has %d bytes", len(got))
			}
			d.Unmount(t, dir)
			tape.Load(t, tape.End, Drop, 0)
			d.Mount(t, dir, "")
			if got, err := os.ReadFile(lost); err != nil || !bytes.Equal(got, data) {
				t.Errorf("after an orderly unmount: %d bytes, %v", len(got), err)
			}
			d.Unmount(t, dir)
		})
	}
}
