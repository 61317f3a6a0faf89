package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func events(b *bench) {
	const repo = "alice/pg"
	w, err := b.AddWebhook(ctx, alice, hub.Webhook{Repository: repo, URL: "https://u:secret@example.com/?token=secret", Secret: "s", Kinds: []string{"ref.create", "repo.delete"}})
	must(b, err)
	if _, err := b.AddWebhook(ctx, alice, hub.Webhook{Repository: repo, URL: "https://off", Disabled: true}); err != nil {
		b.Fatal(err)
	}
	_, err = b.commit(repo, "b-main", "a")
	must(b, err)
	_, err = b.commit(repo, "b-main", "b", "a")
	must(b, err)
	list, err := b.Events(ctx, repo, 0, 2)
	must(b, err)
	if len(list) != 2 || list[0].Kind != "ref.move" || list[1].Kind != "ref.create" || list[0].User != "alice" || list[0].Token != "k1" ||
		list[0].Details["from"] != string(sum("manifest a")) || list[0].Details["commit"] != commitID("b") {
		b.Errorf("%+v", list)
	}
	older, err := b.Events(ctx, repo, list[1].ID, 10)
	must(b, err)
	if len(older) != 3 || older[2].Kind != "repo.create" {
		b.Errorf("%+v", older)
	}
	for _, e := range older {
		for _, v := range e.Details {
			if strings.Contains(v, "secret") {
				b.Errorf("%+v", e)
			}
		}
	}
	if everything, err := b.Events(ctx, "", 0, 100); err != nil || len(everything) < 7 {
		b.Errorf("%d %v", len(everything), err)
	}
	take := func(n int) []hub.Delivery {
		b.Helper()
		out, err := b.TakeDeliveries(ctx, 10, time.Minute)
		must(b, err)
		if len(out) != n {
			b.Fatalf("%d are due, want %d: %+v", len(out), n, out)
		}
		return out
	}
	d := take(1)[0]
	if d.Hook.ID != w.ID || d.Hook.Secret != "s" || d.Event.Kind != "ref.create" || d.Event.Details["to"] == "" || d.Tries != 0 {
		b.Errorf("%+v", d)
	}
	take(0) // one process sends it
	b.clock.add(time.Minute)
	if d = take(1)[0]; d.Tries != 1 {
		b.Errorf("%+v", d)
	}
	must(b, b.Retry(ctx, d.ID, b.clock.now().Add(time.Hour), "no answer"))
	b.clock.add(time.Minute)
	take(0)
	b.clock.add(time.Hour)
	must(b, b.ForgetEvents(ctx, b.clock.now()))
	d = take(1)[0]
	must(b, b.Delivered(ctx, d.ID))
	b.clock.add(time.Hour)
	take(0)
	must(b, b.ForgetEvents(ctx, b.clock.now()))
	if rest, err := b.Events(ctx, "", 0, 10); err != nil || len(rest) != 0 {
		b.Errorf("%v %v", rest, err)
	}
	hooks, err := b.Webhooks(ctx, repo)
	must(b, err)
	if len(hooks) != 2 || hooks[0].ID != w.ID || !slices.Equal(hooks[0].Kinds, w.Kinds) || !hooks[1].Disabled || len(hooks[1].Kinds) != 0 {
		b.Errorf("%+v", hooks)
	}
	must(b, b.DeleteWebhook(ctx, alice, repo, w.ID))
	kind(b, b.DeleteWebhook(ctx, alice, repo, w.ID), api.NotFound, "webhook")
}

func mirrorNames(b *bench) {
	const repo = "alice/pg"
	storage := map[string]digest.Digest{}
	var blobs []digest.Digest
	put := func(_ context.Context, m hub.Mirrored) error {
		switch {
		case m.Gone:
			clear(storage)
		case m.Digest == "":
			delete(storage, m.Name)
		default:
			storage[m.Name] = m.Digest
			blobs = append(blobs, m.Blobs...)
		}
		return nil
	}
	flush := func(want int) {
		b.Helper()
		list, err := b.Unmirrored(ctx, 100)
		must(b, err)
		if len(list) != want {
			b.Fatalf("%+v", list)
		}
		for _, m := range list {
			must(b, b.Mirror(ctx, m.Repository, m.Name, put))
		}
	}
	_, err := b.commit(repo, "b-main", "a")
	must(b, err)
	two, err := b.commit(repo, "b-main", "b", "a")
	must(b, err)
	// What fails is done later.
	failed := errors.New("no")
	if err := b.Mirror(ctx, repo, "b-main", func(context.Context, hub.Mirrored) error { return failed }); !errors.Is(err, failed) {
		b.Errorf("%v", err)
	}
	flush(1)
	flush(0)
	if storage["b-main"] != two || len(blobs) != 0 {
		b.Errorf("%v %v", storage, blobs)
	}
	// In a fork there are no links yet.
	must(b, b.Fork(ctx, alice, repo, hub.Repository{Name: "bob/pg"}))
	flush(1)
	if !slices.Equal(blobs, []digest.Digest{sum("blob b")}) {
		b.Errorf("%v", blobs)
	}
	// What moves while it is written is written again.
	_, err = b.commit(repo, "b-main", "c", "b")
	must(b, err)
	if !b.postgres {
		must(b, b.Mirror(ctx, repo, "b-main", func(ctx context.Context, m hub.Mirrored) error {
			_, err := b.commit(repo, "b-main", "d", "c")
			must(b, err)
			return put(ctx, m)
		}))
	}
	flush(1)
	must(b, b.DeleteRef(ctx, repo, "b-main", alice, hub.Admin, Condition{}))
	flush(1)
	if _, there := storage["b-main"]; there {
		b.Error("it stays")
	}
	_, err = b.commit(repo, "b-other", "c", "b")
	must(b, err)
	must(b, b.DeleteRepository(ctx, alice, repo))
	must(b, b.CreateRepository(ctx, alice, hub.Repository{Name: repo}))
	three, err := b.commit(repo, "b-new", "e")
	must(b, err)
	flush(2) // the old one's, and then what is in the new one
	if len(storage) != 1 || storage["b-new"] != three {
		b.Errorf("%v", storage)
	}
	flush(0)
}

