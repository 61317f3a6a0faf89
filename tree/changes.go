package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// What tells how a path differs between two trees.
type What string

// The ways. A path that was removed stands for all that was below it.
const (
	Added    What = "added"
	Removed  What = "removed"
	Modified What = "modified" // its content
	Metadata What = "metadata" // mode, owner, times or attributes only
	Retyped  What = "type"     // a file became a directory, say
)

// Change is a path that differs between two trees, as a user wants to know it.
type Change struct {
	Path     string
	What     What
	Was, Is  Kind // 0: not there
	OldSize  int64
	Size     int64
	Bytes    int64  // of content that differ, of an entry that is there
	Entries  int64  // that went, with all below it
	OldLink  string // target of a symbolic link
	Link     string // likewise; of a further name, the first one
	OldMode  uint32
	Mode     uint32
	OldOwner [2]uint32
	Owner    [2]uint32
}

// Diff calls each for every path that differs between two trees, in tree
// order. A directory of which nothing but the time differs is not one: names that
// come and go in it are said themselves. What changed in a file of several names
// is said under the first of them.
func Diff(ctx context.Context, base, snapshot storage.Snapshot, hints *Hints, each func(Change) error) error {
	a, err := openView(base.Dir, base.Beside)
	if err != nil {
		return walkError(base.ID, err)
	}
	defer a.close()
	return Walk(ctx, &base, snapshot, hints, &describer{ctx: ctx, a: a, each: each})
}

// describer is a visitor that tells what became of the base's entries.
type describer struct {
	ctx  context.Context //nolint:containedctx // of the one walk it is for
	a    *view
	each func(Change) error
}

// was looks an entry of the base up; nil when it has none.
func (d *describer) was(path string) (*Entry, error) {
	if path == "" {
		e, err := lookSelf(d.a.folder(""))
		if err != nil {
			return nil, err
		}
		f := d.a.folder("")
		defer f.close()
		m, err := f.selfMeta(e)
		return &Entry{Kind: Dir, Meta: m, Flags: uint32(e.flags)}, err
	}
	dir, name := splitPath(path)
	f := d.a.folder(dir)
	defer f.close()
	e, err := f.look(name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil || e == nil {
		return nil, err
	}
	m, err := f.meta(name, e)
	if err != nil {
		return nil, err
	}
	out := &Entry{Path: path, Kind: kindOf(e), Meta: m, Flags: uint32(e.flags)}
	switch out.Kind {
	case File:
		out.Size = e.size
	case Symlink:
		out.Target, err = f.target(name, e)
	}
	return out, err
}

func kindOf(e *entry) Kind {
	switch e.kind() {
	case unix.S_IFDIR:
		return Dir
	case unix.S_IFREG:
		return File
	case unix.S_IFLNK:
		return Symlink
	}
	return Node
}

func (c *Change) old(e *Entry) {
	if e != nil {
		c.Was, c.OldSize, c.OldLink = e.Kind, e.Size, e.Target
		c.OldMode, c.OldOwner = e.Meta.Mode, [2]uint32{e.Meta.UID, e.Meta.GID}
	}
}

// Gone is of Visitor.
func (d *describer) Gone(path string) error {
	e, err := d.was(path)
	if err != nil || e == nil {
		return err
	}
	c := Change{Path: path, What: Removed}
	c.old(e)
	if c.Entries, c.OldSize, err = d.below(path, e); err != nil {
		return err
	}
	return d.each(c)
}

// below counts what went with a path.
func (d *describer) below(path string, e *Entry) (entries, size int64, err error) {
	if e.Kind != Dir {
		return 1, e.Size, nil
	}
	f := d.a.folder(path)
	defer f.close()
	names, err := f.names()
	if err != nil {
		return 0, 0, err
	}
	entries = 1
	for _, name := range names {
		if err := d.ctx.Err(); err != nil {
			return 0, 0, err
		}
		x, err := f.look(name)
		if err != nil || x == nil {
			return 0, 0, err
		}
		f.close()
		inner := Entry{Kind: kindOf(x)}
		if inner.Kind == File {
			inner.Size = x.size
		}
		n, k, err := d.below(join(path, name), &inner)
		if err != nil {
			return 0, 0, err
		}
		entries, size = entries+n, size+k
	}
	return entries, size, nil
}

// Entry is of Visitor.
func (d *describer) Entry(e *Entry, content Content) error {
	was, err := d.was(e.Path)
	if err != nil {
		return err
	}
	c := Change{Path: e.Path, Is: e.Kind, Size: e.Size, Link: e.Target, Mode: e.Meta.Mode, Owner: [2]uint32{e.Meta.UID, e.Meta.GID}}
	c.old(was)
	if content != nil {
		add := func(_, n int64) error { c.Bytes += n; return nil }
		if err := content.Changed(add, add); err != nil {
			return err
		}
	}
	is := e.Kind
	if is == Link { // a further name of a file, or of something else
		is = c.Was
	}
	switch {
	case was == nil:
		c.What = Added
	case was.Kind != is:
		c.What = Retyped
	case e.Fresh || c.Bytes > 0 || (e.Kind == File && was.Size != e.Size):
		c.What = Modified
	case e.Kind == Dir && onlyTime(was, e):
		return nil
	default:
		c.What = Metadata
	}
	return d.each(c)
}

func onlyTime(a, b *Entry) bool {
	m := a.Meta
	m.Sec, m.Nsec = b.Meta.Sec, b.Meta.Nsec
	return m.equal(b.Meta) && a.Flags == b.Flags
}
