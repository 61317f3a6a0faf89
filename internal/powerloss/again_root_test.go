//go:build root

package powerloss

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// syncAll writes out all that a file system holds.
func syncAll(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// TestRepeatedCallsAreDurable: a call that was killed when its change was made
// and not yet flushed, and is then made again, acknowledges what it found. That
// must be durable as well.
func TestRepeatedCallsAreDurable(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			d, place := New(t, r.size), t.TempDir()
			d.Format(t, r.mkfs...)
			s := r.up(t, d, place, true)
			at := func(parts ...string) string {
				return filepath.Join(append([]string{place, "pool"}, parts...)...)
			}
			// half leaves name as a call that was killed leaves it: the name came or
			// went, and nobody flushed that.
			half := func(appears bool, dir, volume, name string) {
				t.Helper()
				from, to := at(dir, volume, name), at("tmp", "x")
				if r.name == "btrfs" && dir == "snapshots" { // read-only subvolumes are not renamed
					if out, err := exec.Command("btrfs", "subvolume", "delete", from).CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
					return
				}
				if appears {
					rename(t, from, to)
					syncAll(t, place)
					from, to = to, from
				}
				rename(t, from, to)
			}
			do := func(st step) {
				t.Helper()
				if err := st.do(t.Context(), s.b); err != nil {
					t.Fatalf("%s: %v", st.name, err)
				}
			}
			var tape *Tape
			check := func(what string, st step, there func(string) bool) {
				t.Helper()
				do(st)
				n := d.Position(t)
				s.down(t)
				tape = d.Eject(t)
				tape.Load(t, n, Drop, 0)
				s = r.up(t, d, place, false)
				got, err := look(t.Context(), s.b, place)
				if err != nil || !there(got) {
					t.Errorf("%s, repeated after a kill and acknowledged, then a power cut: %v; this is there:\n%s", what, err, got)
				}
			}
			has := func(line string) func(string) bool {
				return func(got string) bool { return strings.Contains(got, line) }
			}
			hasNot := func(line string) func(string) bool {
				return func(got string) bool { return !strings.Contains(got, line) }
			}

			do(makeHead(v, "", "n"))
			half(true, "heads", "v", "main")
			check("a head that was made", makeHead(v, "", "n"), has("head v@main"))
			do(makeHead(v, "", "n")) // also when the check has failed
			do(makeSnapshot(v, "s1"))
			if r.name != "btrfs" { // where one call of the kernel makes it visible and durable
				half(true, "snapshots", "v", "s1")
				check("a snapshot", makeSnapshot(v, "s1"), has("snapshot v@s1"))
				do(makeSnapshot(v, "s1"))
			}
			for _, st := range arrive(storage.ReceiveSpec{Volume: "v", ID: "p1", Stream: "p"}) {
				do(st)
			}
			if r.name != "btrfs" {
				half(true, "snapshots", "v", "p1")
				arrived := arrive(storage.ReceiveSpec{Volume: "v", ID: "p1", Stream: "p"})[1]
				check("a snapshot that arrived", arrived, has("snapshot v@p1"))
			}
			half(false, "snapshots", "v", "s1")
			check("the removal of a snapshot", destroySnapshot("v", "s1"), hasNot("snapshot v@s1"))
			half(false, "heads", "v", "main")
			check("the removal of a head", destroyHead(v), hasNot("head v@main"))
			if _, err := os.Stat(at("heads", "v", "main")); err == nil {
				t.Error("the head is there again")
			}
			s.down(t)
		})
	}
}
