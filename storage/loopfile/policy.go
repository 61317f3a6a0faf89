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
	Full         bool  // the pool refuses new data, whatever Used is
	HostCapacity int64
	HostFree     int64
}

const (
	step      = 1 << 30 // growth comes in whole steps
	gib       = 1 << 30
	halfOf    = 2
	worth     = 64 << 20 // less is not worth a step
	defaultGA = 70
)

// Decision is what Decide makes of a Look, in bytes.
type Decision struct {
	Want int64 // the size the file should have: FileSize when that is enough
	Most int64 // the largest it can be without taking what the host keeps
}

// Decide says how large the file should and could be. Both are in whole MiB
// and never below FileSize.
func (p Policy) Decide(l Look) Decision {
	above := p.GrowAbove
	if above == 0 {
		above = defaultGA
	}
	d := Decision{Want: l.FileSize, Most: l.FileSize}
	if room := l.HostFree - p.keep(l.HostCapacity); room >= worth {
		d.Most = max(l.FileSize, (l.FileSize+room)>>20<<20)
	}
	if l.Full || l.Used > l.FileSize/100*int64(above) {
		// Half as much again, so that the number of steps stays small.
		d.Want = max(l.FileSize+l.FileSize/halfOf, l.FileSize+step) / step * step
	}
	if p.MaxSize > 0 {
		most := max(l.FileSize, p.MaxSize>>20<<20)
		d.Want, d.Most = min(d.Want, most), min(d.Most, most)
	}
	return d
}

// keep is what the host keeps.
func (p Policy) keep(capacity int64) int64 {
	if p.KeepFree > 0 {
		return p.KeepFree
	}
	return min(capacity/10, 20*gib)
}

// Initial is the size to make a new pool with, when the user named none: a
// tenth of what the host has free beyond what it keeps, at least MinSize and
// at most 10 GiB. 0 means that there is no room for a pool.
func (p Policy) Initial(hostCapacity, hostFree int64) int64 {
	room := hostFree - p.keep(hostCapacity)
	if room < MinSize {
		return 0
	}
	size := min(max(room/10, MinSize), 10*gib)
	if p.MaxSize > 0 {
		size = min(size, max(p.MaxSize, MinSize))
	}
	return size >> 20 << 20
}
