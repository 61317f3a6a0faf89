//go:build root

// Package zfstest runs tests on pools of zfs-fuse. It knows how to keep its
// daemon apart from the host's and nothing of Drover's backend.
package zfstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const inside = "DROVER_ZFSTEST"

// Main runs the tests of a package in a mount namespace of their own with a
// daemon of their own: one pool cache for two daemons would import pools twice.
func Main(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(outside())
	}
	code, err := within(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "zfstest:", err)
		code = 1
	}
	os.Exit(code)
}

// outside runs this program again.
func outside() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "zfstest:", err)
		return 1
	}
	return 0
}

func within(m *testing.M) (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, err
	}
	for _, d := range []string{"/run/zfs", "/run/lock", "/var/lib/zfs"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return 1, err
		}
		if err := unix.Mount("none", d, "tmpfs", 0, ""); err != nil {
			return 1, err
		}
	}
	var said bytes.Buffer
	daemon := exec.Command("zfs-fuse", "-n", "-x")
	daemon.Stdout, daemon.Stderr = &said, &said
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	defer func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = daemon.Process.Kill()
			<-ended
		}
	}()
	if err := answering(ended); err != nil {
		return 1, fmt.Errorf("%w: %s", err, said.String())
	}
	return m.Run(), nil
}

// answering waits until the daemon does; it says so in no other way.
func answering(ended chan error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if exec.CommandContext(ctx, "zpool", "list").Run() == nil {
			return nil
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("zfs-fuse ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Pool makes a pool on a file, gone when the test is over. It gives its name
// and a directory for what Drover mounts.
func Pool(t testing.TB, size int64) (pool, dir string) {
	t.Helper()
	var b [6]byte
	_, _ = rand.Read(b[:])
	pool = "t" + hex.EncodeToString(b[:])
	top := t.TempDir()
	file := filepath.Join(top, "img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("zpool", "create", "-O", "mountpoint=none", pool, file).CombinedOutput(); err != nil {
		t.Fatalf("zpool create: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if exec.Command("zpool", "list", pool).Run() != nil {
			return // the test took it away
		}
		// After an unmount it stays busy until the kernel's last request is answered.
		var out []byte
		var err error
		for wait := 5 * time.Millisecond; wait < 3*time.Second; wait *= 2 {
			if out, err = exec.Command("zpool", "destroy", "-f", pool).CombinedOutput(); err == nil {
				return
			}
			<-time.After(wait)
		}
		t.Errorf("zpool destroy: %v: %s", err, out)
	})
	return pool, filepath.Join(top, "pool")
}
