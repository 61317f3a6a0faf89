package exchange

import (
	"context"
	"sync"
	"time"

	"github.com/drover-data/drover/remote"
)

// lease tells collections that an upload is on its way, until the end is called.
// It takes a new one before the last is too old to count.
func (r *Remote) lease(ctx context.Context) (end func(), err error) {
	c, ok := r.Store.(remote.Collector)
	if !ok {
		return func() {}, nil
	}
	release, err := c.Lease(ctx)
	if err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	var renewing sync.WaitGroup
	renewing.Go(func() {
		t := time.NewTicker(remote.Grace / 4)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				// One that fails is tried again three times before the first counts no more.
				if next, err := c.Lease(ctx); err == nil {
					_ = release(context.WithoutCancel(ctx))
					release = next
				}
			}
		}
	})
	return func() {
		close(stop)
		renewing.Wait()
		_ = release(context.WithoutCancel(ctx)) // one that stays counts for a day
	}, nil
}
