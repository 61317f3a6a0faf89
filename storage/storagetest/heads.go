package storagetest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

var small = Files{"a": "one", "dir/b": "two", "empty": ""}

func (s suite) info(t *testing.T) {
	e := s.new(t)
	i, err := e.Info(e.ctx)
	e.ok(err, "Info")
	if i.Kind == "" || i.Source == "" || i.State != api.PoolReady || i.Capacity <= 0 || i.Free <= 0 || i.Free > i.Capacity || i.Used < 0 {
		t.Errorf("Info of an empty pool: %+v", i)
	}
}

func (s suite) life(t *testing.T) {
	e := s.new(t)
	_, err := e.Head(e.ctx, key("v1"))
	e.is(err, api.NotFound, "Head before it is made")
	h := e.head("v1", "")
	e.wantHead(h, Files{}) // truly empty: nothing of the file system's own
	if h.Dir != "" {
		names, err := os.ReadDir(h.Dir)
		e.ok(err, "look into the head")
		if len(names) > 0 {
			t.Errorf("an empty head holds %s", names[0].Name())
		}
	}
	e.write(h, small)
	h2 := e.head("v1", "") // again: as it is
	e.wantHead(h2, small)
	if h2.Created.IsZero() || !h2.Created.Equal(h.Created) || string(h2.Note) != "note of v1" || h2.From != "" {
		t.Errorf("the head made again is %+v, was %+v", h2, h)
	}
	other := storage.HeadKey{Volume: "v1", Branch: "feature/x"}
	_, err = e.CreateHead(e.ctx, storage.HeadSpec{Key: other})
	e.ok(err, "CreateHead of a branch with a slash")
	heads, err := e.Heads(e.ctx)
	e.ok(err, "Heads")
	var keys []string
	for _, h := range heads {
		keys = append(keys, h.Key.String())
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"v1@feature/x", "v1@main"}) {
		t.Errorf("Heads: %q", keys)
	}
	e, _ = e.again()
	h, err = e.Head(e.ctx, key("v1"))
	e.ok(err, "Head after a restart")
	e.wantHead(h, small)
	for range 2 { // gone already is success
		e.ok(e.DestroyHead(e.ctx, key("v1")), "DestroyHead")
	}
	_, err = e.Head(e.ctx, key("v1"))
	e.is(err, api.NotFound, "Head after it is destroyed")
	_, err = e.Head(e.ctx, other)
	e.ok(err, "the other branch's head")
	h = e.head("v1", "")
	e.wantHead(h, Files{}) // nothing comes back
}

func (s suite) arguments(t *testing.T) {
	e := s.new(t)
	for _, bad := range []string{"", "..", ".", "../x", "a/b", "/x", "a\x00b", strings.Repeat("x", 300)} {
		k := storage.HeadKey{Volume: bad, Branch: api.MainBranch}
		_, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: k})
		e.is(err, api.Invalid, "CreateHead of volume "+bad)
		e.is(e.DestroyHead(e.ctx, k), api.Invalid, "DestroyHead of volume "+bad)
		e.is(e.DestroySnapshot(e.ctx, "v", bad), api.Invalid, "DestroySnapshot "+bad)
		_, err = e.Stage(e.ctx, storage.ReceiveSpec{Volume: "v", ID: bad})
		e.is(err, api.Invalid, "Stage "+bad)
	}
	for _, bad := range []string{"", "..", "../x", "a//b", "a~b", "/x"} {
		_, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: storage.HeadKey{Volume: "v", Branch: bad}})
		e.is(err, api.Invalid, "CreateHead of branch "+bad)
	}
	_, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: key("v"), Note: make([]byte, 64<<10+1)})
	e.is(err, api.Invalid, "CreateHead with a note that is too long")
	h := e.head("v", "")
	_, err = e.Snapshot(e.ctx, h.Key, "../x", nil)
	e.is(err, api.Invalid, "Snapshot ../x")
}

