package packaging

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const dir = "../../packaging"

// directives reads a unit.
func directives(t *testing.T, name string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			out[k] = append(out[k], v)
		}
	}
	return out
}

// TestAgentHasTheHostsMounts: a unit with a mount namespace of its own would
// mount volumes where no container sees them (systemd.exec(5)).
func TestAgentHasTheHostsMounts(t *testing.T) {
	d := directives(t, "drover-agent.service")
	for _, k := range []string{
		"PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules",
		"ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "TemporaryFileSystem",
		"BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage", "MountFlags", "DynamicUser", "RestrictNamespaces", "StateDirectory", "RuntimeDirectory",
	} {
		if d[k] != nil {
			t.Errorf("%s=%s: the agent would lose the host's mounts, or its directories with the unit", k, d[k])
		}
	}
}

func TestUnits(t *testing.T) {
	for _, unit := range []string{"drover-agent.service", "drover-state.service"} {
		d := directives(t, unit)
		for k, v := range map[string]string{"Type": "notify", "Restart": "always", "ExecStart": "/usr/bin/drover " + strings.TrimSuffix(strings.TrimPrefix(unit, "drover-"), ".service")} {
			if !slices.Equal(d[k], []string{v}) {
				t.Errorf("%s: %s=%v, want %s", unit, k, d[k], v)
			}
		}
		if d["Requires"] != nil || d["BindsTo"] != nil || d["PartOf"] != nil {
			t.Errorf("%s goes down with another unit", unit)
		}
	}
	d := directives(t, "drover-agent.service")
	if !strings.Contains(strings.Join(d["Before"], " "), "docker.service") || !slices.Contains(d["KillMode"], "process") {
		t.Error("the agent does not come before Docker, or takes more than itself down")
	}
	if !slices.Contains(d["Environment"], "HOME=/root") {
		t.Error("the agent does not find the logins that docker login and drover hub login keep")
	}
	if strings.Contains(strings.Join(d["After"], " "), "docker.service") {
		t.Error("the agent waits for Docker, which waits for the agent's socket")
	}
}

// TestHub: it runs as nobody in particular, with a directory of its own, and is not started by
// installing it.
func TestHub(t *testing.T) {
	d := directives(t, "drover-hub.service")
	for k, v := range map[string]string{
		"Type": "notify", "Restart": "always", "User": "drover-hub", "StateDirectory": "drover-hub", "ProtectSystem": "strict", "NoNewPrivileges": "yes",
		"ExecStart": "/usr/bin/drover hub serve --config /etc/drover/hub.yaml", "ConditionPathExists": "/etc/drover/hub.yaml", "CapabilityBoundingSet": "CAP_NET_BIND_SERVICE",
	} {
		if !slices.Equal(d[k], []string{v}) {
			t.Errorf("%s=%v, want %s", k, d[k], v)
		}
	}
	for _, file := range []string{"install.sh", "deb/postinst", "deb/prerm"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "systemctl enable") || strings.Contains(line, "systemctl start") {
				t.Errorf("%s: %s", file, line)
			}
		}
	}
}

func TestInstallAndRemove(t *testing.T) {
	dest := t.TempDir()
	binary := filepath.Join(t.TempDir(), "drover")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho \"$*\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(dir+"/install.sh", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	script(binary, dest, "/opt/drover")
	script(binary, dest, "/opt/drover") // again
	unit, err := os.ReadFile(dest + "/usr/lib/systemd/system/drover-agent.service")
	if err != nil || !strings.Contains(string(unit), "ExecStart=/opt/drover/bin/drover agent\n") {
		t.Errorf("the unit does not start what was installed: %v", err)
	}
	for path, want := range map[string]string{
		"/opt/drover/share/bash-completion/completions/drover": "completion bash\n", "/opt/drover/share/zsh/vendor-completions/_drover": "completion zsh\n",
		"/opt/drover/share/fish/vendor_completions.d/drover.fish": "completion fish\n",
	} {
		if got, err := os.ReadFile(dest + path); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	if len(files(t, dest)) != 9 {
		t.Errorf("installed: %v", files(t, dest))
	}
	script("--remove", dest, "/opt/drover")
	if left := files(t, dest); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
