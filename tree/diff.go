package tree

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// sink takes records: a stream, or another tree at once.
type sink interface{ put(*record) error }

// copier is a sink that takes a file's content by itself.
type copier interface {
	copyFile(src int, path string, size int64) error
}

// differ writes the records that turn tree a into tree b. It walks both side
// by side, names sorted, once for each pass; what it decides about an entry
// depends on the two trees only, so each pass decides alike.
type differ struct {
	ctx  context.Context
	a, b *view // a is nil for a full stream
	out  sink
	// Times of change at or behind this moment prove nothing: the base was
	// taken so soon after that the clock may not have moved.
	recent int64

	pass               pass
	leadersA, leadersB map[uint64]string // first name of each file with several
	flagged            bool
	bufA, bufB         []byte
}

type pass int

const (
	passDelete pass = iota
	passContent
	passDirs
	passFlags
)

// clockGrain is more than any file system's clock takes to move.
const clockGrain = 2 * time.Second

func (d *differ) run() error {
	d.bufA, d.bufB = make([]byte, maxData), make([]byte, maxData)
	for d.pass = passDelete; d.pass <= passFlags; d.pass++ {
		if d.pass == passDelete && d.a == nil || d.pass == passFlags && !d.flagged {
			continue
		}
		d.leadersA, d.leadersB = map[uint64]string{}, map[uint64]string{}
		var fa *folder
		if d.a != nil {
			fa = d.a.folder("")
		}
		if err := d.dir(fa, d.b.folder(""), "", d.a == nil); err != nil {
			return err
		}
	}
	return nil
}

// fate is what becomes of an entry of b.
type fate int

const (
	fresh  fate = iota // it is made; what a has of that name goes
	kept               // it is a's, changed in place
	linked             // it is another name of a file seen before, made anew
	stays              // the same in a
)

// dir handles a directory: its children, then itself.
func (d *differ) dir(fa, fb *folder, path string, isFresh bool) error {
	defer fb.close()
	defer fa.close()
	touched, err := d.children(fa, fb)
	if err != nil {
		return err
	}
	eb, err := lookSelf(fb)
	if err != nil {
		return err
	}
	d.flagged = d.flagged || eb.flags != 0
	switch d.pass {
	case passDelete:
		ea, err := lookSelf(fa)
		if err != nil {
			return err
		}
		return d.unflag(path, ea)
	case passFlags:
		return d.flags(path, eb)
	case passDirs:
		mb, err := fb.selfMeta(eb)
		if err != nil {
			return err
		}
		if !isFresh && !touched {
			ea, err := lookSelf(fa)
			if err != nil {
				return err
			}
			if ma, err := fa.selfMeta(ea); err != nil || ma.equal(mb) {
				return err
			}
		}
		return d.out.put(&record{op: opMeta, path: path, meta: mb})
	}
	return nil
}

func lookSelf(f *folder) (*entry, error) {
	if f == nil {
		return &entry{}, nil
	}
	fd, err := f.open()
	if err != nil {
		return nil, err
	}
	return statAt(fd, "")
}

func (f *folder) selfMeta(e *entry) (Meta, error) {
	fd, err := f.open()
	if err != nil {
		return Meta{}, err
	}
	now, err := e.meta(fd, "")
	if err != nil {
		return now, err
	}
	was, full, ok, err := f.v.side.kept(f.path)
	if !ok || err != nil {
		return now, err
	}
	return merge(now, was, full), nil
}