// races: two handles on one database, as two processes have.
func races(b *bench) {
	other := b.open()
	const repo, n = "alice/pg", 8
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Quota: 1000}))
	base := hub.Manifest{Digest: sum("base"), Size: 1}
	must(b, b.put(repo, "b-main", base, Condition{}))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range n {
		m := hub.Manifest{Digest: sum(fmt.Sprint("m", i)), Size: 1}
		s := []*Store{b.Store, other}[i%2]
		wg.Go(func() {
			_, err := s.HoldManifest(ctx, repo, m)
			if err == nil {
				err = s.PutManifest(ctx, Put{Repository: repo, By: alice, Right: hub.Write, Manifest: m, Tag: "b-main", If: Condition{At: base.Digest}})
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !api.Is(err, api.Conflict) {
				b.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		b.Errorf("%d won", won)
	}
	// Pushers, askers and a sweep at once: who was told that a blob is there finds it.
	for round := range 10 {
		text := fmt.Sprint("contended ", round)
		d := b.blob(repo, text)
		b.clock.add(2 * hub.Grace)
		told := false
		wg.Go(func() {
			_, err := other.Blob(ctx, repo, d)
			if err != nil && !errors.Is(err, hub.ErrBlob) {
				b.Errorf("%v", err)
			}
			told = err == nil
		})
		wg.Go(func() {
			_, err := b.SweepRepository(ctx, repo, b.clock.now().Add(-hub.Grace))
			if err != nil {
				b.Errorf("%v", err)
			}
			if _, err = b.MarkOrphans(ctx, 100); err != nil {
				b.Errorf("%v", err)
			}
		})
		m := hub.Manifest{Digest: sum(text + "m"), Size: 1, Blobs: []digest.Digest{d}}
		var pushed error
		wg.Go(func() {
			if _, pushed = other.HoldManifest(ctx, repo, m); pushed == nil {
				pushed = other.PutManifest(ctx, Put{Repository: repo, By: alice, Manifest: m})
			}
		})
		wg.Wait()
		orphans, err := b.Orphans(ctx)
		must(b, err)
		lost := slices.ContainsFunc(orphans, func(o Orphan) bool { return o.Digest == d })
		if lost && (told || pushed == nil) {
			b.Errorf("round %d: told %v, pushed %v, and it goes", round, told, pushed)
		}
		if pushed != nil && !errors.Is(pushed, hub.ErrPart) {
			b.Errorf("%v", pushed)
		}
		for _, o := range orphans {
			must(b, b.Removed(ctx, o.Digest))
		}
	}
	// Holders against the marking, on one digest.
	for round := range 10 {
		text := fmt.Sprint("orphan ", round)
		d := b.blob(repo, text)
		must(b, b.DeleteBlob(ctx, repo, d))
		var held error
		wg.Go(func() { _, held = other.HoldBlob(ctx, repo, d, 8) })
		wg.Go(func() {
			if _, err := b.MarkOrphans(ctx, 100); err != nil {
				b.Errorf("%v", err)
			}
		})
		wg.Wait()
		orphans, err := b.Orphans(ctx)
		must(b, err)
		if (held == nil) == slices.ContainsFunc(orphans, func(o Orphan) bool { return o.Digest == d }) || (held != nil && !errors.Is(held, ErrDeleting)) {
			b.Errorf("held: %v, orphans %v", held, orphans)
		}
		for _, o := range orphans {
			must(b, b.Removed(ctx, o.Digest))
		}
	}
	// All count on the same bytes.
	for i := range n {
		s := []*Store{b.Store, other}[i%2]
		wg.Go(func() {
			_, err := s.HoldBlob(ctx, repo, sum("many"), 400)
			if err != nil {
				b.Errorf("%v", err)
			}
			_, err = s.HoldBlob(ctx, repo, sum(fmt.Sprint("many", i)), 400)
			if err != nil && !api.Is(err, api.Exhausted) {
				b.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if r, err := b.Repository(ctx, repo); err != nil || r.Used > 1000 || r.Used < 800 {
		b.Errorf("%+v %v", r, err)
	}
}

func locks(b *bench) {
	l, err := b.SweepLock(ctx)
	must(b, err)
	other := b.open()
	_, err = other.SweepLock(ctx)
	kind(b, err, api.InUse, "another process")
	must(b, l.Alive(ctx))
	l.Release()
	l, err = other.SweepLock(ctx)
	must(b, err)
	l.Release()
	if l, err = b.SweepLock(ctx); err != nil {
		b.Fatal(err)
	}
	l.Release()
}
