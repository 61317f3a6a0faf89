package agent

import (
	"cmp"
	"context"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
)

// LsRemote lists what a remote has: its branches, tags and keys, and with
// commits every commit. It works without the keys.
func (a *Agent) LsRemote(ctx context.Context, volume, name string, commits bool) (api.RemoteListing, error) {
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return api.RemoteListing{}, err
	}
	defer s.x.Store.Close()
	l, err := s.x.List(ctx, commits)
	if err != nil {
		return api.RemoteListing{}, err
	}
	out := api.RemoteListing{Remote: s.name, URL: s.x.Store.Info().URL, Refs: []api.RemoteRef{}}
	for _, b := range l.Branches {
		out.Refs = append(out.Refs, remoteRef("branch", b.Name, b.Listed))
	}
	for _, t := range l.Tags {
		out.Refs = append(out.Refs, remoteRef("tag", t.Name, t.Listed))
	}
	for _, c := range l.Commits {
		out.Commits = append(out.Commits, remoteRef("commit", "", c))
	}
	slices.SortStableFunc(out.Commits, func(x, y api.RemoteRef) int { return y.Time.Compare(x.Time) })
	for at, reason := range l.Damaged {
		out.Damaged = append(out.Damaged, api.Damage{Name: at, Reason: reason})
	}
	slices.SortFunc(out.Damaged, func(x, y api.Damage) int { return cmp.Compare(x.Name, y.Name) })
	if out.Keys, err = a.listKeys(ctx, s); len(out.Keys) == 0 {
		out.Keys = nil
	}
	return out, err
}

func remoteRef(kind, name string, l exchange.Listed) api.RemoteRef {
	return api.RemoteRef{Kind: kind, Name: name, Commit: l.ID, Message: l.Message, Time: l.Time, Bytes: l.Bytes, Stored: l.Stored, Digest: l.Content, Sealed: l.Sealed}
}

// PruneRemote begins to drop the commits at a remote that a policy does not keep.
func (a *Agent) PruneRemote(_ context.Context, volume, name string, k api.Keep, dryRun bool, by string) (api.Job, error) {
	v, known := a.record(volume)
	if !known {
		return api.Job{}, notHere(a.cfg.Node, volume)
	}
	name, at, err := remoteOf(v, name)
	if err != nil {
		return api.Job{}, err
	}
	return a.start(api.Job{Kind: "prune", Volume: v.Name, Remote: name, By: by}, func(ctx context.Context, tell func(exchange.Progress)) (*api.Synced, error) {
		out, err := a.pruneRemote(ctx, v, at, k, dryRun, tell)
		return &api.Synced{DryRun: dryRun, Pruned: &out}, err
	}), nil
}

// pruneRemote needs no key: what retention looks at is in clear.
func (a *Agent) pruneRemote(ctx context.Context, v api.Volume, at api.Remote, k api.Keep, dryRun bool, tell func(exchange.Progress)) (api.RemotePruned, error) {
	x, err := a.lookAt(ctx, v, at)
	if err != nil {
		return api.RemotePruned{}, err
	}
	defer x.Store.Close()
	x.Progress = tell
	out, err := x.Prune(ctx, exchange.Prune{Keep: k, DryRun: dryRun})
	return api.RemotePruned{Kept: out.Kept, Dropped: out.Dropped, Blobs: out.Blobs, Bytes: out.Bytes, Waiting: out.Waiting, Collects: out.Collects, Warnings: out.Warnings}, err
}
