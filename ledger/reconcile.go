package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
)

// Copy is one copy of a head, as a pool remembers it.
type Copy struct {
	Node   string `json:"node"`
	Pool   string `json:"pool"`
	Branch string `json:"branch"`
	Epoch  uint64 `json:"epoch"`
	// Released is the id of the move for which this epoch was let go of, To the
	// node that it was let go to, ToPool the pool there.
	Released string `json:"released,omitempty"`
	To       string `json:"to,omitempty"`
	ToPool   string `json:"toPool,omitempty"`
	// Volume is the record as it was when the pool last noted it.
	Volume api.Volume `json:"volume"`
}

// Report is what a node says that its pools hold. A long one comes in parts.
type Report struct {
	Incarnation uint64 `json:"incarnation"`
	// Node is how the node would be recorded; it counts only when no record of
	// the node came back.
	Node api.Node `json:"node"`
	Part int      `json:"part"`
	Last bool     `json:"last"`
	// Gone are pools that are not part of it, with why: what they hold is unknown.
	Gone   map[string]string `json:"gone,omitempty"`
	Copies []Copy            `json:"copies"`
}

// Evidence is all that is known of one volume when the state store was lost
// and came back from a backup.
type Evidence struct {
	// Known is the record of the backup, or, when a node reports after the
	// others have gone on, that of the state store; nil when there is none.
	Known *api.Volume
	// Copies are what the pools hold that are reported now.
	Copies []Copy
	// Reported are the nodes whose pools are reported in this incarnation, now
	// or earlier. A copy of theirs that is not in Copies was not there.
	Reported map[string]bool
	// Settled are those of them that reported earlier: a head that the record
	// says they own has been used since under that record.
	Settled map[string]bool
	Now     time.Time
	// Grace is what a deleted volume is given again: nobody could restore it
	// while the state store was away.
	Grace time.Duration
}

// Finding says what became of a volume or a branch of it, and why.
type Finding struct {
	Volume string      `json:"volume" doc:"name"`
	ID     string      `json:"id"`
	Branch string      `json:"branch,omitempty"`
	Kind   FindingKind `json:"kind"`
	Node   string      `json:"node,omitempty" doc:"the owner now"`
	Epoch  uint64      `json:"epoch,omitempty"`
	Text   string      `json:"text"`
}

// FindingKind is what became of it.
type FindingKind string

// The kinds.
const (
	FoundSame     FindingKind = "as in the backup"
	FoundMoved    FindingKind = "moved since"
	FoundCreated  FindingKind = "created since"
	FoundDeleted  FindingKind = "deleted"
	FoundUnknown  FindingKind = "unknown"
	FoundMissing  FindingKind = "missing"
	FoundReturned FindingKind = "hand-over undone"
	FoundBranch   FindingKind = "branch"
	FoundKept     FindingKind = "kept aside"
	FoundRenamed  FindingKind = "renamed"
)

// Reconcile decides what a volume's record is after a recovery. The rules, for
// each branch:
//
//   - the highest epoch that a pool holds wins, whatever the backup says;
//   - a copy that was let go of is an owner again only if the node it was let
//     go to has reported that it never came to hold the head;
//   - what an owner holds that has not reported is unknown: it stays the owner,
//     and nobody else becomes it;
//   - of two copies of one epoch, or of a copy beside a head that has been used
//     since the recovery, one stays and the other becomes a branch;
//   - a copy of a lower epoch that was not let go of is kept and never mounted.
//
// It is pure, and deciding again with what it returned changes nothing.
func Reconcile(e Evidence) (api.Volume, []Finding) {
	v := e.newest()
	r := reconciler{e: e, v: v}
	branches := map[string]bool{}
	if e.Known != nil {
		for b := range e.Known.Heads {
			branches[b] = true
		}
	}
	for _, c := range e.Copies {
		branches[c.Branch] = true
	}
	r.v.Heads = map[string]api.Head{}
	for _, b := range slices.Sorted(maps.Keys(branches)) {
		r.branch(b)
	}
	if r.v.Branch == "" {
		r.v.Branch = api.MainBranch
	}
	if _, ok := r.v.Heads[r.v.Branch]; !ok && len(r.v.Heads) > 0 {
		r.v.Branch = slices.Sorted(maps.Keys(r.v.Heads))[0]
	}
	r.deletion()
	if e.Known != nil && encode(*e.Known) == encode(withVersion(r.v, e.Known.Version)) {
		r.v.Version = e.Known.Version
		return r.v, r.found
	}
	for _, c := range e.Copies {
		r.v.Version = max(r.v.Version, c.Volume.Version)
	}
	if e.Known != nil {
		r.v.Version = max(r.v.Version, e.Known.Version)
	}
	return r.v, r.found
}

