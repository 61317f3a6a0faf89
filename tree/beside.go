package tree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Beside a tree lies what its store could not keep: one bbolt file, so that a
// tree of any size is looked up and listed without holding it in memory.
//
//	kept  PATH -> metadata as the store keeps it, metadata as it was sent
//	only  DIRECTORY \0 NAME -> an entry that could not be made at all:
//	      the record that makes it, and its metadata
//
// Values are records of the stream.
const besideFile = "tree.db"

var bucketKept, bucketOnly = []byte("kept"), []byte("only")

// batch is how many changes one transaction takes.
const batch = 4096

type beside struct {
	db      *bolt.DB
	tx      *bolt.Tx
	changes int
}

// besideEntry is an entry that exists beside the data only.
type besideEntry struct {
	make record
	meta Meta
}

// openBeside opens what lies in dir; nil when there is nothing and create is false.
func openBeside(dir string, write, create bool) (*beside, error) {
	if dir == "" {
		return nil, nil
	}
	file := filepath.Join(dir, besideFile)
	st, err := os.Lstat(file)
	switch {
	case errors.Is(err, os.ErrNotExist) && !create:
		return nil, nil
	case err == nil && (!st.Mode().IsRegular() || st.Size() == 0 && !write):
		return nil, damaged("what lies beside the data is not a file of Drover's")
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: !write, Timeout: 5 * time.Second, NoStatistics: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	s := &beside{db: db}
	if s.tx, err = db.Begin(write); err != nil {
		db.Close()
		return nil, err
	}
	if write {
		for _, b := range [][]byte{bucketKept, bucketOnly} {
			if _, err := s.tx.CreateBucketIfNotExists(b); err != nil {
				s.close()
				return nil, err
			}
		}
	} else if s.tx.Bucket(bucketKept) == nil || s.tx.Bucket(bucketOnly) == nil {
		s.close()
		return nil, damaged("what lies beside the data is not a file of Drover's")
	}
	return s, nil
}

func (s *beside) close() {
	if s != nil {
		_ = s.tx.Rollback()
		_ = s.db.Close()
	}
}

// commit makes the changes durable.
func (s *beside) commit() error {
	if s == nil || s.changes == 0 {
		return nil
	}
	if err := s.tx.Commit(); err != nil {
		return err
	}
	s.changes = 0
	var err error
	s.tx, err = s.db.Begin(true)
	return err
}

func (s *beside) changed() error {
	if s.changes++; s.changes >= batch {
		return s.commit()
	}
	return nil
}

func onlyKey(path string) []byte {
	dir, name := splitPath(path)
	return []byte(dir + "\x00" + name)
}

// bolt's longest key; longer paths could not be remembered.
const maxKey = 32768

func (s *beside) putKept(path string, kept, full Meta) error {
	if len(path)+1 > maxKey {
		return unix.ENAMETOOLONG
	}
	v := (&record{op: opMeta, meta: kept}).encode(nil)
	v = (&record{op: opMeta, meta: full}).encode(v)
	if err := s.tx.Bucket(bucketKept).Put([]byte("/"+path), v); err != nil {
		return err
	}
	return s.changed()
}

func (s *beside) kept(path string) (kept, full Meta, ok bool, err error) {
	if s == nil {
		return
	}
	v := s.tx.Bucket(bucketKept).Get([]byte("/" + path))
	if v == nil {
		return
	}
	d := newDecoder(bytes.Clone(v))
	var r record
	if d.next(&r) && r.op == opMeta {
		kept = r.meta
		if d.next(&r) && r.op == opMeta {
			return kept, r.meta, true, nil
		}
	}
	return kept, full, false, damaged("what lies beside the data cannot be read")
}

func (s *beside) putOnly(path string, e besideEntry) error {
	if len(path)+1 > maxKey {
		return unix.ENAMETOOLONG
	}
	v := e.make.encode(nil)
	v = (&record{op: opMeta, path: path, meta: e.meta}).encode(v)
	if err := s.tx.Bucket(bucketOnly).Put(onlyKey(path), v); err != nil {
		return err
	}
	return s.changed()
}

func (s *beside) only(path string) (*besideEntry, error) {
	if s == nil {
		return nil, nil
	}
	v := s.tx.Bucket(bucketOnly).Get(onlyKey(path))
	if v == nil {
		return nil, nil
	}
	d := newDecoder(bytes.Clone(v))
	var e besideEntry
	var r record
	if d.next(&e.make) && d.next(&r) && r.op == opMeta {
		switch e.make.op {
		case opLink, opSymlink, opNode:
			e.meta = r.meta
			return &e, nil
		}
	}
	return nil, damaged("what lies beside the data cannot be read")
}

// names lists the entries of a directory that exist beside the data only.
func (s *beside) names(dir string) []string {
	if s == nil {
		return nil
	}
	var list []string
	prefix := []byte(dir + "\x00")
	c := s.tx.Bucket(bucketOnly).Cursor()
	for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		list = append(list, string(k[len(prefix):]))
	}
	return list
}

// hasLinks reports whether names of files with several exist here only.
func (s *beside) hasLinks() bool {
	if s == nil {
		return false
	}
	c := s.tx.Bucket(bucketOnly).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if len(v) > 0 && op(v[0]) == opLink {
			return true
		}
	}
	return false
}

// forget drops what is known of an entry and, if below is set, of everything
// below it.
func (s *beside) forget(path string, below bool) error {
	if s == nil {
		return nil
	}
	err := s.remove(bucketKept, []byte("/"+path))
	if err == nil {
		err = s.remove(bucketOnly, onlyKey(path))
	}
	if err != nil || !below {
		return err
	}
	for _, r := range []struct {
		bucket []byte
		prefix string
	}{{bucketKept, "/" + path + "/"}, {bucketOnly, path + "\x00"}, {bucketOnly, path + "/"}} {
		for {
			k, _ := s.tx.Bucket(r.bucket).Cursor().Seek([]byte(r.prefix))
			if k == nil || !strings.HasPrefix(string(k), r.prefix) {
				break
			}
			if err := s.remove(r.bucket, bytes.Clone(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *beside) remove(bucket, key []byte) error {
	b := s.tx.Bucket(bucket)
	if b.Get(key) == nil {
		return nil
	}
	if err := b.Delete(key); err != nil {
		return err
	}
	return s.changed()
}

// merge gives what an entry should have: what was sent, except where somebody
// changed what the store kept of it.
func merge(now, kept, full Meta) Meta {
	out := now
	if now.Mode == kept.Mode {
		out.Mode = full.Mode
	}
	if now.UID == kept.UID && now.GID == kept.GID {
		out.UID, out.GID = full.UID, full.GID
	}
	if now.Sec == kept.Sec && now.Nsec == kept.Nsec {
		out.Sec, out.Nsec = full.Sec, full.Nsec
	}
	if sameXattrs(now.Xattrs, kept.Xattrs) {
		out.Xattrs = full.Xattrs
	}
	return out
}
