package zfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// errUnsure: what the stream says does not tell all.
var errUnsure = errors.New("the file system's stream does not name all of it")

// maxObjects bounds what is remembered of one stream.
const maxObjects = 1 << 20

// Changes implements storage.Differ from the records of the stream between the
// two. They name objects; an object's number is its inode's, and where that lies
// the directories of the younger snapshot tell, without a look at the files.
func (b *Backend) Changes(ctx context.Context, volume, base, id string, each func(storage.Change) error) error {
	const op = "compare snapshots"
	object := volume + "@" + id
	if err := errors.Join(checkID("volume", volume), checkID("snapshot", base), checkID("snapshot", id)); err != nil {
		return err
	}
	err := b.tellChanges(ctx, op, volume, base, id, each)
	if errors.Is(err, errUnsure) || errors.Is(err, errStream) {
		return &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: "the file system cannot tell exactly what changed", Next: "compare the two", Err: err}
	}
	return b.fail(op, object, err)
}

func (b *Backend) tellChanges(ctx context.Context, op, volume, base, id string, each func(storage.Change) error) error {
	from, err := b.readSnapshot(op, volume, base)
	if err != nil {
		return err
	}
	to, err := b.readSnapshot(op, volume, id)
	if err != nil || base == id {
		return err
	}
	way, err := b.way(ctx, from, to)
	if err != nil {
		return err
	}
	if way == nil {
		return fmt.Errorf("%w: no stream leads from one to the other", errUnsure)
	}
	props, err := b.get(ctx, []string{"createtxg"}, b.fullName(from), false)
	if err != nil {
		return err
	}
	c := &changed{objects: map[uint64]*object{}, since: uint64(number(props[b.fullName(from)]["createtxg"])), each: each}
	if c.since == 0 {
		return fmt.Errorf("%w: nobody knows when the older one was made", errUnsure)
	}
	b.mark(way, 1)
	defer b.mark(way, -1)
	for _, st := range way {
		if err := b.follow(ctx, volume+"@"+id, st, c); err != nil {
			return err
		}
	}
	if c.was, err = b.view(ctx, from); err == nil {
		c.now, err = b.view(ctx, to)
	}
	if err != nil {
		return err
	}
	return c.tell(ctx)
}

// follow reads one zfs stream.
func (b *Backend) follow(ctx context.Context, name string, st sendStep, c *changed) error {
	s, err := hostfs.NewPump(ctx, func(err error) error { return b.fail("compare snapshots", name, err) }, func(ctx context.Context, w *os.File) error {
		return sendOne(ctx, w, st)
	})
	if err != nil {
		return err
	}
	defer s.Close()
	return c.read(s)
}

// object is what a stream says of one.
type object struct {
	kind   uint32
	ranges []storage.Range
	node   znode
	paths  []string // where the younger snapshot has it
}

// znode is the part of an object's attributes that tells where it belongs.
type znode struct {
	known               bool
	born, parent, links uint64
	extended            bool // an extended attribute, or the directory of some
}

// The types of objects and of what is beside their data, as dmu.h has them.
const (
	typeZnode     = 17
	typeFile      = 19
	typeDirectory = 20
	typeSA        = 44

	saMagic      = 0x2F505A
	flagExtended = 1 // of a znode: ZFS_XATTR
)

// parseZnode reads znode_phys_t or, of newer file systems, the system attributes
// in the order in which ZFS lays them out for every new object.
func parseZnode(kind uint32, b []byte) (z znode) {
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	switch {
	case kind == typeZnode && len(b) >= 128:
		z = znode{true, u64(64), u64(88), u64(96), u64(120)&flagExtended != 0}
	case kind == typeSA && len(b) >= 8 && binary.LittleEndian.Uint32(b) == saMagic:
		at := int(binary.LittleEndian.Uint16(b[4:])>>10) * 8
		if at < 8 || len(b) < at+128 || u64(at)>>16 != 0 || u64(at)&unix.S_IFMT == 0 {
			return z // another layout
		}
		z = znode{true, u64(at + 16), u64(at + 40), u64(at + 120), u64(at+48)&flagExtended != 0}
	}
	return z
}

