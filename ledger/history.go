package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
)

// Change is one change of a volume's references: exactly one field is set.
type Change struct {
	Advance       *Advance       `json:"advance,omitempty"`
	NewBranch     *NewBranch     `json:"newBranch,omitempty"`
	Switch        *Switch        `json:"switch,omitempty"`
	Reset         *Reset         `json:"reset,omitempty"`
	DropBranch    *DropBranch    `json:"dropBranch,omitempty"`
	RestoreBranch *RestoreBranch `json:"restoreBranch,omitempty"`
	RenameBranch  *RenameBranch  `json:"renameBranch,omitempty"`
	Tag           *Tag           `json:"tag,omitempty"`
	Untag         *Untag         `json:"untag,omitempty"`
	Expire        *Expire        `json:"expire,omitempty"`
	Hook          *SetHook       `json:"hook,omitempty"`
	Remote        *SetRemote     `json:"remote,omitempty"`
	SetKey        *SetKey        `json:"setKey,omitempty"`
	Track         *Track         `json:"track,omitempty"`
	Schedule      *SetSchedule   `json:"schedule,omitempty"`
	Retain        *Retain        `json:"retain,omitempty"`
	ForgetDropped bool           `json:"forgetDropped,omitempty"` // those whose grace has ended
}

// SetHook sets what makes commits application-consistent; nil removes it.
type SetHook struct {
	Hook *api.Hook `json:"hook,omitempty"`
}

// Advance moves a branch's tip without touching the head.
type Advance struct {
	Branch string  `json:"branch"`
	Node   string  `json:"node"` // who says it: must be the owner
	Epoch  uint64  `json:"epoch"`
	From   string  `json:"from"` // tip that it must have now
	To     string  `json:"to"`
	Tip    api.Tip `json:"tip"`
}

// NewBranch makes a head on a node that holds its first snapshot.
type NewBranch struct {
	Branch  string    `json:"branch"`
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	Seed    string    `json:"seed"`
	Commit  string    `json:"commit"` // its tip
	Tip     api.Tip   `json:"tip"`
	Expires time.Time `json:"expires,omitzero"`
}

// Switch changes which branch the plain name means.
type Switch struct {
	From string `json:"from"` // branch that it must mean now
	To   string `json:"to"`
}

// Reset begins a new epoch of a head under the same owner, from another
// snapshot. The owner has marked its copy released before.
type Reset struct {
	Branch string  `json:"branch"`
	Node   string  `json:"node"`
	Epoch  uint64  `json:"epoch"`
	From   string  `json:"from"` // tip that it must have now
	Seed   string  `json:"seed"` // what the head is made of
	To     string  `json:"to"`   // its tip then
	Tip    api.Tip `json:"tip"`
}

// DropBranch deletes a branch that nobody uses; it can be brought back.
type DropBranch struct {
	Branch string `json:"branch"`
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"`
	From   string `json:"from"` // tip that it must have now
	Kept   string `json:"kept,omitempty"`
	By     string `json:"by"`
}

// RestoreBranch brings a deleted branch back.
type RestoreBranch struct {
	Branch string `json:"branch"`
	Node   string `json:"node"`
	By     string `json:"by"`
}

// RenameBranch gives a branch another name. Its head is made anew from Seed,
// which holds all that it has.
type RenameBranch struct {
	Branch string `json:"branch"`
	To     string `json:"to"`
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"`
	From   string `json:"from"` // tip that it must have now
	Seed   string `json:"seed"`
	By     string `json:"by"`
}

// Tag names a commit; Force moves a tag that names another one.
type Tag struct {
	Name   string `json:"name"`
	Commit string `json:"commit"`
	Force  bool   `json:"force,omitempty"`
}

// Untag removes a tag.
type Untag struct {
	Name string `json:"name"`
}

// Expire sets when a branch is deleted by itself; zero is never.
type Expire struct {
	Branch string    `json:"branch"`
	At     time.Time `json:"at,omitzero"`
}

