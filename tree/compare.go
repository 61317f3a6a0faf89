package tree

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/storage"
)

// Difference is one way in which two trees differ.
type Difference struct {
	Path string // "" is the root
	What string
	A, B string
}

func (d Difference) String() string { return fmt.Sprintf("%q: %s: %s | %s", d.Path, d.What, d.A, d.B) }

// maxDifferences bounds what Compare gives.
const maxDifferences = 1000

// Compare compares two directories entry by entry, as far as a store of
// fidelity f keeps things: types, content, modes, owners, times, attributes and
// access lists, targets, device numbers, which names are one file, and holes.
func Compare(a, b string, f storage.Fidelity) ([]Difference, error) {
	va, err := openView(a, "")
	if err != nil {
		return nil, err
	}
	defer va.close()
	vb, err := openView(b, "")
	if err != nil {
		return nil, err
	}
	defer vb.close()
	c := &comparer{f: f, a: va, b: vb, leadersA: map[uint64]string{}, leadersB: map[uint64]string{}}
	err = c.dir("")
	return c.found, err
}

type comparer struct {
	f                  storage.Fidelity
	a, b               *view
	leadersA, leadersB map[uint64]string
	found              []Difference
}

func (c *comparer) add(path, what string, a, b any) {
	if len(c.found) < maxDifferences {
		c.found = append(c.found, Difference{path, what, fmt.Sprint(a), fmt.Sprint(b)})
	}
}

func (c *comparer) dir(path string) error {
	fa, fb := c.a.folder(path), c.b.folder(path)
	defer fa.close()
	defer fb.close()
	if path == "" {
		if err := c.meta(fa, fb, "", ""); err != nil {
			return err
		}
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
		switch {
		case len(namesB) == 0 || len(namesA) > 0 && namesA[0] < namesB[0]:
			c.add(join(path, namesA[0]), "presence", "there", "missing")
			namesA = namesA[1:]
		case len(namesA) == 0 || namesB[0] < namesA[0]:
			c.add(join(path, namesB[0]), "presence", "missing", "there")
			namesB = namesB[1:]
		default:
			if err := c.entry(fa, fb, namesA[0]); err != nil {
				return err
			}
			namesA, namesB = namesA[1:], namesB[1:]
		}
	}
	return nil
}

func (c *comparer) entry(fa, fb *folder, name string) error {
	path := join(fa.path, name)
	ea, err := fa.look(name)
	if err != nil {
		return err
	}
	eb, err := fb.look(name)
	if err != nil {
		return err
	}
	if ea == nil || eb == nil {
		return fmt.Errorf("%s changed meanwhile", path)
	}
	if ea.kind() != eb.kind() {
		c.add(path, "type", fmt.Sprintf("%o", ea.kind()), fmt.Sprintf("%o", eb.kind()))
		return nil
	}
	if err := c.meta(fa, fb, name, path); err != nil {
		return err
	}
	if c.f.HardLinks && !ea.isDir() {
		if la, lb := leader(c.leadersA, ea, path), leader(c.leadersB, eb, path); la != lb {
			c.add(path, "same file as", la, lb)
		}
	}
	switch ea.kind() {
	case unix.S_IFDIR:
		fa.close()
		fb.close()
		return c.dir(path)
	case unix.S_IFREG:
		return c.content(fa, fb, name, path, ea, eb)
	case unix.S_IFLNK:
		ta, err := fa.target(name, ea)
		if err != nil {
			return err
		}
		tb, err := fb.target(name, eb)
		if err != nil {
			return err
		}
		if ta != tb {
			c.add(path, "target", ta, tb)
		}
	case unix.S_IFBLK, unix.S_IFCHR:
		if ea.rdev != eb.rdev {
			c.add(path, "device", ea.rdev, eb.rdev)
		}
	}
	return nil
}

func leader(m map[uint64]string, e *entry, path string) string {
	if e.nlink < 2 {
		return path
	}
	if first, ok := m[e.ino]; ok {
		return first
	}
	m[e.ino] = path
	return path
}

