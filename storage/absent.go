package storage

import (
	"context"

	"github.com/drover-data/drover/api"
)

// Absent stands for a pool that cannot be opened: it describes itself as gone
// and answers everything else with the cause, so that nobody takes what is
// out of sight for what is not there.
type Absent struct {
	Kind, Source string
	Cause        error
}

func (a *Absent) err() error {
	return &api.Error{Kind: api.Unavailable, Op: "use pool", Object: a.Source, Reason: "the pool is not there", Err: a.Cause, Next: "drover pool ls and drover doctor tell more"}
}

// Info describes the pool as gone.
func (a *Absent) Info(context.Context) (Info, error) {
	return Info{Kind: a.Kind, Source: a.Source, State: api.PoolGone, Reason: a.Cause.Error()}, nil
}

// Recover and the methods after it give the cause.
func (a *Absent) Recover(context.Context) (Content, error)              { return Content{}, a.err() }
func (a *Absent) CreateHead(context.Context, HeadSpec) (Head, error)    { return Head{}, a.err() }
func (a *Absent) Head(context.Context, HeadKey) (Head, error)           { return Head{}, a.err() }
func (a *Absent) Heads(context.Context) ([]Head, error)                 { return nil, a.err() }
func (a *Absent) SetNote(context.Context, HeadKey, []byte) error        { return a.err() }
func (a *Absent) DestroyHead(context.Context, HeadKey) error            { return a.err() }
func (a *Absent) Mount(context.Context, HeadKey, string) error          { return a.err() }
func (a *Absent) Unmount(context.Context, HeadKey, string) error        { return a.err() }
func (a *Absent) Identity(context.Context, HeadKey) (Identity, error)   { return Identity{}, a.err() }
func (a *Absent) Snapshots(context.Context, string) ([]Snapshot, error) { return nil, a.err() }
func (a *Absent) DestroySnapshot(context.Context, string, string) error { return a.err() }
func (a *Absent) Stage(context.Context, ReceiveSpec) (Stage, error)     { return nil, a.err() }
func (a *Absent) Snapshot(context.Context, HeadKey, string, []byte) (Snapshot, error) {
	return Snapshot{}, a.err()
}

// Close has nothing to let go of.
func (a *Absent) Close() error { return nil }
