package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// What a row of blobs may be.
const (
	live     = 0
	deleting = 1 // nobody has it, and a sweep removes its bytes
	damaged  = 2 // its bytes are not what its digest says: the next upload replaces them
)

// ErrDeleting is in the error for a blob whose bytes are just being removed.
var ErrDeleting = errors.New("its bytes are just being removed")

func noBlob(d digest.Digest) error {
	return &api.Error{Kind: api.NotFound, Op: "find blob", Object: string(d), Reason: "it is not in this repository", Err: hub.ErrBlob}
}

// bigint gives the first parameter of a SELECT the type of an id.
func bigint(q string) string { return strings.Replace(q, "SELECT ?,", "SELECT CAST(? AS BIGINT),", 1) }

// Blob gives the size of a blob that a repository has. Whoever is told so may
// count on it for the grace period: that it was asked for is written down first.
func (s *Store) Blob(ctx context.Context, repository string, d digest.Digest) (int64, error) {
	const op = "find blob"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return 0, s.broken(op, repository, err)
	}
	var size, seen int64
	err = t.row(ctx, "SELECT b.size, b.seen FROM repo_blobs b JOIN blobs x ON x.digest = b.digest WHERE b.repository = ? AND b.digest = ? AND b.present = 1 AND x.state = ?", r.id, string(d), live).Scan(&size, &seen)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, noBlob(d)
	}
	if err != nil {
		return 0, s.broken(op, string(d), err)
	}
	if t.now-seen < Slack.Microseconds() {
		return size, nil
	}
	return size, s.write(ctx, op, string(d), func(t tx) error {
		n, err := t.exec(ctx, "UPDATE repo_blobs SET seen = ? WHERE repository = ? AND digest = ? AND present = 1 AND seen < ?", t.now, r.id, string(d), t.now)
		if err != nil || n > 0 {
			return err
		}
		// It went meanwhile, or somebody else has just asked.
		var there int
		err = t.row(ctx, "SELECT COUNT(*) FROM repo_blobs WHERE repository = ? AND digest = ? AND present = 1", r.id, string(d)).Scan(&there)
		if err == nil && there == 0 {
			return noBlob(d)
		}
		return err
	})
}

// Look is Blob for those who only read: nothing is written down. ok: what is stored is
// not known to be damaged.
func (s *Store) Look(ctx context.Context, repository string, d digest.Digest) (size int64, ok bool, err error) {
	const op = "find blob"
	t := s.reading()
	r, err := t.find(ctx, repository, "")
	if err != nil {
		return 0, false, s.broken(op, repository, err)
	}
	var state int
	err = t.row(ctx, "SELECT b.size, x.state FROM repo_blobs b JOIN blobs x ON x.digest = b.digest WHERE b.repository = ? AND b.digest = ? AND b.present = 1", r.id, string(d)).Scan(&size, &state)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, noBlob(d)
	}
	return size, state == live, s.broken(op, string(d), err)
}

// Held says whether a repository holds a blob that is not known to be stored.
func (s *Store) Held(ctx context.Context, repository string, d digest.Digest) (size int64, held bool, err error) {
	err = s.reading().row(ctx, "SELECT b.size FROM repo_blobs b JOIN repositories r ON r.id = b.repository WHERE r.name = ? AND b.digest = ? AND b.present = 0", repository, string(d)).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return size, err == nil, s.broken("find blob", string(d), err)
}

// claim makes sure that no sweep removes a digest's bytes: from here to the end of
// the transaction by the lock, from then on by the row that the caller writes.
func (t tx) claim(ctx context.Context, d digest.Digest, size int64) (state int, err error) {
	err = t.row(ctx, "INSERT INTO blobs (digest, size, state) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE SET size = blobs.size RETURNING state", string(d), size, live).Scan(&state)
	if err == nil && state == deleting {
		err = &api.Error{Kind: api.Unavailable, Op: "keep blob", Object: string(d), Reason: "nobody had it any more", Next: "try again in a moment", Err: ErrDeleting}
	}
	return state, err
}

// HoldBlob takes a digest whose bytes have come into a repository, before they are
// put where they stay: from here on no sweep removes them. It is not
// there for anybody before BlobStored. replace: what is stored is damaged.
func (s *Store) HoldBlob(ctx context.Context, repository string, d digest.Digest, size int64) (replace bool, err error) {
	err = s.write(ctx, "keep blob", string(d), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		state, err := t.claim(ctx, d, size)
		if err != nil {
			return err
		}
		replace = state == damaged
		n, err := t.exec(ctx, "UPDATE repo_blobs SET seen = ? WHERE repository = ? AND digest = ?", t.now, r.id, string(d))
		if err != nil || n > 0 {
			return err
		}
		if err := t.charge(ctx, r, size); err != nil {
			return err
		}
		_, err = t.exec(ctx, "INSERT INTO repo_blobs (repository, digest, size, seen, present, linked) VALUES (?, ?, ?, ?, 0, 0)", r.id, string(d), size, t.now)
		return err
	})
	return replace, err
}

