package agent_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

// sqlServer is a database with its client in a container: it says what it is asked to
// SELECT, and remembers everything.
type sqlServer struct {
	mu    sync.Mutex
	said  []string // guarded by mu
	lock  bool     // guarded by mu
	mute  bool     // never answers
	close chan struct{}
}

func (s *sqlServer) serve(in io.Reader, out io.WriteCloser) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		text := lines.Text()
		s.mu.Lock()
		s.said = append(s.said, text)
		if strings.Contains(text, "READ LOCK") {
			s.lock = true
		}
		if strings.Contains(text, "UNLOCK") {
			s.lock = false
		}
		mute := s.mute
		s.mu.Unlock()
		if mute {
			continue
		}
		if _, word, ok := strings.Cut(text, "SELECT '"); ok {
			fmt.Fprintln(out, strings.TrimSuffix(word, "';"))
		}
	}
	s.mu.Lock()
	s.lock = false // the server unlocks when the session ends
	s.mu.Unlock()
	out.Close()
	close(s.close)
}

func (s *sqlServer) locked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lock
}

type sqlSession struct {
	io.Reader
	io.WriteCloser
}

// Session implements container.Sessions.
func (e *engine) Session(_ context.Context, id string, _ []string) (io.ReadWriteCloser, error) {
	e.h.w.mu.Lock()
	s := e.h.w.sql
	e.h.w.mu.Unlock()
	if s == nil {
		return nil, &api.Error{Kind: api.Unsupported, Op: "begin a session", Object: id}
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	go s.serve(inR, outW)
	return sqlSession{outR, inW}, nil
}

var _ container.Sessions = (*engine)(nil)

// hookWorld is one volume with a database, whose commits use a hook.
func hookWorld(t *testing.T, slow bool, hook *api.Hook, f func(w *world, s *script, commit func(api.Consistency) (api.Committed, error))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, func(string, string) bool { return slow })
		defer w.end()
		s := &script{w: w, volumes: map[string]string{}}
		s.setUpOne("alpha", "a", "default")
		time.Sleep(5 * time.Second)
		id := s.volumes["alpha"]
		err := w.truthHook(id, hook)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		f(w, s, func(level api.Consistency) (api.Committed, error) {
			return w.hosts["a"].current().a.Commit(context.Background(), id, api.MakeCommit{Branch: "main", Message: "m", Consistency: level}, "user")
		})
		time.Sleep(time.Minute)
		s.checkHistory("alpha")
		if c, err := w.hosts["a"].docker.Engine.Inspect(context.Background(), "db-alpha"); err != nil || c.State != container.Running {
			t.Errorf("the database is %s: %v", c.State, err)
		}
		for _, b := range w.broken {
			t.Error(b)
		}
	})
}

func (w *world) onExec(f func(command string) error) {
	w.hosts["a"].docker.OnExec(func(_ string, command []string) ([]byte, error) {
		text := strings.Join(command, " ")
		err := f(text)
		return []byte("Background saving started\nrdb_bgsave_in_progress:0\nrdb_last_bgsave_status:ok\n"), err
	})
}

func TestHooks(t *testing.T) {
	for _, slow := range []bool{false, true} {
		for kind, hook := range map[string]*api.Hook{
			"postgresql": {Kind: "postgresql"}, "redis": {Kind: "redis"}, "command": {Kind: "command", Before: []string{"before"}, After: []string{"after"}},
		} {
			t.Run(fmt.Sprintf("%s, slow %v", kind, slow), func(t *testing.T) {
				hookWorld(t, slow, hook, func(w *world, _ *script, commit func(api.Consistency) (api.Committed, error)) {
					var ran []string
					w.onExec(func(c string) error { ran = append(ran, c); return nil })
					c, err := commit("")
					if err != nil || c.Commit.Consistency != api.ConsistencyApplication || len(c.Commit.Hooks) != 1 {
						t.Fatalf("%+v %v", c, err)
					}
					want := map[string]string{"postgresql": "CHECKPOINT", "redis": "BGSAVE", "command": "before"}[kind]
					if len(ran) == 0 || !strings.Contains(ran[0], want) || (kind == "command" && ran[len(ran)-1] != "after") {
						t.Errorf("what ran: %q", ran)
					}
				})
			})
		}
	}
}

