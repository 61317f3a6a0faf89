package collect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/collect"
	"github.com/drover-data/drover/hub/engine"
	"github.com/drover-data/drover/hub/registry"
	"github.com/drover-data/drover/hub/store"
)

var ctx = context.Background()

// errCrash is what everything answers from a crash until the next start.
var errCrash = errors.New("the process is dead")

// fault lets a sweep die at its nth step: before it, or after it was done.
type fault struct {
	left  int // steps until then; negative: never
	after bool
	dead  bool
	steps int
}

func (f *fault) do(step func() error) error {
	if f.dead {
		return errCrash
	}
	f.steps++
	if f.left < 0 || f.steps <= f.left {
		return step()
	}
	f.dead = true
	if f.after {
		_ = step()
	}
	return errCrash
}

type faultyRows struct {
	*store.Store
	f *fault
}

func (r faultyRows) SweepRepository(c context.Context, name string, cutoff time.Time) (out store.Swept, err error) {
	err = r.f.do(func() (err error) { out, err = r.Store.SweepRepository(c, name, cutoff); return err })
	return out, err
}

func (r faultyRows) Retain(c context.Context, name string, cutoff time.Time, decide store.Decide) (n int, err error) {
	err = r.f.do(func() (err error) { n, err = r.Store.Retain(c, name, cutoff, decide); return err })
	return n, err
}

func (r faultyRows) MarkOrphans(c context.Context, limit int) (n int, err error) {
	err = r.f.do(func() (err error) { n, err = r.Store.MarkOrphans(c, limit); return err })
	return n, err
}

func (r faultyRows) Orphans(c context.Context) (out []store.Orphan, err error) {
	err = r.f.do(func() (err error) { out, err = r.Store.Orphans(c); return err })
	return out, err
}

func (r faultyRows) Removed(c context.Context, d digest.Digest) error {
	return r.f.do(func() error { return r.Store.Removed(c, d) })
}

func (r faultyRows) StaleUploads(c context.Context, cutoff time.Time) (out []store.Upload, err error) {
	err = r.f.do(func() (err error) { out, err = r.Store.StaleUploads(c, cutoff); return err })
	return out, err
}

func (r faultyRows) EndUpload(c context.Context, id string) error {
	return r.f.do(func() error { return r.Store.EndUpload(c, id) })
}

func (r faultyRows) EndSweep(c context.Context, x store.Figures) error {
	return r.f.do(func() error { return r.Store.EndSweep(c, x) })
}

type faultyBytes struct {
	*engine.Engine
	f *fault
	// before is told of bytes that are just going.
	before func(d digest.Digest)
}

func (b faultyBytes) Delete(c context.Context, d digest.Digest) error {
	return b.f.do(func() error { b.before(d); return b.Engine.Delete(c, d) })
}

func (b faultyBytes) Cancel(c context.Context, repository, id string) error {
	return b.f.do(func() error { return b.Engine.Cancel(c, repository, id) })
}

func (b faultyBytes) Unlink(c context.Context, repository string, manifests, blobs []digest.Digest) error {
	return b.f.do(func() error { return b.Engine.Unlink(c, repository, manifests, blobs) })
}

// world is a hub and what its clients were told.
type world struct {
	fataler
	t      *rapid.T // of draws
	st     *store.Store
	e      *engine.Engine
	h      http.Handler
	now    time.Time
	secret string
	repos  map[string]*place
	n      int
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// place is what clients know of a repository.
type place struct {
	tags      map[string]digest.Digest
	manifests map[digest.Digest]*doc // pushed, by digest
	counted   map[digest.Digest]time.Time
	uploads   []string
}

// doc is a manifest with when somebody last might count on it.
type doc struct {
	body  []byte
	blobs []digest.Digest
	at    time.Time
}

const owner = "sim"

func newWorld(t fataler, dir string) *world {
	w := &world{fataler: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), repos: map[string]*place{}}
	var err error
	w.st, err = store.Open(ctx, store.Options{URL: filepath.Join(dir, "hub.db"), Now: func() time.Time { return w.now }})
	w.ok(err)
	w.e, err = engine.Open(ctx, engine.Options{URL: "inmemory:"})
	w.ok(err)
	w.ok(w.e.Claim(ctx, owner, true))
	w.ok(w.st.CreateUser(ctx, hub.Identity{}, hub.User{Name: "a"}))
	_, w.secret, err = w.st.CreateToken(ctx, hub.Identity{}, hub.Token{User: "a", Most: hub.Admin})
	w.ok(err)
	w.h = registry.New(registry.Options{Store: w.st, Engine: w.e, Secret: []byte("s"), Owner: owner, Now: func() time.Time { return w.now }})
	return w
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%v", err)
	}
}

