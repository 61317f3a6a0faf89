package tree

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// Entry is a path of a tree as it is now, with nothing of its content.
type Entry struct {
	Path   string
	Kind   Kind
	Fresh  bool // nothing of what the base has at this path, or below, remains
	Meta   Meta
	Flags  uint32 // inode flags that travel
	Target string // of a symbolic link; of a link the first name of the file
	Rdev   uint64 // of a node
	Size   int64  // of a file
}

// Kind is what an entry is. The numbers are part of formats.
type Kind byte

// The kinds. A Link is a further name of a file that came earlier.
const (
	Dir Kind = iota + 1
	File
	Link
	Symlink
	Node
)

// Content is a file's content while it is visited.
type Content interface {
	io.ReaderAt
	// Changed calls data for each range that differs from the base and hole
	// for each that became one; of a fresh file for each range that is not a
	// hole. Ranges come in order of offset and do not overlap.
	Changed(data, hole func(off, n int64) error) error
}

// Visitor takes what Walk finds.
type Visitor interface {
	// Gone is a path of the base that is not there any more, with all below.
	Gone(path string) error
	// Entry is a path that is new or differs; content is nil unless it is a File.
	Entry(e *Entry, content Content) error
}

// Walk visits in tree order (path by path, names sorted, a directory before
// what is in it) what of a snapshot is new or differs from base; everything
// when base is nil. changed, if not nil, says which paths can differ at all:
// the others, and what is below them, are passed over without a look.
func Walk(ctx context.Context, base *storage.Snapshot, snapshot storage.Snapshot, changed *Hints, v Visitor) error {
	b, err := openView(snapshot.Dir, snapshot.Beside)
	if err != nil {
		return walkError(snapshot.ID, err)
	}
	defer b.close()
	w := &walker{d: &differ{ctx: ctx, b: b, leadersA: map[uint64]string{}, leadersB: map[uint64]string{}}, v: v, hints: changed, firsts: map[uint64]string{}}
	w.d.bufA, w.d.bufB = make([]byte, maxData), make([]byte, maxData)
	var fa *folder
	if base == nil {
		w.hints = nil
	} else {
		if w.d.a, err = openView(base.Dir, base.Beside); err != nil {
			return walkError(snapshot.ID, err)
		}
		defer w.d.a.close()
		fa = w.d.a.folder("")
		if !base.Created.IsZero() {
			w.d.recent = base.Created.Add(-clockGrain).Unix()
		}
		if err := w.checkHints(); err != nil {
			return walkError(snapshot.ID, err)
		}
	}
	return walkError(snapshot.ID, w.dir(fa, b.folder(""), "", base == nil))
}

func walkError(object string, err error) error { return wrap("read snapshot", object, err) }

// walker is a differ that goes over the trees once.
type walker struct {
	d     *differ
	v     Visitor
	hints *Hints
	// firsts are the first names that files of the base had there, names that
	// are gone included: what came later was a Link to them.
	firsts map[uint64]string
}

// checkHints forgets the hints where they cannot be relied on: with something
// beside the data, which the file system does not know of, and with files of
// several names, whose first name may be passed over.
func (w *walker) checkHints() error {
	if w.hints == nil {
		return nil
	}
	if w.d.a.side != nil || w.d.b.side != nil {
		w.hints = nil
		return nil
	}
	for path := range w.hints.paths {
		if path == "" {
			continue
		}
		for _, v := range []*view{w.d.a, w.d.b} {
			dir, name := splitPath(path)
			f := v.folder(dir)
			e, err := f.look(name)
			f.close()
			// What is above the path may be no directory in one of the trees.
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
				return err
			}
			if e != nil && !e.isDir() && e.nlink > 1 {
				w.hints = nil
				return nil
			}
		}
	}
	return nil
}

