package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
			check := c.Args
			c.Args = func(c *cobra.Command, args []string) error {
				if check != nil {
					if err := check(c, args); err != nil {
						return wrongUse(c, err.Error(), usageOf(c))
					}
				}
				if f := c.Flags().Lookup("output"); f != nil {
					if err := checkOutput(f.Value.String()); err != nil {
						return err
					}
				}
				return noneEmpty(c, args)
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

// mayBeEmpty are flags for which nothing is as good as leaving them out, or
// that have a message of their own.
var mayBeEmpty = []string{"message", "host", "cert", "socket"}

// noneEmpty refuses empty texts. They are what a variable of a script leaves
// that was never set: "resize pg $SIZE" must not become "no limit".
func noneEmpty(c *cobra.Command, args []string) error {
	if c.Name() == "exec" {
		return nil // the arguments of somebody else's command
	}
	for i, a := range args {
		if a == "" {
			return wrongUse(c, fmt.Sprintf("argument %d is empty", i+1), usageOf(c))
		}
	}
	var err error
	c.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && f.Value.Type() == "string" && f.Value.String() == "" && !slices.Contains(mayBeEmpty, f.Name) {
			err = wrongUse(c, "--"+f.Name+" is given without a value", usageOf(c))
		}
	})
	return err
}

// exclusive refuses flags that contradict each other.
func exclusive(c *cobra.Command, flags ...string) error {
	var given []string
	for _, name := range flags {
		if c.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) < 2 {
		return nil
	}
	return wrongUse(c, strings.Join(given, " and ")+" exclude each other", usageOf(c))
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
