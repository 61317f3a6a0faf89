package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage/hostfs"
)

// Sizes. With simple quotas the kernel charges every extent to the subvolume
// that wrote it until it is freed, and to nobody else. So for a head
//
//   - what it shares with the snapshot it began as costs nothing until it is
//     written anew, and
//   - what it wrote, and then replaced, still counts while a snapshot keeps it.
//
// And an extent that was overwritten in part counts whole until its last block
// is: rewriting 30 MiB in place inside a limit of 40 MiB is refused by the
// kernel, seen on 6.18. A limit of Size would therefore refuse writes to a
// database that is far below it. What is set is a guard against runaway
// writers: twice Size, plus what the head owned when its youngest snapshot was
// taken (an upper bound of what snapshots keep). Below it, sizes are measured
// and reported, so Info says that they are not hard. docs/storage.md tells the
// user so.

// guard is the limit that is set for a head of a size, without snapshots.
func guard(size int64) int64 {
	const times = 2
	return size * times
}

type quotaMode int

const (
	quotaOff quotaMode = iota
	quotaSimple
	quotaFull // the user's own full qgroups: left alone
)

func sysfs(p *pool, elem ...string) string {
	return filepath.Join(append([]string{"/sys/fs/btrfs", p.fsid}, elem...)...)
}

func findQuota(p *pool, enable bool) quotaMode {
	read := func() quotaMode {
		on, err := os.ReadFile(sysfs(p, "qgroups", "enabled"))
		if err != nil || string(bytes.TrimSpace(on)) != "1" {
			return quotaOff
		}
		mode, err := os.ReadFile(sysfs(p, "qgroups", "mode"))
		if err == nil && string(bytes.TrimSpace(mode)) == "squota" {
			return quotaSimple
		}
		return quotaFull
	}
	mode := read()
	if mode != quotaOff || !enable {
		return mode
	}
	// The kernel must announce simple quotas: an older one would take the
	// command's number for something else or refuse it.
	if _, err := os.Stat("/sys/fs/btrfs/features/simple_quota"); err != nil {
		return quotaOff
	}
	if err := enableSimpleQuota(p.root); err != nil {
		return quotaOff
	}
	return read()
}

// counts reports whether the kernel counts, so that guards can be set.
func (p *pool) counts() bool { return p.quota == quotaSimple }

// owned is what the subvolume has written and not freed, -1 unknown.
func (p *pool) owned(id uint64) int64 {
	if !p.counts() {
		return -1
	}
	return p.qgroupValue(id, "referenced")
}

// limit is the limit in force, 0 when there is none.
func (p *pool) limit(id uint64) int64 {
	if flags := p.qgroupValue(id, "limit_flags"); flags < 0 || flags&qgroupLimitMaxRfer == 0 {
		return 0
	}
	return max(0, p.qgroupValue(id, "max_referenced"))
}

func (p *pool) qgroupValue(id uint64, name string) int64 {
	data, err := os.ReadFile(sysfs(p, "qgroups", fmt.Sprintf("0_%d", id), name))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil { // more than an int64: no limit
		return -1
	}
	return n
}

// raiseLimit follows a new snapshot: all that the head owns may be kept by it.
func (p *pool) raiseLimit(id uint64, size int64) error {
	if !p.counts() || size == 0 {
		return nil
	}
	return limitQgroup(p.root, id, guard(size)+max(0, p.owned(id)))
}

// settleLimit lowers the limit towards size as far as is known to be right.
func (b *Backend) settleLimit(p *pool, id uint64, size int64, kept bool) error {
	if !p.counts() {
		return nil
	}
	now := p.limit(id)
	if size == 0 {
		if now == 0 {
			return nil
		}
		return limitQgroup(p.root, id, 0)
	}
	size = guard(size)
	want := size
	if !kept && now > size {
		// The space of destroyed snapshots is given back later, and still counts
		// until then.
		n, err := dropping(p.root)
		kept = err == nil && n > 0 || p.owned(id) > size
	}
	if kept {
		want = size + max(0, p.owned(id))
		if now != 0 {
			want = max(size, min(now, want))
		}
	}
	if want == now {
		return nil
	}
	return limitQgroup(p.root, id, want)
}

// withRoom runs f, which writes a few KiB of Drover's own into a head, and
// when the head's user has used up the limit, lifts that for the moment.
func (p *pool) withRoom(id uint64, f func() error) error {
	err := f()
	if !errors.Is(err, unix.EDQUOT) {
		return err
	}
	now := p.limit(id)
	if now == 0 {
		return err
	}
	if e := limitQgroup(p.root, id, max(now, p.owned(id))+4<<20); e != nil {
		return err
	}
	err = f()
	if e := limitQgroup(p.root, id, now); err == nil {
		err = e
	}
	return err
}

// measured is a head's size as walked, valid while its generation is the same.
type measured struct {
	generation uint64
	bytes      int64
}

// usedBytes is what Head.Used shows: with quotas what the head owns, without
// them what it refers to. Walking happens only when asked for and needed.
func (b *Backend) usedBytes(p *pool, info *subvolInfo, dir string, walk bool) int64 {
	if n := p.owned(info.TreeID); n >= 0 {
		return n
	}
	b.mu.Lock()
	m, ok := b.used[info.TreeID]
	b.mu.Unlock()
	if ok && m.generation == info.Generation || !walk {
		if ok {
			return m.bytes
		}
		return -1
	}
	n, err := hostfs.Measure(dir)
	if err != nil {
		return -1
	}
	b.mu.Lock()
	b.used[info.TreeID] = measured{info.Generation, n}
	b.mu.Unlock()
	return n
}