func (s suite) snapshots(t *testing.T) {
	e := s.new(t)
	_, err := e.Snapshot(e.ctx, key("v"), "s1", nil)
	e.is(err, api.NotFound, "Snapshot of no head")
	_, err = e.CreateHead(e.ctx, storage.HeadSpec{Key: key("v"), From: "s1"})
	e.is(err, api.NotFound, "CreateHead from no snapshot")
	e.wantIDs("v")
	h := e.head("v", "")
	e.write(h, small)
	s1 := e.snap(h, "s1")
	e.write(h, Files{"a": "changed", "c": "new"})
	after := Files{"a": "changed", "dir/b": "two", "empty": "", "c": "new"}
	e.wantSnapshot(s1, small)
	again := e.snap(h, "s1") // the same ID gives what is there
	e.wantSnapshot(again, small)
	if again.Lineage != s1.Lineage || again.Order != s1.Order || !again.Created.Equal(s1.Created) {
		t.Errorf("Snapshot again gave %+v, was %+v", again, s1)
	}
	s2 := e.snap(h, "s2")
	e.wantSnapshot(s2, after)
	e.wantIDs("v", "s1", "s2")
	if s2.Order <= s1.Order {
		t.Errorf("the younger snapshot has order %d, the older %d", s2.Order, s1.Order)
	}
	if s1.Lineage != "" && s1.Lineage == s2.Lineage {
		t.Error("two snapshots share one lineage")
	}
	if s1.Dir != "" && !s.opt.RootWrites {
		if err := os.WriteFile(filepath.Join(s1.Dir, "a"), []byte("x"), 0o644); err == nil {
			t.Error("a snapshot can be written to")
		}
	}
	e, c := e.again()
	if len(c.Heads) != 1 || len(c.Snapshots) != 2 || len(c.Strange) != 0 || len(c.Partial) != 0 {
		t.Fatalf("Recover gave %+v", c)
	}
	if c.Snapshots[0].Lineage != s1.Lineage || string(c.Snapshots[0].Note) != "note of s1" {
		t.Errorf("after a restart the snapshot is %+v, was %+v", c.Snapshots[0], s1)
	}
	e.wantSnapshot(c.Snapshots[1], after)
	b, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: storage.HeadKey{Volume: "v", Branch: "old"}, From: "s1"})
	e.ok(err, "CreateHead from a snapshot")
	e.wantHead(b, small)
	if b.From != "s1" || len(b.Note) != 0 {
		t.Errorf("a head from a snapshot is %+v", b)
	}
	_, err = e.CreateHead(e.ctx, storage.HeadSpec{Key: b.Key, From: "s2"})
	e.is(err, api.Exists, "CreateHead from another snapshot")
	e.write(b, Files{"a": "branch"})
	e.wantSnapshot(c.Snapshots[0], small)
	all, err := e.Snapshots(e.ctx, "")
	e.ok(err, "Snapshots of all")
	if len(all) != 2 {
		t.Errorf("Snapshots of all volumes: %+v", all)
	}
	for range 2 {
		e.ok(e.DestroySnapshot(e.ctx, "v", "s1"), "DestroySnapshot")
	}
	e.wantIDs("v", "s2")
}

func (s suite) independence(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	e.write(h, small)
	e.snap(h, "s1")
	k := storage.HeadKey{Volume: "v", Branch: "b"}
	b, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: k, From: "s1"})
	e.ok(err, "CreateHead")
	e.write(b, Files{"a": "b"})
	fromB := Files{"a": "b", "dir/b": "two", "empty": ""}
	s2 := e.snap(b, "s2")
	// The oldest goes first, then the head it came from: nobody is harmed.
	e.ok(e.DestroySnapshot(e.ctx, "v", "s1"), "DestroySnapshot of the origin")
	e.wantHead(b, fromB)
	e.wantHead(h, small)
	e.ok(e.DestroyHead(e.ctx, h.Key), "DestroyHead")
	e.wantHead(b, fromB)
	e.ok(e.DestroyHead(e.ctx, k), "DestroyHead of the branch")
	e.wantSnapshot(s2, fromB)
	h = e.head("v", "s2")
	e.wantHead(h, fromB)
	e.ok(e.DestroySnapshot(e.ctx, "v", "s2"), "DestroySnapshot")
	e, _ = e.again()
	h, err = e.Head(e.ctx, h.Key)
	e.ok(err, "Head")
	e.wantHead(h, fromB)
	// Another volume may have snapshots of the same name.
	o := e.head("w", "")
	e.snap(o, "s2")
	e.wantIDs("v")
	e.wantIDs("w", "s2")
}

func (s suite) notes(t *testing.T) {
	e := s.new(t)
	e.is(e.SetNote(e.ctx, key("v"), nil), api.NotFound, "SetNote of no head")
	h := e.head("v", "")
	e.write(h, small)
	big := bytes.Repeat([]byte{0, 'x', 0xff}, 64<<10/3)
	e.ok(e.SetNote(e.ctx, h.Key, big), "SetNote")
	e.is(e.SetNote(e.ctx, h.Key, make([]byte, 64<<10+1)), api.Invalid, "SetNote, too long")
	sn, err := e.Snapshot(e.ctx, h.Key, "s1", big)
	e.ok(err, "Snapshot with a large note")
	e.ok(e.SetNote(e.ctx, h.Key, []byte("later")), "SetNote")
	if !bytes.Equal(sn.Note, big) {
		t.Error("the snapshot's note is not what was given")
	}
	e, c := e.again()
	if string(c.Heads[0].Note) != "later" || !bytes.Equal(c.Snapshots[0].Note, big) {
		t.Error("notes did not survive a restart")
	}
	e.wantHead(c.Heads[0], small)
}