// Apply does a change to a record.
func Apply(v api.Volume, c Change, now time.Time, grace time.Duration) (api.Volume, error) {
	switch {
	case c.Advance != nil:
		return advance(v, *c.Advance, now)
	case c.NewBranch != nil:
		return newBranch(v, *c.NewBranch, now)
	case c.Switch != nil:
		return switchBranch(v, *c.Switch)
	case c.Reset != nil:
		return reset(v, *c.Reset, now)
	case c.DropBranch != nil:
		return dropBranch(v, *c.DropBranch, now, grace)
	case c.RestoreBranch != nil:
		return restoreBranch(v, *c.RestoreBranch, now)
	case c.RenameBranch != nil:
		return renameBranch(v, *c.RenameBranch, now)
	case c.Tag != nil:
		return tag(v, *c.Tag)
	case c.Untag != nil:
		return untag(v, *c.Untag)
	case c.Expire != nil:
		return expire(v, *c.Expire)
	case c.Hook != nil:
		return setHook(v, *c.Hook)
	case c.Remote != nil:
		return setRemote(v, *c.Remote)
	case c.SetKey != nil:
		return setKey(v, *c.SetKey)
	case c.Track != nil:
		return track(v, *c.Track)
	case c.Schedule != nil:
		return setSchedule(v, *c.Schedule)
	case c.Retain != nil:
		return retain(v, *c.Retain)
	case c.ForgetDropped:
		return forgetDropped(v, now), nil
	}
	return v, &api.Error{Kind: api.Unsupported, Op: "change history", Object: v.Name, Reason: "this node does not know that change", Next: "upgrade it"}
}

// For gives the change in the name of a node, whatever it says itself.
func (c Change) For(node string) Change {
	switch {
	case c.Advance != nil:
		a := *c.Advance
		a.Node, c.Advance = node, &a
	case c.NewBranch != nil:
		a := *c.NewBranch
		a.Node, c.NewBranch = node, &a
	case c.Reset != nil:
		a := *c.Reset
		a.Node, c.Reset = node, &a
	case c.DropBranch != nil:
		a := *c.DropBranch
		a.Node, c.DropBranch = node, &a
	case c.RestoreBranch != nil:
		a := *c.RestoreBranch
		a.Node, c.RestoreBranch = node, &a
	case c.RenameBranch != nil:
		a := *c.RenameBranch
		a.Node, c.RenameBranch = node, &a
	}
	return c
}

// quiet looks that a head is settled under its owner and its tip is as said.
func quiet(v api.Volume, op, branch, node string, epoch uint64, tip string) (api.Head, func(api.Head) api.Volume, error) {
	h, put, err := head(v, branch, op)
	switch {
	case err != nil:
		return h, put, err
	case h.Node != node || h.Epoch != epoch:
		return h, put, notOwner(op, v.Name, node, epoch, h)
	case h.Commit != tip:
		return h, put, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + branch, Reason: fmt.Sprintf("its tip is %s now, not %s", shortID(h.Commit), shortID(tip)), Next: "look at drover log and try again"}
	}
	return h, put, nil
}

// still also wants that no move is wanted or being settled.
func still(v api.Volume, op, branch, node string, epoch uint64, tip string) (api.Head, func(api.Head) api.Volume, error) {
	h, put, err := quiet(v, op, branch, node, epoch, tip)
	switch {
	case err != nil:
	case h.Move != nil:
		err = &api.Error{Kind: api.InUse, Op: op, Object: v.Name + "@" + branch, Reason: "it is moving to " + h.Move.To, Next: "wait for it, or drover volume move --cancel " + v.Name}
	case !h.Ready:
		err = &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name + "@" + branch, Reason: h.Node + " has not finished making it", Next: "try again in a moment"}
	case h.From != "":
		err = &api.Error{Kind: api.Unavailable, Op: op, Object: v.Name + "@" + branch, Reason: "its last move is being settled on " + h.From, Next: "try again in a moment"}
	}
	return h, put, err
}

func shortID(id string) string {
	if id == "" {
		return "nothing"
	}
	return id[:min(12, len(id))]
}

func commitID(op, id string, empty bool) error {
	if id == "" && empty || api.IsCommitID(id) {
		return nil
	}
	return &api.Error{Kind: api.Invalid, Op: op, Object: fmt.Sprintf("%q", id), Reason: "not the id of a commit"}
}

func advance(v api.Volume, a Advance, now time.Time) (api.Volume, error) {
	const op = "move branch"
	if err := commitID(op, a.To, true); err != nil {
		return v, err
	}
	if h, _, err := head(v, a.Branch, op); err == nil && h.Node == a.Node && h.Epoch == a.Epoch && h.Commit == a.To && h.Tip != nil && h.Tip.From == a.From && h.Tip.At.Equal(a.Tip.At) {
		return v, nil // it took effect before
	}
	h, put, err := quiet(v, op, a.Branch, a.Node, a.Epoch, a.From)
	if err != nil {
		return v, err
	}
	h.Commit, h.Tip = a.To, tipFrom(a.Tip, a.From, now)
	return put(h), nil
}