// changed gathers what streams say.
type changed struct {
	objects  map[uint64]*object
	since    uint64 // transaction in which the older snapshot was made
	was, now string // the two trees
	each     func(storage.Change) error
}

// read takes the records of a zfs stream.
func (c *changed) read(r io.Reader) error {
	in := &counting{r: bufio.NewReaderSize(r, 256<<10)}
	var rec [recordSize]byte
	for first := true; ; first = false {
		if err := in.full(rec[:]); err != nil {
			return err
		}
		kind := binary.LittleEndian.Uint32(rec[:])
		if first != (kind == recordBegin) {
			return bad("it does not begin as a zfs stream does")
		}
		if kind == recordEnd {
			return nil
		}
		n, err := payloadSize(rec[:])
		if err != nil {
			return err
		}
		var bonus []byte
		if kind == recordObject {
			bonus = make([]byte, n)
			err = in.full(bonus)
		} else if _, e := io.CopyN(io.Discard, in.r, int64(n)); e != nil {
			err = bad("it ends in a record")
		}
		if err == nil {
			err = c.take(kind, rec[:], bonus)
		}
		if err != nil {
			return err
		}
	}
}

func (c *changed) take(kind uint32, rec, bonus []byte) error {
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(rec[at:]) }
	id := u64(8)
	switch kind {
	case recordBegin:
		return nil
	case recordObject:
		o := c.object(id)
		o.kind = binary.LittleEndian.Uint32(rec[16:])
		o.node = parseZnode(binary.LittleEndian.Uint32(rec[20:]), bonus)
	case recordFreeObjects:
		first, n := id, u64(16)
		for x := range c.objects {
			if x >= first && x-first < n {
				delete(c.objects, x)
			}
		}
	case recordWrite:
		c.object(id).add(u64(24), u64(32))
	case recordFree, recordWriteByRef, recordWriteEmbedded:
		c.object(id).add(u64(16), u64(24))
	case recordSpill:
		c.object(id)
	default:
		return fmt.Errorf("%w: a record of kind %d", errUnsure, kind)
	}
	if len(c.objects) > maxObjects {
		return fmt.Errorf("%w: more than %d objects", errUnsure, maxObjects)
	}
	return nil
}

func (c *changed) object(id uint64) *object {
	o := c.objects[id]
	if o == nil {
		o = &object{}
		c.objects[id] = o
	}
	return o
}

func (o *object) add(from, n uint64) {
	if from > math.MaxInt64 {
		return
	}
	n = min(n, math.MaxInt64-from) // "up to the end" is all ones
	if k := len(o.ranges); k > 0 && o.ranges[k-1].Offset+o.ranges[k-1].Length == int64(from) {
		o.ranges[k-1].Length += int64(n)
		return
	}
	o.ranges = append(o.ranges, storage.Range{Offset: int64(from), Length: int64(n)})
}