func withVersion(v api.Volume, version int64) api.Volume {
	v.Version = version
	return v
}

type reconciler struct {
	e     Evidence
	v     api.Volume
	found []Finding
}

func (r *reconciler) say(branch string, kind FindingKind, h api.Head, format string, args ...any) {
	r.found = append(r.found, Finding{Volume: r.v.Name, ID: r.v.ID, Branch: branch, Kind: kind, Node: h.Node, Epoch: h.Epoch, Text: fmt.Sprintf(format, args...)})
}

// newest is the record whose name, labels, size and deletion hold: the latest
// version. Of a volume that has been used since the recovery that is the
// record, of one whose owner only now reports the owner's.
func (e Evidence) newest() api.Volume {
	var best api.Volume
	if e.Known != nil {
		best = *e.Known
		for _, h := range e.Known.Heads {
			if e.Settled[h.Node] {
				return best
			}
		}
	}
	late := e.Known != nil && len(e.Settled) > 0 // the record was written anew by an earlier round
	for _, c := range e.Copies {
		if best.ID == "" || c.Volume.Version > best.Version || (late && c.Released == "" && c.Node == e.Known.Heads[c.Branch].Node) {
			best = c.Volume
		}
	}
	return best
}

// deletion gives a deleted volume its grace anew, and says that it is deleted.
func (r *reconciler) deletion() {
	if r.v.Deleted == nil {
		return
	}
	d := *r.v.Deleted
	if e := r.e; !d.Purging && (e.Known == nil || e.Known.Deleted == nil || len(e.Settled) == 0) && d.Purge.Before(e.Now.Add(e.Grace)) && e.Grace > 0 {
		d.Purge = e.Now.Add(e.Grace)
	}
	r.v.Deleted = &d
	text := "it was deleted at " + d.At.UTC().Format(time.DateTime) + " UTC by " + d.By + "; it can be restored until " + d.Purge.UTC().Format(time.DateTime) + " UTC"
	if d.Purging {
		text = "its grace had ended, and its data was being removed"
	}
	r.say("", FoundDeleted, r.v.Heads[r.v.Branch], "%s", text)
}

// sides are the copies of one branch.
type sides struct {
	held     []Copy // not let go of, highest epoch first
	released []Copy // let go of, highest epoch first
}

// beyond reports whether the very pool that a record names holds a later epoch.
func (s sides) beyond(claim api.Head) bool {
	return slices.ContainsFunc(slices.Concat(s.held, s.released), func(c Copy) bool {
		return c.Node == claim.Node && c.Pool == claim.Pool && c.Epoch > claim.Epoch
	})
}

func (r *reconciler) sides(branch string, claim api.Head) sides {
	var s sides
	for _, c := range r.e.Copies {
		switch {
		case c.Branch != branch:
		case c.Released != "":
			s.released = append(s.released, c)
		default:
			s.held = append(s.held, c)
		}
	}
	order := func(a, b Copy) int {
		claimed := func(c Copy) bool { return c.Released == "" && c.Node == claim.Node && c.Pool == claim.Pool }
		switch {
		case a.Epoch != b.Epoch:
			return int(int64(b.Epoch) - int64(a.Epoch))
		case claimed(a) != claimed(b):
			if claimed(a) {
				return -1
			}
			return 1
		case !since(a).Equal(since(b)):
			return since(b).Compare(since(a))
		case a.Node != b.Node:
			return strings.Compare(a.Node, b.Node)
		}
		return strings.Compare(a.Pool, b.Pool)
	}
	slices.SortFunc(s.held, order)
	slices.SortFunc(s.released, order)
	return s
}

