//go:build root

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDebianPackage builds a package around a stand-in for the binary and
// looks at what dpkg sees in it. It needs nfpm, which is built from the
// tools' own module.
func TestDebianPackage(t *testing.T) {
	tmp := t.TempDir()
	run := func(dir, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	nfpm, stub := filepath.Join(tmp, "nfpm"), filepath.Join(tmp, "drover")
	run("../tools", "go", "build", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\necho \"$*\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("../..", "packaging/deb.sh", stub, nfpm, "v1.2.3-4-gabc", "amd64", tmp)
	debs, err := filepath.Glob(tmp + "/*.deb")
	if err != nil || len(debs) != 1 {
		t.Fatalf("got %v %v", debs, err)
	}
	fields := run(".", "dpkg-deb", "-f", debs[0])
	for _, want := range []string{"Package: drover\n", "Version: 1.2.3~4-gabc\n", "Architecture: amd64\n", "Depends: btrfs-progs\n"} {
		if !strings.Contains(fields, want) {
			t.Errorf("%q is missing in\n%s", want, fields)
		}
	}
	root := filepath.Join(tmp, "root")
	run(".", "dpkg-deb", "-x", debs[0], root)
	for path, mode := range map[string]os.FileMode{
		"usr/bin/drover": 0o755, "usr/lib/systemd/system/drover-agent.service": 0o644, "usr/lib/systemd/system/drover-state.service": 0o644, "usr/lib/systemd/system/drover-hub.service": 0o644,
		"usr/lib/sysusers.d/drover.conf": 0o644, "usr/lib/tmpfiles.d/drover.conf": 0o644, "usr/share/doc/drover/copyright": 0o644,
	} {
		if st, err := os.Stat(filepath.Join(root, path)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, st, err)
		}
	}
	control := filepath.Join(tmp, "control")
	run(".", "dpkg-deb", "-e", debs[0], control)
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		run(".", "sh", "-n", filepath.Join(control, script))
	}
	if got := run(".", filepath.Join(root, "usr/bin/drover"), "hello"); got != "hello\n" {
		t.Errorf("what is installed says %q", got)
	}
}
