package ledger

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Service commits the rules to the state store. It runs on control nodes.
type Service struct {
	Store *state.Store
	Now   func() time.Time
	NewID func() string
	Grace time.Duration // how long a deleted volume can be restored
	// Hold gives an error while no record may change; nil never does.
	Hold func() error
}

// update is Store.Update for a change of records that users and agents ask for.
func (s *Service) update(ctx context.Context, f func(*state.Tx) error) error {
	if s.Hold != nil {
		if err := s.Hold(); err != nil {
			return err
		}
	}
	return s.Store.Update(ctx, f)
}

// Volume looks up a volume by id, by name, or, when that is unique, by a
// prefix of its id of at least four characters. Deleted volumes are found by
// id only.
func (s *Service) Volume(ctx context.Context, ref string) (api.Volume, error) {
	var v api.Volume
	err := s.Store.View(ctx, func(tx *state.Tx) error {
		id, err := s.lookup(ctx, tx, ref)
		if err != nil {
			return err
		}
		v, err = get(tx, id)
		return err
	})
	return v, err
}

// Volumes lists all volumes that are not deleted, or all that are, by name.
func (s *Service) Volumes(ctx context.Context, deleted bool) ([]api.Volume, error) {
	var list []api.Volume
	_, err := state.Volumes.All(ctx, s.Store, "", func(_ string, v api.Volume, _ int64) error {
		if (v.Deleted != nil) == deleted {
			list = append(list, v)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b api.Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

func (s *Service) lookup(ctx context.Context, tx *state.Tx, ref string) (string, error) {
	const shortest, full = 4, 32
	// A whole id means that volume, whatever others are called: nodes name
	// volumes to each other by it.
	if len(ref) == full {
		if _, err := get(tx, ref); err == nil || !api.Is(err, api.NotFound) {
			return ref, err
		}
	}
	if id, _, err := state.Names.Get(tx, ref); err == nil || !api.Is(err, api.NotFound) {
		return id, err
	}
	var found []string
	if len(ref) >= shortest {
		if _, err := state.Volumes.All(ctx, s.Store, ref, func(id string, _ api.Volume, _ int64) error {
			found = append(found, id)
			return nil
		}); err != nil {
			return "", err
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if volume, _, found := strings.Cut(ref, "@"); found {
			return "", &api.Error{Kind: api.NotFound, Op: "look up volume", Object: ref, Reason: "the volume alone is wanted here, without a branch", Next: "write " + volume + "; drover branch " + volume + " is for its branches"}
		}
		return "", &api.Error{Kind: api.NotFound, Op: "look up volume", Object: ref, Reason: "the cluster has no volume of that name or id", Next: "drover volume ls shows what there is"}
	}
	return "", &api.Error{Kind: api.Invalid, Op: "look up volume", Object: ref, Reason: "several volumes have ids that begin so", Next: "give more of the id"}
}

func get(tx *state.Tx, id string) (api.Volume, error) {
	v, _, err := state.Volumes.Get(tx, id)
	return v, err
}

// put writes the record under its next version and the copies for the nodes
// it concerns. The version is part of the record, so that who gets it by two
// ways, as a call's answer and from a watch, knows which is the later one.
func put(tx *state.Tx, before api.Volume, after *api.Volume) error {
	after.Version = before.Version + 1
	if err := state.Volumes.Put(tx, after.ID, *after); err != nil {
		return err
	}
	nodes := Concerned(*after)
	for _, node := range nodes {
		if err := state.Assigned.PutCopy(tx, node+"/"+after.ID, state.Volumes, after.ID); err != nil {
			return err
		}
	}
	for _, node := range Concerned(before) {
		if !slices.Contains(nodes, node) {
			state.Assigned.Delete(tx, node+"/"+after.ID)
		}
	}
	return nil
}

// change applies a rule to the volume with that id.
func (s *Service) change(ctx context.Context, id string, rule func(api.Volume) (api.Volume, error)) (api.Volume, error) {
	var after api.Volume
	err := s.update(ctx, func(tx *state.Tx) error {
		before, err := get(tx, id)
		if err != nil {
			return err
		}
		after, err = rule(before)
		if err != nil || same(before, after) {
			return err
		}
		return put(tx, before, &after)
	})
	return after, err
}

// Create writes the record of a new volume. The same name again is Exists.
func (s *Service) Create(ctx context.Context, c Create) (api.Volume, error) {
	if c.ID == "" {
		c.ID = s.NewID()
	}
	v, err := New(c, s.Now())
	if err != nil {
		return v, err
	}
	err = s.update(ctx, func(tx *state.Tx) error {
		// The same call again, its first answer lost, finds its own work.
		if known, err := get(tx, v.ID); err == nil {
			v = known
			return nil
		} else if !api.Is(err, api.NotFound) {
			return err
		}
		if _, _, err := state.Nodes.Get(tx, c.Node); err != nil {
			return err
		}
		if err := take(tx, v.Name, v.ID, "create volume"); err != nil {
			return err
		}
		return put(tx, api.Volume{}, &v)
	})
	return v, err
}

// take claims a name.
func take(tx *state.Tx, name, id, op string) error {
	switch holder, _, err := state.Names.Get(tx, name); {
	case err == nil && holder != id:
		return &api.Error{Kind: api.Exists, Op: op, Object: name, Reason: "a volume of that name exists", Next: "choose another name"}
	case err != nil && !api.Is(err, api.NotFound):
		return err
	}
	return state.Names.Put(tx, name, id)
}

// RequestMove writes down a wish; see the function of that name.
func (s *Service) RequestMove(ctx context.Context, id, branch string, m api.Move) (api.Volume, error) {
	var after api.Volume
	err := s.update(ctx, func(tx *state.Tx) error {
		node, _, err := state.Nodes.Get(tx, m.To)
		if err != nil {
			return err
		}
		if node.Draining {
			return &api.Error{Kind: api.Denied, Op: "move volume", Object: id, Reason: "node " + m.To + " is being drained", Next: "choose another node, or drover node drain --stop " + m.To}
		}
		before, err := get(tx, id)
		if err != nil {
			return err
		}
		after, err = RequestMove(before, branch, m)
		if err != nil || same(before, after) {
			return err
		}
		return put(tx, before, &after)
	})
	return after, err
}

// same is true when a rule changed nothing.
func same(a, b api.Volume) bool { return encode(a) == encode(b) }

// CancelMove withdraws a wish.
func (s *Service) CancelMove(ctx context.Context, id, branch, moveID string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return CancelMove(v, branch, moveID) })
}

// Hand changes a head's owner.
func (s *Service) Hand(ctx context.Context, id, branch string, o HandOver) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Hand(v, branch, o, s.Now()) })
}

