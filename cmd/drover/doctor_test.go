package main

import (
	"io/fs"
	"syscall"
	"testing"

	"github.com/drover-data/drover/api"
)

// Who may not look is told so, and not that there is no agent or no cluster.
func TestWhoMayNotLook(t *testing.T) {
	if err := notRoot(&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}); exitCode(err) != 8 {
		t.Errorf("doctor: %v", err)
	}
	talk := &talk{socket: "/s"}
	for _, c := range []struct {
		err  error
		kind api.Kind
	}{{syscall.EACCES, api.Denied}, {syscall.ENOENT, api.Unavailable}, {syscall.ECONNREFUSED, api.Unavailable}, {syscall.EPIPE, api.Unavailable}} {
		if err := talk.unheard(&api.Error{Kind: api.Unavailable, Err: c.err}); !api.Is(err, c.kind) {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}
