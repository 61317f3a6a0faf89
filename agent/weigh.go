package agent

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

// weigh gives about how many bytes of data a head has, with what it shares
// with its commits and other branches: all of it travels to a node that has
// none of them. -1 when that takes too long to find out.
func (h *head) weigh(ctx context.Context, pool string) int64 {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, err := h.a.pool(pool)
	if err != nil {
		return -1
	}
	hd, err := p.backend.Head(ctx, h.storageKey())
	if err != nil {
		return -1
	}
	sum, err := weighTree(ctx, hd.Dir)
	if err != nil {
		return -1
	}
	return sum
}

// weighTree sums what files occupy, each file once, whatever its names. What
// goes away meanwhile weighs nothing.
func weighTree(ctx context.Context, dir string) (int64, error) {
	type file struct{ dev, ino uint64 }
	seen := map[file]bool{}
	var sum int64
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != dir {
				return nil
			}
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || e.IsDir() {
			return nil
		}
		if id := (file{st.Dev, st.Ino}); st.Nlink > 1 {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
