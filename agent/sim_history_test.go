package agent_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// contentLine is what a head of an epoch has to hold: everything that was
// acknowledged to those who wrote it.
type contentLine struct {
	epoch   uint64
	records map[string]string
}

// worked counts the commands of history that worked.
var worked = struct {
	sync.Mutex
	n map[string]int // guarded by the mutex
}{n: map[string]int{}}

// madeCommit is what a commit holds, for ever.
type madeCommit struct {
	volume  string
	content map[string]string
}

// begun is a head's content at the beginning of an epoch that no command of
// history began: it moved. mu is held.
func (w *world) begun(branch string, v api.Volume, h api.Head) contentLine {
	line := w.lines[v.ID+"@"+branch]
	if line.records == nil {
		line.records = map[string]string{}
	}
	line.epoch = h.Epoch
	return line
}

// missingRecords gives a record that is not there, "" if all are.
func missingRecords(want, have map[string]string) string {
	for _, r := range slices.Sorted(maps.Keys(want)) {
		if _, there := have[r]; !there {
			return r
		}
	}
	return ""
}

// told takes note of what a change of history means for heads' content, at
// the moment it takes effect.
func (w *world) told(v api.Volume, c ledger.Change) {
	branch := ""
	switch {
	case c.Reset != nil:
		branch = c.Reset.Branch
	case c.NewBranch != nil:
		branch = c.NewBranch.Branch
	case c.RestoreBranch != nil:
		branch = c.RestoreBranch.Branch
	case c.RenameBranch != nil:
		branch = c.RenameBranch.To
	default:
		return
	}
	h := v.Heads[branch]
	w.mu.Lock()
	defer w.mu.Unlock()
	key := v.ID + "@" + branch
	if w.lines[key].epoch >= h.Epoch {
		return
	}
	seed, known := w.commits[h.Seed]
	if !known {
		w.broken = append(w.broken, fmt.Sprintf("%s begins as %s, of which no commit is known", key, h.Seed))
	}
	w.lines[key] = contentLine{h.Epoch, maps.Clone(seed.content)}
	if w.lines[key].records == nil {
		w.lines[key] = contentLine{h.Epoch, map[string]string{}}
	}
}

