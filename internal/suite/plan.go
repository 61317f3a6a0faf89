package main

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A test belongs to the first stage whose tags satisfy its file's build
// constraint. So each runs in one stage and no other.
type stage struct {
	name string
	tags []string
	// alone: packages run one after the other, because their tests make labs.
	alone bool
}

// stages in order. Those of long tests come after all others.
func stages() []stage {
	return []stage{
		{name: "plain"},
		{name: "root", tags: []string{"root"}},
		{name: "lab", tags: []string{"root", "lab"}, alone: true},
		{name: "long", tags: []string{"long"}},
		{name: "long root", tags: []string{"long", "root"}},
		{name: "long lab", tags: []string{"long", "root", "lab"}, alone: true},
	}
}

// test is one test function.
type test struct{ pkg, name string }

func (t test) String() string { return t.pkg + "." + t.name }

// collect finds the tests below dir and sorts them by the name of their stage.
func collect(dir string) (map[string][]test, error) {
	out := map[string][]test{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != dir && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(dir, filepath.Dir(path))
		if err != nil {
			return err
		}
		st, names, err := read(path)
		for _, n := range names {
			out[st] = append(out[st], test{"./" + filepath.ToSlash(rel), n})
		}
		return err
	})
	for _, list := range out {
		slices.SortFunc(list, func(a, b test) int { return strings.Compare(a.String(), b.String()) })
	}
	return out, err
}

// read gives a test file's stage and test functions.
func read(path string) (string, []string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return "", nil, err
	}
	st, err := stageOf(file)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	var names []string
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Recv != nil || f.Name.Name == "TestMain" {
			continue
		}
		for _, prefix := range []string{"Test", "Fuzz", "Example"} {
			if strings.HasPrefix(f.Name.Name, prefix) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return st, names, nil
}

func stageOf(file *ast.File) (string, error) {
	var expr constraint.Expr
	for _, group := range file.Comments {
		if group.Pos() > file.Package {
			break
		}
		for _, c := range group.List {
			if !constraint.IsGoBuild(c.Text) {
				continue
			}
			var err error
			if expr, err = constraint.Parse(c.Text); err != nil {
				return "", err
			}
		}
	}
	for _, s := range stages() {
		if expr == nil || expr.Eval(func(tag string) bool { return tag == "linux" || tag == "unix" || slices.Contains(s.tags, tag) }) {
			return s.name, nil
		}
	}
	return "", fmt.Errorf("no stage runs a test built under %q; the tags are root, lab and long", expr)
}

// shard is the part of the long tests that is run on a day: every day another
// one, so that all of them run within n days.
func shard(tests []test, day, n int) []test {
	var out []test
	for i, t := range tests {
		if i%n == day%n {
			out = append(out, t)
		}
	}
	return out
}

// batch is one call of go test: packages, and the tests to run in them.
type batch struct {
	pkgs []string
	run  string
}

// batches puts packages together as far as the pattern, which is one for a
// whole call, runs no test of a package that is not meant.
func batches(want, all []test) []batch {
	byPkg := func(list []test) map[string][]string {
		m := map[string][]string{}
		for _, t := range list {
			m[t.pkg] = append(m[t.pkg], t.name)
		}
		return m
	}
	meant, present := byPkg(want), byPkg(all)
	type group struct{ pkgs, names []string }
	var groups []group
	for _, pkg := range slices.Sorted(maps.Keys(meant)) {
		placed := false
		for i := range groups {
			names := append(slices.Clone(groups[i].names), meant[pkg]...)
			if !strays(append(slices.Clone(groups[i].pkgs), pkg), names, meant, present) {
				groups[i].pkgs, groups[i].names, placed = append(groups[i].pkgs, pkg), names, true
				break
			}
		}
		if !placed {
			groups = append(groups, group{[]string{pkg}, meant[pkg]})
		}
	}
	var out []batch
	for _, g := range groups {
		slices.Sort(g.names)
		quoted := make([]string, 0, len(g.names))
		for _, n := range slices.Compact(g.names) {
			quoted = append(quoted, regexp.QuoteMeta(n))
		}
		out = append(out, batch{g.pkgs, "^(" + strings.Join(quoted, "|") + ")$"})
	}
	return out
}

// strays reports whether names would run a test of pkgs that is not meant.
func strays(pkgs, names []string, meant, present map[string][]string) bool {
	for _, pkg := range pkgs {
		for _, n := range present[pkg] {
			if slices.Contains(names, n) && !slices.Contains(meant[pkg], n) {
				return true
			}
		}
	}
	return false
}
