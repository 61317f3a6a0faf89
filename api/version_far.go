//go:build drover_far

package api

// Tests of mixed clusters build a version under this tag that speaks this one no more.
const (
	oldest = 3
	newest = 3
)
