package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// waits are the few places that have to sleep, each with its reason. A new one
// needs a better reason than "until the other side is ready".
var waits = map[string]string{
	"lab/cgroup.go":                "the kernel tells nobody when a cgroup's last process is gone for good",
	"lab/down.go":                  "the kernel tells nobody when it lets go of a file system after its last mount went",
	"state/statetest/statetest.go": "a suite for tests: keys have to outlive their time",
}

// capabilities of storage are found by storage.As, which looks through wrappers.
var capabilities = []string{"NativeStreams", "Estimator", "Sizer", "Sealer", "Grower"}

// clocks are what pure packages may not call of package time.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Sleep"}

// pure are packages, and single files, that take time as an argument.
var pure = []string{"plan", "repo", "network/ipam", "ledger/ledger.go", "cluster/rebalance.go"}

func isPure(s source) bool { return anyMatches(pure, s.pkg) || slices.Contains(pure, s.path) }

// checkStyle holds a file against the rules of CONTRIBUTING.md.
func checkStyle(s source) []string {
	var out []string
	bad := func(p token.Pos, format string, args ...any) {
		out = append(out, s.at(p)+": "+fmt.Sprintf(format, args...))
	}
	if s.lines > MaxFile {
		bad(s.file.FileStart, "%d lines; with more than %d it does a second thing: what is it?", s.lines, MaxFile)
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				bad(n.Pos(), "init() acts behind the reader's back; let somebody call it")
			}
			limit := MaxFunction
			if s.test {
				limit = MaxTest
			}
			length := s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
			if length > limit {
				bad(n.Pos(), "%s has %d lines; with more than %d it does a second thing: what is it?", n.Name.Name, length, limit)
			}
		case *ast.TypeAssertExpr:
			if what := asserted(n); !s.test && slices.Contains(capabilities, what) {
				bad(n.Pos(), "asserts storage.%s: ask storage.As, a wrapper has more methods than abilities", what)
			}
		case *ast.CallExpr:
			if s.test {
				return true
			}
			name := called(n)
			if name == "time.Sleep" && waits[s.path] == "" {
				bad(n.Pos(), "time.Sleep: wait for the event, or for the context")
			}
			if what, ok := strings.CutPrefix(name, "time."); ok && isPure(s) && slices.Contains(clocks, what) {
				bad(n.Pos(), "%s: what decides takes time as an argument", name)
			}
		}
		return true
	})
	return out
}

// asserted gives X of an assertion to storage.X.
func asserted(n *ast.TypeAssertExpr) string {
	sel, ok := n.Type.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "storage" {
		return ""
	}
	return sel.Sel.Name
}

// called gives "pkg.Func" for a call of that form.
func called(c *ast.CallExpr) string {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := sel.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + sel.Sel.Name
}

// checkPackages wants a comment for each package.
func checkPackages(sources []source) []string {
	comment, where := map[string]string{}, map[string]string{}
	for _, s := range sources {
		if s.test {
			continue
		}
		where[s.pkg] = s.path
		if s.file.Doc != nil {
			comment[s.pkg] = s.file.Doc.Text()
		}
	}
	var out []string
	for pkg, path := range where {
		if text := comment[pkg]; !strings.HasPrefix(text, "Package ") && !strings.HasPrefix(text, "Command ") {
			out = append(out, path+": the package has no comment that says what it is for and what it must not know")
		}
	}
	slices.Sort(out)
	return out
}

// checkGlobals finds package variables that functions change, or that can only
// be meant to change. sources are all of one package.
func checkGlobals(sources []source) []string {
	globals := map[string]bool{}
	var out []string
	for _, s := range sources {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for _, n := range v.Names {
					globals[n.Name] = n.Name != "_"
				}
				if why := changeable(v); why != "" {
					out = append(out, fmt.Sprintf("%s: the package variable %s is %s: state belongs into a struct that somebody owns", s.at(v.Pos()), v.Names[0].Name, why))
				}
			}
		}
	}
	for _, s := range sources {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				out = append(out, assigned(s, f, globals)...)
			}
		}
	}
	return out
}

// changeable says what makes a declaration that of changing state.
func changeable(v *ast.ValueSpec) string {
	if sel, ok := v.Type.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") {
			return "a " + x.Name + "." + sel.Sel.Name
		}
	}
	for _, value := range v.Values {
		if c, ok := value.(*ast.CallExpr); ok {
			if f, ok := c.Fun.(*ast.Ident); ok && f.Name == "make" {
				return "made empty"
			}
		}
	}
	return ""
}

// assigned finds what a function assigns to package variables.
func assigned(s source, f *ast.FuncDecl, globals map[string]bool) []string {
	local := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok {
						local[id.Name] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				local[id.Name] = true
			}
		case *ast.Field:
			for _, id := range n.Names {
				local[id.Name] = true
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					local[id.Name] = true
				}
			}
		}
		return true
	})
	var out []string
	check := func(e ast.Expr) {
		if id := rootOf(e); id != nil && globals[id.Name] && !local[id.Name] {
			out = append(out, fmt.Sprintf("%s: %s changes the package variable %s: state belongs into a struct that somebody owns", s.at(id.Pos()), f.Name.Name, id.Name))
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, l := range n.Lhs {
					check(l)
				}
			}
		case *ast.IncDecStmt:
			check(n.X)
		}
		return true
	})
	return out
}

// rootOf is x of x, x[i], x.f and (*x).
func rootOf(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// direct gives the direct dependencies that a go.mod names.
func direct(mod string) []string {
	var out []string
	for _, line := range strings.Split(mod, "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "require ")
		if strings.HasSuffix(line, "// indirect") {
			continue
		}
		if f := strings.Fields(line); len(f) == 2 && strings.Contains(f[0], ".") && strings.HasPrefix(f[1], "v") {
			out = append(out, f[0])
		}
	}
	return out
}

// checkDependencies wants each direct dependency in the document, with a
// reason, and no line there for one that is gone.
func checkDependencies(mod, doc string) []string {
	reasons := map[string]string{}
	for _, line := range strings.Split(doc, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) >= 4 && strings.Contains(cells[1], "`") {
			reasons[strings.Trim(strings.TrimSpace(cells[1]), "`")] = strings.TrimSpace(cells[2])
		}
	}
	var out []string
	have := direct(mod)
	for _, m := range have {
		if len(reasons[m]) < 10 {
			out = append(out, "go.mod requires "+m+", and docs/dependencies.md does not say why")
		}
	}
	for m := range reasons {
		if !slices.Contains(have, m) {
			out = append(out, "docs/dependencies.md explains "+m+", which go.mod does not require directly")
		}
	}
	slices.Sort(out)
	return out
}
