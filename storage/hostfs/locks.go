package hostfs

import (
	"context"
	"sync"
)

// Locks is a mutex for each key, which a context can stop waiting for.
type Locks struct {
	mu sync.Mutex
	m  map[string]chan struct{} // guarded by mu; a full channel is locked
}

// Lock takes a key's.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]chan struct{}{}
	}
	c := l.m[key]
	if c == nil {
		c = make(chan struct{}, 1)
		l.m[key] = c
	}
	l.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Claims are the rights to fill snapshots, each with what is done under it.
type Claims[T any] struct {
	mu sync.Mutex
	m  map[string]*T // guarded by mu; by "volume/id"; nil while it is being opened
}

// Take takes the right to fill a snapshot; false when somebody has it.
func (c *Claims[T]) Take(volume, id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := volume + "/" + id
	if _, taken := c.m[key]; taken {
		return false
	}
	if c.m == nil {
		c.m = map[string]*T{}
	}
	c.m[key] = nil
	return true
}

// Set says what is done under a right that was taken.
func (c *Claims[T]) Set(volume, id string, what *T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[volume+"/"+id] = what
}

// Release gives a right up.
func (c *Claims[T]) Release(volume, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, volume+"/"+id)
}

// Drain gives all rights up and lists what was done under them.
func (c *Claims[T]) Drain() (left []*T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, what := range c.m {
		if what != nil {
			left = append(left, what)
		}
	}
	clear(c.m)
	return left
}
