package tree

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Copies made by reflink have another inode and time than what they are copies
// of, but lie on the same blocks. Where the file system says so, these need not
// be read to know that they are equal.

const (
	fsIocFiemap   = 0xc020660b
	fiemapSync    = 0x1
	fiemapExtents = 256
	// An extent with none of these lies where it says and is stored as it is.
	fiemapUnsure = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
	fiemapLast   = 0x1
)

type fiemapExtent struct {
	Logical, Physical, Length uint64
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	Start, Length        uint64
	Flags, Mapped, Count uint32
	_                    uint32
	Extents              [fiemapExtents]fiemapExtent
}

// blocks tells where the content of a file lies, a window at a time.
type blocks struct {
	fd   int
	m    fiemap
	from int64 // the window that is known
	to   int64
	bad  bool // the file system does not say
}

// at gives the extent at off, which must be sure, and where it ends.
func (b *blocks) at(off int64) (physical, end int64, ok bool) {
	if b.bad {
		return 0, 0, false
	}
	if off < b.from || off >= b.to {
		b.m.Start, b.m.Length, b.m.Flags, b.m.Count, b.m.Mapped = uint64(off), max63-uint64(off), fiemapSync, fiemapExtents, 0
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.fd), fsIocFiemap, uintptr(unsafe.Pointer(&b.m)))
		runtime.KeepAlive(b)
		if errno != 0 || b.m.Mapped > fiemapExtents {
			b.bad = true
			return 0, 0, false
		}
		b.from, b.to = off, max63
		if n := b.m.Mapped; n == fiemapExtents && b.m.Extents[n-1].Flags&fiemapLast == 0 {
			b.to = int64(b.m.Extents[n-1].Logical + b.m.Extents[n-1].Length)
		}
	}
	for i := range b.m.Extents[:b.m.Mapped] {
		x := &b.m.Extents[i]
		if uint64(off) >= x.Logical && uint64(off) < x.Logical+x.Length {
			if x.Flags&fiemapUnsure != 0 {
				return 0, 0, false
			}
			return int64(x.Physical) + off - int64(x.Logical), int64(x.Logical + x.Length), true
		}
	}
	return 0, 0, false
}

// sharing compares where two files of one file system lie.
type sharing struct{ a, b blocks }

// newSharing is nil where positions would say nothing: on two devices.
func newSharing(a, b int) *sharing {
	var sa, sb unix.Stat_t
	if unix.Fstat(a, &sa) != nil || unix.Fstat(b, &sb) != nil || sa.Dev != sb.Dev {
		return nil
	}
	return &sharing{a: blocks{fd: a}, b: blocks{fd: b}}
}

// skip gives the offset up to which both files are known to be the same
// blocks; off when nothing is known.
func (s *sharing) skip(off, end int64) int64 {
	for s != nil && off < end {
		pa, ea, ok := s.a.at(off)
		if !ok {
			break
		}
		pb, eb, ok := s.b.at(off)
		if !ok || pa != pb {
			break
		}
		off = min(ea, eb, end)
	}
	return off
}
