package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/layout"
	"github.com/drover-data/drover/remote/remotetest"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/tree/treetest"
)

var serial atomic.Int64

// at opens the remote below a directory. What broke off before is soon taken
// for left behind: each look at the clock moves it.
func at(dir string, plan remotetest.Plan) *Remote {
	var looks atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(looks.Add(1)) * 90 * time.Second) }
	var s remote.Store = layout.Open(filepath.Join(dir, "remote"), now, func() string { return fmt.Sprint("id-", serial.Add(1)) })
	if plan != nil {
		s = remotetest.Faulty(s, plan)
	}
	return &Remote{Store: s, Cache: filepath.Join(dir, "cache"), Now: time.Now}
}

// whole looks that everything that a name points to is there and right.
func allWhole(t *testing.T, r *Remote) map[string]bool {
	t.Helper()
	ctx := context.Background()
	fresh := &Remote{Store: r.Store, Cache: t.TempDir(), Now: time.Now}
	refs, err := fresh.refs(ctx, "")
	must(t, err)
	have := map[string]bool{}
	for _, ref := range refs {
		s, err := fresh.Load(ctx, ref.Desc.Digest)
		must(t, err)
		if have[s.Record.ID] {
			continue
		}
		for d, n := range s.packs {
			if got, err := fresh.Store.Stat(ctx, d); err != nil || got != n {
				t.Fatalf("%s: pack %s: %d %v", ref.Name, d, got, err)
			}
		}
		if err := fresh.Verify(ctx, s); err != nil {
			t.Fatalf("%s: %v", ref.Name, err)
		}
		have[s.Record.ID] = true
		if _, err := fresh.Find(ctx, s.Record.ID); err != nil {
			t.Fatalf("%s has no name of its own: %v", s.Record.ID, err)
		}
	}
	return have
}

// everyCrash ends do at each of its calls of the remote, before and after, on a
// copy of base; checks what is there then; and does it again to the end.
func everyCrash(t *testing.T, base string, do func(r *Remote) error, broken, done func(t *testing.T, r *Remote)) {
	t.Helper()
	copied := func() string {
		dir := filepath.Join(t.TempDir(), "x")
		must(t, os.CopyFS(dir, os.DirFS(base)))
		old := time.Now().Add(-2 * remote.Grace)
		blobs, err := filepath.Glob(filepath.Join(dir, "remote/blobs/sha256/*"))
		must(t, err)
		for _, b := range blobs {
			must(t, os.Chtimes(b, old, old))
		}
		return dir
	}
	plan, calls := remotetest.Calls()
	must(t, do(at(copied(), plan)))
	n := calls()
	if n < 5 {
		t.Fatalf("only %d calls", n)
	}
	t.Logf("%d calls", n)
	for k := range n {
		for _, f := range []remotetest.Fault{remotetest.Before, remotetest.After} {
			dir := copied()
			err := do(at(dir, remotetest.Crash(k, f)))
			if err != nil && !errors.Is(err, remotetest.ErrFault) {
				t.Fatalf("call %d, fault %d: %v hides the cause", k, f, err)
			}
			broken(t, at(dir, nil))
			if err := do(at(dir, nil)); err != nil {
				t.Fatalf("call %d, fault %d: repeated: %v", k, f, err)
			}
			done(t, at(dir, nil))
			must(t, os.RemoveAll(dir))
		}
	}
}

// chain makes a line of commits.
func chain(t *testing.T, p *pool, n int) []string {
	t.Helper()
	var ids []string
	for i := range n {
		var parents []string
		if i > 0 {
			parents = []string{ids[i-1]}
		}
		ids = append(ids, p.commit(t, i+1, func(d string) {
			must(t, os.WriteFile(filepath.Join(d, fmt.Sprint("file", i)), bytes.Repeat([]byte{byte(i)}, 5000), 0o600))
			must(t, os.WriteFile(filepath.Join(d, "db"), fmt.Appendf(bytes.Repeat([]byte{7}, 20_000), "%d", i), 0o600))
		}, parents...))
	}
	return ids
}

func TestCrashOfPush(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 3)
	base := filepath.Join(dir, "base")
	ctx := context.Background()
	push := func(tip string) func(r *Remote) error {
		return func(r *Remote) error {
			_, err := r.Push(ctx, p, Push{Branch: "main", Tip: tip, Graph: p.commits})
			return err
		}
	}
	must(t, os.MkdirAll(base, 0o755))
	must(t, push(ids[0])(at(base, nil)))
	everyCrash(t, base, push(ids[2]), func(t *testing.T, r *Remote) {
		if have := allWhole(t, r); !have[ids[0]] {
			t.Fatal("what was there is gone")
		}
	}, func(t *testing.T, r *Remote) {
		have := allWhole(t, r)
		tip, err := r.Branch(ctx, "main")
		must(t, err)
		if len(have) != 3 || tip.Record.ID != ids[2] {
			t.Fatalf("%v, main at %s", have, tip.Record.ID)
		}
	})
}

