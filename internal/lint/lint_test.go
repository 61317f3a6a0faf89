package lint

import (
	"os"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	const root = "../.."
	sources, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 100 {
		t.Fatalf("only %d files were found: is this the tree?", len(sources))
	}
	report := func(list []string) {
		for _, p := range list {
			t.Error(p)
		}
	}
	pkgs := map[string][]source{}
	for _, s := range sources {
		report(checkImports(s))
		report(checkStyle(s))
		pkgs[s.pkg] = append(pkgs[s.pkg], s)
	}
	report(checkPackages(sources))
	for _, list := range pkgs {
		report(checkGlobals(list))
	}
	for path := range waits {
		if _, err := os.Stat(root + "/" + path); err != nil {
			t.Errorf("the list of places that may sleep names %s: %v", path, err)
		}
	}
	mod, err := os.ReadFile(root + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(root + "/docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	report(checkDependencies(string(mod), string(doc)))
}

func sample(t *testing.T, path, text string) source {
	t.Helper()
	s, err := parse(path, path, text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// want holds the findings against parts of what they should say, in order.
func want(t *testing.T, got []string, parts ...string) {
	t.Helper()
	if len(got) != len(parts) {
		t.Fatalf("got %q, want %d findings", got, len(parts))
	}
	for i, p := range parts {
		if !strings.Contains(got[i], p) {
			t.Errorf("%q does not say %q", got[i], p)
		}
	}
}

func TestImportLaw(t *testing.T) {
	for _, c := range []struct{ path, imports, want string }{
		{"api/x.go", "fmt", ""},
		{"api/x.go", "golang.org/x/sys/unix", "standard library only"},
		{"api/x.go", Module + "/state", "standard library only"},
		{"plan/x.go", "time", ""},
		{"plan/x.go", "net/http", "plan may not"},
		{"plan/x.go", "context", "plan may not"},
		{"plan/x.go", Module + "/storage", "takes api, repo only"},
		{"plan/x_test.go", Module + "/storage", ""},
		{"agent/x.go", Module + "/state/etcd", "only node, cmd..., lab, internal/... may"},
		{"node/x.go", Module + "/state/etcd", ""},
		{"cluster/x.go", Module + "/agent", "of Drover, cluster takes"},
		{"apiserver/x.go", Module + "/agent", "only node, internal/... may"},
		{"storage/zfs/x.go", Module + "/storage/btrfs/sendstream", "backends do not know each other"},
		{"storage/btrfs/x.go", Module + "/storage/btrfs/sendstream", ""},
		{"storage/hostfs/x.go", Module + "/storage/dir", "knows none of them"},
		{"storage/zfs/x.go", Module + "/storage/hostfs", ""},
		{"agent/x.go", Module + "/storage/hostfs", "what backends are made of"},
		{"lab/x.go", Module + "/cmd/drover", "of Drover, lab takes api only"},
		{"node/x.go", Module + "/cmd/drover", "a command is an end"},
		{"cluster/x.go", "go.etcd.io/etcd/client/v3", "cluster may not"},
		{"agent/x.go", "os/exec", "nobody else starts programs"},
	} {
		got := checkImports(sample(t, c.path, "package x\nimport _ \""+c.imports+"\"\n"))
		if c.want == "" && len(got) > 0 {
			t.Errorf("%s importing %s: %q", c.path, c.imports, got)
		}
		if c.want != "" && !strings.Contains(strings.Join(got, "\n"), c.want) {
			t.Errorf("%s importing %s: %q does not say %q", c.path, c.imports, got, c.want)
		}
	}
}

func TestStyleRules(t *testing.T) {
	want(t, checkStyle(sample(t, "agent/x.go", "package x\nimport \"time\"\nfunc init() {}\nfunc f() { time.Sleep(1) }\n")), "init()", "time.Sleep")
	want(t, checkStyle(sample(t, "agent/x_test.go", "package x\nimport \"time\"\nfunc f() { time.Sleep(1) }\n")))
	want(t, checkStyle(sample(t, "plan/x.go", "package x\nimport \"time\"\nfunc f() { _ = time.Now(); _ = time.Unix(1, 0) }\n")), "time as an argument")
	want(t, checkStyle(sample(t, "agent/x.go", "package x\nfunc long() {"+strings.Repeat("\n", MaxFunction)+"}\n")), "long has 81 lines")
	want(t, checkStyle(sample(t, "a/xtest/x.go", "package x\nfunc long() {"+strings.Repeat("\n", MaxFunction)+"}\n")), "long has 81 lines")
	want(t, checkStyle(sample(t, "agent/x.go", "package x\nfunc f(b any) { _ = b.(storage.Sizer); _ = b.(*storage.Absent) }\n")), "ask storage.As")
	want(t, checkStyle(sample(t, "agent/x.go", "package x\n"+strings.Repeat("\n", MaxFile))), "801 lines")
}

func TestPackageComments(t *testing.T) {
	want(t, checkPackages([]source{
		sample(t, "a/a.go", "// Package a does.\npackage a\n"), sample(t, "a/b.go", "package a\n"),
		sample(t, "b/b.go", "package b\n"), sample(t, "c/c_test.go", "package c\n"),
	}), "b/b.go")
}

func TestGlobals(t *testing.T) {
	want(t, checkGlobals([]source{
		sample(t, "a/a.go", `package a
var table = map[string]int{"a": 1}
var count int
var cache = make(map[string]int)
var mu sync.Mutex
func f() { count++; table["b"] = 2 }
`),
		sample(t, "a/b.go", `package a
func g(count int) { count = 2; table := 1; table = 2; _ = table }
func h() { for count := range 3 { count = 1 } }
`),
		sample(t, "a/a_test.go", "package a\nfunc t() { count = 9 }\n"),
	}), "cache is made empty", "mu is a sync.Mutex", "f changes the package variable count", "f changes the package variable table")
}

func TestDependencies(t *testing.T) {
	mod := "module x\ngo 1.26\nrequire example.org/one v1.0.0\nrequire (\n\texample.org/two/v2 v2.1.0\n\texample.org/three v0.1.0 // indirect\n)\n"
	doc := "| module | why |\n|---|---|\n| `example.org/one` | because we need one |\n| `example.org/four` | because we needed four |\n"
	want(t, checkDependencies(mod, doc), "explains example.org/four", "requires example.org/two/v2")
}
