package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// RunTerminal runs a command on a terminal of its own that is connected with
// the caller's: c.Stdin and c.Stdout must be terminals. Keys such as Ctrl-C
// reach the command.
func (h *Host) RunTerminal(ctx context.Context, c Cmd) error {
	in, ok1 := c.Stdin.(*os.File)
	out, ok2 := c.Stdout.(*os.File)
	if !ok1 || !ok2 {
		return errors.New("input and output must be a terminal")
	}
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	defer master.Close()
	resize := make(chan os.Signal, 1)
	signal.Notify(resize, syscall.SIGWINCH)
	defer signal.Stop(resize)
	resize <- syscall.SIGWINCH
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-resize:
				_ = pty.InheritSize(in, master)
			case <-done:
				return
			}
		}
	}()
	former, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		_ = slave.Close()
		return err
	}
	defer term.Restore(int(in.Fd()), former)
	go func() { _, _ = io.Copy(master, in) }()
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(out, master) // ends with an error when the last writer has closed the slave
		close(copied)
	}()
	c.Stdin, c.Stdout, c.Stderr, c.TTY = slave, slave, slave, true
	c.Env = append(c.Env, "TERM="+os.Getenv("TERM"))
	err = h.Run(ctx, c)
	_ = slave.Close()
	<-copied
	return err
}
