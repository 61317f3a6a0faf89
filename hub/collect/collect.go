// Package collect removes from a hub what nothing needs any more, while pushes go on:
// commits that a repository's retention does not keep, manifests that no name leads
// to, blobs that no manifest names, uploads that were left. It walks the database and
// decides there; only then bytes go. It also writes the names to the storage that a
// request could not, and builds a database from a storage. It knows no HTTP.
package collect

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
	"github.com/drover-data/drover/repo"
)

// Bytes is what a collection does to the storage; engine.Engine does it.
type Bytes interface {
	Claim(ctx context.Context, id string, take bool) error
	Delete(ctx context.Context, d digest.Digest) error
	Cancel(ctx context.Context, repository, id string) error
	Unlink(ctx context.Context, repository string, manifests, blobs []digest.Digest) error
	Mirror(ctx context.Context, m hub.Mirrored) error
}

// Rows are what a collection asks of the database; store.Store answers.
type Rows interface {
	SweepLock(ctx context.Context) (*store.Lock, error)
	BeginSweep(ctx context.Context) error
	EndSweep(ctx context.Context, f store.Figures) error
	LastSweep(ctx context.Context) (store.Sweep, error)
	Repositories(ctx context.Context, who hub.Identity, after string, n int) ([]hub.Repository, error)
	Retain(ctx context.Context, repository string, cutoff time.Time, decide store.Decide) (int, error)
	SweepRepository(ctx context.Context, name string, cutoff time.Time) (store.Swept, error)
	MarkOrphans(ctx context.Context, limit int) (int, error)
	Orphans(ctx context.Context) ([]store.Orphan, error)
	Removed(ctx context.Context, d digest.Digest) error
	StaleUploads(ctx context.Context, cutoff time.Time) ([]store.Upload, error)
	EndUpload(ctx context.Context, id string) error
	Unmirrored(ctx context.Context, limit int) ([]hub.Mirrored, error)
	Mirror(ctx context.Context, repository, name string, put func(context.Context, hub.Mirrored) error) error
}

// Collector removes what nothing needs.
type Collector struct {
	Store Rows
	Bytes Bytes
	Owner string // whose storage it is (engine.Claim)
	Now   func() time.Time
	Log   *slog.Logger
	// Every is how long after a sweep the next begins.
	Every time.Duration
}

// batch is how many digests are taken from everybody at a time: whoever pushes one of
// them waits until its bytes are gone.
const batch = 100

// Sweep removes what nothing needs. It may be ended at any moment, and the next goes on;
// InUse while another process sweeps.
func (c *Collector) Sweep(ctx context.Context) (store.Figures, error) {
	var f store.Figures
	lock, err := c.Store.SweepLock(ctx)
	if err != nil {
		return f, err
	}
	defer lock.Release()
	if err := c.Bytes.Claim(ctx, c.Owner, false); err != nil {
		return f, err // what is not there must not count as removed
	}
	if err := c.Store.BeginSweep(ctx); err != nil {
		return f, err
	}
	if err := c.orphans(ctx, lock, &f); err != nil { // what a sweep left that broke off
		return f, err
	}
	now := c.Now()
	// Who was told that a blob is there may have been told so from a row that was not
	// written anew for as long as Slack.
	cutoff := now.Add(-hub.Grace - store.Slack)
	for last := ""; ; {
		list, err := c.Store.Repositories(ctx, hub.Identity{Root: true}, last, 100)
		if err != nil {
			return f, err
		}
		if len(list) == 0 {
			break
		}
		for _, r := range list {
			last = r.Name
			if err := c.repository(ctx, r, cutoff, &f); err != nil {
				return f, err
			}
		}
	}
	for {
		n, err := c.Store.MarkOrphans(ctx, batch)
		if err != nil {
			return f, err
		}
		if n == 0 {
			break
		}
		if err := c.orphans(ctx, lock, &f); err != nil {
			return f, err
		}
	}
	if err := c.uploads(ctx, cutoff, &f); err != nil {
		return f, err
	}
	return f, c.Store.EndSweep(ctx, f)
}

