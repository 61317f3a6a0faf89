package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The control socket of a host's holder. One connection (SOCK_SEQPACKET, so
// that a message and its descriptors stay together) carries one request and
// one reply. Closing the connection early cancels a running command.

const maxControl = 128 << 10

type request struct {
	Op      string   `json:"op"` // exec, start, stop, signal, list
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Service Service  `json:"service,omitzero"`
	Signal  int      `json:"signal,omitempty"`
}

type reply struct {
	Error    string          `json:"error,omitempty"`
	Missing  bool            `json:"missing,omitempty"` // the command or service does not exist
	Exit     int             `json:"exit,omitempty"`
	Services []ServiceStatus `json:"services,omitempty"`
}

func sendMessage(c *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxControl {
		return fmt.Errorf("request of %d bytes: at most %d are allowed", len(data), maxControl)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(data, oob, nil)
	return err
}

func receiveMessage(c *net.UnixConn, v any) ([]*os.File, error) {
	buf := make([]byte, maxControl)
	oob := make([]byte, unix.CmsgSpace(8*4))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("the connection was closed")
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, json.Unmarshal(buf[:n], v)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
