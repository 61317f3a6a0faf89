// Package remotetest is the suite that every remote.Store passes, and a
// wrapper that breaks a store where a test says so. It knows none of the
// stores.
package remotetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Place is an empty repository that lives as long as a test.
type Place struct {
	// Open gives one more client of it. The suite closes it.
	Open func() remote.Store
	// Damage replaces the bytes of a blob or manifest behind the store's back.
	Damage func(d digest.Digest, body []byte)
	// Large is the size of a blob that takes the store's way for large ones.
	Large int
	// NoDelete: the place refuses to remove names.
	NoDelete bool
}

// Run passes the suite over places that fresh makes, one for each part.
func Run(t *testing.T, fresh func(t *testing.T) Place) {
	for _, part := range []struct {
		name string
		run  func(*suite)
	}{
		{"empty", (*suite).empty},
		{"blobs", (*suite).blobs},
		{"large", (*suite).large},
		{"ranges", (*suite).ranges},
		{"damage", (*suite).damage},
		{"broken sources", (*suite).sources},
		{"manifests", (*suite).manifests},
		{"names", (*suite).names},
		{"many names", (*suite).manyNames},
		{"wrong names", (*suite).wrong},
		{"ended contexts", (*suite).ended},
		{"races", (*suite).races},
		{"chains", (*suite).chains},
		{"reads while writing", (*suite).reading},
		{"collector", (*suite).collector},
	} {
		t.Run(part.name, func(t *testing.T) {
			s := &suite{T: t, Place: fresh(t)}
			s.st = s.open()
			part.run(s)
		})
	}
}

type suite struct {
	*testing.T
	Place
	st   remote.Store
	seed uint64
}

func (s *suite) open() remote.Store {
	st := s.Open()
	s.Cleanup(func() {
		if err := st.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
	})
	return st
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%v", err)
	}
}

func (s *suite) kind(err error, want ...api.Kind) {
	s.Helper()
	var e *api.Error
	if !slices.Contains(want, api.KindOf(err)) || !errors.As(err, &e) {
		s.Fatalf("%q %v, want %v", api.KindOf(err), err, want)
	}
}

// bytes makes content that nothing else has.
func (s *suite) bytes(n int) []byte {
	s.seed++
	r := rand.NewChaCha8(sha(s.Name(), s.seed))
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func sha(name string, n uint64) [32]byte {
	var out [32]byte
	copy(out[:], fmt.Sprintf("%016x%s", n, name))
	return out
}

func desc(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func (s *suite) put(st remote.Store, b []byte) ocispec.Descriptor {
	s.Helper()
	s.ok(st.Put(s.Context(), desc(b), remote.Bytes(b), nil))
	return desc(b)
}

// doc puts a manifest with the blobs that it names.
func (s *suite) doc(st remote.Store) (ocispec.Descriptor, []byte) {
	s.Helper()
	config, content := s.put(st, s.bytes(20)), s.put(st, s.bytes(50))
	config.MediaType = "application/vnd.drover.record.v1+json"
	body, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.drover.commit.v1", Config: config, Layers: []ocispec.Descriptor{content},
	})
	s.ok(err)
	d := desc(body)
	d.MediaType = ocispec.MediaTypeImageManifest
	s.ok(st.PutManifest(s.Context(), d, body))
	return d, body
}

func (s *suite) read(r io.ReadCloser, err error) []byte {
	s.Helper()
	s.ok(err)
	defer r.Close()
	b, err := io.ReadAll(r)
	s.ok(err)
	return b
}

func (s *suite) empty() {
	ctx := s.Context()
	if i := s.st.Info(); i.Kind == "" || i.URL == "" || i.MaxManifest < 1<<20 {
		s.Errorf("info: %+v", i)
	}
	s.ok(s.st.Check(ctx, true))
	none := desc(s.bytes(10))
	_, err := s.st.Stat(ctx, none.Digest)
	s.kind(err, api.NotFound)
	_, err = s.st.Get(ctx, none.Digest)
	s.kind(err, api.NotFound)
	_, err = s.st.GetRange(ctx, none.Digest, 0, 1)
	s.kind(err, api.NotFound)
	_, _, err = s.st.Manifest(ctx, none.Digest)
	s.kind(err, api.NotFound)
	_, err = s.st.Ref(ctx, "b-main")
	s.kind(err, api.NotFound)
	refs, err := s.st.Refs(ctx, "")
	s.ok(err)
	if len(refs) != 0 {
		s.Errorf("names: %v", refs)
	}
	if !s.NoDelete {
		s.ok(s.st.DeleteRef(ctx, "b-main", none.Digest))
	}
	s.kind(s.st.SetRef(ctx, "b-main", none, ""), api.NotFound)
}

