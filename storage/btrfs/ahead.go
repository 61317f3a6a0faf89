package btrfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/hostfs"
)

// The kernel's send reads one extent after the other and waits for each. What
// a database changed lies in thousands of small ones, so reading them would
// take their number times the disk's latency. Reading ahead asks for many at
// once; it changes nothing in the stream, and when it fails send reads itself.

// maxAhead bounds how much is in memory that send has not come to.
const maxAhead = 64 << 20

// window is how far the stream has come.
type window struct {
	mu     sync.Mutex
	moved  sync.Cond // on mu
	passed int64     // guarded by mu; bytes of the stream
	over   bool      // guarded by mu
}

func newWindow() *window {
	w := &window{}
	w.moved.L = &w.mu
	return w
}

func (w *window) add(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passed += n
	w.moved.Broadcast()
}

func (w *window) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.moved.Broadcast()
}

// wait returns when the stream is at most maxAhead behind; false: it has ended.
func (w *window) wait(at int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.over && at > w.passed+maxAhead {
		w.moved.Wait()
	}
	return !w.over
}

// sending is a stream whose data is read ahead.
type sending struct {
	*hostfs.Pump
	w *window
}

// Read implements io.Reader.
func (s sending) Read(p []byte) (int, error) {
	n, err := s.Pump.Read(p)
	s.w.add(int64(n))
	return n, err
}

// Skip reads and drops the beginning of the stream.
func (s sending) Skip(object string, n int64) error {
	s.w.add(n) // what is skipped need not be fast
	return s.Pump.Skip(object, n)
}

// Close implements io.Closer.
func (s sending) Close() error {
	s.w.end()
	return s.Pump.Close()
}

// fileExtent is the part of struct btrfs_file_extent_item that says where
// data is.
type fileExtent struct {
	generation uint64
	length     uint64
}

const (
	extentDataKey    = 108
	fileExtentSize   = 53
	fileExtentOnDisk = 1 // the type of what is neither inline nor only reserved
)

func parseExtent(b []byte) (x fileExtent, ok bool) {
	if len(b) < fileExtentSize || b[20] != fileExtentOnDisk || binary.LittleEndian.Uint64(b[21:]) == 0 {
		return x, false // inline, reserved, or a hole
	}
	return fileExtent{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[45:])}, true
}

// readAhead asks for the data that the snapshot has and that was written in
// transaction since or later, in the order in which send comes to it.
func readAhead(ctx context.Context, snapshot int, since uint64, w *window) {
	a := new(searchArgs)
	a.BufSize = searchBuffer
	a.Key = searchKey{
		MinObjectID: firstInode, MaxObjectID: ^uint64(0), MaxOffset: ^uint64(0),
		MinTransid: since, MaxTransid: ^uint64(0), MinType: 0, MaxType: ^uint32(0),
	}
	f := aheadFile{snapshot: snapshot, fd: -1}
	defer f.close()
	asked := int64(0)
	_ = search(snapshot, a, extentDataKey, func(ino, offset uint64, item []byte) (bool, error) {
		x, ok := parseExtent(item)
		if !ok || x.generation < since {
			return true, nil
		}
		if f.ino != ino {
			f.open(ino)
		}
		if f.fd < 0 {
			return true, nil
		}
		_ = unix.Fadvise(f.fd, int64(offset), int64(x.length), unix.FADV_WILLNEED)
		asked += int64(x.length)
		return w.wait(asked) && ctx.Err() == nil, nil
	})
}

// aheadFile is the file that is being read ahead.
type aheadFile struct {
	snapshot int
	ino      uint64
	fd       int
}

func (f *aheadFile) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	f.fd = -1
}

// inoLookup is struct btrfs_ioctl_ino_lookup_args.
type inoLookup struct {
	TreeID, Ino uint64
	Name        [4080]byte
}

var iocInoLookup = ioc(iocRead|iocWrite, 18, unsafe.Sizeof(inoLookup{}))

func (f *aheadFile) open(ino uint64) {
	f.close()
	f.ino = ino
	args := inoLookup{Ino: ino}
	if ioctl(f.snapshot, iocInoLookup, unsafe.Pointer(&args)) != nil {
		return
	}
	name, _, _ := bytes.Cut(args.Name[:], []byte{0})
	name = bytes.TrimSuffix(name, []byte{'/'})
	if len(name) == 0 {
		return
	}
	fd, err := unix.Openat2(f.snapshot, string(name), &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOATIME, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == nil {
		f.fd = fd
	}
}
