package exchange

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote/layout"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/layer"
	"github.com/drover-data/drover/tree/treetest"
)

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func must(t fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func id(n int) string { return fmt.Sprintf("%040x", 0xabc000+n) }

// pool keeps commits as directories.
type pool struct {
	dir     string
	commits repo.Graph
}

func newPool(dir string) *pool { return &pool{dir, repo.Graph{}} }

func (p *pool) path(id string) string { return filepath.Join(p.dir, id) }

func (p *pool) Find(_ context.Context, id string) (Local, error) {
	c, ok := p.commits[id]
	if !ok {
		return Local{}, &api.Error{Kind: api.NotFound, Op: "find commit", Object: id}
	}
	return Local{c, storage.Snapshot{ID: id, Dir: p.path(id)}}, nil
}

func (p *pool) Hints(context.Context, string, string) (*tree.Hints, error) { return nil, nil }

// commit makes one as a changed copy of its first parent.
func (p *pool) commit(t fataler, n int, change func(dir string), parents ...string) string {
	c := api.Commit{ID: id(n), Volume: "v", Parents: parents, Branch: "main", Message: fmt.Sprint("number ", n), Author: "t", Time: time.Unix(int64(n), 0).UTC(), Consistency: api.ConsistencyCrash}
	must(t, os.MkdirAll(p.path(c.ID), 0o755))
	if len(parents) > 0 {
		must(t, tree.Copy(context.Background(), p.path(parents[0]), p.path(c.ID), false))
	}
	change(p.path(c.ID))
	p.commits[c.ID] = c
	return c.ID
}

func open(dir string, key Key) *Remote {
	ids := 0
	return &Remote{
		Store: layout.Open(filepath.Join(dir, "remote"), time.Now, func() string { ids++; return fmt.Sprint("lease-", ids) }),
		Cache: filepath.Join(dir, "cache"), Key: key, Now: time.Now,
	}
}

func same(t fataler, a, b string) {
	t.Helper()
	list, err := tree.Compare(a, b, storage.Full())
	must(t, err)
	if len(list) > 0 {
		t.Fatalf("%s and %s differ: %v", a, b, list)
	}
}

// get writes a commit of the remote into a directory, on a copy of what is
// near in p, and says on which.
func (r *Remote) get(t fataler, p *pool, id, dir string) (base string) {
	t.Helper()
	ctx := context.Background()
	must(t, r.prepare())
	s, err := r.Find(ctx, id)
	must(t, err)
	must(t, r.checkContent(ctx, s))
	on, fresh, err := r.onto(ctx, s, Into{Pool: p, Graph: p.commits})
	must(t, err)
	must(t, os.MkdirAll(dir, 0o755))
	if on != nil {
		base = on.Commit.ID
		must(t, tree.Copy(ctx, p.path(base), dir, false))
	}
	must(t, r.write(ctx, s, dir, "", on, fresh, storage.Full(), false))
	return base
}

func TestPushAndFetch(t *testing.T) {
	top := t.TempDir()
	n := 0
	key, err := NewKey(bytes.Repeat([]byte{7}, KeySize))
	must(t, err)
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		defer os.RemoveAll(dir)
		p := newPool(filepath.Join(dir, "pool"))
		var k Key
		if rapid.Bool().Draw(t, "sealed") {
			k = key
		}
		r := open(dir, k)
		ctx := context.Background()
		tips := []string{p.commit(t, 0, func(d string) { treetest.Mutate(t, d, 10) })}
		for i := 1; i <= rapid.IntRange(1, 5).Draw(t, "commits"); i++ {
			parent := rapid.SampledFrom(tips).Draw(t, "parent")
			tips = append(tips, p.commit(t, i, func(d string) { treetest.Mutate(t, d, 4) }, parent))
		}
		for i, tip := range tips {
			if rapid.Bool().Draw(t, "push") || i == len(tips)-1 {
				out, err := r.Push(ctx, p, Push{Branch: fmt.Sprint("b/", i), Tip: tip, Graph: p.commits})
				must(t, err)
				if out.Relation != repo.FastForward {
					t.Fatalf("%s", out.Relation)
				}
			}
		}
		tip := tips[len(tips)-1]
		// From nothing, by somebody who has nothing.
		other := open(filepath.Join(dir), k)
		other.Cache = filepath.Join(dir, "other")
		other.get(t, newPool(dir), tip, filepath.Join(dir, "whole"))
		same(t, p.path(tip), filepath.Join(dir, "whole"))
		// On what is near.
		some := newPool(p.dir)
		for c := range p.commits {
			if c != tip && rapid.Bool().Draw(t, "has "+c[37:]) {
				some.commits[c] = p.commits[c]
			}
		}
		graph := p.commits
		near := &pool{p.dir, some.commits}
		s, err := other.Find(ctx, tip)
		must(t, err)
		on, fresh, err := other.onto(ctx, s, Into{Pool: near, Graph: graph})
		must(t, err)
		out := filepath.Join(dir, "near")
		must(t, os.MkdirAll(out, 0o755))
		if on != nil {
			must(t, tree.Copy(ctx, p.path(on.Commit.ID), out, false))
		}
		must(t, other.write(ctx, s, out, "", on, fresh, storage.Full(), false))
		same(t, p.path(tip), out)
		must(t, other.Verify(ctx, s))
		// The digest is that of the content alone.
		alone := open(filepath.Join(dir, "alone"), k)
		l, err := p.Find(ctx, tip)
		must(t, err)
		a, err := alone.Put(ctx, l, nil, nil)
		must(t, err)
		if a.Record.Content != s.Record.Content {
			t.Fatalf("content %+v by its history, %+v by itself", s.Record.Content, a.Record.Content)
		}
	})
}