func (s suite) concurrency(t *testing.T) {
	e := s.new(t)
	const n = 8
	var wg sync.WaitGroup
	errs := make(chan error, n*4)
	for i := range n {
		wg.Go(func() {
			v := key([]string{"v0", "v1"}[i%2])
			_, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: v})
			errs <- err
			_, err = e.Snapshot(e.ctx, v, "same", nil)
			errs <- err
			_, err = e.Snapshot(e.ctx, v, "own"+string(rune('a'+i)), nil)
			errs <- err
			errs <- e.SetNote(e.ctx, v, []byte{byte(i)})
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		e.ok(err, "a call beside others")
	}
	if a, b := len(e.ids("v0")), len(e.ids("v1")); a != n/2+1 || b != n/2+1 {
		t.Errorf("%d and %d snapshots, want %d each", a, b, n/2+1)
	}
}

func (s suite) canceled(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	if _, err := e.Snapshot(ctx, h.Key, "s1", nil); err != nil {
		e.is(err, api.Canceled, "Snapshot with a cancelled context")
		e.wantIDs("v")
	}
	e.snap(h, "s1")
}

func (s suite) sizer(t *testing.T) {
	e := s.new(t)
	z, ok := storage.As[storage.Sizer](e.Backend)
	if !ok {
		return // an optional capability
	}
	const mib = 1 << 20
	h, err := e.CreateHead(e.ctx, storage.HeadSpec{Key: key("v"), Size: 16 * mib})
	e.ok(err, "CreateHead with a size")
	if h.Size != 16*mib {
		t.Fatalf("the head's size is %d", h.Size)
	}
	e.is(z.Resize(e.ctx, key("none"), mib), api.NotFound, "Resize of no head")
	e.is(z.Resize(e.ctx, h.Key, -1), api.Invalid, "Resize to less than nothing")
	e.write(h, Files{"f": noise(1, 8*mib)})
	e.ok(z.Resize(e.ctx, h.Key, 32*mib), "grow")
	err = z.Resize(e.ctx, h.Key, mib)
	e.is(err, api.Exhausted, "shrink below what is used")
	if h, err = e.Head(e.ctx, h.Key); err != nil || h.Size != 32*mib {
		t.Fatalf("after a refused shrink the size is %d, %v", h.Size, err)
	}
	e.ok(z.Resize(e.ctx, h.Key, 12*mib), "shrink")
	info, err := e.Info(e.ctx)
	e.ok(err, "Info")
	if info.HardSizes {
		if err := s.opt.Content.WriteHead(e.Backend, h, Files{"g": noise(2, 12*mib)}); err == nil {
			if err = flush(h.Dir); err == nil {
				t.Error("a hard size did not hold")
			}
		}
		// What Drover itself needs still works, and so does the way out.
		e.ok(e.SetNote(e.ctx, h.Key, bytes.Repeat([]byte("n"), 60<<10)), "SetNote in a full head")
		_, err := e.Snapshot(e.ctx, h.Key, "full", bytes.Repeat([]byte("n"), 60<<10))
		e.ok(err, "Snapshot of a full head")
	}
	e.ok(z.Resize(e.ctx, h.Key, 0), "remove the limit")
	e.write(h, Files{"g": noise(2, 20*mib)})
	_, c := e.again()
	if len(c.Heads) != 1 || c.Heads[0].Size != 0 {
		t.Errorf("after a restart: %+v", c.Heads)
	}
}

// flush makes delayed writes fail now if they are to fail.
func flush(dir string) error {
	if dir == "" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) string {
	b := make([]byte, 0, n+8)
	x := seed*0x9e3779b97f4a7c15 + 1
	for len(b) < n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b = append(b, byte(x), byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56))
	}
	return string(b[:n])
}

func (s suite) recover(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	e.write(h, small)
	e.snap(h, "s1")
	want := []string{}
	if s.opt.Strange != nil {
		want = append(want, s.opt.Strange(t, e.Backend))
	}
	st, err := e.Stage(e.ctx, storage.ReceiveSpec{Volume: "v", ID: "half"})
	e.ok(err, "Stage")
	e.ok(s.opt.Content.WriteStage(st, small), "write into the stage")
	for range 2 { // and once more: what was found stays found
		var c storage.Content
		e, c = e.again()
		if len(c.Heads) != 1 || len(c.Snapshots) != 1 || !slices.Equal(c.Strange, want) && len(c.Strange)+len(want) > 0 {
			t.Fatalf("Recover gave %+v, want one head, one snapshot and strange %q", c, want)
		}
		if len(c.Partial) != 0 {
			t.Fatalf("a stage without a mark can go on: %+v", c.Partial)
		}
		e.wantHead(c.Heads[0], small)
	}
}

