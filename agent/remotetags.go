package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/repo"
)

// pushTags pushes the tags that were asked for, and adds to done what it did.
func (a *Agent) pushTags(ctx context.Context, x *exchange.Remote, v api.Volume, pool exchange.Pool, g repo.Graph, r api.StartPush, done *api.Synced) error {
	tags := map[string]string{}
	for _, t := range r.Tags {
		tags[t] = v.Tags[t]
	}
	if r.AllTags {
		for t, commit := range v.Tags {
			if !strings.HasPrefix(t, repo.RetainedTag) { // retention's own
				tags[t] = commit
			}
		}
	}
	if len(tags) == 0 {
		return nil
	}
	made, out, err := x.PushTags(ctx, pool, exchange.PushTags{Tags: tags, Graph: g, Force: r.Force, DryRun: r.DryRun})
	for _, t := range made {
		done.Tags = append(done.Tags, api.MovedTag(t))
	}
	done.Commits = append(done.Commits, out.Commits...)
	done.Skipped = append(done.Skipped, out.Skipped...)
	done.Changed += out.Changed
	if done.Warning == "" {
		done.Warning = out.Warning
	}
	return err
}

// fetchTags makes the remote's tags here whose commits are here; with all it brings
// the commits of the others. A tag that names another commit here stays, and is told.
func (a *Agent) fetchTags(ctx context.Context, x *exchange.Remote, v api.Volume, here *commits, into exchange.Into, all, force bool, got *brought) error {
	here.changed() // by the branch that was fetched
	theirs, err := x.Tags(ctx)
	if err != nil || len(theirs) == 0 {
		return err
	}
	var taken []string
	for _, t := range theirs {
		was, known := v.Tags[t.Name]
		if was == t.ID || strings.HasPrefix(t.Name, repo.RetainedTag) || api.CheckTagName(t.Name) != nil {
			continue
		}
		if known && !force {
			taken = append(taken, fmt.Sprintf("%s (here %s, there %s)", t.Name, short(was), short(t.ID)))
			continue
		}
		_, err := here.Find(ctx, t.ID)
		if api.Is(err, api.NotFound) {
			if !all {
				continue
			}
			err = a.fetchTagged(ctx, x, t.ID, &into)
			here.changed()
		}
		if err != nil {
			return err
		}
		after, err := a.deps.Ledger.Change(ctx, v.ID, ledger.Change{Tag: &ledger.Tag{Name: t.Name, Commit: t.ID, Force: force}})
		if api.Is(err, api.Exists) {
			taken = append(taken, t.Name+" ("+err.Error()+")")
			continue
		}
		if err != nil {
			return err
		}
		a.take(after, true)
		got.tags = append(got.tags, api.MovedTag{Name: t.Name, Commit: t.ID, Was: was})
	}
	if len(taken) == 0 {
		return nil
	}
	left := &api.Error{Kind: api.Conflict, Op: "fetch tags", Object: v.Name, Reason: "they name other commits here: " + strings.Join(taken, ", "), Next: "rename yours, or move them with --tags --force"}
	if all {
		got.left = left
	} else {
		got.warning = "tags were left that name other commits here: " + strings.Join(taken, ", ")
	}
	return nil
}

// fetchTagged brings a commit that no branch that is fetched leads to.
func (a *Agent) fetchTagged(ctx context.Context, x *exchange.Remote, id string, into *exchange.Into) error {
	s, err := x.Find(ctx, id)
	if err != nil {
		return err
	}
	if into.Graph, err = x.History(ctx, into.Graph, s); err != nil {
		return err
	}
	_, err = x.Get(ctx, s, *into)
	return err
}
