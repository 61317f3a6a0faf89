package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
)

// Host is one host of a lab.
type Host struct {
	lab     *Lab
	name    string
	address string
}

// Name is the host's name: node1, node2 and so on.
func (h *Host) Name() string { return h.name }

// Address is its address on the lab's switch, reachable from the other hosts.
func (h *Host) Address() string { return h.address }

// Dir holds its data. The path is the same inside the host; /var/lib/drover
// and /var/lib/docker inside are its subdirectories drover and docker.
func (h *Host) Dir() string { rec := h.lab.snapshot(); return rec.hostDir(h.name) }

// RunDir is a directory for sockets with a short path, the same inside the
// host and on the machine, empty after a power cycle but for the lab's own.
func (h *Host) RunDir() string { rec := h.lab.snapshot(); return rec.hostRun(h.name) }

// DockerHost is the address of its Docker daemon for clients on the machine.
func (h *Host) DockerHost() string { return "unix://" + filepath.Join(h.RunDir(), "docker.sock") }

// Log is the path of a service's log.
func (h *Host) Log(service string) string { return filepath.Join(h.Dir(), "log", service+".log") }

// On reports whether the host has power.
func (h *Host) On() bool { return h.holder().alive() }

// PID is the host's init as the machine sees it: /proc/PID/ns has its
// namespaces and /proc/PID/root its files. 0 when it is off.
func (h *Host) PID() int {
	if p := h.holder(); p.alive() {
		return p.PID
	}
	return 0
}

// holder asks the state file, because another process may have changed power.
func (h *Host) holder() process {
	rec, err := load(h.lab.name)
	if err != nil {
		return process{}
	}
	if r := rec.host(h.name); r != nil {
		return r.Holder
	}
	return process{}
}

// Cmd is a command to run in a host.
type Cmd struct {
	Args   []string
	Env    []string // besides PATH, HOME and LANG
	Dir    string   // default "/"
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// TTY makes Stdin, which must be a terminal, the controlling one.
	TTY bool
}

// ExitError is a command that ended with a status other than 0.
type ExitError struct {
	Code   int    // 128 plus the signal's number when one ended it
	Output string // the end of what it wrote to standard error, when that was not passed on
}

// Error gives status and output.
func (e *ExitError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return fmt.Sprintf("exit status %d: %s", e.Code, e.Output)
}

// Run runs a command in all of the host's namespaces and waits for it. When
// ctx ends, the command's process group is killed.
func (h *Host) Run(ctx context.Context, c Cmd) error {
	var tail bytes.Buffer
	if c.Stderr == nil {
		c.Stderr = &tail
	}
	var r reply
	files, wait, err := standardFiles(&c)
	if err == nil {
		r, err = h.call(ctx, request{Op: "exec", Args: c.Args, Env: c.Env, Dir: c.Dir, TTY: c.TTY}, files...)
		closeAll(files)
		wait()
	}
	op := "run " + strings.Join(c.Args, " ")
	switch {
	case ctx.Err() != nil:
		return &api.Error{Kind: api.Canceled, Op: op, Object: "on " + h.name, Err: context.Cause(ctx)}
	case err != nil:
		return err
	case r.Exit != 0:
		out := strings.TrimSpace(tail.String())
		return &api.Error{Kind: api.Internal, Op: op, Object: "on " + h.name, Err: &ExitError{Code: r.Exit, Output: out[max(0, len(out)-2000):]}}
	}
	return nil
}

// standardFiles gives the three files for a command: those of c that are files
// already are passed as they are, others through pipes. wait returns when all
// output has been copied.
func standardFiles(c *Cmd) (files []*os.File, wait func(), err error) {
	var copies sync.WaitGroup
	add := func(f *os.File, err error) bool {
		if err != nil {
			return false
		}
		files = append(files, f)
		return true
	}
	duplicate := func(f *os.File) (*os.File, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), f.Name()), nil
	}
	input := func() (*os.File, error) {
		switch in := c.Stdin.(type) {
		case nil:
			return os.Open(os.DevNull)
		case *os.File:
			return duplicate(in)
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		go func() { // ends at the latest when the command's end of the pipe is closed
			_, _ = io.Copy(w, c.Stdin)
			_ = w.Close()
		}()
		return r, nil
	}
	output := func(w io.Writer) (*os.File, error) {
		switch out := w.(type) {
		case nil:
			return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		case *os.File:
			return duplicate(out)
		}
		r, pw, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		copies.Go(func() {
			_, _ = io.Copy(w, r)
			_ = r.Close()
		})
		return pw, nil
	}
	f, err := input()
	if !add(f, err) {
		return nil, nil, err
	}
	f, err = output(c.Stdout)
	if !add(f, err) {
		closeAll(files)
		return nil, nil, err
	}
	f, err = output(c.Stderr)
	if !add(f, err) {
		closeAll(files)
		return nil, nil, err
	}
	return files, copies.Wait, nil
}

