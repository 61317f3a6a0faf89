//go:build root

package btrfs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs/sendstream"
	"github.com/drover-data/drover/storage/hostfs"
)

var mainKey = storage.HeadKey{Volume: "v", Branch: "main"}

func mustHead(t testing.TB, b *Backend, from string) storage.Head {
	t.Helper()
	h, err := b.CreateHead(t.Context(), storage.HeadSpec{Key: mainKey, From: from})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// transferTo brings a snapshot over as a session would.
func transferTo(t testing.TB, from, to *Backend, id, base, format string) storage.Snapshot {
	t.Helper()
	ctx := t.Context()
	s, err := from.Send(ctx, storage.SendSpec{Volume: "v", ID: id, Base: base, Format: format})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := to.Receive(ctx, storage.ReceiveSpec{Volume: "v", ID: id, Base: base}, format)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{r}, struct{ io.Reader }{s}, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	got, err := r.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestFidelity sends a tree with everything in it, under a writer, in both
// formats, full and incremental.
func TestFidelity(t *testing.T) {
	a := newPool(t, 1<<30)
	h := mustHead(t, a, "")
	everything(t, h.Dir, 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(h.Dir, fmt.Sprintf("busy%d", i%50))
			_ = os.WriteFile(name, bytes.Repeat([]byte{byte(i) | 1}, i%200*100), 0o644)
			if i%7 == 0 {
				_ = os.Rename(name, name+"x")
			}
		}
	}()
	var snaps []storage.Snapshot
	for round := 1; round <= 3; round++ {
		s, err := a.Snapshot(t.Context(), mainKey, fmt.Sprintf("s%d", round), nil)
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, s)
		everything(t, h.Dir, round)
	}
	close(stop)
	<-done
	for _, format := range a.Formats() {
		b := newPool(t, 1<<30)
		base := ""
		for _, s := range snaps {
			got := transferTo(t, a, b, s.ID, base, format)
			sameTree(t, s.Dir, got.Dir)
			base = s.ID
		}
	}
}