// Ready notes that the owner holds the head durably.
func (s *Service) Ready(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Ready(v, branch, node, epoch) })
}

// Settled notes that the previous owner has cleared up.
func (s *Service) Settled(ctx context.Context, id, branch, node string, epoch uint64) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Settled(v, branch, node, epoch) })
}

// Returned forgets that a node's containers moved away.
func (s *Service) Returned(ctx context.Context, id, branch, node string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Returned(v, branch, node) })
}

// Resize sets the wished limit.
func (s *Service) Resize(ctx context.Context, id string, size int64) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Resize(v, size) })
}

// Label sets and removes labels.
func (s *Service) Label(ctx context.Context, id string, set map[string]string, remove []string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Label(v, set, remove) })
}

// Adopt gives a head to a node without its owner's word.
func (s *Service) Adopt(ctx context.Context, id, branch, node, pool, snapshot, proof, loss string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) {
		return Adopt(v, branch, node, pool, snapshot, proof, loss, s.Now())
	})
}

// Delete begins a volume's grace and frees its name.
func (s *Service) Delete(ctx context.Context, id, by string) (api.Volume, error) {
	var after api.Volume
	err := s.update(ctx, func(tx *state.Tx) error {
		before, err := get(tx, id)
		if err != nil {
			return err
		}
		after, err = Delete(before, by, s.Now(), s.Grace)
		if err != nil || same(before, after) {
			return err
		}
		if holder, _, err := state.Names.Get(tx, before.Name); err == nil && holder == id {
			state.Names.Delete(tx, before.Name)
		} else if err != nil && !api.Is(err, api.NotFound) {
			return err
		}
		return put(tx, before, &after)
	})
	return after, err
}