func (w *world) ask(method, path, media string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.SetBasicAuth("a", w.secret)
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	a := httptest.NewRecorder()
	w.h.ServeHTTP(a, r)
	return a
}

func (w *world) want(status int, method, path, media string, body []byte) *httptest.ResponseRecorder {
	w.Helper()
	a := w.ask(method, path, media, body)
	if a.Code != status {
		w.Fatalf("%s %s: %d %s, want %d", method, path, a.Code, a.Body, status)
	}
	return a
}

func (w *world) repo() (string, *place) {
	name := "a/" + rapid.SampledFrom([]string{"x", "y", "z"}).Draw(w.t, "repository")
	if w.repos[name] == nil {
		w.repos[name] = &place{map[string]digest.Digest{}, map[digest.Digest]*doc{}, map[digest.Digest]time.Time{}, nil}
	}
	return name, w.repos[name]
}

func text(n int) []byte { return []byte(fmt.Sprint("blob ", n)) }

// later is until when a client may count on what it is told now.
func (w *world) later() time.Time { return w.now.Add(hub.Grace) }

// blob brings one that may be there already, as clients do.
func (w *world) blob(repo string, p *place, n int) digest.Digest {
	w.Helper()
	d := digest.FromBytes(text(n))
	status := w.ask("HEAD", "/v2/"+repo+"/blobs/"+string(d), "", nil).Code
	if until, counted := p.counted[d]; counted && w.now.Before(until) && status != 200 {
		w.Fatalf("%s %s was counted upon until %s, and is gone: %d", repo, d, until, status)
	}
	if status != 200 {
		at := "/v2/" + repo + "/blobs/uploads/?digest=" + string(d)
		if a := w.ask("POST", at, "", text(n)); a.Code == 503 { // a sweep died while it was at it: the next ends it
			w.sweep(&fault{left: -1})
			w.want(201, "POST", at, "", text(n))
		} else if a.Code != 201 {
			w.Fatalf("%s: %d %s", at, a.Code, a.Body)
		}
	}
	p.counted[d] = w.later()
	return d
}

func (w *world) put(repo string, p *place, tag string, blobs []digest.Digest, subject digest.Digest) {
	w.Helper()
	w.n++
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Annotations: map[string]string{"n": fmt.Sprint(w.n)}}
	m.SchemaVersion = 2
	m.Config = ocispec.Descriptor{MediaType: "application/vnd.x", Digest: blobs[0], Size: 1}
	for _, d := range blobs {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: "application/vnd.y", Digest: d, Size: 1})
	}
	if subject != "" {
		m.Subject = &ocispec.Descriptor{MediaType: m.MediaType, Digest: subject, Size: 1}
	}
	body, err := json.Marshal(m)
	w.ok(err)
	d := digest.FromBytes(body)
	reference := tag
	if tag == "" {
		reference = string(d)
	}
	w.want(201, "PUT", "/v2/"+repo+"/manifests/"+reference, m.MediaType, body)
	p.manifests[d] = &doc{body, blobs, w.now}
	w.point(p, tag, d)
}

func (w *world) point(p *place, tag string, d digest.Digest) {
	if tag == "" {
		return
	}
	if old := p.manifests[p.tags[tag]]; old != nil {
		old.at = w.now
	}
	if d == "" {
		delete(p.tags, tag)
		return
	}
	p.tags[tag] = d
}

// known says whether clients may count on a manifest.
func (w *world) known(p *place, d digest.Digest, m *doc) bool {
	if w.now.Before(m.at.Add(hub.Grace)) {
		return true
	}
	for _, t := range p.tags {
		if t == d {
			return true
		}
	}
	return false
}

