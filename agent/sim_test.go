package agent_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/agent"
	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/storage"
)

var (
	oneSeed = flag.Uint64("seed", 0, "run the simulation with this seed only")
	seeds   = flag.Int("seeds", 300, "how many seeds the simulation runs")
	from    = flag.Uint64("from", 1, "the first of them")
)

// TestSimulation runs clusters of agents through random faults. A failure
// names its seed: go test ./agent -run TestSimulation -seed N.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		simulate(t, *oneSeed)
		return
	}
	simulateAll(t, *from, *seeds)
}

// simulateAll runs many seeds, some at a time.
func simulateAll(t *testing.T, from uint64, seeds int) {
	for batch := range 4 {
		t.Run(fmt.Sprintf("batch%d", batch), func(t *testing.T) {
			t.Parallel()
			for i := batch; i < seeds; i += 4 {
				t.Run(fmt.Sprintf("seed=%d", from+uint64(i)), func(t *testing.T) { simulate(t, from+uint64(i)) })
			}
		})
	}
}

func simulate(t *testing.T, seed uint64) { simulateWith(t, seed, false) }

func simulateWith(t *testing.T, seed uint64, history bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, 3+int(seed%3), func(host, pool string) bool {
			return seed%2 == 0 && (host == "b") == (pool == "default")
		})
		defer w.end()
		w.withHistory = history
		s := &script{w: w, volumes: map[string]string{}}
		s.setUp()
		if history {
			s.firstCommits()
		}
		for range 12 + w.rand(20) {
			s.step()
			time.Sleep(time.Duration(w.rand(5000)) * time.Millisecond)
		}
		w.heal()
		s.finish()
		w.report(seed)
	})
}

// TestHistorySimulation is TestSimulation with users who commit, branch, reset
// and check out meanwhile.
func TestHistorySimulation(t *testing.T) {
	if *oneSeed != 0 {
		simulateWith(t, *oneSeed, true)
		return
	}
	n := max(1, *seeds/4)
	t.Cleanup(func() {
		worked.Lock()
		defer worked.Unlock()
		t.Logf("what worked: %v", worked.n)
		for _, what := range []string{"commit", "branch", "checkout", "reset", "stash", "undo", "drop", "tag"} {
			if n >= 60 && worked.n[what] == 0 {
				t.Errorf("%s never worked", what)
			}
		}
	})
	simulateHistories(t, *from, n)
}

func simulateHistories(t *testing.T, from uint64, seeds int) {
	for batch := range 4 {
		t.Run(fmt.Sprintf("batch%d", batch), func(t *testing.T) {
			t.Parallel()
			for i := batch; i < seeds; i += 4 {
				t.Run(fmt.Sprintf("seed=%d", from+uint64(i)), func(t *testing.T) { simulateWith(t, from+uint64(i), true) })
			}
		})
	}
}

// end stops all agents and containers.
func (w *world) end() {
	for _, n := range w.names() {
		h := w.hosts[n]
		h.docker.powerOff()
		l := h.current()
		h.kill()
		if l != nil {
			<-l.over
		}
	}
	time.Sleep(3 * time.Minute) // calls of the engine that still wait
}

