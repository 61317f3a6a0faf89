package treetest

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Mutate changes a tree at random.
func Mutate(t *rapid.T, dir string, steps int) {
	name := rapid.SampledFrom([]string{"a", "b", "c", "a-b", "a.b", "B", "\xfe"})
	for range steps {
		at := pick(t, dir, "at")
		st, err := os.Lstat(at)
		must(t, err)
		parent := at
		if !st.IsDir() {
			parent = filepath.Dir(at)
		}
		to := filepath.Join(parent, name.Draw(t, "name"))
		switch rapid.IntRange(0, 10).Draw(t, "step") {
		case 0, 1:
			_ = os.Mkdir(to, 0o755)
		case 2, 3:
			if old, err := os.Lstat(to); err == nil && !old.Mode().IsRegular() {
				continue // a FIFO would wait for a reader, a link may lead out of the tree
			}
			writeFile(to, bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(t, "byte"))}, rapid.SampledFrom([]int{0, 1, 4096, 5000, 300_000}).Draw(t, "size")))
		case 4:
			_ = os.Symlink(name.Draw(t, "target"), to)
		case 5:
			if !st.IsDir() {
				_ = os.Link(at, to)
			}
		case 6:
			if at != dir {
				_ = os.RemoveAll(at)
			}
		case 7:
			if at != dir {
				_ = os.Rename(at, to)
			}
		case 8:
			if st.Mode().IsRegular() {
				if f, err := os.OpenFile(at, os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
					_, _ = f.WriteAt([]byte("patched"), int64(rapid.SampledFrom([]int{0, 3, 4094, 200_000, 4<<20 - 3}).Draw(t, "offset")))
					_ = f.Truncate(int64(rapid.SampledFrom([]int{2, 4096, 100_000, 1 << 20, 4<<20 + 3, 9 << 20}).Draw(t, "length")))
					_ = f.Close()
				}
			}
		case 9:
			_ = unix.Mkfifo(to, 0o600)
		case 10:
			if st.Mode()&os.ModeSymlink == 0 {
				_ = os.Chmod(at, os.FileMode(rapid.SampledFrom([]uint32{0o700, 0o755, 0o777}).Draw(t, "mode")))
				_ = unix.Setxattr(at, "user.x", []byte(name.Draw(t, "value")), 0)
			}
		}
	}
}

// Rearrange changes a tree at random in the ways that are hard to tell from
// outside: ranges that move, become holes or are shared, directories that change
// places, files with several names, writes through memory. What a file system
// cannot do is passed over.
func Rearrange(t *rapid.T, dir string, steps int) {
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "d/e"})
	offset := rapid.SampledFrom([]int64{0, 1, 4095, 4096, 5000, 8192, 65_536, 100_000, 262_144})
	length := rapid.SampledFrom([]int64{1, 100, 4096, 5000, 8192, 131_072, 300_000})
	for range steps {
		p, q := pick(t, dir, "at"), pick(t, dir, "other")
		switch rapid.IntRange(0, 12).Draw(t, "step") {
		case 0:
			_ = unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
		case 1:
			_ = os.Rename(p, filepath.Join(q, name.Draw(t, "name")))
		case 2:
			_ = os.Rename(p, q)
		case 3:
			if q != dir {
				_ = os.Link(p, filepath.Join(filepath.Dir(q), name.Draw(t, "name")))
			}
		case 4: // away and back
			if os.Rename(p, dir+"/away") == nil {
				_ = os.Rename(dir+"/away", p)
			}
		case 5: // another one in the same place
			if st, err := os.Lstat(p); err == nil && st.IsDir() && p != dir {
				_ = os.RemoveAll(p)
				_ = os.MkdirAll(filepath.Join(p, "d"), 0o755)
			}
		default:
			rearrangeFile(t, p, q, offset, length)
		}
	}
}

func pick(t *rapid.T, dir, label string) string {
	all := []string{}
	_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			all = append(all, p)
		}
		return nil
	})
	return rapid.SampledFrom(all).Draw(t, label)
}

func rearrangeFile(t *rapid.T, p, q string, offset, length *rapid.Generator[int64]) {
	if st, err := os.Lstat(p); err != nil || !st.Mode().IsRegular() {
		return
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fd, off, n := int(f.Fd()), offset.Draw(t, "offset"), length.Draw(t, "length")
	switch rapid.IntRange(0, 9).Draw(t, "file") {
	case 0:
		_ = f.Truncate(off)
	case 1: // shorter, and as long as it was
		st, err := f.Stat()
		must(t, err)
		_ = f.Truncate(off)
		_ = f.Truncate(st.Size())
	case 2:
		_ = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	case 3:
		_ = unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, off, n)
	case 4:
		_ = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n)
	case 5:
		_ = unix.Fallocate(fd, 0, off, n)
	case 6:
		share(p, q, fd, off)
	case 7:
		mapped(t, f, off)
	case 8:
		_, _ = f.WriteAt(bytes.Repeat([]byte{byte(n)}, int(n)), off)
	case 9: // time as it was: only the content tells
		st, err := f.Stat()
		must(t, err)
		_, _ = f.WriteAt([]byte{byte(off), byte(n)}, off)
		_ = os.Chtimes(p, st.ModTime(), st.ModTime())
	}
}

// share makes a range of p the same blocks as one of q.
func share(p, q string, fd int, off int64) {
	if st, err := os.Lstat(q); err != nil || !st.Mode().IsRegular() {
		return
	}
	src, err := os.Open(q)
	if err != nil {
		return
	}
	defer src.Close()
	if p != q && off == 0 {
		_ = unix.IoctlFileClone(fd, int(src.Fd()))
		return
	}
	_ = unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{Src_fd: int64(src.Fd()), Src_offset: 0, Src_length: 8192, Dest_offset: uint64(off / 4096 * 4096)})
}

// mapped writes through memory.
func mapped(t *rapid.T, f *os.File, off int64) {
	st, err := f.Stat()
	must(t, err)
	if st.Size() == 0 {
		return
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return
	}
	m[off%st.Size()] ^= 0x55
	_ = unix.Munmap(m)
}

// writeFile writes a file of the tree, never what a symbolic link leads to.
func writeFile(path string, text []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return
	}
	_, _ = f.Write(text)
	_ = f.Close()
}
