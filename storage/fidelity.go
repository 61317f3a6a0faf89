package storage

import (
	"fmt"
	"time"
)

// Cannot lists in words what f does not keep, for people.
func (f Fidelity) Cannot() []string { return Full().Lost(f) }

// Lost lists in words what data from a store with fidelity f can have that a
// store with fidelity to does not keep; nil when nothing can be lost.
func (f Fidelity) Lost(to Fidelity) []string {
	var lost []string
	for _, c := range []struct {
		from, to bool
		what     string
	}{
		{f.Owners, to.Owners, "owners"},
		{f.Modes, to.Modes, "permissions"},
		{f.Xattrs, to.Xattrs, "extended attributes"},
		{f.ACLs, to.ACLs, "access control lists"},
		{f.HardLinks, to.HardLinks, "hard links"},
		{f.Symlinks, to.Symlinks, "symbolic links"},
		{f.Devices, to.Devices, "device nodes"},
		{f.FIFOs, to.FIFOs, "FIFOs"},
		{f.Sparse, to.Sparse, "holes in sparse files (kept as zeros)"},
		{f.Flags, to.Flags, "inode flags"},
		{f.CaseSensitive, to.CaseSensitive, "names that differ only in case"},
	} {
		if c.from && !c.to {
			lost = append(lost, c.what)
		}
	}
	switch {
	case f.TimeGrain == 0:
	case to.TimeGrain == 0:
		lost = append(lost, "times")
	case to.TimeGrain > f.TimeGrain:
		lost = append(lost, fmt.Sprintf("times finer than %v", to.TimeGrain))
	}
	if to.TimeMax != 0 && (f.TimeMax == 0 || f.TimeMax > to.TimeMax) {
		lost = append(lost, "times after "+time.Unix(to.TimeMax, 0).UTC().Format(time.DateTime))
	}
	if to.NameBytes < f.NameBytes {
		lost = append(lost, fmt.Sprintf("names longer than %d bytes", to.NameBytes))
	}
	return lost
}
