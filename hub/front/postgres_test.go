//go:build root

package front

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/manage/client"
	"github.com/drover-data/drover/internal/postgres"
)

// TestTwoProcesses: two processes on one PostgreSQL and one storage are one hub.
func TestTwoProcesses(t *testing.T) {
	ctx := context.Background()
	at := newPlace(t)
	at.database = postgres.Start(t).Database(t)
	p, q := at.run(t), at.run(t)
	root := p.admin(at)
	ann := p.user(root, "ann")
	annToo := q.as(ann.name, ann.secret)
	from := newPool(t)
	one := from.commit(t, 1, []byte("one"))
	to := receive(t)
	_, err := annToo.CreateRepository(ctx, hub.NewRepository{Name: "ann/pg"})
	must(t, err)
	w, err := ann.CreateWebhook(ctx, "ann/pg", hub.NewWebhook{URL: to.URL, Kinds: []string{"ref.create"}})
	must(t, err)
	to.key = keyOf(t, w.Secret)
	must(t, p.push(ann, "ann/pg", from, one))
	list, err := q.remote(annToo, "ann/pg").List(ctx, true)
	must(t, err)
	if len(list.Branches) != 1 || list.Branches[0].ID != one {
		t.Errorf("%+v", list)
	}
	await(t, func() bool { got, _ := to.count(); return got == 2 })
	to.mu.Lock()
	for id, n := range to.ids {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
	if len(to.wrong) > 0 {
		t.Error(to.wrong)
	}
	to.mu.Unlock()

	// Two pushers, each by another process: one wins, the other is told.
	var wait sync.WaitGroup
	results := make([]error, 2)
	for i, x := range []struct {
		p   *process
		who person
	}{{p, ann}, {q, annToo}} {
		side := newPool(t)
		side.commits[one] = from.commits[one]
		side.commit(t, 1, []byte("one"))
		tip := side.commit(t, 10+i, []byte(fmt.Sprint("side ", i)), one)
		wait.Go(func() { results[i] = x.p.push(x.who, "ann/pg", side, tip) })
	}
	wait.Wait()
	if err := errors.Join(results...); err != nil && !api.Is(err, api.Conflict) {
		t.Error(err)
	}
	if (results[0] == nil) == (results[1] == nil) {
		t.Errorf("%v, and %v", results[0], results[1])
	}

	// What is revoked by one counts no more with the other; news of one is heard at the other.
	k, err := ann.CreateToken(ctx, "ann", hub.NewToken{Most: hub.Read})
	must(t, err)
	must(t, func() error { _, err := q.as("ann", k.Secret).Self(ctx); return err }())
	must(t, ann.RevokeToken(ctx, "ann", k.ID))
	_, err = q.as("ann", k.Secret).Self(ctx)
	kind(t, err, api.Unauthenticated, "")
	begin, err := root.Activity(ctx, client.Activity{Limit: 1})
	must(t, err)
	news := make(chan []hub.Event, 1)
	go func() {
		list, err := q.as(root.name, root.secret).Activity(ctx, client.Activity{Follow: true, After: begin[0].ID, Wait: 30})
		if err != nil {
			t.Error(err)
		}
		news <- list
	}()
	_, err = ann.Fork(ctx, "ann/pg", hub.NewFork{Name: "ann/fork"})
	must(t, err)
	if list := <-news; len(list) == 0 || list[len(list)-1].Repository != "ann/fork" {
		t.Errorf("%+v", list)
	}

	// One goes down, the other goes on.
	p.stop()
	p.clock.add(2*hub.Grace + time.Hour)
	must(t, q.as(root.name, root.secret).Sweep(ctx))
	await(t, func() bool {
		s, err := q.as(root.name, root.secret).Status(ctx)
		return err == nil && s.Sweep != nil && s.Sweep.Ended != nil && s.Sweep.Begun.After(time.Now())
	})
	r := q.remote(annToo, "ann/fork")
	found, err := r.Find(ctx, one)
	must(t, err)
	must(t, r.Verify(ctx, found))
}
