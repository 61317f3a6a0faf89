package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

// completeRemotes gives the commands that speak of remotes what they complete to.
func completeRemotes(root *cobra.Command, t *talk, volumes source) {
	remotes := completeOf(t, volumes, remoteNames)
	for path, f := range map[string]cobra.CompletionFunc{
		"remote add":        completeArgs(t, false, volumes),
		"remote set-url":    remotes,
		"remote ls":         completeArgs(t, false, volumes),
		"remote rm":         remotes,
		"remote key new":    remotes,
		"remote key rotate": remotes,
		"remote key ls":     remotes,
		"remote key wrap":   remotes,
		"remote key unlock": remotes,
		"remote key export": remotes,
		"remote key rm":     completeKeys(t, volumes),
		"ls-remote":         remotes,
		"fetch":             remotes,
		"pull":              remotes,
		"push": completeOf(t, refNames(), func(v api.Volume, i int) []string {
			if i > 1 {
				return sortedKeys(v.Tags)
			}
			return sortedKeys(v.Remotes)
		}),
		"prune":  completeArgs(t, false, volumes),
		"verify": remotes,
	} {
		find(root, path).ValidArgsFunction = f
	}
	complete(find(root, "prune"), "remote", func(c *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nothing(c, args, text)
		}
		return remotes(c, args[:1], text)
	})
	for _, path := range []string{"remote key wrap", "remote key export"} {
		complete(find(root, path), "key", func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nothing(c, args, "")
			}
			return t.complete(c, keyIDs(args), nil)
		})
	}
}

// remoteNames are the second argument of most commands with remotes.
func remoteNames(v api.Volume, i int) []string {
	if i > 1 {
		return nil
	}
	return sortedKeys(v.Remotes)
}

// keyIDs are the ids of the keys of the remote that the first two arguments name.
func keyIDs(args []string) source {
	return func(ctx context.Context, t *talk) ([]string, error) {
		path, err := keysPath(args[:min(2, len(args))], "")
		if err != nil {
			return nil, err
		}
		return names(path, func(k api.RemoteKey) string { return k.ID })(ctx, t)
	}
}

// completeKeys completes a volume, its remote and one of that one's keys.
func completeKeys(t *talk, volumes source) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 2 {
			return t.complete(c, keyIDs(args), nil)
		}
		return completeOf(t, volumes, remoteNames)(c, args, text)
	}
}
