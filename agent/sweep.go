package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/drover-data/drover/api"
)

// A node that owned a volume keeps the last snapshot it shares with a peer, so
// that the way back is short. When the volume is purged elsewhere nobody
// tells it: the record concerned its owner only. So it asks, now and then.
func (a *Agent) sweepNowAndThen(ctx context.Context) {
	ticker := time.NewTicker(a.cfg.SweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := a.sweep(ctx); err != nil && ctx.Err() == nil {
			a.deps.Log.Warn("cannot look for snapshots of volumes that are gone", "error", err)
		}
	}
}

// sweep removes the snapshots of volumes of which the cluster says that they
// do not exist, and of which this node holds no head: a head is never removed
// on such a word.
func (a *Agent) sweep(ctx context.Context) error {
	if silent, err := a.unreported(ctx); err != nil || len(silent) > 0 || a.OnHold() != "" {
		return err // a volume that only a silent node knows would pass for gone
	}
	for _, p := range a.poolList() {
		if state := p.seen().State; state == api.PoolGone || state == api.PoolReadOnly {
			continue
		}
		list, err := p.backend.Snapshots(ctx, "")
		if err != nil {
			return err
		}
		heads, err := p.backend.Heads(ctx)
		if err != nil {
			return err
		}
		keep := map[string]bool{}
		for _, h := range heads {
			keep[h.Key.Volume] = true
		}
		for _, s := range list {
			if _, asked := keep[s.Volume]; !asked {
				if keep[s.Volume], err = a.exists(ctx, s.Volume); err != nil {
					return err
				}
			}
			if keep[s.Volume] {
				continue
			}
			if err := p.backend.DestroySnapshot(ctx, s.Volume, s.ID); err != nil {
				return err
			}
		}
	}
	return a.sweepCaches(ctx)
}

// sweepCaches removes what is kept here of the remotes of volumes that are gone.
func (a *Agent) sweepCaches(ctx context.Context) error {
	dir := filepath.Dir(a.remoteCache("x"))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		there, err := a.exists(ctx, e.Name())
		if err != nil {
			return err
		}
		if !there {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return err
}

// exists reports whether the cluster has a volume of that id, deleted or not.
func (a *Agent) exists(ctx context.Context, id string) (bool, error) {
	a.mu.Lock()
	if a.cloning[id] {
		a.mu.Unlock()
		return true, nil
	}
	for key := range a.heads {
		if key.volume == id {
			a.mu.Unlock()
			return true, nil
		}
	}
	a.mu.Unlock()
	_, err := a.deps.Ledger.Volume(ctx, id)
	if api.Is(err, api.NotFound) {
		return false, nil
	}
	return true, err
}
