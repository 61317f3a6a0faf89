package btrfs

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Space is what the kernel says about a file system, in bytes.
type Space struct {
	Capacity    int64 // of the devices, as a user sees it
	Unallocated int64 // in no block group yet, raw
	DataTotal   int64
	DataUsed    int64
	DataCopies  int64 // raw bytes a byte of data takes
	MetaTotal   int64
	MetaUsed    int64
	MetaReserve int64 // the kernel's own, for getting out of a full state
	MetaCopies  int64
	ReadOnly    bool
}

// Verdict is what Judge makes of it.
type Verdict struct {
	State  api.PoolState
	Reason string
	Used   int64
	Free   int64 // below the watermark
	// Tight: so little is left that even snapshots are refused.
	Tight bool
}

// Watermark is what is kept free of data: 5 % of the pool, at least 128 MiB and
// at most 10 GiB, but never more than a fifth. Beyond it btrfs would run into a
// full disk in the middle of its own bookkeeping, where deleting fails as well.
func Watermark(capacity int64) int64 {
	return min(max(capacity/20, 128<<20), 10<<30, capacity/5)
}

// Judge decides what a pool can still take.
func Judge(s Space) Verdict {
	dataFree := s.DataTotal - s.DataUsed + s.Unallocated/max(s.DataCopies, 1)
	metaFree := s.MetaTotal - s.MetaUsed - s.MetaReserve + s.Unallocated/max(s.MetaCopies, 1)
	mark := Watermark(s.Capacity)
	// Metadata needs far less than data: a sixteenth of the watermark each.
	metaMark := max(mark/16, 4<<20)
	v := Verdict{State: api.PoolReady, Used: s.DataUsed + s.MetaUsed*max(s.MetaCopies, 1), Free: max(0, dataFree-mark)}
	v.Tight = dataFree < mark/4 || metaFree < metaMark/2
	switch {
	case s.ReadOnly:
		v.State, v.Reason, v.Free = api.PoolReadOnly, "the file system is mounted read-only, or became so after an error: look into the kernel's log, then mount it again", 0
	case dataFree <= mark:
		v.State = api.PoolFull
		v.Reason = fmt.Sprintf("%s are free, and %s are kept back: delete volumes or snapshots, or make the pool larger", humanize.IBytes(uint64(max(0, dataFree))), humanize.IBytes(uint64(mark)))
	case metaFree <= metaMark:
		v.State, v.Free = api.PoolFull, 0
		v.Reason = "the space for metadata is used up: delete snapshots or make the pool larger"
	}
	return v
}

// measureSpace asks the kernel.
func (p *pool) measureSpace() (Space, error) {
	var s Space
	var st unix.Statfs_t
	if err := unix.Fstatfs(p.root, &st); err != nil {
		return s, err
	}
	s.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	s.Capacity = int64(st.Blocks) * st.Bsize
	info, err := getFsInfo(p.root)
	if err != nil {
		return s, err
	}
	if s.Unallocated, err = unallocated(p.root, info); err != nil {
		return s, err
	}
	classes, err := spaceInfos(p.root)
	if err != nil {
		return s, err
	}
	const data, system, meta, dup, raid1, raid10, raid1c3, raid1c4, reserve = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 4, 1 << 6, 1 << 9, 1 << 10, 1 << 49
	s.DataCopies, s.MetaCopies = 1, 1
	for _, c := range classes {
		copies := int64(1)
		switch {
		case c.Flags&(dup|raid1|raid10) != 0:
			copies = 2
		case c.Flags&raid1c3 != 0:
			copies = 3
		case c.Flags&raid1c4 != 0:
			copies = 4
		}
		switch {
		case c.Flags&reserve != 0:
			s.MetaReserve += int64(c.Total)
		case c.Flags&data != 0: // with mixed block groups metadata as well
			s.DataTotal, s.DataUsed, s.DataCopies = s.DataTotal+int64(c.Total), s.DataUsed+int64(c.Used), copies
			if c.Flags&meta != 0 {
				s.MetaTotal, s.MetaUsed = s.DataTotal, s.DataUsed
			}
		case c.Flags&meta != 0:
			s.MetaTotal, s.MetaUsed, s.MetaCopies = s.MetaTotal+int64(c.Total), s.MetaUsed+int64(c.Used), copies
		}
	}
	return s, nil
}

// purpose is what space is asked for.
type purpose int

const (
	forNew      purpose = iota // new data: refused from the watermark on
	forSnapshot                // a snapshot, without which a full pool could not be emptied by moving
)

// admit refuses what the pool could not bear.
func (b *Backend) admit(p *pool, op, object string, why purpose, size int64) error {
	s, err := p.measureSpace()
	if err != nil {
		return err
	}
	v := Judge(s)
	switch {
	case v.State == api.PoolReadOnly:
		return &api.Error{Kind: api.ReadOnly, Op: op, Object: object, Reason: "pool " + b.cfg.Source + " is read-only", Next: v.Reason}
	case v.State == api.PoolFull && (why == forNew || v.Tight):
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: "pool " + b.cfg.Source + " is full", Next: v.Reason}
	case size > v.Free && why == forNew:
		return &api.Error{Kind: api.Exhausted, Op: op, Object: object, Reason: fmt.Sprintf("pool %s can take %s, and %s are needed", b.cfg.Source, humanize.IBytes(uint64(v.Free)), humanize.IBytes(uint64(size))), Next: "delete volumes or snapshots, or make the pool larger"}
	}
	return nil
}

// Info implements storage.Backend.
func (b *Backend) Info(ctx context.Context) (storage.Info, error) {
	info := storage.Info{Kind: "btrfs", Source: b.cfg.Source, Atomic: true, Instant: true, Fidelity: storage.Full()}
	p, err := b.pool()
	if err == nil {
		var s Space
		if s, err = p.measureSpace(); err == nil {
			v := Judge(s)
			info.State, info.Reason, info.Used, info.Free = v.State, v.Reason, v.Used, v.Free
			info.Capacity = s.Capacity
			return info, nil
		}
	}
	info.State, info.Reason = api.PoolGone, b.fail("look at pool", b.cfg.Source, err).Error()
	return info, nil
}

// QuotaNote says how sizes are kept here and why, for people.
func (b *Backend) QuotaNote() string {
	p, err := b.pool()
	switch {
	case err != nil:
		return ""
	case p.quota == quotaSimple:
		return "soft, with a guard at twice the size, by simple quotas"
	case p.quota == quotaFull:
		return "soft: full quota groups are switched on by somebody else and left alone"
	case b.cfg.SoftSizes:
		return "soft, as wished"
	}
	return "soft: this kernel has no simple quotas (6.7 and later do)"
}
