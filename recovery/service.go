package recovery

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/cluster"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/state"
)

// File is where the backup lies on the first node of a new incarnation until
// its records are in the state store.
func File(c cluster.Config) string { return filepath.Join(c.IdentityDir(), "recover.drover") }

// Service brings a cluster back. It runs on control nodes; its methods may be
// repeated after a failure.
type Service struct {
	Store  *state.Store
	Access state.Access // nil with an external state store
	Ledger *ledger.Service
	Now    func() time.Time
	Grace  time.Duration // of deleted volumes
	// Issued notes the key of a node's certificate, so that a removal revokes it.
	Issued func(tx *state.Tx, node, key string) error
	// Tell is told of every finding and of what else people should know.
	Tell func(api.Event)
}

// Restore writes a backup's records into the new state store, if there is one
// to be restored on this node.
func (s *Service) Restore(ctx context.Context, c cluster.Config) error {
	path := File(c)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	if now.Recovery == nil || !now.Recovery.Restoring {
		return os.Remove(path) // it was written, and the rest is up to the reports
	}
	b, err := backup.Decode(text)
	if err != nil {
		return err
	}
	contents, err := Read(b)
	if err != nil {
		return err
	}
	if err := s.clear(ctx, c.Name); err != nil {
		return err
	}
	if err := s.write(ctx, contents, c); err != nil {
		return err
	}
	err = s.Store.Update(ctx, func(tx *state.Tx) error {
		now, _, err := state.TheCluster.Get(tx, "cluster")
		if err != nil || now.Recovery == nil {
			return err
		}
		r := *now.Recovery
		r.Restoring = false
		now.Recovery = &r
		return state.TheCluster.Put(tx, "cluster", now)
	})
	if err != nil {
		return err
	}
	s.Tell(api.Event{Type: "cluster.restored", Level: "warning", Object: now.Name, Message: fmt.Sprintf("the records of the backup of %s UTC are in the state store; waiting for %s to report what their pools hold", b.Header.Taken.UTC().Format(time.DateTime), names(now.Recovery.Awaiting))})
	return os.Remove(path)
}