// snapped compares a commit with what was acknowledged before it was made.
func (p *watched) snapped(key storage.HeadKey, id string, note []byte, before map[string]string) {
	w := p.l.h.w
	if repo.ReadNote(note).Commit == nil {
		return
	}
	files, err := p.l.h.pools[p.pool].SnapshotFiles(key.Volume, id)
	if err != nil {
		w.fail("commit %s of %s is not there after it was made: %v", id, key, err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := w.commits[id]; again {
		return
	}
	if lost := missingRecords(before, files); lost != "" {
		w.broken = append(w.broken, fmt.Sprintf("commit %s of %s lacks record %s, which was acknowledged before", id, key, lost))
	}
	w.commits[id] = madeCommit{key.Volume, files}
}

// kept looks, before a head goes, that commits or another head hold all it has.
func (p *watched) kept(key storage.HeadKey, epoch uint64) {
	w := p.l.h.w
	v, h, known := p.truth(key.Volume, key.Branch)
	if v.ID == "" || v.Deleted != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, reset := w.commits[h.Seed]; known && !reset {
		return // it moved: the snapshot that it moved by holds it
	}
	files, err := p.l.h.pools[p.pool].Files(key)
	if err != nil {
		return
	}
	for _, c := range w.commits {
		if c.volume == key.Volume && missingRecords(files, c.content) == "" {
			return
		}
	}
	w.broken = append(w.broken, fmt.Sprintf("%s: head %s of epoch %d is destroyed, and no commit holds what is in it", p.l.h.name, key, epoch))
}

// owner gives the running agent of a branch's owner; branch "" is the current one.
func (s *script) owner(name, branch string) (*life, api.Volume, string) {
	v, _ := s.w.record(s.volumes[name])
	if branch == "" {
		branch = v.Branch
	}
	h, there := v.Heads[branch]
	if !there {
		return nil, v, branch
	}
	return s.w.hosts[h.Node].current(), v, branch
}

// branchOf is some branch of a volume.
func (s *script) branchOf(name string) string {
	v, _ := s.w.record(s.volumes[name])
	list := slices.Sorted(maps.Keys(v.Heads))
	if len(list) == 0 {
		return api.MainBranch
	}
	return list[s.w.rand(len(list))]
}

// commitOf is some commit that a volume's names lead to directly.
func (s *script) commitOf(v api.Volume) string {
	var list []string
	for _, h := range v.Heads {
		if h.Commit != "" {
			list = append(list, h.Commit)
		}
	}
	for _, id := range v.Tags {
		list = append(list, id)
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return list[s.w.rand(len(list))]
}

// firstCommits gives every volume a history to begin with.
func (s *script) firstCommits() {
	ctx, cancel := s.ctx()
	defer cancel()
	for _, name := range s.names {
		l, v, branch := s.owner(name, "")
		if _, err := l.a.Commit(ctx, v.ID, api.MakeCommit{Branch: branch, Message: "first"}, "user"); err != nil {
			s.w.fail("the first commit of %s: %v", name, err)
		}
		for _, b := range []string{"b0", "b1"}[:s.w.rand(3)] {
			if _, err := l.a.Branch(ctx, v.ID, api.MakeBranch{Name: b}, "user"); err != nil {
				s.w.fail("branch %s of %s: %v", b, name, err)
			}
		}
	}
}

// historyStep is what a user does with a volume's history.
func (s *script) historyStep() {
	w, name := s.w, s.some()
	branch := s.branchOf(name)
	l, v, branch := s.owner(name, branch)
	if l == nil {
		return
	}
	ctx, cancel := s.ctx()
	defer cancel()
	var err error
	what := ""
	switch n := w.rand(100); {
	case n < 30:
		what = "commit"
		_, err = l.a.Commit(ctx, v.ID, api.MakeCommit{Branch: branch, Message: "m", Consistency: []api.Consistency{"", api.ConsistencyPaused}[w.rand(2)]}, "user")
	case n < 36:
		what = "commit all"
		err = s.commitAll(ctx, l)
	case n < 50:
		what = "branch"
		_, err = l.a.Branch(ctx, v.ID, api.MakeBranch{Name: fmt.Sprintf("b%d", w.rand(3)), From: s.commitOf(v)}, "user")
	case n < 62:
		what = "checkout " + branch
		if c, _, _ := s.owner(name, ""); c != nil {
			_, err = c.a.Checkout(ctx, v.ID, branch, "user")
		}
	case n < 74:
		what = "reset"
		_, err = l.a.Reset(ctx, v.ID, api.ResetBranch{Branch: branch, To: s.commitOf(v)}, "user")
	case n < 80:
		what = "stash"
		_, err = l.a.Stash(ctx, v.ID, api.StashChanges{Branch: branch, Pop: w.rand(2) == 0}, "user")
	case n < 85:
		what = "undo"
		_, err = l.a.Undo(ctx, v.ID, branch, "user")
	case n < 92:
		what = "drop"
		branch = s.idle(v, branch)
		_, err = l.a.DropBranch(ctx, v.ID, branch, "user")
	case n < 94:
		what = "restore"
		err = fmt.Errorf("nothing was deleted")
		for _, d := range v.Dropped {
			if there := w.hosts[d.Node].current(); there != nil {
				_, err = there.a.RestoreBranch(ctx, v.ID, d.Branch, "user")
			}
		}
	case n < 97:
		what = "rename"
		branch = s.idle(v, branch)
		_, err = l.a.RenameBranch(ctx, v.ID, branch, fmt.Sprintf("b%d", w.rand(3)), "user")
	default:
		what = "tag"
		_, err = l.a.Tag(ctx, v.ID, api.MakeTag{Name: fmt.Sprintf("t%d", w.rand(3)), At: s.commitOf(v), Force: true})
	}
	if err == nil {
		w.did(what)
	}
	w.logf("user: %s of %s@%s on %s: %v", what, name, branch, l.h.name, err)
}

// did counts what worked, over all seeds: a simulation in which nothing works
// finds nothing.
func (w *world) did(what string) {
	what, _, _ = strings.Cut(what, " ")
	worked.Lock()
	defer worked.Unlock()
	worked.n[what]++
}

// idle is a branch that is not the current one, on the node of branch.
func (s *script) idle(v api.Volume, branch string) string {
	for _, b := range slices.Sorted(maps.Keys(v.Heads)) {
		if b != v.Branch && v.Heads[b].Node == v.Heads[branch].Node {
			return b
		}
	}
	return branch
}

func (s *script) commitAll(ctx context.Context, l *life) error {
	var heads []peer.Held
	for _, name := range s.names {
		v, _ := s.w.record(s.volumes[name])
		h := v.Heads[v.Branch]
		heads = append(heads, peer.Held{Node: h.Node, Volume: v.ID, Name: name, Branch: v.Branch})
	}
	_, err := l.a.CommitAll(ctx, heads, api.MakeCommit{Message: "all"}, "user")
	return err
}

// side is a container that names a branch, for a while.
func (s *script) side() {
	name := s.some()
	branch := s.branchOf(name)
	l, _, _ := s.owner(name, branch)
	if l == nil {
		return
	}
	docker := l.h.docker
	id, err := docker.Add(container.Container{
		Name: "tool-" + s.w.newID()[20:], Image: "db", ImageID: "image",
		Mounts: []container.Mount{{Volume: name + "@" + branch, Driver: agent.Driver, Target: "/data"}},
	})
	if err != nil {
		return
	}
	err = docker.start(context.Background(), id)
	s.w.logf("user: a container with %s@%s on %s: %v", name, branch, l.h.name, err)
	if err == nil {
		time.Sleep(time.Duration(s.w.rand(9000)) * time.Millisecond)
		_ = docker.stop(context.Background(), id)
	}
	_ = docker.Remove(context.Background(), id)
}

// checkHistory looks that every name of a volume leads to a commit that its
// owner holds, whole and as it was made.
func (s *script) checkHistory(name string) {
	w := s.w
	v, _ := w.record(s.volumes[name])
	for branch, h := range v.Heads {
		host := w.hosts[h.Node]
		l := host.current()
		key := storage.HeadKey{Volume: v.ID, Branch: branch}
		// Both of one instant: whoever writes a record has the lock until it is noted.
		w.mu.Lock()
		files, err := host.pools[h.Pool].Files(key)
		line := w.lines[key.String()]
		line.records = maps.Clone(line.records)
		w.mu.Unlock()
		if err != nil {
			w.fail("%s: the head of %s@%s is not in pool %s: %v", h.Node, name, branch, h.Pool, err)
			continue
		}
		w.mu.Lock()
		if lost := missingRecords(line.records, files); lost != "" && line.epoch <= h.Epoch {
			w.broken = append(w.broken, fmt.Sprintf("record %s of %s is lost", lost, key))
		}
		w.mu.Unlock()
		log, err := l.a.RefLog(context.Background(), v.ID, branch)
		if err != nil {
			w.fail("the reflog of %s@%s cannot be read: %v", name, branch, err)
			continue
		}
		if n := len(log); h.Tip != nil && (n == 0 || log[n-1].To != h.Commit) {
			w.fail("the reflog of %s@%s ends elsewhere than its tip %s", name, branch, h.Commit)
		}
		s.holds(h.Node, h.Pool, v.ID, "tip of "+name+"@"+branch, h.Commit)
		for _, e := range log {
			s.holds(h.Node, h.Pool, v.ID, "reflog of "+name+"@"+branch, e.To)
			s.holds(h.Node, h.Pool, v.ID, "stash of "+name+"@"+branch, e.Kept)
		}
		for _, n := range w.names() {
			if other := w.hosts[n]; n != h.Node {
				for pool, p := range other.pools {
					if _, err := p.Files(key); err == nil {
						w.fail("%s: a copy of %s@%s is left in pool %s", n, name, branch, pool)
					}
				}
			}
		}
		if at := l.a.Health()[key.String()]; at[0] != "" || at[1] != "" {
			w.fail("%s: %s@%s has alarm %q, waits for %q", h.Node, name, branch, at[0], at[1])
		}
	}
	for _, d := range v.Dropped {
		s.holds(d.Node, d.Pool, v.ID, "deleted branch "+d.Branch, d.Commit)
		s.holds(d.Node, d.Pool, v.ID, "stash of deleted branch "+d.Branch, d.Kept)
	}
	for tag, id := range v.Tags {
		held := false
		for _, n := range w.names() {
			for _, p := range w.hosts[n].pools {
				_, err := p.SnapshotFiles(v.ID, id)
				held = held || err == nil
			}
		}
		if !held {
			w.fail("tag %s of %s names %s, which nobody holds", tag, name, id)
		}
	}
	for _, n := range w.names() {
		left, err := w.hosts[n].current().a.Leftovers()
		if err != nil {
			continue
		}
		for _, k := range append(left.Works, left.Held...) {
			if strings.HasPrefix(k, v.ID) || strings.Contains(k, " ") {
				w.fail("%s: %s is left", n, k)
			}
		}
		for branch := range strays(w.hosts[n], v) {
			w.fail("%s: a copy of branch %s is left, which %s does not have", n, branch, name)
		}
	}
}

// strays are heads of branches that the record does not have.
func strays(h *host, v api.Volume) map[string]bool {
	out := map[string]bool{}
	for _, p := range h.pools {
		for _, k := range p.Keys() {
			if _, there := v.Heads[k.Branch]; k.Volume == v.ID && !there {
				out[k.Branch] = true
			}
		}
	}
	return out
}

func (s *script) holds(node, pool, volume, what, id string) {
	if id == "" {
		return
	}
	files, err := s.w.hosts[node].pools[pool].SnapshotFiles(volume, id)
	if err != nil {
		s.w.fail("%s: the %s is %s, which pool %s does not hold: %v", node, what, id, pool, err)
		return
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if made, known := s.w.commits[id]; !known || !maps.Equal(made.content, files) {
		s.w.broken = append(s.w.broken, fmt.Sprintf("%s: the %s, commit %s, is not as it was made (known: %v)", node, what, id, known))
	}
}

// lastCommands are what a user does when everything is quiet: all of it works.
func (s *script) lastCommands(name string) {
	w := s.w
	ctx := context.Background()
	l, v, branch := s.owner(name, "")
	c, err := l.a.Commit(ctx, v.ID, api.MakeCommit{Branch: branch, Message: "in the end"}, "user")
	if err != nil {
		w.fail("after everything was healed, %s cannot be committed: %v", name, err)
		return
	}
	time.Sleep(20 * time.Second)
	m, err := l.a.Reset(ctx, v.ID, api.ResetBranch{Branch: branch, To: c.Commit.ID}, "user")
	if err != nil {
		w.fail("after everything was healed, %s cannot be reset: %v", name, err)
		return
	}
	time.Sleep(10 * time.Second)
	if _, err := l.a.Undo(ctx, v.ID, branch, "user"); err != nil {
		w.fail("after everything was healed, the reset of %s (kept %q) cannot be undone: %v", name, m.Kept, err)
	}
	time.Sleep(10 * time.Second)
}