func TestCrashOfPrune(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 5)
	base := filepath.Join(dir, "base")
	ctx := context.Background()
	must(t, os.MkdirAll(base, 0o755))
	r := at(base, nil)
	for branch, tip := range map[string]string{"old": ids[1], "main": ids[4]} {
		_, err := r.Push(ctx, p, Push{Branch: branch, Tip: tip, Graph: p.commits})
		must(t, err)
	}
	must(t, os.RemoveAll(filepath.Join(base, "cache")))
	prune := func(r *Remote) error {
		_, err := r.Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
		return err
	}
	everyCrash(t, base, prune, func(t *testing.T, r *Remote) {
		if have := allWhole(t, r); !have[ids[1]] || !have[ids[4]] {
			t.Fatalf("%v: a branch's commit is gone", have)
		}
	}, func(t *testing.T, r *Remote) {
		have := allWhole(t, r)
		if len(have) != 2 || !have[ids[1]] || !have[ids[4]] {
			t.Fatalf("%v are left", have)
		}
		again, err := r.Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
		must(t, err)
		if again.Blobs != 0 || len(again.Dropped) != 0 {
			t.Fatalf("something was left: %+v", again)
		}
	})
}

func TestCrashOfFetch(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	a := p.commit(t, 1, func(d string) { treetest.Populate(t, filepath.Join(d, "x")) })
	base := filepath.Join(dir, "base")
	ctx := context.Background()
	must(t, os.MkdirAll(base, 0o755))
	_, err := at(base, nil).Push(ctx, p, Push{Branch: "main", Tip: a, Graph: p.commits})
	must(t, err)
	must(t, os.RemoveAll(filepath.Join(base, "cache")))
	fetch := func(r *Remote) error {
		out := filepath.Join(t.TempDir(), "out")
		defer os.RemoveAll(out)
		s, err := r.Find(ctx, a)
		if err != nil {
			return err
		}
		must(t, r.prepare())
		if err := r.checkContent(ctx, s); err != nil {
			return err
		}
		must(t, os.MkdirAll(out, 0o755))
		if err := r.write(ctx, s, out, "", nil, s.Record.Layers, full(), false); err != nil {
			return err
		}
		same(t, p.path(a), out)
		return nil
	}
	everyCrash(t, base, fetch, func(t *testing.T, r *Remote) { allWhole(t, r) }, func(t *testing.T, r *Remote) { allWhole(t, r) })
}

// TestEveryCallFailsOnce: repeating goes on until all is there.
func TestEveryCallFailsOnce(t *testing.T) {
	for _, f := range []remotetest.Fault{remotetest.Before, remotetest.After} {
		dir := t.TempDir()
		p := newPool(filepath.Join(dir, "pool"))
		ids := chain(t, p, 4)
		r := at(dir, remotetest.Once(f))
		ctx := context.Background()
		for try := 1; ; try++ {
			_, err := r.Push(ctx, p, Push{Branch: "main", Tip: ids[3], Graph: p.commits})
			allWhole(t, at(dir, nil))
			if err == nil {
				break
			}
			if !errors.Is(err, remotetest.ErrFault) || try > 200 {
				t.Fatalf("try %d: %v", try, err)
			}
		}
		if have := allWhole(t, at(dir, nil)); len(have) != 4 {
			t.Errorf("%d commits are there", len(have))
		}
	}
}

// impatient says of every blob that it is old.
type impatient struct{ *layout.Store }

func (s impatient) Blobs(ctx context.Context, each func(remote.Blob) error) error {
	return s.Store.Blobs(ctx, func(b remote.Blob) error {
		b.Time = b.Time.Add(-2 * remote.Grace)
		return each(b)
	})
}

// TestPruneWhilePushing: however pushes and retentions meet, what a branch
// leads to is whole.
func TestPruneWhilePushing(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 12)
	ctx := context.Background()
	opened := func(cache string) *Remote {
		s := layout.Open(filepath.Join(dir, "remote"), time.Now, func() string { return fmt.Sprint("id-", serial.Add(1)) })
		return &Remote{Store: impatient{s}, Cache: filepath.Join(dir, cache), Now: time.Now}
	}
	stop := make(chan struct{})
	pruned := make(chan int)
	go func() {
		r, done := opened("pruner"), 0
		for {
			select {
			case <-stop:
				pruned <- done
				return
			default:
			}
			_, err := r.Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
			switch {
			case err == nil:
				done++
			case !api.Is(err, api.InUse):
				t.Errorf("prune: %v", err)
			}
		}
	}()
	r := opened("pusher")
	for i, tip := range ids {
		out, err := r.Push(ctx, p, Push{Branch: fmt.Sprint("b", i%3), Tip: tip, Graph: p.commits})
		if err != nil || out.Relation != repo.FastForward {
			t.Errorf("push %d: %s %v", i, out.Relation, err)
		}
		// What no branch points to may go while it is read.
		for b := range min(i+1, 3) {
			if err := branchWhole(ctx, r, fmt.Sprint("b", b), t.TempDir()); err != nil {
				t.Errorf("after push %d: b%d: %v", i, b, err)
			}
		}
	}
	close(stop)
	if n := <-pruned; n == 0 {
		t.Error("no retention came through")
	}
	out, err := opened("pruner").Prune(ctx, Prune{Keep: api.Keep{Last: 1}})
	must(t, err)
	if have := allWhole(t, at(dir, nil)); len(have) != 3 || !have[ids[11]] || !have[ids[10]] || !have[ids[9]] || out.Kept != 3 {
		t.Errorf("%v are left, %+v", have, out)
	}
}

func branchWhole(ctx context.Context, r *Remote, name, cache string) error {
	fresh := &Remote{Store: r.Store, Cache: cache, Now: time.Now}
	s, err := fresh.Branch(ctx, name)
	if err != nil {
		return err
	}
	if _, err := fresh.Find(ctx, s.Record.ID); err != nil {
		return err
	}
	return fresh.Verify(ctx, s)
}
