package docker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Listen opens the plugin's socket at path, mode 0600 and root's, in a
// directory that it makes when it is missing. A socket that systemd passed for
// the path is taken over. A stale one, on which nobody listens, is replaced
// without a moment in which the path is missing; one that is in use is InUse.
func Listen(path string) (net.Listener, error) {
	fail := func(kind api.Kind, reason, next string, err error) (net.Listener, error) {
		return nil, &api.Error{Kind: kind, Op: "serve Docker's plugin socket", Object: path, Reason: reason, Next: next, Err: err}
	}
	if l, err := passed(path); err != nil || l != nil {
		if err != nil {
			return fail(api.Invalid, "what systemd passed cannot be used", "look at the socket unit", err)
		}
		return l, nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(api.Internal, "", "", err)
	}
	// One that comes up at the same moment must not replace ours: who replaces
	// holds the directory's lock.
	d, err := os.Open(dir)
	if err != nil {
		return fail(api.Internal, "", "", err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fail(api.Internal, "", "", err)
	}
	if err := checkStale(path); err != nil {
		return fail(api.InUse, "", "stop the other agent on this host", err)
	}
	// It is made under another name and renamed, so that it has its mode from
	// the first moment on.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(api.Internal, "", "", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return fail(api.Internal, "", "", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return fail(api.Internal, "", "", errors.Join(err, l.Close(), os.Remove(tmp)))
	}
	return l, nil
}

// checkStale allows a path without anything, or a socket nobody listens on.
func checkStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("there is a %s in its place", st.Mode().Type())
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return errors.New("somebody serves it already")
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// passed finds a listener that systemd passed for path.
func passed(path string) (net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	var found net.Listener
	for _, l := range listeners {
		if l == nil {
			continue
		}
		if u, ok := l.(*net.UnixListener); ok && found == nil && u.Addr().String() == path {
			u.SetUnlinkOnClose(false)
			found = u
			continue
		}
		_ = l.Close()
	}
	return found, nil
}
