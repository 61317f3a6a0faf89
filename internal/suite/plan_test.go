package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestCollectPutsEachTestIntoOneStage(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a/a_test.go", "package a\nfunc TestPlain(t T) {}\nfunc TestMain(m M) {}\nfunc helper() {}\nfunc FuzzX(f F) {}\n")
	write("a/r_test.go", "//go:build root\n\npackage a\nfunc TestRoot(t T) {}\n")
	write("a/l_test.go", "//go:build linux && lab\n\npackage a\nfunc TestLab(t T) {}\n")
	write("b/s_test.go", "//go:build root && long\n\npackage b\nfunc TestSlow(t T) {}\n")
	write("testdata/x_test.go", "not go")
	got, err := collect(dir)
	if err != nil {
		t.Fatal(err)
	}
	for stage, want := range map[string][]test{
		"plain": {{"./a", "FuzzX"}, {"./a", "TestPlain"}}, "root": {{"./a", "TestRoot"}}, "lab": {{"./a", "TestLab"}},
		"long": nil, "long root": {{"./b", "TestSlow"}}, "long lab": nil,
	} {
		if !slices.Equal(got[stage], want) {
			t.Errorf("%s: got %v, want %v", stage, got[stage], want)
		}
	}
	write("c/c_test.go", "//go:build windows\n\npackage c\nfunc TestNever(t T) {}\n")
	if _, err := collect(dir); err == nil {
		t.Error("a test that no stage runs is accepted")
	}
}

func TestBatchesRunWhatIsMeantOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Custom(func(t *rapid.T) test {
			return test{rapid.SampledFrom([]string{"./a", "./b", "./c", "./d"}).Draw(t, "pkg"), rapid.SampledFrom([]string{"TestA", "TestB", "TestAB", "TestC"}).Draw(t, "name")}
		})
		all := rapid.SliceOfDistinct(one, func(t test) test { return t }).Draw(t, "all")
		var want []test
		for _, x := range all {
			if rapid.Bool().Draw(t, "want") {
				want = append(want, x)
			}
		}
		runs := map[test]int{}
		for _, b := range batches(want, all) {
			re := regexp.MustCompile(b.run)
			for _, x := range all {
				if slices.Contains(b.pkgs, x.pkg) && re.MatchString(x.name) {
					runs[x]++
				}
			}
		}
		for _, x := range all {
			expected := 0
			if slices.Contains(want, x) {
				expected = 1
			}
			if runs[x] != expected {
				t.Fatalf("%v runs %d times, not %d", x, runs[x], expected)
			}
		}
	})
}

func TestShardsCoverAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tests := make([]test, rapid.IntRange(0, 40).Draw(t, "n"))
		for i := range tests {
			tests[i] = test{"./p", string(rune('A' + i))}
		}
		n, from := rapid.IntRange(1, 9).Draw(t, "shards"), rapid.IntRange(0, 366).Draw(t, "day")
		seen := map[test]int{}
		for d := range n {
			for _, x := range shard(tests, from+d, n) {
				seen[x]++
			}
		}
		for _, x := range tests {
			if seen[x] != 1 {
				t.Fatalf("%v runs %d times within %d days", x, seen[x], n)
			}
		}
	})
}