// since is when the copy's epoch began, as its note says.
func since(c Copy) time.Time {
	if h := c.Volume.Heads[c.Branch]; h.Node == c.Node && h.Epoch == c.Epoch {
		return h.Since
	}
	return time.Time{}
}

// branch decides about one branch.
func (r *reconciler) branch(b string) {
	var claim api.Head
	claimed := false
	if r.e.Known != nil {
		claim, claimed = r.e.Known.Heads[b]
	}
	s := r.sides(b, claim)
	switch {
	case claimed && r.e.Settled[claim.Node] && !s.beyond(claim):
		r.stay(b, claim, s)
	case len(s.held) > 0 && r.wins(s, claim, claimed):
		r.take(b, claim, claimed, s.held[0], s)
	case len(s.released) > 0 && (!claimed || s.released[0].Epoch+1 > claim.Epoch):
		r.between(b, claim, claimed, s)
	case claimed:
		r.claim(b, claim, s)
	}
}

// wins reports whether the highest copy that was not let go of is the head.
func (r *reconciler) wins(s sides, claim api.Head, claimed bool) bool {
	top := s.held[0]
	if claimed && top.Epoch < claim.Epoch && !(top.Node == claim.Node && top.Epoch == claim.Was) {
		return false
	}
	// One that was let go of at this epoch or later went on elsewhere, unless
	// that never came about.
	return len(s.released) == 0 || s.released[0].Epoch < top.Epoch || (s.released[0].Epoch == top.Epoch && r.e.Reported[s.released[0].To])
}

// take makes a copy the head.
func (r *reconciler) take(b string, claim api.Head, claimed bool, c Copy, s sides) {
	h := r.headOf(b, claim, c)
	if claimed && c.Epoch == claim.Was && c.Node == claim.Node {
		h.Epoch, h.Was = claim.Epoch, claim.Was // it was raised, and the note is not yet
	}
	switch {
	case !claimed:
		r.say(b, FoundCreated, h, "%s has it in pool %s; the backup does not know it", c.Node, c.Pool)
	case c.Node == claim.Node && (c.Epoch == claim.Epoch || c.Epoch == claim.Was):
		r.say(b, FoundSame, h, "%s has it in pool %s", c.Node, c.Pool)
	default:
		r.say(b, FoundMoved, h, "%s has epoch %d of it in pool %s; the backup says %s, epoch %d", c.Node, c.Epoch, c.Pool, claim.Node, claim.Epoch)
	}
	if claimed && claim.Node != c.Node && !r.e.Reported[claim.Node] {
		h.Stranded = with(h.Stranded, claim.Node, claim.Epoch)
	}
	if claim.Node == c.Node && claim.Pool == c.Pool && r.e.Reported[claim.From] {
		h.From, h.FromPool = claim.From, claim.FromPool
	}
	r.v.Heads[b] = r.losers(b, h, c, s)
}

// headOf is the head that a copy makes.
func (r *reconciler) headOf(b string, claim api.Head, c Copy) api.Head {
	base := c.Volume.Heads[b]
	if base.Node != c.Node || base.Epoch != c.Epoch {
		base = api.Head{Since: r.e.Now}
	}
	if claim.Node == c.Node && (claim.Epoch == c.Epoch || (claim.Was != 0 && claim.Was == c.Epoch)) {
		base = claim
	}
	h := api.Head{
		Node: c.Node, Pool: c.Pool, Epoch: c.Epoch, Since: base.Since, Seed: base.Seed, SeedVolume: base.SeedVolume,
		Ready: true, Away: maps.Clone(base.Away), Stranded: maps.Clone(base.Stranded), Kept: base.Kept,
	}
	delete(h.Away, c.Node)
	delete(h.Stranded, c.Node)
	if len(h.Away) == 0 {
		h.Away = nil
	}
	if len(h.Stranded) == 0 {
		h.Stranded = nil
	}
	return h
}

