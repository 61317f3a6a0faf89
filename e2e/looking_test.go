//go:build lab

package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestLookingIntoThePast commits, changes and reads back, on a pool that says
// what changed and on one that does not, asked on both nodes.
func TestLookingIntoThePast(t *testing.T) {
	plain, err := os.MkdirTemp("/var/tmp", "drover-plain-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(plain) }) // after the lab is down
	w := newWorld(t, 2, "2G")
	w.run("node1", "drover", "pool", "add", "plain", "--kind", "dir", "--source", plain)
	w.run("node1", "drover", "volume", "create", "vol")
	w.run("node1", "drover", "volume", "create", "flat", "--pool", "plain")
	for _, volume := range []string{"vol", "flat"} {
		t.Run(volume, func(t *testing.T) { w.in(t).look(volume) })
	}
}

func (w *world) look(volume string) {
	t := w.t
	w.busybox("node1", volume, `cd /d && mkdir dir && echo one > conf && chmod 640 conf && chown 5:6 conf && dd if=/dev/urandom of=big bs=64k count=64 2>/dev/null
		touch dir/a dir/b && ln -s /etc out && echo x > "$(printf 'odd\nname')"`)
	w.refused("node1", []string{"it has no commit yet"}, "drover", "revert-file", volume, "conf", "--from", "none")
	w.run("node1", "drover", "commit", volume, "-m", "one")
	if out := w.run("node1", "drover", "diff", volume, "--name-only"); out != "" {
		t.Errorf("just committed, and different: %s", out)
	}
	w.busybox("node1", volume, `cd /d && echo two > conf && rm -r dir && echo z | dd of=big bs=64k seek=10 conv=notrunc 2>/dev/null && mkdir new && rm out && mkdir out`)
	want := "M big\nM conf\nD dir/\nA new/\nT out/"
	for _, node := range []string{"node1", "node2"} {
		var got []string
		for line := range strings.Lines(w.run(node, "drover", "diff", volume)) {
			if f := strings.Fields(line); len(f[0]) == 1 && strings.Contains("AMDmT", f[0]) {
				got = append(got, f[0]+" "+f[1])
			}
		}
		if text := strings.Join(got, "\n"); text != want {
			t.Errorf("on %s:\n%s\nwant\n%s", node, text, want)
		}
	}
	w.run("node2", "drover", "commit", volume, "-m", "two")
	w.equal(w.run("node2", "drover", "diff", volume+"@main~1", volume+"@main", "--name-only"), "big\nconf\ndir\nnew\nout")

	for _, node := range []string{"node1", "node2"} {
		w.equal(w.run(node, "drover", "cat", volume+"@main~1:conf"), "one")
		w.equal(w.run(node, "drover", "cat", volume+":conf"), "two")
		w.equal(w.run(node, "drover", "cat", volume+":odd\nname"), "x")
		w.refused(node, []string{"not a path inside a volume"}, "drover", "cat", volume+":../conf")
		w.refused(node, []string{"leads through a symbolic link"}, "drover", "cat", volume+"@main~1:out/passwd")
		w.refused(node, []string{"there is no such file"}, "drover", "cat", volume+":dir/a")
	}

	w.busybox("node1", volume, "echo three > /d/conf")
	w.run("node1", "docker", "run", "-d", "--name", "user-"+volume, "--volume-driver", "drover", "-v", volume+":/d", image, "sleep", "1000")
	w.refused("node2", []string{"user-" + volume, "--force"}, "drover", "revert-file", volume, "conf")
	w.run("node1", "drover", "revert-file", volume, "conf", "--force")
	w.equal(w.run("node1", "docker", "exec", "user-"+volume, "cat", "/d/conf"), "two")
	w.run("node1", "docker", "rm", "-f", "user-"+volume)
	if out := w.run("node2", "drover", "revert-file", volume, "conf", "--from", "main~1"); !strings.Contains(out, "is as in commit") {
		t.Errorf("revert-file said %s", out)
	}
	w.equal(w.busybox("node1", volume, "stat -c '%a %u:%g' /d/conf && cat /d/conf"), "640 5:6\none")
	w.run("node1", "drover", "undo", volume)
	w.equal(w.busybox("node1", volume, "cat /d/conf"), "two")
	w.run("node1", "drover", "undo", volume)

	w.run("node1", "mkdir", "-p", "/run/past")
	w.run("node1", "drover", "mount", volume+"@main~1", "/run/past")
	w.equal(w.run("node1", "cat", "/run/past/conf"), "one")
	w.refused("node1", []string{"Read-only file system"}, "touch", "/run/past/new")
	w.run("node1", "drover", "umount", "/run/past")
	w.refused("node1", []string{"no commit is mounted there"}, "drover", "umount", "/run/past")
	w.run("node2", "mkdir", "-p", "/run/past")
	w.refused("node2", []string{"does not hold the commit; node1 does"}, "drover", "mount", volume, "/run/past")
}
