package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
)

// SetRemote names a place that keeps a volume's commits; without Remote the
// name is forgotten, and what was seen there.
type SetRemote struct {
	Name   string      `json:"name"`
	Remote *api.Remote `json:"remote,omitempty"`
	// Replace allows to point a name elsewhere.
	Replace bool `json:"replace,omitempty"`
}

// Track notes where a remote's branch was seen; without Commit that it is gone.
type Track struct {
	Remote string `json:"remote"`
	Branch string `json:"branch"`
	Commit string `json:"commit,omitempty"`
}

func setRemote(v api.Volume, s SetRemote) (api.Volume, error) {
	const op = "set remote"
	if err := api.CheckRemoteName(s.Name); err != nil {
		return v, err
	}
	had, known := v.Remotes[s.Name]
	if s.Remote == nil {
		v.Remotes = without(v.Remotes, func(name string) bool { return name == s.Name })
		v.Tracking = without(v.Tracking, func(name string) bool { return strings.HasPrefix(name, s.Name+"/") })
		return v, nil
	}
	if known && s.Remote.Key == "" {
		// What is sealed stays so, wherever it goes.
		r := *s.Remote
		r.Key, r.Old = had.Key, had.Old
		s.Remote = &r
	}
	switch {
	case known && had.URL == s.Remote.URL && had.Key == s.Remote.Key:
		return v, nil
	case known && !s.Replace:
		return v, &api.Error{Kind: api.Exists, Op: op, Object: v.Name, Reason: fmt.Sprintf("remote %s is %s", s.Name, had.URL), Next: "choose another name, or drover remote set-url"}
	case !known && len(v.Remotes) >= api.MaxRemotes:
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("it has %d remotes already", len(v.Remotes)), Next: "remove one: drover remote rm"}
	}
	if known && had.URL == s.Remote.URL && had.Key != "" {
		r := *s.Remote
		r.Old = append(slices.Clone(had.Old), had.Key)
		s.Remote = &r
	}
	if known && had.URL != s.Remote.URL {
		v.Tracking = without(v.Tracking, func(name string) bool { return strings.HasPrefix(name, s.Name+"/") })
	}
	v.Remotes = extend(v.Remotes, s.Name, *s.Remote)
	return v, nil
}

// SetKey changes the keys of a remote.
type SetKey struct {
	Remote string `json:"remote"`
	// Key seals from now on what is pushed, instead of Was, which becomes an old one.
	Key string `json:"key,omitempty"`
	Was string `json:"was,omitempty"`
	// Know adds old keys, Drop removes one.
	Know []string `json:"know,omitempty"`
	Drop string   `json:"drop,omitempty"`
}

func setKey(v api.Volume, s SetKey) (api.Volume, error) {
	const op = "set key"
	r, known := v.Remotes[s.Remote]
	if !known {
		return v, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it has no remote " + s.Remote}
	}
	r.Old = slices.Clone(r.Old)
	if s.Key != "" && s.Key != r.Key {
		if r.Key != s.Was {
			return v, &api.Error{Kind: api.Conflict, Op: op, Object: v.Name, Reason: fmt.Sprintf("remote %s got the key %s meanwhile", s.Remote, r.Key), Next: "drover remote key ls " + v.Name + " shows how it stands"}
		}
		if r.Key != "" {
			r.Old = append(r.Old, r.Key)
		}
		r.Key = s.Key
	}
	r.Old = append(r.Old, s.Know...)
	slices.Sort(r.Old)
	r.Old = slices.DeleteFunc(slices.Compact(r.Old), func(id string) bool { return id == r.Key || id == s.Drop })
	switch {
	case s.Drop != "" && s.Drop == r.Key:
		return v, &api.Error{Kind: api.InUse, Op: op, Object: s.Drop, Reason: "it seals what is pushed to " + s.Remote, Next: "drover remote key rotate " + v.Name + " first"}
	case len(r.Old) > api.MaxOldKeys:
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("remote %s has more than %d old keys", s.Remote, api.MaxOldKeys), Next: "remove those that seal nothing any more: drover remote key rm"}
	case len(r.Old) == 0:
		r.Old = nil
	}
	v.Remotes = extend(v.Remotes, s.Remote, r)
	return v, nil
}

// maxTracking bounds the remote branches that are remembered.
const maxTracking = api.MaxBranches

func track(v api.Volume, t Track) (api.Volume, error) {
	const op = "note remote branch"
	name := t.Remote + "/" + t.Branch
	if _, known := v.Remotes[t.Remote]; !known {
		return v, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it has no remote " + t.Remote}
	}
	if err := api.CheckBranchName(t.Branch); err != nil {
		return v, err
	}
	if t.Commit == "" {
		v.Tracking = without(v.Tracking, func(n string) bool { return n == name })
		return v, nil
	}
	if err := commitID(op, t.Commit, false); err != nil {
		return v, err
	}
	if _, known := v.Tracking[name]; !known && len(v.Tracking) >= maxTracking {
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("%d branches of remotes are remembered already", len(v.Tracking))}
	}
	v.Tracking = extend(v.Tracking, name, t.Commit)
	return v, nil
}

// extend and without give changed copies; an empty one is nil, as it is read back.
func extend[V any](m map[string]V, key string, value V) map[string]V {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
}

func without[V any](m map[string]V, gone func(string) bool) map[string]V {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(k string, _ V) bool { return gone(k) })
	if len(m) == 0 {
		return nil
	}
	return m
}

// SetSchedule says what happens to a volume by itself; without Schedule the name
// is forgotten.
type SetSchedule struct {
	Name     string        `json:"name"`
	Schedule *api.Schedule `json:"schedule,omitempty"`
}

const maxSchedules = 16

func setSchedule(v api.Volume, s SetSchedule) (api.Volume, error) {
	const op = "set schedule"
	if s.Schedule == nil {
		v.Schedules = without(v.Schedules, func(name string) bool { return name == s.Name })
		return v, nil
	}
	if err := repo.CheckSchedule(s.Name, *s.Schedule); err != nil {
		return v, err
	}
	for _, r := range s.Schedule.Push {
		if _, known := v.Remotes[r]; !known {
			return v, &api.Error{Kind: api.NotFound, Op: op, Object: v.Name, Reason: "it has no remote " + r, Next: "drover remote add " + v.Name + " " + r + " URL"}
		}
	}
	if _, known := v.Schedules[s.Name]; !known && len(v.Schedules) >= maxSchedules {
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("it has %d schedules already", len(v.Schedules))}
	}
	v.Schedules = extend(v.Schedules, s.Name, *s.Schedule)
	return v, nil
}

// Retain tags the commits that a retention policy keeps and no branch leads to.
type Retain struct {
	Commits []string `json:"commits"`
}

func retain(v api.Volume, r Retain) (api.Volume, error) {
	const op = "keep commits"
	tags := without(v.Tags, func(name string) bool { return strings.HasPrefix(name, repo.RetainedTag) })
	for _, id := range r.Commits {
		if err := commitID(op, id, false); err != nil {
			return v, err
		}
		tags = extend(tags, repo.RetainedTag+shortID(id), id)
	}
	if len(tags) > api.MaxTags {
		return v, &api.Error{Kind: api.Exhausted, Op: op, Object: v.Name, Reason: fmt.Sprintf("more than %d tags would be needed", api.MaxTags), Next: "keep fewer commits"}
	}
	v.Tags = tags
	return v, nil
}