func tipFrom(t api.Tip, from string, now time.Time) *api.Tip {
	t.From = from
	if t.At.IsZero() {
		t.At = now
	}
	return &t
}

// CheckBranch refuses names that a branch cannot have in a volume: those that
// another head would share a directory or a meaning with.
func CheckBranch(v api.Volume, op, name string) error {
	if err := api.CheckBranchName(name); err != nil {
		return err
	}
	if _, taken := v.Heads[name]; taken {
		return &api.Error{Kind: api.Exists, Op: op, Object: v.Name + "@" + name, Reason: "the volume has a branch of that name", Next: "choose another name"}
	}
	if _, taken := v.Tags[name]; taken {
		return &api.Error{Kind: api.Exists, Op: op, Object: v.Name + "@" + name, Reason: "the volume has a tag of that name", Next: "choose another name"}
	}
	if len(v.Heads) >= api.MaxBranches {
		return &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("it has %d branches", len(v.Heads)), Next: "delete some: drover branch " + v.Name + " -d NAME"}
	}
	return nil
}

// epochOf is the first epoch of a branch that is made now: later than any that
// a copy of a branch of that name may have on some pool. A pool that was away
// for longer than the grace of a deleted branch may still have one.
func epochOf(v api.Volume, branch string) uint64 {
	e := v.Past + 1
	for _, d := range v.Dropped {
		if d.Branch == branch {
			e = max(e, d.Epoch+1)
		}
	}
	for _, h := range v.Heads {
		e = max(e, h.Epoch+1)
	}
	return e
}

func withHead(v api.Volume, branch string, h api.Head) api.Volume {
	v.Heads = maps.Clone(v.Heads)
	v.Heads[branch] = h
	return v
}

func newBranch(v api.Volume, b NewBranch, now time.Time) (api.Volume, error) {
	const op = "make branch"
	if h, there := v.Heads[b.Branch]; there && v.Deleted == nil && h.Node == b.Node && h.Seed == b.Seed && h.Tip != nil && h.Tip.At.Equal(b.Tip.At) {
		return v, nil // it took effect before
	}
	if _, _, err := head(v, v.Branch, op); err != nil {
		return v, err
	}
	if err := CheckBranch(v, op, b.Branch); err != nil {
		return v, err
	}
	if err := commitID(op, b.Commit, true); err != nil {
		return v, err
	}
	if b.Seed == "" || b.Node == "" || b.Pool == "" {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + b.Branch, Reason: "node, pool and the snapshot it begins as are to be given"}
	}
	return withHead(v, b.Branch, api.Head{
		Node: b.Node, Pool: b.Pool, Epoch: epochOf(v, b.Branch), Since: now, Seed: b.Seed,
		Commit: b.Commit, Tip: tipFrom(b.Tip, "", now), Expires: b.Expires,
	}), nil
}

func switchBranch(v api.Volume, s Switch) (api.Volume, error) {
	const op = "check branch out"
	if _, _, err := head(v, s.To, op); err != nil {
		return v, err
	}
	switch v.Branch {
	case s.To:
		return v, nil
	case s.From:
		v.Branch = s.To
		return v, nil
	}
	return v, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name, Reason: "its current branch is " + v.Branch + " now, not " + s.From, Next: "try again"}
}

func reset(v api.Volume, r Reset, now time.Time) (api.Volume, error) {
	const op = "reset branch"
	if h, _, err := head(v, r.Branch, op); err == nil && h.Node == r.Node && h.Epoch == r.Epoch+1 && h.Seed == r.Seed && h.Commit == r.To && h.Tip != nil && h.Tip.At.Equal(r.Tip.At) {
		return v, nil // it took effect before
	}
	if r.Seed == "" {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "the snapshot it is to begin as is to be given"}
	}
	if err := commitID(op, r.To, true); err != nil {
		return v, err
	}
	h, put, err := still(v, op, r.Branch, r.Node, r.Epoch, r.From)
	if err != nil {
		return v, err
	}
	h.Epoch++
	h.Since, h.Seed, h.SeedVolume, h.Ready = now, r.Seed, "", false
	h.Commit, h.Tip = r.To, tipFrom(r.Tip, r.From, now)
	return put(h), nil
}

