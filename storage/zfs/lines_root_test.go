//go:build root

package zfs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var mainHead = storage.HeadKey{Volume: "v", Branch: api.MainBranch}

func put(t *testing.T, h storage.Head, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(h.Dir, name), []byte(text), 0o600))
}

func snap(t *testing.T, b *Backend, key storage.HeadKey, id string) storage.Snapshot {
	t.Helper()
	s, err := b.Snapshot(t.Context(), key, id, nil)
	must(t, err)
	return s
}

// carry brings a snapshot from one pool to another and gives the stream's length.
func carry(t *testing.T, from, to *Backend, id, base string) (storage.Snapshot, int) {
	t.Helper()
	r, err := from.Send(t.Context(), storage.SendSpec{Volume: "v", ID: id, Base: base})
	must(t, err)
	data, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	in, err := to.Receive(t.Context(), storage.ReceiveSpec{Volume: "v", ID: id, Base: base}, to.Format())
	must(t, err)
	_, err = in.Write(data)
	must(t, err)
	s, err := in.Commit(t.Context())
	must(t, err)
	must(t, in.Close())
	return s, len(data)
}

func wantFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
		t.Fatalf("%s holds %.40q, %v; want %.40q", name, got, err, text)
	}
}

// left lists the trees, snapshots and views that are there.
func left(t *testing.T, b *Backend) []string {
	t.Helper()
	all, err := b.get(t.Context(), []string{"type"}, b.cfg.Source, true)
	must(t, err)
	var names []string
	for n := range all {
		if strings.Count(strings.TrimPrefix(n, b.cfg.Source), "/") > 1 {
			names = append(names, n)
		}
	}
	return names
}

// TestFarBase: a base several data sets back, and one that is no ancestor.
func TestFarBase(t *testing.T) {
	a, b, c := newPool(t), newPool(t), newPool(t)
	h, err := a.CreateHead(t.Context(), storage.HeadSpec{Key: mainHead})
	must(t, err)
	bulk := strings.Repeat("a volume's bulk ", 40_000)
	put(t, h, "bulk", bulk)
	snap(t, a, mainHead, "s1")
	carry(t, a, b, "s1", "")
	carry(t, a, c, "s1", "")
	for _, step := range []struct{ id, base string }{{"s2", "s1"}, {"s3", "s2"}, {"s4", "s3"}} {
		put(t, h, "text", step.id)
		snap(t, a, mainHead, step.id)
		carry(t, a, b, step.id, step.base)
	}
	// On b every snapshot has a data set of its own; the steps between go with it.
	got, n := carry(t, b, c, "s4", "s1")
	if n > len(bulk)/2 {
		t.Errorf("three small changes took %d bytes", n)
	}
	wantFile(t, got.Dir, "text", "s4")
	wantFile(t, got.Dir, "bulk", bulk)
	list, err := c.Snapshots(t.Context(), "v")
	must(t, err)
	if len(list) != 2 {
		t.Errorf("steps on the way are listed: %+v", list)
	}
	// What the others need goes on when its snapshots have been destroyed.
	for _, id := range []string{"s1", "s2", "s3"} {
		must(t, b.DestroySnapshot(t.Context(), "v", id))
	}
	list, err = b.Snapshots(t.Context(), "v")
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("listed: %+v", list)
	}
	wantFile(t, list[0].Dir, "bulk", bulk)
	// A sibling is a base too, at the price of sending everything.
	side := storage.HeadKey{Volume: "v", Branch: "side"}
	sh, err := a.CreateHead(t.Context(), storage.HeadSpec{Key: side, From: "s1"})
	must(t, err)
	put(t, sh, "text", "side")
	snap(t, a, side, "x1")
	got, _ = carry(t, a, b, "x1", "s4")
	wantFile(t, got.Dir, "text", "side")
	wantFile(t, got.Dir, "bulk", bulk)
	for _, id := range []string{"s4", "x1"} {
		must(t, b.DestroySnapshot(t.Context(), "v", id))
	}
	if names := left(t, b); len(names) > 0 {
		t.Errorf("everything was destroyed, and there are %q", names)
	}
}

