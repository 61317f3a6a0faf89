package btrfs

import (
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the thin layer over the kernel's interface: structures and
// numbers as in linux/btrfs.h, and one function for each call in use.

const (
	iocWrite = 1 << 30
	iocRead  = 2 << 30
)

func ioc(dir, nr, size uintptr) uintptr { return dir | size<<16 | 0x94<<8 | nr }

var (
	iocStartSync     = ioc(iocRead, 24, 8)
	iocWaitSync      = ioc(iocWrite, 22, 8)
	iocSnapCreate    = ioc(iocWrite, 23, unsafe.Sizeof(volArgs{}))
	iocSubvolCreate  = ioc(iocWrite, 24, unsafe.Sizeof(volArgs{}))
	iocSnapDestroy   = ioc(iocWrite, 63, unsafe.Sizeof(volArgs{}))
	iocSpaceInfo     = ioc(iocRead|iocWrite, 20, 16)
	iocDevInfo       = ioc(iocRead|iocWrite, 30, unsafe.Sizeof(devInfo{}))
	iocFsInfo        = ioc(iocRead, 31, unsafe.Sizeof(fsInfo{}))
	iocSetReceived   = ioc(iocRead|iocWrite, 37, unsafe.Sizeof(receivedArgs{}))
	iocSend          = ioc(iocWrite, 38, unsafe.Sizeof(sendArgs{}))
	iocQuotaCtl      = ioc(iocRead|iocWrite, 40, 16)
	iocQgroupLimit   = ioc(iocRead, 43, unsafe.Sizeof(qgroupLimitArgs{}))
	iocSubvolInfo    = ioc(iocRead, 60, unsafe.Sizeof(subvolInfo{}))
	iocSubvolRootref = ioc(iocRead|iocWrite, 61, unsafe.Sizeof(rootrefArgs{}))
	iocInoLookupUser = ioc(iocRead|iocWrite, 62, unsafe.Sizeof(inoLookupUserArgs{}))
	iocSubvolSyncWt  = ioc(iocWrite, 65, unsafe.Sizeof(subvolWait{}))
)

const (
	subvolReadOnly     = 1 << 1 // in calls
	rootReadOnly       = 1 << 0 // in what is on disk, as subvolInfo.Flags
	sendNoFileData     = 1 << 0
	sendVersion        = 1 << 3
	quotaEnableSimple  = 4
	qgroupLimitMaxRfer = 1 << 0
	subvolSyncCount    = 2
	firstInode         = 256 // inode number of every subvolume's root
)

// UUID names a subvolume.
type UUID [16]byte

type timespec struct {
	Sec  uint64
	Nsec uint32
	_    uint32
}

type volArgs struct {
	FD      int64
	Transid uint64
	Flags   uint64
	Union   [4]uint64
	Name    [4040]byte
}

type subvolInfo struct {
	TreeID       uint64
	Name         [256]byte
	ParentID     uint64
	DirID        uint64
	Generation   uint64
	Flags        uint64
	UUID         UUID
	ParentUUID   UUID
	ReceivedUUID UUID
	CTransid     uint64
	OTransid     uint64
	STransid     uint64
	RTransid     uint64
	CTime        timespec
	OTime        timespec
	STime        timespec
	RTime        timespec
	_            [8]uint64
}

type receivedArgs struct {
	UUID     UUID
	STransid uint64
	RTransid uint64
	STime    timespec
	RTime    timespec
	Flags    uint64
	_        [16]uint64
}

type sendArgs struct {
	FD           int64
	CloneCount   uint64
	CloneSources *uint64
	ParentRoot   uint64
	Flags        uint64
	Version      uint32
	_            [28]byte
}

type rootrefArgs struct {
	MinTreeID uint64
	Refs      [255]struct{ TreeID, DirID uint64 }
	Num       uint8
	_         [7]byte
}

type inoLookupUserArgs struct {
	DirID  uint64
	TreeID uint64
	Name   [256]byte
	Path   [3824]byte
}

type fsInfo struct {
	MaxID      uint64
	NumDevices uint64
	FSID       UUID
	_          [992]byte
}

type devInfo struct {
	DevID uint64
	UUID  UUID
	Used  uint64
	Total uint64
	_     [4056]byte
}

type qgroupLimitArgs struct {
	ID      uint64
	Flags   uint64
	MaxRfer uint64
	MaxExcl uint64
	RsvRfer uint64
	RsvExcl uint64
}

type subvolWait struct {
	SubvolID uint64
	Mode     uint32
	Count    uint32
}

// spaceInfo is one class of block groups.
type spaceInfo struct {
	Flags uint64
	Total uint64
	Used  uint64
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// subvolCreate makes an empty subvolume name in the directory dir.
func subvolCreate(dir int, name string) error {
	a := new(volArgs)
	copy(a.Name[:len(a.Name)-1], name)
	return ioctl(dir, iocSubvolCreate, unsafe.Pointer(a))
}

// snapCreate makes the snapshot name of subvolume src in directory dir. The
// kernel writes out src's dirty data first and commits the transaction before
// it returns: the snapshot and all that it holds are durable then.
func snapCreate(dir int, name string, src int, readOnly bool) error {
	a := &volArgs{FD: int64(src)}
	if readOnly {
		a.Flags = subvolReadOnly
	}
	copy(a.Name[:len(a.Name)-1], name)
	return ioctl(dir, iocSnapCreate, unsafe.Pointer(a))
}

// snapDestroy unlinks the subvolume name in dir; a cleaner in the kernel gives
// back its space later.
func snapDestroy(dir int, name string) error {
	a := new(volArgs)
	copy(a.Name[:len(a.Name)-1], name)
	return ioctl(dir, iocSnapDestroy, unsafe.Pointer(a))
}

func getSubvolInfo(fd int) (*subvolInfo, error) {
	a := new(subvolInfo)
	return a, ioctl(fd, iocSubvolInfo, unsafe.Pointer(a))
}

func setReceived(fd int, uuid UUID, transid uint64) error {
	a := &receivedArgs{UUID: uuid, STransid: transid}
	return ioctl(fd, iocSetReceived, unsafe.Pointer(a))
}

// commitTransaction makes durable every change of metadata until now, without
// writing out other files' dirty data as syncfs would.
func commitTransaction(fd int) error {
	var transid uint64
	if err := ioctl(fd, iocStartSync, unsafe.Pointer(&transid)); err != nil {
		return err
	}
	return ioctl(fd, iocWaitSync, unsafe.Pointer(&transid))
}

// send writes the stream of the subvolume fd into the pipe w. It blocks until
// the stream has ended. Signals are held back meanwhile: the kernel would
// restart the call and with it the stream, and the Go runtime sends signals.
func send(fd, w int, parent uint64, clone []uint64, version uint32, noData bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) //nolint:errcheck // restoring a mask cannot fail
	a := &sendArgs{FD: int64(w), ParentRoot: parent, CloneCount: uint64(len(clone))}
	if len(clone) > 0 {
		a.CloneSources = &clone[0]
	}
	if version >= 2 {
		a.Flags |= sendVersion
		a.Version = version
	}
	if noData {
		a.Flags |= sendNoFileData
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocSend, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(clone)
	if errno != 0 {
		return errno
	}
	return nil
}

// child is a subvolume inside another.
type child struct {
	ID   uint64
	Path string // relative to the root of the outer one
}

// children lists the subvolumes directly inside the one whose root is fd.
func children(fd int) ([]child, error) {
	var list []child
	refs := new(rootrefArgs)
	for {
		err := ioctl(fd, iocSubvolRootref, unsafe.Pointer(refs))
		if err != nil && err != unix.EOVERFLOW { // EOVERFLOW: there are more
			return nil, err
		}
		for _, r := range refs.Refs[:refs.Num] {
			a := &inoLookupUserArgs{DirID: r.DirID, TreeID: r.TreeID}
			if e := ioctl(fd, iocInoLookupUser, unsafe.Pointer(a)); e != nil {
				if e == unix.ENOENT { // removed meanwhile
					continue
				}
				return nil, e
			}
			list = append(list, child{r.TreeID, cString(a.Path[:]) + cString(a.Name[:])})
		}
		if err == nil {
			return list, nil
		}
	}
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func getFsInfo(fd int) (*fsInfo, error) {
	a := new(fsInfo)
	return a, ioctl(fd, iocFsInfo, unsafe.Pointer(a))
}

// unallocated sums up what no block group has taken yet, over all devices.
func unallocated(fd int, info *fsInfo) (int64, error) {
	var sum int64
	for id := uint64(0); id <= info.MaxID; id++ {
		a := &devInfo{DevID: id}
		switch err := ioctl(fd, iocDevInfo, unsafe.Pointer(a)); err {
		case nil:
			sum += int64(a.Total - min(a.Used, a.Total))
		case unix.ENODEV: // numbers have gaps
		default:
			return 0, err
		}
	}
	return sum, nil
}

func spaceInfos(fd int) ([]spaceInfo, error) {
	const slots = 32 // more classes than the kernel knows
	var a struct {
		Slots, Total uint64
		Spaces       [slots]spaceInfo
	}
	a.Slots = slots
	if err := ioctl(fd, iocSpaceInfo, unsafe.Pointer(&a)); err != nil {
		return nil, err
	}
	return a.Spaces[:min(a.Total, slots)], nil
}

func enableSimpleQuota(fd int) error {
	a := [2]uint64{quotaEnableSimple, 0}
	return ioctl(fd, iocQuotaCtl, unsafe.Pointer(&a))
}

// limitQgroup limits what the subvolume id may own; 0 removes the limit.
func limitQgroup(fd int, id uint64, limit int64) error {
	a := &qgroupLimitArgs{ID: id, Flags: qgroupLimitMaxRfer, MaxRfer: ^uint64(0)} // all ones clears it
	if limit > 0 {
		a.MaxRfer = uint64(limit)
	}
	return ioctl(fd, iocQgroupLimit, unsafe.Pointer(a))
}

// dropping counts subvolumes that are destroyed but not yet cleaned up.
// Kernels before 6.13 cannot tell.
func dropping(fd int) (uint32, error) {
	a := &subvolWait{Mode: subvolSyncCount}
	err := ioctl(fd, iocSubvolSyncWt, unsafe.Pointer(a))
	return a.Count, err
}
