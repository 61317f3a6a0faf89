// Package layout keeps commits in a directory that is an OCI image layout:
// blobs by digest, names as files of their own, changed under a lock. Its
// durability is that of the file system it lies on.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Store is a directory.
type Store struct {
	dir string
	now func() time.Time
	id  func() string
	// turn holds one while a name is changed.
	turn chan struct{}
}

var (
	_ remote.Store     = (*Store)(nil)
	_ remote.Collector = (*Store)(nil)
	_ remote.Marks     = (*Store)(nil)
)

// maxManifest bounds what is read at once.
const maxManifest = 64 << 20

// Open uses a directory, which Put and SetRef make when it is not there.
func Open(dir string, now func() time.Time, id func() string) *Store {
	return &Store{dir: dir, now: now, id: id, turn: make(chan struct{}, 1)}
}

// Info is of remote.Store.
func (s *Store) Info() remote.Info {
	return remote.Info{Kind: "directory", URL: (&url.URL{Scheme: "file", Path: s.dir}).String(), Atomic: true, MaxManifest: maxManifest}
}

// Close is of remote.Store.
func (s *Store) Close() error { return nil }

// fail makes an *api.Error of what went wrong with an object.
func (s *Store) fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	e := &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: s.Info().URL + " cannot be used", Err: err, Next: "see whether the directory is there and mounted"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Reason, e.Err, e.Next = api.NotFound, s.Info().URL+" does not have it", nil, ""
	case errors.Is(err, fs.ErrPermission):
		e.Kind, e.Next = api.Denied, "give the agent the right to use the directory"
	case errors.Is(err, unix.EROFS):
		e.Kind, e.Next = api.ReadOnly, "mount it writable"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Kind, e.Next = api.Exhausted, "make room there, or raise its limit"
	}
	return e
}

// Check is of remote.Store.
func (s *Store) Check(ctx context.Context, write bool) error {
	const op = "use remote"
	if err := remote.Ended(ctx, op, s.Info().URL); err != nil {
		return err
	}
	st, err := os.Stat(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		// A new one needs a place that is there: a typing error, or a disk that
		// is not mounted, must not become a directory.
		if _, err := os.Stat(filepath.Dir(s.dir)); err != nil || !write {
			return &api.Error{Kind: api.NotFound, Op: op, Object: s.Info().URL, Reason: "there is no such directory", Next: "make it, or mount what it should be on"}
		}
		return nil
	}
	if err != nil {
		return s.fail(op, "", err)
	}
	if !st.IsDir() {
		return &api.Error{Kind: api.Invalid, Op: op, Object: s.Info().URL, Reason: "it is not a directory"}
	}
	if _, err := os.Stat(filepath.Join(s.dir, ocispec.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
		names, err := os.ReadDir(s.dir)
		if err == nil && len(names) > 0 {
			return &api.Error{Kind: api.Invalid, Op: op, Object: s.Info().URL, Reason: "the directory holds other things than commits", Next: "give an empty one"}
		}
	}
	if write {
		return s.fail(op, "", unix.Access(s.dir, unix.W_OK))
	}
	return nil
}

func (s *Store) blob(ctx context.Context, d digest.Digest) (string, error) {
	if err := remote.CheckDigest(d); err != nil {
		return "", err
	}
	if err := remote.Ended(ctx, "find blob", string(d)); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, ocispec.ImageBlobsDir, "sha256", d.Encoded()), nil
}

// Stat is of remote.Store.
func (s *Store) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	path, err := s.blob(ctx, d)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return 0, s.fail("find blob", string(d), err)
	}
	return st.Size(), nil
}

// Get is of remote.Store.
func (s *Store) Get(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	path, err := s.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, s.fail("read blob", string(d), err)
	}
	return remote.Verify(f, d), nil
}

// GetRange is of remote.Store.
func (s *Store) GetRange(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	path, err := s.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	if offset < 0 || length < 0 {
		return nil, &api.Error{Kind: api.Invalid, Op: "read blob", Object: string(d), Reason: "there is nothing before its beginning"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, s.fail("read blob", string(d), err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, offset, length), f}, nil
}

// begin makes the directory an image layout.
func (s *Store) begin() error {
	for _, d := range []string{filepath.Join(ocispec.ImageBlobsDir, "sha256"), "refs", "leases"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return err
		}
	}
	path := filepath.Join(s.dir, ocispec.ImageLayoutFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	text, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, text, 0o644); err != nil {
		return err
	}
	// What was made is there after a loss of power, its parents first.
	for _, d := range []string{filepath.Dir(s.dir), s.dir, filepath.Join(s.dir, ocispec.ImageBlobsDir)} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Put is of remote.Store.
func (s *Store) Put(ctx context.Context, desc ocispec.Descriptor, content remote.Content, sent func(int64)) error {
	const op = "write blob"
	path, err := s.blob(ctx, desc.Digest)
	if err != nil {
		return err
	}
	if st, err := os.Stat(path); err == nil && st.Size() == desc.Size {
		// Seen anew by a collection that looks at ages.
		now := s.now()
		return s.fail(op, string(desc.Digest), os.Chtimes(path, now, now))
	}
	if err := s.begin(); err != nil {
		return s.fail(op, string(desc.Digest), err)
	}
	r, err := content()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return s.fail(op, string(desc.Digest), err)
	}
	defer func() { _ = f.Cleanup() }()
	sum := desc.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(f, sum, counter{ctx, sent}), r)
	if err != nil {
		return s.fail(op, string(desc.Digest), err)
	}
	if n != desc.Size || !sum.Verified() {
		return &api.Error{Kind: api.Damaged, Op: op, Object: string(desc.Digest), Reason: "what was to be written does not have that digest"}
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return s.fail(op, string(desc.Digest), err)
	}
	return s.fail(op, string(desc.Digest), syncDir(filepath.Dir(path)))
}

