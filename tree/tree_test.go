package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree/treetest"
	"github.com/drover-data/drover/tree/wire"
)

// dirStage is a stage on a plain directory: it goes on in place.
type dirStage struct {
	dir, beside string
	note        []byte
	done        bool
}

func (s *dirStage) Dir() string    { return s.dir }
func (s *dirStage) Beside() string { return s.beside }
func (s *dirStage) Mark(_ context.Context, note []byte) error {
	s.note = bytes.Clone(note)
	return nil
}
func (s *dirStage) Marked() []byte { return s.note }
func (s *dirStage) Commit(context.Context) (storage.Snapshot, error) {
	s.done = true
	return storage.Snapshot{ID: "s", Dir: s.dir, Beside: s.beside}, nil
}
func (s *dirStage) Abort(context.Context) error { return os.RemoveAll(s.dir) }
func (s *dirStage) Close() error                { return nil }

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

func copyTree(t fataler, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", "--sparse=auto", from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

func newStage(t fataler, at string) *dirStage {
	t.Helper()
	s := &dirStage{dir: filepath.Join(at, "data"), beside: filepath.Join(at, "beside")}
	must(t, os.MkdirAll(s.beside, 0o700))
	must(t, os.MkdirAll(s.dir, 0o755))
	return s
}

func snap(dir string) storage.Snapshot { return storage.Snapshot{ID: filepath.Base(dir), Dir: dir} }

func stream(t fataler, s storage.Snapshot, base *storage.Snapshot, off int64) []byte {
	t.Helper()
	r, err := Streams{}.Send(context.Background(), s, base, off)
	must(t, err)
	data, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	return data
}

// feed brings a stream into a stage, with interruptions at the given bytes.
func feed(t fataler, st *dirStage, data []byte, keeps storage.Fidelity, lossy bool, cuts ...int) error {
	t.Helper()
	ctx := context.Background()
	for _, cut := range append(cuts, len(data)) {
		r, err := Streams{}.Receive(ctx, st, keeps, lossy)
		must(t, err)
		at := r.Offset()
		end := max(int64(cut), at)
		for p := at; p < end; {
			n := min(int64(37_000), end-p)
			if _, err := r.Write(data[p : p+n]); err != nil {
				_ = r.Close()
				return err
			}
			p += n
			if p%3 == 0 {
				_, err := r.Checkpoint(ctx)
				must(t, err)
			}
		}
		if cut == len(data) {
			if _, err := r.Commit(ctx); err != nil {
				_ = r.Close()
				return err
			}
		}
		must(t, r.Close())
	}
	return nil
}

func same(t fataler, a, b string, f storage.Fidelity) {
	t.Helper()
	d, err := Compare(a, b, f)
	must(t, err)
	if len(d) > 0 {
		t.Fatalf("the trees differ: %v", d[:min(len(d), 8)])
	}
}

func TestEverything(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	treetest.Populate(t, src)
	st := newStage(t, filepath.Join(dir, "out"))
	data := stream(t, snap(src), nil, 0)
	if !bytes.Equal(data, stream(t, snap(src), nil, 0)) {
		t.Fatal("the stream is not the same each time")
	}
	must(t, feed(t, st, data, storage.Full(), false, 5, 1000, len(data)/2))
	same(t, src, st.dir, storage.Full())
	if tail := stream(t, snap(src), nil, 777); !bytes.Equal(tail, data[777:]) {
		t.Fatal("the stream from an offset is not its end")
	}
	// A delta on that.
	base := filepath.Join(dir, "base")
	must(t, os.Rename(src, base))
	copyTree(t, base, src)
	must(t, os.WriteFile(filepath.Join(src, "new"), []byte("new"), 0o600))
	must(t, os.Remove(filepath.Join(src, "hard2")))
	must(t, os.Link(filepath.Join(src, "big"), filepath.Join(src, "sub", "hard-big")))
	f, err := os.OpenFile(filepath.Join(src, "big"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 300_000)
	must(t, err)
	must(t, f.Close())
	b := snap(base)
	delta := stream(t, snap(src), &b, 0)
	if len(delta) > 20_000 {
		t.Fatalf("a small change takes %d bytes", len(delta))
	}
	must(t, feed(t, st2(st), delta, storage.Full(), false, 100, len(delta)/2))
	same(t, src, st.dir, storage.Full())
}

// st2 is the stage of the next snapshot, on what is there.
func st2(s *dirStage) *dirStage {
	s.note = nil
	return s
}

func TestLossyAndBack(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	treetest.Populate(t, src)
	data := stream(t, snap(src), nil, 0)
	poor := storage.Fidelity{Owners: true, Modes: true, TimeGrain: time.Second, TimeMax: 1<<31 - 1, NameBytes: 255, CaseSensitive: true, Sparse: true}
	err := feed(t, newStage(t, filepath.Join(dir, "refused")), data, poor, false)
	if !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), `"`) {
		t.Fatalf("what cannot be kept was not refused by name: %v", err)
	}
	mid := newStage(t, filepath.Join(dir, "mid"))
	must(t, feed(t, mid, data, poor, true, 10_000, len(data)/2, len(data)-100))
	if _, err := os.Lstat(filepath.Join(mid.dir, "sym")); err == nil {
		t.Fatal("what the store does not keep was made")
	}
	full := storage.Snapshot{ID: "mid", Dir: mid.dir, Beside: mid.beside}
	back := newStage(t, filepath.Join(dir, "back"))
	must(t, feed(t, back, stream(t, full, nil, 0), storage.Full(), false))
	same(t, src, back.dir, storage.Full())
	// A user of the poor store changes something: that wins.
	must(t, os.WriteFile(filepath.Join(mid.dir, "a"), []byte("changed"), 0o644))
	now := time.Unix(1700000000, 0)
	must(t, os.Chtimes(filepath.Join(mid.dir, "a"), now, now))
	again := newStage(t, filepath.Join(dir, "again"))
	must(t, feed(t, again, stream(t, full, nil, 0), storage.Full(), false))
	st, err := os.Stat(filepath.Join(again.dir, "a"))
	must(t, err)
	if !st.ModTime().Equal(now) {
		t.Fatalf("the time of a changed file is %v", st.ModTime())
	}
	// A delta takes things away that exist beside only.
	base := snap(src)
	next := filepath.Join(dir, "next")
	copyTree(t, src, next)
	must(t, os.Remove(filepath.Join(next, "sym")))
	must(t, os.RemoveAll(filepath.Join(next, "sub")))
	must(t, os.Chmod(filepath.Join(next, "fifo"), 0o666))
	third := newStage(t, filepath.Join(dir, "third"))
	must(t, feed(t, third, data, poor, true))
	delta := stream(t, snap(next), &base, 0)
	must(t, feed(t, st2(third), delta, poor, true, len(delta)/3))
	fourth := newStage(t, filepath.Join(dir, "fourth"))
	must(t, feed(t, fourth, stream(t, storage.Snapshot{Dir: third.dir, Beside: third.beside}, nil, 0), storage.Full(), false))
	same(t, next, fourth.dir, storage.Full())
}

