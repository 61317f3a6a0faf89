package hostfs

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// OpenRoot opens a pool's directory.
func OpenRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: open %s: %w", ErrNotThere, dir, err)
	}
	return fd, nil
}

// Root is a pool's directory while it is at its place, with what a backend
// found out about it then.
type Root[T any] struct {
	mu       sync.Mutex
	dev, ino uint64 // guarded by mu, as all
	fd       int
	found    *T // nil while the pool is not open
}

// At gives what inspect found out about the directory, if it is still the one
// at its place now. Asking each time keeps an unmounted pool from being taken
// for an empty one. The descriptor given to inspect stays open as long.
func (r *Root[T]) At(dir string, inspect func(fd int) (*T, error)) (*T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if r.found != nil {
		if err == nil && st.Dev == r.dev && st.Ino == r.ino {
			return r.found, nil
		}
		r.close()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotThere, dir, err)
	}
	fd, err := OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	found, err := inspect(fd)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	r.fd, r.dev, r.ino, r.found = fd, st.Dev, st.Ino, found
	return found, nil
}

// Close lets go of the directory.
func (r *Root[T]) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found != nil {
		r.close()
	}
}

func (r *Root[T]) close() {
	unix.Close(r.fd)
	r.found = nil
}

// Enter is the beginning of whatever works on one volume: it finds the pool
// and takes the volume's lock.
func Enter[T any](ctx context.Context, locks *Locks, volume string, find func() (*T, error)) (*T, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	p, err := find()
	if err != nil {
		return nil, nil, err
	}
	unlock, err := locks.Lock(ctx, volume)
	return p, unlock, err
}
