package store

import (
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

func letters(b *bench) {
	const repo = "alice/pg"
	_, err := b.commit(repo, "b-main", "a")
	must(b, err)
	w, err := b.AddWebhook(ctx, alice, hub.Webhook{Repository: repo, URL: "https://example.com", Secret: "s", Kinds: []string{"ref.move"}})
	must(b, err)
	_, err = b.commit(repo, "b-main", "b", "a")
	must(b, err)
	list, err := b.Letters(ctx, w.ID, 10)
	must(b, err)
	if len(list) != 1 || list[0].Kind != "ref.move" || list[0].Due == nil || list[0].GivenUp != nil {
		b.Fatalf("%+v", list)
	}
	d, err := b.TakeDeliveries(ctx, 10, time.Minute)
	must(b, err)
	must(b, b.Retry(ctx, d[0].ID, b.clock.now().Add(time.Hour), "500 "+strings.Repeat("\xff", 1000)))
	if list, _ = b.Letters(ctx, w.ID, 10); list[0].Tries != 1 || !strings.HasPrefix(list[0].Said, "500") || len(list[0].Said) > 510 {
		b.Errorf("%+v", list)
	}
	must(b, b.GiveUp(ctx, d[0].ID, "no answer"))
	b.clock.add(1000 * time.Hour)
	if d, err := b.TakeDeliveries(ctx, 10, time.Minute); err != nil || len(d) != 0 {
		b.Errorf("%+v %v", d, err)
	}
	if list, _ = b.Letters(ctx, w.ID, 10); list[0].GivenUp == nil || list[0].Due != nil || list[0].Said != "no answer" {
		b.Errorf("%+v", list)
	}
	if u, err := b.Usage(ctx); err != nil || u.GivenUp != 1 || u.Waiting != 0 || u.Blobs == 0 || u.Bytes == 0 || u.Repositories != 1 {
		b.Errorf("%+v %v", u, err)
	}
	kind(b, func() error { _, err := b.Resend(ctx, repo, w.ID+1); return err }(), api.NotFound, "webhook")
	if n, err := b.Resend(ctx, repo, w.ID); err != nil || n != 1 {
		b.Errorf("%d %v", n, err)
	}
	d, err = b.TakeDeliveries(ctx, 10, time.Minute)
	must(b, err)
	if len(d) != 1 || d[0].Tries != 0 {
		b.Errorf("%+v", d)
	}
	must(b, b.GiveUp(ctx, d[0].ID, "no answer"))
	must(b, b.ForgetLetters(ctx, b.clock.now().Add(time.Second)))
	if list, _ = b.Letters(ctx, w.ID, 10); len(list) != 0 {
		b.Errorf("%+v", list)
	}
	must(b, b.SetWebhook(ctx, alice, repo, w.ID, true))
	if w, err := b.Webhook(ctx, repo, w.ID); err != nil || !w.Disabled || w.Secret != "s" {
		b.Errorf("%+v %v", w, err)
	}
	kind(b, b.SetWebhook(ctx, alice, repo, w.ID+1, true), api.NotFound, "webhook")
}

func looking(b *bench) {
	const repo = "alice/pg"
	one, err := b.commit(repo, "b-feature_2fx", "a")
	must(b, err)
	_, err = b.commit(repo, "c-"+commitID("b"), "b", "a")
	must(b, err)
	_, err = b.commit(repo, "t-v1.0", "b", "a")
	must(b, err)
	_, err = b.commit(repo, "latest", "c")
	must(b, err)
	must(b, b.SetRepository(ctx, alice, hub.Repository{Name: repo, Protected: []string{"feature/*"}}))
	c, err := b.Content(ctx, repo)
	must(b, err)
	if len(c.Branches) != 1 || c.Branches[0].Name != "feature/x" || c.Branches[0].Digest != one || c.Branches[0].Commit != commitID("a") || c.Branches[0].Protected != "feature/*" || c.Branches[0].Bytes == 0 {
		b.Errorf("%+v", c.Branches)
	}
	if len(c.Commits) != 1 || c.Commits[0].ID != commitID("b") || !slices.Equal(c.Commits[0].Parents, []string{commitID("a")}) {
		b.Errorf("%+v", c.Commits)
	}
	if len(c.Tags) != 1 || c.Tags[0].Name != "v1.0" || len(c.Others) != 1 || c.Others[0].Name != "latest" {
		b.Errorf("%+v %+v", c.Tags, c.Others)
	}
	_, err = b.Content(ctx, "alice/none")
	kind(b, err, api.NotFound, "")

	b.clock.add(time.Minute) // what happened has settled
	all, err := b.Activity(ctx, ActivityQuery{Limit: 1000})
	must(b, err)
	zero := all[len(all)/2].ID
	newer, err := b.Activity(ctx, ActivityQuery{After: &zero, Limit: 1000})
	must(b, err)
	older, err := b.Activity(ctx, ActivityQuery{Before: zero + 1, Limit: 1000})
	must(b, err)
	if len(newer)+len(older) != len(all) || newer[0].ID <= zero || older[0].ID != zero || !slices.IsSortedFunc(newer, func(a, b hub.Event) int { return int(a.ID - b.ID) }) {
		b.Errorf("%d and %d of %d", len(newer), len(older), len(all))
	}
	mine, err := b.Activity(ctx, ActivityQuery{User: "alice", Repository: repo, Limit: 2})
	must(b, err)
	if len(mine) != 2 || mine[0].User != "alice" || mine[0].Repository != repo {
		b.Errorf("%+v", mine)
	}
	must(b, b.CreateNamespace(ctx, root, hub.Namespace{Name: "team"}))
	must(b, b.CreateNamespace(ctx, root, hub.Namespace{Name: "other"}))
	must(b, b.SetMember(ctx, root, "team", hub.Member{User: "alice", Right: hub.Read}))
	n, err := b.NamespacesOf(ctx, alice)
	must(b, err)
	if len(n) != 2 || n[0].Name != "alice" || n[1].Name != "team" {
		b.Errorf("%+v", n)
	}
	if n, err = b.NamespacesOf(ctx, hub.Identity{}); err != nil || len(n) != 0 {
		b.Errorf("%+v %v", n, err)
	}
	must(b, b.CreateUser(ctx, root, hub.User{Name: "op", Root: true}))
	if list, err := b.Operators(ctx); err != nil || !slices.Equal(list, []string{"op"}) {
		b.Errorf("%v %v", list, err)
	}
}
