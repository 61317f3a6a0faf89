//go:build !drover_next && !drover_far

package api

const (
	oldest = 1
	newest = 1
)
