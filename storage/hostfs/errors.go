package hostfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// ErrNotThere marks a pool that is not (or no longer) at its place.
var ErrNotThere = errors.New("the pool is not there")

// ErrNotOurs marks a thing in the pool that the backend did not make.
var ErrNotOurs = errors.New("not made by Drover")

// Wording is what a backend tells people to do, by what happened.
type Wording struct {
	Pool     string // what the user calls it
	NotThere string // the pool is not at its place
	Full     string
	ReadOnly string
	Device   string // the device does not answer
	Damaged  string
	// Limits: heads have limits that the kernel keeps, so that "quota
	// exceeded" is about one head and not about the pool.
	Limits bool
}

// Fail turns what the kernel said into an *api.Error; nil stays nil.
func (w Wording) Fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	is := func(list ...error) bool {
		for _, e := range list {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	e := &api.Error{Kind: api.Internal, Op: op, Object: object, Err: err}
	switch {
	case is(context.Canceled, context.DeadlineExceeded):
		e.Kind = api.Canceled
	case is(ErrNotThere, unix.ENOTCONN):
		e.Kind, e.Next = api.Unavailable, w.NotThere
	case w.Limits && is(unix.EDQUOT):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the size limit is reached", "resize the volume"
	case is(unix.ENOSPC, unix.EDQUOT):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the pool "+w.Pool+" is full", w.Full
	case is(unix.EROFS):
		e.Kind, e.Reason, e.Next = api.ReadOnly, "the pool "+w.Pool+" is read-only", w.ReadOnly
	case is(unix.EIO, unix.ENODEV, unix.ESTALE, unix.ENXIO, unix.ESHUTDOWN):
		e.Kind, e.Next = api.Unavailable, w.Device
	case is(unix.EUCLEAN):
		e.Kind, e.Reason, e.Next = api.Damaged, "the file system is damaged", w.Damaged
	case is(unix.EBUSY):
		e.Kind = api.InUse
	}
	return e
}

// DeviceGone reports whether an error is about the device or this process
// rather than the object.
func DeviceGone(err error) bool {
	for _, e := range []error{unix.EIO, unix.ENODEV, unix.ESTALE, unix.ESHUTDOWN, unix.EUCLEAN, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// The errors that the contract of storage names.

// NoHead says that there is no such head.
func NoHead(op string, key storage.HeadKey, pool string) error {
	return &api.Error{Kind: api.NotFound, Op: op, Object: key.String(), Reason: "there is no such head in pool " + pool}
}

// NoSnapshot says that there is no such snapshot.
func NoSnapshot(op, volume, id, pool string) error {
	return &api.Error{Kind: api.NotFound, Op: op, Object: volume + "@" + id, Reason: "there is no such snapshot in pool " + pool}
}

// BeganOtherwise says that a head is there and began as another snapshot.
func BeganOtherwise(op string, spec storage.HeadSpec, from string) error {
	return &api.Error{Kind: api.Exists, Op: op, Object: spec.Key.String(), Reason: fmt.Sprintf("it is there already and began as %q, not as %q", from, spec.From), Next: "remove it first"}
}

// WouldLeaveOut names what a snapshot of a head would not have; nil for nothing.
func WouldLeaveOut(op string, key storage.HeadKey, nested []string, next string) error {
	if len(nested) == 0 {
		return nil
	}
	return &api.Error{Kind: api.Unsupported, Op: op, Object: key.String(), Reason: "a snapshot would leave out what is mounted inside: " + strings.Join(nested, ", "), Next: next}
}

// CheckSize refuses a size that is none, and one that files do not fit into.
func CheckSize(op string, key storage.HeadKey, size, used int64) error {
	switch {
	case size < 0:
		return &api.Error{Kind: api.Invalid, Op: op, Object: key.String(), Reason: "the size is negative"}
	case used > size:
		return &api.Error{Kind: api.Exhausted, Op: op, Object: key.String(), Reason: fmt.Sprintf("its files take %d bytes, more than the wanted %d", used, size), Next: fmt.Sprintf("give at least %d bytes", used)}
	}
	return nil
}

// IsThere says that a snapshot is there that was to arrive.
func IsThere(op, volume, id string) error {
	return &api.Error{Kind: api.Exists, Op: op, Object: volume + "@" + id, Reason: "the snapshot is there already"}
}

// Arriving says that another handle has the right to fill a snapshot.
func Arriving(op, volume, id string) error {
	return &api.Error{Kind: api.InUse, Op: op, Object: volume + "@" + id, Reason: "it is arriving already", Next: "wait until the other session has ended"}
}

// Closed says that a handle was closed.
func Closed(op, object string) error {
	return &api.Error{Kind: api.Invalid, Op: op, Object: object, Reason: "this handle was closed"}
}
