// Package ledger holds the rules by which a volume's record changes: who may
// create, move, hand over, delete. Each rule is a pure function from a record
// to the next one, with time and identities as arguments; Service applies
// them to the state store by compare-and-swap. The package knows no storage,
// no containers and no HTTP.
package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drover-data/drover/api"
)

// Create is what a new volume should be.
type Create struct {
	ID     string            `json:"id"`
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Size   int64             `json:"size,omitempty"`
	Node   string            `json:"node"`
	Pool   string            `json:"pool"`
	// Seed is a snapshot in Pool to begin with, of the volume SeedVolume.
	Seed       string `json:"seed,omitempty"`
	SeedVolume string `json:"seedVolume,omitempty"`
	// Commit is the tip of its branch, when Seed is a commit of its own that was
	// brought here before; Branch is then that branch, and Remotes where it is from.
	Commit  string                `json:"commit,omitempty"`
	Branch  string                `json:"branch,omitempty"`
	Tip     *api.Tip              `json:"tip,omitempty"`
	Remotes map[string]api.Remote `json:"remotes,omitempty"`
}

// MinSize is the smallest limit a volume can have, in bytes: file systems
// need room for themselves.
const MinSize = 64 << 20

// New is the record of a new volume.
func New(c Create, now time.Time) (api.Volume, error) {
	if err := api.CheckNewVolumeName(c.Name); err != nil {
		return api.Volume{}, err
	}
	if err := api.CheckLabels(c.Labels); err != nil {
		return api.Volume{}, err
	}
	if err := CheckSize(c.Name, c.Size); err != nil {
		return api.Volume{}, err
	}
	branch := c.Branch
	if branch == "" {
		branch = api.MainBranch
	}
	if err := api.CheckBranchName(branch); err != nil {
		return api.Volume{}, err
	}
	return api.Volume{
		ID: c.ID, Name: c.Name, Labels: maps.Clone(c.Labels), Size: c.Size, Branch: branch, Created: now, Remotes: maps.Clone(c.Remotes),
		Heads: map[string]api.Head{branch: {Node: c.Node, Pool: c.Pool, Epoch: 1, Since: now, Seed: c.Seed, SeedVolume: c.SeedVolume, Commit: c.Commit, Tip: c.Tip}},
	}, nil
}

// CheckSize refuses sizes that no pool could keep.
func CheckSize(name string, size int64) error {
	if size != 0 && size < MinSize {
		return &api.Error{Kind: api.Invalid, Op: "size volume", Object: name, Reason: fmt.Sprintf("%d bytes are too few", size), Next: "give at least 64 MiB, or 0 for no limit"}
	}
	return nil
}

// Concerned lists the nodes that a record concerns, in order: owners, those
// a head is to move to, and those that have something left to clear up.
func Concerned(v api.Volume) []string {
	set := map[string]bool{}
	for _, h := range v.Heads {
		set[h.Node] = true
		if h.From != "" {
			set[h.From] = true
		}
		if h.Move != nil {
			set[h.Move.To] = true
		}
		for node := range h.Away {
			set[node] = true
		}
		for node := range h.Stranded {
			set[node] = true
		}
	}
	for _, d := range v.Dropped {
		set[d.Node] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// head gives a copy of a head that may be changed, with a function to put it
// into a copy of the record.
func head(v api.Volume, branch, op string) (api.Head, func(api.Head) api.Volume, error) {
	if v.Deleted != nil {
		return api.Head{}, nil, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "the volume was deleted at " + v.Deleted.At.UTC().Format(time.DateTime) + " UTC by " + v.Deleted.By, Next: "drover volume restore " + v.Name + " brings it back until " + v.Deleted.Purge.UTC().Format(time.DateTime) + " UTC"}
	}
	h, ok := v.Heads[branch]
	if !ok {
		return api.Head{}, nil, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + branch, Reason: "the volume has no such branch"}
	}
	h.Away = maps.Clone(h.Away)
	return h, func(h api.Head) api.Volume {
		v.Heads = maps.Clone(v.Heads)
		v.Heads[branch] = h
		return v
	}, nil
}

// RequestMove writes down the wish that a head moves. The same wish again
// changes nothing; another one while a move is on its way is refused.
func RequestMove(v api.Volume, branch string, m api.Move) (api.Volume, error) {
	const op = "move volume"
	h, put, err := head(v, branch, op)
	if err != nil {
		return v, err
	}
	if h.Move != nil {
		if h.Move.To == m.To && h.Move.Pool == m.Pool {
			return v, nil
		}
		return v, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name, Reason: "it is already moving to " + h.Move.To, Next: "wait for it, or drover volume move --cancel " + v.Name}
	}
	if h.Node == m.To && h.Pool == m.Pool {
		return v, &api.Error{Kind: api.Exists, Op: op, Object: v.Name, Reason: "it is already on " + m.To + " in pool " + m.Pool}
	}
	if !h.Ready {
		return v, &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name, Reason: h.Node + " has not finished making it", Next: "try again when drover volume inspect shows it ready"}
	}
	if h.From != "" {
		return v, &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name, Reason: "its last move is being settled on " + h.From, Next: "try again in a moment"}
	}
	h.Move = &m
	return put(h), nil
}

