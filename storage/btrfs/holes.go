package btrfs

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// Holes of a file that was there before come as zeros in version 1 of the
// stream and as fallocate in version 2, and in both up to the file's size, not
// to the end of its last block. Applied as they come, the last block would be
// filled with zeros instead. That is no rare case: a snapshot of a busy head
// has files whose size is that of a write that was going on and whose data
// ends before, so the copy would take more than the original, and more with
// each round.

// block is the least piece that can be a hole.
const block = 4096

func allZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// makeHole makes a hole where an incremental stream writes zeros. Otherwise it
// makes the file long enough for the data, and is not done.
func makeHole(w int, off int64, data []byte) (done bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(w, &st); err != nil {
		return false, err
	}
	end := off + int64(len(data))
	toEnd := end >= st.Size
	if !allZero(data) || len(data) < block && !toEnd {
		if off > st.Size {
			err = setSize(w, off)
		}
		return false, err
	}
	if err := punch(w, off, int64(len(data))); err != nil || !toEnd {
		return true, err
	}
	return true, setSize(w, end)
}

// punch makes a hole and leaves the size as it is.
func punch(w int, off, n int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(w, &st); err != nil {
		return err
	}
	if off >= st.Size || n == 0 {
		return nil
	}
	if off+n < st.Size {
		return unix.Fallocate(w, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	// Cut off and made long again: that frees a small file's data, which lies
	// with its inode, as well.
	if err := unix.Ftruncate(w, off); err != nil {
		return err
	}
	return setSize(w, st.Size)
}

// setSize changes the size. The block in which the file ended, or ends now, is
// filled with zeros by the kernel; when there is nothing else in it, it is a hole.
func setSize(w int, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(w, &st); err != nil {
		return err
	}
	if err := unix.Ftruncate(w, size); err != nil {
		return err
	}
	at := min(size, st.Size)
	off := at / block * block
	if at == off {
		return nil
	}
	tail := make([]byte, min(block, size-off))
	if n, err := unix.Pread(w, tail, off); err != nil || n < len(tail) || !allZero(tail) {
		return err
	}
	return unix.Fallocate(w, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, block)
}
