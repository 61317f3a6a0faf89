module github.com/drover-data/drover

go 1.26.0

require (
	github.com/dustin/go-humanize v1.0.1
	github.com/moby/sys/mountinfo v0.7.3
	golang.org/x/sys v0.49.0
)

require pgregory.net/rapid v1.3.0
