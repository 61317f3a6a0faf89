package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// Recover implements storage.Backend.
func (b *Backend) Recover(ctx context.Context) (storage.Content, error) {
	c, err := b.recoverAll(ctx)
	return c, b.fail("recover pool", b.cfg.Source, err)
}

func (b *Backend) recoverAll(ctx context.Context) (storage.Content, error) {
	var c storage.Content
	if err := ctx.Err(); err != nil {
		return c, err
	}
	if err := b.present(ctx); err != nil {
		return c, err
	}
	if err := b.tidy(&c); err != nil {
		return c, err
	}
	var err error
	if c.Partial, err = b.keepPartial(&c); err != nil {
		return c, err
	}
	if err := b.sweep(ctx); err != nil && !errors.Is(err, unix.EROFS) {
		return c, err
	}
	var strange []string
	if c.Snapshots, strange, err = b.scanSnapshots(ctx, ""); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	if c.Heads, strange, err = b.scanHeads(ctx); err != nil {
		return c, err
	}
	c.Strange = append(c.Strange, strange...)
	all, err := b.get(ctx, []string{"type"}, b.cfg.Source, true)
	if err != nil {
		return c, err
	}
	for n := range all {
		if !b.ours(n) {
			c.Strange = append(c.Strange, n)
		}
	}
	sort.Strings(c.Strange)
	c.Strange = slices.Compact(c.Strange)
	return c, nil
}

// ours reports whether a data set or snapshot has a name that we give.
func (b *Backend) ours(name string) bool {
	rest, below := strings.CutPrefix(name, b.cfg.Source+"/")
	if !below {
		return name == b.cfg.Source
	}
	kind, rest, deep := strings.Cut(rest, "/")
	if !deep {
		return kind == "t" || kind == "v"
	}
	tree, snap, isSnap := strings.Cut(rest, "@")
	return kind == "v" && !isSnap && ourView.MatchString(tree) ||
		kind == "t" && ourTree.MatchString(tree) && (!isSnap || ourSnap.MatchString(snap))
}

// tidy removes half-written files and reports what is not ours.
func (b *Backend) tidy(c *storage.Content) error {
	names, err := os.ReadDir(b.cfg.Dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch name := n.Name(); {
		case name == "heads", name == "snapshots", name == "incoming", name == "t", name == "v", name == hostfs.Marker:
		case name == hostfs.Marker+".new", strings.HasPrefix(name, probePrefix):
			_ = os.RemoveAll(b.path(name))
		case name == ".zfs":
		default:
			c.Strange = append(c.Strange, b.path(name))
		}
	}
	for _, pattern := range []string{"heads/*/*.new", "snapshots/*/*.new", "incoming/*/*/*.new"} {
		left, err := filepath.Glob(b.path(pattern))
		if err != nil {
			return err
		}
		for _, path := range left {
			_ = os.Remove(path)
		}
	}
	return nil
}