// unsettled notes that a container stands where it should run, or a move was
// refused for one that still stands: data is safe, and a person has to start or
// remove a container. Which interleavings of a dying engine and a dying agent
// still lead there is not known for all; how many do is bounded.
func (w *world) unsettled(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = append(w.late, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// lateness counts the seeds that ran and those that ended unsettled, without
// and with history.
var lateness struct {
	sync.Mutex
	ran, late [2]int // guarded by the mutex
}

// tooLate reports whether too many seeds ended unsettled: with history more than
// two and one in fifty, without it more than one.
func (w *world) tooLate() bool {
	lateness.Lock()
	defer lateness.Unlock()
	kind, allowed := 0, 1
	if w.withHistory {
		kind = 1
	}
	lateness.ran[kind]++
	if len(w.late) == 0 {
		return false
	}
	lateness.late[kind]++
	if w.withHistory {
		allowed = 2 + lateness.ran[kind]/50
	}
	return lateness.late[kind] > allowed
}

func (w *world) report(seed uint64) {
	tooLate := w.tooLate()
	w.mu.Lock()
	defer w.mu.Unlock()
	if tooLate {
		w.broken = append(w.broken, w.late...)
	}
	if len(w.broken) == 0 {
		if len(w.late) > 0 {
			w.t.Logf("seed %d ended unsettled: %s", seed, strings.Join(w.late, "; "))
		}
		return
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("drover-sim-seed-%d.log", seed))
	_ = os.WriteFile(path, []byte(strings.Join(append(w.history, w.broken...), "\n")+"\n"), 0o600)
	w.t.Errorf("seed %d (history in %s):\n%s", seed, path, strings.Join(w.broken, "\n"))
}

// heal ends all faults and brings every agent back.
func (w *world) heal() {
	w.logf("healed")
	w.mu.Lock()
	w.cut, w.faults.at, w.wire, w.quiet = map[string]bool{}, nil, 0, true
	w.mu.Unlock()
	for _, n := range w.names() {
		h := w.hosts[n]
		for _, p := range h.pools {
			p.SetState(api.PoolReady)
			p.SetCapacity(1 << 30)
		}
		h.docker.SetDown(false)
		h.start()
	}
}

// script is what users and fate do.
type script struct {
	w       *world
	volumes map[string]string // name -> id
	names   []string
}

func (s *script) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

// setUp makes two volumes with a database each.
func (s *script) setUp() {
	for i, name := range []string{"alpha", "beta"} {
		s.setUpOne(name, s.w.names()[i], []string{"default", "second"}[s.w.rand(2)])
	}
	time.Sleep(3 * time.Second)
}

func (s *script) setUpOne(name, host, pool string) {
	time.Sleep(time.Second)
	h := s.w.hosts[host]
	ctx, cancel := s.ctx()
	defer cancel()
	v, err := h.current().a.NewVolume(ctx, api.CreateVolume{Name: name, Pool: pool})
	if err != nil {
		s.w.fail("creating %s: %v", name, err)
		return
	}
	s.volumes[name], s.names = v.ID, append(s.names, name)
	for _, n := range s.w.names() {
		s.w.hosts[n].docker.AddImage("image")
	}
	id, err := h.docker.Add(container.Container{
		Name: "db-" + name, Image: "db", ImageID: "image", Restart: "always",
		Mounts: []container.Mount{{Volume: name, Driver: agent.Driver, Target: "/data"}},
	})
	if err == nil {
		err = h.docker.start(ctx, id)
	}
	if err != nil {
		s.w.fail("starting db-%s: %v", name, err)
	}
}

func (s *script) some() string { return s.names[s.w.rand(len(s.names))] }

func (s *script) host() *host { return s.w.hosts[s.w.names()[s.w.rand(len(s.w.hosts))]] }

func (w *world) record(id string) (api.Volume, api.Head) {
	v, err := w.truth.Volume(context.Background(), id)
	if err != nil {
		return v, api.Head{}
	}
	return v, v.Heads[v.Branch]
}

// move asks the owner for a move as the API does.
func (s *script) move(name, to, pool string, policy api.UsersPolicy) error {
	_, h := s.w.record(s.volumes[name])
	l := s.w.hosts[h.Node].current()
	if l == nil {
		return fmt.Errorf("the owner's agent does not run")
	}
	ctx, cancel := s.ctx()
	defer cancel()
	_, err := l.a.StartMove(ctx, s.volumes[name], api.StartMove{To: to, Pool: pool, Options: api.MoveOptions{Users: policy}}, "user")
	s.w.logf("user: move %s from %s to %s/%s (%s): %v", name, h.Node, to, pool, policy, err)
	return err
}

func (s *script) step() {
	w := s.w
	if w.withHistory && w.rand(2) == 0 {
		if w.rand(8) == 0 {
			go s.side()
			return
		}
		s.historyStep()
		return
	}
	switch n := w.rand(100); {
	case n < 30:
		policy := api.UsersMove
		if w.rand(8) == 0 {
			policy = api.UsersRefuse
		}
		_ = s.move(s.some(), s.host().name, []string{"default", "second"}[w.rand(2)], policy)
	case n < 36:
		name := s.some()
		v, _ := w.record(s.volumes[name])
		_, err := w.truth.CancelMove(context.Background(), s.volumes[name], v.Branch, "")
		w.logf("user: cancel %s: %v", name, err)
	case n < 46:
		h := s.host()
		w.logf("fate: agent of %s is killed", h.name)
		h.kill()
	case n < 56:
		h := s.host()
		w.logf("fate: agent of %s starts if it does not run", h.name)
		h.start()
	case n < 62:
		s.armCrash()
	case n < 68:
		s.armError()
	case n < 73:
		a, b := s.host().name, s.host().name
		if a != b {
			w.logf("fate: %s and %s are cut from each other", a, b)
			w.setCut(a, b, true)
		}
	case n < 77:
		a := s.host().name
		w.logf("fate: %s is cut from the store", a)
		w.setCut(a, "store", true)
	case n < 83:
		w.logf("fate: the network is whole")
		w.mu.Lock()
		w.cut = map[string]bool{}
		w.mu.Unlock()
	case n < 86:
		s.host().reboot()
	case n < 90:
		go s.tool(s.host(), s.some())
	case n < 93:
		h := s.host()
		pool := []string{"default", "second"}[w.rand(2)]
		was := []api.PoolState{api.PoolFull, api.PoolReadOnly, api.PoolGone}[w.rand(3)]
		w.logf("fate: pool %s of %s is %s for a while", pool, h.name, was)
		h.pools[pool].SetState(was)
		go func() {
			time.Sleep(time.Duration(1+w.rand(30)) * time.Second)
			h.pools[pool].SetState(api.PoolReady)
		}()
	case n < 96:
		w.mu.Lock()
		w.wire = int64(w.rng.IntN(6000))
		w.mu.Unlock()
		w.logf("fate: connections break after some bytes")
	case n < 98:
		w.kv.Compact()
	default:
		h := s.host()
		w.logf("fate: docker of %s does not answer for a while", h.name)
		h.docker.SetDown(true)
		go func() { time.Sleep(time.Duration(w.rand(8000)) * time.Millisecond); h.docker.SetDown(false) }()
	}
}

// armCrash ends some agent at one of the next calls of some port.
func (s *script) armCrash() {
	after, in, who := s.w.rand(2) == 0, 1+s.w.rand(12), ""
	if s.w.rand(3) == 0 {
		who = s.host().name
	}
	s.arm(func(n int, call string, isAfter bool) (fault, bool) {
		if isAfter != after {
			return fault{}, false
		}
		if in--; in > 0 {
			return fault{}, false
		}
		victim := who
		if victim == "" {
			victim, _, _ = strings.Cut(call, " ")
		}
		return fault{crash: victim}, true
	})
}

// armError makes one of the next calls fail, before or after its effect.
func (s *script) armError() {
	after, in := s.w.rand(2) == 0, 1+s.w.rand(12)
	s.arm(func(_ int, _ string, isAfter bool) (fault, bool) {
		if isAfter != after {
			return fault{}, false
		}
		if in--; in > 0 {
			return fault{}, false
		}
		return fault{kind: api.Unavailable}, true
	})
}

func (s *script) arm(f func(n int, call string, after bool) (fault, bool)) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.faults.at = func(n int, call string, after bool) fault {
		out, over := f(n, call, after)
		if over {
			s.w.faults.at = nil
		}
		return out
	}
}

// tool is "docker run --rm" of a short-lived container on some host.
func (s *script) tool(h *host, name string) {
	id, err := h.docker.Add(container.Container{
		Name: "tool-" + s.w.newID()[20:], Image: "db", ImageID: "image",
		Mounts: []container.Mount{{Volume: name, Driver: agent.Driver, Target: "/data"}},
	})
	if err != nil {
		return
	}
	err = h.docker.start(context.Background(), id)
	s.w.logf("user: docker run of a tool with %s on %s: %v", name, h.name, err)
	if err == nil {
		time.Sleep(time.Duration(s.w.rand(4000)) * time.Millisecond)
		_ = h.docker.stop(context.Background(), id)
	}
	_ = h.docker.Remove(context.Background(), id)
}

// settle waits until nothing moves any more.
func (s *script) settle(name string) bool {
	for range 120 {
		time.Sleep(5 * time.Second)
		_, h := s.w.record(s.volumes[name])
		if h.Ready && h.Move == nil && h.From == "" {
			return true
		}
	}
	return false
}

// finish lets everything settle, moves each volume once more and looks at
// what is left.
func (s *script) finish() {
	w := s.w
	time.Sleep(5 * time.Minute)
	for _, name := range s.names {
		if !s.settle(name) {
			s.stuck(name)
			continue
		}
		var err error
		_, h := w.record(s.volumes[name])
		to := w.names()[(slices.Index(w.names(), h.Node)+1)%len(w.names())]
		if err = s.move(name, to, "default", api.UsersMove); err != nil {
			w.fail("after everything was healed, %s cannot be moved to %s: %v", name, to, err)
			s.stuck(name)
			continue
		}
		if !s.settle(name) {
			s.stuck(name)
			continue
		}
		if _, h = w.record(s.volumes[name]); h.Node != to {
			w.unsettled("%s is on %s after a move to %s", name, h.Node, to)
		}
	}
	if w.withHistory {
		for _, name := range s.names {
			s.lastCommands(name)
		}
	}
	time.Sleep(3 * time.Minute)
	for _, name := range s.names {
		s.check(name)
	}
}

// based reports whether a transfer of some branch of the volume may build on
// the snapshot.
func based(left agent.Leftovers, volume, id string) bool {
	for k, ids := range left.Bases {
		if strings.HasPrefix(k, volume+"@") && slices.Contains(ids, id) {
			return true
		}
	}
	return false
}

// seeds are the snapshots that heads of a volume began as.
func (w *world) seeds(volume string) map[string]bool {
	v, _ := w.record(volume)
	out := map[string]bool{}
	for _, h := range v.Heads {
		out[h.Seed] = true
	}
	return out
}

func (s *script) stuck(name string) {
	_, h := s.w.record(s.volumes[name])
	text := fmt.Sprintf("%s does not settle: %+v", name, h)
	for _, n := range s.w.names() {
		if l := s.w.hosts[n].current(); l != nil {
			text += fmt.Sprintf("\n  %s: %q", n, l.a.Health()[s.volumes[name]+"@main"])
		}
	}
	s.w.fail("%s", text)
}

// check looks at one volume when everything is quiet.
func (s *script) check(name string) {
	w := s.w
	id := s.volumes[name]
	v, h := w.record(id)
	key := storage.HeadKey{Volume: id, Branch: v.Branch}
	s.checkHistory(name)
	running := []string{}
	for _, n := range w.names() {
		host := w.hosts[n]
		for _, p := range []string{"default", "second"} {
			for _, c := range host.docker.boundTo(p, key) {
				now, err := host.docker.Engine.Inspect(context.Background(), c)
				switch {
				case err != nil || now.State != container.Running:
				case strings.HasPrefix(now.Name, "tool-"): // it came along with a move
				default:
					running = append(running, n+"/"+now.Name)
				}
			}
		}
	}
	for _, n := range w.names() {
		host := w.hosts[n]
		s.checkPools(host, key, h)
		left, err := host.current().a.Leftovers()
		if err != nil {
			w.fail("%s: %v", n, err)
			continue
		}
		k := key.String()
		for what, list := range map[string][]string{"journal": left.Journals, "prepared containers": left.Prepared, "a waiting mark": left.Waiting} {
			if slices.Contains(list, k) {
				w.fail("%s: %s of %s is left", n, what, name)
			}
		}
		if n != h.Node && len(left.Refs[k]) > 0 {
			w.fail("%s: mount references of %s are left", n, name)
		}
		if s := host.current().a.Health()[k]; s[0] != "" || s[1] != "" {
			w.fail("%s: %s has alarm %q, waits for %q", n, name, s[0], s[1])
		}
	}
	if (len(running) != 1 || running[0] != h.Node+"/db-"+name) && !s.refused("db-"+name, h.Node) {
		w.unsettled("the database of %s should run once on %s, it runs on %v", name, h.Node, running)
	}
	s.checkUnmounted(name, key, h)
}

// refused reports whether Docker tried to start a container on another host
// than the owner and was told why not: a move that began between the boot of a
// host and the start of its containers leaves those behind.
func (s *script) refused(name, owner string) bool {
	for _, n := range s.w.names() {
		c, err := s.w.hosts[n].docker.Engine.Inspect(context.Background(), name)
		userActs := n != owner || !strings.Contains(c.Error, agent.Mark)
		if userActs && err == nil && c.Restart == "always" && !c.State.Uses() && strings.Contains(c.Error, "mount volume") {
			return true
		}
	}
	return false
}

// checkUnmounted stops all that uses the volume: then nothing is mounted, and
// no reference is left, whatever crashes left of the mounts before.
func (s *script) checkUnmounted(name string, key storage.HeadKey, h api.Head) {
	host := s.w.hosts[h.Node]
	for _, c := range host.docker.boundTo(h.Pool, key) {
		if err := host.docker.stop(context.Background(), c); err != nil {
			s.w.fail("stopping: %v", err)
		}
	}
	time.Sleep(time.Second)
	if at := host.pools[h.Pool].Mounted(key); len(at) > 0 {
		s.w.fail("%s: %s is still mounted at %v, though nobody uses it", h.Node, name, at)
	}
	left, err := host.current().a.Leftovers()
	if err != nil || len(left.Refs[key.String()]) > 0 {
		s.w.fail("%s: mount references of %s are left: %v %v", h.Node, name, left.Refs[key.String()], err)
	}
}

// checkPools looks for data that is missing, and for data that nobody needs.
func (s *script) checkPools(host *host, key storage.HeadKey, h api.Head) {
	w := s.w
	left, err := host.current().a.Leftovers()
	if err != nil {
		return
	}
	for name, p := range host.pools {
		owner := h.Node == host.name && h.Pool == name
		// Both of one instant: whoever writes a record has the lock until it is noted.
		w.mu.Lock()
		files, err := p.Files(key)
		line := w.lines[key.String()]
		line.records = maps.Clone(line.records)
		w.mu.Unlock()
		switch {
		case err != nil && owner:
			w.fail("%s: the owner's head is not in pool %s: %v", host.name, name, err)
		case err == nil && !owner:
			w.fail("%s: a copy of the head is left in pool %s", host.name, name)
		case owner:
			if lost := missingRecords(line.records, files); lost != "" {
				w.fail("record %s of %d of %s is lost", lost, len(line.records), key)
			}
			if len(p.Mounted(key)) > 1 || (len(p.Mounted(key)) == 0 && len(host.docker.boundTo(name, key)) > 0) {
				w.fail("%s: the head is mounted at %v", host.name, p.Mounted(key))
			}
		}
		content, err := p.Reopen().Recover(context.Background())
		if err != nil {
			continue
		}
		for _, sn := range content.Snapshots {
			if sn.Volume == key.Volume && repo.ReadNote(sn.Note).Commit == nil && sn.ID != h.Seed && !w.seeds(key.Volume)[sn.ID] && !based(left, key.Volume, sn.ID) {
				w.fail("%s: snapshot %s is left in pool %s", host.name, sn.ID, name)
			}
		}
		for _, r := range content.Partial {
			if r.Volume == key.Volume {
				w.fail("%s: a part of snapshot %s is left in pool %s", host.name, r.ID, name)
			}
		}
	}
}

var _ = state.Root