// TestManyPushes: layers and packs stay few however often is pushed, and what
// comes out is what went in.
func TestManyPushes(t *testing.T) {
	dir := t.TempDir()
	p, r := newPool(filepath.Join(dir, "pool")), open(dir, nil)
	rnd := rand.New(rand.NewPCG(1, 2))
	big := make([]byte, 6<<20)
	for i := range big {
		big[i] = byte(rnd.Uint32())
	}
	tip := p.commit(t, 0, func(d string) { must(t, os.WriteFile(filepath.Join(d, "db"), big, 0o600)) })
	layers, packs := 0, 0
	for i := range 200 {
		out, err := r.Push(context.Background(), p, Push{Branch: "main", Tip: tip, Graph: p.commits})
		must(t, err)
		if len(out.Commits) != 1 {
			t.Fatalf("push %d brought %v", i, out.Commits)
		}
		s, err := r.Find(context.Background(), tip)
		must(t, err)
		layers, packs = max(layers, len(s.Record.Layers)), max(packs, len(s.Packs()))
		if i%40 == 39 || i == 10 {
			out := filepath.Join(dir, fmt.Sprint("out", i))
			newcomer := open(dir, nil)
			newcomer.Cache = out + "-cache"
			newcomer.get(t, newPool(dir), tip, out)
			same(t, p.path(tip), out)
			must(t, os.RemoveAll(out))
		}
		old := tip
		tip = p.commit(t, i+1, func(d string) {
			f, err := os.OpenFile(filepath.Join(d, "db"), os.O_RDWR, 0)
			must(t, err)
			for range 5 {
				_, err = f.WriteAt([]byte(fmt.Sprint("change ", rnd.Uint64())), rnd.Int64N(int64(len(big))/4096)*4096)
				must(t, err)
			}
			must(t, f.Close())
		}, old)
		if i > 0 {
			grand := p.commits[old].Parents
			if len(grand) > 0 {
				must(t, os.RemoveAll(p.path(grand[0])))
			}
		}
	}
	if layers > 1+3*repo.Fan || packs > 4*repo.Fan {
		t.Errorf("up to %d layers and %d packs", layers, packs)
	}
}

