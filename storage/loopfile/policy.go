package loopfile

// Policy says when the file grows. The zero value takes the defaults.
type Policy struct {
	// GrowAbove is the percentage of the pool in use from which on it grows; 70.
	GrowAbove int
	// KeepFree is what the host's file system keeps at least, in bytes; a
	// tenth of it, at most 20 GiB.
	KeepFree int64
	// MaxSize is the largest file, in bytes; 0 is no limit of its own.
	MaxSize int64
}

// Look is what the decision is made from, in bytes.
type Look struct {
	FileSize     int64 // of the pool's file
	Used         int64 // inside the pool
	HostCapacity int64
	HostFree     int64
}

const (
	step      = 1 << 30 // growth comes in whole steps
	gib       = 1 << 30
	halfOf    = 2
	defaultGA = 70
)

// Wanted is the size that the file should have now: FileSize when it should
// stay as it is. It never takes the host below KeepFree, and where only a part
// of a step is possible it takes the part, in MiB.
func (p Policy) Wanted(l Look) int64 {
	above := p.GrowAbove
	if above == 0 {
		above = defaultGA
	}
	if l.Used <= l.FileSize/100*int64(above) {
		return l.FileSize
	}
	// Half as much again, so that the number of steps stays small.
	to := max(l.FileSize+l.FileSize/halfOf, l.FileSize+step) / step * step
	if p.MaxSize > 0 {
		to = min(to, p.MaxSize)
	}
	keep := p.KeepFree
	if keep == 0 {
		keep = min(l.HostCapacity/10, 20*gib)
	}
	to = min(to, l.FileSize+l.HostFree-keep)
	to = to >> 20 << 20
	return max(to, l.FileSize)
}

// Initial is the size to make a new pool with, when the user named none: a
// tenth of what the host has free beyond what it keeps, at least MinSize and
// at most 10 GiB. 0 means that there is no room for a pool.
func (p Policy) Initial(hostCapacity, hostFree int64) int64 {
	keep := p.KeepFree
	if keep == 0 {
		keep = min(hostCapacity/10, 20*gib)
	}
	room := hostFree - keep
	if room < MinSize {
		return 0
	}
	size := min(max(room/10, MinSize), 10*gib)
	if p.MaxSize > 0 {
		size = min(size, max(p.MaxSize, MinSize))
	}
	return size >> 20 << 20
}