func (s *suite) blobs() {
	ctx := s.Context()
	for _, n := range []int{0, 1, 100, 65536, 1<<20 + 7} {
		b := s.bytes(n)
		var sent atomic.Int64
		tell := func(n int64) { sent.Add(n) }
		s.ok(s.st.Put(ctx, desc(b), remote.Bytes(b), tell))
		if sent.Load() != int64(n) && n > 0 {
			s.Errorf("%d of %d bytes told of", sent.Load(), n)
		}
		size, err := s.open().Stat(ctx, desc(b).Digest)
		s.ok(err)
		if size != int64(n) {
			s.Errorf("%d bytes are there of %d", size, n)
		}
		if !bytes.Equal(s.read(s.st.Get(ctx, desc(b).Digest)), b) {
			s.Errorf("%d bytes came back as others", n)
		}
		// Again: nothing is sent, nor even opened.
		sent.Store(0)
		s.ok(s.open().Put(ctx, desc(b), func() (io.ReadCloser, error) { return nil, errors.New("opened") }, tell))
		if sent.Load() != 0 {
			s.Errorf("sent again")
		}
	}
}

func (s *suite) large() {
	ctx := s.Context()
	b := s.bytes(max(s.Large, 5<<20))
	s.put(s.st, b)
	size, err := s.st.Stat(ctx, desc(b).Digest)
	s.ok(err)
	if size != int64(len(b)) {
		s.Errorf("%d bytes are there", size)
	}
	if !bytes.Equal(s.read(s.st.Get(ctx, desc(b).Digest)), b) {
		s.Error("other bytes came back")
	}
	mid := s.read(s.st.GetRange(ctx, desc(b).Digest, int64(len(b)/2), 70_000))
	if !bytes.Equal(mid, b[len(b)/2:len(b)/2+70_000]) {
		s.Error("other bytes came back from the middle")
	}
}

func (s *suite) ranges() {
	ctx := s.Context()
	b := s.bytes(10_000)
	d := s.put(s.st, b)
	for _, r := range [][2]int64{{0, 10_000}, {0, 1}, {9999, 1}, {5000, 100}, {0, 0}, {9990, 100}, {10_000, 5}, {20_000, 5}, {5000, 0}} {
		from, to := min(r[0], 10_000), min(r[0]+r[1], 10_000)
		if got := s.read(s.st.GetRange(ctx, d.Digest, r[0], r[1])); !bytes.Equal(got, b[from:to]) {
			s.Errorf("%v: %d bytes, or others", r, len(got))
		}
	}
	_, err := s.st.GetRange(ctx, d.Digest, -1, 5)
	s.kind(err, api.Invalid)
	_, err = s.st.GetRange(ctx, d.Digest, 1, -5)
	s.kind(err, api.Invalid)
}

func (s *suite) damage() {
	ctx := s.Context()
	b := s.bytes(100_000)
	for name, bad := range map[string][]byte{"changed": append(bytes.Clone(b[:99_999]), b[99_999]^1), "short": b[:50_000], "long": append(bytes.Clone(b), 1), "empty": {}} {
		st := s.open()
		d := s.put(st, b)
		s.Damage(d.Digest, bad)
		r, err := st.Get(ctx, d.Digest)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		s.kind(err, api.Damaged)
		if !strings.Contains(err.Error(), string(d.Digest)) {
			s.Errorf("%s: %v names no digest", name, err)
		}
		s.Damage(d.Digest, b)
	}
	m, body := s.doc(s.st)
	s.Damage(m.Digest, append(bytes.Clone(body), ' '))
	_, _, err := s.open().Manifest(ctx, m.Digest)
	s.kind(err, api.Damaged)
}

