//go:build root

package tree

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// TestShared: a difference of two reflinked trees is the same whether or not
// the file system says what they share, and what is shared is not read.
func TestShared(t *testing.T) {
	top := t.TempDir()
	img, dir := filepath.Join(top, "img"), filepath.Join(top, "fs")
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, 512<<20))
	for _, args := range [][]string{{"mkfs.xfs", "-q", img}, {"mkdir", dir}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	a, b, plain := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(top, "plain")
	must(t, os.Mkdir(a, 0o755))
	must(t, os.Mkdir(b, 0o755))
	noise := make([]byte, 20<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	must(t, os.WriteFile(filepath.Join(a, "f"), noise, 0o600))
	must(t, Copy(context.Background(), a, b, true))
	same(t, a, b, storage.Full())
	f, err := os.OpenFile(filepath.Join(b, "f"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for range 40 {
		_, err := f.WriteAt([]byte{byte(r.Uint32()), 1, 2}, r.Int64N(int64(len(noise)-3)))
		must(t, err)
	}
	fa, err := os.Open(filepath.Join(a, "f"))
	must(t, err)
	defer fa.Close()
	s := newSharing(int(fa.Fd()), int(f.Fd()))
	known := int64(0)
	for off := int64(0); off < int64(len(noise)); {
		next := s.skip(off, int64(len(noise)))
		known += next - off
		off = max(next, off+4096)
	}
	if known < int64(len(noise))*8/10 || known == int64(len(noise)) {
		t.Fatalf("%d of %d bytes are known to be shared", known, len(noise))
	}
	base := snap(a)
	delta := stream(t, snap(b), &base, 0)
	// Copies that share nothing differ in the same way.
	copyTree(t, a, plain)
	other := snap(plain)
	other.ID = base.ID
	if !bytes.Equal(delta, stream(t, snap(b), &other, 0)) {
		t.Fatal("what is shared changes the stream")
	}
	st := newStage(t, filepath.Join(top, "out"))
	must(t, feed(t, st, stream(t, base, nil, 0), storage.Full(), false))
	must(t, feed(t, st2(st), delta, storage.Full(), false))
	same(t, b, st.dir, storage.Full())
}