func TestDamage(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	must(t, os.MkdirAll(filepath.Join(src, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "d", "f"), []byte("content"), 0o644))
	data := stream(t, snap(src), nil, 0)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		st := newStage(t, filepath.Join(dir, "x", fmt.Sprint(i)))
		if err := feed(t, st, bad, storage.Full(), false); err == nil || st.done {
			t.Fatalf("bit %d of byte %d flipped was not noticed", i%8, i)
		}
		if err := feed(t, newStage(t, filepath.Join(dir, "y", fmt.Sprint(i))), data[:i], storage.Full(), false); !api.Is(err, api.Damaged) {
			t.Fatalf("a stream cut at %d gave %v", i, err)
		}
	}
	if err := feed(t, newStage(t, filepath.Join(dir, "z")), append(bytes.Clone(data), 0), storage.Full(), false); !api.Is(err, api.Damaged) {
		t.Fatalf("more behind the end gave %v", err)
	}
}

// TestPoisoned: what was kept of another stream ends in an error once, not for
// ever: the next session begins anew.
func TestPoisoned(t *testing.T) {
	dir := t.TempDir()
	var streams [2][]byte
	for i := range streams {
		src := filepath.Join(dir, fmt.Sprint("src", i))
		must(t, os.Mkdir(src, 0o755))
		must(t, os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte{byte(i)}, 2<<20), 0o644))
		streams[i] = stream(t, snap(src), nil, 0)
	}
	st := newStage(t, filepath.Join(dir, "out"))
	mixed := append(bytes.Clone(streams[0][:1<<20]), streams[1][1<<20:]...)
	if err := feed(t, st, mixed, storage.Full(), false, 1<<20); !api.Is(err, api.Damaged) {
		t.Fatalf("two halves of two streams gave %v", err)
	}
	if _, err := os.Lstat(st.dir); !os.IsNotExist(err) {
		t.Fatal("what arrived was kept")
	}
}