// tell finds where the objects lie and names them.
func (c *changed) tell(ctx context.Context) error {
	if err := c.find(ctx, ""); err != nil {
		return err
	}
	for id, o := range c.objects {
		if len(o.paths) == 0 {
			if err := c.hidden(id, o); err != nil {
				return err
			}
		}
	}
	for _, o := range c.objects {
		for _, path := range o.paths {
			if err := c.one(ctx, path, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// find gives the objects their paths, from the directories alone.
func (c *changed) find(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return eachName(filepath.Join(c.now, dir), func(name string, ino uint64, isDir bool) error {
		path := filepath.Join(dir, name)
		if o := c.objects[ino]; o != nil {
			o.paths = append(o.paths, path)
		}
		if isDir {
			return c.find(ctx, path)
		}
		return nil
	})
}

// hidden deals with an object that no directory has: the file system's own, the
// root, what was deleted while it was open, and extended attributes, which
// belong to whatever they were set on.
func (c *changed) hidden(id uint64, o *object) error {
	if o.kind != typeFile && o.kind != typeDirectory && o.kind != 0 {
		return nil
	}
	switch z := o.node; {
	case !z.known:
	case o.kind == typeDirectory && z.parent == id: // the root, which holds the content's directory
		return nil
	case z.links == 0:
		return nil
	case z.extended:
		for range 8 {
			up := c.objects[z.parent]
			if up == nil {
				break
			}
			if len(up.paths) > 0 {
				return nil // and that one is named
			}
			z = up.node
		}
	}
	return fmt.Errorf("%w: object %d lies nowhere", errUnsure, id)
}

// inData gives the path within the content.
func inData(path string) (string, bool) {
	if path == hostfs.DataDir {
		return "", true
	}
	return strings.CutPrefix(path, hostfs.DataDir+"/")
}

func (c *changed) one(ctx context.Context, path string, o *object) error {
	rel, inside := inData(path)
	if !inside {
		return nil
	}
	x := storage.Change{Path: rel}
	switch {
	case o.kind == typeDirectory:
		if err := c.compare(ctx, path); err != nil {
			return err
		}
	case !o.node.known || o.node.born > c.since:
		x.Whole = true // perhaps another file with the number of one that went
	default:
		x.Ranges = o.ranges
	}
	return c.each(x)
}

type nameOf struct {
	ino uint64
	dir bool
}

// compare names what came into a directory and what went. One that was
// somewhere else before is named by the directory it came into.
func (c *changed) compare(ctx context.Context, path string) error {
	var a, b unix.Stat_t
	if unix.Lstat(filepath.Join(c.was, path), &a) != nil || a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if err := unix.Lstat(filepath.Join(c.now, path), &b); err != nil || a.Ino != b.Ino {
		return err
	}
	was, now := map[string]nameOf{}, map[string]nameOf{}
	for dir, into := range map[string]map[string]nameOf{c.was: was, c.now: now} {
		if err := eachName(filepath.Join(dir, path), func(name string, ino uint64, isDir bool) error {
			into[name] = nameOf{ino, isDir}
			return nil
		}); err != nil {
			return err
		}
	}
	for root, names := range map[string][2]map[string]nameOf{c.was: {was, now}, c.now: {now, was}} {
		for name, x := range names[0] {
			if names[1][name] == x {
				continue
			}
			if err := c.below(ctx, root, filepath.Join(path, name), x.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// below names a path and everything under it as a whole.
func (c *changed) below(ctx context.Context, root, path string, dir bool) error {
	whole := func(path string) error {
		rel, inside := inData(path)
		if !inside {
			return nil
		}
		return c.each(storage.Change{Path: rel, Whole: true})
	}
	if !dir {
		return whole(path)
	}
	return filepath.WalkDir(filepath.Join(root, path), func(full string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		return whole(rel)
	})
}

// eachName lists a directory with the numbers of inodes, which the directory
// itself has: nothing else is looked at.
func eachName(dir string, f func(name string, ino uint64, isDir bool) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return &os.PathError{Op: "readdir", Path: dir, Err: err}
		}
		if n == 0 {
			return nil
		}
		for b := buf[:n]; len(b) > 0; {
			const head = 19 // struct linux_dirent64 up to the name
			size := int(binary.LittleEndian.Uint16(b[16:]))
			if size < head || size > len(b) {
				return fmt.Errorf("read directory %s: an entry of %d bytes", dir, size)
			}
			name, _, _ := strings.Cut(string(b[head:size]), "\x00")
			ino, kind := binary.LittleEndian.Uint64(b), b[18]
			b = b[size:]
			if name == "." || name == ".." {
				continue
			}
			isDir := kind == unix.DT_DIR
			if kind == unix.DT_UNKNOWN {
				var st unix.Stat_t
				if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return &os.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
				}
				isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
			}
			if err := f(name, ino, isDir); err != nil {
				return err
			}
		}
	}
}
