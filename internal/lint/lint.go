// Package lint holds the rules that the tree keeps and that no compiler
// checks: who may import whom and why, sizes of files and functions, no hidden
// state, every dependency explained. Its test fails with the rule and its
// reason. It looks at source text only.
package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the module's path.
const Module = "github.com/drover-data/drover"

// Limits of what a reader can hold in mind; see CONTRIBUTING.md.
const (
	MaxFile     = 800
	MaxFunction = 80
	MaxTest     = 120 // of a function in a test: a story told in order
)

// source is one Go file.
type source struct {
	pkg   string // below the module, "" for its root
	path  string
	test  bool // a test's file, or one for tests only by its build constraint
	lines int
	file  *ast.File
	fset  *token.FileSet
}

// load reads the Go files below dir.
func load(dir string) ([]source, error) {
	var out []source
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != dir && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "dist") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		s, err := parse(filepath.ToSlash(rel), path, nil)
		out = append(out, s)
		return err
	})
	return out, err
}

// parse reads one file; text may be given instead of the file.
func parse(rel, path string, text any) (source, error) {
	s := source{path: rel, fset: token.NewFileSet(), test: strings.HasSuffix(rel, "_test.go")}
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		s.pkg = rel[:i]
	}
	var err error
	s.file, err = parser.ParseFile(s.fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return s, err
	}
	s.lines = s.fset.File(s.file.FileStart).LineCount()
	return s, nil
}

func (s source) imports() []string {
	var out []string
	for _, i := range s.file.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			out = append(out, path)
		}
	}
	return out
}

func (s source) at(p token.Pos) string { return fmt.Sprintf("%s:%d", s.path, s.fset.Position(p).Line) }

// matches reports whether path is the pattern, or below it when that ends with "...".
func matches(pattern, path string) bool {
	if base, ok := strings.CutSuffix(pattern, "..."); ok {
		base = strings.TrimSuffix(base, "/")
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func anyMatches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, path) })
}

// own gives the path below the module of a package of Drover's.
func own(path string) (string, bool) {
	if path == Module {
		return "", true
	}
	return strings.CutPrefix(path, Module+"/")
}

func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// checkImports holds a file against the law.
func checkImports(s source) []string {
	if s.test {
		return nil
	}
	var out []string
	bad := func(path, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s imports %s: ", s.path, path)+fmt.Sprintf(format, args...))
	}
	for _, path := range s.imports() {
		inner, mine := own(path)
		for _, r := range rules {
			if !anyMatches(r.of, s.pkg) {
				continue
			}
			switch {
			case forbidden(r, path, inner, mine):
				bad(path, "%s may not: %s", s.pkg, r.why)
			case r.std && !standard(path):
				bad(path, "%s takes the standard library only: %s", s.pkg, r.why)
			case mine && r.only != nil && inner != s.pkg && !anyMatches(r.only, inner):
				bad(path, "of Drover, %s takes %s only: %s", s.pkg, strings.Join(r.only, ", "), r.why)
			}
		}
		for _, d := range doors {
			if mine && matches(d.pkg, inner) && !matches(d.pkg, s.pkg) && !anyMatches(d.by, s.pkg) {
				bad(path, "only %s may: %s", whom(d.by), d.why)
			}
		}
		for _, d := range confined {
			if !mine && matches(d.pkg, path) && !anyMatches(d.by, s.pkg) {
				bad(path, "only %s may: %s", whom(d.by), d.why)
			}
		}
	}
	return out
}

func forbidden(r rule, path, inner string, mine bool) bool {
	for _, n := range r.not {
		if d, ok := strings.CutPrefix(n, "drover/"); ok {
			if mine && matches(d, inner) {
				return true
			}
		} else if matches(n, path) {
			return true
		}
	}
	return false
}

func whom(list []string) string {
	if len(list) == 0 {
		return "tests"
	}
	return strings.Join(list, ", ")
}
