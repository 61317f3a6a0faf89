//go:build lab

package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/drover-data/drover/api"
)

const (
	keyDir  = "/var/lib/drover/remote-keys/"
	phrase1 = "the first long passphrase"
	phrase2 = "another long passphrase"
)

// remoteKeys is what drover remote key ls says.
func (w *world) remoteKeys(host, volume string) []api.RemoteKey {
	w.t.Helper()
	var list []api.RemoteKey
	if err := json.Unmarshal([]byte(w.run(host, "drover", "remote", "key", "ls", volume, "-o", "json")), &list); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// nowhere looks that no file below dirs has a secret in it.
func (w *world) nowhere(secrets []string, dirs ...string) {
	w.t.Helper()
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			for _, s := range secrets {
				if strings.Contains(string(text), s) {
					w.t.Errorf("%s has a secret in it", path)
				}
			}
			return nil
		})
	}
}

// sealedWorld is a lab with a volume whose remote is sealed.
type sealedWorld struct {
	*world
	dir, url             string
	pass1, pass2, idFile string // files
	identity             *age.X25519Identity
	first, second        string // ids of keys
}

func (w *sealedWorld) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// A remote is sealed, read elsewhere with what opens its key, the key follows
// the volume, and is changed.
func TestRemoteKeys(t *testing.T) {
	w := &sealedWorld{world: newWorld(t, 2, "1G")}
	var err error
	if w.dir, err = os.MkdirTemp("/var/tmp", "drover-e2e-keys-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.dir) })
	if w.identity, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	w.url = "file://" + filepath.Join(w.dir, "pg")
	w.pass1, w.pass2, w.idFile = w.file("pass1", phrase1), w.file("pass2", phrase2), w.file("age.key", w.identity.String())
	w.busybox("node1", "pg", "echo secret-content > /d/f; echo x > /d/secret-name")
	w.run("node1", "drover", "commit", "pg", "-m", "secret-message")
	w.run("node1", "drover", "remote", "add", "pg", "origin", w.url)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"new", w.make},
		{"elsewhere", w.elsewhere},
		{"a key file that is damaged or gone", w.damage},
		{"the key follows the volume", w.follow},
		{"rotate", w.rotate},
		{"no secret is anywhere else", w.secrets},
	} {
		outer := w.world
		t.Run(part.name, func(t *testing.T) { w.world = outer.in(t); part.run(t) })
		w.world = outer
	}
}

func (w *sealedWorld) make(t *testing.T) {
	w.refused("node1", []string{"can be guessed"}, "drover", "remote", "key", "new", "pg", "--passphrase-file", w.file("short", "secret"))
	w.refused("node1", []string{"--passphrase-file"}, "drover", "remote", "key", "new", "pg")
	w.run("node2", "drover", "remote", "key", "new", "pg", "--passphrase-file", w.pass1)
	list := w.remoteKeys("node1", "pg")
	if len(list) != 1 || list[0].Use != "current" || !list[0].Here || list[0].Wrapped != "passphrase" {
		t.Fatalf("%+v", list)
	}
	w.first = list[0].ID
	w.equal(w.run("node1", "stat", "-c", "%a %s", keyDir+w.first, keyDir), "600 32\n700 "+w.run("node1", "stat", "-c", "%s", keyDir))
	w.refused("node1", []string{"is sealed with the key " + w.first, "rotate"}, "drover", "remote", "key", "new", "pg", "--passphrase-file", w.pass1)
	w.sync("node1", "push", "pg")
	w.run("node1", "drover", "verify", "pg")
	w.nowhere([]string{"secret-content", "secret-name", "secret-message"}, filepath.Join(w.dir, "pg"))
}

func (w *sealedWorld) elsewhere(t *testing.T) {
	clone := []string{"drover", "clone", w.url, "copy", "--node", "node2"}
	w.refused("node2", []string{"sealed with the key " + w.first, "wrapped with a passphrase", "--passphrase-file"}, clone...)
	w.refused("node2", []string{"the passphrase is wrong"}, append(clone, "--passphrase-file", w.pass2)...)
	w.refused("node2", []string{"wrapped with a passphrase"}, append(clone, "--identity-file", w.idFile)...)
	w.run("node2", append(clone, "--passphrase-file", w.pass1)...)
	w.equal(w.busybox("node2", "copy", "cat /d/f"), "secret-content")
	w.busybox("node2", "copy", "echo two > /d/g")
	w.run("node2", "drover", "commit", "copy", "-m", "two")
	w.sync("node2", "push", "copy")
	w.sync("node1", "pull", "pg")
	w.equal(w.busybox("node1", "pg", "cat /d/g"), "two")
	w.nowhere([]string{"secret-content", "secret-name", "secret-message"}, filepath.Join(w.dir, "pg"))
	// Another volume that is to push there.
	w.busybox("node1", "other", "echo > /d/f")
	w.run("node1", "rm", keyDir+w.first)
	w.refused("node1", []string{"it is sealed with the key " + w.first}, "drover", "remote", "add", "other", "origin", w.url)
	w.run("node1", "env", "DROVER_PASSPHRASE="+phrase1, w.binary, "remote", "add", "other", "origin", w.url)
	w.run("node1", "drover", "remote", "rm", "other", "origin")
}

