package recovery

import (
	"maps"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/ledger"
)

// Round is what is decided about at once: all volumes, or those of which a
// node that reports late holds something.
type Round struct {
	Known    map[string]api.Volume
	Copies   []ledger.Copy
	Reported map[string]bool
	Settled  map[string]bool
	// Names are those of volumes that are none of this round.
	Names map[string]string // to id
	Now   time.Time
	Grace time.Duration
}

// Decide gives the record of every volume of the round, those that are renamed
// first, because another one may get their names. It is pure.
func (r Round) Decide() ([]api.Volume, []ledger.Finding) {
	copies := map[string][]ledger.Copy{}
	for _, c := range r.Copies {
		copies[c.Volume.ID] = append(copies[c.Volume.ID], c)
	}
	ids := map[string]bool{}
	for id := range r.Known {
		ids[id] = true
	}
	for id := range copies {
		ids[id] = true
	}
	var list []api.Volume
	var found []ledger.Finding
	missing := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		e := ledger.Evidence{Copies: copies[id], Reported: r.Reported, Settled: r.Settled, Now: r.Now, Grace: r.Grace}
		if v, ok := r.Known[id]; ok {
			e.Known = &v
		}
		v, said := ledger.Reconcile(e)
		for _, f := range said {
			missing[id] = missing[id] || f.Kind == ledger.FoundMissing || f.Kind == ledger.FoundUnknown
		}
		list, found = append(list, v), append(found, said...)
	}
	// Volumes that are none of this round keep their names: they stand in the
	// list while names are given, as the latest ones.
	for name, id := range r.Names {
		if !ids[id] {
			list = append(list, api.Volume{ID: id, Name: name, Created: r.Now.Add(time.Hour)})
		}
	}
	before := map[string]string{}
	for _, v := range list {
		before[v.ID] = v.Name
	}
	renamed := ledger.Rename(list, func(id string) bool { return missing[id] })
	list = slices.DeleteFunc(list, func(v api.Volume) bool { return !ids[v.ID] })
	slices.SortStableFunc(list, func(a, b api.Volume) int {
		switch x, y := before[a.ID] != a.Name, before[b.ID] != b.Name; {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return list, append(found, renamed...)
}
