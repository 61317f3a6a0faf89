package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/serve"
	"github.com/drover-data/drover/hub/store"
	"github.com/drover-data/drover/internal/hubserver"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/registry"
)

// TestMain lets this program be a hub that can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("HUB_TEST_LISTEN") != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func child() error {
	shift, err := time.ParseDuration(os.Getenv("HUB_TEST_SHIFT"))
	if err != nil {
		return err
	}
	s, err := serve.Open(ctx, serve.Options{
		Database: os.Getenv("HUB_TEST_DATABASE"), Storage: os.Getenv("HUB_TEST_STORAGE"), SweepEvery: 24 * time.Hour,
		Now: func() time.Time { return time.Now().Add(shift) },
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", os.Getenv("HUB_TEST_LISTEN"))
	if err != nil {
		return err
	}
	go s.Run(ctx)
	fmt.Println("ready")
	return http.Serve(l, s.Registry)
}

// victim is a hub in a process of its own.
type victim struct {
	t        testing.TB
	database string
	storage  string
	addr     string
	shift    time.Duration
	cmd      *exec.Cmd
	key      string
}

func newVictim(t testing.TB, o serve.Options) *victim {
	dir := t.TempDir()
	v := &victim{t: t, database: o.Database, storage: o.Storage}
	if v.database == "" {
		v.database = filepath.Join(dir, "hub.db")
	}
	if v.storage == "" {
		v.storage = filepath.Join(dir, "storage")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	v.addr = l.Addr().String()
	must(t, l.Close())
	t.Cleanup(v.kill)
	return v
}

func (v *victim) start() error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HUB_TEST_LISTEN="+v.addr, "HUB_TEST_DATABASE="+v.database, "HUB_TEST_STORAGE="+v.storage, "HUB_TEST_SHIFT="+v.shift.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	v.cmd = cmd
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	return err
}

// kill ends it as a loss of power does, but for what the kernel has.
func (v *victim) kill() {
	if v.cmd != nil {
		_ = v.cmd.Process.Signal(syscall.SIGKILL)
		_ = v.cmd.Wait()
		v.cmd = nil
	}
}

// account makes the user and their token in the database, before or beside the process.
func (v *victim) account() {
	v.t.Helper()
	st, err := store.Open(ctx, store.Options{URL: v.database})
	must(v.t, err)
	defer st.Close()
	must(v.t, st.CreateUser(ctx, hubserver.Operator, hub.User{Name: "alice"}))
	_, v.key, err = st.CreateToken(ctx, hubserver.Operator, hub.Token{User: "alice", Most: hub.Admin})
	must(v.t, err)
}

func (v *victim) open(repository string) *registry.Store {
	return open(v.t, registry.Options{Reference: v.addr + "/" + repository, Hub: true, Username: "alice", Password: v.key, DockerConfig: filepath.Join(v.t.TempDir(), "x")})
}

// TestKillUpload: the hub is killed in the middle of an upload, and once more; the client's
// one call goes on where it was and succeeds.
func TestKillUpload(t *testing.T) {
	v := newVictim(t, serve.Options{})
	v.account()
	must(t, v.start())
	s := v.open("alice/pg")
	body, desc := content(24<<20, 9)
	var sent, kills atomic.Int64
	source := func() (io.ReadCloser, error) {
		return &tripped{bytes.NewReader(body), func(at int64) {
			if n := kills.Load(); at > (n+1)*8<<20 && n < 2 {
				kills.Add(1)
				v.kill()
				if err := v.start(); err != nil {
					t.Error(err)
				}
			}
		}}, nil
	}
	must(t, s.Put(ctx, desc, source, func(n int64) { sent.Add(n) }))
	if kills.Load() != 2 || !bytes.Equal(read(t, s, desc.Digest), body) {
		t.Errorf("%d kills", kills.Load())
	}
}

// tripped tells how far it was read.
type tripped struct {
	*bytes.Reader
	at func(int64)
}

func (r *tripped) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.at(r.Size() - int64(r.Len()))
	return n, err
}

func (r *tripped) Close() error { return nil }

// stored counts what lies in a storage.
func stored(t testing.TB, dir string) map[digest.Digest]bool {
	t.Helper()
	out := map[digest.Digest]bool{}
	err := filepath.WalkDir(filepath.Join(dir, "docker/registry/v2/blobs/sha256"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "data" {
			out[digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(filepath.Dir(path)))] = true
		}
		if errors.Is(err, fs.ErrNotExist) { // it has just gone
			return nil
		}
		return err
	})
	must(t, err)
	return out
}

// TestKillSweep: a hub is killed while it removes bytes, again and again; what names lead to
// stays, and in the end nothing else does.
func TestKillSweep(t *testing.T) {
	v := newVictim(t, serve.Options{})
	v.account()
	must(t, v.start())
	s := v.open("alice/pg")
	head, err := push(t, s, "main", "one", "")
	must(t, err)
	for i := range 150 {
		text := []byte(fmt.Sprint("garbage ", i))
		must(t, s.Put(ctx, ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}, remote.Bytes(text), nil))
	}
	all := len(stored(t, v.storage))
	v.kill()
	v.shift = 26 * time.Hour
	for kills := 0; ; kills++ {
		must(t, v.start())
		deadline, cancel := context.WithTimeout(ctx, 30*time.Second)
		before := len(stored(t, v.storage))
		for {
			if n := len(stored(t, v.storage)); (n < before && kills < 8) || n == 3 {
				break
			}
			if err := deadline.Err(); err != nil {
				t.Fatalf("%d of %d are left: nothing goes", before, all)
			}
		}
		cancel()
		left := len(stored(t, v.storage))
		if left == 3 {
			if kills < 2 {
				t.Errorf("it was killed %d times", kills)
			}
			break
		}
		v.kill()
	}
	readable(t, s, "main", head.Digest)
	// It takes what it has removed, at once.
	text := []byte("garbage 0")
	must(t, s.Put(ctx, ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}, remote.Bytes(text), nil))
}
