package exchange

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/tree"
	"github.com/drover-data/drover/tree/layer"
)

// Into is where a commit is fetched to.
type Into struct {
	Backend storage.Backend
	Volume  string // id of the volume in the pool
	Pool    Pool
	Graph   repo.Graph // what is known here, theirs included
	// AllowLoss permits a pool that cannot keep everything; what it cannot is
	// kept beside the data.
	AllowLoss bool
}

// Get makes a commit's snapshot in a pool: on a copy of the nearest commit that
// is here, writing what differs, or whole. One that is there already is success.
func (r *Remote) Get(ctx context.Context, s *Stored, into Into) (storage.Snapshot, error) {
	if have, err := into.Pool.Find(ctx, s.Record.ID); err == nil || !api.Is(err, api.NotFound) {
		return have.Snapshot, err
	}
	if err := r.prepare(); err != nil {
		return storage.Snapshot{}, err
	}
	if err := r.checkContent(ctx, s); err != nil {
		return storage.Snapshot{}, err
	}
	info, err := into.Backend.Info(ctx)
	if err != nil {
		return storage.Snapshot{}, err
	}
	base, fresh, err := r.onto(ctx, s, into)
	if err != nil {
		return storage.Snapshot{}, err
	}
	note, err := json.Marshal(repo.Note{Commit: &s.Record.Commit})
	if err != nil {
		return storage.Snapshot{}, err
	}
	spec := storage.ReceiveSpec{Volume: into.Volume, ID: s.Record.ID, Note: note, Stream: "remote"}
	if base == nil {
		spec.Size = s.Record.Content.Bytes
	} else {
		spec.Base = base.Commit.ID
	}
	return r.fill(ctx, s, into.Backend, spec, base, fresh, info.Fidelity, into.AllowLoss)
}

// checkContent looks that indexes and record say the same.
func (r *Remote) checkContent(ctx context.Context, s *Stored) error {
	r = r.reading(s)
	src, done, err := r.layers(ctx, true, s.Record.Layers)
	if err != nil {
		return err
	}
	defer done()
	content, err := layer.Root(src)
	if err != nil {
		return err
	}
	got := "sha256:" + ociDigest(content.Digest).Encoded()
	if r.Key != nil {
		got = r.Key.Digest(content.Digest)
	}
	if got != s.Record.Content.Digest {
		return damaged(short(s.Record.ID), "its layers give the digest "+got+", its record says "+s.Record.Content.Digest)
	}
	return nil
}

// maxBases bounds how many commits that are here are tried as a base.
const maxBases = 20

// onto finds the nearest commit here of which s is a difference by layers, and
// which of s's layers say the difference.
func (r *Remote) onto(ctx context.Context, s *Stored, into Into) (*Base, []Layer, error) {
	all := r
	r = r.reading(s)
	for _, id := range into.Graph.Near(s.Record.ID, maxBases) {
		local, err := into.Pool.Find(ctx, id)
		if api.Is(err, api.NotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		there, err := all.Find(ctx, id)
		if api.Is(err, api.NotFound) || api.Is(err, api.Denied) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		fresh, ok, err := r.difference(ctx, there.Record.Layers, s.Record.Layers)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			return &Base{Local: local, Stored: there}, fresh, nil
		}
	}
	return nil, s.Record.Layers, nil
}

// difference gives the layers that turn the tree of old into that of new, if
// there are such: those after the common ones, when they say something of all that
// old's further layers touched.
func (r *Remote) difference(ctx context.Context, old, want []Layer) ([]Layer, bool, error) {
	n := 0
	for n < len(old) && n < len(want) && old[n].Index == want[n].Index {
		n++
	}
	if n == 0 {
		return nil, false, nil
	}
	if n == len(old) {
		return want[n:], true, nil
	}
	newer, done, err := r.layers(ctx, false, want[n:])
	if err != nil {
		return nil, false, err
	}
	defer done()
	older, done2, err := r.layers(ctx, false, old[n:])
	if err != nil {
		return nil, false, err
	}
	defer done2()
	ok, err := layer.Covers(newer, older)
	return want[n:], ok, err
}

