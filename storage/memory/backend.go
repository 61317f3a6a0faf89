package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// Info implements storage.Backend.
func (b *Backend) Info(context.Context) (storage.Info, error) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	used := b.used()
	i := storage.Info{
		Kind: "memory", Source: b.p.cfg.Name, State: b.p.state, Capacity: b.p.cfg.Capacity, Used: used,
		Free: max(0, b.p.cfg.Capacity-used), HardSizes: true, Atomic: !b.p.cfg.Slow, Instant: !b.p.cfg.Slow,
		// Paths and content are all there is.
		Fidelity: storage.Fidelity{CaseSensitive: true, NameBytes: 255},
	}
	if i.State != api.PoolReady {
		i.Reason, i.Free = "a test made it "+string(i.State), 0
	}
	return i, nil
}

// Recover implements storage.Backend.
func (b *Backend) Recover(ctx context.Context) (storage.Content, error) {
	const op = "recover pool"
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	var c storage.Content
	if err := begin(ctx, op, b.p.cfg.Name, b.there(op, b.p.cfg.Name)); err != nil {
		return c, err
	}
	c.Heads, c.Snapshots, c.Strange = b.heads(), b.list(""), slices.Clone(b.p.strange)
	for _, k := range slices.Sorted(maps.Keys(b.p.partials)) {
		c.Partial = append(c.Partial, b.p.partials[k].spec)
	}
	return c, nil
}

