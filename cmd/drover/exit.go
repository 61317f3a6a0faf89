package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

// printError says what went wrong: to a reader, or with -o json as the API
// says it, one error a line.
func printError(w io.Writer, c *cobra.Command, err error) {
	if c != nil {
		if f := c.Flags().Lookup("output"); f != nil && f.Value.String() == "json" {
			for _, err := range each(err) {
				e := api.Error{Kind: api.KindOf(err), Reason: err.Error()}
				if known, ok := err.(*api.Error); ok {
					e = *known
					if e.Err != nil {
						e.Reason = strings.TrimPrefix(e.Reason+": "+e.Err.Error(), ": ")
					}
				}
				if text, err := json.Marshal(e); err == nil {
					fmt.Fprintln(w, string(text))
				}
			}
			return
		}
	}
	for _, err := range each(err) {
		fmt.Fprintln(w, "drover:", err)
	}
}

// each takes joined errors apart.
func each(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// exitCode translates an error once for scripts. The codes are stable:
// 1 anything else, 2 wrong use, 3 not found, 4 exists or changed meanwhile,
// 5 in use, 6 not known or not reachable now, 7 full or read-only,
// 8 not allowed, 9 damaged; a command run in a lab host passes its own on.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*lab.ExitError](err); ok {
		return exit.Code
	}
	switch api.KindOf(err) {
	case api.Invalid, api.Unsupported:
		return 2
	case api.NotFound:
		return 3
	case api.Exists, api.Conflict:
		return 4
	case api.InUse:
		return 5
	case api.Unknown, api.Unavailable:
		return 6
	case api.Exhausted, api.ReadOnly:
		return 7
	case api.Denied, api.Unauthenticated:
		return 8
	case api.Damaged:
		return 9
	}
	return 1
}