func (c *comparer) meta(fa, fb *folder, name, path string) error {
	var m [2]Meta
	for i, f := range []*folder{fa, fb} {
		fd, err := f.open()
		if err != nil {
			return err
		}
		e, err := statAt(fd, name)
		if err != nil {
			return err
		}
		if m[i], err = e.meta(fd, name); err != nil {
			return err
		}
	}
	a, b := m[0], m[1]
	if c.f.Modes && a.Mode != b.Mode {
		c.add(path, "mode", fmt.Sprintf("%o", a.Mode), fmt.Sprintf("%o", b.Mode))
	}
	if c.f.Owners && (a.UID != b.UID || a.GID != b.GID) {
		c.add(path, "owner", fmt.Sprint(a.UID, ":", a.GID), fmt.Sprint(b.UID, ":", b.GID))
	}
	if ta, tb := c.time(a), c.time(b); !ta.Equal(tb) {
		c.add(path, "time", ta, tb)
	}
	xa, xb := c.xattrs(a.Xattrs), c.xattrs(b.Xattrs)
	if !sameXattrs(xa, xb) {
		c.add(path, "attributes", fmt.Sprintf("%q", xa), fmt.Sprintf("%q", xb))
	}
	return nil
}

// time is a time as the store keeps it.
func (c *comparer) time(m Meta) time.Time {
	if c.f.TimeGrain == 0 {
		return time.Time{}
	}
	if c.f.TimeMax != 0 && m.Sec > c.f.TimeMax {
		return time.Unix(c.f.TimeMax, 0)
	}
	nsec := int64(m.Nsec)
	if c.f.TimeGrain > 1 {
		nsec -= nsec % min(int64(c.f.TimeGrain), 1e9)
	}
	return time.Unix(m.Sec, nsec)
}

func (c *comparer) xattrs(list []Xattr) []Xattr {
	var out []Xattr
	for _, x := range list {
		if isACL(x.Name) && c.f.ACLs || !isACL(x.Name) && c.f.Xattrs {
			out = append(out, x)
		}
	}
	return out
}

func (c *comparer) content(fa, fb *folder, name, path string, ea, eb *entry) error {
	if ea.size != eb.size {
		c.add(path, "size", ea.size, eb.size)
		return nil
	}
	if ea.size == 0 {
		return nil
	}
	a, err := fa.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := fb.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	if c.f.Sparse {
		xa, err := extents(a, ea.size)
		if err != nil {
			return err
		}
		xb, err := extents(b, eb.size)
		if err != nil {
			return err
		}
		if fmt.Sprint(xa) != fmt.Sprint(xb) {
			c.add(path, "data between holes", xa, xb)
		}
	}
	return c.bytes(a, b, path, ea.size)
}

// extents lists what is not a hole, up to a bound.
func extents(fd int, size int64) ([]extent, error) {
	var list []extent
	for off := int64(0); off < size && len(list) < 10000; {
		x, err := nextData(fd, off, size)
		if err != nil {
			return nil, err
		}
		if x.from < x.to {
			if n := len(list); n > 0 && list[n-1].to == x.from {
				list[n-1].to = x.to
			} else {
				list = append(list, x)
			}
		}
		off = max(x.to, off+1)
	}
	return list, nil
}

// bytes compares content, leaving out what is a hole in both.
func (c *comparer) bytes(a, b int, path string, size int64) error {
	ba, bb := make([]byte, maxData), make([]byte, maxData)
	for off := int64(0); off < size; {
		xa, err := nextData(a, off, size)
		if err != nil {
			return err
		}
		xb, err := nextData(b, off, size)
		if err != nil {
			return err
		}
		off = max(off, min(xa.from, xb.from))
		n := min(size-off, maxData)
		if n <= 0 {
			return nil
		}
		if _, err := readFull(a, ba[:n], off); err != nil {
			return err
		}
		if _, err := readFull(b, bb[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(ba[:n], bb[:n]) {
			at := int64(0)
			for at < n && ba[at] == bb[at] {
				at++
			}
			c.add(path, "content", fmt.Sprintf("byte %d is %#x", off+at, ba[at]), fmt.Sprintf("%#x", bb[at]))
			return nil
		}
		off += n
	}
	return nil
}
