package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

// refs are the mounts that Docker asked for and has not taken back, by the id
// Docker gave each. They outlive the agent but not the host, whose restart
// ends every container: they lie where a reboot forgets them.
type refs struct {
	path string

	mu   sync.Mutex
	held map[headKey]map[string]time.Time // guarded by mu; id -> since
}

func openRefs(path string) (*refs, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	r := &refs{path: path, held: map[headKey]map[string]time.Time{}}
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	var list []ref
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	for _, e := range list {
		r.set(headKey{e.Volume, e.Branch}, e.ID, e.Since)
	}
	return r, nil
}

type ref struct {
	Volume string    `json:"volume"`
	Branch string    `json:"branch"`
	ID     string    `json:"id"`
	Since  time.Time `json:"since"`
}

func (r *refs) set(k headKey, id string, since time.Time) {
	if r.held[k] == nil {
		r.held[k] = map[string]time.Time{}
	}
	r.held[k][id] = since
}

// save is called with mu held.
func (r *refs) save() error {
	list := []ref{}
	for k, ids := range r.held {
		for id, since := range ids {
			list = append(list, ref{k.volume, k.branch, id, since})
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return renameio.WriteFile(r.path, text, 0o600)
}

// add notes a reference; one that is there is kept.
func (r *refs) add(k headKey, id string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.held[k][id]; there {
		return nil
	}
	r.set(k, id, now)
	return r.save()
}

// remove forgets a reference and says how many are left.
func (r *refs) remove(k headKey, ids ...string) (left int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := false
	for _, id := range ids {
		if _, there := r.held[k][id]; there {
			delete(r.held[k], id)
			changed = true
		}
	}
	left = len(r.held[k])
	if left == 0 {
		delete(r.held, k)
	}
	if !changed {
		return left, nil
	}
	return left, r.save()
}

// branchOf is the branch of a volume that a reference is to: what the plain
// name meant when it was made it may not mean any more.
func (r *refs) branchOf(volume, id string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, ids := range r.held {
		if _, there := ids[id]; there && k.volume == volume {
			return k.branch, true
		}
	}
	return "", false
}

// of gives the references of a head.
func (r *refs) of(k headKey) map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]time.Time, len(r.held[k]))
	for id, since := range r.held[k] {
		out[id] = since
	}
	return out
}

// forget drops the references of a head that left this node.
func (r *refs) forget(k headKey) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.held[k]) == 0 {
		return nil
	}
	delete(r.held, k)
	return r.save()
}
