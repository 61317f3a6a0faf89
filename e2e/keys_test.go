//go:build lab

package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// A remote is sealed, read elsewhere with what opens its key, the key follows
// the volume, and is changed.
func TestRemoteKeys(t *testing.T) {
	w := newWorld(t, 2, "1G")
	dir, err := os.MkdirTemp("/var/tmp", "drover-e2e-keys-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	url := "file://" + filepath.Join(dir, "pg")
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pass1, pass2 := file("pass1", phrase1), file("pass2", phrase2)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	idFile := file("age.key", identity.String())

	w.busybox("node1", "pg", "echo secret-content > /d/f; echo x > /d/secret-name")
	w.run("node1", "drover", "commit", "pg", "-m", "secret-message")
	w.run("node1", "drover", "remote", "add", "pg", "origin", url)
	var first, second string

	t.Run("new", func(t *testing.T) {
		w := w.in(t)
		w.refused("node1", []string{"can be guessed"}, "drover", "remote", "key", "new", "pg", "--passphrase-file", file("short", "secret"))
		w.refused("node1", []string{"--passphrase-file"}, "drover", "remote", "key", "new", "pg")
		w.run("node2", "drover", "remote", "key", "new", "pg", "--passphrase-file", pass1)
		list := w.remoteKeys("node1", "pg")
		if len(list) != 1 || list[0].Use != "current" || !list[0].Here || list[0].Wrapped != "passphrase" {
			t.Fatalf("%+v", list)
		}
		first = list[0].ID
		w.equal(w.run("node1", "stat", "-c", "%a %s", keyDir+first, keyDir), "600 32\n700 "+w.run("node1", "stat", "-c", "%s", keyDir))
		w.refused("node1", []string{"is sealed with the key " + first, "rotate"}, "drover", "remote", "key", "new", "pg", "--passphrase-file", pass1)
		w.sync("node1", "push", "pg")
		w.run("node1", "drover", "verify", "pg")
		w.nowhere([]string{"secret-content", "secret-name", "secret-message"}, filepath.Join(dir, "pg"))
	})
	t.Run("elsewhere", func(t *testing.T) {
		w := w.in(t)
		clone := []string{"drover", "clone", url, "copy", "--node", "node2"}
		w.refused("node2", []string{"sealed with the key " + first, "wrapped with a passphrase", "--passphrase-file"}, clone...)
		w.refused("node2", []string{"the passphrase is wrong"}, append(clone, "--passphrase-file", pass2)...)
		w.refused("node2", []string{"wrapped with a passphrase"}, append(clone, "--identity-file", idFile)...)
		w.run("node2", append(clone, "--passphrase-file", pass1)...)
		w.equal(w.busybox("node2", "copy", "cat /d/f"), "secret-content")
		w.busybox("node2", "copy", "echo two > /d/g")
		w.run("node2", "drover", "commit", "copy", "-m", "two")
		w.sync("node2", "push", "copy")
		w.sync("node1", "pull", "pg")
		w.equal(w.busybox("node1", "pg", "cat /d/g"), "two")
		w.nowhere([]string{"secret-content", "secret-name", "secret-message"}, filepath.Join(dir, "pg"))
		// Another volume that is to push there.
		w.busybox("node1", "other", "echo > /d/f")
		w.run("node1", "rm", keyDir+first)
		w.refused("node1", []string{"it is sealed with the key " + first}, "drover", "remote", "add", "other", "origin", url)
		w.run("node1", "env", "DROVER_PASSPHRASE="+phrase1, w.binary, "remote", "add", "other", "origin", url)
		w.run("node1", "drover", "remote", "rm", "other", "origin")
	})
	t.Run("a key file that is damaged or gone", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "truncate", "-s", "31", keyDir+first)
		w.refused("node1", []string{keyDir + first, "31 bytes", "unlock"}, "drover", "push", "pg")
		if list := w.remoteKeys("node1", "pg"); list[0].Here || !strings.Contains(list[0].Fault, "31 bytes") {
			t.Errorf("%+v", list)
		}
		w.refused("node1", []string{"the passphrase is wrong"}, "drover", "remote", "key", "unlock", "pg", "--passphrase-file", pass2)
		w.run("node1", "drover", "remote", "key", "unlock", "pg", "--passphrase-file", pass1)
		w.sync("node1", "push", "pg")
		copied := filepath.Join(dir, "copy.key")
		w.run("node2", "rm", keyDir+first)
		w.refused("node2", []string{"does not have it", "unlock"}, "drover", "push", "copy")
		w.run("node1", "drover", "remote", "key", "export", "pg", "--out", copied)
		w.equal(w.run("node1", "stat", "-c", "%a", copied), "600")
		w.run("node2", "drover", "remote", "key", "unlock", "copy", "--recovery-file", copied)
		w.sync("node2", "push", "copy")
		if line := w.run("node1", "drover", "remote", "key", "export", "pg"); !strings.Contains(line, "DROVER-REMOTE-KEY-1 "+first) {
			t.Error(line)
		}
		if out := w.run("node1", "drover", "events", "-o", "json"); !strings.Contains(out, "volume.key-exported") {
			t.Error("an export is no event")
		}
	})
	t.Run("the key follows the volume", func(t *testing.T) {
		w := w.in(t)
		w.run("node2", "rm", keyDir+first)
		w.run("node1", "drover", "volume", "move", "pg", "node2")
		w.until("node2 has the key", func() error {
			_, err := w.try("node2", "test", "-s", keyDir+first)
			return err
		})
		w.equal(w.run("node2", "stat", "-c", "%a", keyDir+first), "600")
		w.busybox("node2", "pg", "echo three > /d/g")
		w.run("node2", "drover", "commit", "pg", "-m", "three")
		w.sync("node2", "push", "pg")
	})
	t.Run("rotate", func(t *testing.T) {
		w := w.in(t)
		w.run("node1", "drover", "remote", "key", "rotate", "pg", "--recipient", identity.Recipient().String())
		list := w.remoteKeys("node1", "pg")
		if len(list) != 2 || list[0].Use != "current" || list[0].Wrapped != "age identity" || list[1].ID != first || list[1].Use != "old" {
			t.Fatalf("%+v", list)
		}
		second = list[0].ID
		w.busybox("node2", "pg", "echo four > /d/g")
		w.run("node2", "drover", "commit", "pg", "-m", "four")
		w.sync("node2", "push", "pg")
		w.run("node2", "drover", "verify", "pg")
		w.refused("node1", []string{"wrapped for age public keys", "--identity-file"}, "drover", "clone", url, "late")
		w.run("node1", "drover", "clone", url, "late", "--identity-file", idFile)
		w.equal(w.busybox("node1", "late", "cat /d/g"), "four")
		w.refused("node2", []string{"read them any more", "--force"}, "drover", "remote", "key", "rm", "pg", "origin", first)
		w.refused("node2", []string{"it seals what is pushed"}, "drover", "remote", "key", "rm", "pg", "origin", second)
		w.run("node2", "drover", "remote", "key", "wrap", "pg", "--passphrase-file", pass2)
		w.refused("node1", []string{"the passphrase is wrong"}, "drover", "remote", "key", "unlock", "late", "--passphrase-file", file("wrong", "quite another passphrase"))
		w.run("node1", "drover", "remote", "key", "unlock", "late", "--passphrase-file", pass2)
		w.run("node2", "drover", "remote", "key", "rm", "pg", "origin", first, "--force")
		if list = w.remoteKeys("node2", "pg"); len(list) != 1 || list[0].ID != second {
			t.Errorf("%+v", list)
		}
		w.sync("node2", "push", "pg")
	})
	t.Run("no secret is anywhere else", func(t *testing.T) {
		w := w.in(t)
		secrets := []string{phrase1, phrase2, identity.String()}
		for _, id := range []string{first, second} {
			for _, host := range []string{"node1", "node2"} {
				if text, err := w.try(host, "cat", keyDir+id); err == nil {
					secrets = append(secrets, text, base64.StdEncoding.EncodeToString([]byte(text)), hex.EncodeToString([]byte(text)))
				}
			}
		}
		if len(secrets) < 5 {
			t.Fatalf("only %d secrets are known", len(secrets))
		}
		dirs := []string{filepath.Join(dir, "pg")}
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
				t.Error(fmt.Sprintf("secret %d is in the events of %s", i, host))
			}
		}
	})
}