// TestReceiver is the child of TestKill: it receives a stream from a file and
// says where it stands.
func TestReceiver(t *testing.T) {
	dir := os.Getenv("DROVER_TEST_POOL")
	if dir == "" {
		return
	}
	b, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := b.Receive(t.Context(), storage.ReceiveSpec{Volume: "v", ID: "s1"}, os.Getenv("DROVER_TEST_FORMAT"))
	if api.Is(err, api.Exists) { // killed between the commit and saying so
		fmt.Println("committed")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.Getenv("DROVER_TEST_STREAM"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(r.Offset(), io.SeekStart); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("at %d\n", r.Offset())
	for buf := make([]byte, 200<<10); ; {
		n, err := f.Read(buf)
		if n == 0 && err == io.EOF {
			break
		}
		if _, err := r.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
		at, err := r.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("at %d\n", at)
	}
	if _, err := r.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Println("committed")
}

// TestKill kills a receiving process again and again, at any instant.
func TestKill(t *testing.T) {
	a, b := newPool(t, 512<<20), newPool(t, 512<<20)
	h := mustHead(t, a, "")
	everything(t, h.Dir, 0)
	everything(t, h.Dir, 1)
	s1, err := a.Snapshot(t.Context(), mainKey, "s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	src, err := a.Send(t.Context(), storage.SendSpec{Volume: "v", ID: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(src)
	src.Close()
	if err != nil {
		t.Fatal(err)
	}
	stream := filepath.Join(t.TempDir(), "stream")
	if err := os.WriteFile(stream, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Close()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	kept := int64(0)
	for round := 0; ; round++ {
		cmd := exec.Command(os.Args[0], "-test.run=^TestReceiver$", "-test.v")
		cmd.Env = append(os.Environ(), "DROVER_TEST_POOL="+b.cfg.Dir, "DROVER_TEST_STREAM="+stream, "DROVER_TEST_FORMAT="+a.Format())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		lines, limit := 0, 1+rnd.IntN(4)
		var all strings.Builder
		committed := false
		for sc := bufio.NewScanner(out); sc.Scan(); {
			all.WriteString(sc.Text() + "\n")
			var at int64
			if n, _ := fmt.Sscanf(sc.Text(), "at %d", &at); n == 1 {
				if at < kept {
					t.Fatalf("it went back from %d to %d", kept, at)
				}
				kept = at
				if lines++; lines == limit {
					if round < 12 {
						// Somewhere in the middle of the next piece.
						go func(wait time.Duration) {
							<-time.After(wait)
							_ = cmd.Process.Kill()
						}(time.Duration(rnd.IntN(15)) * time.Millisecond)
					}
				}
			}
			committed = committed || sc.Text() == "committed"
		}
		err = cmd.Wait()
		if committed {
			break
		}
		if round > 14 || err != nil && !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: %v\n%s", round, err, all.String())
		}
	}
	c, err := b.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Snapshots) != 1 || len(c.Partial)+len(c.Strange) != 0 || c.Snapshots[0].Lineage != s1.Lineage {
		t.Fatalf("%+v", c)
	}
	sameTree(t, s1.Dir, c.Snapshots[0].Dir)
	if names, _ := os.ReadDir(filepath.Join(b.cfg.Dir, "incoming")); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

// TestHostileStreams tries to leave the tree.
func TestHostileStreams(t *testing.T) {
	b := newPool(t, 512<<20)
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	type F = sendstream.Field
	u64 := func(n uint64) []byte {
		var p [8]byte
		for i := range p {
			p[i] = byte(n >> (8 * i))
		}
		return p[:]
	}
	path := func(s string) F { return F{Attr: sendstream.Path, Value: []byte(s)} }
	write := func(p string) []byte {
		return sendstream.AppendCommand(nil, 1, sendstream.Write, path(p), F{Attr: sendstream.FileOffset, Value: u64(0)}, F{Attr: sendstream.Data, Value: []byte("evil")})
	}
	link := func(p, to string) []byte {
		return sendstream.AppendCommand(nil, 1, sendstream.Symlink, path(p), F{Attr: sendstream.PathLink, Value: []byte(to)})
	}
	start := sendstream.AppendCommand(sendstream.AppendHeader(nil, 1), 1, sendstream.Subvol, path("s"), F{Attr: sendstream.UUID, Value: make([]byte, 16)}, F{Attr: sendstream.CTransid, Value: u64(1)})
	loop := sendstream.AppendCommand(nil, 1, sendstream.Mknod, path("dev"), F{Attr: sendstream.Mode, Value: u64(unix.S_IFBLK | 0o600)}, F{Attr: sendstream.Rdev, Value: u64(7 << 8)})
	fifo := sendstream.AppendCommand(nil, 1, sendstream.Mkfifo, path("pipe"), F{Attr: sendstream.Mode, Value: u64(unix.S_IFIFO | 0o600)}, F{Attr: sendstream.Rdev, Value: u64(0)})
	end := sendstream.AppendCommand(nil, 1, sendstream.End)
	for name, body := range map[string][]byte{
		"absolute":          write(outside),
		"dots":              write("../../../../../../../../../.." + outside),
		"through a link":    slicesConcat(link("l", filepath.Dir(outside)), write("l/victim")),
		"onto a link":       slicesConcat(link("l", outside), write("l")),
		"chmod of a link":   slicesConcat(link("l", outside), sendstream.AppendCommand(nil, 1, sendstream.Chmod, path("l"), F{Attr: sendstream.Mode, Value: u64(0o777)})),
		"a device":          slicesConcat(loop, write("dev")),
		"a pipe":            slicesConcat(fifo, write("pipe")),
		"rename out":        slicesConcat(sendstream.AppendCommand(nil, 1, sendstream.Mkfile, path("f")), sendstream.AppendCommand(nil, 1, sendstream.Rename, path("f"), F{Attr: sendstream.PathTo, Value: []byte("../../f")})),
		"no directories":    end,
		"data is a link":    slicesConcat(link("data", "/etc"), sendstream.AppendCommand(nil, 1, sendstream.Mkdir, path(".drover")), sendstream.AppendCommand(nil, 1, sendstream.Mkdir, path(".drover/beside")), end),
		"twice":             start[sendstream.HeaderSize:],
		"foreign clone":     sendstream.AppendCommand(nil, 1, sendstream.Clone, path("f"), F{Attr: sendstream.CloneUUID, Value: bytes.Repeat([]byte{9}, 16)}, F{Attr: sendstream.ClonePath, Value: []byte("x")}, F{Attr: sendstream.FileOffset, Value: u64(0)}, F{Attr: sendstream.CloneOffset, Value: u64(0)}, F{Attr: sendstream.CloneLen, Value: u64(0)}),
		"unknown command":   sendstream.AppendCommand(nil, 1, 77, path("f")),
		"without its parts": sendstream.AppendCommand(nil, 1, sendstream.Write, path("f")),
	} {
		r, err := b.Receive(t.Context(), storage.ReceiveSpec{Volume: "v", ID: "s1"}, formatV1)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Write(slicesConcat(start, body))
		if err == nil {
			_, err = r.Commit(t.Context())
		}
		if !api.Is(err, api.Damaged) {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Abort(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var st unix.Stat_t
		if text, err := os.ReadFile(outside); err != nil || string(text) != "safe" {
			t.Fatalf("%s reached a file outside", name)
		} else if err := unix.Stat(outside, &st); err != nil || st.Mode&0o777 != 0o600 {
			t.Fatalf("%s changed a file outside", name)
		}
	}
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestSizes holds what docs/storage.md says of sizes on btrfs.
func TestSizes(t *testing.T) {
	b := newPool(t, 1<<30)
	ctx := t.Context()
	if p, err := b.pool(); err != nil || !p.counts() {
		t.Log("this kernel has no simple quotas: " + b.QuotaNote())
		return
	}
	h, err := b.CreateHead(ctx, storage.HeadSpec{Key: mainKey, Size: 40 << 20})
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) error {
		f, err := os.OpenFile(filepath.Join(h.Dir, "f"), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), n), 0); err != nil {
			return err
		}
		return f.Sync()
	}
	// Rewriting 30 of 40 MiB stays possible whatever snapshots keep.
	for i := range 4 {
		if err := put(30 << 20); err != nil {
			t.Fatalf("rewrite %d: %v", i, err)
		}
		if _, err := b.Snapshot(ctx, mainKey, fmt.Sprintf("s%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if err := b.DestroySnapshot(ctx, "v", fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(30 << 20); err != nil {
		t.Fatalf("rewrite after the snapshots are gone: %v", err)
	}
	for range 3 { // each look may lower the limit, never below what is right
		if _, err := b.Head(ctx, mainKey); err != nil {
			t.Fatal(err)
		}
		if err := put(30 << 20); err != nil {
			t.Fatalf("rewrite after a look: %v", err)
		}
	}
	fresh, err := b.CreateHead(ctx, storage.HeadSpec{Key: storage.HeadKey{Volume: "w", Branch: "main"}, Size: 20 << 20})
	if err != nil {
		t.Fatal(err)
	}
	h = fresh
	if err := put(50 << 20); err == nil {
		t.Error("50 MiB went into 20")
	}
	// What Drover itself needs still works, and so does the way out.
	note := bytes.Repeat([]byte("n"), hostfs.MaxNote)
	if err := b.SetNote(ctx, h.Key, note); err != nil {
		t.Errorf("SetNote in a full head: %v", err)
	}
	if _, err := b.Snapshot(ctx, h.Key, "full", note); err != nil {
		t.Errorf("Snapshot of a full head: %v", err)
	}
}

// BenchmarkPipeline brings 256 MiB over, by turns with Drover's and with
// btrfs-progs' pipeline, each until the data is durable.
func BenchmarkPipeline(b *testing.B) {
	a, to := newPool(b, 3<<30), newPool(b, 4<<30)
	h := mustHead(b, a, "")
	rnd := rand.New(rand.NewChaCha8([32]byte{}))
	buf := make([]byte, 16<<20)
	for i := range 16 {
		for j := 0; j < len(buf); j += 8 {
			x := rnd.Uint64()
			for k := range 8 {
				buf[j+k] = byte(x >> (8 * k))
			}
		}
		if err := os.WriteFile(filepath.Join(h.Dir, fmt.Sprintf("f%d", i)), buf, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	s, err := a.Snapshot(b.Context(), mainKey, "s1", nil)
	if err != nil {
		b.Fatal(err)
	}
	snap := filepath.Dir(s.Dir)
	bare := filepath.Join(to.cfg.Dir, "bare")
	if err := os.Mkdir(bare, 0o700); err != nil {
		b.Fatal(err)
	}
	clean := func(remove func() error) {
		if err := remove(); err != nil {
			b.Fatal(err)
		}
		if out, err := exec.Command("btrfs", "subvolume", "sync", to.cfg.Dir).CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
		unix.Sync()
	}
	times := map[string]time.Duration{}
	run := func(name string, f func(), remove func() error) {
		start := time.Now()
		f()
		times[name] += time.Since(start)
		clean(remove)
	}
	gone := func() error { return to.DestroySnapshot(context.Background(), "v", "s1") }
	// Once uncounted, so that nobody reads the source from a cold disk.
	transferTo(b, a, to, "s1", "", formatV2)
	clean(gone)
	b.ResetTimer()
	for range b.N {
		run("v1", func() { transferTo(b, a, to, "s1", "", formatV1) }, gone)
		run("bare", func() {
			cmd := exec.Command("sh", "-c", `btrfs send -q "$1" | btrfs receive -q "$2" && btrfs filesystem sync "$2"`, "sh", snap, bare)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
		}, func() error {
			d, err := unix.Open(bare, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(d)
			return snapDestroy(d, "s1")
		})
		run("v2", func() { transferTo(b, a, to, "s1", "", formatV2) }, gone)
	}
	for name, d := range times {
		b.ReportMetric(256*float64(b.N)/d.Seconds(), name+"-MiB/s")
	}
	b.ReportMetric(times["bare"].Seconds()/times["v2"].Seconds(), "ratio")
}

// BenchmarkSnapshot is a snapshot of an idle pool.
func BenchmarkSnapshot(b *testing.B) {
	p := newPool(b, 512<<20)
	mustHead(b, p, "")
	for i := 0; b.Loop(); i++ {
		if _, err := p.Snapshot(b.Context(), mainKey, fmt.Sprintf("s%d", i), nil); err != nil {
			b.Fatal(err)
		}
	}
}