func (w *sealedWorld) damage(t *testing.T) {
	w.run("node1", "truncate", "-s", "31", keyDir+w.first)
	w.refused("node1", []string{keyDir + w.first, "31 bytes", "unlock"}, "drover", "push", "pg")
	if list := w.remoteKeys("node1", "pg"); list[0].Here || !strings.Contains(list[0].Fault, "31 bytes") {
		t.Errorf("%+v", list)
	}
	w.refused("node1", []string{"the passphrase is wrong"}, "drover", "remote", "key", "unlock", "pg", "--passphrase-file", w.pass2)
	w.run("node1", "drover", "remote", "key", "unlock", "pg", "--passphrase-file", w.pass1)
	w.sync("node1", "push", "pg")
	copied := filepath.Join(w.dir, "copy.key")
	w.run("node2", "rm", keyDir+w.first)
	w.refused("node2", []string{"does not have it", "unlock"}, "drover", "push", "copy")
	w.run("node1", "drover", "remote", "key", "export", "pg", "--out", copied)
	w.equal(w.run("node1", "stat", "-c", "%a", copied), "600")
	w.run("node2", "drover", "remote", "key", "unlock", "copy", "--recovery-file", copied)
	w.sync("node2", "push", "copy")
	if line := w.run("node1", "drover", "remote", "key", "export", "pg"); !strings.Contains(line, "DROVER-REMOTE-KEY-1 "+w.first) {
		t.Error(line)
	}
	if out := w.run("node1", "drover", "events", "-o", "json"); !strings.Contains(out, "volume.key-exported") {
		t.Error("an export is no event")
	}
}

func (w *sealedWorld) follow(t *testing.T) {
	w.run("node2", "rm", keyDir+w.first)
	w.run("node1", "drover", "volume", "move", "pg", "node2")
	w.until("node2 has the key", func() error {
		_, err := w.try("node2", "test", "-s", keyDir+w.first)
		return err
	})
	w.equal(w.run("node2", "stat", "-c", "%a", keyDir+w.first), "600")
	w.busybox("node2", "pg", "echo three > /d/g")
	w.run("node2", "drover", "commit", "pg", "-m", "three")
	w.sync("node2", "push", "pg")
}

func (w *sealedWorld) rotate(t *testing.T) {
	w.run("node1", "drover", "remote", "key", "rotate", "pg", "--recipient", w.identity.Recipient().String())
	list := w.remoteKeys("node1", "pg")
	if len(list) != 2 || list[0].Use != "current" || list[0].Wrapped != "age identity" || list[1].ID != w.first || list[1].Use != "old" {
		t.Fatalf("%+v", list)
	}
	w.second = list[0].ID
	w.busybox("node2", "pg", "echo four > /d/g")
	w.run("node2", "drover", "commit", "pg", "-m", "four")
	w.sync("node2", "push", "pg")
	w.run("node2", "drover", "verify", "pg")
	w.refused("node1", []string{"wrapped for age public keys", "--identity-file"}, "drover", "clone", w.url, "late")
	w.run("node1", "drover", "clone", w.url, "late", "--identity-file", w.idFile)
	w.equal(w.busybox("node1", "late", "cat /d/g"), "four")
	w.refused("node2", []string{"read them any more", "--force"}, "drover", "remote", "key", "rm", "pg", "origin", w.first)
	w.refused("node2", []string{"it seals what is pushed"}, "drover", "remote", "key", "rm", "pg", "origin", w.second)
	w.run("node2", "drover", "remote", "key", "wrap", "pg", "--passphrase-file", w.pass2)
	w.refused("node1", []string{"the passphrase is wrong"}, "drover", "remote", "key", "unlock", "late", "--passphrase-file", w.file("wrong", "quite another passphrase"))
	w.run("node1", "drover", "remote", "key", "unlock", "late", "--passphrase-file", w.pass2)
	w.run("node2", "drover", "remote", "key", "rm", "pg", "origin", w.first, "--force")
	if list = w.remoteKeys("node2", "pg"); len(list) != 1 || list[0].ID != w.second {
		t.Errorf("%+v", list)
	}
	w.sync("node2", "push", "pg")
}

func (w *sealedWorld) secrets(t *testing.T) {
	secrets := []string{phrase1, phrase2, w.identity.String()}
	for _, id := range []string{w.first, w.second} {
		for _, host := range []string{"node1", "node2"} {
			if text, err := w.try(host, "cat", keyDir+id); err == nil {
				secrets = append(secrets, text, base64.StdEncoding.EncodeToString([]byte(text)), hex.EncodeToString([]byte(text)))
			}
		}
	}
	if len(secrets) < 5 {
		t.Fatalf("only %d secrets are known", len(secrets))
	}
	dirs := []string{filepath.Join(w.dir, "pg")}
	for _, h := range w.lab.Hosts() {
		dirs = append(dirs, filepath.Dir(h.Log("agent")), filepath.Join(h.Dir(), "drover", "state"), filepath.Join(h.Dir(), "drover", "agent"))
		if _, err := os.Stat(dirs[len(dirs)-1]); err != nil {
			t.Fatal(err)
		}
	}
	w.nowhere(secrets, dirs...)
	for _, host := range []string{"node1", "node2"} {
		out := w.run(host, "drover", "events", "-o", "json")
		if i := slices.IndexFunc(secrets, func(s string) bool { return strings.Contains(out, s) }); i >= 0 {
			t.Errorf("secret %d is in the events of %s", i, host)
		}
	}
}