// sources that break, or give something else than was promised, leave nothing;
// the same call with a good one succeeds.
func (s *suite) sources() {
	ctx := s.Context()
	b := s.bytes(max(s.Large, 200_000))
	broken := errors.New("the disk broke")
	other := bytes.Clone(b)
	other[len(b)-1] ^= 1
	for name, content := range map[string]remote.Content{
		"not there": func() (io.ReadCloser, error) { return nil, broken },
		"breaks":    func() (io.ReadCloser, error) { return io.NopCloser(&breaking{b[:len(b)*3/4], broken}), nil },
		"short":     remote.Bytes(b[:len(b)-1]),
		"long":      remote.Bytes(append(bytes.Clone(b), 0)),
		"other":     remote.Bytes(other),
	} {
		err := s.st.Put(ctx, desc(b), content, nil)
		if err == nil {
			s.Fatalf("%s: success", name)
		}
		if name == "breaks" && !errors.Is(err, broken) {
			s.Errorf("%s: %v hides the cause", name, err)
		}
		_, err = s.open().Stat(ctx, desc(b).Digest)
		s.kind(err, api.NotFound)
	}
	s.put(s.st, b)
	if !bytes.Equal(s.read(s.st.Get(ctx, desc(b).Digest)), b) {
		s.Error("other bytes came back")
	}
}

type breaking struct {
	left []byte
	err  error
}

func (b *breaking) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		return 0, b.err
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

func (s *suite) manifests() {
	ctx := s.Context()
	d, body := s.doc(s.st)
	s.ok(s.st.PutManifest(ctx, d, body))
	s.ok(s.st.SetRef(ctx, "c-1", d, ""))
	got, text, err := s.open().Manifest(ctx, d.Digest)
	s.ok(err)
	if got.Digest != d.Digest || got.Size != d.Size || got.MediaType != d.MediaType || !bytes.Equal(text, body) {
		s.Errorf("%+v, want %+v", got, d)
	}
	ix, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		ArtifactType: "application/vnd.drover.commit.v1", Manifests: []ocispec.Descriptor{d},
	})
	s.ok(err)
	id := desc(ix)
	id.MediaType = ocispec.MediaTypeImageIndex
	s.ok(s.st.PutManifest(ctx, id, ix))
	s.ok(s.st.SetRef(ctx, "c-2", id, ""))
	got, _, err = s.open().Manifest(ctx, id.Digest)
	s.ok(err)
	if got.MediaType != ocispec.MediaTypeImageIndex {
		s.Errorf("an index came back as %s", got.MediaType)
	}
	wrong := d
	wrong.Digest = digest.FromString("something else")
	s.kind(s.st.PutManifest(ctx, wrong, body), api.Damaged, api.Invalid)
}

func (s *suite) names() {
	ctx := s.Context()
	a, _ := s.doc(s.st)
	b, _ := s.doc(s.st)
	s.ok(s.st.SetRef(ctx, "b-main", a, ""))
	s.ok(s.st.SetRef(ctx, "b-main", a, "")) // repeated
	s.ok(s.open().SetRef(ctx, "b-main", a, ""))
	at := func(want digest.Digest) {
		s.Helper()
		r, err := s.open().Ref(ctx, "b-main")
		s.ok(err)
		if r.Name != "b-main" || r.Desc.Digest != want || r.Desc.Size == 0 || r.Desc.MediaType != ocispec.MediaTypeImageManifest {
			s.Errorf("b-main is %+v, want %s", r, want)
		}
	}
	at(a.Digest)
	s.kind(s.st.SetRef(ctx, "b-main", b, ""), api.Conflict)
	s.kind(s.st.SetRef(ctx, "b-main", b, digest.FromString("x")), api.Conflict)
	s.kind(s.st.SetRef(ctx, "b-other", b, a.Digest), api.Conflict)
	at(a.Digest)
	s.ok(s.st.SetRef(ctx, "b-main", b, a.Digest))
	s.ok(s.st.SetRef(ctx, "b-main", b, a.Digest))
	at(b.Digest)
	s.ok(s.st.SetRef(ctx, "c-1", b, ""))
	s.ok(s.st.SetRef(ctx, "b-Main", a, "")) // another name
	at(b.Digest)
	if s.NoDelete {
		s.kind(s.st.DeleteRef(ctx, "b-main", b.Digest), api.Unsupported)
		at(b.Digest)
		return
	}
	s.kind(s.st.DeleteRef(ctx, "b-main", a.Digest), api.Conflict)
	at(b.Digest)
	s.ok(s.st.DeleteRef(ctx, "b-main", b.Digest))
	s.ok(s.open().DeleteRef(ctx, "b-main", b.Digest))
	_, err := s.open().Ref(ctx, "b-main")
	s.kind(err, api.NotFound)
	// What another name points to is there still.
	r, err := s.st.Ref(ctx, "c-1")
	s.ok(err)
	_, _, err = s.st.Manifest(ctx, r.Desc.Digest)
	s.ok(err)
	s.kind(s.st.SetRef(ctx, "b-main", a, b.Digest), api.Conflict)
	s.ok(s.st.SetRef(ctx, "b-main", a, ""))
	at(a.Digest)
}