// children handles what is in a directory; touched means that names come or go,
// which changes the directory's own time.
func (d *differ) children(fa, fb *folder) (touched bool, err error) {
	namesA, err := fa.names()
	if err != nil {
		return false, err
	}
	namesB, err := fb.names()
	if err != nil {
		return false, err
	}
	for len(namesA)+len(namesB) > 0 {
		if err := d.ctx.Err(); err != nil {
			return false, err
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
		t, err := d.child(fa, fb, name, inA, inB)
		if err != nil {
			return false, err
		}
		touched = touched || t
	}
	return touched, nil
}

func (d *differ) child(fa, fb *folder, name string, inA, inB bool) (touched bool, err error) {
	path := join(fb.path, name)
	if len(path) > maxPath {
		return false, fmt.Errorf("the path %.100q… is longer than %d bytes", path, maxPath)
	}
	var ea, eb *entry
	if inA {
		if ea, err = fa.look(name); err != nil {
			return false, err
		}
	}
	if inB {
		if eb, err = fb.look(name); err != nil {
			return false, err
		}
	}
	if eb == nil {
		if ea != nil && d.pass == passDelete {
			err = d.out.put(&record{op: opDelete, path: path})
		}
		return ea != nil, err
	}
	what, leader, err := d.decide(fa, fb, name, path, ea, eb)
	if err != nil {
		return false, err
	}
	if ea != nil && d.pass == passDelete && (what == fresh || what == linked) {
		if err := d.out.put(&record{op: opDelete, path: path}); err != nil {
			return false, err
		}
	}
	if eb.isDir() {
		if what == fresh && d.pass == passContent {
			if err := d.out.put(&record{op: opDir, path: path}); err != nil {
				return false, err
			}
		}
		fa.close()
		fb.close()
		var sub *folder
		if what == kept {
			sub = d.a.folder(path)
		}
		return what == fresh, d.dir(sub, d.b.folder(path), path, what == fresh)
	}
	d.flagged = d.flagged || eb.flags != 0
	switch {
	case what == stays:
	case what == linked && d.pass == passContent:
		err = d.out.put(&record{op: opLink, path: path, target: leader})
	case what == kept && d.pass == passDelete:
		err = d.unflag(path, ea)
	case what != linked && d.pass == passFlags:
		err = d.flags(path, eb)
	case what == fresh && d.pass == passContent:
		err = d.make(fb, name, path, eb)
	case what == kept && d.pass == passContent:
		err = d.change(fa, fb, name, path, ea, eb)
	}
	return what == fresh || what == linked, err
}

// decide tells what becomes of an entry, and which name the file was first
// seen under. Of files with several names, only the first one carries content;
// names of a are counted only where they stay.
func (d *differ) decide(fa, fb *folder, name, path string, ea, eb *entry) (fate, string, error) {
	if eb.isDir() {
		if ea != nil && ea.isDir() {
			return kept, path, nil
		}
		return fresh, path, nil
	}
	lb := path
	many := eb.nlink > 1 || d.b.links
	if many {
		if first, ok := d.leadersB[eb.ino]; ok {
			lb = first
		} else if eb.beside == nil {
			d.leadersB[eb.ino] = path
		}
	}
	same, err := d.sameThing(fa, fb, name, ea, eb)
	if err != nil {
		return fresh, lb, err
	}
	if same {
		la := path
		manyA := ea.nlink > 1 || d.a.links
		if manyA {
			if first, ok := d.leadersA[ea.ino]; ok {
				la = first
			}
		}
		switch {
		case la == path && lb == path:
			if manyA && ea.beside == nil {
				d.leadersA[ea.ino] = path
			}
			return kept, path, nil
		case la == lb:
			return stays, lb, nil
		}
	}
	if lb != path {
		return linked, lb, nil
	}
	return fresh, path, nil
}

// sameThing reports whether a's entry can become b's by changing content and
// metadata.
func (d *differ) sameThing(fa, fb *folder, name string, ea, eb *entry) (bool, error) {
	if ea == nil || ea.kind() != eb.kind() {
		return false, nil
	}
	switch ea.kind() {
	case unix.S_IFLNK:
		ta, err := fa.target(name, ea)
		if err != nil {
			return false, err
		}
		tb, err := fb.target(name, eb)
		return ta == tb, err
	case unix.S_IFBLK, unix.S_IFCHR:
		return ea.rdev == eb.rdev, nil
	}
	return true, nil
}

func (d *differ) unflag(path string, e *entry) error {
	if e.flags == 0 {
		return nil
	}
	return d.out.put(&record{op: opUnflag, path: path})
}

func (d *differ) flags(path string, e *entry) error {
	if e.flags == 0 {
		return nil
	}
	return d.out.put(&record{op: opFlags, path: path, size: int64(e.flags)})
}

// make writes a new entry that is not a directory.
func (d *differ) make(fb *folder, name, path string, e *entry) error {
	switch e.kind() {
	case unix.S_IFREG:
		if err := d.out.put(&record{op: opFile, path: path, size: e.size}); err != nil {
			return err
		}
		if err := d.whole(fb, name, path, e); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := fb.target(name, e)
		if err != nil {
			return err
		}
		if err := d.out.put(&record{op: opSymlink, path: path, target: target}); err != nil {
			return err
		}
	default:
		if err := d.out.put(&record{op: opNode, path: path, meta: Meta{Mode: e.kind()}, size: int64(e.rdev)}); err != nil {
			return err
		}
	}
	m, err := fb.meta(name, e)
	if err != nil {
		return err
	}
	return d.out.put(&record{op: opMeta, path: path, meta: m})
}

// whole writes all data of a file.
func (d *differ) whole(fb *folder, name, path string, e *entry) error {
	if e.size == 0 {
		return nil
	}
	fd, err := fb.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if c, ok := d.out.(copier); ok {
		return c.copyFile(fd, path, e.size)
	}
	for off := int64(0); off < e.size; {
		x, err := nextData(fd, off, e.size)
		if err != nil {
			return err
		}
		if err := d.data(fd, path, x); err != nil {
			return err
		}
		off = x.to
	}
	return nil
}

func (f *folder) file(name string) (int, error) {
	dir, err := f.open()
	if err != nil {
		return -1, err
	}
	return openFile(dir, name, unix.O_RDONLY)
}

// data writes a range of a file.
func (d *differ) data(fd int, path string, x extent) error {
	for off := x.from; off < x.to; {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		// Pieces end at fixed offsets, whatever they begin at.
		end := min(x.to, (off/maxData+1)*maxData)
		buf := d.bufB[:end-off]
		n, err := readFull(fd, buf, off)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if n < len(buf) {
			return fmt.Errorf("read %s: it became shorter", path)
		}
		if err := d.out.put(&record{op: opData, path: path, off: off, data: buf}); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// change writes what differs of an entry that stays.
func (d *differ) change(fa, fb *folder, name, path string, ea, eb *entry) error {
	if ea.ino == eb.ino && ea.size == eb.size && ea.mode == eb.mode && ea.ctime == eb.ctime && ea.mtime == eb.mtime && ea.ctime.Sec < d.recent &&
		d.a.side == nil && d.b.side == nil {
		return nil
	}
	changed := false
	if eb.isReg() {
		var err error
		if changed, err = d.compare(fa, fb, name, path, ea, eb); err != nil {
			return err
		}
	}
	mb, err := fb.meta(name, eb)
	if err != nil {
		return err
	}
	if !changed {
		ma, err := fa.meta(name, ea)
		if err != nil || ma.equal(mb) {
			return err
		}
	}
	return d.out.put(&record{op: opMeta, path: path, meta: mb})
}

// compare writes the ranges of a file that differ.
func (d *differ) compare(fa, fb *folder, name, path string, ea, eb *entry) (changed bool, err error) {
	begin := func() error {
		if changed {
			return nil
		}
		changed = true
		return d.out.put(&record{op: opChange, path: path, size: eb.size})
	}
	if ea.size != eb.size {
		if err := begin(); err != nil {
			return changed, err
		}
	}
	if eb.size == 0 {
		return changed, nil
	}
	a, err := fa.file(name)
	if err != nil {
		return changed, err
	}
	defer unix.Close(a)
	b, err := fb.file(name)
	if err != nil {
		return changed, err
	}
	defer unix.Close(b)
	var xa, xb extent
	shared := newSharing(a, b)
	for off := int64(0); off < eb.size; {
		if xb.to <= off {
			if xb, err = nextData(b, off, eb.size); err != nil {
				return changed, err
			}
		}
		if xa.to <= off && off < ea.size {
			if xa, err = nextData(a, off, ea.size); err != nil {
				return changed, err
			}
		}
		endB, inB := edge(xb, off, eb.size)
		endA, inA := edge(xa, off, ea.size)
		end := min(eb.size, endB, endA)
		r := extent{off, end}
		switch {
		case inB && inA:
			err = d.differing(a, b, path, r, shared, begin)
		case inB:
			if err = begin(); err == nil {
				err = d.data(b, path, r)
			}
		case inA:
			if end == ea.size { // the block a's end lies in goes as a whole
				end = min(eb.size, endB)
			}
			if err = begin(); err == nil {
				err = d.out.put(&record{op: opHole, path: path, off: off, size: end - off})
			}
		}
		if err != nil {
			return changed, err
		}
		off = end
	}
	return changed, nil
}

// edge tells whether off lies in data, and where that ends.
func edge(x extent, off, size int64) (end int64, in bool) {
	switch {
	case off >= size || x.from >= size || x.to <= off:
		return max63, false
	case off >= x.from:
		return x.to, true
	}
	return x.from, false
}

// page is the least range that travels of a changed file.
const page = 4096

// differing writes the pages of a range that are data in both and not the same.
func (d *differ) differing(a, b int, path string, x extent, shared *sharing, begin func() error) error {
	for off := x.from; ; {
		if off = shared.skip(off, x.to); off >= x.to {
			return nil
		}
		if err := d.ctx.Err(); err != nil {
			return err
		}
		end := min(x.to, (off/maxData+1)*maxData)
		ba, bb := d.bufA[:end-off], d.bufB[:end-off]
		na, err := readFull(a, ba, off)
		if err != nil {
			return fmt.Errorf("read %s in the base: %w", path, err)
		}
		nb, err := readFull(b, bb, off)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if nb < len(bb) || na < len(ba) {
			return fmt.Errorf("read %s: it became shorter", path)
		}
		if !bytes.Equal(ba, bb) {
			if err := begin(); err != nil {
				return err
			}
			for i := 0; i < len(bb); {
				j := i
				for j < len(bb) && !bytes.Equal(ba[j:min(j+page, len(bb))], bb[j:min(j+page, len(bb))]) {
					j = min(j+page, len(bb))
				}
				if j > i {
					if err := d.out.put(&record{op: opData, path: path, off: off + int64(i), data: bb[i:j]}); err != nil {
						return err
					}
				}
				i = min(j+page, len(bb))
			}
		}
		off = end
	}
}