// CancelMove withdraws a wish; a wish that is gone is no error. moveID ""
// means whichever there is.
func CancelMove(v api.Volume, branch, moveID string) (api.Volume, error) {
	h, put, err := head(v, branch, "cancel move")
	if err != nil {
		return v, err
	}
	if h.Move == nil || (moveID != "" && h.Move.ID != moveID) {
		return v, nil
	}
	h.Move = nil
	return put(h), nil
}

// HandOver is the owner's word that the target holds everything durably.
type HandOver struct {
	Node     string `json:"node"`     // who says it: must be the owner
	Epoch    uint64 `json:"epoch"`    // the owner's epoch
	Move     string `json:"move"`     // id of the wish that it fulfils
	Snapshot string `json:"snapshot"` // what the target holds
	// Departed names the containers that moved away with the head.
	Departed []string `json:"departed,omitempty"`
}

// Hand changes the owner. It is the one moment at which a head moves.
// Repeating a hand-over that took effect changes nothing.
func Hand(v api.Volume, branch string, o HandOver, now time.Time) (api.Volume, error) {
	const op = "hand over volume"
	h, put, err := head(v, branch, op)
	if err != nil {
		return v, err
	}
	if h.Epoch == o.Epoch+1 && h.From == o.Node && h.Seed == o.Snapshot {
		return v, nil
	}
	switch {
	case h.Node != o.Node || h.Epoch != o.Epoch:
		return v, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name, Reason: fmt.Sprintf("%s at epoch %d is not its owner: %s is, at epoch %d", o.Node, o.Epoch, h.Node, h.Epoch)}
	case h.Move == nil || h.Move.ID != o.Move:
		return v, &api.Error{Kind: api.Canceled, Op: op, Object: v.Name, Reason: "the move was cancelled"}
	}
	if len(o.Departed) > 0 {
		if h.Away == nil {
			h.Away = map[string]api.Departure{}
		}
		h.Away[o.Node] = api.Departure{Containers: slices.Sorted(slices.Values(o.Departed)), To: h.Move.To, At: now}
	}
	delete(h.Away, h.Move.To)
	if len(h.Away) == 0 {
		h.Away = nil
	}
	h.From, h.FromPool = h.Node, h.Pool
	h.Node, h.Pool = h.Move.To, h.Move.Pool
	h.Epoch++
	h.Since, h.Seed, h.SeedVolume, h.Ready, h.Move, h.Was = now, o.Snapshot, "", false, nil, 0
	return put(h), nil
}

// Ready is the owner's word that it holds the head of this epoch durably.
//
// A deleted volume's owner says so too: a former owner waits for it.
func Ready(v api.Volume, branch, node string, epoch uint64) (api.Volume, error) {
	live := v
	live.Deleted = nil
	h, put, err := head(live, branch, "report volume ready")
	if err != nil {
		return v, err
	}
	if h.Node != node || h.Epoch != epoch {
		return v, notOwner("report volume ready", v.Name, node, epoch, h)
	}
	h.Ready = true
	out := put(h)
	out.Deleted = v.Deleted
	return out, nil
}

// Settled is the previous owner's word that it has cleared up.
func Settled(v api.Volume, branch, node string, epoch uint64) (api.Volume, error) {
	v2 := v
	v2.Deleted = nil // a deleted volume is settled like any other
	h, put, err := head(v2, branch, "settle move")
	if err != nil {
		return v, err
	}
	if h.From != node || h.Epoch != epoch {
		return v, nil
	}
	if !h.Ready {
		return v, &api.Error{Kind: api.Conflict, Op: "settle move", Object: v.Name, Reason: h.Node + " does not hold it yet"}
	}
	h.From, h.FromPool = "", ""
	out := put(h)
	out.Deleted = v.Deleted
	return out, nil
}

// Returned forgets that a node's containers moved away: they are gone, or
// the user took them back.
func Returned(v api.Volume, branch, node string) (api.Volume, error) {
	h, put, err := head(v, branch, "forget moved containers")
	if err != nil {
		return v, err
	}
	delete(h.Away, node)
	if len(h.Away) == 0 {
		h.Away = nil
	}
	return put(h), nil
}

func notOwner(op, name, node string, epoch uint64, h api.Head) error {
	return &api.Error{Kind: api.Conflict, Op: op, Object: name, Reason: fmt.Sprintf("%s at epoch %d is not its owner: %s is, at epoch %d", node, epoch, h.Node, h.Epoch)}
}