func (s *suite) manyNames() {
	ctx := s.Context()
	d, _ := s.doc(s.st)
	var want []string
	g := sync.WaitGroup{}
	for i := range 60 {
		name := fmt.Sprintf("%s%03d", []string{"b-x", "c-", "b-y_2f", "t-"}[i%4], i)
		want = append(want, name)
		g.Go(func() {
			if err := s.st.SetRef(ctx, name, d, ""); err != nil {
				s.Errorf("%s: %v", name, err)
			}
		})
	}
	g.Wait()
	slices.Sort(want)
	for _, prefix := range []string{"", "b-", "b-x", "c-", "t-", "k-", "b-x000"} {
		refs, err := s.open().Refs(ctx, prefix)
		s.ok(err)
		var got, expect []string
		for _, r := range refs {
			got = append(got, r.Name)
			if r.Desc.Digest != "" && r.Desc.Digest != d.Digest {
				s.Errorf("%s is %s", r.Name, r.Desc.Digest)
			}
		}
		for _, n := range want {
			if strings.HasPrefix(n, prefix) {
				expect = append(expect, n)
			}
		}
		if !slices.Equal(got, expect) {
			s.Errorf("%q: %v, want %v", prefix, got, expect)
		}
	}
}

func (s *suite) wrong() {
	ctx := s.Context()
	d, _ := s.doc(s.st)
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".lock", "-x", "b-\x00", "b- x", "b-ü", strings.Repeat("x", 129)} {
		_, err := s.st.Ref(ctx, name)
		s.kind(err, api.Invalid)
		s.kind(s.st.SetRef(ctx, name, d, ""), api.Invalid)
		s.kind(s.st.DeleteRef(ctx, name, d.Digest), api.Invalid)
	}
	s.ok(s.st.SetRef(ctx, strings.Repeat("x", 128), d, ""))
	for _, bad := range []digest.Digest{"", "sha256:", "sha256:abc", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e", digest.Digest("sha512:" + strings.Repeat("a", 128)), digest.Digest("sha256:" + strings.Repeat("G", 64))} {
		_, err := s.st.Stat(ctx, bad)
		s.kind(err, api.Invalid)
		_, err = s.st.Get(ctx, bad)
		s.kind(err, api.Invalid)
		_, err = s.st.GetRange(ctx, bad, 0, 1)
		s.kind(err, api.Invalid)
		_, _, err = s.st.Manifest(ctx, bad)
		s.kind(err, api.Invalid)
		s.kind(s.st.Put(ctx, ocispec.Descriptor{Digest: bad}, remote.Bytes(nil), nil), api.Invalid)
		if c, ok := s.st.(remote.Collector); ok {
			s.kind(c.Delete(ctx, bad), api.Invalid)
		}
	}
}

func (s *suite) ended() {
	d, body := s.doc(s.st)
	fresh := s.bytes(100)
	cause := errors.New("somebody pressed a key")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(cause)
	calls := map[string]func() error{
		"check":    func() error { return s.st.Check(ctx, true) },
		"stat":     func() error { _, err := s.st.Stat(ctx, d.Digest); return err },
		"get":      func() error { _, err := s.st.Get(ctx, d.Digest); return err },
		"range":    func() error { _, err := s.st.GetRange(ctx, d.Digest, 0, 1); return err },
		"put":      func() error { return s.st.Put(ctx, desc(fresh), remote.Bytes(fresh), nil) },
		"manifest": func() error { _, _, err := s.st.Manifest(ctx, d.Digest); return err },
		"write":    func() error { return s.st.PutManifest(ctx, d, body) },
		"ref":      func() error { _, err := s.st.Ref(ctx, "b-x"); return err },
		"set":      func() error { return s.st.SetRef(ctx, "b-x", d, "") },
		"delete":   func() error { return s.st.DeleteRef(ctx, "b-x", d.Digest) },
	}
	if c, ok := s.st.(remote.Collector); ok {
		calls["lease"] = func() error { _, err := c.Lease(ctx); return err }
		calls["collect"] = func() error { _, err := c.Collect(ctx); return err }
		calls["blobs"] = func() error { return c.Blobs(ctx, func(remote.Blob) error { return nil }) }
		calls["delete blob"] = func() error { return c.Delete(ctx, d.Digest) }
	}
	for name, call := range calls {
		if err := call(); !api.Is(err, api.Canceled) {
			s.Errorf("%s: %q %v", name, api.KindOf(err), err)
		}
	}
	// In the middle of a large one.
	ctx, cancel = context.WithCancelCause(s.Context())
	b := s.bytes(max(s.Large, 1<<20))
	err := s.st.Put(ctx, desc(b), func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), readFunc(func([]byte) (int, error) { cancel(cause); return 0, nil }), bytes.NewReader(b[len(b)/2:]))), nil
	}, nil)
	if err == nil {
		s.Error("put: success in spite of its context")
	}
	_, err = s.st.Stat(s.Context(), desc(b).Digest)
	s.kind(err, api.NotFound)
	_, err = s.st.Stat(s.Context(), desc(fresh).Digest)
	s.kind(err, api.NotFound)
	_, err = s.st.Ref(s.Context(), "b-x")
	s.kind(err, api.NotFound)
	s.put(s.st, b)
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) {
	if n, err := f(p); err != nil {
		return n, err
	}
	return 0, io.EOF
}

