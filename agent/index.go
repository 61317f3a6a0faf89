package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/internal/durable"
)

// index is what the agent must know after a restart and without the store.
type index struct{ db *bbolt.DB }

var (
	bucketVolumes   = []byte("volumes")   // volume id -> record
	bucketNames     = []byte("names")     // volume name -> id, of the whole cluster
	bucketJournal   = []byte("journal")   // volume@branch -> journal of a move at its source
	bucketPrepared  = []byte("prepared")  // volume@branch -> Preparation at a move's target
	bucketBases     = []byte("bases")     // volume@branch/peer -> id of the last snapshot both hold
	bucketArriving  = []byte("arriving")  // volume@branch/snapshot -> pool: it began to arrive there and is not complete
	bucketCopies    = []byte("copies")    // volume@branch/volume that begins as a copy -> id of the snapshot
	bucketPools     = []byte("pools")     // pool name -> api.AddPool
	bucketHeld      = []byte("held")      // "pause" or "hook", container id -> heldBack: it was held for a commit
	bucketWork      = []byte("work")      // volume@branch -> workJournal
	bucketRefLog    = []byte("reflog")    // volume@branch -> savedLog, between a head and the one that follows it
	bucketMeta      = []byte("meta")      // "incarnation" -> of the cluster, to which the pools were last reported
	bucketSchedules = []byte("schedules") // volume/schedule -> ran
	bucketTrials    = []byte("trials")    // scratch volume id -> trial
	bucketWaiting   = []byte("waiting")   // volume@branch -> since when a container waits for the head
)

func openIndex(path string) (*index, error) {
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second})
	if err != nil {
		next := "see drover doctor"
		if errors.Is(err, bolterrors.ErrTimeout) {
			next = "another agent runs with this data directory; stop it first"
		}
		return nil, &api.Error{Kind: api.Unavailable, Op: "open the agent's index", Object: path, Err: err, Next: next}
	}
	// The library flushes the file and not its name.
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketVolumes, bucketNames, bucketJournal, bucketPrepared, bucketBases, bucketWaiting, bucketPools, bucketArriving, bucketCopies, bucketHeld, bucketWork, bucketRefLog, bucketMeta, bucketSchedules, bucketTrials} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return &index{db}, nil
}

func (x *index) close() error { return x.db.Close() }

// put writes a value unless it is there already: a write waits for the disk.
func put(x *index, bucket []byte, key string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	same := false
	err = x.db.View(func(tx *bbolt.Tx) error {
		same = bytes.Equal(tx.Bucket(bucket).Get([]byte(key)), text)
		return nil
	})
	if err != nil || same {
		return err
	}
	return x.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), text) })
}

func remove(x *index, bucket []byte, key string) error {
	absent := false
	err := x.db.View(func(tx *bbolt.Tx) error {
		absent = tx.Bucket(bucket).Get([]byte(key)) == nil
		return nil
	})
	if err != nil || absent {
		return err
	}
	return x.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(key)) })
}

func get[T any](x *index, bucket []byte, key string) (v T, found bool, err error) {
	err = x.db.View(func(tx *bbolt.Tx) error {
		text := tx.Bucket(bucket).Get([]byte(key))
		if text == nil {
			return nil
		}
		found = true
		return json.Unmarshal(text, &v)
	})
	return v, found, err
}

func each[T any](x *index, bucket []byte, f func(key string, v T)) error {
	return x.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, text []byte) error {
			var v T
			if err := json.Unmarshal(text, &v); err != nil {
				return err
			}
			f(string(k), v)
			return nil
		})
	})
}

func (x *index) putVolume(v api.Volume) error { return put(x, bucketVolumes, v.ID, v) }
func (x *index) dropVolume(id string) error   { return remove(x, bucketVolumes, id) }
func (x *index) volumes() (list []api.Volume, err error) {
	err = each(x, bucketVolumes, func(_ string, v api.Volume) { list = append(list, v) })
	return list, err
}

func (x *index) names() (map[string]string, error) {
	names := map[string]string{}
	err := each(x, bucketNames, func(name, id string) { names[name] = id })
	return names, err
}

// setNames replaces the index of names.
func (x *index) setNames(names map[string]string) error {
	return x.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(bucketNames); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucketNames)
		if err != nil {
			return err
		}
		for name, id := range names {
			text, err := json.Marshal(id)
			if err != nil {
				return err
			}
			if err := b.Put([]byte(name), text); err != nil {
				return err
			}
		}
		return nil
	})
}

// bases gives for each peer the last snapshot that it is known to share.
func (x *index) bases(head string) (map[string]string, error) {
	return x.under(bucketBases, head+"/")
}

// arriving gives the snapshots that began to arrive for a head, with the pool.
func (x *index) arriving(head string) (map[string]string, error) {
	return x.under(bucketArriving, head+"/")
}

// under gives the strings whose keys begin with prefix, by the rest of the key.
func (x *index) under(bucket []byte, prefix string) (map[string]string, error) {
	found := map[string]string{}
	err := x.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			var id string
			if err := json.Unmarshal(v, &id); err != nil {
				return err
			}
			found[string(k[len(prefix):])] = id
		}
		return nil
	})
	return found, err
}