// between decides when the highest copy was let go of: the head is where it
// was let go to, unless that node has said that it has none.
func (r *reconciler) between(b string, claim api.Head, claimed bool, s sides) {
	c := s.released[0]
	if r.e.Reported[c.To] || c.To == "" {
		h := r.headOf(b, claim, c)
		r.say(b, FoundReturned, h, "%s had let it go to %s, which never came to hold it", c.Node, c.To)
		r.v.Heads[b] = r.losers(b, h, c, s)
		return
	}
	h := api.Head{Node: c.To, Pool: c.ToPool, Epoch: c.Epoch + 1, Since: r.e.Now, From: c.Node, FromPool: c.Pool}
	r.say(b, FoundUnknown, h, "%s had let it go to %s, which has not reported; it is not used anywhere else meanwhile", c.Node, c.To)
	if claimed && claim.Node != c.To && claim.Node != c.Node && !r.e.Reported[claim.Node] {
		h.Stranded = with(h.Stranded, claim.Node, claim.Epoch)
	}
	r.v.Heads[b] = r.losers(b, h, c, s)
}

// claim decides when no pool holds what the record says.
func (r *reconciler) claim(b string, claim api.Head, s sides) {
	h := claim
	h.Move = nil
	switch {
	case !r.e.Reported[h.Node]:
		if h.Ready {
			h.From, h.FromPool = "", ""
		}
		r.say(b, FoundUnknown, h, "its owner %s has not reported; it is not used anywhere else meanwhile", h.Node)
	case unsure(h):
		// An earlier round gave it to a node that has now said it has none.
		h = api.Head{Node: h.From, Pool: h.FromPool, Epoch: h.Epoch - 1, Since: r.e.Now, Ready: true, Stranded: h.Stranded}
		r.say(b, FoundReturned, h, "%s had let it go to %s, which never came to hold it", h.Node, claim.Node)
		r.v.Heads[b] = r.keep(b, h, s.held, s.released)
		return
	case h.Ready:
		h.From, h.FromPool = "", ""
		r.say(b, FoundMissing, h, "%s should have it in pool %s and has not; nothing is made in its place", h.Node, h.Pool)
	default:
		r.say(b, FoundSame, h, "%s was just making it", h.Node)
	}
	// What was let go of is left alone: it may be the last copy there is.
	r.v.Heads[b] = r.keep(b, h, s.held, nil)
}

// unsure is how between leaves a head of which only the target can tell.
func unsure(h api.Head) bool { return !h.Ready && h.From != "" && h.Seed == "" }

// stay keeps a head that has been used under its record since the recovery.
func (r *reconciler) stay(b string, claim api.Head, s sides) {
	h := claim
	h.Stranded = maps.Clone(claim.Stranded)
	var held, released []Copy
	for _, c := range slices.Concat(s.held, s.released) {
		switch {
		case c.Node == h.Node && c.Pool == h.Pool: // its own
		case c.Released == "" || c.Epoch >= h.Epoch:
			held = append(held, c)
		case !unsure(h):
			released = append(released, c)
		}
	}
	if len(held)+len(released) > 0 {
		r.say(b, FoundSame, h, "%s owns it", h.Node)
	}
	r.v.Heads[b] = r.keep(b, h, held, released)
}

// losers settles all copies but the one that won.
func (r *reconciler) losers(b string, h api.Head, winner Copy, s sides) api.Head {
	other := func(c Copy) bool { return c.Node == winner.Node && c.Pool == winner.Pool }
	return r.keep(b, h, slices.DeleteFunc(slices.Clone(s.held), other), slices.DeleteFunc(slices.Clone(s.released), other))
}

// keep settles the copies that are not the head: what was let go of may be
// cleared away once the head is there, everything else is kept.
func (r *reconciler) keep(b string, h api.Head, held, released []Copy) api.Head {
	was, top := h.Epoch, h.Epoch
	for _, c := range held {
		if c.Epoch >= was {
			top = max(top, c.Epoch+1)
			r.aside(b, h, c)
		} else {
			r.say(b, FoundKept, h, "%s keeps a copy of epoch %d in pool %s, which is never mounted; %s owns epoch %d", c.Node, c.Epoch, c.Pool, h.Node, h.Epoch)
		}
		if c.Node != h.Node {
			h.Stranded = with(h.Stranded, c.Node, c.Epoch)
		}
	}
	if top > was {
		if h.Was == 0 {
			h.Was = was
		}
		h.Epoch = top
	}
	for _, c := range released {
		switch {
		case h.From == "" && c.Epoch < h.Epoch:
			h.From, h.FromPool = c.Node, c.Pool
		case c.Node != h.Node && c.Node != h.From:
			h.Stranded = with(h.Stranded, c.Node, c.Epoch)
		}
	}
	return h
}

