package powerloss

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// fileName is the disk's name in the mounted directory.
const fileName = "disk"

// server keeps the disk.
type server struct {
	size int64

	mu    sync.Mutex
	idle  sync.Cond
	now   pages  // guarded by mu; as the running system sees it
	rec   tape   // guarded by mu
	tapes []tape // guarded by mu
	off   bool   // guarded by mu; the power is off
	cutAt int    // guarded by mu; event number before which the power goes, -1 for none
	open  int    // guarded by mu; handles
}

// record notes an event; false: the power is off.
func (s *server) record(e event) bool {
	if s.off || s.cutAt >= 0 && len(s.rec.log) >= s.cutAt {
		s.off = true
		return false
	}
	s.rec.log = append(s.rec.log, e)
	return true
}

type root struct {
	fs.Inode
	s *server
}

func (r *root) OnAdd(ctx context.Context) {
	r.AddChild(fileName, r.NewPersistentInode(ctx, &file{s: r.s}, fs.StableAttr{Mode: fuse.S_IFREG}), true)
}

type file struct {
	fs.Inode
	s *server
}

// handle is an open file; without one the library does not tell when it is closed.
type handle struct{ _ byte }

var (
	_ fs.NodeOnAdder   = (*root)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReleaser  = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeSetattrer = (*file)(nil)
	_ fs.NodeAllocater = (*file)(nil)
)

func (f *file) attr(out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = fuse.S_IFREG|0o600, uint64(f.s.size), pageSize
	out.Blocks = out.Size / 512
	return 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return f.attr(out)
}

func (f *file) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && int64(size) != f.s.size {
		return syscall.EPERM
	}
	return f.attr(out)
}

// Open bypasses the kernel's cache: what it would keep of a former content
// must not be seen after the disk was loaded with another.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.s.open++
	return &handle{}, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Release(context.Context, fs.FileHandle) syscall.Errno {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.s.open--
	f.s.idle.Broadcast()
	return 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.off {
		return nil, syscall.EIO
	}
	dest = dest[:max(0, min(int64(len(dest)), f.s.size-off))]
	f.s.now.read(dest, off)
	return fuse.ReadResultData(dest), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if off+int64(len(data)) > f.s.size {
		return 0, syscall.ENOSPC
	}
	if len(data) == 0 {
		return 0, 0
	}
	if !f.s.record(event{off, bytes.Clone(data)}) {
		return 0, syscall.EIO
	}
	f.s.now.write(data, off, always)
	return uint32(len(data)), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if !f.s.record(event{}) {
		return syscall.EIO
	}
	return 0
}

// Allocate says that discards and writes of zeros by request are not known:
// the file system above writes zeros then.
func (f *file) Allocate(context.Context, fs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// request and answer are what the test and the serving process say to each other.
type request struct {
	What   string
	Tape   int
	At     int
	Mode   Mode
	Seed   uint64
	Events int
}

type answer struct {
	Err     string
	Number  int
	Numbers []int
}

func (s *server) do(q request) (answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch q.What {
	case "position":
		return answer{Number: len(s.rec.log)}, nil
	case "off":
		if s.off {
			return answer{Number: 1}, nil
		}
		return answer{}, nil
	case "cut":
		s.off = q.Events <= 0
		s.cutAt = len(s.rec.log) + q.Events
		return answer{}, nil
	case "flushes":
		if q.Tape < 0 || q.Tape >= len(s.tapes) {
			return answer{}, fmt.Errorf("there is no tape %d", q.Tape)
		}
		return answer{Numbers: s.tapes[q.Tape].flushes(q.At)}, nil
	case "eject":
		s.waitIdle()
		s.tapes = append(s.tapes, s.rec)
		n := len(s.tapes) - 1
		return answer{Number: n}, s.load(n, len(s.rec.log), Keep, 0)
	case "load":
		s.waitIdle()
		return answer{}, s.load(q.Tape, q.At, q.Mode, q.Seed)
	}
	return answer{}, fmt.Errorf("nobody knows %q", q.What)
}

// waitIdle waits until nobody has the disk open: a loop device lets go of its
// file some time after the file system on it was unmounted.
func (s *server) waitIdle() {
	for s.open > 0 {
		s.idle.Wait()
	}
}

func (s *server) load(n, at int, mode Mode, seed uint64) error {
	if n < 0 || n >= len(s.tapes) {
		return fmt.Errorf("there is no tape %d", n)
	}
	content, err := s.tapes[n].at(at, mode, seed)
	if err != nil {
		return err
	}
	s.now, s.rec = maps.Clone(content), tape{base: content}
	s.off, s.cutAt = false, -1
	return nil
}

// serve is the serving process: it ends with its standard input.
func serve(dir string, size int64) error {
	s := &server{size: size, now: pages{}, rec: tape{base: pages{}}, cutAt: -1}
	s.idle.L = &s.mu
	mounted, err := fs.Mount(dir, &root{s: s}, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, FsName: "powerloss", Name: "powerloss", MaxWrite: 1 << 20, DisableXAttrs: true,
	}})
	if err != nil {
		return err
	}
	defer func() {
		if mounted.Unmount() != nil {
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	}()
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	if err := out.Encode(answer{}); err != nil {
		return err
	}
	for {
		var q request
		if err := in.Decode(&q); err != nil {
			return nil //nolint:nilerr // whoever asked has ended
		}
		a, err := s.do(q)
		if err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return errors.Join(err)
		}
	}
}
