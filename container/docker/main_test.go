package docker

import (
	"os"
	"testing"

	"github.com/drover-data/drover/lab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == lab.HostCommand {
		os.Exit(lab.HostMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}