// TestSameID: a snapshot's ID can come again while clones of the first remain.
func TestSameID(t *testing.T) {
	b := newPool(t)
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: mainHead})
	must(t, err)
	put(t, h, "f", "first")
	snap(t, b, mainHead, "s")
	other := storage.HeadKey{Volume: "v", Branch: "other"}
	o, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: other, From: "s"})
	must(t, err)
	must(t, b.DestroySnapshot(t.Context(), "v", "s"))
	put(t, h, "f", "second")
	// A crash between the snapshot and its file leaves this.
	f, err := b.readHead("", mainHead)
	must(t, err)
	zfsDo(t, "zfs", "snapshot", b.treeName(f.Tree)+"@"+snapName("v", "s"))
	put(t, h, "f", "third")
	wantFile(t, snap(t, b, mainHead, "s").Dir, "f", "third")
	wantFile(t, o.Dir, "f", "first")
	must(t, b.DestroyHead(t.Context(), other))
	must(t, b.DestroyHead(t.Context(), mainHead))
	must(t, b.DestroySnapshot(t.Context(), "v", "s"))
	if names := left(t, b); len(names) > 0 {
		t.Errorf("everything was destroyed, and there are %q", names)
	}
}

// TestInit: what is not ours is refused, and what is there is taken as it is.
func TestInit(t *testing.T) {
	b := newPool(t)
	must(t, b.Init(t.Context())) // again
	again, err := New(Config{Source: b.cfg.Source, Dir: b.cfg.Dir})
	must(t, err)
	must(t, again.Init(t.Context()))
	taken := poolOf(b.cfg.Source) + "/taken"
	zfsDo(t, "zfs", "create", taken)
	zfsDo(t, "zfs", "create", taken+"/child")
	c, err := New(Config{Source: taken, Dir: filepath.Join(t.TempDir(), "taken")})
	must(t, err)
	if err := c.Init(t.Context()); !api.Is(err, api.Exists) {
		t.Errorf("a data set with others inside: %v", err)
	}
	none, err := New(Config{Source: "nosuchpool/drover", Dir: filepath.Join(t.TempDir(), "none")})
	must(t, err)
	if err := none.Init(t.Context()); !api.Is(err, api.Unavailable) {
		t.Errorf("Init without a pool: %v", err)
	}
	for _, cfg := range []Config{{"tank/drover", "relative"}, {"../x", "/x"}, {"", "/x"}} {
		if _, err := New(cfg); !api.Is(err, api.Invalid) {
			t.Errorf("New(%+v): %v", cfg, err)
		}
	}
	// An unmounted data set, as after a start of the host, is mounted again.
	_, err = b.CreateHead(t.Context(), storage.HeadSpec{Key: mainHead})
	must(t, err)
	h, err := b.Head(t.Context(), mainHead)
	must(t, err)
	put(t, h, "f", "kept")
	must(t, unix.Unmount(filepath.Dir(h.Dir), 0))
	h, err = b.Head(t.Context(), mainHead)
	must(t, err)
	wantFile(t, h.Dir, "f", "kept")
}

// TestFidelity: what is declared is what zfs-fuse is known to keep.
func TestFidelity(t *testing.T) {
	i, err := newPool(t).Info(t.Context())
	must(t, err)
	f := i.Fidelity
	if f.TimeGrain.Seconds() != 1 || f.TimeMax == 0 || f.Sparse || !f.Xattrs || !f.ACLs || !f.HardLinks || !f.Devices || !f.FIFOs || !f.Owners || !f.Modes || !f.CaseSensitive || f.NameBytes < 255 {
		t.Errorf("zfs-fuse keeps %+v", f)
	}
}

// TestForeignStream: a stream of the right frame with another content is not published.
func TestForeignStream(t *testing.T) {
	a := newPool(t)
	name := poolOf(a.cfg.Source) + "/foreign"
	zfsDo(t, "zfs", "create", name)
	zfsDo(t, "zfs", "snapshot", name+"@s")
	props, err := a.get(t.Context(), []string{"guid"}, name+"@s", false)
	must(t, err)
	var raw bytes.Buffer
	cmd := command(t.Context(), "zfs", "send", name+"@s")
	cmd.Stdout = &raw
	must(t, cmd.Run())
	var guid uint64
	for _, c := range props[name+"@s"]["guid"] {
		guid = guid*10 + uint64(c-'0')
	}
	in, err := a.Receive(t.Context(), storage.ReceiveSpec{Volume: "v", ID: "s"}, a.Format())
	must(t, err)
	_, err = in.Write(append(header{0, guid, 1}.bytes(), raw.Bytes()...))
	must(t, err)
	if _, err := in.Commit(t.Context()); !api.Is(err, api.Damaged) {
		t.Errorf("a foreign data set was taken for a volume: %v", err)
	}
	must(t, in.Abort(t.Context()))
	if names := left(t, a); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
}
