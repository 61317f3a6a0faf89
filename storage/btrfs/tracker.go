package btrfs

import (
	"fmt"
	"strings"

	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs/sendstream"
)

// tracker follows the names in a stream between two snapshots and gathers what
// it says of each entry. PURE: it sees commands, no files.
//
// The paths in a stream are those of the moment at which a command is applied:
// what is new comes under an orphan's name ("o257-7-0") and is renamed to its
// place, and what was there can be moved out of the way and back, or removed
// below a directory that was moved before. So the tracker keeps a tree of the
// names that the stream has used, in which entries move, and notes changes at
// the entries. Names that the stream does not use stand for what they stood
// for in the base.
type tracker struct {
	root  *tracked
	all   []*tracked
	ended bool // the stream is whole
}

// Bounds of what a tracker remembers. A stream beyond them is about so much
// that to compare costs no more.
const (
	maxTracked = 1 << 18
	maxRanges  = 1 << 18 // of one entry; beyond that it counts as a whole
)

// tracked is one entry under one name.
type tracked struct {
	up    *tracked
	name  string
	kids  map[string]*tracked // nil for a name that stands for nothing any more
	old   bool                // the base has it,
	was   string              // at this path
	noted bool                // the stream says something of it
	gone  bool
	whole bool // made, linked or removed
	// ranges are where its content can differ.
	ranges []storage.Range
}

func newTracker() *tracker { return &tracker{root: &tracked{old: true}} }

// errTooMuch ends a stream that is about too many entries to remember.
var errTooMuch = fmt.Errorf("more than %d entries differ", maxTracked)

func wrongStream(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{sendstream.ErrStream}, args...)...)
}

// take follows one command and gives the entry that it is about, if any.
func (t *tracker) take(c *sendstream.Command) (*tracked, error) {
	switch c.Op {
	case sendstream.Subvol, sendstream.Snapshot: // their path is the subvolume's own name
		return nil, nil
	case sendstream.End:
		t.ended = true
		return nil, nil
	}
	raw, err := c.Bytes(sendstream.Path)
	if err != nil {
		return nil, err
	}
	path := string(raw)
	switch c.Op {
	case sendstream.Mkfile, sendstream.Mkdir, sendstream.Mknod, sendstream.Mkfifo, sendstream.Mksock, sendstream.Symlink:
		return t.attach(path, &tracked{whole: true})
	case sendstream.Link:
		return t.link(path, c)
	}
	e, err := t.find(path)
	if err != nil {
		return nil, err
	}
	e.noted = true
	switch c.Op {
	case sendstream.Rename:
		to, err := c.Bytes(sendstream.PathTo)
		if err != nil {
			return nil, err
		}
		if err := t.detach(e); err != nil {
			return nil, err
		}
		return t.attach(string(to), e)
	case sendstream.Unlink, sendstream.Rmdir:
		e.gone, e.whole = true, true
		return e, t.detach(e)
	case sendstream.Write, sendstream.EncodedWrite, sendstream.UpdateExtent, sendstream.Clone, sendstream.Fallocate:
		return e, e.touch(c)
	case sendstream.Truncate, sendstream.Chmod, sendstream.Chown, sendstream.SetXattr, sendstream.RemoveXattr, sendstream.FileAttr, sendstream.Utimes:
		return e, nil // they come for what is as it was, too
	}
	return nil, wrongStream("what %s changes is not known", c.Op)
}

func (t *tracker) link(path string, c *sendstream.Command) (*tracked, error) {
	of, err := c.Bytes(sendstream.PathLink)
	if err != nil {
		return nil, err
	}
	e, err := t.find(string(of))
	if err != nil {
		return nil, err
	}
	e.whole, e.noted = true, true
	return t.attach(path, &tracked{whole: true})
}

// touch notes where content differs.
func (e *tracked) touch(c *sendstream.Command) error {
	off, err := c.Uint(sendstream.FileOffset)
	if err != nil {
		return err
	}
	var n uint64
	switch {
	case c.Op == sendstream.Write:
		var data []byte
		data, err = c.Bytes(sendstream.Data)
		n = uint64(len(data))
	case c.Op == sendstream.Clone:
		n, err = c.Uint(sendstream.CloneLen)
	case c.Op == sendstream.EncodedWrite:
		e.whole = true // Drover asks for none of these
		return nil
	default:
		n, err = c.Uint(sendstream.Size)
	}
	if err != nil {
		return err
	}
	const most = 1<<63 - 1
	if off > most || n > most-off {
		return wrongStream("a range of %d bytes at %d", n, off)
	}
	r := storage.Range{Offset: int64(off), Length: int64(n)}
	if k := len(e.ranges); k > 0 && e.ranges[k-1].Offset+e.ranges[k-1].Length == r.Offset {
		e.ranges[k-1].Length += r.Length
		return nil
	}
	if len(e.ranges) == maxRanges {
		e.whole = true
	}
	if !e.whole {
		e.ranges = append(e.ranges, r)
	}
	return nil
}

// find gives what a path stands for now.
func (t *tracker) find(path string) (*tracked, error) {
	at := t.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next, known := at.kids[name]
		switch {
		case name == "":
			return nil, wrongStream("the path %q", path)
		case known && next == nil:
			return nil, wrongStream("it speaks of %q, which is not there any more", path)
		case !known && !at.old:
			return nil, wrongStream("it speaks of %q, which was not made", path)
		case !known:
			next = &tracked{old: true, was: joinPath(at.was, name)}
			if err := t.put(at, name, next); err != nil {
				return nil, err
			}
		}
		at = next
	}
	return at, nil
}

// attach gives an entry a name. What had the name before is gone.
func (t *tracker) attach(path string, e *tracked) (*tracked, error) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	up, err := t.find(dir)
	if err != nil {
		return nil, err
	}
	for at := up; at != nil; at = at.up {
		if at == e {
			return nil, wrongStream("%q is moved into itself", path)
		}
	}
	if name == "" {
		return nil, wrongStream("the path %q", path)
	}
	if there := up.kids[name]; there != nil {
		there.gone, there.whole, there.noted = true, true, true
		if err := t.detach(there); err != nil {
			return nil, err
		}
	}
	e.noted = true
	return e, t.put(up, name, e)
}

func (t *tracker) detach(e *tracked) error {
	if e == t.root {
		return wrongStream("the root is moved or removed")
	}
	e.up.kids[e.name] = nil
	return nil
}

// put makes e the entry name of up; an entry that is put for the first time is
// remembered.
func (t *tracker) put(up *tracked, name string, e *tracked) error {
	if e.up == nil {
		if len(t.all) == maxTracked {
			return errTooMuch
		}
		t.all = append(t.all, e)
	}
	e.up, e.name = up, name
	if up.kids == nil {
		up.kids = map[string]*tracked{}
	}
	up.kids[name] = e
	return nil
}

// now is an entry's path in the snapshot, once the stream has ended.
func (e *tracked) now() (path string, there bool) {
	if e.gone {
		return "", false
	}
	if e.up == nil {
		return "", true
	}
	dir, there := e.up.now()
	return joinPath(dir, e.name), there
}

// moved reports whether an entry of the base has another path in the snapshot.
func (e *tracked) moved() bool {
	now, there := e.now()
	return e.old && there && now != e.was
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