func dropBranch(v api.Volume, d DropBranch, now time.Time, grace time.Duration) (api.Volume, error) {
	const op = "delete branch"
	if _, there := v.Heads[d.Branch]; !there && slices.ContainsFunc(v.Dropped, func(x api.Dropped) bool { return x.Branch == d.Branch && x.Node == d.Node && x.Epoch == d.Epoch }) {
		return v, nil // it took effect before
	}
	h, _, err := still(v, op, d.Branch, d.Node, d.Epoch, d.From)
	if err != nil {
		return v, err
	}
	if v.Branch == d.Branch {
		return v, &api.Error{Kind: api.InUse, Op: op, Object: v.Name + "@" + d.Branch, Reason: "it is the current branch", Next: "check another one out first"}
	}
	if h.Commit == "" && d.Kept == "" {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name + "@" + d.Branch, Reason: "nothing would keep what is in it"}
	}
	v = forgetDropped(v, now)
	if len(v.Dropped) >= api.MaxDropped {
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("%d deleted branches wait for their grace to end", len(v.Dropped)), Next: "try again after " + oldest(v.Dropped).UTC().Format(time.DateTime) + " UTC"}
	}
	v.Heads, v.Past = maps.Clone(v.Heads), max(v.Past, h.Epoch)
	delete(v.Heads, d.Branch)
	v.Dropped = append(slices.Clone(v.Dropped), api.Dropped{
		Branch: d.Branch, Commit: h.Commit, Kept: d.Kept, Node: h.Node, Pool: h.Pool, Epoch: h.Epoch, By: d.By, At: now, Purge: now.Add(grace),
	})
	return v, nil
}

func oldest(list []api.Dropped) time.Time {
	at := list[0].Purge
	for _, d := range list {
		if d.Purge.Before(at) {
			at = d.Purge
		}
	}
	return at
}

func restoreBranch(v api.Volume, r RestoreBranch, now time.Time) (api.Volume, error) {
	const op = "restore branch"
	if _, _, err := head(v, v.Branch, op); err != nil {
		return v, err
	}
	i := len(v.Dropped) - 1
	for ; i >= 0 && v.Dropped[i].Branch != r.Branch; i-- {
	}
	if i < 0 {
		return v, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name + "@" + r.Branch, Reason: "no deleted branch has that name, or its grace has ended"}
	}
	d := v.Dropped[i]
	if d.Node != r.Node {
		return v, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name + "@" + r.Branch, Reason: "its data is on " + d.Node}
	}
	if err := CheckBranch(v, op, r.Branch); err != nil {
		return v, err
	}
	seed := d.Kept
	if seed == "" {
		seed = d.Commit
	}
	epoch := epochOf(v, d.Branch)
	v.Dropped = slices.Delete(slices.Clone(v.Dropped), i, i+1)
	if len(v.Dropped) == 0 {
		v.Dropped = nil
	}
	return withHead(v, d.Branch, api.Head{
		Node: d.Node, Pool: d.Pool, Epoch: epoch, Since: now, Seed: seed, Commit: d.Commit,
		Tip: &api.Tip{Op: "undo", From: d.Commit, By: r.By, At: now, Note: "of deleting it"},
	}), nil
}

func renameBranch(v api.Volume, r RenameBranch, now time.Time) (api.Volume, error) {
	const op = "rename branch"
	if _, there := v.Heads[r.Branch]; !there {
		if h, moved := v.Heads[r.To]; moved && v.Deleted == nil && h.Node == r.Node && h.Seed == r.Seed && h.Epoch > r.Epoch {
			return v, nil // it took effect before
		}
	}
	h, _, err := still(v, op, r.Branch, r.Node, r.Epoch, r.From)
	if err != nil {
		return v, err
	}
	if err := CheckBranch(v, op, r.To); err != nil && !(api.Is(err, api.Exhausted)) {
		return v, err
	}
	if r.Seed == "" {
		return v, &api.Error{Kind: api.Invalid, Op: op, Object: v.Name, Reason: "the snapshot it is to begin as is to be given"}
	}
	v.Past = max(v.Past, h.Epoch)
	h.Epoch = epochOf(v, r.To)
	h.Since, h.Seed, h.SeedVolume, h.Ready, h.Away = now, r.Seed, "", false, nil
	h.Tip = &api.Tip{Op: "rename", From: h.Commit, By: r.By, At: now, Note: "was " + r.Branch}
	v.Heads = maps.Clone(v.Heads)
	delete(v.Heads, r.Branch)
	v.Heads[r.To] = h
	if v.Branch == r.Branch {
		v.Branch = r.To
	}
	v.Schedules = maps.Clone(v.Schedules)
	for name, s := range v.Schedules {
		if s.Branch == r.Branch {
			s.Branch = r.To
			v.Schedules[name] = s
		}
	}
	return v, nil
}