const (
	racers = 6
	moves  = 3 // of each in a chain
)

// races: of several who make one name at once, one does where the remote can see to it.
func (s *suite) races() {
	ctx := s.Context()
	s.ok(s.st.Check(ctx, true))
	docs := make([]ocispec.Descriptor, racers)
	stores := make([]remote.Store, racers)
	for i := range docs {
		docs[i], _ = s.doc(s.st)
		stores[i] = s.open()
		s.ok(stores[i].Check(ctx, true))
	}
	for round := range 5 {
		name := fmt.Sprint("b-", round)
		errs := make([]error, racers)
		var g sync.WaitGroup
		for i := range racers {
			g.Go(func() { errs[i] = stores[i].SetRef(ctx, name, docs[i], "") })
		}
		g.Wait()
		won := -1
		for i, err := range errs {
			if err == nil {
				if won >= 0 && s.st.Info().Atomic {
					s.Errorf("round %d: two won", round)
				}
				won = i
				continue
			}
			s.kind(err, api.Conflict)
		}
		r, err := s.st.Ref(ctx, name)
		s.ok(err)
		if s.st.Info().Atomic && (won < 0 || r.Desc.Digest != docs[won].Digest) {
			s.Errorf("round %d: %d won, but the name is %s", round, won, r.Desc.Digest)
		}
	}
}

// chains: several move one name on and on; no success is undone by another
// that did not see it.
func (s *suite) chains() {
	ctx := s.Context()
	s.ok(s.st.Check(ctx, true))
	first, _ := s.doc(s.st)
	s.ok(s.st.SetRef(ctx, "b-main", first, ""))
	var mu sync.Mutex
	next := map[digest.Digest]digest.Digest{} // what each was replaced by; guarded by mu
	var g sync.WaitGroup
	for range racers {
		st := s.open()
		var docs []ocispec.Descriptor
		for range moves {
			d, _ := s.doc(st)
			docs = append(docs, d)
		}
		g.Go(func() {
			for len(docs) > 0 {
				now, err := st.Ref(ctx, "b-main")
				if err != nil {
					s.Errorf("%v", err)
					return
				}
				err = st.SetRef(ctx, "b-main", docs[0], now.Desc.Digest)
				if api.Is(err, api.Conflict) {
					continue
				}
				if err != nil {
					s.Errorf("%v", err)
					return
				}
				mu.Lock()
				if _, twice := next[now.Desc.Digest]; twice && st.Info().Atomic {
					s.Error("two replaced the same")
				}
				next[now.Desc.Digest] = docs[0].Digest
				mu.Unlock()
				docs = docs[1:]
			}
		})
	}
	g.Wait()
	if !s.st.Info().Atomic || s.Failed() {
		return
	}
	at, n := first.Digest, 0
	for next[at] != "" {
		at = next[at]
		n++
	}
	r, err := s.st.Ref(ctx, "b-main")
	s.ok(err)
	if n != moves*racers || r.Desc.Digest != at {
		s.Errorf("%d of %d moves are in the chain, which ends at %s; the name is %s", n, moves*racers, at, r.Desc.Digest)
	}
}