// build makes a stream of records as an attacker would.
func build(records ...record) []byte {
	var b bytes.Buffer
	e := newEncoder(&b)
	b.WriteString(Magic)
	_ = e.put(&record{op: opBegin, off: version})
	for _, r := range records {
		_ = e.put(&r)
	}
	_ = e.end()
	return b.Bytes()
}

func TestHostile(t *testing.T) {
	file := Meta{Mode: unix.S_IFREG | 0o644}
	for name, records := range map[string][]record{
		"parent":             {{op: opFile, path: "../out"}},
		"absolute":           {{op: opFile, path: "/out"}},
		"inside parent":      {{op: opDir, path: "d"}, {op: opFile, path: "d/../../out"}},
		"dot":                {{op: opFile, path: "./x"}},
		"empty":              {{op: opFile, path: ""}},
		"nul":                {{op: opFile, path: "a\x00b"}},
		"through link":       {{op: opSymlink, path: "l", target: ".."}, {op: opFile, path: "l/out"}},
		"through abs link":   {{op: opSymlink, path: "l", target: "/tmp"}, {op: opFile, path: "l/out"}},
		"data through link":  {{op: opSymlink, path: "l", target: "../out"}, {op: opData, path: "l", data: []byte("x")}},
		"data into fifo":     {{op: opNode, path: "p", meta: Meta{Mode: unix.S_IFIFO}}, {op: opData, path: "p", data: []byte("x")}},
		"link from outside":  {{op: opLink, path: "x", target: "../victim"}},
		"link through link":  {{op: opSymlink, path: "l", target: ".."}, {op: opLink, path: "x", target: "l/victim"}},
		"meta through link":  {{op: opSymlink, path: "l", target: "../victim"}, {op: opMeta, path: "l", meta: file}},
		"delete through":     {{op: opSymlink, path: "l", target: ".."}, {op: opDelete, path: "l/victim"}},
		"delete root":        {{op: opDelete, path: ""}},
		"foreign attribute":  {{op: opFile, path: "f"}, {op: opMeta, path: "f", meta: Meta{Mode: file.Mode, Xattrs: []Xattr{{"security.ima", []byte("x")}}}}},
		"type":               {{op: opNode, path: "f", meta: Meta{Mode: unix.S_IFREG}}},
		"hard link to dir":   {{op: opDir, path: "d"}, {op: opLink, path: "x", target: "d"}},
		"begins twice":       {{op: opBegin, off: version}, {op: opBegin, off: version}},
		"meta of other type": {{op: opDir, path: "d"}, {op: opMeta, path: "d", meta: file}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			victim := filepath.Join(dir, "victim")
			must(t, os.WriteFile(victim, []byte("victim"), 0o600))
			before, err := os.Stat(victim)
			must(t, err)
			st := &dirStage{dir: filepath.Join(dir, "stage"), beside: t.TempDir()}
			must(t, os.Mkdir(st.dir, 0o755))
			if err := feed(t, st, build(records...), storage.Full(), true); err == nil {
				t.Error("it was taken")
			}
			checkOutside(t, dir, before)
		})
	}
}

