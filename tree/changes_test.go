package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/treetest"
)

func fill(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for path, text := range files {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(text, "-> "); link {
			err = os.Symlink(to, full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func at(dir string) storage.Snapshot { return storage.Snapshot{ID: filepath.Base(dir), Dir: dir} }

func diff(t *testing.T, a, b string) []string {
	t.Helper()
	var out []string
	err := tree.Diff(context.Background(), at(a), at(b), nil, func(c tree.Change) error {
		out = append(out, fmt.Sprintf("%s %q %d>%d +%d -%d", c.What, c.Path, c.Was, c.Is, c.Bytes, c.Entries))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDiffNamesWhatHappened(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	fill(t, a, map[string]string{"same": "same", "mod": "one", "gone": "12345", "dir/x": "x", "dir/sub/y": "yy", "turns": "file", "link": "-> a", "meta": "m", "\xff\n": "odd"})
	fill(t, b, map[string]string{"same": "same", "mod": "two!", "new/z": "zzz", "turns/in": "d", "link": "-> b", "meta": "m", "\xff\n": "ODD"})
	for _, name := range []string{"same", "meta"} {
		st, err := os.Stat(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(b, name), st.ModTime(), st.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(b, "meta"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`removed "dir" 1>0 +0 -4`,
		`removed "gone" 2>0 +0 -1`,
		`modified "link" 4>4 +0 -0`,
		`metadata "meta" 2>2 +0 -0`,
		`modified "mod" 2>2 +4 -0`,
		`added "new" 0>1 +0 -0`,
		`added "new/z" 0>2 +3 -0`,
		`type "turns" 2>1 +0 -0`,
		`added "turns/in" 0>2 +1 -0`,
		`modified "\xff\n" 2>2 +3 -0`,
	}
	if got := diff(t, a, b); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := diff(t, a, a); len(got) > 0 {
		t.Errorf("against itself: %q", got)
	}
}

// TestDiffIsComplete holds Diff against Compare, which looks at everything.
func TestDiffIsComplete(t *testing.T) {
	n := 0
	base := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		n++
		a, b := filepath.Join(base, fmt.Sprintf("%d-a", n)), filepath.Join(base, fmt.Sprintf("%d-b", n))
		for _, dir := range []string{a, b} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				r.Fatal(err)
			}
		}
		treetest.Mutate(r, a, 8)
		if err := tree.Copy(context.Background(), a, b, false); err != nil {
			r.Fatal(err)
		}
		treetest.Mutate(r, b, 4)
		named := map[string]tree.What{}
		err := tree.Diff(context.Background(), at(a), at(b), nil, func(c tree.Change) error {
			if named[c.Path] != "" {
				r.Fatalf("%q is named twice", c.Path)
			}
			named[c.Path] = c.What
			return nil
		})
		if err != nil {
			r.Fatal(err)
		}
		all, err := tree.Compare(a, b, storage.Full())
		if err != nil {
			r.Fatal(err)
		}
		for _, d := range all {
			if d.What == "same file as" { // said of the name that is new
				continue
			}
			st, err := os.Lstat(filepath.Join(b, d.Path))
			if err == nil && st.IsDir() && d.What == "time" {
				continue
			}
			if err == nil && !st.IsDir() && st.Sys().(*syscall.Stat_t).Nlink > 1 {
				continue // a file is said once, under its first name
			}
			if named[d.Path] == "" && d.What != "data between holes" {
				r.Fatalf("not named: %v; named are %v", d, named)
			}
		}
	})
}

func TestRestorePutsOneFileBack(t *testing.T) {
	old, now := t.TempDir(), t.TempDir()
	fill(t, old, map[string]string{"a/b/conf": "old", "sym": "-> a/b", "plain": "p"})
	fill(t, now, map[string]string{"a/other": "stays", "plain": "changed", "was/sym": "x", "out": "-> /etc", "dir/in": "x"})
	if err := unix.Chmod(filepath.Join(old, "a/b/conf"), 0o4710); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(old, "a/b"), 0o711); err != nil {
		t.Fatal(err)
	}
	put := func(path string) error {
		_, err := tree.Restore(context.Background(), at(old), path, now, ".tmp")
		return err
	}
	for _, path := range []string{"a/b/conf", "plain", "sym", "plain"} {
		if err := put(path); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	for path, want := range map[string]string{"a/b/conf": "old", "plain": "p", "a/other": "stays"} {
		if got, err := os.ReadFile(filepath.Join(now, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(now, "sym")); err != nil || to != "a/b" {
		t.Errorf("sym: %q, %v", to, err)
	}
	for path, mode := range map[string]uint32{"a/b/conf": 0o4710, "a/b": 0o711} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(now, path), &st); err != nil || st.Mode&0o7777 != mode {
			t.Errorf("%s: mode %o, %v", path, st.Mode, err)
		}
	}
}

func TestPathsThatLeadOutAreRefused(t *testing.T) {
	old, now := t.TempDir(), t.TempDir()
	outside := t.TempDir()
	fill(t, outside, map[string]string{"secret": "s"})
	fill(t, old, map[string]string{"d/f": "f", "up": "-> " + outside, "f": "f"})
	fill(t, now, map[string]string{"d": "-> " + outside, "f/x": "x"})
	put := func(path string) error {
		_, err := tree.Restore(context.Background(), at(old), path, now, ".tmp")
		return err
	}
	look := func(path string) error {
		_, err := tree.Look(at(old), path)
		if err == nil {
			_, err = tree.Read(context.Background(), at(old), path, make([]byte, 10), 0)
		}
		return err
	}
	for _, x := range []struct {
		what string
		err  error
		kind api.Kind
	}{
		{"..", look(".."), api.Invalid},
		{"a path with ..", look("d/../f"), api.Invalid},
		{"an absolute path", look("/etc/passwd"), api.Invalid},
		{"nothing", look(""), api.Invalid},
		{"through a link", look("up/secret"), api.Invalid},
		{"not there", look("d/g"), api.NotFound},
		{"below a file", look("f/g"), api.NotFound},
		{"a path with .. to put back", put("d/../../f"), api.Invalid},
		{"through a link in the target", put("d/f"), api.Invalid},
		{"a directory", put("d"), api.Unsupported},
		{"a directory in its place", put("f"), api.Conflict},
	} {
		if !api.Is(x.err, x.kind) {
			t.Errorf("%s: %v (%s), want %s", x.what, x.err, api.KindOf(x.err), x.kind)
		}
	}
	for _, dir := range []string{now, outside} {
		if _, err := os.Lstat(filepath.Join(dir, ".tmp")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s keeps what was begun: %v", dir, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || !bytes.Equal(got, []byte("s")) {
		t.Errorf("outside: %q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made outside: %v", err)
	}
}