func tag(v api.Volume, t Tag) (api.Volume, error) {
	const op = "tag commit"
	if _, _, err := head(v, v.Branch, op); err != nil {
		return v, err
	}
	if err := api.CheckTagName(t.Name); err != nil {
		return v, err
	}
	if err := commitID(op, t.Commit, false); err != nil {
		return v, err
	}
	if _, taken := v.Heads[t.Name]; taken {
		return v, &api.Error{Kind: api.Exists, Op: op, Object: t.Name, Reason: "the volume has a branch of that name", Next: "choose another name"}
	}
	switch was, there := v.Tags[t.Name]; {
	case was == t.Commit:
		return v, nil
	case there && !t.Force:
		return v, &api.Error{Kind: api.Exists, Op: op, Object: t.Name, Reason: "the tag names " + shortID(was), Next: "choose another name, or move it with --force"}
	case !there && len(v.Tags) >= api.MaxTags:
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("it has %d tags", len(v.Tags)), Next: "delete some: drover tag " + v.Name + " -d NAME"}
	}
	v.Tags = maps.Clone(v.Tags)
	if v.Tags == nil {
		v.Tags = map[string]string{}
	}
	v.Tags[t.Name] = t.Commit
	return v, nil
}

func untag(v api.Volume, t Untag) (api.Volume, error) {
	const op = "delete tag"
	if _, _, err := head(v, v.Branch, op); err != nil {
		return v, err
	}
	if _, there := v.Tags[t.Name]; !there {
		return v, &api.Error{Kind: api.NotFound, Op: op, Object: t.Name, Reason: "the volume has no such tag", Next: "drover tag " + v.Name + " lists them"}
	}
	v.Tags = maps.Clone(v.Tags)
	delete(v.Tags, t.Name)
	if len(v.Tags) == 0 {
		v.Tags = nil
	}
	return v, nil
}

func expire(v api.Volume, e Expire) (api.Volume, error) {
	const op = "let branch expire"
	h, put, err := head(v, e.Branch, op)
	if err != nil {
		return v, err
	}
	if v.Branch == e.Branch && !e.At.IsZero() {
		return v, &api.Error{Kind: api.InUse, Op: op, Object: v.Name + "@" + e.Branch, Reason: "it is the current branch", Next: "check another one out first"}
	}
	h.Expires = e.At
	return put(h), nil
}

func setHook(v api.Volume, s SetHook) (api.Volume, error) {
	if _, _, err := head(v, v.Branch, "set hook"); err != nil {
		return v, err
	}
	if s.Hook != nil {
		if err := s.Hook.Check(); err != nil {
			return v, err
		}
	}
	v.Hook = s.Hook
	return v, nil
}

// forgetDropped forgets branches whose grace has ended.
func forgetDropped(v api.Volume, now time.Time) api.Volume {
	var left []api.Dropped
	for _, d := range v.Dropped {
		if now.Before(d.Purge) {
			left = append(left, d)
		}
	}
	v.Dropped = left
	return v
}

// What names a change in a log line.
func (c Change) What() string {
	for name, set := range map[string]bool{
		"advance": c.Advance != nil, "new branch": c.NewBranch != nil, "switch": c.Switch != nil, "reset": c.Reset != nil,
		"drop branch": c.DropBranch != nil, "restore branch": c.RestoreBranch != nil, "rename branch": c.RenameBranch != nil,
		"tag": c.Tag != nil, "untag": c.Untag != nil, "expire": c.Expire != nil, "hook": c.Hook != nil, "remote": c.Remote != nil, "key": c.SetKey != nil, "track": c.Track != nil, "schedule": c.Schedule != nil, "retain": c.Retain != nil, "forget dropped": c.ForgetDropped,
	} {
		if set {
			return strings.ReplaceAll(name, " ", "-")
		}
	}
	return "nothing"
}

// Last says what an undo of a branch means, "" being the current one: the last
// move of its tip, or that a branch was deleted after that.
func Last(v api.Volume, branch string) (string, *api.Dropped) {
	given := branch != ""
	if !given {
		branch = v.Branch
	}
	h, there := v.Heads[branch]
	for i := len(v.Dropped) - 1; i >= 0; i-- {
		d := v.Dropped[i]
		if given && there {
			break
		}
		if given && d.Branch == branch || !given && (h.Tip == nil || d.At.After(h.Tip.At)) {
			return d.Branch, &d
		}
	}
	return branch, nil
}
