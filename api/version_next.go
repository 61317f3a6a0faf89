//go:build drover_next

package api

// Tests of mixed clusters build the version to come under this tag: it speaks
// this version too, and (package state) writes fields that this one does not know.
const (
	oldest = 1
	newest = 2
)
