package agent

import (
	"context"
	"time"

	"github.com/drover-data/drover/api"
)

// leave clears away what a head that does not concern this node any more left
// here: marks in the index, snapshots that no later transfer builds on, and
// what had begun to arrive. It tries until it is done, until the volume comes
// back, or until the agent ends: the next start goes on, because the record in
// the index goes last.
func (h *head) leave(ctx context.Context) {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := h.clear(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		h.a.deps.Log.Warn("will try again to clear up", "volume", h.key.volume, "in", pause, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if h.a.head(h.key.volume, h.key.branch) != nil {
			return // it is back; its own plan thins out
		}
	}
}

func (h *head) clear(ctx context.Context) error {
	for _, bucket := range [][]byte{bucketPrepared, bucketWaiting, bucketJournal, bucketWork, bucketRefLog} {
		if err := remove(h.a.index, bucket, h.id()); err != nil {
			return err
		}
	}
	if err := h.a.refs.forget(h.key); err != nil {
		return err
	}
	if err := h.clearPools(ctx); err != nil {
		return err
	}
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	for key := range h.a.heads {
		if key.volume == h.key.volume {
			return nil
		}
	}
	h.a.notes.forget(h.key.volume, "")
	return h.a.index.dropVolume(h.key.volume)
}

func (h *head) clearPools(ctx context.Context) error {
	keep, err := h.a.pinned(h.key.volume)
	if err != nil {
		return err
	}
	arriving, err := h.a.index.arriving(h.id())
	if err != nil {
		return err
	}
	for _, p := range h.a.poolList() {
		if state := p.seen().State; state == api.PoolGone || state == api.PoolReadOnly {
			return &api.Error{Kind: api.Unavailable, Op: "clear up", Object: "pool " + p.name, Reason: "it is " + string(state)}
		}
		list, err := p.backend.Snapshots(ctx, h.key.volume)
		if err != nil {
			return err
		}
		for _, s := range list {
			if keep[s.ID] {
				continue
			}
			if err := h.dropSnapshot(ctx, p.name, p.backend, s.ID); err != nil {
				return err
			}
		}
		for id, pool := range arriving {
			if pool != p.name {
				continue
			}
			if err := h.dropSnapshot(ctx, pool, p.backend, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// pinned are the snapshots of a volume that transfers of any of its branches
// may build on, or copies are made from.
func (a *Agent) pinned(volume string) (map[string]bool, error) {
	ids := map[string]bool{}
	for _, bucket := range [][]byte{bucketBases, bucketCopies} {
		found, err := a.index.under(bucket, volume+"@")
		if err != nil {
			return nil, err
		}
		for _, id := range found {
			ids[id] = true
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.heads {
		rec := h.volume().Heads[h.key.branch]
		if (h.key.volume == volume && rec.SeedVolume == "") || rec.SeedVolume == volume {
			if rec.Seed != "" && (!rec.Ready || h.key.volume == volume) {
				ids[rec.Seed] = true
			}
		}
	}
	return ids, nil
}

// sweepCopies lets go of snapshots from which a new volume was to begin, when
// that holds its head, or was never made.
func (h *head) sweepCopies(ctx context.Context) error {
	found, err := h.a.index.under(bucketCopies, h.id()+"/")
	if err != nil {
		return err
	}
	for volume := range found {
		h.a.mu.Lock()
		busy, fresh := h.a.copying[volume], h.a.fresh
		h.a.mu.Unlock()
		if busy || !fresh {
			continue
		}
		v, err := h.a.deps.Ledger.Volume(ctx, volume)
		if err != nil && !api.Is(err, api.NotFound) {
			return err
		}
		if err == nil && !v.Heads[api.MainBranch].Ready && v.Deleted == nil {
			continue
		}
		if err := remove(h.a.index, bucketCopies, h.id()+"/"+volume); err != nil {
			return err
		}
	}
	return nil
}