// A hook that fails means no commit, and what it began is undone.
func TestFailedHook(t *testing.T) {
	hookWorld(t, false, &api.Hook{Kind: "command", Before: []string{"before"}, After: []string{"after"}}, func(w *world, s *script, commit func(api.Consistency) (api.Committed, error)) {
		after := 0
		w.onExec(func(c string) error {
			if c == "after" {
				after++
				return nil
			}
			return fmt.Errorf("exit code 3")
		})
		if _, err := commit(""); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "nothing was committed") || after != 1 {
			t.Errorf("%v, after ran %d times", err, after)
		}
		if v, h := w.record(s.volumes["alpha"]); h.Commit != "" {
			t.Errorf("there is a commit: %+v", v)
		}
		if _, err := commit(api.ConsistencyCrash); err != nil {
			t.Errorf("without the hook: %v", err)
		}
	})
}

// A hook for a container that is not there, while another writes, is a mistyped
// name: a commit that says less than was asked for is no commit.
func TestHookOfNoContainer(t *testing.T) {
	hook := &api.Hook{Kind: "command", Container: "mistyped", Before: []string{"before"}}
	hookWorld(t, false, hook, func(_ *world, _ *script, commit func(api.Consistency) (api.Committed, error)) {
		if _, err := commit(""); !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "has none of that name") {
			t.Errorf("%v", err)
		}
		if _, err := commit(api.ConsistencyCrash); err != nil {
			t.Errorf("without the hook: %v", err)
		}
	})
}

// MySQL's lock is held while the snapshot is made, and never longer than the
// session.
func TestMySQL(t *testing.T) {
	hook := &api.Hook{Kind: "mysql", Deadline: 5 * time.Second}
	hookWorld(t, false, hook, func(w *world, _ *script, commit func(api.Consistency) (api.Committed, error)) {
		server := &sqlServer{close: make(chan struct{})}
		w.mu.Lock()
		w.sql = server
		w.mu.Unlock()
		c, err := commit("")
		if err != nil || c.Commit.Consistency != api.ConsistencyApplication {
			t.Fatalf("%+v %v", c, err)
		}
		<-server.close
		if text := strings.Join(server.said, "|"); server.locked() || !strings.Contains(text, "FLUSH TABLES WITH READ LOCK; SELECT 'drover-locked';|UNLOCK TABLES;") {
			t.Errorf("locked %v after %s", server.locked(), text)
		}
		mute := &sqlServer{close: make(chan struct{}), mute: true}
		w.mu.Lock()
		w.sql = mute
		w.mu.Unlock()
		begin := time.Now()
		if _, err := commit(""); !api.Is(err, api.Unavailable) {
			t.Errorf("a server that does not answer: %v", err)
		}
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("it took %s", took) // of the simulated clock
		}
		<-mute.close
		if mute.locked() {
			t.Error("the lock is held")
		}
	})
}

// Levels that cannot be had are refused.
func TestLevels(t *testing.T) {
	hookWorld(t, true, nil, func(_ *world, _ *script, commit func(api.Consistency) (api.Committed, error)) {
		if _, err := commit(api.ConsistencyCrash); !api.Is(err, api.Unsupported) {
			t.Errorf("crash on a pool without atomic snapshots: %v", err)
		}
		if c, err := commit(""); err != nil || c.Commit.Consistency != api.ConsistencyPaused {
			t.Errorf("%+v %v", c.Commit, err)
		}
		if _, err := commit(api.ConsistencyApplication); !api.Is(err, api.Unsupported) {
			t.Errorf("application without a hook: %v", err)
		}
		if _, err := commit("nonsense"); !api.Is(err, api.Invalid) {
			t.Errorf("nonsense: %v", err)
		}
	})
}

// A commit's users are let go when the agent is killed while it holds them.
func TestKilledWhileHolding(t *testing.T) {
	hookWorld(t, true, nil, func(w *world, s *script, commit func(api.Consistency) (api.Committed, error)) {
		w.mu.Lock()
		w.faults.at = func(_ int, call string, after bool) fault {
			if after && strings.HasSuffix(call, "Snapshot") {
				w.faults.at = nil
				return fault{crash: "a"}
			}
			return fault{}
		}
		w.mu.Unlock()
		if _, err := commit(""); err == nil {
			t.Error("the commit was made")
		}
		w.hosts["a"].start()
		time.Sleep(20 * time.Second)
		if _, err := commit(""); err != nil {
			t.Errorf("the same command again: %v", err)
		}
		if _, h := w.record(s.volumes["alpha"]); h.Commit == "" {
			t.Error("there is no commit")
		}
	})
}