// counter tells of bytes, and ends with its context.
type counter struct {
	ctx  context.Context
	sent func(int64)
}

func (c counter) Write(p []byte) (int, error) {
	if err := remote.Ended(c.ctx, "write blob", ""); err != nil {
		return 0, err
	}
	if c.sent != nil {
		c.sent(int64(len(p)))
	}
	return len(p), nil
}

// Manifest is of remote.Store.
func (s *Store) Manifest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, []byte, error) {
	path, err := s.blob(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if st, err := os.Stat(path); err == nil && st.Size() > maxManifest {
		return ocispec.Descriptor{}, nil, &api.Error{Kind: api.Damaged, Op: "read manifest", Object: string(d), Reason: "it is too long"}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ocispec.Descriptor{}, nil, s.fail("read manifest", string(d), err)
	}
	return remote.ParseManifest(d, text)
}

// PutManifest is of remote.Store.
func (s *Store) PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte) error {
	return s.Put(ctx, desc, remote.Bytes(body), nil)
}

func (s *Store) ref(name string) string { return filepath.Join(s.dir, "refs", name) }

// Ref is of remote.Store.
func (s *Store) Ref(ctx context.Context, name string) (remote.Ref, error) {
	if err := remote.CheckName(name); err != nil {
		return remote.Ref{}, err
	}
	if err := remote.Ended(ctx, "find name", name); err != nil {
		return remote.Ref{}, err
	}
	return s.readRef(name)
}

func (s *Store) readRef(name string) (remote.Ref, error) {
	const op = "find name"
	text, err := os.ReadFile(s.ref(name))
	if err != nil {
		return remote.Ref{}, s.fail(op, name, err)
	}
	r := remote.Ref{Name: name}
	if err := json.Unmarshal(text, &r.Desc); err != nil || r.Desc.Digest.Validate() != nil {
		return r, &api.Error{Kind: api.Damaged, Op: op, Object: name, Reason: s.Info().URL + " has it without a digest that can be read"}
	}
	if st, err := os.Stat(s.ref(name)); err == nil {
		r.Time = st.ModTime()
	}
	return r, nil
}

// Refs is of remote.Store.
func (s *Store) Refs(ctx context.Context, prefix string) ([]remote.Ref, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, s.fail("list names", "", err)
	}
	var out []remote.Ref
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || remote.CheckName(e.Name()) != nil {
			continue
		}
		if err := remote.Ended(ctx, "list names", ""); err != nil {
			return nil, err
		}
		r, err := s.readRef(e.Name())
		if api.Is(err, api.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b remote.Ref) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// locked runs change while nobody else changes names.
func (s *Store) locked(ctx context.Context, change func() error) error {
	if err := remote.Ended(ctx, "wait for the lock", ""); err != nil {
		return err
	}
	select { // of this process one at a time asks for the file's lock
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return remote.Ended(ctx, "wait for the lock", "")
	}
	if err := s.begin(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "refs", ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select { // a lock of another host has no event to wait for
		case <-ctx.Done():
			return remote.Ended(ctx, "wait for the lock", "")
		case <-time.After(pause):
		}
	}
	return change()
}

// SetRef is of remote.Store.
func (s *Store) SetRef(ctx context.Context, name string, desc ocispec.Descriptor, expect digest.Digest) error {
	const op = "move name"
	if err := remote.CheckName(name); err != nil {
		return err
	}
	err := s.locked(ctx, func() error {
		now, err := s.readRef(name)
		if err != nil && !api.Is(err, api.NotFound) {
			return err
		}
		if now.Desc.Digest == desc.Digest {
			return nil
		}
		if now.Desc.Digest != expect {
			return remote.Moved(name, now.Desc.Digest, expect)
		}
		if _, err := s.Stat(ctx, desc.Digest); err != nil {
			return err // nothing points at what is not there
		}
		text, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		if err := renameio.WriteFile(s.ref(name), text, 0o644); err != nil {
			return err
		}
		if err := syncDir(filepath.Join(s.dir, "refs")); err != nil {
			return err
		}
		return s.writeIndex(name, &desc)
	})
	return s.fail(op, name, err)
}

