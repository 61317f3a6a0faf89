package btrfs

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// searchKey is struct btrfs_ioctl_search_key: from the least key to the
// greatest, in leaves that were written in the given transactions.
type searchKey struct {
	TreeID                   uint64
	MinObjectID, MaxObjectID uint64
	MinOffset, MaxOffset     uint64
	MinTransid, MaxTransid   uint64
	MinType, MaxType         uint32
	Items                    uint32
	_                        uint32
	_                        [4]uint64
}

const (
	searchBuffer  = 64 << 10
	searchHeader  = 32
	inodeItemKey  = 1
	inodeItemSize = 160
)

// searchArgs is struct btrfs_ioctl_search_args_v2 with its buffer.
type searchArgs struct {
	Key     searchKey
	BufSize uint64
	Buf     [searchBuffer]byte
}

// The number is that of the structure without its buffer.
var iocTreeSearch = ioc(iocRead|iocWrite, 17, unsafe.Offsetof(searchArgs{}.Buf))

// inodeItem is what the tree holds of an inode, as struct btrfs_inode_item is
// on disk, without what a read changes.
type inodeItem struct {
	Ino     uint64
	Transid uint64 // transaction that wrote it last
	same    [inodeItemSize]byte
	ctime   int64
}

func parseInode(ino uint64, b []byte) (x inodeItem, ok bool) {
	if len(b) < inodeItemSize {
		return x, false
	}
	x.Ino, x.Transid = ino, binary.LittleEndian.Uint64(b[8:])
	x.ctime = int64(binary.LittleEndian.Uint64(b[124:]))
	copy(x.same[:], b)
	clear(x.same[8:16])    // transid
	clear(x.same[72:80])   // sequence: counts what somebody has looked at
	clear(x.same[112:124]) // atime
	return x, true
}

// inodesSince calls f for inodes of the subvolume fd that were written after
// transaction transid, until f returns false. It looks at the leaves that were
// written since then, and no others.
func inodesSince(fd int, transid uint64, f func(inodeItem) (bool, error)) error {
	a := new(searchArgs)
	a.BufSize = searchBuffer
	a.Key = searchKey{
		MinObjectID: firstInode, MaxObjectID: ^uint64(0), MaxOffset: ^uint64(0),
		MinTransid: transid + 1, MaxTransid: ^uint64(0), MaxType: ^uint32(0),
	}
	return search(fd, a, inodeItemKey, func(ino, _ uint64, item []byte) (bool, error) {
		x, ok := parseInode(ino, item)
		if !ok || x.Transid <= transid {
			return true, nil
		}
		return f(x)
	})
}

// inode looks one up in the subvolume fd.
func inode(fd int, ino uint64) (x inodeItem, found bool, err error) {
	a := new(searchArgs)
	a.BufSize = searchBuffer
	a.Key = searchKey{MinObjectID: ino, MaxObjectID: ino, MinType: inodeItemKey, MaxType: inodeItemKey, MaxTransid: ^uint64(0)}
	err = search(fd, a, inodeItemKey, func(ino, _ uint64, item []byte) (bool, error) {
		x, found = parseInode(ino, item)
		return false, nil
	})
	return x, found, err
}

// search calls f for the items of one type that a search gives, in order of
// inode and offset, until f returns false.
func search(fd int, a *searchArgs, want uint32, f func(ino, offset uint64, item []byte) (bool, error)) error {
	for {
		a.Key.Items = ^uint32(0)
		if err := ioctl(fd, iocTreeSearch, unsafe.Pointer(a)); err != nil {
			return err
		}
		if a.Key.Items == 0 {
			return nil
		}
		var ino, offset uint64
		var kind uint32
		for b, n := a.Buf[:], a.Key.Items; n > 0; n-- {
			if len(b) < searchHeader {
				return unix.EPROTO
			}
			ino, offset = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
			kind = binary.LittleEndian.Uint32(b[24:])
			size := int(binary.LittleEndian.Uint32(b[28:]))
			if b = b[searchHeader:]; size > len(b) {
				return unix.EPROTO
			}
			if kind == want {
				if more, err := f(ino, offset, b[:size]); err != nil || !more {
					return err
				}
			}
			b = b[size:]
		}
		// On behind the last key.
		k := &a.Key
		switch {
		case offset < ^uint64(0):
			k.MinObjectID, k.MinType, k.MinOffset = ino, kind, offset+1
		case kind < 255:
			k.MinObjectID, k.MinType, k.MinOffset = ino, kind+1, 0
		case ino < ^uint64(0):
			k.MinObjectID, k.MinType, k.MinOffset = ino+1, 0, 0
		default:
			return nil
		}
	}
}