// clear removes what an external store still held of the incarnation before.
func (s *Service) clear(ctx context.Context, self string) error {
	keep := map[string]bool{state.TheCluster.Key("cluster"): true, state.Nodes.Key(self): true, state.Alive.Key(self): true, state.Secrets.Key("ca"): true, state.Issued.Key("node/" + self): true}
	var old []string
	_, err := s.Store.KV().List(ctx, state.Root, 0, func(it state.Item) error {
		if !keep[it.Key] && !strings.HasPrefix(it.Key, state.Leaders) {
			old = append(old, it.Key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(old, state.MaxOps) {
		if _, err := s.Store.KV().Commit(ctx, state.Txn{Delete: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) write(ctx context.Context, contents Contents, c cluster.Config) error {
	var puts []state.Put
	add := func(key string, v any) error {
		text, err := json.Marshal(v)
		puts = append(puts, state.Put{Key: key, Value: text})
		return err
	}
	for name, n := range contents.Nodes {
		if name == c.Name {
			continue
		}
		n.Status, n.Incarnation, n.Member = api.NodeStatus{}, 0, api.MemberNone
		n.Control = n.Control && c.External != nil
		if s.Access != nil {
			if err := s.Access.Add(ctx, name); err != nil {
				return err
			}
		}
		if err := add(state.Nodes.Key(name), n); err != nil {
			return err
		}
	}
	volumes := slices.Collect(maps.Values(contents.Volumes))
	ledger.Rename(volumes, func(string) bool { return false }) // two of one name are none that a good store wrote
	for _, v := range volumes {
		if err := add(state.Volumes.Key(v.ID), v); err != nil {
			return err
		}
		if v.Deleted == nil {
			if err := add(state.Names.Key(v.Name), v.ID); err != nil {
				return err
			}
		}
	}
	for _, r := range contents.Rest {
		if r.Key != state.Issued.Key("node/"+c.Name) {
			puts = append(puts, state.Put{Key: r.Key, Value: r.Value})
		}
	}
	// Half of what one transaction could take, because values are large.
	for chunk := range slices.Chunk(puts, state.MaxOps/2) {
		if _, err := s.Store.KV().Commit(ctx, state.Txn{Put: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) cluster(ctx context.Context) (c api.Cluster, err error) {
	err = s.Store.View(ctx, func(tx *state.Tx) error {
		c, _, err = state.TheCluster.Get(tx, "cluster")
		return err
	})
	return c, err
}

func names(awaiting map[string]string) string {
	if len(awaiting) == 0 {
		return "nobody"
	}
	return strings.Join(slices.Sorted(maps.Keys(awaiting)), ", ")
}

// Report takes what a node says that its pools hold. With the last part of the
// last node the cluster goes on; a node that comes later finds its place.
func (s *Service) Report(ctx context.Context, caller auth.Identity, r ledger.Report) error {
	const op = "report pools"
	c, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	switch {
	case caller.Kind != auth.NodeKind:
		return &api.Error{Kind: api.Denied, Op: op, Object: caller.String(), Reason: "it is not a node"}
	case r.Incarnation != c.Incarnation:
		return &api.Error{Kind: api.Conflict, Op: op, Object: caller.Name, Reason: fmt.Sprintf("it reports to incarnation %d, this is %d", r.Incarnation, c.Incarnation)}
	case c.Recovery != nil && c.Recovery.Restoring:
		return &api.Error{Kind: api.Unavailable, Op: op, Object: caller.Name, Reason: "the backup's records are being written", Next: "it is tried again"}
	}
	for i := range r.Copies {
		r.Copies[i].Node = caller.Name // a node speaks for its own pools only
		if err := checkCopy(r.Copies[i]); err != nil {
			return err
		}
	}
	if err := s.keep(ctx, caller.Name, r); err != nil {
		return err
	}
	if !r.Last {
		return nil
	}
	if err := s.admit(ctx, caller, r); err != nil {
		return err
	}
	if c.Recovery == nil {
		return s.late(ctx, c, caller.Name, len(r.Gone) == 0)
	}
	return s.arrived(ctx, caller.Name, r.Gone)
}

// checkCopy refuses what no pool of an honest node remembers: a report decides
// about owners.
func checkCopy(c ledger.Copy) error {
	const mostMoves = 1 << 40
	err := errors.Join(api.CheckVolumeName(c.Volume.Name), api.CheckBranchName(c.Branch), api.CheckPoolName(c.Pool), api.CheckLabels(c.Volume.Labels))
	switch id, bad := hex.DecodeString(c.Volume.ID); {
	case bad != nil || len(id) != 16:
		err = errors.Join(err, fmt.Errorf("%q is no volume's id", c.Volume.ID))
	case c.Epoch == 0 || c.Epoch > mostMoves:
		err = errors.Join(err, fmt.Errorf("no head has epoch %d", c.Epoch))
	case c.To != "":
		err = errors.Join(err, api.CheckNodeName(c.To))
	}
	if err != nil {
		return &api.Error{Kind: api.Invalid, Op: "report pools", Object: c.Node + ": " + c.Volume.Name, Err: err}
	}
	return nil
}

// keep keeps a part until all have reported.
func (s *Service) keep(ctx context.Context, node string, r ledger.Report) error {
	var old []string
	if r.Part == 0 {
		if _, err := state.Reports.All(ctx, s.Store, node+"/", func(id string, _ json.RawMessage, _ int64) error {
			old = append(old, id)
			return nil
		}); err != nil {
			return err
		}
	}
	text, err := json.Marshal(r.Copies)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s/%06d", node, r.Part)
	for chunk := range slices.Chunk(old, state.MaxOps/2) {
		if err := s.Store.Update(ctx, func(tx *state.Tx) error {
			for _, o := range chunk {
				state.Reports.Delete(tx, o)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return s.Store.Update(ctx, func(tx *state.Tx) error { return state.Reports.Put(tx, id, text) })
}

// admit makes sure that the node is recorded: it may have joined after the
// backup, and its certificate may be newer.
func (s *Service) admit(ctx context.Context, caller auth.Identity, r ledger.Report) error {
	if s.Access != nil {
		if err := s.Access.Add(ctx, caller.Name); err != nil {
			return err
		}
	}
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		n, _, err := state.Nodes.Get(tx, caller.Name)
		switch {
		case api.Is(err, api.NotFound):
			n = r.Node
			n.Name, n.Control, n.Member, n.Status, n.Incarnation = caller.Name, s.Access == nil && caller.Control, api.MemberNone, api.NodeStatus{}, 0
			if err := auth.CheckAddress(n.Address); err != nil {
				return err
			}
		case err != nil:
			return err
		case n.Key == caller.KeyHash || caller.KeyHash == "":
			return nil
		}
		n.Key, n.Version = caller.KeyHash, n.Version+1
		return errors.Join(state.Nodes.Put(tx, n.Name, n), s.Issued(tx, n.Name, n.Key))
	})
}

// arrived crosses a node off the list of those that are waited for.
func (s *Service) arrived(ctx context.Context, node string, gone map[string]string) error {
	err := s.Store.Update(ctx, func(tx *state.Tx) error {
		c, _, err := state.TheCluster.Get(tx, "cluster")
		if err != nil || c.Recovery == nil {
			return err
		}
		r := *c.Recovery
		r.Awaiting = maps.Clone(r.Awaiting)
		if len(gone) > 0 {
			var list []string
			for _, pool := range slices.Sorted(maps.Keys(gone)) {
				list = append(list, "pool "+pool+", which is not there: "+gone[pool])
			}
			if r.Awaiting == nil {
				r.Awaiting = map[string]string{}
			}
			r.Awaiting[node] = strings.Join(list, "; ")
		} else {
			delete(r.Awaiting, node)
			n, _, err := state.Nodes.Get(tx, node)
			if err != nil {
				return err
			}
			if n.Incarnation != c.Incarnation {
				n.Incarnation, n.Version = c.Incarnation, n.Version+1
				if err := state.Nodes.Put(tx, node, n); err != nil {
					return err
				}
			}
		}
		c.Recovery = &r
		return state.TheCluster.Put(tx, "cluster", c)
	})
	if err != nil {
		return err
	}
	s.Tell(api.Event{Type: "recovery.reported", Object: node, Message: "node " + node + " has reported what its pools hold"})
	return s.Continue(ctx)
}

// GiveUp no longer waits for a node: what it holds stays unknown until it
// comes back, and the others go on.
func (s *Service) GiveUp(ctx context.Context, node string) error {
	err := s.Store.Update(ctx, func(tx *state.Tx) error {
		c, _, err := state.TheCluster.Get(tx, "cluster")
		if err != nil {
			return err
		}
		if c.Recovery == nil {
			return &api.Error{Kind: api.Exists, Op: "recover cluster", Object: c.Name, Reason: "no recovery is going on"}
		}
		if _, waits := c.Recovery.Awaiting[node]; !waits {
			return &api.Error{Kind: api.NotFound, Op: "recover cluster", Object: node, Reason: "it is not waited for; waiting for " + names(c.Recovery.Awaiting)}
		}
		r := *c.Recovery
		r.Awaiting = maps.Clone(r.Awaiting)
		delete(r.Awaiting, node)
		c.Recovery = &r
		return state.TheCluster.Put(tx, "cluster", c)
	})
	if err != nil {
		return err
	}
	s.Tell(api.Event{Type: "recovery.without", Level: "warning", Object: node, Message: "the recovery goes on without node " + node + "; its volumes stay unknown until it comes back"})
	return s.Continue(ctx)
}

// Continue ends the recovery when nobody is waited for any more. The leader
// calls it now and then, so that a crash at the end of it loses nothing.
func (s *Service) Continue(ctx context.Context) error {
	c, err := s.cluster(ctx)
	if err != nil || c.Recovery == nil || c.Recovery.Restoring || len(c.Recovery.Awaiting) > 0 {
		return err
	}
	round := Round{Known: map[string]api.Volume{}, Reported: map[string]bool{}, Now: s.Now().UTC(), Grace: s.Grace}
	if _, err := state.Nodes.All(ctx, s.Store, "", func(name string, n api.Node, _ int64) error {
		round.Reported[name] = n.Incarnation == c.Incarnation
		return nil
	}); err != nil {
		return err
	}
	if _, err := state.Volumes.All(ctx, s.Store, "", func(id string, v api.Volume, _ int64) error {
		round.Known[id] = v
		return nil
	}); err != nil {
		return err
	}
	parts, err := s.reported(ctx, "", &round)
	if err != nil {
		return err
	}
	if err := s.carryOut(ctx, round); err != nil {
		return err
	}
	over := false
	err = s.Store.Update(ctx, func(tx *state.Tx) error {
		now, _, err := state.TheCluster.Get(tx, "cluster")
		over = false
		if err != nil || now.Recovery == nil || len(now.Recovery.Awaiting) > 0 {
			return err
		}
		now.Recovery, over = nil, true
		return state.TheCluster.Put(tx, "cluster", now)
	})
	if err != nil || !over {
		return err
	}
	s.Tell(api.Event{Type: "cluster.recovered", Object: c.Name, Message: fmt.Sprintf("cluster %s is recovered, incarnation %d; volumes can be used again", c.Name, c.Incarnation)})
	return s.forget(ctx, parts)
}

// reported adds the kept reports of all nodes, or of one, to a round.
func (s *Service) reported(ctx context.Context, prefix string, round *Round) (parts []string, err error) {
	_, err = state.Reports.All(ctx, s.Store, prefix, func(id string, text json.RawMessage, _ int64) error {
		var copies []ledger.Copy
		if err := json.Unmarshal(text, &copies); err != nil {
			return err
		}
		parts, round.Copies = append(parts, id), append(round.Copies, copies...)
		return nil
	})
	return parts, err
}

func (s *Service) forget(ctx context.Context, parts []string) error {
	for chunk := range slices.Chunk(parts, state.MaxOps) {
		if err := s.Store.Update(ctx, func(tx *state.Tx) error {
			for _, id := range chunk {
				state.Reports.Delete(tx, id)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) carryOut(ctx context.Context, round Round) error {
	list, found := round.Decide()
	for _, v := range list {
		if err := s.Ledger.Replace(ctx, v); err != nil {
			return err
		}
	}
	for _, f := range found {
		s.Tell(eventOf(f))
	}
	return nil
}

// eventOf is how people are told of a finding.
func eventOf(f ledger.Finding) api.Event {
	object := f.Volume
	if f.Branch != "" && f.Branch != api.MainBranch {
		object += "@" + f.Branch
	}
	level := "warning"
	switch f.Kind {
	case ledger.FoundSame, ledger.FoundMoved, ledger.FoundCreated, ledger.FoundReturned, ledger.FoundDeleted:
		level = "info"
	case ledger.FoundMissing:
		level = "error"
	}
	return api.Event{Type: "volume.reconciled", Level: level, Object: object, Message: "volume " + object + ": " + string(f.Kind) + ": " + f.Text, Data: map[string]string{"finding": string(f.Kind), "id": f.ID, "node": f.Node}}
}

// late settles what a node holds that reports after the others have gone on.
func (s *Service) late(ctx context.Context, c api.Cluster, node string, complete bool) error {
	round := Round{Known: map[string]api.Volume{}, Reported: map[string]bool{}, Settled: map[string]bool{}, Names: map[string]string{}, Now: s.Now().UTC(), Grace: s.Grace}
	first := true
	if _, err := state.Nodes.All(ctx, s.Store, "", func(name string, n api.Node, _ int64) error {
		here := n.Incarnation == c.Incarnation
		if name == node {
			first = !here
			round.Reported[name] = complete
			return nil
		}
		round.Reported[name], round.Settled[name] = here, here
		return nil
	}); err != nil {
		return err
	}
	parts, err := s.reported(ctx, node+"/", &round)
	if err != nil {
		return err
	}
	held := map[string]bool{}
	for _, cp := range round.Copies {
		held[cp.Volume.ID] = true
	}
	if first || len(round.Copies) > 0 {
		if err := s.concerned(ctx, node, first, held, &round); err != nil {
			return err
		}
		if err := s.carryOut(ctx, round); err != nil {
			return err
		}
	}
	if err := s.Store.Update(ctx, func(tx *state.Tx) error {
		n, _, err := state.Nodes.Get(tx, node)
		if err != nil || n.Incarnation == c.Incarnation {
			return err
		}
		n.Incarnation, n.Version = c.Incarnation, n.Version+1
		return state.Nodes.Put(tx, node, n)
	}); err != nil {
		return err
	}
	return s.forget(ctx, parts)
}

// concerned adds the records of volumes that a late node holds something of,
// and, when it reports for the first time, of those that it should.
func (s *Service) concerned(ctx context.Context, node string, first bool, held map[string]bool, round *Round) error {
	if _, err := state.Names.All(ctx, s.Store, "", func(name, id string, _ int64) error {
		round.Names[name] = id
		return nil
	}); err != nil {
		return err
	}
	_, err := state.Volumes.All(ctx, s.Store, "", func(id string, v api.Volume, _ int64) error {
		owns := false
		for _, h := range v.Heads {
			owns = owns || h.Node == node
		}
		if held[id] || (first && owns) {
			round.Known[id] = v
		}
		return nil
	})
	return err
}