// aside makes a copy a branch of its own, on the node that has it.
func (r *reconciler) aside(b string, h api.Head, c Copy) {
	name := fmt.Sprintf("%s-%s-epoch%d", b, c.Node, c.Epoch)
	id := AsideSeed(r.v.ID, b, c.Node, c.Pool, c.Epoch)
	if len(name) > api.MaxName-4 {
		name = "kept-" + id[:12]
	}
	taken := map[string]bool{}
	for _, heads := range r.everyHead() {
		for other, x := range heads {
			taken[other] = true
			if x.Kept != nil && x.Seed == id {
				return
			}
		}
	}
	for i, first := 2, name; taken[name]; i++ {
		name = fmt.Sprintf("%s-%d", first, i)
	}
	why := fmt.Sprintf("%s and %s both held epoch %d or later of branch %s when the cluster was recovered; %s went on, and this is what %s had", h.Node, c.Node, h.Epoch, b, h.Node, c.Node)
	made := api.Head{Node: c.Node, Pool: c.Pool, Epoch: 1, Since: r.e.Now, Seed: id, Kept: &api.Kept{Branch: b, Epoch: c.Epoch, Why: why}}
	r.v.Heads[name] = made
	r.say(name, FoundBranch, made, "%s", why)
}

// everyHead gives the branches that there are, by whatever record.
func (r *reconciler) everyHead() []map[string]api.Head {
	all := []map[string]api.Head{r.v.Heads}
	if r.e.Known != nil {
		all = append(all, r.e.Known.Heads)
	}
	for _, c := range r.e.Copies {
		all = append(all, map[string]api.Head{c.Branch: c.Volume.Heads[c.Branch]})
	}
	return all
}

// AsideSeed is the id of the snapshot from which the branch begins that keeps
// a copy which lost.
func AsideSeed(volume, branch, node, pool string, epoch uint64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%d", volume, branch, node, pool, epoch))
	return hex.EncodeToString(sum[:16])
}

func with(m map[string]uint64, node string, epoch uint64) map[string]uint64 {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]uint64{}
	}
	m[node] = max(m[node], epoch)
	return m
}

// Rename gives volumes new names where several that are not deleted have the
// same: the one whose head some pool holds, then the latest one keeps it. It
// changes the list in place, and gives a finding for each that it renamed.
func Rename(list []api.Volume, missing func(id string) bool) []Finding {
	byName := map[string][]int{}
	taken := map[string]bool{}
	for i, v := range list {
		if v.Deleted == nil {
			byName[v.Name] = append(byName[v.Name], i)
			taken[v.Name] = true
		}
	}
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		same := byName[name]
		slices.SortFunc(same, func(a, b int) int {
			x, y := list[a], list[b]
			switch {
			case missing(x.ID) != missing(y.ID):
				if missing(y.ID) {
					return -1
				}
				return 1
			case !x.Created.Equal(y.Created):
				return y.Created.Compare(x.Created)
			}
			return strings.Compare(x.ID, y.ID)
		})
		for _, i := range same[1:] {
			n := min(8, len(list[i].ID))
			base := name[:min(len(name), api.MaxName-24)]
			fresh := base + "-recovered-" + list[i].ID[:n]
			for taken[fresh] {
				n++
				fresh = base + "-recovered-" + list[i].ID[:min(n, len(list[i].ID))]
			}
			taken[fresh] = true
			list[i].Name = fresh
			found = append(found, Finding{Volume: fresh, ID: list[i].ID, Kind: FoundRenamed, Node: list[i].Heads[list[i].Branch].Node, Text: "another volume is called " + name + " now"})
		}
	}
	return found
}