// BlobStored says that a blob that was held is where it stays, and ends the upload
// that brought it.
func (s *Store) BlobStored(ctx context.Context, repository string, d digest.Digest, upload string) error {
	return s.write(ctx, "keep blob", string(d), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "UPDATE repo_blobs SET present = 1, linked = 1, seen = ? WHERE repository = ? AND digest = ?", t.now, r.id, string(d))
		if err != nil {
			return err
		}
		if n == 0 {
			return &api.Error{Kind: api.Unavailable, Op: "keep blob", Object: string(d), Reason: "it took longer than the grace period to store it", Next: "send it again"}
		}
		if _, err := t.exec(ctx, "UPDATE blobs SET state = ? WHERE digest = ? AND state = ?", live, string(d), damaged); err != nil {
			return err
		}
		_, err = t.exec(ctx, "DELETE FROM uploads WHERE id = ?", upload)
		return err
	})
}

// Mount gives a repository a blob that another has; NotFound when that one does not.
func (s *Store) Mount(ctx context.Context, repository, from string, d digest.Digest) error {
	return s.write(ctx, "mount blob", string(d), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		var size int64
		const has = "SELECT b.size FROM repo_blobs b JOIN repositories r ON r.id = b.repository WHERE r.name = ? AND b.digest = ? AND b.present = 1"
		find := func() error {
			err := t.row(ctx, has, from, string(d)).Scan(&size)
			if errors.Is(err, sql.ErrNoRows) {
				return noBlob(d)
			}
			return err
		}
		if err := find(); err != nil {
			return err
		}
		state, err := t.claim(ctx, d, size)
		if err != nil {
			return err
		}
		// Looked at again: with the blob's row locked, its bytes stay while somebody has it.
		if err := find(); err != nil || state != live {
			return errors.Join(err, noBlob(d))
		}
		n, err := t.exec(ctx, "UPDATE repo_blobs SET seen = ?, present = 1 WHERE repository = ? AND digest = ?", t.now, r.id, string(d))
		if err != nil || n > 0 {
			return err
		}
		if err := t.charge(ctx, r, size); err != nil {
			return err
		}
		_, err = t.exec(ctx, "INSERT INTO repo_blobs (repository, digest, size, seen, present, linked) VALUES (?, ?, ?, ?, 1, 0)", r.id, string(d), size, t.now)
		return err
	})
}

// DeleteBlob takes a blob out of a repository in which no manifest names it.
func (s *Store) DeleteBlob(ctx context.Context, repository string, d digest.Digest) error {
	const op = "delete blob"
	return s.write(ctx, op, string(d), func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		var size int64
		err = t.row(ctx, "DELETE FROM repo_blobs WHERE repository = ? AND digest = ? AND present = 1 RETURNING size", r.id, string(d)).Scan(&size)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return noBlob(d)
		case needed(err):
			return &api.Error{Kind: api.InUse, Op: op, Object: string(d), Reason: "a manifest names it", Next: "delete that first"}
		case err != nil:
			return err
		}
		return t.charge(ctx, r, -size)
	})
}

// Damage notes that a blob's bytes are not what its digest says, or are gone: nobody is
// told any more that it is there, so that the next push brings it again.
func (s *Store) Damage(ctx context.Context, d digest.Digest) error {
	return s.write(ctx, "note damage", string(d), func(t tx) error {
		n, err := t.exec(ctx, "UPDATE blobs SET state = ? WHERE digest = ? AND state = ?", damaged, string(d), live)
		if err != nil || n == 0 {
			return err
		}
		return t.event(ctx, hub.Identity{}, "blob.damaged", "", map[string]string{"digest": string(d)})
	})
}

// Damaged lists what was found damaged and was not replaced yet.
func (s *Store) Damaged(ctx context.Context) ([]digest.Digest, error) {
	list, err := all(ctx, s.reading(), one[digest.Digest], "SELECT digest FROM blobs WHERE state = ? ORDER BY digest", damaged)
	return list, s.broken("list damage", "", err)
}

// BeginUpload notes an upload on its way to a repository.
func (s *Store) BeginUpload(ctx context.Context, repository, id string) error {
	return s.write(ctx, "begin upload", repository, func(t tx) error {
		_, err := t.exec(ctx, "INSERT INTO uploads (id, repository, begun, seen) VALUES (?, ?, ?, ?)", id, repository, t.now, t.now)
		return err
	})
}

// RenewUpload says that an upload goes on; NotFound when it is not known.
func (s *Store) RenewUpload(ctx context.Context, repository, id string) error {
	var seen int64
	err := s.reading().row(ctx, "SELECT seen FROM uploads WHERE id = ? AND repository = ?", id, repository).Scan(&seen)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && seen == ending) {
		return noUpload(id)
	}
	if err != nil || micros(s.now())-seen < time.Minute.Microseconds() {
		return s.broken("go on with upload", repository, err)
	}
	return s.write(ctx, "go on with upload", repository, func(t tx) error {
		n, err := t.exec(ctx, "UPDATE uploads SET seen = ? WHERE id = ? AND repository = ? AND seen <> ?", t.now, id, repository, ending)
		if err == nil && n == 0 {
			return noUpload(id)
		}
		return err
	})
}

// ending is when an upload was seen whose session is being removed.
const ending = -1

func noUpload(id string) error {
	return &api.Error{Kind: api.NotFound, Op: "go on with upload", Object: id, Reason: "it has ended, or was left for a day", Next: "begin anew", Err: hub.ErrUpload}
}

// EndUpload forgets an upload whose session is gone.
func (s *Store) EndUpload(ctx context.Context, id string) error {
	return s.write(ctx, "end upload", id, func(t tx) error {
		_, err := t.exec(ctx, "DELETE FROM uploads WHERE id = ?", id)
		return err
	})
}