func TestOutcomes(t *testing.T) {
	dir := t.TempDir()
	p, r := newPool(filepath.Join(dir, "pool")), open(dir, nil)
	ctx := context.Background()
	write := func(name string) func(string) {
		return func(d string) { must(t, os.WriteFile(filepath.Join(d, name), []byte(name), 0o600)) }
	}
	a := p.commit(t, 1, write("a"))
	b := p.commit(t, 2, write("b"), a)
	c := p.commit(t, 3, write("c"), a)
	d := p.commit(t, 4, write("d"))
	push := func(tip, aside string, dry bool) (Pushed, error) {
		return r.Push(ctx, p, Push{Branch: "main", Tip: tip, Graph: p.commits, Aside: aside, DryRun: dry})
	}
	dry, err := push(a, "", true)
	must(t, err)
	if dry.Relation != repo.FastForward || dry.Changed != 1 || len(dry.Commits) != 1 {
		t.Errorf("dry run: %+v", dry)
	}
	if s, err := r.Branch(ctx, "main"); err != nil || s != nil {
		t.Errorf("the dry run left something: %v %v", s, err)
	}
	for _, x := range []struct {
		tip, aside string
		want       repo.Relation
		kind       api.Kind
		at         string // where main is afterwards
	}{
		{b, "", repo.FastForward, "", b},
		{b, "", repo.UpToDate, "", b},
		{a, "", repo.Ahead, "", b},
		{c, "", repo.Diverged, api.Conflict, b},
		{d, "", repo.Unrelated, api.Conflict, b},
		{c, "mine", repo.Diverged, "", b},
	} {
		out, err := push(x.tip, x.aside, false)
		if out.Relation != x.want || api.KindOf(err) != x.kind {
			t.Errorf("push %s: %s %v, want %s %s", x.tip[37:], out.Relation, err, x.want, x.kind)
		}
		s, err := r.Branch(ctx, "main")
		must(t, err)
		if s.Record.ID != x.at {
			t.Errorf("push %s: main is at %s", x.tip[37:], s.Record.ID)
		}
	}
	mine, err := r.Branch(ctx, "mine")
	must(t, err)
	if mine == nil || mine.Record.ID != c {
		t.Errorf("mine is %+v", mine)
	}
}

// TestDamage: whatever bit of whatever blob is another one, it is named, and
// nothing of it becomes a snapshot.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	a := p.commit(t, 1, func(d string) { treetest.Populate(t, filepath.Join(d, "x")) })
	b := p.commit(t, 2, func(d string) { treetest.Change(t, filepath.Join(d, "x"), 1) }, a)
	r := open(dir, nil)
	ctx := context.Background()
	_, err := r.Push(ctx, p, Push{Branch: "main", Tip: b, Graph: p.commits})
	must(t, err)
	blobs, err := filepath.Glob(filepath.Join(dir, "remote/blobs/sha256/*"))
	must(t, err)
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, blob := range blobs {
		text, err := os.ReadFile(blob)
		must(t, err)
		for try := range 4 {
			bad := bytes.Clone(text)
			bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
			if try == 3 {
				bad = bad[:rnd.IntN(len(bad))]
			}
			must(t, os.WriteFile(blob, bad, 0o600))
			fresh := open(dir, nil)
			fresh.Cache = filepath.Join(dir, fmt.Sprint("cache", filepath.Base(blob)[:8], try))
			var errs []error
			for _, c := range []string{a, b} {
				s, err := fresh.Find(ctx, c)
				if err == nil {
					err = fresh.Verify(ctx, s)
				}
				errs = append(errs, err)
			}
			if !api.Is(errs[0], api.Damaged) && !api.Is(errs[1], api.Damaged) {
				t.Fatalf("%s: %v", blob, errs)
			}
			must(t, os.RemoveAll(fresh.Cache))
		}
		must(t, os.WriteFile(blob, text, 0o600))
	}
	s, err := r.Find(ctx, b)
	must(t, err)
	must(t, r.Verify(ctx, s))
}

func TestManyPacksFanOut(t *testing.T) {
	dir := t.TempDir()
	r := open(dir, nil)
	ctx := context.Background()
	must(t, r.prepare())
	rec, err := encode(Record{Format: 1, Commit: api.Commit{ID: id(1)}, Layers: []Layer{{Index: ocispec.DescriptorEmptyJSON.Digest}}}, recordType)
	must(t, err)
	must(t, r.Store.PutManifest(ctx, rec.desc, rec.body))
	var packs []layer.Pack
	for i := range 50_000 {
		packs = append(packs, layer.Pack{Sum: [32]byte{byte(i), byte(i >> 8), 1}, Size: int64(i)})
	}
	docs, err := manifests(rec.desc, []Layer{{}}, packs, 4<<20)
	must(t, err)
	for _, d := range docs {
		if d.desc.Size > 4<<20 {
			t.Errorf("a manifest of %d bytes", d.desc.Size)
		}
		must(t, r.Store.PutManifest(ctx, d.desc, d.body))
	}
	s, err := r.Load(ctx, docs[len(docs)-1].desc.Digest)
	must(t, err)
	if len(s.packs) != len(packs) {
		t.Errorf("%d of %d packs came back", len(s.packs), len(packs))
	}
}