// Restore ends the grace and takes the name again, or another one.
func (s *Service) Restore(ctx context.Context, id, name string) (api.Volume, error) {
	var after api.Volume
	err := s.update(ctx, func(tx *state.Tx) error {
		before, err := get(tx, id)
		if err != nil {
			return err
		}
		if after, err = Restore(before, name); err != nil {
			return err
		}
		if err := take(tx, after.Name, id, "restore volume"); err != nil {
			return err
		}
		return put(tx, before, &after)
	})
	return after, err
}

// Purge makes a deleted volume's grace end now.
func (s *Service) Purge(ctx context.Context, id string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return PurgeNow(v, s.Now()) })
}

// BeginPurge notes that an owner is about to remove a deleted volume's data.
func (s *Service) BeginPurge(ctx context.Context, id string) (api.Volume, error) {
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return BeginPurge(v, s.Now()) })
}

// Change changes a volume's references.
func (s *Service) Change(ctx context.Context, id string, c Change) (api.Volume, error) {
	if c.NewBranch != nil {
		if err := s.Store.View(ctx, func(tx *state.Tx) error {
			_, _, err := state.Nodes.Get(tx, c.NewBranch.Node)
			return err
		}); err != nil {
			return api.Volume{}, err
		}
	}
	return s.change(ctx, id, func(v api.Volume) (api.Volume, error) { return Apply(v, c, s.Now(), s.Grace) })
}

// AdvanceAll moves the tips of branches of several volumes, by id: all of them
// in one transaction, or none.
func (s *Service) AdvanceAll(ctx context.Context, moves map[string]Advance) (map[string]api.Volume, error) {
	out := map[string]api.Volume{}
	err := s.Store.Update(ctx, func(tx *state.Tx) error {
		clear(out)
		for _, id := range slices.Sorted(maps.Keys(moves)) {
			before, err := get(tx, id)
			if err != nil {
				return err
			}
			a := moves[id]
			after, err := Apply(before, Change{Advance: &a}, s.Now(), s.Grace)
			if err != nil {
				return err
			}
			if !same(before, after) {
				if err := put(tx, before, &after); err != nil {
					return err
				}
			}
			out[id] = after
		}
		return nil
	})
	return out, err
}

// Forget notes that an owner destroyed a head whose grace ended.
func (s *Service) Forget(ctx context.Context, id, branch, node string, epoch uint64) error {
	return s.update(ctx, func(tx *state.Tx) error {
		before, err := get(tx, id)
		if api.Is(err, api.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		after, gone, err := Forget(before, branch, node, epoch)
		if err != nil {
			return err
		}
		if !gone {
			return put(tx, before, &after)
		}
		state.Volumes.Delete(tx, id)
		for _, n := range Concerned(before) {
			state.Assigned.Delete(tx, n+"/"+id)
		}
		return nil
	})
}

// Replace writes a record as a recovery found it to be, whatever was there,
// with the name and the copies that belong to it.
func (s *Service) Replace(ctx context.Context, v api.Volume) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		before, err := get(tx, v.ID)
		if err != nil && !api.Is(err, api.NotFound) {
			return err
		}
		for _, name := range []string{before.Name, v.Name} {
			if name == "" {
				continue
			}
			holder, _, err := state.Names.Get(tx, name)
			switch {
			case err != nil && !api.Is(err, api.NotFound):
				return err
			case name == v.Name && v.Deleted == nil:
				if err == nil && holder != v.ID {
					return &api.Error{Kind: api.Conflict, Op: "recover volume", Object: v.Name, Reason: "another volume has the name"}
				}
				if err := state.Names.Put(tx, name, v.ID); err != nil {
					return err
				}
			case err == nil && holder == v.ID:
				state.Names.Delete(tx, name)
			}
		}
		after := v
		before.Version = max(before.Version, v.Version)
		return put(tx, before, &after)
	})
}
