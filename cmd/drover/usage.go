package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
)

// strict makes wrong use an error like every other: with its kind, and with
// what to do next. Commands that only hold others show their help when they
// are called alone, and refuse what they do not know.
func strict(root *cobra.Command) {
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return wrongUse(c, err.Error(), usageOf(c)) })
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Runnable() {
			if check := c.Args; check != nil {
				c.Args = func(c *cobra.Command, args []string) error {
					if err := check(c, args); err != nil {
						return wrongUse(c, err.Error(), usageOf(c))
					}
					return nil
				}
			}
		} else {
			c.Args = cobra.ArbitraryArgs
			c.RunE = group
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	c.SuggestionsMinimumDistance = 2
	next := "see " + c.CommandPath() + " --help"
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		next = "did you mean " + c.CommandPath() + " " + strings.Join(like, ", or ") + "?"
	}
	return wrongUse(c, "it has no command "+args[0], next)
}

func wrongUse(c *cobra.Command, reason, next string) error {
	return &api.Error{Kind: api.Invalid, Op: "use", Object: c.CommandPath(), Reason: reason, Next: next}
}

func usageOf(c *cobra.Command) string {
	return "usage: " + c.UseLine() + "; see " + c.CommandPath() + " --help"
}

// find gives a command by its path below the root.
func find(root *cobra.Command, path string) *cobra.Command {
	c, rest, err := root.Find(strings.Fields(path))
	if err != nil || len(rest) > 0 {
		panic("there is no command " + path) // seen by the first test
	}
	return c
}