func (c *Collector) repository(ctx context.Context, r hub.Repository, cutoff time.Time, f *store.Figures) error {
	if r.Keep != nil {
		n, err := c.Store.Retain(ctx, r.Name, cutoff, func(keep api.Keep, commits []api.Commit, stay map[string]bool, now time.Time) map[string]bool {
			return repo.Retain(commits, keep, stay, now)
		})
		if err != nil {
			return err
		}
		f.Commits += n
	}
	gone, err := c.Store.SweepRepository(ctx, r.Name, cutoff)
	if err != nil {
		return err
	}
	f.Manifests += len(gone.Manifests)
	f.Blobs += len(gone.Blobs)
	// Links that stay say nothing to the hub; a stock registry finds nothing behind them.
	if err := c.Bytes.Unlink(ctx, r.Name, gone.Manifests, gone.Blobs); err != nil {
		c.Log.Warn("links of a repository stay in the storage", "repository", r.Name, "error", err)
	}
	return ctx.Err()
}

// orphans removes the bytes of what is marked.
func (c *Collector) orphans(ctx context.Context, lock *store.Lock, f *store.Figures) error {
	list, err := c.Store.Orphans(ctx)
	if err != nil {
		return err
	}
	for _, o := range list {
		if err := lock.Alive(ctx); err != nil {
			return err
		}
		// One that hangs must not go on when the lock is another's.
		one, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := c.Bytes.Delete(one, o.Digest)
		cancel()
		if err != nil {
			return err
		}
		if err := c.Store.Removed(ctx, o.Digest); err != nil {
			return err
		}
		f.Removed++
		f.Bytes += o.Size
	}
	return nil
}

func (c *Collector) uploads(ctx context.Context, cutoff time.Time, f *store.Figures) error {
	list, err := c.Store.StaleUploads(ctx, cutoff)
	if err != nil {
		return err
	}
	for _, u := range list {
		if err := c.Bytes.Cancel(ctx, u.Repository, u.ID); err != nil {
			return err
		}
		if err := c.Store.EndUpload(ctx, u.ID); err != nil {
			return err
		}
		f.Uploads++
	}
	return nil
}

// Flush writes to the storage the names that are not there yet as they are.
func (c *Collector) Flush(ctx context.Context) error {
	var failed error
	for {
		list, err := c.Store.Unmirrored(ctx, 100)
		if err != nil || len(list) == 0 || failed != nil {
			return errors.Join(failed, err)
		}
		for _, m := range list {
			failed = errors.Join(failed, c.Store.Mirror(ctx, m.Repository, m.Name, c.Bytes.Mirror))
		}
	}
}

// flushEvery is how often names are looked for that a request could not write.
const flushEvery = 15 * time.Second

// Run sweeps and writes names until its context ends. Several processes may: one of
// them sweeps.
func (c *Collector) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		if err := c.Flush(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("names are written to the storage later", "error", err)
		}
		if err := c.due(ctx, first); err != nil && ctx.Err() == nil && !api.Is(err, api.InUse) {
			c.Log.Error("a sweep broke off; the next goes on", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// due sweeps when it is time, or when a sweep broke off: what it had marked is kept
// from everybody until it is done.
func (c *Collector) due(ctx context.Context, first bool) error {
	last, err := c.Store.LastSweep(ctx)
	if err != nil {
		return err
	}
	wait := c.Every
	switch {
	case last.Ended != nil || last.Begun.IsZero():
	case first:
		wait = 0
	default:
		wait = min(wait, time.Minute)
	}
	if c.Now().Sub(last.Begun) < wait {
		return nil
	}
	f, err := c.Sweep(ctx)
	if err == nil {
		c.Log.Info("swept", "commits", f.Commits, "manifests", f.Manifests, "blobs", f.Blobs, "removed", f.Removed, "bytes", f.Bytes, "uploads", f.Uploads)
	}
	return err
}