// Delete begins a volume's grace. A deleted one stays as it is.
func Delete(v api.Volume, by string, now time.Time, grace time.Duration) (api.Volume, error) {
	if v.Deleted != nil {
		return v, nil
	}
	for branch, h := range v.Heads {
		if h.Move != nil {
			return v, &api.Error{Kind: api.InUse, Op: "delete volume", Object: v.Name, Reason: "its branch " + branch + " is moving to " + h.Move.To, Next: "wait for it, or drover volume move --cancel " + v.Name}
		}
	}
	v.Deleted = &api.Deletion{At: now, By: by, Purge: now.Add(grace)}
	return v, nil
}

// Restore ends the grace, under the same name or a new one.
func Restore(v api.Volume, name string) (api.Volume, error) {
	if v.Deleted == nil {
		return v, &api.Error{Kind: api.Exists, Op: "restore volume", Object: v.Name, Reason: "it is not deleted"}
	}
	if v.Deleted.Purging {
		return v, &api.Error{Kind: api.NotFound, Op: "restore volume", Object: v.Name, Reason: "its grace ended at " + v.Deleted.Purge.UTC().Format(time.DateTime) + " UTC and its data is being removed"}
	}
	if name != "" {
		if err := api.CheckNewVolumeName(name); err != nil {
			return v, err
		}
		v.Name = name
	}
	v.Deleted = nil
	return v, nil
}

// PurgeNow makes a deleted volume's grace end now.
func PurgeNow(v api.Volume, now time.Time) (api.Volume, error) {
	if v.Deleted == nil {
		return v, &api.Error{Kind: api.InUse, Op: "purge volume", Object: v.Name, Reason: "it is not deleted", Next: "delete it first: drover volume rm " + v.Name}
	}
	d := *v.Deleted
	if now.Before(d.Purge) {
		d.Purge = now
	}
	v.Deleted = &d
	return v, nil
}

// BeginPurge is an owner's word, before it removes anything, that a deleted
// volume's grace has ended. It is what a restore competes with.
func BeginPurge(v api.Volume, now time.Time) (api.Volume, error) {
	if v.Deleted == nil || now.Before(v.Deleted.Purge) {
		return v, &api.Error{Kind: api.Conflict, Op: "purge volume", Object: v.Name, Reason: "it was restored, or its grace has not ended"}
	}
	d := *v.Deleted
	d.Purging = true
	v.Deleted = &d
	return v, nil
}

// Forget is an owner's word that it has destroyed a head whose grace ended.
// When the last head is gone the record goes too: gone is true.
func Forget(v api.Volume, branch, node string, epoch uint64) (next api.Volume, gone bool, err error) {
	if v.Deleted == nil || !v.Deleted.Purging {
		return v, false, &api.Error{Kind: api.Conflict, Op: "forget volume", Object: v.Name, Reason: "its purge was not begun"}
	}
	h, ok := v.Heads[branch]
	if !ok {
		return v, len(v.Heads) == 0, nil
	}
	if h.Node != node || h.Epoch != epoch {
		return v, false, notOwner("forget volume", v.Name, node, epoch, h)
	}
	v.Heads = maps.Clone(v.Heads)
	delete(v.Heads, branch)
	return v, len(v.Heads) == 0, nil
}

// Resize sets the wished limit; the owner carries it out.
func Resize(v api.Volume, size int64) (api.Volume, error) {
	if _, _, err := head(v, v.Branch, "resize volume"); err != nil {
		return v, err
	}
	if err := CheckSize(v.Name, size); err != nil {
		return v, err
	}
	v.Size = size
	return v, nil
}

// Label sets and removes labels.
func Label(v api.Volume, set map[string]string, remove []string) (api.Volume, error) {
	if err := api.CheckLabels(set); err != nil {
		return v, err
	}
	labels := maps.Clone(v.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, set)
	for _, k := range remove {
		delete(labels, k)
	}
	v.Labels = labels
	return v, nil
}

// Adopt gives a head to a node without its owner's word. proof says in words
// why the owner cannot write any more; loss what may be missing. Both go into
// the audit log; the rule itself only asks that they are there.
func Adopt(v api.Volume, branch, node, pool, snapshot, proof, loss string, now time.Time) (api.Volume, error) {
	const op = "take over volume"
	h, put, err := head(v, branch, op)
	if err != nil {
		return v, err
	}
	if proof == "" || loss == "" {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "a take-over needs a proof that the owner " + h.Node + " has stopped, and says what is lost"}
	}
	if h.Node == node {
		return v, &api.Error{Kind: api.Exists, Op: op, Object: v.Name, Reason: node + " owns it already"}
	}
	h.Stranded = maps.Clone(h.Stranded)
	if h.Stranded == nil {
		h.Stranded = map[string]uint64{}
	}
	h.Stranded[h.Node] = h.Epoch
	delete(h.Stranded, node)
	h.From, h.FromPool, h.Node, h.Pool = "", "", node, pool
	h.Epoch++
	h.Since, h.Seed, h.SeedVolume, h.Ready, h.Move, h.Was = now, snapshot, "", false, nil, 0
	return put(h), nil
}

// encode is a record's text, by which two are compared.
func encode(v api.Volume) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%+v", v)
	}
	return string(text)
}