// whole holds everything that is reached or counted upon against what is there.
func (w *world) whole() {
	w.Helper()
	for repo, p := range w.repos {
		look := func(d digest.Digest, why string) {
			a := w.ask("GET", "/v2/"+repo+"/blobs/"+string(d), "", nil)
			if a.Code != 200 || digest.FromBytes(a.Body.Bytes()) != d {
				w.Fatalf("%s lacks %s, %s: %d %s", repo, d, why, a.Code, a.Body)
			}
		}
		for d, until := range p.counted {
			if w.now.Before(until) {
				look(d, "which is counted upon")
			}
		}
		for tag, d := range p.tags {
			if a := w.ask("GET", "/v2/"+repo+"/manifests/"+tag, "", nil); a.Code != 200 || digest.FromBytes(a.Body.Bytes()) != d {
				w.Fatalf("%s:%s: %d %s", repo, tag, a.Code, a.Body)
			}
		}
		for d, m := range p.manifests {
			if !w.known(p, d, m) {
				continue
			}
			if a := w.ask("GET", "/v2/"+repo+"/manifests/"+string(d), "", nil); a.Code != 200 || !bytes.Equal(a.Body.Bytes(), m.body) {
				w.Fatalf("%s@%s: %d %s", repo, d, a.Code, a.Body)
			}
			for _, b := range m.blobs {
				look(b, "which a manifest names")
			}
		}
	}
}

// sweep runs one that may die on its way; clients come by while bytes go.
func (w *world) sweep(f *fault) {
	w.Helper()
	before := func(d digest.Digest) {
		// Whoever brings now what is just going, waits.
		for n := range blobs {
			if t := text(n); digest.FromBytes(t) == d {
				for repo := range w.repos {
					if a := w.ask("POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), "", t); a.Code != 503 || a.Header().Get("Retry-After") == "" {
						w.Fatalf("%s while its bytes go: %d %s", d, a.Code, a.Body)
					}
				}
			}
		}
	}
	c := &collect.Collector{Store: faultyRows{w.st, f}, Bytes: faultyBytes{w.e, f, before}, Owner: owner, Now: func() time.Time { return w.now }, Log: slog.New(slog.DiscardHandler), Every: time.Hour}
	_, err := c.Sweep(ctx)
	if err != nil && !f.dead {
		w.Fatalf("sweep: %v", err)
	}
}

const blobs = 6