// fill writes layers into a stage and makes it the snapshot.
func (r *Remote) fill(ctx context.Context, s *Stored, b storage.Backend, spec storage.ReceiveSpec, base *Base, fresh []Layer, keeps storage.Fidelity, lossy bool) (snap storage.Snapshot, err error) {
	stage, err := b.Stage(ctx, spec)
	if err != nil {
		return snap, err
	}
	defer func() {
		if err != nil {
			// What is half there is no good: packs that have come stay in the cache.
			_ = stage.Abort(context.WithoutCancel(ctx))
		}
		_ = stage.Close()
	}()
	if err := r.write(ctx, s, stage.Dir(), stage.Beside(), base, fresh, keeps, lossy); err != nil {
		return snap, err
	}
	return stage.Commit(ctx)
}

// write writes layers into a directory that is empty, or a copy of base.
func (r *Remote) write(ctx context.Context, s *Stored, dir, beside string, base *Base, fresh []Layer, keeps storage.Fidelity, lossy bool) error {
	r = r.reading(s)
	cache, err := r.openLeaves()
	if err != nil {
		return err
	}
	defer cache.close()
	src, done, err := r.layers(ctx, base == nil, fresh)
	if err != nil {
		return err
	}
	defer done()
	packs, err := r.openPacks(ctx, s, fresh, base == nil)
	if err != nil {
		return err
	}
	defer packs.close()
	to, err := tree.OpenTarget(dir, beside, keeps, lossy)
	if err != nil {
		return err
	}
	run := layer.Restore{
		Packs: packs, Seal: r.sealer(), Workers: r.workers(), Leaves: cache.use(),
		Done: func(n int64) { r.tell(Progress{Phase: "writing", Bytes: n}) },
	}
	if base != nil {
		if run.Base, err = tree.OpenFiles(ctx, base.Snapshot.Dir); err != nil {
			return err
		}
		defer run.Base.Close()
		old, done, err := r.layers(ctx, true, base.Stored.Record.Layers)
		if err != nil {
			return err
		}
		defer done()
		run.Old = old
	}
	err = run.Run(ctx, src, to)
	if err2 := to.Close(); err == nil {
		err = err2
	}
	if err == nil {
		packs.drop()
	}
	return err
}

// whole prepares to read all of a commit from the remote: what the cache has was
// checked when it came; what is asked is the remote.
func (r *Remote) whole(ctx context.Context, s *Stored) (*Remote, error) {
	if err := r.prepare(); err != nil {
		return nil, err
	}
	r = r.reading(s)
	for _, l := range s.Record.Layers {
		if err := r.readBack(ctx, l.Index); err != nil {
			return nil, err
		}
	}
	return r, r.checkContent(ctx, s)
}

// Verify reads everything of a commit back and checks it, writing nothing.
func (r *Remote) Verify(ctx context.Context, s *Stored) error {
	r, err := r.whole(ctx, s)
	if err != nil {
		return err
	}
	src, done, err := r.layers(ctx, true, s.Record.Layers)
	if err != nil {
		return err
	}
	defer done()
	packs, err := r.openPacks(ctx, s, s.Record.Layers, true)
	if err != nil {
		return err
	}
	defer packs.close()
	return layer.Restore{
		Packs: packs, Seal: r.sealer(), Workers: r.workers(),
		Done: func(n int64) { r.tell(Progress{Phase: "reading", Bytes: n}) },
	}.Check(ctx, src)
}

// Try restores a commit, all of it from the remote, into a tree of its own, lets
// use look at that, and removes it whatever happens. After a crash DestroySnapshot
// of the volume removes it.
func (r *Remote) Try(ctx context.Context, s *Stored, b storage.Backend, volume string, use func(dir string) error) (err error) {
	if _, err := r.whole(ctx, s); err != nil {
		return err
	}
	info, err := b.Info(ctx)
	if err != nil {
		return err
	}
	stage, err := b.Stage(ctx, storage.ReceiveSpec{Volume: volume, ID: s.Record.ID, Size: s.Record.Content.Bytes, Stream: "try"})
	if err != nil {
		return err
	}
	defer func() {
		if err2 := stage.Abort(context.WithoutCancel(ctx)); err == nil {
			err = err2
		}
		_ = stage.Close()
	}()
	if err := r.write(ctx, s, stage.Dir(), stage.Beside(), nil, s.Record.Layers, info.Fidelity, true); err != nil {
		return err
	}
	return use(stage.Dir())
}

// Packs are those that a commit needs, in order.
func (s *Stored) Packs() []string {
	var out []string
	for d := range s.packs {
		out = append(out, string(d))
	}
	slices.Sort(out)
	return out
}