// dir visits a directory and what is in it. Whether its own metadata differs
// is known before its children are visited: names that come or go change its
// time of modification.
func (w *walker) dir(fa, fb *folder, path string, isFresh bool) error {
	defer fb.close()
	defer fa.close()
	if err := w.self(fa, fb, path, isFresh); err != nil {
		return err
	}
	namesA, err := fa.names()
	if err != nil {
		return err
	}
	namesB, err := fb.names()
	if err != nil {
		return err
	}
	for len(namesA)+len(namesB) > 0 {
		if err := w.d.ctx.Err(); err != nil {
			return err
		}
		var inA, inB bool
		var name string
		switch {
		case len(namesB) == 0 || len(namesA) > 0 && namesA[0] < namesB[0]:
			name, inA = namesA[0], true
		case len(namesA) == 0 || namesB[0] < namesA[0]:
			name, inB = namesB[0], true
		default:
			name, inA, inB = namesA[0], true, true
		}
		if inA {
			namesA = namesA[1:]
		}
		if inB {
			namesB = namesB[1:]
		}
		if err := w.child(fa, fb, name, inA, inB); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) self(fa, fb *folder, path string, isFresh bool) error {
	eb, err := lookSelf(fb)
	if err != nil {
		return err
	}
	mb, err := fb.selfMeta(eb)
	if err != nil {
		return err
	}
	if !isFresh {
		ea, err := lookSelf(fa)
		if err != nil {
			return err
		}
		ma, err := fa.selfMeta(ea)
		if err != nil || (ma.equal(mb) && ea.flags == eb.flags) {
			return err
		}
	}
	return w.v.Entry(&Entry{Path: path, Kind: Dir, Fresh: isFresh, Meta: mb, Flags: uint32(eb.flags)}, nil)
}

func (w *walker) child(fa, fb *folder, name string, inA, inB bool) error {
	path := join(fb.path, name)
	if len(path) > maxPath {
		return fmt.Errorf("the path %.100q… is longer than %d bytes", path, maxPath)
	}
	var ea, eb *entry
	var err error
	if inA {
		if ea, err = fa.look(name); err != nil {
			return err
		}
	}
	if inB {
		if eb, err = fb.look(name); err != nil {
			return err
		}
	}
	if err := w.noteFirst(path, ea, eb != nil && eb.isDir()); err != nil {
		return err
	}
	if eb == nil {
		if ea != nil {
			return w.v.Gone(path)
		}
		return nil
	}
	what, leader, err := w.d.decide(fa, fb, name, path, ea, eb)
	if err != nil {
		return err
	}
	if eb.isDir() {
		if what == kept && w.hints.skips(path) {
			return nil
		}
		fa.close()
		fb.close()
		var sub *folder
		if what == kept {
			sub = w.d.a.folder(path)
		}
		return w.dir(sub, w.d.b.folder(path), path, what == fresh)
	}
	first := path
	if ea != nil && w.firsts[ea.ino] != "" {
		first = w.firsts[ea.ino]
	}
	switch {
	case what == stays && first == leader:
		return nil
	case what == stays || what == linked:
		return w.v.Entry(&Entry{Path: path, Kind: Link, Fresh: true, Target: leader}, nil)
	case what == kept && first == path:
		return w.keptChild(fa, fb, name, path, ea, eb)
	}
	return w.fresh(fb, name, path, eb)
}

// noteFirst remembers the first name of a file of the base; below a directory
// that does not stay all names.
func (w *walker) noteFirst(path string, ea *entry, stays bool) error {
	switch {
	case ea == nil:
		return nil
	case !ea.isDir():
		if (ea.nlink > 1 || w.d.a.links) && w.firsts[ea.ino] == "" && ea.beside == nil {
			w.firsts[ea.ino] = path
		}
		return nil
	case stays:
		return nil
	}
	f := w.d.a.folder(path)
	defer f.close()
	names, err := f.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		e, err := f.look(name)
		if err != nil {
			return err
		}
		if err := w.noteFirst(join(path, name), e, false); err != nil {
			return err
		}
	}
	return nil
}

// entry describes an entry of b that is not a directory.
func (w *walker) entry(fb *folder, name, path string, e *entry) (*Entry, error) {
	m, err := fb.meta(name, e)
	if err != nil {
		return nil, err
	}
	out := &Entry{Path: path, Kind: Node, Meta: m, Flags: uint32(e.flags)}
	switch e.kind() {
	case unix.S_IFREG:
		out.Kind, out.Size = File, e.size
	case unix.S_IFLNK:
		out.Kind = Symlink
		out.Target, err = fb.target(name, e)
	case unix.S_IFBLK, unix.S_IFCHR:
		out.Rdev = e.rdev
	}
	return out, err
}

func (w *walker) fresh(fb *folder, name, path string, eb *entry) error {
	e, err := w.entry(fb, name, path, eb)
	if err != nil {
		return err
	}
	e.Fresh = true
	if e.Kind != File {
		return w.v.Entry(e, nil)
	}
	fd, err := fb.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return w.v.Entry(e, &wholeFile{fdReader{w.d.ctx, fd, path}, e.Size})
}

