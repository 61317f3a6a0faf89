package main

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// source lists what an argument or a flag can be.
type source func(ctx context.Context, t *talk) ([]string, error)

// completionPatience bounds how long a shell waits for names after a tab.
const completionPatience = 2 * time.Second

// completeArgs completes the first argument from the first source, the second
// from the second, and so on; with repeat the last source serves for all others.
func completeArgs(t *talk, repeat bool, sources ...source) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		i := len(args)
		if repeat {
			i = min(i, len(sources)-1)
		}
		if i >= len(sources) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return t.complete(c, sources[i], args)
	}
}

// completeFlag completes a flag's value.
func completeFlag(t *talk, s source) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return t.complete(c, s, nil)
	}
}

func (t *talk) complete(c *cobra.Command, s source, used []string) ([]string, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	names, err := s(ctx, t)
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveError
	}
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(used, n) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// names asks for a list and gives one text for each element.
func names[T any](path string, name func(T) string) source {
	return func(ctx context.Context, t *talk) ([]string, error) {
		var list []T
		if err := t.do(ctx, http.MethodGet, path, nil, &list); err != nil {
			return nil, err
		}
		out := make([]string, 0, len(list))
		for _, x := range list {
			out = append(out, name(x))
		}
		slices.Sort(out)
		return slices.Compact(out), nil
	}
}

func volumeNames() source {
	return names("/v1/volumes", func(v api.Volume) string { return v.Name })
}

func deletedNames() source {
	return names("/v1/volumes?deleted=true", func(v api.Volume) string { return v.Name })
}

func nodeNames() source { return names("/v1/nodes", func(n api.Node) string { return n.Name }) }

func poolNames() source { return names("/v1/pools", func(p api.Pool) string { return p.Name }) }

func userNames() source { return names("/v1/users", func(u api.User) string { return u.Name }) }

func tokenIDs() source { return names("/v1/tokens", func(k state.Token) string { return k.ID }) }

func fixed(list ...string) source {
	return func(context.Context, *talk) ([]string, error) { return list, nil }
}

// nothing completes to nothing, and not to names of files.
func nothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completions gives the commands that ask the agent what they complete to, by
// their path below the root.
func completions(root *cobra.Command, t *talk) {
	volumes, deleted, nodes, pools := volumeNames(), deletedNames(), nodeNames(), poolNames()
	for path, f := range map[string]cobra.CompletionFunc{
		"commit":         completeArgs(t, false, refNames()),
		"log":            completeArgs(t, false, refNames()),
		"show":           completeArgs(t, false, refNames()),
		"status":         completeArgs(t, false, refNames()),
		"branch":         completeBranches(t, volumes, true),
		"checkout":       completeBranches(t, volumes, true),
		"reset":          completeBranches(t, refNames(), true),
		"tag":            completeBranches(t, volumes, true),
		"stash":          completeArgs(t, false, refNames()),
		"stash pop":      completeArgs(t, false, refNames()),
		"stash list":     completeArgs(t, false, refNames()),
		"undo":           completeArgs(t, false, refNames()),
		"reflog":         completeArgs(t, false, refNames()),
		"diff":           completeArgs(t, false, refNames(), refNames()),
		"cat":            completeArgs(t, false, refNames()),
		"revert-file":    completeArgs(t, false, refNames()),
		"volume hook":    completeArgs(t, false, volumes),
		"volume create":  nothing,
		"volume inspect": completeArgs(t, false, volumes),
		"volume move":    completeArgs(t, false, volumes, nodes),
		"volume rm":      completeArgs(t, true, volumes),
		"volume restore": completeArgs(t, false, deleted),
		"volume purge":   completeArgs(t, false, deleted),
		"volume resize":  completeArgs(t, false, volumes, fixed("0")),
		"volume label":   completeArgs(t, false, volumes),
		"node inspect":   completeArgs(t, false, nodes),
		"node label":     completeArgs(t, false, nodes),
		"node drain":     completeArgs(t, false, nodes),
		"node rm":        completeArgs(t, false, nodes),
		"node token rm":  completeArgs(t, false, tokenIDs()),
		"pool add":       nothing,
		"pool rm":        completeArgs(t, false, pools),
		"pool grow":      completeArgs(t, false, pools),
		"user add":       nothing,
		"user rm":        completeArgs(t, false, userNames()),
	} {
		find(root, path).ValidArgsFunction = f
	}
	completeRemotes(root, t, volumes)
	for _, f := range []struct {
		path, flag string
		from       source
	}{
		{"commit", "consistency", fixed("crash", "paused", "application")},
		{"commit", "with", refNames()},
		{"volume hook", "kind", fixed("postgresql", "mysql", "redis", "command")},
		{"volume create", "node", nodes},
		{"volume create", "pool", pools},
		{"volume create", "from", volumes},
		{"volume move", "pool", pools},
		{"node drain", "to", nodes},
		{"pool add", "node", nodes},
		{"pool rm", "node", nodes},
		{"pool grow", "node", nodes},
		{"pool add", "kind", fixed("btrfs", "zfs", "dir")},
		{"user add", "role", fixed("viewer", "operator", "admin")},
		{"events", "node", nodes},
	} {
		complete(find(root, f.path), f.flag, completeFlag(t, f.from))
	}
}
