package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

const docs = "../../docs"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEveryKindIsExplained holds the tables of the documentation against the
// codes that the command gives.
func TestEveryKindIsExplained(t *testing.T) {
	trouble, reference := read(t, docs+"/troubleshooting.md"), read(t, docs+"/api.md")
	for _, k := range api.Kinds {
		code := exitCode(&api.Error{Kind: k})
		if want := fmt.Sprintf("| `%s` | %d |", k, code); !strings.Contains(trouble, want) {
			t.Errorf("troubleshooting.md has no line %q", want)
		}
		line := regexp.MustCompile(fmt.Sprintf("(?m)^\\| %d \\|.*`%s`", code, regexp.QuoteMeta(string(k))))
		if !line.MatchString(reference) {
			t.Errorf("api.md does not give %s the code %d", k, code)
		}
	}
}

// TestCommandsInTheDocsExist looks up every drover command line of the pages,
// with its flags.
func TestCommandsInTheDocsExist(t *testing.T) {
	pages, err := filepath.Glob(docs + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md")
	command := regexp.MustCompile("(?m)(?:`|^    (?:sudo )?)drover ((?:[a-z-]+ )*[^`\n#]*)")
	root := rootCommand()
	seen := 0
	for _, page := range pages {
		for _, m := range command.FindAllStringSubmatch(read(t, page), -1) {
			words := strings.Fields(m[1])
			if i := slices.IndexFunc(words, func(w string) bool { return w == "|" || strings.HasPrefix(w, ">") }); i >= 0 {
				words = words[:i]
			}
			for len(words) > 1 && strings.HasPrefix(words[0], "--") && words[0] != "--version" {
				words = words[2:] // flags that come first have a value
			}
			if len(words) == 0 || words[0] == "=" {
				continue
			}
			seen++
			c, rest, err := root.Find(words)
			if err != nil || c == root || (c.HasAvailableSubCommands() && !named(c, rest)) {
				t.Errorf("%s: there is no command drover %s", filepath.Base(page), strings.Join(words, " "))
				continue
			}
			if c.Name() == "exec" {
				continue // the rest is another program's
			}
			for _, w := range rest {
				name, _, _ := strings.Cut(strings.TrimLeft(w, "-"), "=")
				name = strings.TrimRight(name, ",.;:)")
				if strings.HasPrefix(w, "--") && name != "help" && c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil {
					t.Errorf("%s: drover %s has no flag --%s", filepath.Base(page), c.CommandPath(), name)
				}
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d command lines were found", seen)
	}
}

// named reports whether a command that holds others is spoken of as itself:
// alone, as itself with flags, or with arguments where it takes some.
func named(c *cobra.Command, rest []string) bool {
	if len(strings.Fields(c.Use)) > 1 {
		return true // it takes arguments of its own
	}
	return len(rest) == 0 || c.RunE != nil && strings.HasPrefix(rest[0], "-")
}

// TestLinksLeadSomewhere follows the links between the pages.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, pattern := range []string{"../../*.md", docs + "/*.md", docs + "/*/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
					t.Errorf("%s leads to %s: %v", page, m[1], err)
				}
			}
		}
	}
}