func (w *world) actions() map[string]func(*rapid.T) {
	some := func() []int {
		return rapid.SliceOfNDistinct(rapid.IntRange(0, blobs-1), 1, 3, rapid.ID[int]).Draw(w.t, "blobs")
	}
	tag := func() string { return rapid.SampledFrom([]string{"", "v1", "v2"}).Draw(w.t, "tag") }
	return map[string]func(*rapid.T){
		"push": func(*rapid.T) {
			repo, p := w.repo()
			var list []digest.Digest
			for _, n := range some() {
				list = append(list, w.blob(repo, p, n))
			}
			w.put(repo, p, tag(), list, "")
		},
		"blob": func(*rapid.T) {
			repo, p := w.repo()
			w.blob(repo, p, some()[0])
		},
		"late": func(t *rapid.T) { // a manifest of what was counted upon, without looking again
			repo, p := w.repo()
			var list []digest.Digest
			for n := range blobs {
				if d := digest.FromBytes(text(n)); w.now.Before(p.counted[d]) {
					list = append(list, d)
				}
			}
			if len(list) > 0 {
				w.put(repo, p, tag(), list, "")
			}
		},
		"sign": func(*rapid.T) {
			repo, p := w.repo()
			for _, d := range p.tags {
				w.put(repo, p, "", []digest.Digest{w.blob(repo, p, some()[0])}, d)
				break
			}
		},
		"upload": func(*rapid.T) { // that nobody ends
			repo, p := w.repo()
			at := w.want(202, "POST", "/v2/"+repo+"/blobs/uploads/", "", nil).Header().Get("Location")
			w.want(202, "PATCH", at, "", []byte("begun"))
			p.uploads = append(p.uploads, at)
		},
		"untag": func(*rapid.T) {
			repo, p := w.repo()
			if name := tag(); p.tags[name] != "" {
				w.want(202, "DELETE", "/v2/"+repo+"/manifests/"+name, "", nil)
				w.point(p, name, "")
			}
		},
		"move": func(*rapid.T) {
			repo, p := w.repo()
			name := tag()
			for d, m := range p.manifests {
				if name != "" && w.known(p, d, m) {
					w.want(201, "PUT", "/v2/"+repo+"/manifests/"+name, ocispec.MediaTypeImageManifest, m.body)
					m.at = w.now
					w.point(p, name, d)
					break
				}
			}
		},
		"mount": func(*rapid.T) {
			from, source := w.repo()
			repo, p := w.repo()
			d := digest.FromBytes(text(some()[0]))
			a := w.ask("POST", "/v2/"+repo+"/blobs/uploads/?mount="+string(d)+"&from="+from, "", nil)
			if a.Code == 201 {
				p.counted[d] = w.later()
			} else if a.Code != 202 || w.now.Before(source.counted[d]) {
				w.Fatalf("mount: %d %s", a.Code, a.Body)
			}
		},
		"fork": func(*rapid.T) {
			from, source := w.repo()
			to, p := w.repo()
			if len(p.tags) > 0 || len(source.tags) == 0 {
				return
			}
			err := w.st.DeleteRepository(ctx, hub.Identity{}, to)
			if err != nil && !api.Is(err, api.NotFound) {
				w.Fatalf("%v", err)
			}
			if from == to {
				delete(w.repos, to)
				return
			}
			w.ok(w.st.Fork(ctx, hub.Identity{}, from, hub.Repository{Name: to}))
			fresh := &place{map[string]digest.Digest{}, map[digest.Digest]*doc{}, map[digest.Digest]time.Time{}, nil}
			for d, m := range source.manifests { // signatures too
				copied := *m
				copied.at = time.Time{}
				fresh.manifests[d] = &copied
			}
			for name, d := range source.tags {
				fresh.tags[name] = d
			}
			w.repos[to] = fresh
		},
		"delete": func(*rapid.T) {
			repo, p := w.repo()
			if len(p.manifests) > 0 && rapid.IntRange(0, 3).Draw(w.t, "sure") == 0 {
				w.ok(w.st.DeleteRepository(ctx, hub.Identity{}, repo))
				delete(w.repos, repo)
			}
		},
		"time": func(*rapid.T) {
			w.now = w.now.Add(time.Duration(rapid.IntRange(1, 30).Draw(w.t, "hours")) * time.Hour)
		},
		"sweep": func(*rapid.T) { w.sweep(&fault{left: -1}) },
		"crash": func(*rapid.T) {
			w.sweep(&fault{left: rapid.IntRange(0, 25).Draw(w.t, "steps"), after: rapid.Bool().Draw(w.t, "after")})
		},
		"": func(*rapid.T) { w.whole() },
	}
}

// quiet lets time pass and sweeps: exactly what names lead to is left.
func (w *world) quiet() {
	w.Helper()
	w.now = w.now.Add(3 * hub.Grace)
	w.sweep(&fault{left: -1})
	w.whole()
	want := map[digest.Digest]bool{}
	for _, p := range w.repos {
		keep := map[digest.Digest]bool{}
		for _, d := range p.tags {
			keep[d] = true
		}
		for more := true; more; { // what was said about what stays
			more = false
			for d, m := range p.manifests {
				var x ocispec.Manifest
				w.ok(json.Unmarshal(m.body, &x))
				if !keep[d] && x.Subject != nil && keep[x.Subject.Digest] {
					keep[d], more = true, true
				}
			}
		}
		for d := range keep {
			want[d] = true
			for _, b := range p.manifests[d].blobs {
				want[b] = true
			}
		}
	}
	got := map[digest.Digest]bool{}
	w.ok(w.e.Blobs(ctx, func(d digest.Digest, _ int64) error { got[d] = true; return nil }))
	for d := range want {
		if !got[d] {
			w.Fatalf("%s is gone", d)
		}
	}
	for d := range got {
		if !want[d] {
			who := ""
			for _, r := range []string{"a/x", "a/y", "a/z"} {
				_, _, err := w.st.Look(ctx, r, d)
				m, err2 := w.st.Manifest(ctx, r, string(d))
				who += fmt.Sprintf("\n%s: blob %v, manifest %v %v", r, err, m, err2)
				refs, _ := w.st.Refs(ctx, r, "", 0)
				who += fmt.Sprintf(" refs %v", refs)
				if p := w.repos[r]; p != nil {
					who += fmt.Sprintf(" known as %v", p.tags)
				}
			}
			w.Fatalf("%s stays, and nothing leads to it: %s", d, who)
		}
	}
	w.ok(w.e.Uploads(ctx, func(repository, id string) error { return fmt.Errorf("upload %s of %s stays", id, repository) }))
	last, err := w.st.LastSweep(ctx)
	w.ok(err)
	if last.Ended == nil {
		w.Fatalf("%+v", last)
	}
	spaces, err := w.st.Namespaces(ctx)
	w.ok(err)
	var sum int64
	list, err := w.st.Repositories(ctx, hub.Identity{Root: true}, "", 0)
	w.ok(err)
	for _, r := range list {
		sum += r.Used
		if p := w.repos[r.Name]; (p == nil || len(p.tags) == 0) && r.Used != 0 {
			w.Fatalf("%s is empty and counts %d bytes", r.Name, r.Used)
		}
	}
	if spaces[0].Used != sum {
		w.Fatalf("the namespace counts %d bytes, its repositories %d", spaces[0].Used, sum)
	}
}

