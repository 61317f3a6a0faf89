// Package repo decides about histories: which snapshots two sides share and
// how a missing one is best brought over. It is pure: no clock, no files, no
// network, no randomness; what it decides is a value.
package repo

import "slices"

// Copy is a snapshot as one side holds it.
type Copy struct {
	ID      string `json:"id"`                // Drover's name of the content, the same everywhere
	Lineage string `json:"lineage,omitempty"` // physical identity; equal only for copies that native streams made of each other
	Order   uint64 `json:"order,omitempty"`   // age on this side: larger is later
}

// Side is what one store holds of a volume and which streams it speaks.
type Side struct {
	Copies  []Copy   `json:"copies"`
	Formats []string `json:"formats"` // native formats, best first
}

// Portable is the format every store speaks.
const Portable = "drover-tree-1"

// Route is how a snapshot travels.
type Route struct {
	Have   bool   `json:"have,omitempty"`   // the target holds it already: nothing travels
	Format string `json:"format,omitempty"` // Portable or a native format
	Base   string `json:"base,omitempty"`   // ID of the snapshot that the stream builds on; empty: it carries everything
}

// Negotiate chooses how the snapshot want, held by source, comes to target.
//
// A native stream can build only on a base of which both sides hold copies of
// one physical lineage; the same ID is not enough. The portable stream needs
// the same ID only. What travels should follow the change, so the order is:
// native on the latest common lineage; portable on the latest common ID;
// native in full; portable in full. Bases later than want are not excluded: a
// difference to a later state may be smaller than to a much older one, and
// both streams can go either way.
func Negotiate(want string, source, target Side) Route {
	held := map[string]Copy{}
	for _, c := range target.Copies {
		held[c.ID] = c
	}
	if _, ok := held[want]; ok {
		return Route{Have: true}
	}
	native := ""
	for _, f := range source.Formats {
		if f != Portable && slices.Contains(target.Formats, f) {
			native = f
			break
		}
	}
	bases := slices.Clone(source.Copies)
	wanted := slices.IndexFunc(bases, func(c Copy) bool { return c.ID == want })
	var at uint64
	if wanted >= 0 {
		at = bases[wanted].Order
	}
	slices.SortFunc(bases, func(a, b Copy) int { return closer(a, b, at) })
	common := ""
	for _, c := range bases {
		theirs, ok := held[c.ID]
		if !ok || c.ID == want {
			continue
		}
		if native != "" && c.Lineage != "" && c.Lineage == theirs.Lineage {
			return Route{Format: native, Base: c.ID}
		}
		if common == "" {
			common = c.ID
		}
	}
	switch {
	case common != "":
		return Route{Format: Portable, Base: common}
	case native != "":
		return Route{Format: native}
	}
	return Route{Format: Portable}
}

// closer orders bases by their distance in age from the wanted snapshot, ties
// by ID so that both sides and every run decide alike.
func closer(a, b Copy, at uint64) int {
	da, db := distance(a.Order, at), distance(b.Order, at)
	switch {
	case da < db:
		return -1
	case da > db:
		return 1
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

func distance(a, b uint64) uint64 {
	if a > b {
		return a - b
	}
	return b - a
}

// Keep chooses which snapshots of a volume a node may not thin out: for each
// peer the latest copy that both are known to hold, because without it the
// next transfer would carry everything. common gives for a peer the IDs it
// was last known to hold.
func Keep(local []Copy, common map[string][]string) map[string]bool {
	keep := map[string]bool{}
	for _, ids := range common {
		best, found := Copy{}, false
		for _, c := range local {
			if slices.Contains(ids, c.ID) && (!found || c.Order > best.Order) {
				best, found = c, true
			}
		}
		if found {
			keep[best.ID] = true
		}
	}
	return keep
}
