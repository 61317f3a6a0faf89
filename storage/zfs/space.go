package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// watermark is what is kept free of data: 5 % of the pool, at least 128 MiB and
// at most 10 GiB, but never more than a fifth.
func watermark(capacity int64) int64 {
	return min(max(capacity/20, 128<<20), 10<<30, capacity/5)
}

// purpose is what space is asked for.
type purpose int

const (
	forNew      purpose = iota // new data: refused from the watermark on
	forSnapshot                // a snapshot, without which a full pool could not be emptied by moving
)

// room gives the bytes used and available.
func (b *Backend) room(ctx context.Context) (used, available int64, err error) {
	props, err := b.get(ctx, []string{"used", "available"}, b.cfg.Source, false)
	if err != nil {
		return 0, 0, err
	}
	own := props[b.cfg.Source]
	return max(number(own["used"]), 0), max(number(own["available"]), 0), nil
}

// admit refuses what the pool has no room for.
func (b *Backend) admit(ctx context.Context, op, object string, why purpose, size int64) error {
	used, available, err := b.room(ctx)
	if err != nil {
		return err
	}
	mark := watermark(used + available)
	need := mark + size
	if why == forSnapshot {
		need = mark / 4
	}
	if available > need {
		return nil
	}
	return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: fmt.Sprintf("the pool %s has %s left, of which %s are kept back", b.cfg.Source, humanize.IBytes(uint64(available)), humanize.IBytes(uint64(mark))), Next: "delete volumes or snapshots, or make the pool larger"}
}

// Info implements storage.Backend.
func (b *Backend) Info(ctx context.Context) (storage.Info, error) {
	i := storage.Info{Kind: "zfs", Source: b.cfg.Source, HardSizes: true, Atomic: true, Instant: true, State: api.PoolReady}
	if err := ctx.Err(); err != nil {
		return i, b.fail("look at pool", b.cfg.Source, err)
	}
	gone := func(err error) (storage.Info, error) {
		if ctx.Err() != nil {
			return i, b.fail("look at pool", b.cfg.Source, ctx.Err())
		}
		i.State = api.PoolGone
		i.Reason = err.Error() + ": import the pool (zpool import " + poolOf(b.cfg.Source) + ") and look at zpool status"
		return i, nil
	}
	if err := b.present(ctx); err != nil {
		return gone(err)
	}
	used, available, err := b.room(ctx)
	if err != nil {
		return gone(err)
	}
	i.Capacity, i.Used = used+available, used
	mark := watermark(i.Capacity)
	i.Free = max(0, available-mark)
	health, err := b.zpool(ctx, "list", "-H", "-o", "health", poolOf(b.cfg.Source))
	if err != nil {
		return gone(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(b.cfg.Dir, &st); err != nil {
		return gone(err)
	}
	switch health = strings.TrimSpace(health); {
	case health != "ONLINE" && health != "DEGRADED":
		return gone(fmt.Errorf("the pool is %s", health))
	case st.Flags&unix.ST_RDONLY != 0:
		i.State, i.Reason, i.Free = api.PoolReadOnly, "the data set is mounted read-only: look at zpool status and zfs get readonly "+b.cfg.Source, 0
	case i.Free == 0:
		i.State = api.PoolFull
		i.Reason = fmt.Sprintf("%s are free, and %s are kept back: delete volumes or snapshots, or make the pool larger", humanize.IBytes(uint64(available)), humanize.IBytes(uint64(mark)))
	}
	i.Fidelity, err = b.keeps(i.State == api.PoolReadOnly)
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		return gone(err)
	}
	return i, nil
}

// keeps probes once what files can have here.
func (b *Backend) keeps(readOnly bool) (storage.Fidelity, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fidelity != nil {
		return *b.fidelity, nil
	}
	if readOnly { // nothing is brought here anyway
		return storage.Full(), nil
	}
	f, err := b.probe()
	if err == nil {
		b.fidelity = &f
	}
	return f, err
}

// probePrefix is how what a killed probe left can be told.
const probePrefix = ".probe-"

// probe finds out what the data set's file system keeps.
func (b *Backend) probe() (storage.Fidelity, error) {
	root, err := unix.Open(b.cfg.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return storage.Fidelity{}, err
	}
	defer unix.Close(root)
	f, _, err := hostfs.Probe(root, probePrefix+newName())
	return f, err
}
