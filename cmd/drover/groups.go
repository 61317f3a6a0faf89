package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// groups orders the help of the whole command: fifty names in one list help
// nobody. A command in none of them is shown after all.
var groups = []struct {
	id, title string
	commands  []string
}{
	{"volumes", "Volumes:", []string{"volume", "status", "diff", "cat", "mount", "umount"}},
	{"history", "History:", []string{"commit", "log", "show", "branch", "checkout", "reset", "revert-file", "stash", "tag", "reflog", "undo", "prune", "schedule"}},
	{"remotes", "Remotes:", []string{"remote", "push", "fetch", "pull", "clone", "ls-remote", "verify", "job"}},
	{"cluster", "The cluster:", []string{"init", "join", "node", "pool", "user", "events", "doctor", "backup", "recover"}},
	{"trying", "Trying it out:", []string{"lab"}},
}

func arrange(root *cobra.Command) {
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range root.Commands() {
			if slices.Contains(g.commands, c.Name()) {
				c.GroupID = g.id
			}
		}
	}
}