// reading: whoever looks while a blob is written by several sees all of it or nothing.
func (s *suite) reading() {
	ctx := s.Context()
	for range 3 {
		b := s.bytes(300_000)
		d := desc(b)
		stop := make(chan struct{})
		var readers, writers sync.WaitGroup
		for range 3 {
			st := s.open()
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					r, err := st.Get(ctx, d.Digest)
					if api.Is(err, api.NotFound) {
						continue
					}
					var got []byte
					if err == nil {
						got, err = io.ReadAll(r)
						r.Close()
					}
					if err != nil || !bytes.Equal(got, b) {
						s.Errorf("%d bytes, %v", len(got), err)
						return
					}
				}
			})
		}
		for range 4 {
			st := s.open()
			writers.Go(func() {
				if err := st.Put(ctx, d, remote.Bytes(b), nil); err != nil {
					s.Errorf("put: %v", err)
				}
			})
		}
		writers.Wait()
		close(stop)
		readers.Wait()
		// A reader goes on to the end though a name moves meanwhile.
		s.ok(s.st.Put(ctx, d, remote.Bytes(b), nil))
	}
}

func (s *suite) collector() {
	c, ok := s.st.(remote.Collector)
	if ok == s.st.Info().Collects {
		s.Fatalf("it collects by itself: %v; it can be told to: %v", s.st.Info().Collects, ok)
	}
	if !ok {
		return
	}
	ctx := s.Context()
	d, body := s.doc(s.st)
	b := s.bytes(1000)
	s.put(s.st, b)
	found := map[digest.Digest]remote.Blob{}
	list := func() {
		s.Helper()
		clear(found)
		s.ok(c.Blobs(ctx, func(x remote.Blob) error {
			if x.Time.IsZero() {
				s.Errorf("%s has no time", x.Digest)
			}
			found[x.Digest] = x
			return nil
		}))
	}
	list()
	if len(found) != 4 || found[d.Digest].Size != int64(len(body)) || found[desc(b).Digest].Size != 1000 {
		s.Errorf("blobs: %v", found)
	}
	stop := errors.New("enough")
	if err := c.Blobs(ctx, func(remote.Blob) error { return stop }); !errors.Is(err, stop) {
		s.Errorf("a list that is stopped: %v", err)
	}
	s.ok(c.Delete(ctx, desc(b).Digest))
	s.ok(c.Delete(ctx, desc(b).Digest))
	list()
	if len(found) != 3 {
		s.Errorf("blobs: %v", found)
	}
	_, err := s.st.Stat(ctx, desc(b).Digest)
	s.kind(err, api.NotFound)
	s.put(s.st, b)
	s.leases(c)
}

func (s *suite) leases(c remote.Collector) {
	ctx := s.Context()
	count := func(want int) {
		s.Helper()
		l, err := s.open().(remote.Collector).Leases(ctx)
		s.ok(err)
		if len(l) != want {
			s.Errorf("leases: %v, want %d", l, want)
		}
		for _, x := range l {
			if x.IsZero() {
				s.Error("a lease has no time")
			}
		}
	}
	count(0)
	release, err := c.Lease(ctx)
	s.ok(err)
	second, err := s.open().(remote.Collector).Lease(ctx)
	s.ok(err)
	count(2)
	other := s.open().(remote.Collector)
	_, err = other.Collect(ctx)
	s.kind(err, api.InUse)
	s.ok(release(ctx))
	s.ok(release(ctx))
	_, err = other.Collect(ctx)
	s.kind(err, api.InUse)
	s.ok(second(ctx))
	count(0)
	collection, err := other.Collect(ctx)
	s.ok(err)
	// Another one gives up when it sees that this one is alive.
	second2 := make(chan error, 1)
	go func() { _, err := c.Collect(ctx); second2 <- err }()
	for done := false; !done; {
		select {
		case err := <-second2:
			s.kind(err, api.InUse)
			done = true
		default:
			s.ok(collection.Renew(ctx))
		}
	}
	// An upload waits for the collection.
	short, cancel := context.WithCancelCause(ctx)
	got := make(chan error, 1)
	go func() { _, err := c.Lease(short); got <- err }()
	cancel(errors.New("too long"))
	if err := <-got; err == nil {
		s.Error("an upload began while a collection was on its way")
	}
	waiting := make(chan error, 1)
	go func() {
		release, err := c.Lease(ctx)
		if err == nil {
			err = release(ctx)
		}
		waiting <- err
	}()
	s.ok(collection.End(ctx))
	s.ok(<-waiting)
	count(0)
}