// TestSimulation: pushes, questions, moves, forks, deletions and sweeps that die at any step,
// in any order, by a clock that a test moves. Nothing that is reached or counted upon is ever
// gone; after quiet time nothing else is left.
func TestSimulation(t *testing.T) {
	top, n := quick(t), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatalf("%v", err)
		}
		defer os.RemoveAll(dir)
		w := newWorld(t, dir)
		w.t = t
		defer w.st.Close()
		t.Repeat(w.actions())
		w.quiet()
	})
}

// quick is a directory that flushes nothing, where there is one: no power is lost here.
func quick(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "hub")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestEveryStep: a sweep with something of everything to do dies at each of its steps,
// before it or after it, and the next one finishes what it began.
func TestEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for step := 0; ; step++ {
			f := &fault{left: step, after: after}
			everyStep(t, f)
			if f.dead {
				continue
			}
			if step < 15 {
				t.Errorf("a sweep has %d steps", step)
			}
			break
		}
	}
}

func everyStep(t *testing.T, f *fault) {
	w := newWorld(t, quick(t))
	defer w.st.Close()
	x := &place{map[string]digest.Digest{}, map[digest.Digest]*doc{}, map[digest.Digest]time.Time{}, nil}
	w.repos["a/x"] = x
	w.put("a/x", x, "v1", []digest.Digest{w.blob("a/x", x, 0), w.blob("a/x", x, 1)}, "")
	w.put("a/x", x, "v2", []digest.Digest{w.blob("a/x", x, 1), w.blob("a/x", x, 2)}, "")
	w.blob("a/x", x, 3)
	at := w.want(202, "POST", "/v2/a/x/blobs/uploads/", "", nil).Header().Get("Location")
	w.want(202, "PATCH", at, "", []byte("begun"))
	w.want(202, "DELETE", "/v2/a/x/manifests/v2", "", nil)
	w.point(x, "v2", "")
	w.ok(w.st.SetRepository(ctx, hub.Identity{}, hub.Repository{Name: "a/x", Keep: &api.Keep{Last: 1}}))
	w.now = w.now.Add(2 * hub.Grace)
	y := &place{map[string]digest.Digest{}, map[digest.Digest]*doc{}, map[digest.Digest]time.Time{}, nil}
	w.repos["a/y"] = y
	w.put("a/y", y, "v1", []digest.Digest{w.blob("a/y", y, 4)}, "")
	w.sweep(f)
	w.whole()
	// What it had marked waits, and anything else goes on.
	status := w.ask("POST", "/v2/a/y/blobs/uploads/?digest="+string(digest.FromBytes(text(2))), "", text(2)).Code
	if status == 201 {
		y.counted[digest.FromBytes(text(2))] = w.later()
	} else if status != 503 || !f.dead {
		t.Fatalf("%d", status)
	}
	w.whole()
	w.sweep(&fault{left: -1})
	w.put("a/y", y, "v2", []digest.Digest{w.blob("a/y", y, 2)}, "")
	w.whole()
	w.quiet()
}