func (w *walker) keptChild(fa, fb *folder, name, path string, ea, eb *entry) error {
	if w.hints.skips(path) {
		return nil
	}
	plain := w.d.a.side == nil && w.d.b.side == nil
	same := ea.ino == eb.ino && ea.size == eb.size && ea.mode == eb.mode && ea.flags == eb.flags && ea.ctime == eb.ctime && ea.mtime == eb.mtime && ea.ctime.Sec < w.d.recent
	if plain && same {
		return nil
	}
	e, err := w.entry(fb, name, path, eb)
	if err != nil {
		return err
	}
	ma, err := fa.meta(name, ea)
	if err != nil {
		return err
	}
	metaSame := ma.equal(e.Meta) && ea.flags == eb.flags
	if e.Kind != File {
		if metaSame {
			return nil
		}
		return w.v.Entry(e, nil)
	}
	c, err := w.compare(fa, fb, name, path, ea, eb)
	if err != nil {
		return err
	}
	defer unix.Close(c.fd)
	if metaSame && len(c.ranges) == 0 && ea.size == eb.size {
		return nil
	}
	return w.v.Entry(e, c)
}

// compare finds what of a file differs.
func (w *walker) compare(fa, fb *folder, name, path string, ea, eb *entry) (*changedFile, error) {
	c := &changedFile{}
	hinted, known := w.hints.ranges(path, ea, eb)
	if !known {
		w.d.out = c
		if _, err := w.d.compare(fa, fb, name, path, ea, eb); err != nil {
			return nil, err
		}
	}
	fd, err := fb.file(name)
	if err != nil {
		return nil, err
	}
	c.fdReader = fdReader{w.d.ctx, fd, path}
	if known {
		if c.ranges, err = holes(fd, hinted, eb.size); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return c, nil
}

// fdReader reads a file that does not change.
type fdReader struct {
	ctx  context.Context
	fd   int
	path string
}

func (f fdReader) ReadAt(p []byte, off int64) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := readFull(f.fd, p, off)
	if err != nil {
		return n, fmt.Errorf("read %s: %w", f.path, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// wholeFile is a file of which everything counts.
type wholeFile struct {
	fdReader
	size int64
}

func (f *wholeFile) Changed(data, _ func(off, n int64) error) error {
	for off := int64(0); off < f.size; {
		x, err := nextData(f.fd, off, f.size)
		if err != nil {
			return err
		}
		if x.from < x.to {
			if err := data(x.from, x.to-x.from); err != nil {
				return err
			}
		}
		off = x.to
	}
	return nil
}

// changedFile is a file of which some ranges count. As a sink it gathers them.
type changedFile struct {
	fdReader
	ranges []changedRange
}

type changedRange struct {
	off, n int64
	hole   bool
}

func (f *changedFile) put(r *record) error {
	switch r.op {
	case opData:
		f.add(changedRange{r.off, int64(len(r.data)), false})
	case opHole:
		f.add(changedRange{r.off, r.size, true})
	}
	return nil
}

func (f *changedFile) add(r changedRange) {
	if n := len(f.ranges); n > 0 && f.ranges[n-1].hole == r.hole && f.ranges[n-1].off+f.ranges[n-1].n == r.off {
		f.ranges[n-1].n += r.n
		return
	}
	f.ranges = append(f.ranges, r)
}

func (f *changedFile) Changed(data, hole func(off, n int64) error) error {
	ask := ahead{fd: f.fd, ranges: f.ranges}
	for _, r := range f.ranges {
		put := data
		if r.hole {
			put = hole
		} else {
			ask.to(r.off)
		}
		if err := put(r.off, r.n); err != nil {
			return err
		}
	}
	return nil
}

// ahead asks the kernel for ranges before they are read: what a database
// changed lies in thousands of small ones, and one read after the other would
// take their number times the disk's latency.
type ahead struct {
	fd     int
	ranges []changedRange // not asked for yet
}

const (
	aheadBytes = 16 << 20
	aheadMost  = 1 << 20
	aheadAlign = 16 << 10 // whoever hashes reads whole leaves; see format/remote.md
)

func (a *ahead) to(off int64) {
	for ; len(a.ranges) > 0 && a.ranges[0].off < off+aheadBytes; a.ranges = a.ranges[1:] {
		if r := a.ranges[0]; !r.hole {
			from := r.off - r.off%aheadAlign
			// Of a long one the beginning: the kernel reads on by itself.
			n := min(r.off+r.n+aheadAlign-1-from, aheadMost)
			_ = unix.Fadvise(a.fd, from, n, unix.FADV_WILLNEED)
		}
	}
}