func (s suite) gone(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	e.write(h, small)
	e.snap(h, "s1")
	s.opt.Gone(t, e.Backend)
	for _, b := range []storage.Backend{e.Backend, s.opt.Reopen(t, e.Backend)} {
		i, err := b.Info(e.ctx)
		e.ok(err, "Info of a pool that is gone")
		if i.State != api.PoolGone || i.Reason == "" {
			t.Errorf("Info of a pool that is gone: %+v", i)
		}
		_, err = b.Head(e.ctx, key("v"))
		e.is(err, api.Unavailable, "Head")
		_, err = b.Head(e.ctx, key("never"))
		e.is(err, api.Unavailable, "Head that never was")
		_, err = b.Heads(e.ctx)
		e.is(err, api.Unavailable, "Heads")
		_, err = b.Snapshots(e.ctx, "v")
		e.is(err, api.Unavailable, "Snapshots")
		_, err = b.CreateHead(e.ctx, storage.HeadSpec{Key: key("v")})
		e.is(err, api.Unavailable, "CreateHead")
		e.is(b.DestroyHead(e.ctx, key("v")), api.Unavailable, "DestroyHead")
		e.is(b.DestroySnapshot(e.ctx, "v", "s1"), api.Unavailable, "DestroySnapshot")
		_, err = b.Recover(e.ctx)
		e.is(err, api.Unavailable, "Recover")
	}
}

func (s suite) nested(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	e.write(h, Files{"sub/x": "x"})
	s.opt.Nested(t, filepath.Join(h.Dir, "sub", "inner"))
	h, err := e.Head(e.ctx, h.Key)
	e.ok(err, "Head")
	if !slices.Equal(h.Nested, []string{"sub/inner"}) {
		t.Errorf("Nested is %q", h.Nested)
	}
	_, err = e.Snapshot(e.ctx, h.Key, "s1", nil)
	e.is(err, api.Unsupported, "Snapshot with something nested")
	if err != nil && !strings.Contains(err.Error(), "sub/inner") {
		t.Errorf("the error does not name it: %v", err)
	}
	e.wantIDs("v")
	e.ok(e.DestroyHead(e.ctx, h.Key), "DestroyHead with something nested")
	_, err = e.Head(e.ctx, h.Key)
	e.is(err, api.NotFound, "Head")
}

func (s suite) mounts(t *testing.T) {
	e := s.new(t)
	h := e.head("v", "")
	e.write(h, small)
	target := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	e.ok(e.Unmount(e.ctx, h.Key, target), "Unmount of what is not mounted")
	e.is(e.Mount(e.ctx, key("none"), target), api.NotFound, "Mount of no head")
	for range 2 {
		e.ok(e.Mount(e.ctx, h.Key, target), "Mount")
	}
	got, err := readDir(target)
	e.ok(err, "read the mount")
	e.same(got, small, "the mount")
	e.ok(os.WriteFile(filepath.Join(target, "m"), []byte("m"), 0o644), "write into the mount")
	with := Files{"m": "m"}
	for k, v := range small {
		with[k] = v
	}
	e.wantHead(h, with)
	e.identity(h.Key, target)
	e.is(e.DestroyHead(e.ctx, h.Key), api.InUse, "DestroyHead of a mounted head")
	e, _ = e.again()
	e.is(e.DestroyHead(e.ctx, h.Key), api.InUse, "DestroyHead of a mounted head, after a restart")
	e.ok(e.Mount(e.ctx, h.Key, target), "Mount after a restart")
	open, err := os.Open(filepath.Join(target, "m"))
	e.ok(err, "open a file")
	e.is(e.Unmount(e.ctx, h.Key, target), api.InUse, "Unmount while a file is open")
	open.Close()
	// A file system mounted inside would be left out of a snapshot.
	inner := filepath.Join(target, "dir")
	if err := unix.Mount("none", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	_, err = e.Snapshot(e.ctx, h.Key, "s1", nil)
	innerGone := unix.Unmount(inner, 0)
	e.is(err, api.Unsupported, "Snapshot with a file system mounted inside")
	e.ok(innerGone, "unmount the inner file system")
	e.snap(h, "s1")
	for range 2 {
		e.ok(e.Unmount(e.ctx, h.Key, target), "Unmount")
	}
	names, err := os.ReadDir(target)
	e.ok(err, "look at the mount point")
	if len(names) != 0 {
		t.Errorf("after Unmount the mount point holds %s", names[0].Name())
	}
	e.ok(e.DestroyHead(e.ctx, h.Key), "DestroyHead")
}
