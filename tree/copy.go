package tree

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// Copy makes the directory to, which exists, a copy of from on the same file
// system, with everything that file system keeps. With reflink, files share
// their blocks until one of them is written to.
func Copy(ctx context.Context, from, to string, reflink bool) error {
	v, err := openView(from, "")
	if err != nil {
		return err
	}
	defer v.close()
	root, err := openRoot(to)
	if err != nil {
		return err
	}
	out := &copySink{ctx: ctx, reflink: reflink, to: &applier{root: root, keeps: storage.Full(), exact: true, parent: -1, file: -1}}
	defer out.to.close()
	return (&differ{ctx: ctx, b: v, out: out}).run()
}

type copySink struct {
	ctx     context.Context
	to      *applier
	reflink bool
}

func (c *copySink) put(r *record) error { return c.to.apply(r) }

// copyFile copies content into the file made just before. Holes stay holes.
func (c *copySink) copyFile(src int, path string, size int64) error {
	if c.to.file < 0 || c.to.filePath != path {
		return fmt.Errorf("%s is not being made", path)
	}
	dst := c.to.file
	if c.reflink {
		return unix.IoctlFileClone(dst, src)
	}
	buf := []byte(nil)
	for off := int64(0); off < size; {
		x, err := nextData(src, off, size)
		if err != nil {
			return err
		}
		for at := x.from; at < x.to; {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			in, out := at, at
			n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(x.to-at, 64<<20)), 0)
			if err == unix.EINVAL || err == unix.EXDEV || unsupported(err) || err == nil && n == 0 {
				if buf == nil {
					buf = make([]byte, maxData)
				}
				if n, err = readFull(src, buf[:min(x.to-at, maxData)], at); err == nil && n > 0 {
					n, err = unix.Pwrite(dst, buf[:n], at)
				}
			}
			if err != nil {
				return fmt.Errorf("copy %s: %w", path, err)
			}
			if n == 0 {
				return fmt.Errorf("copy %s: it became shorter", path)
			}
			at += int64(n)
		}
		off = x.to
	}
	return nil
}
