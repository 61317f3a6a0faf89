//go:build lab

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/internal/powerloss"
)

// hostDisk is a disk of a lab host's own for all that Drover has there.
type hostDisk struct {
	*powerloss.Disk
	link   string // to the device
	detach func()
}

// plug attaches the disk, for the host to find it when it starts.
func (d *hostDisk) plug(t *testing.T) {
	t.Helper()
	var device string
	device, d.detach = d.Attach(t)
	if err := os.Remove(d.link); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(device, d.link); err != nil {
		t.Fatal(err)
	}
}

// onDisk gives a disk for a host, and a drover that mounts it there at
// /var/lib/drover before anything else.
func onDisk(t *testing.T, host string) (disk *hostDisk, drover string) {
	t.Helper()
	dir := t.TempDir()
	disk = &hostDisk{Disk: powerloss.New(t, 3<<30), link: filepath.Join(dir, host)}
	disk.Format(t, "mkfs.ext4", "-q", "-F")
	disk.plug(t)
	script := fmt.Sprintf(`#!/bin/sh
disk=%s/$(hostname)
if [ -L "$disk" ] && ! grep -q "^/dev/loop[0-9]* /var/lib/drover " /proc/mounts; then
	mount "$(readlink "$disk")" /var/lib/drover || exit 1
fi
exec %s "$@"
`, dir, binary)
	path := filepath.Join(dir, "drover")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return disk, path
}

// cycle cuts a host's power now, lets its disk forget, and gives the power back.
func (w *world) cycle(host string, disk *hostDisk, mode powerloss.Mode, state uint64) {
	w.t.Helper()
	disk.Cut(w.t, 0)
	if err := w.host(host).PowerOff(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	disk.detach()
	tape := disk.Eject(w.t)
	tape.Load(w.t, tape.End, mode, state)
	disk.plug(w.t)
	if err := w.host(host).PowerOn(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// losePower moves a volume to and fro between node1 and node2. Each time the
// power of node2 goes at some moment of the move, its disk forgets what was not
// flushed (or all but an arbitrary part of it), and the power comes back. Its
// disk holds all that it has: identity, index, its member of the state store, and
// the file of its pool.
func losePower(t *testing.T, rounds int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	disk, drover := onDisk(t, "node2")
	w := newWorldOf(t, 3, "1G", drover)
	w.until("there are three voters", func() error { return w.voters(3) })
	sum := w.filled("node1", "vol", 20)
	from, to := "node1", "node2"
	length := 0 // of a move, in events of the disk, measured by one that is not cut
	for round := range rounds + 1 {
		more := w.busybox(from, "vol", "dd if=/dev/urandom of=/d/more bs=1M count=20 2>/dev/null; sync; md5sum < /d/more")
		begin := disk.Position(t)
		w.run("node3", "drover", "volume", "move", "vol", to, "--no-wait")
		if round > 0 {
			after, mode, state := rng.IntN(length), powerloss.Drop, rng.Uint64()
			if rng.IntN(2) == 0 {
				mode = powerloss.Reorder
			}
			t.Logf("round %d: from %s to %s, the power goes after %d events (%s, state %d)", round, from, to, after, mode, state)
			disk.Cut(t, after)
			for i := 0; i < 50 && !disk.Off(t); i++ {
				wait(t.Context(), 100*time.Millisecond)
			}
			w.cycle("node2", disk, mode, state)
		}
		w.moved(from, to, sum+"\n"+more)
		if round == 0 {
			length = disk.Position(t) - begin
			t.Logf("a move makes %d writes and flushes (seed %d)", length, seed)
		}
		w.until("all voters are back", func() error { return w.voters(3) })
		from, to = to, from
	}
}

func TestMoveLosesPower(t *testing.T) { losePower(t, 2, 1) }

// TestAcknowledgedSurvivesPowerLoss: a cluster of one node has everything on a
// disk that forgets, and loses power the moment that a command was answered.
func TestAcknowledgedSurvivesPowerLoss(t *testing.T) {
	disk, drover := onDisk(t, "node1")
	w := newWorldOf(t, 1, "1G", drover)
	volumes := func(want string) func() error {
		return func() error {
			out, err := w.try("node1", "drover", "volume", "ls", "-o", "json")
			var list []struct {
				Name string `json:"name"`
				Size int64  `json:"size"`
			}
			if err == nil {
				err = json.Unmarshal([]byte(out), &list)
			}
			var got []string
			for _, v := range list {
				got = append(got, fmt.Sprintf("%s:%d", v.Name, v.Size>>20))
			}
			slices.Sort(got)
			if text := strings.Join(got, " "); err != nil || text != want {
				return fmt.Errorf("there is %q, not %q: %v", text, want, err)
			}
			return nil
		}
	}
	holds := func(volume, want string) func() error {
		return func() error {
			out, err := w.try("node1", "docker", "run", "--rm", "--volume-driver", "drover", "-v", volume+":/d", image, "cat", "/d/f")
			if err != nil || out != want {
				return fmt.Errorf("%s holds %q, not %q: %v", volume, out, want, err)
			}
			return nil
		}
	}
	for _, step := range []struct {
		name  string
		do    func()
		check []func() error
	}{
		{"init", func() {}, []func() error{volumes("")}},
		{"create", func() { w.run("node1", "drover", "volume", "create", "vol", "--size", "100M") }, []func() error{volumes("vol:100")}},
		{"write", func() { w.busybox("node1", "vol", "echo one > /d/f; sync /d/f; sync /d") }, []func() error{holds("vol", "one")}},
		{"resize", func() { w.run("node1", "drover", "volume", "resize", "vol", "200M") }, []func() error{volumes("vol:200")}},
		{"copy", func() { w.run("node1", "drover", "volume", "create", "copy", "--from", "vol") }, []func() error{volumes("copy:0 vol:200"), holds("copy", "one")}},
		{"delete", func() { w.run("node1", "drover", "volume", "rm", "vol") }, []func() error{volumes("copy:0")}},
		{"restore", func() { w.run("node1", "drover", "volume", "restore", "vol") }, []func() error{volumes("copy:0 vol:200"), holds("vol", "one"), holds("copy", "one")}},
	} {
		step.do()
		w.cycle("node1", disk, powerloss.Drop, 0)
		for _, check := range step.check {
			w.until("what was answered to "+step.name+" is so", check)
		}
	}
}