// DeleteRef is of remote.Store.
func (s *Store) DeleteRef(ctx context.Context, name string, expect digest.Digest) error {
	const op = "remove name"
	if err := remote.CheckName(name); err != nil {
		return err
	}
	err := s.locked(ctx, func() error {
		now, err := s.readRef(name)
		if api.Is(err, api.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if now.Desc.Digest != expect {
			return remote.Moved(name, now.Desc.Digest, expect)
		}
		if err := os.Remove(s.ref(name)); err != nil {
			return err
		}
		if err := syncDir(filepath.Join(s.dir, "refs")); err != nil {
			return err
		}
		return s.writeIndex(name, nil)
	})
	return s.fail(op, name, err)
}

// writeIndex is for other OCI tools, which know no refs directory. It changes
// one name in what is there, so that a thousandth name costs one file's reading;
// if names are missing or too many, as after a crash, all are read again.
func (s *Store) writeIndex(changed string, to *ocispec.Descriptor) error {
	path := filepath.Join(s.dir, ocispec.ImageIndexFile)
	entries, err := os.ReadDir(filepath.Join(s.dir, "refs"))
	if err != nil {
		return err
	}
	had := map[string]ocispec.Descriptor{}
	var old ocispec.Index
	if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &old) == nil {
		for _, d := range old.Manifests {
			had[d.Annotations[ocispec.AnnotationRefName]] = d
		}
	}
	if to != nil {
		had[changed] = *to
	}
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for _, e := range entries {
		name := e.Name()
		if remote.CheckName(name) != nil {
			continue
		}
		d, ok := had[name]
		if !ok {
			r, err := s.readRef(name)
			if err != nil {
				continue // one that cannot be read must not hold up the others
			}
			d = r.Desc
		}
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		ix.Manifests = append(ix.Manifests, d)
	}
	text, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, text, 0o644)
}

// Mark is of remote.Marks.
func (s *Store) Mark(ctx context.Context, name string) error {
	const op = "announce"
	if err := remote.Ended(ctx, op, name); err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return s.fail(op, "", err)
	}
	path := filepath.Join(s.dir, "leases", name)
	text, err := json.Marshal(map[string]time.Time{"time": s.now().UTC()})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, text, 0o644); err != nil {
		return s.fail(op, "", err)
	}
	return s.fail(op, "", syncDir(filepath.Dir(path)))
}

// Unmark is of remote.Marks.
func (s *Store) Unmark(ctx context.Context, name string) error {
	const op = "withdraw"
	if err := remote.Ended(ctx, op, name); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(s.dir, "leases", name))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return s.fail(op, "", err)
}

// Marks is of remote.Marks.
func (s *Store) Marks(ctx context.Context) ([]remote.Mark, error) {
	const op = "list uploads"
	if err := remote.Ended(ctx, op, ""); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, s.fail(op, "", err)
	}
	var out []remote.Mark
	for _, e := range entries {
		if st, err := e.Info(); err == nil && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, remote.Mark{Name: e.Name(), Time: st.ModTime()})
		}
	}
	return out, nil
}

// Lease is of remote.Collector.
func (s *Store) Lease(ctx context.Context) (func(context.Context) error, error) {
	return remote.TakeLease(ctx, s, s.id(), s.now)
}

// Collect is of remote.Collector.
func (s *Store) Collect(ctx context.Context) (remote.Collection, error) {
	return remote.TakeCollect(ctx, s, s.id(), s.now)
}

// Leases is of remote.Collector.
func (s *Store) Leases(ctx context.Context) ([]time.Time, error) {
	return remote.LeaseTimes(ctx, s)
}

// Blobs is of remote.Collector.
func (s *Store) Blobs(ctx context.Context, each func(remote.Blob) error) error {
	const op = "list blobs"
	dir := filepath.Join(s.dir, ocispec.ImageBlobsDir, "sha256")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return s.fail(op, "", err)
	}
	for _, e := range entries {
		if err := remote.Ended(ctx, op, ""); err != nil {
			return err
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		st, err := e.Info()
		if err != nil {
			continue // it went meanwhile
		}
		if d.Validate() != nil {
			// A file that a crash left half written.
			if strings.HasPrefix(e.Name(), ".") && s.now().Sub(st.ModTime()) > remote.Grace {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
			continue
		}
		if err := each(remote.Blob{Digest: d, Size: st.Size(), Time: st.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}

// Delete is of remote.Collector.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	path, err := s.blob(ctx, d)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.fail("remove blob", string(d), err)
	}
	return nil
}
