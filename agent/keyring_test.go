package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
)

func TestKeyring(t *testing.T) {
	k := keyring{filepath.Join(t.TempDir(), "a", "remote-keys")}
	secret := bytes.Repeat([]byte{5}, exchange.KeySize)
	if _, err := k.keep(secret[:31]); !api.Is(err, api.Invalid) {
		t.Errorf("31 bytes are kept: %v", err)
	}
	id, err := k.keep(secret)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{k.dir: 0o700, k.path(id): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if got, err := k.read(id); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%v", err)
	}
	other, err := exchange.NewKey(bytes.Repeat([]byte{6}, exchange.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		content []byte
		says    string
	}{
		"cut":       {secret[:20], "20 bytes"},
		"empty":     {nil, "0 bytes"},
		"too long":  {append(bytes.Clone(secret), '\n'), "33 bytes"},
		"another's": {secret, "holds something else"},
	} {
		if err := os.WriteFile(k.path(other.ID()), x.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := k.read(other.ID())
		if !api.Is(err, api.Damaged) || !strings.Contains(err.Error(), x.says) || !strings.Contains(err.Error(), "drover remote key unlock") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), string(secret[:4])) {
			t.Errorf("%s: the error has the key in it", name)
		}
	}
	for _, bad := range []string{"", "../index.db", "x", strings.ToUpper(id), id + "/.."} {
		if _, err := k.read(bad); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
		if err := k.remove(bad); err != nil {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for range 2 {
		if err := k.remove(id); err != nil {
			t.Error(err)
		}
	}
	if _, err := k.read(id); !api.Is(err, api.NotFound) {
		t.Errorf("%v", err)
	}
}
