// Package hostfs is what backends share that keep data on a file system of
// this host: names and small durable files below a pool's directory, mounts of
// heads, what a file system keeps, locks and claims, and the errors of all of
// it in one wording. It knows the contract of package storage and no backend,
// and nothing of how snapshots are made or streams look.
package hostfs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

// MaxNote is the longest note.
const MaxNote = 64 << 10

// What lies in every tree of a pool.
const (
	DataDir   = "data"             // the content
	OwnDir    = ".drover"          // our memory
	BesideDir = ".drover/beside"   // storage.Snapshot.Beside
	HeadFile  = ".drover/head"     // HeadNote, where it lies within the tree
	SnapFile  = ".drover/snapshot" // what a backend remembers of a snapshot, likewise
)

// HeadNote is HeadFile.
type HeadNote struct {
	Volume  string    `json:"volume"`
	Branch  string    `json:"branch"`
	Size    int64     `json:"size,omitempty"`
	From    string    `json:"from,omitempty"`
	Created time.Time `json:"created"`
	Note    []byte    `json:"note,omitempty"`
}

// NewHeadNote is the memory of a head that is made now.
func NewHeadNote(s storage.HeadSpec) HeadNote {
	return HeadNote{s.Key.Volume, s.Key.Branch, s.Size, s.From, time.Now().UTC(), s.Note}
}

// HeadPath, SnapshotPath and IncomingPath are places below a pool's root.
func HeadPath(key storage.HeadKey) string {
	return "heads/" + key.Volume + "/" + EscapeBranch(key.Branch)
}

// SnapshotPath is a snapshot's place.
func SnapshotPath(volume, id string) string { return "snapshots/" + volume + "/" + id }

// IncomingPath is the place of what is arriving.
func IncomingPath(volume, id string) string { return "incoming/" + volume + "/" + id }

// EscapeBranch makes a branch name a file name: '~' is not allowed in branch names.
func EscapeBranch(branch string) string { return strings.ReplaceAll(branch, "/", "~") }

// CheckID refuses volume ids and snapshot IDs that could not be a file's name.
func CheckID(what, s string) error {
	ok := s != "" && len(s) <= api.MaxName && s[0] != '.' && s[0] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return BadID(what, s)
	}
	return nil
}

// BadID is the error of CheckID.
func BadID(what, s string) error {
	return &api.Error{Kind: api.Invalid, Op: "look up " + what, Object: fmt.Sprintf("%q", s), Reason: "not a valid id", Next: "use letters, digits, '_', '.' and '-', at most 128"}
}

// CheckKey refuses keys that could not be a place.
func CheckKey(key storage.HeadKey) error {
	if err := CheckID("volume", key.Volume); err != nil {
		return err
	}
	return api.CheckBranchName(key.Branch)
}

// CheckNote refuses notes that are too long.
func CheckNote(note []byte) error {
	if len(note) > MaxNote {
		return &api.Error{Kind: api.Invalid, Op: "write note", Reason: fmt.Sprintf("the note has %d bytes, at most %d are allowed", len(note), MaxNote)}
	}
	return nil
}

// CheckSpec refuses what could not become a head. id checks ids, CheckID or
// what a backend demands beyond it.
func CheckSpec(s storage.HeadSpec, id func(what, s string) error) error {
	err := errors.Join(id("volume", s.Key.Volume), api.CheckBranchName(s.Key.Branch), CheckNote(s.Note))
	if err == nil && s.From != "" {
		err = errors.Join(id("snapshot", s.From), id("volume", s.Source()))
	}
	return err
}

// CheckArrival refuses what could not become a snapshot.
func CheckArrival(s storage.ReceiveSpec, id func(what, s string) error) error {
	err := errors.Join(id("volume", s.Volume), id("snapshot", s.ID), CheckNote(s.Note))
	if err == nil && s.Base != "" {
		err = id("snapshot", s.Base)
	}
	return err
}
