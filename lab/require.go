package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/drover-data/drover/api"
)

// Require installs the Debian packages that are missing, after saying so to
// progress. Where there is no dpkg, or no root, it names what is missing.
func Require(ctx context.Context, progress io.Writer, packages ...string) error {
	missing, err := missingPackages(ctx, packages)
	if err != nil || len(missing) == 0 {
		return err
	}
	list := strings.Join(missing, " ")
	if os.Geteuid() != 0 {
		return &api.Error{Kind: api.Denied, Op: "install packages", Object: list, Reason: "installing needs root", Next: "run: sudo apt-get install --no-install-recommends " + list}
	}
	fmt.Fprintf(progress, "installing Debian packages that are missing: %s\n", list)
	install := func() error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)...)
		// Services of the packages are not to start on the machine.
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "SYSTEMD_OFFLINE=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return errors.New(strings.TrimSpace(tailOf(out.String())))
		}
		return nil
	}
	err = install()
	if err != nil && ctx.Err() == nil {
		// The list of packages may be missing or old.
		if exec.CommandContext(ctx, "apt-get", "update", "-q").Run() == nil {
			err = install()
		}
	}
	if err != nil {
		return &api.Error{Kind: api.Unavailable, Op: "install packages", Object: list, Next: "install them by hand and repeat", Err: err}
	}
	return nil
}

func missingPackages(ctx context.Context, packages []string) ([]string, error) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		return nil, &api.Error{Kind: api.Unsupported, Op: "look for packages", Object: strings.Join(packages, " "), Reason: "this is not a Debian or Ubuntu system", Next: "run the lab on one"}
	}
	var missing []string
	for _, p := range packages {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", p).Output()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || string(out) != "installed" {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

func tailOf(s string) string { return s[max(0, len(s)-1500):] }