func checkOutside(t fataler, dir string, before os.FileInfo) {
	t.Helper()
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range names {
		if n.Name() != "victim" && n.Name() != "stage" {
			t.Fatalf("%s was made outside", n.Name())
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "victim"))
	must(t, err)
	after, err := os.Stat(filepath.Join(dir, "victim"))
	must(t, err)
	if string(text) != "victim" || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) || after.Sys() == nil {
		t.Fatalf("what lies outside was changed")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add((&record{op: opFile, path: "a", size: 5}).encode(nil))
	f.Add((&record{op: opSymlink, path: "l", target: ".."}).encode((&record{op: opData, path: "l/x", data: []byte("x")}).encode(nil)))
	f.Add((&record{op: opMeta, path: "", meta: Meta{Mode: unix.S_IFDIR | 0o700, Sec: -1, Nsec: 5, Xattrs: []Xattr{{"user.a", []byte("v")}}}}).encode(nil))
	f.Add((&record{op: opNode, path: "p", meta: Meta{Mode: unix.S_IFIFO}}).encode((&record{op: opLink, path: "q", target: "p"}).encode(nil)))
	f.Add((&record{op: opHole, path: "a", off: 1, size: 2}).encode([]byte{0xff}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		// What is read is written the same way again.
		d := newDecoder(payload)
		var r record
		for d.next(&r) {
			if r.op == opEnd {
				continue
			}
			again := newDecoder(r.encode(nil))
			var r2 record
			if !again.next(&r2) || fmt.Sprint(r2) != fmt.Sprint(r) {
				t.Fatalf("%+v became %+v: %v", r, r2, again.err())
			}
		}
		if len(payload) == 0 || len(payload) > 1<<16 {
			return
		}
		// And applied, with a right checksum, it stays inside.
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "victim"), []byte("victim"), 0o600))
		before, err := os.Stat(filepath.Join(dir, "victim"))
		must(t, err)
		st := &dirStage{dir: filepath.Join(dir, "stage"), beside: t.TempDir()}
		must(t, os.Mkdir(st.dir, 0o755))
		block := append(make([]byte, blockHead), (&record{op: opBegin, off: version}).encode(nil)...)
		block = append(block, payload...)
		wire.Seal(block)
		keeps := storage.Full()
		keeps.Devices = false
		_ = feed(t, st, append([]byte(Magic), block...), keeps, true)
		checkOutside(t, dir, before)
	})
}

func TestRandomTrees(t *testing.T) {
	top := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		defer os.RemoveAll(dir)
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		must(t, os.MkdirAll(a, 0o755))
		treetest.Mutate(t, a, 12)
		full := stream(t, snap(a), nil, 0)
		cuts := func(n int) []int {
			c := rapid.SliceOfN(rapid.IntRange(0, n), 0, 3).Draw(t, "cuts")
			slices.Sort(c)
			return slices.DeleteFunc(c, func(x int) bool { return x == n })
		}
		st := newStage(t, filepath.Join(dir, "out"))
		must(t, feed(t, st, full, storage.Full(), false, cuts(len(full))...))
		same(t, a, st.dir, storage.Full())
		copyTree(t, a, b)
		treetest.Mutate(t, b, 8)
		base := snap(a)
		delta := stream(t, snap(b), &base, 0)
		if !bytes.Equal(delta, stream(t, snap(b), &base, 0)) {
			t.Fatalf("the delta is not the same each time")
		}
		must(t, feed(t, st2(st), delta, storage.Full(), false, cuts(len(delta))...))
		same(t, b, st.dir, storage.Full())
		// And back again.
		tip := snap(b)
		must(t, feed(t, st2(st), stream(t, base, &tip, 0), storage.Full(), false))
		same(t, a, st.dir, storage.Full())
	})
}

func TestDeep(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	must(t, os.Mkdir(src, 0o755))
	fd, err := openRoot(src)
	must(t, err)
	name := strings.Repeat("n", 200)
	for range 60 { // 12 kB of path
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := openat2(fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	f, err := openat2create(fd, "leaf")
	must(t, err)
	unix.Close(f)
	unix.Close(fd)
	st := newStage(t, filepath.Join(dir, "out"))
	must(t, feed(t, st, stream(t, snap(src), nil, 0), storage.Full(), false))
	same(t, src, st.dir, storage.Full())
}

func TestClose(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	treetest.Populate(t, src)
	r, err := Streams{}.Send(t.Context(), snap(src), nil, 0)
	must(t, err)
	_, err = r.Read(make([]byte, 10))
	must(t, err)
	must(t, r.Close())
	ctx, cancel := context.WithCancel(t.Context())
	r, err = Streams{}.Send(ctx, snap(src), nil, 0)
	must(t, err)
	cancel()
	if _, err := io.Copy(io.Discard, r); !api.Is(err, api.Canceled) && !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled stream ended with %v", err)
	}
	must(t, r.Close())
	if _, err := io.ReadAll(must2(Streams{}.Send(t.Context(), snap(src), nil, 1<<40))(t)); !api.Is(err, api.Invalid) {
		t.Fatalf("an offset behind the end gave %v", err)
	}
}

func must2(r io.ReadCloser, err error) func(t *testing.T) io.Reader {
	return func(t *testing.T) io.Reader {
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
}
