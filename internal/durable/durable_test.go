package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// That it survives a power loss is tested in internal/powerloss.
func TestWriteFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := WriteFile(filepath.Join(dir, "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("into a directory that is not there: %v", err)
	}
	for range 2 {
		if err := MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "f")
	for _, text := range []string{"one", "another"} {
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	if err := MkdirAll(filepath.Join(path, "below"), 0o700); err == nil {
		t.Fatal("a directory was made below a file")
	}
}