// Exec runs a command and gives its standard output without the last line
// break.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := h.Run(ctx, Cmd{Args: args, Stdout: &out})
	return strings.TrimSuffix(out.String(), "\n"), err
}

// Docker runs the docker command in the host.
func (h *Host) Docker(ctx context.Context, args ...string) (string, error) {
	return h.Exec(ctx, append([]string{"docker"}, args...)...)
}

// call makes one request of the holder.
func (h *Host) call(ctx context.Context, q request, files ...*os.File) (reply, error) {
	op, object := q.Op+" in host", h.name
	conn, err := new(net.Dialer).DialContext(ctx, "unixpacket", filepath.Join(h.RunDir(), "control.sock"))
	if err != nil {
		return reply{}, &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the host is off", Next: "see drover lab ls", Err: err}
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := sendMessage(c, q, files...); err != nil {
		return reply{}, &api.Error{Kind: api.Unavailable, Op: op, Object: object, Err: err}
	}
	var r reply
	if _, err := receiveMessage(c, &r); err != nil {
		return reply{}, &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the host went off meanwhile", Err: err}
	}
	if r.Error != "" {
		kind := api.Internal
		if r.Missing {
			kind = api.NotFound
		}
		return r, &api.Error{Kind: kind, Op: op, Object: object, Err: errors.New(r.Error)}
	}
	return r, nil
}

// PowerOff pulls the host's plug: everything in it ends at once, without a
// chance to tidy up. Off already is success.
func (h *Host) PowerOff(context.Context) error {
	unlock, err := lock(h.lab.name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.lab.reload(); err != nil {
		return err
	}
	rec := h.lab.snapshot()
	if err := powerOff(&rec, h.name); err != nil {
		return &api.Error{Kind: api.Internal, Op: "power off", Object: h.name, Err: err}
	}
	return nil
}

// PowerOn starts a host that is off, with the services it had, and returns
// when they are ready. On already is success.
func (h *Host) PowerOn(ctx context.Context) error {
	unlock, err := lock(h.lab.name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.lab.reload(); err != nil {
		return err
	}
	if h.On() {
		return nil
	}
	if err := h.lab.powerOn(ctx, h.name); err != nil {
		rec := h.lab.snapshot()
		return &api.Error{Kind: kindOr(err, api.Internal), Op: "power on", Object: h.name, Err: errors.Join(err, powerOff(&rec, h.name))}
	}
	return nil
}

// Services tells how the host's services are.
func (h *Host) Services(ctx context.Context) ([]ServiceStatus, error) {
	r, err := h.call(ctx, request{Op: "list"})
	return r.Services, err
}

// Kill sends a signal to a service's program, which its restart policy may
// start again.
func (h *Host) Kill(ctx context.Context, service string, sig syscall.Signal) error {
	_, err := h.call(ctx, request{Op: "signal", Service: Service{Name: service}, Signal: int(sig)})
	return err
}

// StartService starts a service and returns when it is ready. With a new name
// or another definition the host keeps it, over power cycles as well; with
// only a name it starts the one that the host has.
func (h *Host) StartService(ctx context.Context, s Service) error {
	unlock, err := lock(h.lab.name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.lab.reload(); err != nil {
		return err
	}
	rec := h.lab.snapshot()
	host := rec.host(h.name)
	if len(s.Args) == 0 {
		known := hostServices(&rec, host)
		i := slices.IndexFunc(known, func(k Service) bool { return k.Name == s.Name })
		if i < 0 {
			return &api.Error{Kind: api.NotFound, Op: "start service", Object: s.Name + " on " + h.name, Err: errNoService}
		}
		s = known[i]
	} else if err := s.check(); err != nil {
		return &api.Error{Kind: api.Invalid, Op: "start service", Object: h.name, Err: err}
	}
	if _, err := h.call(ctx, request{Op: "start", Service: s}); err != nil {
		return err
	}
	if s.Name == dockerService {
		return nil
	}
	return h.lab.change(func(r *record) {
		host := r.host(h.name)
		services := slices.DeleteFunc(slices.Clone(host.Services), func(k Service) bool { return k.Name == s.Name })
		host.Services = append(services, s)
	})
}

// StopService ends a service with SIGTERM, after 30 s with SIGKILL, and keeps
// it stopped until StartService or the next power on.
func (h *Host) StopService(ctx context.Context, name string) error {
	_, err := h.call(ctx, request{Op: "stop", Service: Service{Name: name}})
	return err
}

// RestartService stops and starts a service.
func (h *Host) RestartService(ctx context.Context, name string) error {
	if err := h.StopService(ctx, name); err != nil {
		return err
	}
	return h.StartService(ctx, Service{Name: name})
}