// CreateHead implements storage.Backend.
func (b *Backend) CreateHead(ctx context.Context, spec storage.HeadSpec) (storage.Head, error) {
	const op = "make head"
	var none storage.Head
	if err := begin(ctx, op, spec.Key.String(), checkKey(spec.Key), checkNote(spec.Note)); err != nil {
		return none, err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if h, err := b.head(op, spec.Key); err == nil {
		if h.From != spec.From {
			return none, fail(api.Exists, op, spec.Key.String(), fmt.Sprintf("it is there already and began as %q", h.From))
		}
		return h.show(), nil
	} else if !api.Is(err, api.NotFound) {
		return none, err
	}
	files := Files{}
	if spec.From != "" {
		of := spec.FromVolume
		if of == "" {
			of = spec.Key.Volume
		}
		s, err := b.snapshot(op, of, spec.From)
		if err != nil {
			return none, err
		}
		files = maps.Clone(s.files)
	}
	if err := b.room(op, spec.Key.String(), 0); err != nil {
		return none, err
	}
	h := &head{storage.Head{
		Key: spec.Key, Size: spec.Size, From: spec.From, Created: b.p.cfg.Now(), Note: slices.Clone(spec.Note),
	}, files, map[string]bool{}, false}
	b.p.heads[spec.Key] = h
	return h.show(), nil
}

// Head implements storage.Backend.
func (b *Backend) Head(ctx context.Context, key storage.HeadKey) (storage.Head, error) {
	const op = "look up head"
	if err := begin(ctx, op, key.String(), checkKey(key)); err != nil {
		return storage.Head{}, err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	h, err := b.head(op, key)
	if err != nil {
		return storage.Head{}, err
	}
	return h.show(), nil
}

func (b *Backend) heads() []storage.Head {
	var list []storage.Head
	for _, h := range b.p.heads {
		list = append(list, h.show())
	}
	return sorted(list, func(h storage.Head) string { return h.Key.String() })
}

// Heads implements storage.Backend.
func (b *Backend) Heads(ctx context.Context) ([]storage.Head, error) {
	const op = "list heads"
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if err := begin(ctx, op, b.p.cfg.Name, b.there(op, b.p.cfg.Name)); err != nil {
		return nil, err
	}
	return b.heads(), nil
}

// change runs f on a head that is there.
func (b *Backend) change(ctx context.Context, op string, key storage.HeadKey, f func(*head) error) error {
	if err := begin(ctx, op, key.String(), checkKey(key)); err != nil {
		return err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	h, err := b.head(op, key)
	if err != nil {
		return err
	}
	return f(h)
}

// SetNote implements storage.Backend.
func (b *Backend) SetNote(ctx context.Context, key storage.HeadKey, note []byte) error {
	const op = "write note"
	if err := checkNote(note); err != nil {
		return err
	}
	return b.change(ctx, op, key, func(h *head) error {
		if err := b.writable(op, key.String()); err != nil {
			return err
		}
		h.Note = slices.Clone(note)
		return nil
	})
}

// DestroyHead implements storage.Backend.
func (b *Backend) DestroyHead(ctx context.Context, key storage.HeadKey) error {
	const op = "destroy head"
	err := b.change(ctx, op, key, func(h *head) error {
		if len(h.mounts) > 0 {
			return fail(api.InUse, op, key.String(), "it is mounted at "+slices.Sorted(maps.Keys(h.mounts))[0])
		}
		if err := b.writable(op, key.String()); err != nil {
			return err
		}
		delete(b.p.heads, key)
		return nil
	})
	if api.Is(err, api.NotFound) {
		return nil
	}
	return err
}

// Mount implements storage.Backend: nothing is mounted, but remembered.
func (b *Backend) Mount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "mount head"
	return b.change(ctx, op, key, func(h *head) error {
		for k, other := range b.p.heads {
			if k != key && other.mounts[target] {
				return fail(api.InUse, op, key.String(), k.String()+" is mounted at "+target)
			}
		}
		h.mounts[target] = true
		return nil
	})
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, key storage.HeadKey, target string) error {
	const op = "unmount head"
	err := b.change(ctx, op, key, func(h *head) error {
		if h.mounts[target] && h.open {
			return fail(api.InUse, op, key.String(), "something still uses "+target)
		}
		delete(h.mounts, target)
		return nil
	})
	if api.Is(err, api.NotFound) {
		return nil // what is not there is not mounted
	}
	return err
}

// Identity implements storage.Backend.
func (b *Backend) Identity(ctx context.Context, key storage.HeadKey) (storage.Identity, error) {
	var id storage.Identity
	err := b.change(ctx, "identify head", key, func(*head) error {
		id = storage.Identity{MountDevice: "0:0", Root: "/" + b.p.cfg.Name + "/" + key.String()}
		return nil
	})
	return id, err
}

// Snapshot implements storage.Backend.
func (b *Backend) Snapshot(ctx context.Context, key storage.HeadKey, id string, note []byte) (storage.Snapshot, error) {
	const op = "make snapshot"
	var none storage.Snapshot
	if err := begin(ctx, op, key.String(), checkKey(key), checkID("snapshot", id), checkNote(note)); err != nil {
		return none, err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if s, err := b.snapshot(op, key.Volume, id); err == nil {
		return s.show(), nil
	} else if !api.Is(err, api.NotFound) {
		return none, err
	}
	h, err := b.head(op, key)
	if err != nil {
		return none, err
	}
	if err := b.writable(op, key.String()); err != nil {
		return none, err
	}
	return b.publish(key.Volume, id, "", note, h.files).show(), nil
}

func (b *Backend) list(volume string) []storage.Snapshot {
	var list []storage.Snapshot
	for v, ids := range b.p.snapshots {
		if volume != "" && v != volume {
			continue
		}
		for _, s := range ids {
			list = append(list, s.show())
		}
	}
	return sorted(list, func(s storage.Snapshot) uint64 { return s.Order })
}

// Snapshots implements storage.Backend.
func (b *Backend) Snapshots(ctx context.Context, volume string) ([]storage.Snapshot, error) {
	const op = "list snapshots"
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if volume != "" {
		if err := checkID("volume", volume); err != nil {
			return nil, err
		}
	}
	if err := begin(ctx, op, volume, b.there(op, b.p.cfg.Name)); err != nil {
		return nil, err
	}
	return b.list(volume), nil
}

// DestroySnapshot implements storage.Backend.
func (b *Backend) DestroySnapshot(ctx context.Context, volume, id string) error {
	const op = "destroy snapshot"
	object := volume + "@" + id
	if err := begin(ctx, op, object, checkID("volume", volume), checkID("snapshot", id)); err != nil {
		return err
	}
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if err := b.writable(op, object); err != nil {
		return err
	}
	if k := volume + "/" + id; !b.busy[k] {
		delete(b.p.partials, k)
	}
	delete(b.p.snapshots[volume], id)
	return nil
}

// Resize implements storage.Sizer.
func (b *Backend) Resize(ctx context.Context, key storage.HeadKey, want int64) error {
	const op = "resize head"
	return b.change(ctx, op, key, func(h *head) error {
		used := size(h.files)
		switch {
		case want < 0:
			return fail(api.Invalid, op, key.String(), "the size is negative")
		case want > 0 && used > want:
			return &api.Error{Kind: api.Exhausted, Op: op, Object: key.String(), Reason: fmt.Sprintf("its files take %d bytes", used), Next: fmt.Sprintf("give at least %d bytes", used)}
		}
		if err := b.writable(op, key.String()); err != nil {
			return err
		}
		h.Size = want
		return nil
	})
}

// Close implements storage.Backend.
func (b *Backend) Close() error { return nil }

// enter begins an arrival: it checks and claims.
func (b *Backend) enter(ctx context.Context, op string, spec storage.ReceiveSpec, format string) (*partial, error) {
	object := spec.Volume + "@" + spec.ID
	if err := begin(ctx, op, object, checkID("volume", spec.Volume), checkID("snapshot", spec.ID), checkNote(spec.Note)); err != nil {
		return nil, err
	}
	if _, err := b.snapshot(op, spec.Volume, spec.ID); err == nil {
		return nil, fail(api.Exists, op, object, "the snapshot is there already")
	} else if !api.Is(err, api.NotFound) {
		return nil, err
	}
	if spec.Base != "" {
		if _, err := b.snapshot(op, spec.Volume, spec.Base); err != nil {
			return nil, err
		}
	}
	k := spec.Volume + "/" + spec.ID
	if b.busy[k] {
		return nil, fail(api.InUse, op, object, "it is arriving already")
	}
	if err := b.room(op, object, spec.Size); err != nil {
		return nil, err
	}
	b.busy[k] = true
	q := b.p.partials[k]
	if q == nil || q.spec.Base != spec.Base || q.spec.Stream != spec.Stream || q.format != format {
		delete(b.p.partials, k)
		return nil, nil
	}
	q.spec.Note = slices.Clone(spec.Note)
	return q, nil
}

// Stage is storage.Stage in memory.
type Stage struct {
	b      *Backend
	spec   storage.ReceiveSpec
	files  Files
	note   []byte
	closed bool
}

// Stage implements storage.Backend. The result is a *Stage.
func (b *Backend) Stage(ctx context.Context, spec storage.ReceiveSpec) (storage.Stage, error) {
	const op = "stage snapshot"
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	q, err := b.enter(ctx, op, spec, "")
	if err != nil {
		return nil, err
	}
	s := &Stage{b: b, spec: spec, files: Files{}}
	switch {
	case q != nil:
		s.files, s.note = maps.Clone(q.files), slices.Clone(q.note)
	case spec.Base != "":
		s.files = maps.Clone(b.p.snapshots[spec.Volume][spec.Base].files)
	}
	return s, nil
}

// Put writes files into the stage.
func (s *Stage) Put(files Files) { maps.Copy(s.files, files) }

// Remove removes files from the stage.
func (s *Stage) Remove(paths ...string) {
	for _, p := range paths {
		delete(s.files, p)
	}
}

// Files gives the stage's content.
func (s *Stage) Files() Files { return maps.Clone(s.files) }

// Dir implements storage.Stage: there is none.
func (s *Stage) Dir() string { return "" }

// Beside implements storage.Stage: there is none.
func (s *Stage) Beside() string { return "" }

// Marked implements storage.Stage.
func (s *Stage) Marked() []byte { return s.note }

func (s *Stage) object() string { return s.spec.Volume + "@" + s.spec.ID }

func (s *Stage) key() string { return s.spec.Volume + "/" + s.spec.ID }

// Mark implements storage.Stage.
func (s *Stage) Mark(ctx context.Context, note []byte) error {
	s.b.p.mu.Lock()
	defer s.b.p.mu.Unlock()
	if err := s.ready(ctx, "mark stage"); err != nil {
		return err
	}
	s.note = slices.Clone(note)
	s.b.p.partials[s.key()] = &partial{spec: s.spec, files: maps.Clone(s.files), note: slices.Clone(note)}
	return nil
}

func (s *Stage) ready(ctx context.Context, op string) error {
	if s.closed {
		return fail(api.Invalid, op, s.object(), "this handle was closed")
	}
	return begin(ctx, op, s.object(), s.b.there(op, s.object()), s.b.room(op, s.object(), size(s.files)))
}

// Commit implements storage.Stage.
func (s *Stage) Commit(ctx context.Context) (storage.Snapshot, error) {
	s.b.p.mu.Lock()
	defer s.b.p.mu.Unlock()
	if err := s.ready(ctx, "commit stage"); err != nil {
		return storage.Snapshot{}, err
	}
	s.end(true)
	return s.b.publish(s.spec.Volume, s.spec.ID, "", s.spec.Note, s.files).show(), nil
}

func (s *Stage) end(drop bool) {
	if s.closed {
		return
	}
	s.closed = true
	delete(s.b.busy, s.key())
	if drop {
		delete(s.b.p.partials, s.key())
	}
}

// Abort implements storage.Stage.
func (s *Stage) Abort(context.Context) error {
	s.b.p.mu.Lock()
	defer s.b.p.mu.Unlock()
	if err := s.b.there("abort stage", s.object()); err != nil {
		return err
	}
	s.end(true)
	return nil
}

// Close implements storage.Stage.
func (s *Stage) Close() error {
	s.b.p.mu.Lock()
	defer s.b.p.mu.Unlock()
	s.end(false)
	return nil
}
